//! How an answer of a real server that is reached by address translation becomes an answer of its service again.
//!
//! Mostly the real server's address and port tell: [`Reply`]. What they cannot tell, a [`NatFlow`] does.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Address and port of a service as its clients know them (network byte order).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Face {
    /// 0 = no service's.
    pub address: u32,
    pub port: u16,
    pub _pad: u16,
}

/// A value of `REPLIES`, whose key is a real server as its answers name it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Reply {
    /// No service's where several share the real server.
    pub face: Face,
    /// Index into `REALS`.
    pub real: u32,
}

/// A flow between a client and a real server, a key of `NAT_FLOWS`. The value is the [`Face`] that the client talks
/// to; no service's: the two talk without a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NatFlow {
    /// Network byte order, as all of it.
    pub client: u32,
    pub real: u32,
    pub client_port: u16,
    pub real_port: u16,
    pub protocol: u32,
}

/// Where a client's last packet came from, a value of `CLIENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LastHop {
    /// The MACs of a frame that goes back.
    pub destination: [u8; 6],
    pub source: [u8; 6],
    pub ifindex: u32,
}

/// A neighbour that the kernel shall ask for, an element of `WANTED`; all zero = none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Wanted {
    /// Network byte order.
    pub address: u32,
    pub ifindex: u32,
}

const _: () = assert!(size_of::<NatFlow>() == 16 && size_of::<LastHop>() == 16 && size_of::<Reply>() == 12);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), only integers, no padding (zerocopy's derives prove it).
    unsafe impl aya::Pod for super::Face {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Reply {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::NatFlow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::LastHop {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Wanted {}
}
