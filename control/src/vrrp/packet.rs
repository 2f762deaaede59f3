//! How does an advert look on the wire, and which received ones count?

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use bytes::{Buf, BufMut, BytesMut};

use super::auth::{AH_PROTOCOL, AuthenticationHeader, Guard, Proof};
use crate::{
    checksum::Sum,
    config::model::{Authentication, Family, TtlLimit, Version, Vrid},
};

pub const PROTOCOL: u8 = 112;
/// A receive buffer that holds the longest advert, behind the longest IP header.
pub const MAX_DATAGRAM: usize = 60 + HEADER + 16 * 255 + AUTHENTICATION + Guard::MOST;

pub(super) const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const HEADER: usize = 8;
/// Always there in VRRPv2, zero where unused (RFC 3768 5.3.10).
const AUTHENTICATION: usize = 8;
const TYPE_ADVERTISEMENT: u8 = 1;

/// Where adverts go without `unicast_peer` (RFC 9568 5.1.1.2, 5.1.2.2).
pub const fn group(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(224, 0, 0, 18)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12)),
    }
}

/// The count of addresses is one octet (RFC 9568 5.2.5). Those of IPv6 fill a packet before that, and routers do not
/// cut such packets up.
pub const fn max_addresses(family: Family) -> usize {
    match family {
        Family::V4 => 255,
        Family::V6 => (1500 - IPV6_HEADER - HEADER) / 16,
    }
}

/// What a master says, as far as the machine has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advert {
    /// 0 = the master resigns.
    pub priority: u8,
    pub interval: Duration,
}

/// What the checksum of an advert covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The message alone: all of VRRPv2, and VRRPv3 over IPv4 by RFC 9568 5.2.8.
    Message,
    /// A pseudo header too: VRRPv3 over IPv6, and over IPv4 as keepalived reads RFC 5798.
    PseudoHeader,
    /// A pseudo header with the multicast group as destination, though the advert goes to a peer: VRRPv3 over IPv4 as
    /// keepalived had it up to 1.3.6.
    OldUnicast,
}

/// How the adverts of one instance look: what it sends and what it expects of its peers.
#[derive(Clone, Debug)]
pub struct Format {
    pub vrid: Vrid,
    pub version: Version,
    pub interval: Duration,
    pub authentication: Authentication,
    /// Of the adverts sent. Over IPv4 all kinds are accepted.
    pub checksum: Checksum,
    /// Its family is that of all other addresses here.
    pub source: IpAddr,
    /// Empty = multicast.
    pub peers: Vec<IpAddr>,
    /// Where multicast adverts go.
    pub multicast: IpAddr,
    /// Of the adverts sent.
    pub ttl: u8,
    /// Of those that peers send. All others may have any.
    pub ttl_limits: Vec<TtlLimit>,
    /// At most [`max_addresses`].
    pub addresses: Vec<IpAddr>,
}

/// An advert that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    pub advert: Advert,
    pub checksum: Checksum,
    /// The sender has other addresses than we do. RFC 9568 7.1: worth a message, not a reason to discard.
    pub addresses_differ: bool,
}

/// Why an advert does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("the advert has {got} bytes, not {expected}")]
    Length { expected: usize, got: usize },
    #[error("the TTL (hop limit) is {got}, not within {least} to {most}: it came through routers")]
    Ttl { got: u8, least: u8, most: u8 },
    #[error("the VRRP version is {got}, not {expected}")]
    Version { expected: u8, got: u8 },
    #[error("the authentication type is {got}, not {expected}")]
    AuthenticationType { expected: u8, got: u8 },
    #[error("the password differs")]
    Password,
    #[error("the advert interval is {got:?}, not {expected:?}")]
    Interval { expected: Duration, got: Duration },
    #[error("the message type is {got}, not 1")]
    Type { got: u8 },
    #[error("the checksum {got:#06x} is wrong")]
    Checksum { got: u16 },
    #[error("it was sent to {destination}: one side uses multicast, the other unicast or another group")]
    Destination { destination: IpAddr },
    #[error("the sender is not a unicast_peer")]
    UnknownPeer,
    #[error("the integrity check value is absent or wrong: another password, or a forgery")]
    Integrity,
    #[error("the sequence number does not grow: an old advert was sent again, or the sender was restarted")]
    Replay,
    #[error("it is not signed, and auth_hmac insists")]
    Unsigned,
    #[error("it is signed with key {id}, which auth_hmac has not")]
    UnknownKey { id: u8 },
    #[error("it was signed at another time: an old advert was sent again, or clocks differ")]
    Stale,
    #[error("this node owns the addresses and listens to nobody (owner_ignore_adverts)")]
    Owner,
}

impl Rejection {
    /// Names of the kinds, in the order of [`Rejection::kind`].
    pub const KINDS: [&'static str; 16] = [
        "length",
        "ttl",
        "version",
        "authentication_type",
        "password",
        "interval",
        "type",
        "checksum",
        "destination",
        "unknown_peer",
        "integrity",
        "replay",
        "unsigned",
        "unknown_key",
        "stale",
        "owner",
    ];

    /// Index into [`Rejection::KINDS`].
    pub fn kind(&self) -> usize {
        match self {
            Self::Length { .. } => 0,
            Self::Ttl { .. } => 1,
            Self::Version { .. } => 2,
            Self::AuthenticationType { .. } => 3,
            Self::Password => 4,
            Self::Interval { .. } => 5,
            Self::Type { .. } => 6,
            Self::Checksum { .. } => 7,
            Self::Destination { .. } => 8,
            Self::UnknownPeer => 9,
            Self::Integrity => 10,
            Self::Replay => 11,
            Self::Unsigned => 12,
            Self::UnknownKey { .. } => 13,
            Self::Stale => 14,
            Self::Owner => 15,
        }
    }
}

/// A datagram of protocol 112.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Tells adverts of one sender apart. IPv6 has none: there it is the checksum, and adverts that say the same pass for one.
    pub identification: u16,
    /// The hop limit of IPv6.
    pub ttl: u8,
    pub proof: Proof<'a>,
    /// Behind the headers, as long as the IP header says.
    pub message: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// A packet of either family with its header, as raw sockets of IPv4 and packet sockets deliver it. `None` where the header
    /// is not one, or says more than was received.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => None,
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Option<Self> {
        let mut header = bytes.get(..IPV4_HEADER)?;
        let first = header.get_u8();
        header.advance(1); // TOS
        let total = usize::from(header.get_u16());
        let identification = header.get_u16();
        header.advance(2); // fragment
        let ttl = header.get_u8();
        let protocol = header.get_u8();
        header.advance(2); // checksum: the kernel has verified it, but for copies from a heartbeat interface
        let source = Ipv4Addr::from(header.get_u32()).into();
        let destination = Ipv4Addr::from(header.get_u32()).into();
        let length = usize::from(first & 0x0f) * 4;
        if length < IPV4_HEADER {
            return None;
        }
        let payload = bytes.get(length..total)?;
        let (proof, message) = match protocol {
            PROTOCOL => (Proof::None, payload),
            AH_PROTOCOL => {
                let (ah, message) = AuthenticationHeader::split(bytes.get(..length)?, payload)?;
                (Proof::Ah(ah), message)
            }
            _ => return None,
        };
        Some(Self { source, destination, identification, ttl, proof, message })
    }

    fn parse_v6(bytes: &'a [u8]) -> Option<Self> {
        let (mut header, payload) = bytes.split_at_checked(IPV6_HEADER)?;
        header.advance(4); // version, traffic class, flow label
        let length = usize::from(header.get_u16());
        let protocol = header.get_u8();
        let hop_limit = header.get_u8();
        let source = Ipv6Addr::from(header.get_u128()).into();
        let destination = Ipv6Addr::from(header.get_u128()).into();
        let message = payload.get(..length)?;
        (protocol == PROTOCOL).then(|| Self::ipv6(source, destination, hop_limit, message))
    }

    pub fn ipv6(source: IpAddr, destination: IpAddr, ttl: u8, message: &'a [u8]) -> Self {
        let checksum = message.get(6..8).map_or(0, |mut field| field.get_u16());
        Self { source, destination, identification: checksum, ttl, proof: Proof::None, message }
    }

    /// The virtual router it is about; `None` where it is too short to say.
    pub fn vrid(&self) -> Option<u8> {
        self.message.get(1).copied()
    }
}

impl Format {
    /// Of its adverts.
    pub fn family(&self) -> Family {
        Family::of(self.source)
    }

    /// Appends one advert, IP header included. The identification is IPv4's.
    pub fn encode(&self, priority: u8, destination: IpAddr, identification: u16, out: &mut impl BufMut) {
        let mut header = [0; HEADER];
        let mut fields = header.as_mut_slice();
        fields.put_u8(wire_version(self.version) << 4 | TYPE_ADVERTISEMENT);
        fields.put_u8(self.vrid.get());
        fields.put_u8(priority);
        fields.put_u8(u8::try_from(self.addresses.len()).unwrap_or(u8::MAX));
        let trailer = match self.version {
            Version::V2 => {
                fields.put_u8(wire_authentication(self.authentication));
                fields.put_u8(u8::try_from(self.interval.as_secs()).unwrap_or(u8::MAX));
                match self.authentication {
                    Authentication::None | Authentication::Ah(_) => Some([0; AUTHENTICATION]),
                    Authentication::Pass(password) => Some(password),
                }
            }
            Version::V3 => {
                fields.put_u16(u16::try_from(self.interval.as_millis() / 10).unwrap_or(u16::MAX).min(0x0fff));
                None
            }
        };
        let trailer = trailer.as_ref().map_or(&[][..], |trailer| trailer);
        let addresses = || self.addresses.iter().take(u8::MAX.into());
        let length = HEADER + addresses().len() * address_len(self.family()) + trailer.len();

        let sum = Sum::default().and(&header);
        let mut sum = addresses().fold(sum, |sum, address| sum.and_address(*address)).and(trailer);
        sum = match self.checksum {
            Checksum::Message => sum,
            Checksum::PseudoHeader => sum.and_pseudo_header(self.source, destination, length, PROTOCOL),
            Checksum::OldUnicast => {
                sum.and_pseudo_header(self.source, group(self.family()), length, PROTOCOL)
            }
        };
        let [.., high, low] = &mut header;
        [*high, *low] = sum.checksum().to_be_bytes();

        match (self.source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                out.put_slice(&ipv4_header(source, destination, self.ttl, identification, length));
            }
            _ => {
                out.put_slice(&ipv6_header(self.ttl, length));
                put_address(out, self.source);
                put_address(out, destination);
            }
        }
        out.put_slice(&header);
        addresses().for_each(|address| put_address(out, *address));
        out.put_slice(trailer);
    }

    /// Whether a datagram for our VRID counts. The order of the checks is keepalived's, so that both name the same reason.
    pub fn accept(&self, datagram: &Datagram<'_>) -> Result<Received, Rejection> {
        let message = datagram.message;
        let got = message.len();
        let Some(mut header) = message.get(..HEADER) else {
            return Err(Rejection::Length { expected: HEADER, got });
        };
        let version_and_type = header.get_u8();
        header.advance(1); // VRID
        let priority = header.get_u8();
        let count = usize::from(header.get_u8());
        let third = header.get_u16();
        let checksum = header.get_u16();
        let [authentication_type, seconds] = third.to_be_bytes();
        let version = version_and_type >> 4;

        let addresses_end = HEADER + address_len(self.family()) * count;
        let expected = if version == 2 { addresses_end + AUTHENTICATION } else { addresses_end };
        let (Some(addresses), Some(trailer), true) =
            (message.get(HEADER..addresses_end), message.get(addresses_end..), got == expected)
        else {
            return Err(Rejection::Length { expected, got });
        };
        // RFC 9568 7.1: TTL 255 proves that it crossed no router. Unicast peers may be routed.
        let limit = self.ttl_limits.iter().find(|limit| limit.peer == datagram.source);
        let (least, most) = match limit {
            _ if self.peers.is_empty() => (255, 255),
            Some(limit) => (limit.least, limit.most),
            None => (0, 255),
        };
        if !(least..=most).contains(&datagram.ttl) {
            return Err(Rejection::Ttl { got: datagram.ttl, least, most });
        }
        if version != wire_version(self.version) {
            return Err(Rejection::Version { expected: wire_version(self.version), got: version });
        }
        let interval = match self.version {
            Version::V2 => {
                let expected = wire_authentication(self.authentication);
                if authentication_type != expected {
                    return Err(Rejection::AuthenticationType { expected, got: authentication_type });
                }
                if let Authentication::Pass(password) = self.authentication
                    && !equal_in_constant_time(&password, trailer)
                {
                    return Err(Rejection::Password);
                }
                let interval = Duration::from_secs(seconds.into());
                // RFC 3768 7.1: another interval means discard.
                if interval != self.interval {
                    return Err(Rejection::Interval { expected: self.interval, got: interval });
                }
                interval
            }
            Version::V3 => {
                let interval = Duration::from_millis(10 * u64::from(third & 0x0fff));
                // Learned by backups (RFC 9568 6.4.2); zero would make every timer fire at once.
                if interval.is_zero() {
                    return Err(Rejection::Interval { expected: self.interval, got: interval });
                }
                interval
            }
        };
        if version_and_type & 0x0f != TYPE_ADVERTISEMENT {
            return Err(Rejection::Type { got: version_and_type & 0x0f });
        }
        let sum = Sum::default().and(message);
        let (sum, covered) = match datagram.proof {
            Proof::Trailer(trailer) if self.family() == Family::V6 => (sum.and(trailer), got + trailer.len()),
            _ => (sum, got),
        };
        let with =
            |destination| sum.and_pseudo_header(datagram.source, destination, covered, PROTOCOL).is_sound();
        let checksum = match (self.version, self.family()) {
            (_, Family::V4) if sum.is_sound() => Checksum::Message,
            (Version::V3, _) if with(datagram.destination) => Checksum::PseudoHeader,
            (Version::V3, Family::V4) if !self.peers.is_empty() && with(group(Family::V4)) => {
                Checksum::OldUnicast
            }
            _ => return Err(Rejection::Checksum { got: checksum }),
        };
        let is_meant = match (datagram.destination.is_multicast(), self.peers.is_empty()) {
            (true, true) => datagram.destination == self.multicast,
            (true, false) => false,
            // A master that hands over to one of many says its farewell to that one alone.
            (false, true) => priority == 0,
            (false, false) => true,
        };
        if !is_meant {
            return Err(Rejection::Destination { destination: datagram.destination });
        }
        if !self.peers.is_empty() && !self.peers.contains(&datagram.source) {
            return Err(Rejection::UnknownPeer);
        }
        Ok(Received {
            advert: Advert { priority, interval },
            checksum,
            addresses_differ: match self.family() {
                Family::V4 => !same_addresses::<4>(&self.addresses, addresses),
                Family::V6 => !same_addresses::<16>(&self.addresses, addresses),
            },
        })
    }
}

/// Same addresses, in any order; `theirs` are as on the wire.
fn same_addresses<const LEN: usize>(ours: &[IpAddr], theirs: &[u8]) -> bool
where
    IpAddr: From<[u8; LEN]>,
{
    let (theirs, _) = theirs.as_chunks::<LEN>();
    let mut theirs = theirs.iter().map(|octets| IpAddr::from(*octets));
    theirs.len() == ours.len()
        && (theirs.clone().eq(ours.iter().copied())
            || (ours.iter().all(|ours| theirs.clone().any(|theirs| theirs == *ours))
                && theirs.all(|theirs| ours.contains(&theirs))))
}

/// How long an advert is by what it says itself.
pub(super) fn length(message: &[u8], family: Family) -> Option<usize> {
    let &[version_and_type, _, _, count, ..] = message else { return None };
    let trailer = if version_and_type >> 4 == 2 { AUTHENTICATION } else { 0 };
    Some(HEADER + address_len(family) * usize::from(count) + trailer)
}

/// The IP header and the message of an encoded advert.
pub(super) fn parts(packet: &[u8], family: Family) -> Option<(&[u8], &[u8])> {
    packet.split_at_checked(match family {
        Family::V4 => IPV4_HEADER,
        Family::V6 => IPV6_HEADER,
    })
}

/// Appends to an encoded advert what its length leaves out, and its checksum over IPv4 too. Over IPv6 the checksum is the
/// kernel's, which knows one length only.
pub(super) fn append(packet: &mut BytesMut, format: &Format, trailer: &[u8]) {
    packet.put_slice(trailer);
    let total = packet.len();
    match format.family() {
        Family::V4 => {
            if let Some(header) = packet.first_chunk_mut() {
                readdress(header, PROTOCOL, total);
            }
        }
        Family::V6 => {
            let Some((header, message)) = packet.split_first_chunk_mut::<IPV6_HEADER>() else { return };
            let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
            header[4..6].copy_from_slice(&length.to_be_bytes());
            // Both addresses stand behind each other at the end of the header.
            let pseudo = Sum::default().and(&header[8..]).and(&[0, PROTOCOL]).and(&length.to_be_bytes());
            pseudo.put(message, 6);
        }
    }
}

pub(super) const fn wire_version(version: Version) -> u8 {
    match version {
        Version::V2 => 2,
        Version::V3 => 3,
    }
}

const fn wire_authentication(authentication: Authentication) -> u8 {
    match authentication {
        Authentication::None => 0,
        Authentication::Pass(_) => 1,
        Authentication::Ah(_) => 2,
    }
}

fn equal_in_constant_time(ours: &[u8; AUTHENTICATION], theirs: &[u8]) -> bool {
    theirs.len() == ours.len() && ours.iter().zip(theirs).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

const fn address_len(family: Family) -> usize {
    family.bits() as usize / 8
}

fn put_address(out: &mut impl BufMut, address: IpAddr) {
    match address {
        IpAddr::V4(address) => out.put_slice(&address.octets()),
        IpAddr::V6(address) => out.put_slice(&address.octets()),
    }
}

/// Version, traffic class, lengths; the addresses follow.
fn ipv6_header(hop_limit: u8, payload: usize) -> [u8; 8] {
    let mut header = [0; 8];
    let mut out = header.as_mut_slice();
    out.put_u32(0x6c00_0000); // internetwork control, no flow label
    out.put_u16(u16::try_from(payload).unwrap_or(u16::MAX));
    out.put_u8(PROTOCOL);
    out.put_u8(hop_limit);
    header
}

fn ipv4_header(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ttl: u8,
    identification: u16,
    payload: usize,
) -> [u8; IPV4_HEADER] {
    let mut header = [0; IPV4_HEADER];
    let mut out = header.as_mut_slice();
    out.put_u8(0x45);
    out.put_u8(0xc0); // internetwork control
    out.put_u16(0); // total length
    out.put_u16(identification);
    out.put_u16(0); // not a fragment, may become one
    out.put_u8(ttl);
    out.put_u8(0); // protocol
    out.put_u16(0); // checksum
    out.put_slice(&source.octets());
    out.put_slice(&destination.octets());
    readdress(&mut header, PROTOCOL, IPV4_HEADER + payload);
    header
}

/// Writes protocol, total length and the checksum that comes of them.
pub(super) fn readdress(header: &mut [u8; IPV4_HEADER], protocol: u8, total: usize) {
    header[2..4].copy_from_slice(&u16::try_from(total).unwrap_or(u16::MAX).to_be_bytes());
    header[9] = protocol;
    Sum::default().put(header, 10);
}

#[cfg(test)]
mod tests;
