//! Where a fragment goes that has no ports: where the first one of its packet went, which has.

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::Address;

use crate::{
    flow_table,
    ipv6::Ipv6,
    maps::{FRAGMENTS, FRAGMENTS6},
    packet::Packet,
    parse::{Ipv4, Ipv4Header},
};

/// What the fragments of one packet have in common (RFC 791 3.2), in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FragmentKey {
    source: u32,
    destination: u32,
    id: u16,
    protocol: u16,
}

/// The same over IPv6 (RFC 8200 4.5).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FragmentKey6 {
    source: Address,
    destination: Address,
    id: u64,
}

/// Where the first one went, and when.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FirstFragment {
    /// Index into `REALS`.
    real: u32,
    tick: u32,
}

/// Packets in pieces that are known at a time, of each family: 1.5 and 2 MiB.
pub const SLOTS: u32 = 1 << 14;

/// In ticks of one to two seconds; RFC 1122 3.3.2 has receivers wait for 60 to 120 seconds, Linux waits for 30.
const LIFE: u32 = 30;

/// There is no first fragment.
const NONE: u32 = u32::MAX;

/// Takes note of a first fragment. A function of its own, like the next: rare ones.
#[inline(never)]
pub fn remember(ctx: &XdpContext, real: u32) -> bool {
    let Ok(ip) = Ipv4::parse(Packet::of_context(ctx)) else { return false };
    FRAGMENTS.insert(key(&ip.header), FirstFragment::now(real), 0).is_ok()
}

/// As [`remember`].
#[inline(never)]
pub fn remember6(ctx: &XdpContext, real: u32) -> bool {
    let Some(key) = key6(ctx) else { return false };
    FRAGMENTS6.insert(key, FirstFragment::now(real), 0).is_ok()
}

/// The real server that the first fragment went to, or [`NONE`].
#[inline(never)]
pub fn destination(ctx: &XdpContext) -> u32 {
    find(ctx).unwrap_or(NONE)
}

/// As [`destination`].
#[inline(never)]
pub fn destination6(ctx: &XdpContext) -> u32 {
    find6(ctx).unwrap_or(NONE)
}

#[inline(always)]
fn find(ctx: &XdpContext) -> Option<u32> {
    let ip = Ipv4::parse(Packet::of_context(ctx)).ok()?;
    // SAFETY: any integers make a FirstFragment, and the copy does not outlive the element's memory.
    unsafe { FRAGMENTS.get(key(&ip.header)) }.copied()?.still_leads_to()
}

#[inline(always)]
fn find6(ctx: &XdpContext) -> Option<u32> {
    // SAFETY: as in `find`.
    unsafe { FRAGMENTS6.get(key6(ctx)?) }.copied()?.still_leads_to()
}

impl FirstFragment {
    #[inline(always)]
    fn now(real: u32) -> Self {
        Self { real, tick: flow_table::now() as u32 }
    }

    #[inline(always)]
    fn still_leads_to(self) -> Option<u32> {
        let age = (flow_table::now() as u32).wrapping_sub(self.tick);
        (age <= LIFE).then_some(self.real)
    }
}

#[inline(always)]
fn key6(ctx: &XdpContext) -> Option<FragmentKey6> {
    let ip = Ipv6::parse(Packet::of_context(ctx)).ok()?;
    let id = ip.fragment.id.into();
    Some(FragmentKey6 { source: ip.header.source, destination: ip.header.destination, id })
}

#[inline(always)]
fn key(header: &Ipv4Header) -> FragmentKey {
    let Ipv4Header { source, destination, id, protocol, .. } = *header;
    FragmentKey { source, destination, id, protocol: protocol.into() }
}
