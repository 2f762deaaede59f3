//! Until when this node may answer ARP and neighbour solicitations for a virtual address.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One VRRP instance's permission to answer, an element of `LEASES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Lease {
    /// CLOCK_MONOTONIC nanoseconds. 0 = resigned or never held, in the past = lapsed.
    pub until: u64,
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
    /// The MAC that answers carry.
    pub mac: [u8; 6],
    /// 1 = the interface forwards IPv6, which answers say.
    pub router: u8,
    pub _pad: u8,
}

const _: () = assert!(size_of::<Lease>() == 16 && size_of::<Vip>() == 16);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), only integers, no padding (zerocopy's derives prove it).
    unsafe impl aya::Pod for super::Lease {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Vip {}
}
