//! How does an advert look on the wire, and which received ones count?

use std::{net::Ipv4Addr, time::Duration};

use bytes::{Buf, BufMut};

use crate::config::model::{Authentication, Version, Vrid};

pub const PROTOCOL: u8 = 112;
/// Where adverts go without `unicast_peer` (RFC 9568 5.1.1.2).
pub const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// The count of addresses is one octet (RFC 9568 5.2.5).
pub const MAX_ADDRESSES: usize = 255;
/// A receive buffer that holds the longest advert, behind the longest IP header.
pub const MAX_DATAGRAM: usize = 60 + HEADER + 4 * MAX_ADDRESSES + AUTHENTICATION;

const IP_HEADER: usize = 20;
const HEADER: usize = 8;
/// Always there in VRRPv2, zero where unused (RFC 3768 5.3.10).
const AUTHENTICATION: usize = 8;
const TYPE_ADVERTISEMENT: u8 = 1;

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
    /// The message alone: all of VRRPv2, and VRRPv3 by RFC 9568 5.2.8.
    Message,
    /// A pseudo header too: VRRPv3 as keepalived reads RFC 5798.
    PseudoHeader,
}

/// How the adverts of one instance look: what it sends and what it expects of its peers.
#[derive(Clone, Debug)]
pub struct Format {
    pub vrid: Vrid,
    pub version: Version,
    pub interval: Duration,
    pub authentication: Authentication,
    /// Of the adverts sent. Both kinds are accepted.
    pub checksum: Checksum,
    pub source: Ipv4Addr,
    /// Empty = multicast.
    pub peers: Vec<Ipv4Addr>,
    /// At most [`MAX_ADDRESSES`].
    pub addresses: Vec<Ipv4Addr>,
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
    #[error("the TTL is {got}, not 255: it came through a router")]
    Ttl { got: u8 },
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
    #[error("it was sent to {destination}: one side uses multicast, the other unicast")]
    Destination { destination: Ipv4Addr },
    #[error("the sender is not a unicast_peer")]
    UnknownPeer,
}

impl Rejection {
    /// Names of the kinds, in the order of [`Rejection::kind`].
    pub const KINDS: [&'static str; 10] = [
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
        }
    }
}

/// An IPv4 datagram as a raw socket delivers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub ttl: u8,
    /// Behind the IP header, as long as the IP header says.
    pub message: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// `None` where the IP header is not one, or says more than was received.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut header = bytes.get(..IP_HEADER)?;
        let first = header.get_u8();
        header.advance(1); // TOS
        let total = usize::from(header.get_u16());
        header.advance(4); // identification, fragment
        let ttl = header.get_u8();
        let protocol = header.get_u8();
        header.advance(2); // checksum: the kernel has verified it
        let source = Ipv4Addr::from(header.get_u32());
        let destination = Ipv4Addr::from(header.get_u32());
        let length = usize::from(first & 0x0f) * 4;
        if first >> 4 != 4 || length < IP_HEADER || protocol != PROTOCOL {
            return None;
        }
        Some(Self { source, destination, ttl, message: bytes.get(length..total)? })
    }

    /// The virtual router it is about; `None` where it is too short to say.
    pub fn vrid(&self) -> Option<u8> {
        self.message.get(1).copied()
    }
}

impl Format {
    /// Appends one advert, IP header included.
    pub fn encode(&self, priority: u8, destination: Ipv4Addr, identification: u16, out: &mut impl BufMut) {
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
                    Authentication::None => Some([0; AUTHENTICATION]),
                    Authentication::Pass(password) => Some(password),
                }
            }
            Version::V3 => {
                fields.put_u16(u16::try_from(self.interval.as_millis() / 10).unwrap_or(u16::MAX).min(0x0fff));
                None
            }
        };
        let trailer = trailer.as_ref().map_or(&[][..], |trailer| trailer);
        let addresses = || self.addresses.iter().take(MAX_ADDRESSES).map(Ipv4Addr::octets);
        let length = HEADER + addresses().len() * 4 + trailer.len();

        let mut sum = addresses().fold(add(0, &header), |sum, address| add(sum, &address));
        sum = add(sum, trailer);
        if self.checksum == Checksum::PseudoHeader {
            sum = add(sum, &pseudo_header(self.source, destination, length));
        }
        let [.., high, low] = &mut header;
        [*high, *low] = (!fold(sum)).to_be_bytes();

        out.put_slice(&ip_header(self.source, destination, identification, length));
        out.put_slice(&header);
        addresses().for_each(|address| out.put_slice(&address));
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

        let addresses_end = HEADER + 4 * count;
        let expected = if version == 2 { addresses_end + AUTHENTICATION } else { addresses_end };
        let (Some(addresses), Some(trailer), true) =
            (message.get(HEADER..addresses_end), message.get(addresses_end..), got == expected)
        else {
            return Err(Rejection::Length { expected, got });
        };
        // RFC 9568 7.1: TTL 255 proves that it crossed no router. Unicast peers may be routed.
        if self.peers.is_empty() && datagram.ttl != 255 {
            return Err(Rejection::Ttl { got: datagram.ttl });
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
        let sum = add(0, message);
        let checksum = if fold(sum) == 0xffff {
            Checksum::Message
        } else if self.version == Version::V3
            && fold(add(sum, &pseudo_header(datagram.source, datagram.destination, got))) == 0xffff
        {
            Checksum::PseudoHeader
        } else {
            return Err(Rejection::Checksum { got: checksum });
        };
        if datagram.destination.is_multicast() != self.peers.is_empty() {
            return Err(Rejection::Destination { destination: datagram.destination });
        }
        if !self.peers.is_empty() && !self.peers.contains(&datagram.source) {
            return Err(Rejection::UnknownPeer);
        }
        Ok(Received {
            advert: Advert { priority, interval },
            checksum,
            addresses_differ: !self.same_addresses(addresses),
        })
    }

    /// Same addresses, in any order.
    fn same_addresses(&self, wire: &[u8]) -> bool {
        let (wire, _) = wire.as_chunks::<4>();
        wire.len() == self.addresses.len()
            && (wire.iter().zip(&self.addresses).all(|(theirs, ours)| *theirs == ours.octets())
                || (wire.iter().all(|theirs| self.addresses.contains(&Ipv4Addr::from(*theirs)))
                    && self.addresses.iter().all(|ours| wire.contains(&ours.octets()))))
    }
}

const fn wire_version(version: Version) -> u8 {
    match version {
        Version::V2 => 2,
        Version::V3 => 3,
    }
}

const fn wire_authentication(authentication: Authentication) -> u8 {
    match authentication {
        Authentication::None => 0,
        Authentication::Pass(_) => 1,
    }
}

fn equal_in_constant_time(ours: &[u8; AUTHENTICATION], theirs: &[u8]) -> bool {
    theirs.len() == ours.len() && ours.iter().zip(theirs).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

fn ip_header(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    identification: u16,
    payload: usize,
) -> [u8; IP_HEADER] {
    let mut header = [0; IP_HEADER];
    let mut out = header.as_mut_slice();
    out.put_u8(0x45);
    out.put_u8(0xc0); // internetwork control
    out.put_u16(u16::try_from(IP_HEADER + payload).unwrap_or(u16::MAX));
    out.put_u16(identification);
    out.put_u16(0); // not a fragment, may become one
    out.put_u8(255);
    out.put_u8(PROTOCOL);
    out.put_u16(0);
    out.put_slice(&source.octets());
    out.put_slice(&destination.octets());
    let checksum = !fold(add(0, &header));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

fn pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, length: usize) -> [u8; 12] {
    let mut header = [0; 12];
    let mut out = header.as_mut_slice();
    out.put_slice(&source.octets());
    out.put_slice(&destination.octets());
    out.put_u16(PROTOCOL.into());
    out.put_u16(u16::try_from(length).unwrap_or(u16::MAX));
    header
}

/// Adds 16-bit words for a ones' complement sum (RFC 1071). Only the last part of a message may be odd.
fn add(sum: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let sum = words.iter().fold(sum, |sum, word| sum + u32::from(u16::from_be_bytes(*word)));
    sum + rest.first().map_or(0, |last| u32::from(*last) << 8)
}

fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

#[cfg(test)]
mod tests;
