//! Is a frame for this node, or has a switch flooded another director's?

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::Interface;

use crate::{
    maps::INTERFACES,
    packet::Packet,
    parse::{Ethernet, Mac},
};

/// Where the MAC of its real server's interface does not tell already. What an interface without virtual addresses lets in
/// counts as ours. A function of its own, so that the balancer's stack has room for it.
#[inline(never)]
pub fn is_addressed(ctx: &XdpContext) -> bool {
    is_for(ctx).unwrap_or(true)
}

#[inline(always)]
fn is_for(ctx: &XdpContext) -> Option<bool> {
    let ingress = ctx.ingress_ifindex() as u32;
    let interface = INTERFACES.get(Interface::slot(ingress))?;
    let ethernet: Ethernet = Packet::of_context(ctx).read(0)?;
    Some(interface.ifindex != ingress || ethernet.destination.is(Mac::from(interface.mac)))
}
