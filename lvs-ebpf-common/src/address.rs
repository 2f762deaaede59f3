//! An IP address: what kind it is, and how 32 bits stand for one of IPv6.

use core::net::IpAddr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::flow;

/// Words as loaded from the wire (network byte order). IPv4 as RFC 4291 2.5.5.2 maps it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Address(pub [u64; 2]);

impl Address {
    /// ff02::1
    pub const ALL_NODES: Self = Self([0xff02_0000_0000_0000_u64.to_be(), 1_u64.to_be()]);
    const LOOPBACK: Self = Self([0, 1_u64.to_be()]);

    /// By an address of IPv4 as on the wire.
    #[inline(always)]
    pub fn v4(address: u32) -> Self {
        zerocopy::transmute!([0, 0, 0xffff_u32.to_be(), address])
    }

    /// The other way round; None of IPv6.
    #[inline(always)]
    pub fn to_v4(self) -> Option<u32> {
        let [a, b, c, address]: [u32; 4] = zerocopy::transmute!(self);
        if a | b | (c ^ 0xffff_u32.to_be()) == 0 { Some(address) } else { None }
    }

    /// What keys of 32 bits have in its place. Two addresses in 2^32 share one, so where it matters whose an address is
    /// the whole of it is compared too.
    #[inline(always)]
    pub const fn fold(self) -> u32 {
        let [network, host] = self.0;
        // By turns, so that differences in the network and in the host do not cancel each other.
        flow::mix((network ^ network >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93) ^ host)
    }

    /// So many of its leading bits, then zeros.
    #[inline(always)]
    pub const fn first(self, bits: u32) -> Self {
        let [network, host] = self.0;
        Self([network & leading(bits), host & leading(bits.saturating_sub(64))])
    }

    /// Equality without a call of memcmp, which BPF has not.
    #[inline(always)]
    pub const fn is(self, other: Self) -> bool {
        (self.0[0] ^ other.0[0]) | (self.0[1] ^ other.0[1]) == 0
    }

    #[inline(always)]
    pub const fn is_multicast(self) -> bool {
        u64::from_be(self.0[0]) >> 56 == 0xff
    }

    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        self.0[0] | self.0[1] == 0
    }

    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        self.is(Self::LOOPBACK)
    }

    /// Where those send to who ask for this address: ff02::1:ff and its last three bytes (RFC 4291 2.7.1).
    #[inline(always)]
    pub const fn solicited_node(self) -> Self {
        let last = u64::from_be(self.0[1]) & 0xff_ffff;
        Self([Self::ALL_NODES.0[0], (0x1_ff00_0000 | last).to_be()])
    }

    #[inline(always)]
    pub fn octets(self) -> [u8; 16] {
        zerocopy::transmute!(self)
    }
}

impl From<[u8; 16]> for Address {
    #[inline(always)]
    fn from(octets: [u8; 16]) -> Self {
        zerocopy::transmute!(octets)
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::v4(u32::from_ne_bytes(address.octets())),
            IpAddr::V6(address) => address.octets().into(),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        IpAddr::from(address.octets()).to_canonical()
    }
}

/// Of a word, in network byte order.
#[inline(always)]
const fn leading(bits: u32) -> u64 {
    match bits {
        0 => 0,
        1..64 => (u64::MAX << (64 - bits)).to_be(),
        _ => u64::MAX,
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), only integers, no padding (zerocopy's derives prove it).
    unsafe impl aya::Pod for super::Address {}
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::net::{Ipv4Addr, Ipv6Addr};
    use std::collections::HashSet;

    use super::*;

    fn address(text: &str) -> Address {
        text.parse::<Ipv6Addr>().unwrap().octets().into()
    }

    #[test]
    fn a_solicited_node_address_ends_as_the_address_does() {
        assert_eq!(address("2001:db8::1:2:a03:405").solicited_node(), address("ff02::1:ff03:405"));
        assert_eq!(Address::ALL_NODES, address("ff02::1"));
        assert!(address("::").is_unspecified() && address("::1").is_loopback());
        assert!(address("ff05::2").is_multicast() && !address("fe80::ff").is_multicast());
    }

    #[test]
    fn an_address_of_either_family_is_told_by_itself() {
        let four = Ipv4Addr::new(10, 1, 2, 3);
        let (six, mapped) =
            (IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), Address::from(IpAddr::from(four)));
        assert_eq!(mapped, address("::ffff:10.1.2.3"));
        assert_eq!(mapped.to_v4(), Some(u32::from_ne_bytes(four.octets())));
        assert_eq!(Address::from(six).to_v4(), None);
        assert_eq!(Address::default().to_v4(), None);
        assert_eq!([Address::from(six), mapped].map(IpAddr::from), [six, four.into()]);
    }

    #[test]
    fn leading_bits_are_those_that_come_first_on_the_wire() {
        let whole = address("2001:db8:a5a5:ffff:ffff:ffff:ffff:ffff");
        for (bits, expected) in [
            (128, "2001:db8:a5a5:ffff:ffff:ffff:ffff:ffff"),
            (127, "2001:db8:a5a5:ffff:ffff:ffff:ffff:fffe"),
            (65, "2001:db8:a5a5:ffff:8000::"),
            (64, "2001:db8:a5a5:ffff::"),
            (63, "2001:db8:a5a5:fffe::"),
            (33, "2001:db8:8000::"),
            (1, "::"),
            (0, "::"),
        ] {
            assert_eq!(whole.first(bits), address(expected), "{bits}");
        }
    }

    #[test]
    fn neighbours_and_neighbouring_networks_fold_apart() {
        let mut folds = HashSet::new();
        let mut buckets = [0u32; 16];
        for network in 0..64 {
            for host in 0..256 {
                let fold = address(&std::format!("2001:db8:0:{network:x}::{host:x}")).fold();
                folds.insert(fold);
                buckets[fold as usize >> 28] += 1;
            }
        }
        assert_eq!(folds.len(), 64 * 256);
        // 1024 expected, sigma 31: five sigma.
        assert!(buckets.iter().all(|n| (869..=1179).contains(n)), "{buckets:?}");
    }
}
