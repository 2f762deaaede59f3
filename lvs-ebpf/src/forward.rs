//! How a packet reaches its real server: as it is, but for the MACs (direct routing: the real server has the virtual
//! address too), with another destination (NAT), or inside another packet. Or not at all, since it is here.

pub mod local;
pub mod nat;
mod refusal;
pub mod tunnel;

use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect, programs::XdpContext};
use lvs_ebpf_common::{Outcome, Real};

use crate::{
    event, interface,
    ip::Ip,
    ipv6::Ipv6,
    maps::{REAL_COUNTERS, REALS},
    packet::Packet,
    parse::{Ethernet, Ipv4},
    veth,
};

/// `TAGGED`: the frame has VLAN tags, so that it [`stays`].
#[inline(always)]
pub fn to_real<const TAGGED: bool>(
    ctx: &XdpContext,
    frame: Packet,
    real: (u32, &Real),
) -> Result<Outcome, Outcome> {
    if !TAGGED && is_too_long(ctx, frame, real.1) && interface::is_addressed(ctx) {
        return Err(refuse(ctx, real.1));
    }
    send::<Ipv4>(ctx, frame, real, true, |real| match real.method {
        Real::NAT | Real::NAT_SHARED if !TAGGED => nat::to_real(ctx, real),
        _ => tunnel::enter(ctx, real),
    })
}

/// By direct routing. `has_checksum`: it may be one of TCP or UDP, with a checksum that is still to be computed.
#[inline(always)]
pub fn to_real6(
    ctx: &XdpContext,
    frame: Packet,
    real: (u32, &Real),
    has_checksum: bool,
) -> Result<Outcome, Outcome> {
    send::<Ipv6>(ctx, frame, real, has_checksum, |_| Err(Outcome::BadTable))
}

/// What is too long for another interface the kernel would drop, after all was counted.
#[inline(always)]
fn is_too_long(ctx: &XdpContext, frame: Packet, real: &Real) -> bool {
    real.ifindex != ctx.ingress_ifindex() as u32
        && real.method == Real::DIRECT
        && frame.len() > Ethernet::LEN + usize::from(real.mtu)
}

/// A real server of IPv6 services that is not reached by direct routing on the link that the packet came in from.
#[inline(always)]
pub fn is_elsewhere(ctx: &XdpContext, real: &Real) -> bool {
    real.ifindex != ctx.ingress_ifindex() as u32 || matches!(real.method, Real::IPIP | Real::GUE | Real::GRE)
}

/// To one that [`is_elsewhere`]; `index` is its place in `REALS`. A function of its own, so that the ways there are not below
/// the balancer, which leaves no room for them on the stack.
#[inline(never)]
pub fn to_real_elsewhere6(ctx: &XdpContext, index: u32) -> Outcome {
    let (Ok(outcome) | Err(outcome)) = try_to_real_elsewhere6(ctx, index);
    outcome
}

#[inline(always)]
fn try_to_real_elsewhere6(ctx: &XdpContext, index: u32) -> Result<Outcome, Outcome> {
    let frame = Packet::of_context(ctx);
    let real = REALS.get(index).ok_or(Outcome::BadTable)?;
    if is_too_long(ctx, frame, real) && interface::is_addressed(ctx) {
        return Err(refusal::too_big6(ctx, real.mtu));
    }
    send::<Ipv6>(ctx, frame, (index, real), true, |real| match tunnel::enter6(ctx, real) {
        Err(Outcome::TooBig) => Err(refusal::too_big6(ctx, tunnel::limit(real).ok_or(Outcome::BadTable)?)),
        entered => entered,
    })
}

/// `readdress` makes the packet one that reaches a real server which is not on the link with the virtual address on it; the
/// MACs are still to be written.
#[inline(always)]
fn send<I: Ip>(
    ctx: &XdpContext,
    frame: Packet,
    (index, real): (u32, &Real),
    has_checksum: bool,
    readdress: impl FnOnce(&Real) -> Result<(), Outcome>,
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
    let is_addressed = if same_interface {
        first_mac([to, rest]) == second_mac([both, source])
    } else {
        interface::is_addressed(ctx)
    };
    if !is_addressed {
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
            readdress(real)?;
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

/// Tells its sender how long a packet to `real` may be, or nothing. A function of its own: a rare one.
#[inline(never)]
fn refuse(ctx: &XdpContext, real: &Real) -> Outcome {
    let (Ok(outcome) | Err(outcome)) = try_refuse(ctx, real);
    outcome
}

#[inline(always)]
fn try_refuse(ctx: &XdpContext, real: &Real) -> Result<Outcome, Outcome> {
    let frame = Packet::of_context(ctx);
    let ethernet: Ethernet = frame.read(0).ok_or(Outcome::TruncatedHeader)?;
    let ip = Ipv4::parse(frame)?;
    if ip.total_len() <= real.mtu {
        // Longer by no more than what is behind the packet.
        return Err(Outcome::TooBig);
    }
    Ok(refusal::too_big(ctx, ethernet, &ip, real.mtu, ip.header.destination))
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
