//! Directors that are real servers of one service too: which of them is a packet for?
//!
//! The master spreads packets over itself and the others. One that gets them by direct routing would see a service of its own in
//! them and send them on, perhaps back, and again: nothing counts down in such a packet.

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::{Real, Vip};

use crate::{
    ip::Ip as _,
    ipv6::Ipv6,
    packet::Packet,
    parse::{Ethernet, Ipv4, Mac},
    vip,
};

/// Another director has sent the packet here, so it is for this node's own real server: this one is not master, or `real` itself
/// is who sent it.
#[inline(never)]
pub fn is_meant(ctx: &XdpContext, real: &Real) -> bool {
    decide(ctx, real, |frame| Some(Ipv4::parse(frame).ok()?.vip())).unwrap_or(true)
}

/// As [`is_meant`].
#[inline(never)]
pub fn is_meant6(ctx: &XdpContext, real: &Real) -> bool {
    decide(ctx, real, |frame| Some(Ipv6::parse(frame).ok()?.vip())).unwrap_or(true)
}

#[inline(always)]
fn decide(
    ctx: &XdpContext,
    real: &Real,
    vip: impl FnOnce(Packet) -> Option<Option<&'static Vip>>,
) -> Option<bool> {
    let frame = Packet::of_context(ctx);
    let ethernet: Ethernet = frame.read(0)?;
    if ethernet.source.is(Mac::from(real.mac)) {
        return Some(true);
    }
    // Nobody is master of an address that no VRRP instance has.
    let Some(vip) = vip(frame)? else { return Some(false) };
    let (until, now) = vip::lease(vip)?;
    Some(until <= now)
}
