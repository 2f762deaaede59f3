//! Routes that are there while an instance is master.

use std::net::IpAddr;

/// A line of `virtual_routes` or `static_routes`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VirtualRoute {
    pub kind: RouteKind,
    pub to: IpAddr,
    pub prefix_len: u8,
    pub gateway: Option<IpAddr>,
    pub device: Option<String>,
    /// `src`: what the kernel sends from.
    pub source: Option<IpAddr>,
    /// The main one (254) where nothing is said.
    pub table: u32,
    pub metric: Option<u32>,
    pub mtu: Option<u32>,
    /// As the kernel numbers it; what `ip route` would take where nothing is said.
    pub scope: u8,
    pub onlink: bool,
    /// `no_track`: what removes it has removed it.
    pub no_track: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteKind {
    Unicast,
    Blackhole,
    Unreachable,
    Prohibit,
}
