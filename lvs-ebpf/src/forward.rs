//! How a packet reaches its real server: as it is, but for the MACs (direct routing: the real server has the virtual
//! address too), with another destination (NAT), or inside another packet. Or not at all, since it is here.

mod local;
pub mod nat;
mod refusal;
mod tunnel;

use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect, programs::XdpContext};
use lvs_ebpf_common::{Outcome, Real};

use crate::{
    event,
    maps::REAL_COUNTERS,
    packet::Packet,
    parse::{Ethernet, Mac},
    veth,
};

#[inline(always)]
pub fn to_real(
    ctx: &XdpContext,
    frame: Packet,
    ethernet: Ethernet,
    index: u32,
    real: &Real,
) -> Result<Outcome, Outcome> {
    if Mac::from(real.mac).is_zero() {
        if real.method == Real::LOCAL {
            count(index, frame.len() as u64);
            return Ok(Outcome::Local);
        }
        event::no_neighbour(ctx, real.address);
        return Err(Outcome::NoNeighbour);
    }
    let same_interface = real.ifindex == ctx.ingress_ifindex() as u32;
    // A switch floods what it has no port for, our own frames to a real server included. Were they taken up
    // again here, two directors would send them to and fro for ever.
    if same_interface && !ethernet.destination.is(Mac::from(real.source_mac)) {
        return Err(Outcome::OtherHost);
    }
    veth::complete_checksum(ctx);
    let bytes = frame.len() as u64;
    let frame = match real.method {
        Real::DIRECT => frame,
        Real::NAT | Real::NAT_SHARED => {
            nat::to_real(ctx, real)?;
            Packet::new(ctx)
        }
        Real::DIRECT_BESIDE_LOCAL if local::is_meant(ctx, real) => return Ok(Outcome::Local),
        Real::DIRECT_BESIDE_LOCAL => Packet::new(ctx),
        _ => {
            tunnel::enter(ctx, real)?;
            Packet::new(ctx)
        }
    };
    // The two MACs as they stand in a frame, in three words instead of twelve bytes.
    let [destination, both, source, ..]: [u32; 8] = zerocopy::transmute!(*real);
    frame.write(0, [destination, both, source]).ok_or(Outcome::TruncatedHeader)?;
    count(index, bytes);
    if same_interface {
        return Ok(Outcome::Forwarded);
    }
    // SAFETY: a helper on plain integers. It only notes the interface; the driver's work comes later.
    match unsafe { bpf_redirect(real.ifindex, 0) } as u32 {
        xdp_action::XDP_REDIRECT => Ok(Outcome::Redirected),
        _ => Err(Outcome::BadTable),
    }
}

/// Whether a packet to `real` leaves by the interface that it came in on, other than by NAT, whose answers would have to find their
/// way back.
#[inline(always)]
pub fn stays(ctx: &XdpContext, real: &Real) -> bool {
    real.ifindex == ctx.ingress_ifindex() as u32 && !matches!(real.method, Real::NAT | Real::NAT_SHARED)
}

#[inline(always)]
fn count(index: u32, bytes: u64) {
    if let Some(counter) = REAL_COUNTERS.get_ptr_mut(index) {
        // SAFETY: an element of this CPU's own counters, which no other program writes meanwhile.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes;
        }
    }
}
