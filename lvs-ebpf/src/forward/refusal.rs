//! What a sender hears whose packet goes no further: how large it may be, or that its TTL has ended.

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::Outcome;
use network_types::ip::IpProto;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    checksum, icmp,
    packet::Packet,
    parse::{Ethernet, Ipv4, Ipv4Header, TTL},
};

/// RFC 792 with the field of RFC 1191 4.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct Message {
    kind: u8,
    code: u8,
    checksum: u16,
    unused: u16,
    /// Of the next hop: what the sender may send.
    mtu: u16,
}

const HEADERS: usize = size_of::<Ipv4Header>() + size_of::<Message>();

/// RFC 1812 4.3.2.3: internetwork control.
const TOS: u8 = 0xc0;

/// "Fragmentation needed", in the name of `from`.
#[inline(always)]
pub fn too_big(ctx: &XdpContext, ethernet: Ethernet, ip: &Ipv4, limit: u16, from: u32) -> Outcome {
    /// What is told of the packet: its header, however many options that has, and at least eight bytes more (RFC 792).
    const EXCERPT: usize = 17;
    let message = Message { kind: 3, code: 4, checksum: 0, unused: 0, mtu: limit.to_be() };
    if ip.header.may_be_fragmented() || usize::from(ip.total_len()) < EXCERPT * 4 {
        return Outcome::TooBig;
    }
    match answer::<EXCERPT>(ctx, ethernet, ip, message, from, Outcome::TooBig) {
        Ok(()) => Outcome::FragmentationNeeded,
        Err(outcome) => outcome,
    }
}

/// "Time exceeded", in the name of `from`.
#[inline(always)]
pub fn time_exceeded(ctx: &XdpContext, ethernet: Ethernet, ip: &Ipv4, from: u32) -> Outcome {
    /// A header without options and eight bytes more.
    const EXCERPT: usize = 7;
    let message = Message { kind: 11, code: 0, checksum: 0, unused: 0, mtu: 0 };
    if ip.has_options() || usize::from(ip.total_len()) < HEADERS + EXCERPT * 4 {
        return Outcome::TtlEnded;
    }
    match answer::<EXCERPT>(ctx, ethernet, ip, message, from, Outcome::TtlEnded) {
        Ok(()) => Outcome::TimeExceeded,
        Err(outcome) => outcome,
    }
}

/// Makes the packet the answer to itself, which is shorter or hardly longer: nobody gains by asking in another's name.
#[inline(always)]
fn answer<const EXCERPT: usize>(
    ctx: &XdpContext,
    ethernet: Ethernet,
    ip: &Ipv4,
    message: Message,
    from: u32,
    failed: Outcome,
) -> Result<(), Outcome> {
    let total = HEADERS + EXCERPT * 4;
    // RFC 1122 3.2.2: no error about an error.
    if ip.header.protocol == IpProto::Icmp as u8 || !icmp::asker_is_host(ethernet, &ip.header) {
        return Err(failed);
    }
    Packet::grown(ctx, HEADERS).ok_or(Outcome::NoHeadroom)?;
    let frame = Packet::resized(ctx, Ethernet::LEN + total).ok_or(failed)?;
    let excerpt: [u32; EXCERPT] = frame.read(Ethernet::LEN + HEADERS).ok_or(failed)?;
    let header = Ipv4Header {
        version_ihl: Ipv4Header::VERSION_IHL,
        tos: TOS,
        total_len: (total as u16).to_be(),
        id: 0,
        fragment: Ipv4Header::DONT_FRAGMENT,
        ttl: TTL,
        protocol: IpProto::Icmp as u8,
        checksum: 0,
        source: from,
        destination: ip.header.source,
    };
    let words: [u32; 2] = zerocopy::transmute!(message);
    let checksum = checksum::exchange(checksum::of(excerpt), [0; 2], words);
    let back = Ethernet { destination: ethernet.source, source: ethernet.destination, ..ethernet };
    frame.write(0, back).ok_or(failed)?;
    frame.write(Ethernet::LEN, header.with_checksum()).ok_or(failed)?;
    let message = Message { checksum, ..message };
    frame.write(Ethernet::LEN + size_of::<Ipv4Header>(), message).ok_or(failed)
}
