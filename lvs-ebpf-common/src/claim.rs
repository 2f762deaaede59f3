//! How the XDP program tells of somebody else who says that a virtual address is his.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An event of `CLAIMS`: seen while this node held the lease.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Claim {
    /// Network order; IPv4 as RFC 4291 2.5.5.2 maps it.
    pub address: [u8; 16],
    /// Index into `LEASES`.
    pub lease: u32,
    pub ifindex: u32,
    /// Where packets for the address would go.
    pub mac: [u8; 6],
    pub _pad: [u8; 2],
}

const _: () = assert!(size_of::<Claim>() == 32);
