//! What headers look like, and whether an IPv4 packet is whole. Fields are as on the wire (network order).

use core::mem::offset_of;

use lvs_ebpf_common::Outcome;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{checksum, ip::Ip, packet::Packet};

/// An Ethernet address. Two-byte words, because that is how far its place in a frame is aligned.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Mac([u16; 3]);

impl Mac {
    #[inline(always)]
    pub fn is_multicast(self) -> bool {
        self.0[0] & u16::from_ne_bytes([1, 0]) != 0
    }

    #[inline(always)]
    pub fn is_zero(self) -> bool {
        self.0[0] | self.0[1] | self.0[2] == 0
    }

    /// Equality without a call of memcmp, which BPF has not.
    #[inline(always)]
    pub fn is(self, other: Self) -> bool {
        Self([self.0[0] ^ other.0[0], self.0[1] ^ other.0[1], self.0[2] ^ other.0[2]]).is_zero()
    }
}

impl From<[u8; 6]> for Mac {
    #[inline(always)]
    fn from(bytes: [u8; 6]) -> Self {
        zerocopy::transmute!(bytes)
    }
}

impl From<Mac> for [u8; 6] {
    #[inline(always)]
    fn from(mac: Mac) -> Self {
        zerocopy::transmute!(mac)
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
pub struct Ethernet {
    pub destination: Mac,
    pub source: Mac,
    pub ether_type: u16,
}

impl Ethernet {
    pub const LEN: usize = size_of::<Self>();
}

#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
pub struct Ipv4Header {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_len: u16,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: u16,
    pub source: u32,
    pub destination: u32,
}

impl Ipv4Header {
    /// Without options.
    pub const VERSION_IHL: u8 = 0x45;
    /// Where a frame has the destination.
    pub const DESTINATION: usize = Ethernet::LEN + offset_of!(Self, destination);
    pub const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();

    /// Has the header of the next protocol, unless shorter than that.
    #[inline(always)]
    pub fn is_first_fragment(&self) -> bool {
        self.fragment & 0x1fff_u16.to_be() == 0
    }

    #[inline(always)]
    pub fn may_be_fragmented(&self) -> bool {
        self.fragment & Self::DONT_FRAGMENT == 0
    }

    /// The checksum of what is sent. For a header without options.
    #[inline(always)]
    pub fn with_checksum(self) -> Self {
        let words: [u32; 5] = zerocopy::transmute!(Self { checksum: 0, ..self });
        Self { checksum: checksum::of(words), ..self }
    }
}

/// What Linux gives to its own packets.
pub const TTL: u8 = 64;

/// An IPv4 packet whose lengths agree with each other and with the frame.
#[derive(Clone, Copy)]
pub struct Ipv4<'a> {
    pub header: Ipv4Header,
    /// From behind the header, options included, to the end of the frame.
    pub payload: Packet<'a>,
    /// Bytes of the payload by the total length: what follows is padding of the frame.
    pub payload_len: usize,
}

impl<'a> Ipv4<'a> {
    #[inline(always)]
    pub fn parse(frame: Packet<'a>) -> Result<Self, Outcome> {
        let header: Ipv4Header = frame.read(Ethernet::LEN).ok_or(Outcome::TruncatedHeader)?;
        let header_len = usize::from(header.version_ihl & 0xf) * 4;
        let total_len = usize::from(u16::from_be(header.total_len));
        let payload_len = total_len.checked_sub(header_len).ok_or(Outcome::BadIpHeader)?;
        if header.version_ihl >> 4 != 4
            || header_len < size_of::<Ipv4Header>()
            || Ethernet::LEN + total_len > frame.len()
        {
            return Err(Outcome::BadIpHeader);
        }
        Ok(Self { header, payload: frame.skip(Ethernet::LEN + header_len), payload_len })
    }

    #[inline(always)]
    pub fn total_len(&self) -> u16 {
        u16::from_be(self.header.total_len)
    }

    #[inline(always)]
    pub fn has_options(&self) -> bool {
        self.header.version_ihl & 0xf != 5
    }
}

/// What TCP and UDP begin with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Ports {
    pub source: u16,
    pub destination: u16,
}

impl Ports {
    /// None if the packet ends before its ports.
    #[inline(always)]
    pub fn parse(ip: &impl Ip) -> Option<Self> {
        if ip.payload_len() < size_of::<Self>() {
            return None;
        }
        ip.payload().read(0)
    }
}

/// RFC 9293 3.1: at least five words of header, all of them in the packet.
#[inline(always)]
pub fn check_tcp(ip: &impl Ip) -> Result<(), Outcome> {
    const MIN: usize = 20;
    if ip.payload_len() < MIN {
        return Err(Outcome::TruncatedTcp);
    }
    let offset: u8 = ip.payload().read(12).ok_or(Outcome::TruncatedTcp)?;
    let header_len = usize::from(offset >> 4) * 4;
    if header_len < MIN {
        return Err(Outcome::BadTcpOffset);
    }
    if header_len > ip.payload_len() {
        return Err(Outcome::TruncatedTcp);
    }
    Ok(())
}

/// A TCP packet's place in its connection.
#[inline(always)]
pub fn tcp_flags(ip: &impl Ip) -> u8 {
    ip.payload().read(13).unwrap_or_default()
}

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

pub const UDP_HEADER: usize = 8;

/// RFC 768: a header of eight bytes, and a length that counts it and ends inside the packet.
#[inline(always)]
pub fn check_udp(ip: &impl Ip) -> Result<(), Outcome> {
    if ip.payload_len() < UDP_HEADER {
        return Err(Outcome::TruncatedUdp);
    }
    let length: u16 = ip.payload().read(4).ok_or(Outcome::TruncatedUdp)?;
    let length = usize::from(u16::from_be(length));
    // Of a first fragment it counts what the others have too.
    if length < UDP_HEADER || length > ip.payload_len() && !ip.is_fragment() {
        return Err(Outcome::BadUdpLength);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 14 bytes of Ethernet, then an IPv4 header with these words, then `rest` bytes.
    fn frame<const N: usize>(version_ihl: u8, total_len: u16, fragment: u16) -> [u8; N] {
        let mut bytes = [0; N];
        bytes[14] = version_ihl;
        bytes[16..18].copy_from_slice(&total_len.to_be_bytes());
        bytes[20..22].copy_from_slice(&fragment.to_be_bytes());
        bytes
    }

    fn parse(bytes: &mut [u8]) -> Result<usize, Outcome> {
        Ipv4::parse(Packet::from(bytes)).map(|ip| ip.payload_len)
    }

    #[test]
    fn the_payload_ends_where_the_total_length_says_and_not_at_the_frames_end() {
        assert_eq!(parse(&mut frame::<60>(0x45, 28, 0)), Ok(8));
        assert_eq!(parse(&mut frame::<60>(0x46, 28, 0)), Ok(4));
    }

    #[test]
    fn lengths_that_contradict_each_other_are_refused() {
        for (version_ihl, total_len) in
            [(0x44, 40), (0x45, 19), (0x45, 47), (0x4f, 40), (0x65, 40), (0x40, 0)]
        {
            assert_eq!(
                parse(&mut frame::<60>(version_ihl, total_len, 0)),
                Err(Outcome::BadIpHeader),
                "{version_ihl:#x} {total_len}"
            );
        }
        assert_eq!(parse(&mut frame::<33>(0x45, 19, 0)), Err(Outcome::TruncatedHeader));
    }

    #[test]
    fn dont_fragment_is_no_fragment() {
        for (fragment, is_fragment, is_first) in [
            (0, false, true),
            (0x4000, false, true),
            (0x2000, true, true),
            (0x0001, true, false),
            (0x3fff, true, false),
        ] {
            let mut bytes = frame::<60>(0x45, 28, fragment);
            let ip = Ipv4::parse(Packet::from(&mut bytes[..])).unwrap();
            assert_eq!((ip.is_fragment(), ip.is_first_fragment()), (is_fragment, is_first), "{fragment:#x}");
        }
    }

    #[test]
    fn a_multicast_address_has_the_first_bit_on_the_wire_set() {
        assert!(Mac::from([0xff; 6]).is_multicast());
        assert!(Mac::from([0x01, 0, 0x5e, 0, 0, 18]).is_multicast());
        assert!(!Mac::from([0x02, 1, 1, 1, 1, 1]).is_multicast());
    }
}
