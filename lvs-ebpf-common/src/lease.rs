//! Until when this node may answer ARP and neighbour solicitations for a virtual address.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::maps::INTERFACE_SLOTS;

/// One VRRP instance's permission to answer, an element of `LEASES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Lease {
    /// CLOCK_MONOTONIC nanoseconds. 0 = resigned or never held, in the past = lapsed.
    pub until: u64,
    /// What `until` was last before it was resigned: how long ago this node was master.
    pub held: u64,
    /// Whose lease it is, so that a restarted daemon finds its own again.
    pub owner: LeaseOwner,
}

/// Identity of a VRRP instance on this node; all zero = the element is free.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LeaseOwner {
    pub ifindex: u32,
    pub vrid: u16,
    /// AF_INET or AF_INET6.
    pub family: u16,
}

/// A virtual address, a value of `VIPS` and `VIPS6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vip {
    /// Index into `LEASES`.
    pub lease: u32,
    /// The interface that answers for the address. Queries on others are left to the kernel.
    pub ifindex: u32,
    /// Of the interface.
    pub mac: [u8; 6],
    /// The MAC that answers carry: the same, or a virtual router's.
    pub answers: [u8; 6],
    /// [`Vip::ROUTER`], [`Vip::NOT_ACCEPTED`], [`Vip::TAGGED`].
    pub flags: u8,
    pub _pad: [u8; 3],
}

impl Vip {
    /// The interface forwards IPv6, which answers say.
    pub const ROUTER: u8 = 1;
    /// This host takes no packets for the address, not even to answer a ping (`no_accept`).
    pub const NOT_ACCEPTED: u8 = 2;
    /// Frames with VLAN tags are for this address too.
    pub const TAGGED: u8 = 4;
}

/// An interface that has virtual addresses, an element of `INTERFACES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Interface {
    /// 0 = the element is free.
    pub ifindex: u32,
    pub mac: [u8; 6],
    pub _pad: [u8; 6],
}

impl Interface {
    /// Its element. Two interfaces that share one have none.
    #[inline(always)]
    pub const fn slot(ifindex: u32) -> u32 {
        ifindex % INTERFACE_SLOTS
    }
}

/// RFC 9568 7.3.
pub const fn virtual_mac(over_ipv6: bool, vrid: u8) -> [u8; 6] {
    [0, 0, 0x5e, 0, 1 + over_ipv6 as u8, vrid]
}

/// The key of a virtual router's MAC on an interface in `VIPS6`, by the last two bytes of the MAC. As an address it would
/// be a multicast one, and those are not virtual.
#[inline(always)]
pub const fn virtual_mac_key(ifindex: u32, family: u8, vrid: u8) -> [u8; 16] {
    let [a, b, c, d] = ifindex.to_ne_bytes();
    [0xff, 0, 0, 0, a, b, c, d, 0, 0, 0, 0, 0, 0, family, vrid]
}

const _: () = assert!(size_of::<Lease>() == 24 && size_of::<Vip>() == 24 && size_of::<Interface>() == 16);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), only integers, no padding (zerocopy's derives prove it).
    unsafe impl aya::Pod for super::Lease {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Vip {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Interface {}
}
