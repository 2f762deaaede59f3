//! Frames with one or two VLAN tags (IEEE 802.1Q, 802.1ad) to virtual addresses that are in such networks too: they go the way of
//! all others without their tags, and what becomes of them has these again. One that names no network is no more than a priority.

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::{Address, Outcome, Vip};
use network_types::{eth::EtherType, ip::IpProto};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{icmpv6, ndp, packet::Packet, parse::Ethernet, pipeline, vip};

pub const CUSTOMER: u16 = EtherType::Ieee8021q as u16;
pub const SERVICE: u16 = EtherType::Ieee8021ad as u16;

/// What stands between a frame's addresses and its type.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct Tag {
    kind: u16,
    /// Priority and number of the network.
    control: u16,
}

const LEN: usize = size_of::<Tag>();
/// Where the first one stands.
const AT: usize = 12;
/// Both MACs.
type Macs = [u32; 3];

/// Not one function but three, one after the other: so the stack holds one of them at a time.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> Outcome {
    let tags = take_off(ctx);
    if tags == NONE {
        return Outcome::NotOurs;
    }
    let ethernet: Option<Ethernet> = Packet::of_context(ctx).read(0);
    let outcome = match ethernet {
        Some(Ethernet { ether_type: pipeline::IPV6, .. }) => icmpv6::answer(ctx),
        _ => pipeline::run_tagged(ctx),
    };
    if put_back(ctx, tags) { outcome } else { Outcome::NoHeadroom }
}

/// Takes off a tag that names no network (IEEE 802.1Q 9.6: the null VID). The kernel takes such a frame for one without, so it must
/// fare like one: else that answers for an address that this node has no lease of. True if it did.
#[inline(never)]
pub fn take_off_priority(ctx: &XdpContext) -> bool {
    try_take_off_priority(ctx).is_some()
}

#[inline(always)]
fn try_take_off_priority(ctx: &XdpContext) -> Option<()> {
    const NETWORK: u16 = 0x0fff_u16.to_be();
    let frame = Packet::of_context(ctx);
    let macs: Macs = frame.read(0)?;
    let tag: Tag = frame.read(AT)?;
    if tag.control & NETWORK != 0 {
        return None;
    }
    Packet::shrunk(ctx, LEN)?.write(0, macs)
}

/// No tags were taken off.
const NONE: u64 = 0;

/// Two tags as one word, the second one zero where there is but one.
#[inline(never)]
fn take_off(ctx: &XdpContext) -> u64 {
    try_take_off(ctx).unwrap_or(NONE)
}

#[inline(always)]
fn try_take_off(ctx: &XdpContext) -> Option<u64> {
    let frame = Packet::of_context(ctx);
    let macs: Macs = frame.read(0)?;
    let outer: Tag = frame.read(AT)?;
    let inner: Tag = frame.read(AT + LEN)?;
    let is_double = inner.kind == CUSTOMER || inner.kind == SERVICE;
    let is_ours = if is_double {
        is_to_tagged_address(frame.skip(2 * LEN))
    } else {
        is_to_tagged_address(frame.skip(LEN))
    };
    if !is_ours? {
        return None;
    }
    let inner = if is_double { inner } else { Tag { kind: 0, control: 0 } };
    let frame = if is_double { Packet::shrunk(ctx, 2 * LEN) } else { Packet::shrunk(ctx, LEN) }?;
    // It was longer than that before.
    let _ = frame.write(0, macs);
    Some(zerocopy::transmute!([outer, inner]))
}

/// `frame` is as if it began where its type is in place.
#[inline(always)]
fn is_to_tagged_address(frame: Packet) -> Option<bool> {
    const TYPE: usize = Ethernet::LEN - size_of::<u16>();
    const PAYLOAD: usize = Ethernet::LEN;
    const ICMPV6: u8 = IpProto::Ipv6Icmp as u8;
    let is_tagged = |vip: Option<&Vip>| vip.is_some_and(|vip| vip.flags & Vip::TAGGED != 0);
    Some(match frame.read(TYPE)? {
        pipeline::IPV4 => is_tagged(vip::find(frame.read(PAYLOAD + 16)?)),
        // Who asks, who is asked for.
        pipeline::ARP => {
            is_tagged(vip::find(frame.read(PAYLOAD + 24)?)) || is_tagged(vip::find(frame.read(PAYLOAD + 14)?))
        }
        pipeline::IPV6 if frame.read(PAYLOAD + 6) == Some(ICMPV6) => {
            let destination: Address = frame.read(PAYLOAD + 24)?;
            if destination.is_multicast() {
                frame.read(PAYLOAD + 40) == Some(ndp::SOLICITATION)
                    && is_tagged(vip::find_v6(frame.read(PAYLOAD + 48)?))
            } else {
                is_tagged(vip::find_v6(destination))
            }
        }
        _ => false,
    })
}

/// False where the driver has no room for them, which a tunnel's header may have taken.
#[inline(never)]
fn put_back(ctx: &XdpContext, tags: u64) -> bool {
    try_put_back(ctx, tags).is_some()
}

#[inline(always)]
fn try_put_back(ctx: &XdpContext, tags: u64) -> Option<()> {
    let [outer, inner]: [Tag; 2] = zerocopy::transmute!(tags);
    if inner.kind == 0 {
        let frame = Packet::grown(ctx, LEN)?;
        let macs: Macs = frame.read(LEN)?;
        frame.write(0, macs)?;
        frame.write(AT, outer)
    } else {
        let frame = Packet::grown(ctx, 2 * LEN)?;
        let macs: Macs = frame.read(2 * LEN)?;
        frame.write(0, macs)?;
        frame.write(AT, [outer, inner])
    }
}
