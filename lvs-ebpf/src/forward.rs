//! How a packet reaches its real server: as it is, but for the MACs (direct routing: the real server has the virtual
//! address too), with another destination (NAT), or inside another packet. Or not at all, since it is here.

pub mod local;
pub mod nat;
mod refusal;
pub mod tunnel;

use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect, programs::XdpContext};
use lvs_ebpf_common::{Outcome, Real};

use crate::{event, ip::Ip, maps::REAL_COUNTERS, packet::Packet, veth};

/// `has_checksum`: it may be one of TCP or UDP, with a checksum that is still to be computed.
#[inline(always)]
pub fn to_real<I: Ip>(
    ctx: &XdpContext,
    frame: Packet,
    (index, real): (u32, &Real),
    has_checksum: bool,
) -> Result<Outcome, Outcome> {
    let [destination, both, source] = macs(real);
    if first_mac([destination, both]) == 0 {
        if real.method == Real::LOCAL {
            count(index, frame.len() as u64);
            return Ok(Outcome::Local);
        }
        match real.address.to_v4() {
            Some(address) => event::no_neighbour(ctx, address),
            None => event::no_neighbour_v6(ctx, real),
        }
        return Err(Outcome::NoNeighbour);
    }
    let same_interface = real.ifindex == ctx.ingress_ifindex() as u32;
    // A switch floods what it has no port for, our own frames to a real server included. Were they taken up
    // again here, two directors would send them to and fro for ever.
    let [to, rest, _]: [u32; 3] = frame.read(0).ok_or(Outcome::TruncatedHeader)?;
    if same_interface && first_mac([to, rest]) != second_mac([both, source]) {
        return Err(Outcome::OtherHost);
    }
    if has_checksum {
        veth::complete_checksum::<I>(ctx);
    }
    let bytes = frame.len() as u64;
    let frame = match real.method {
        Real::DIRECT => frame,
        Real::DIRECT_BESIDE_LOCAL if I::is_meant_for_here(ctx, real) => return Ok(Outcome::Local),
        Real::DIRECT_BESIDE_LOCAL => Packet::new(ctx),
        _ => {
            I::readdress(ctx, real)?;
            Packet::new(ctx)
        }
    };
    frame.write(0, macs(real)).ok_or(Outcome::TruncatedHeader)?;
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

/// The two MACs as they stand in a frame, in three words instead of twelve bytes.
#[inline(always)]
fn macs(real: &Real) -> [u32; 3] {
    let [destination, both, source, ..]: [u32; 16] = zerocopy::transmute!(*real);
    [destination, both, source]
}

/// As a number, of the first two of three words that hold two MACs. BPF's words are little-endian here.
#[inline(always)]
fn first_mac([first, both]: [u32; 2]) -> u64 {
    u64::from(first) | u64::from(both & 0xffff) << 32
}

/// The same of the last two.
#[inline(always)]
fn second_mac([both, second]: [u32; 2]) -> u64 {
    u64::from(both >> 16) | u64::from(second) << 16
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
