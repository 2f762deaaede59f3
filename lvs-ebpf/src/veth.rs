//! What veth devices need that cards do not: another way back, and checksums that somebody still has to compute.

use aya_ebpf::{Global, bindings::xdp_action, helpers::bpf_redirect, programs::XdpContext};
use network_types::ip::IpProto;

use crate::{checksum, packet::Packet, parse::Ipv4};

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
pub fn complete_checksum(ctx: &XdpContext) {
    if is_any() {
        complete(ctx);
    }
}

/// True if it did. A function of its own, with a loop that the verifier walks once.
#[inline(never)]
fn complete(ctx: &XdpContext) -> bool {
    try_complete(ctx).is_some()
}

#[inline(always)]
fn try_complete(ctx: &XdpContext) -> Option<()> {
    const TCP: u8 = IpProto::Tcp as u8;
    const UDP: u8 = IpProto::Udp as u8;
    /// Of eight bytes: as much as a frame in one piece may hold.
    const WORDS: usize = 512;
    let ip = Ipv4::parse(Packet::of_context(ctx)).ok()?;
    // Whoever cuts a packet has computed its checksum before.
    if ip.is_fragment() {
        return None;
    }
    let (header, length) = (ip.header, ip.payload_len);
    let offset = match header.protocol {
        UDP => 6,
        TCP => 16,
        _ => return None,
    };
    let checksum: u16 = ip.payload.read(offset)?;
    // RFC 9293 3.1: addresses, protocol and length.
    let rest = u32::from(u16::from(header.protocol).to_be()) + u32::from((length as u16).to_be());
    if checksum != !checksum::of([header.source, header.destination, rest]) || length > WORDS * 8 {
        return None;
    }
    // From before the loop: with what it knows behind it, the verifier would walk the rest once for each length.
    let (mut done, rest) = core::hint::black_box((length & ((2 * WORDS - 1) * 8), length & 7));
    let mut sum = 0;
    for word in 0..WORDS {
        if word * 8 + 8 > length {
            break;
        }
        let word: u64 = ip.payload.read(word * 8)?;
        sum += (word & 0xffff_ffff) + (word >> 32);
    }
    if rest & 4 != 0 {
        sum += u64::from(ip.payload.read::<u32>(done)?);
        done += 4;
    }
    if rest & 2 != 0 {
        sum += u64::from(ip.payload.read::<u16>(done)?);
        done += 2;
    }
    if rest & 1 != 0 {
        sum += u64::from(u16::from_ne_bytes([ip.payload.read(done)?, 0]));
    }
    let checksum = !checksum::fold(sum);
    let none = header.protocol == UDP && checksum == 0;
    ip.payload.write(offset, if none { !0 } else { checksum })
}
