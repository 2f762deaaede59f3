//! What an IPv6 packet looks like, and whether it is whole: its header, and the extension headers up to what it carries.

use lvs_ebpf_common::{Address, Outcome};
use network_types::ip::IpProto;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{checksum, packet::Packet, parse::Ethernet, vip};

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

    /// For [`checksum::fold`].
    #[inline(always)]
    pub fn sum_of_addresses(&self) -> u64 {
        let [a, b] = self.source.0;
        let [c, d] = self.destination.0;
        [a, b, c, d].map(checksum::sum_of).iter().sum()
    }

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
    /// What piece of a packet it is.
    pub fragment: Fragment,
}

/// What a fragment header says (RFC 8200 4.5). Not an Option: the compiler would copy what is not there, which the verifier
/// forbids.
#[derive(Clone, Copy)]
pub struct Fragment {
    /// Offset and flag, in network byte order; 0 = the packet is whole.
    place: u16,
    pub id: u32,
}

impl Fragment {
    const NONE: Self = Self { place: 0, id: 0 };

    #[inline(always)]
    pub fn is_some(self) -> bool {
        self.place != 0
    }

    #[inline(always)]
    pub fn is_first(self) -> bool {
        self.place & 0xfff8_u16.to_be() == 0
    }
}

/// A packet to a virtual address with more of them is dropped, so that the kernel cannot find a question behind them.
const MAX_EXTENSIONS: usize = 4;

const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
const ROUTING: u8 = IpProto::Ipv6Route as u8;
const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
const DESTINATION: u8 = IpProto::Ipv6Opts as u8;

/// What extension headers begin with (RFC 8200 4): none is shorter.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, Immutable)]
struct Extension {
    next_header: u8,
    /// In units of eight bytes, without the first eight.
    length: u8,
    /// Of a fragment: offset and flag. Of a routing header: type, and how many addresses are still to be visited.
    rest: u16,
    /// Of a fragment.
    id: u32,
}

impl<'a> Ipv6<'a> {
    /// A packet is not ours that has another address to visit.
    #[inline(always)]
    pub fn parse(frame: Packet<'a>) -> Result<Self, Outcome> {
        let header: Header = frame.read(Ethernet::LEN).ok_or(Outcome::TruncatedHeader)?;
        let payload_len = usize::from(u16::from_be(header.payload_len));
        if u32::from_be(header.version_class_flow) >> 28 != 6
            || Ethernet::LEN + Header::LEN + payload_len > frame.len()
        {
            return Err(Outcome::BadIpHeader);
        }
        let payload = frame.skip(Ethernet::LEN + Header::LEN);
        match Self::behind(header, payload, payload_len)? {
            Some(ip) => Ok(ip),
            // A solicitation goes to a multicast address.
            None if header.destination.is_multicast() || vip::find_v6(header.destination).is_some() => {
                Err(Outcome::ExtensionHeaders)
            }
            None => Err(Outcome::NotOurs),
        }
    }

    /// What stands behind `header`: its extension headers, and what they lead to. None if they are too many. Those of a
    /// packet are all in its first fragment (RFC 7112), in others there is data.
    #[inline(always)]
    pub fn behind(
        header: Header,
        mut payload: Packet<'a>,
        mut payload_len: usize,
    ) -> Result<Option<Self>, Outcome> {
        let mut protocol = header.next_header;
        let mut fragment = Fragment::NONE;
        for count in 0..=MAX_EXTENSIONS {
            if !fragment.is_first()
                || protocol != HOP_BY_HOP
                    && protocol != ROUTING
                    && protocol != FRAGMENT
                    && protocol != DESTINATION
            {
                let is_plain = count == 0;
                return Ok(Some(Self { header, payload, payload_len, protocol, is_plain, fragment }));
            }
            let extension: Extension = payload.read(0).ok_or(Outcome::BadIpHeader)?;
            let length = match protocol {
                // RFC 8200 4.1: it comes first or not at all.
                _ if extension.next_header == HOP_BY_HOP => return Err(Outcome::NotOurs),
                ROUTING if extension.rest & 0xff_u16.to_be() != 0 => return Err(Outcome::NotOurs),
                FRAGMENT => {
                    // One that is the whole packet is none.
                    let place = extension.rest & 0xfff9_u16.to_be();
                    if place != 0 {
                        fragment = Fragment { place, id: extension.id };
                    }
                    8
                }
                _ => 8 * (usize::from(extension.length) + 1),
            };
            payload_len = payload_len.checked_sub(length).ok_or(Outcome::BadIpHeader)?;
            payload = payload.skip(length);
            protocol = extension.next_header;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_fragments_place_and_number_are_known_and_no_header_is_looked_for_behind_a_later_one() {
        let mut frame = [0; 120];
        frame[14] = 0x60;
        (frame[19], frame[20], frame[62]) = (32, 44, 58);
        for (place, is_first) in [([0, 1], Some(true)), ([0, 8], Some(false)), ([0, 0], None)] {
            frame[54..62].copy_from_slice(&[&[60, 0][..], &place, &[1, 2, 3, 4]].concat());
            let ip = Ipv6::parse(Packet::from(&mut frame[..])).unwrap();
            assert_eq!(ip.fragment.is_some().then(|| ip.fragment.is_first()), is_first);
            assert!(is_first.is_none() || ip.fragment.id == u32::from_ne_bytes([1, 2, 3, 4]));
            // Destination options of eight bytes, or data.
            let expected = if is_first == Some(false) { (60, 24) } else { (58, 16) };
            assert_eq!((ip.protocol, ip.payload_len), expected);
        }
    }

    #[test]
    fn packets_with_another_address_to_visit_are_not_ours() {
        assert_eq!(parse(43, &[58, 0, 3, 1, 0, 0, 0, 0], 32), Err(Outcome::NotOurs));
    }

    #[test]
    fn hop_by_hop_options_come_first_or_the_packet_is_not_ours() {
        let options = |next| [next, 0, 1, 4, 0, 0, 0, 0];
        assert_eq!(parse(0, &[options(60), options(58)].concat(), 32), Ok((58, 16, false)));
        assert_eq!(parse(60, &[options(0), options(58)].concat(), 32), Err(Outcome::NotOurs));
        let later_fragment = [0, 0, 1, 0, 0, 0, 0, 7];
        assert_eq!(parse(44, &later_fragment, 32), Err(Outcome::NotOurs));
    }

    #[test]
    fn lengths_that_contradict_each_other_are_refused() {
        assert_eq!(parse(58, &[], 66), Ok((58, 66, true)));
        assert_eq!(parse(58, &[], 67), Err(Outcome::BadIpHeader));
        assert_eq!(parse(60, &[58, 2, 0, 0, 0, 0, 0, 0], 23), Err(Outcome::BadIpHeader));
    }
}
