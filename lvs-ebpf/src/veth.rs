//! What veth devices need that cards do not: another way back, and checksums that somebody still has to compute.

use aya_ebpf::{Global, bindings::xdp_action, helpers::bpf_redirect, programs::XdpContext};
use lvs_ebpf_common::protocol::{TCP, UDP};

use crate::{
    checksum,
    ip::Ip,
    ipv6::Ipv6,
    packet::{BLOCK, Packet},
    parse::Ipv4,
};

/// `lvs_ebpf_common::maps::VETH`; a constant for the verifier, so that cards do not pay.
#[unsafe(no_mangle)]
static VETH: Global<u32> = Global::new(0);

/// Some interface is such a device.
#[inline(always)]
pub fn is_any() -> bool {
    VETH.load() != 0
}

/// Sends a frame out of the interface it came in on.
#[inline(always)]
pub fn send_back(ctx: &XdpContext) -> u32 {
    if !is_any() {
        return xdp_action::XDP_TX;
    }
    // SAFETY: a helper on plain integers. With flags 0 it cannot fail.
    unsafe { bpf_redirect(ctx.ingress_ifindex() as u32, 0) as u32 }
}

/// Computes the checksum of a TCP or UDP packet that has none yet but the sum of its pseudo header. Hosts behind veth
/// leave that to a card, and the kernel's note about it is lost when a frame is sent on by XDP. Should a packet's real
/// checksum be that very sum, it comes out the same.
#[inline(always)]
pub fn complete_checksum<I: Ip>(ctx: &XdpContext) {
    if is_any() {
        I::complete_checksum(ctx);
    }
}

/// True if it did. A function of its own, with a loop that the verifier walks once.
#[inline(never)]
pub fn complete(ctx: &XdpContext) -> bool {
    Ipv4::parse(Packet::of_context(ctx)).ok().and_then(|ip| try_complete(&ip)).is_some()
}

/// As [`complete`]. Not behind extension headers: the verifier would walk the loop for each way through those.
#[inline(never)]
pub fn complete6(ctx: &XdpContext) -> bool {
    Ipv6::parse(Packet::of_context(ctx))
        .ok()
        .filter(|ip| ip.is_plain)
        .and_then(|ip| try_complete(&ip))
        .is_some()
}

#[inline(always)]
fn try_complete(ip: &impl Ip) -> Option<()> {
    /// Bytes: more than a frame in one piece may hold.
    const LIMIT: usize = 4096;
    // Whoever cuts a packet has computed its checksum before.
    if ip.is_fragment() {
        return None;
    }
    let (payload, length) = (ip.payload(), ip.payload_len());
    let offset = match ip.protocol() {
        UDP => 6,
        TCP => 16,
        _ => return None,
    };
    let checksum: u16 = payload.read(offset)?;
    // RFC 9293 3.1, RFC 8200 8.1: addresses, protocol and length.
    let rest = u64::from(u16::from(ip.protocol()).to_be()) + u64::from((length as u16).to_be());
    if checksum != checksum::fold(ip.sum_of_addresses() + rest) || length > LIMIT {
        return None;
    }
    // What is behind the last whole word comes first: the verifier would walk all ways through that for each round of a loop
    // before it.
    let (mut rest, mut at) = (0, length & (2 * LIMIT - 8));
    if length & 4 != 0 {
        rest += u64::from(payload.read::<u32>(at)?);
        at += 4;
    }
    if length & 2 != 0 {
        rest += u64::from(payload.read::<u16>(at)?);
        at += 2;
    }
    if length & 1 != 0 {
        rest += u64::from(u16::from_ne_bytes([payload.read(at)?, 0]));
    }
    let (mut sum, mut done) = (0, 0);
    // Few steps, because it walks them one by one.
    for _ in 0..LIMIT / BLOCK {
        if done + BLOCK > length {
            break;
        }
        sum = payload.sum_of_block(done, sum)?;
        done += BLOCK;
    }
    let mut sum = rest + u64::from(sum);
    for _ in 0..BLOCK / 8 {
        if done + 8 > length {
            break;
        }
        sum += checksum::sum_of(payload.read(done)?);
        done += 8;
    }
    let checksum = !checksum::fold(sum);
    let none = ip.protocol() == UDP && checksum == 0;
    payload.write(offset, if none { !0 } else { checksum })
}
