//! What happens to an IPv6 packet: neighbour solicitations and pings for virtual addresses are answered under the
//! lease, all else is the kernel's.

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::Outcome;
use network_types::ip::IpProto;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{icmpv6, packet::Packet, parse::Ethernet, vip};

/// An IPv6 address as on the wire.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Address([u64; 2]);

impl Address {
    /// ff02::1
    pub const ALL_NODES: Self = Self([0xff02_0000_0000_0000_u64.to_be(), 1_u64.to_be()]);
    const LOOPBACK: Self = Self([0, 1_u64.to_be()]);

    #[inline(always)]
    pub fn octets(self) -> [u8; 16] {
        zerocopy::transmute!(self)
    }

    #[inline(always)]
    pub fn is_multicast(self) -> bool {
        u64::from_be(self.0[0]) >> 56 == 0xff
    }

    #[inline(always)]
    pub fn is_unspecified(self) -> bool {
        self.0[0] | self.0[1] == 0
    }

    #[inline(always)]
    pub fn is_loopback(self) -> bool {
        self.is(Self::LOOPBACK)
    }

    /// Equality without a call of memcmp, which BPF has not.
    #[inline(always)]
    pub fn is(self, other: Self) -> bool {
        (self.0[0] ^ other.0[0]) | (self.0[1] ^ other.0[1]) == 0
    }

    /// Where those send to who ask for this address: ff02::1:ff and its last three bytes (RFC 4291 2.7.1).
    #[inline(always)]
    pub fn solicited_node(self) -> Self {
        let last = u64::from_be(self.0[1]) & 0xff_ffff;
        Self([Self::ALL_NODES.0[0], (0x1_ff00_0000 | last).to_be()])
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
pub struct Header {
    pub version_class_flow: u32,
    pub payload_len: u16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub source: Address,
    pub destination: Address,
}

impl Header {
    pub const LEN: usize = size_of::<Self>();

    /// RFC 4443 2.4: no answer to an address that is no single host's.
    #[inline(always)]
    pub fn source_is_host(&self) -> bool {
        !self.source.is_multicast()
            && !self.source.is_unspecified()
            && !self.source.is_loopback()
            && !self.source.is(self.destination)
    }
}

/// An IPv6 packet whose lengths agree with each other and with the frame.
#[derive(Clone, Copy)]
pub struct Ipv6<'a> {
    pub header: Header,
    /// From behind the last extension header that is known here.
    pub payload: Packet<'a>,
    /// Bytes of the payload: what follows is padding of the frame.
    pub payload_len: usize,
    /// What the payload is.
    pub protocol: u8,
    /// Nothing stands between the header and the payload.
    pub is_plain: bool,
}

/// A packet to a virtual address with more of them is dropped, so that the kernel cannot find a question behind them.
const MAX_EXTENSIONS: usize = 4;

const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
const ROUTING: u8 = IpProto::Ipv6Route as u8;
const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
const DESTINATION: u8 = IpProto::Ipv6Opts as u8;
const ICMPV6: u8 = IpProto::Ipv6Icmp as u8;

/// What extension headers begin with (RFC 8200 4).
#[repr(C)]
#[derive(Clone, Copy, FromBytes, Immutable)]
struct Extension {
    next_header: u8,
    /// In units of eight bytes, without the first eight.
    length: u8,
    /// Of a fragment: offset and flag. Of a routing header: type, and how many addresses are still to be visited.
    rest: u16,
}

/// A function of its own, so that IPv4 does not pay for it.
#[inline(never)]
pub fn run(ctx: &XdpContext) -> Outcome {
    let (Ok(outcome) | Err(outcome)) = answer(ctx);
    outcome
}

#[inline(always)]
fn answer(ctx: &XdpContext) -> Result<Outcome, Outcome> {
    let frame = Packet::new(ctx);
    let ethernet: Ethernet = frame.read(0).ok_or(Outcome::TruncatedHeader)?;
    let ip = Ipv6::parse(frame)?;
    match ip.protocol {
        ICMPV6 => icmpv6::answer(ctx, frame, ethernet, &ip),
        _ => Err(Outcome::NotOurs),
    }
}

impl<'a> Ipv6<'a> {
    /// A packet is not ours that has a payload of which only a part is here, or another address to visit.
    #[inline(always)]
    pub fn parse(frame: Packet<'a>) -> Result<Self, Outcome> {
        let header: Header = frame.read(Ethernet::LEN).ok_or(Outcome::TruncatedHeader)?;
        let mut payload_len = usize::from(u16::from_be(header.payload_len));
        if u32::from_be(header.version_class_flow) >> 28 != 6
            || Ethernet::LEN + Header::LEN + payload_len > frame.len()
        {
            return Err(Outcome::BadIpHeader);
        }
        let mut payload = frame.skip(Ethernet::LEN + Header::LEN);
        let mut protocol = header.next_header;
        for count in 0..=MAX_EXTENSIONS {
            if protocol != HOP_BY_HOP
                && protocol != ROUTING
                && protocol != FRAGMENT
                && protocol != DESTINATION
            {
                return Ok(Self { header, payload, payload_len, protocol, is_plain: count == 0 });
            }
            let extension: Extension = payload.read(0).ok_or(Outcome::BadIpHeader)?;
            let length = match protocol {
                FRAGMENT if extension.rest & 0xfff9_u16.to_be() != 0 => return Err(Outcome::NotOurs),
                ROUTING if extension.rest & 0xff_u16.to_be() != 0 => return Err(Outcome::NotOurs),
                FRAGMENT => 8,
                _ => 8 * (usize::from(extension.length) + 1),
            };
            payload_len = payload_len.checked_sub(length).ok_or(Outcome::BadIpHeader)?;
            payload = payload.skip(length);
            protocol = extension.next_header;
        }
        // A solicitation goes to a multicast address.
        if header.destination.is_multicast() || vip::find_v6(header.destination).is_some() {
            return Err(Outcome::ExtensionHeaders);
        }
        Err(Outcome::NotOurs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        let octets = text.parse::<core::net::Ipv6Addr>().unwrap().octets();
        zerocopy::transmute!(octets)
    }

    #[test]
    fn a_solicited_node_address_ends_as_the_address_does() {
        assert_eq!(address("2001:db8::1:2:a03:405").solicited_node(), address("ff02::1:ff03:405"));
        assert_eq!(Address::ALL_NODES, address("ff02::1"));
        assert!(address("::").is_unspecified() && address("::1").is_loopback());
        assert!(address("ff05::2").is_multicast() && !address("fe80::ff").is_multicast());
    }

    /// Ethernet, an IPv6 header with this payload and its length, padding.
    fn parse(next_header: u8, payload: &[u8], length: usize) -> Result<(u8, usize, bool), Outcome> {
        let mut frame = [0; 120];
        frame[14] = 0x60;
        frame[18..20].copy_from_slice(&(length as u16).to_be_bytes());
        frame[20] = next_header;
        frame[54..54 + payload.len()].copy_from_slice(payload);
        Ipv6::parse(Packet::from(&mut frame[..])).map(|ip| (ip.protocol, ip.payload_len, ip.is_plain))
    }

    #[test]
    fn known_extension_headers_are_skipped() {
        assert_eq!(parse(58, &[], 24), Ok((58, 24, true)));
        let hop_by_hop_of_16 = [60, 1, 5, 2, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0, 0, 0];
        let destination = [58, 0, 1, 4, 0, 0, 0, 0];
        assert_eq!(parse(0, &[&hop_by_hop_of_16[..], &destination].concat(), 48), Ok((58, 24, false)));
        let whole_fragment = [58, 0, 0, 0, 0, 0, 0, 7];
        assert_eq!(parse(44, &whole_fragment, 32), Ok((58, 24, false)));
        let visited = [58, 0, 3, 0, 0, 0, 0, 0];
        assert_eq!(parse(43, &visited, 32), Ok((58, 24, false)));
    }

    #[test]
    fn fragments_and_packets_with_another_address_to_visit_are_not_ours() {
        for fragment in [[58, 0, 0, 1, 0, 0, 0, 7], [58, 0, 0, 8, 0, 0, 0, 7]] {
            assert_eq!(parse(44, &fragment, 32), Err(Outcome::NotOurs));
        }
        assert_eq!(parse(43, &[58, 0, 3, 1, 0, 0, 0, 0], 32), Err(Outcome::NotOurs));
    }

    #[test]
    fn lengths_that_contradict_each_other_are_refused() {
        assert_eq!(parse(58, &[], 66), Ok((58, 66, true)));
        assert_eq!(parse(58, &[], 67), Err(Outcome::BadIpHeader));
        assert_eq!(parse(60, &[58, 2, 0, 0, 0, 0, 0, 0], 23), Err(Outcome::BadIpHeader));
    }
}
