//! What a sender hears whose packet goes no further: how large it may be, or that its TTL has ended.

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::Outcome;
use network_types::ip::IpProto;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    checksum, icmp,
    ipv6::{Header, Ipv6},
    packet::{BLOCK, Packet},
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

/// RFC 4443 3.2.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct Message6 {
    kind: u8,
    code: u8,
    checksum: u16,
    mtu: u32,
}

const HEADERS6: usize = Header::LEN + size_of::<Message6>();
/// RFC 8200 5: so much goes over every link, and no sender heeds who tells it less.
const LEAST_MTU: u16 = 1280;
/// RFC 4443 2.4 c: as much as an answer of the least MTU holds.
const EXCERPT6: usize = LEAST_MTU as usize - HEADERS6;

/// "Packet too big", in the name of the address that it was sent to. A function of its own: a rare one.
#[inline(never)]
pub fn too_big6(ctx: &XdpContext, limit: u16) -> Outcome {
    match try_too_big6(ctx, limit) {
        Ok(()) => Outcome::FragmentationNeeded,
        Err(outcome) => outcome,
    }
}

#[inline(always)]
fn try_too_big6(ctx: &XdpContext, limit: u16) -> Result<(), Outcome> {
    const FAILED: Outcome = Outcome::TooBig;
    let frame = Packet::of_context(ctx);
    let ethernet: Ethernet = frame.read(0).ok_or(FAILED)?;
    let ip = Ipv6::parse(frame)?;
    let asked = ip.header;
    let mtu = if limit > LEAST_MTU { limit } else { LEAST_MTU };
    let fits = usize::from(u16::from_be(asked.payload_len)) + Header::LEN <= usize::from(mtu);
    // RFC 4443 2.4 e: no error about an error.
    let is_error = ip.protocol == IpProto::Ipv6Icmp as u8;
    if fits || is_error || !asked.source_is_host() || ethernet.source.is_multicast() {
        return Err(FAILED);
    }
    let header = Header {
        version_class_flow: (6_u32 << 28).to_be(),
        payload_len: (LEAST_MTU - Header::LEN as u16).to_be(),
        next_header: IpProto::Ipv6Icmp as u8,
        hop_limit: TTL,
        source: asked.destination,
        destination: asked.source,
    };
    let back = Ethernet { destination: ethernet.source, source: ethernet.destination, ..ethernet };
    Packet::grown(ctx, HEADERS6).ok_or(Outcome::NoHeadroom)?;
    let frame = Packet::resized(ctx, Ethernet::LEN + usize::from(LEAST_MTU)).ok_or(FAILED)?;
    frame.write(0, back).ok_or(FAILED)?;
    frame.write(Ethernet::LEN, header).ok_or(FAILED)?;
    let message = Message6 { kind: 2, code: 0, checksum: 0, mtu: u32::from(mtu).to_be() };
    frame.write(Ethernet::LEN + Header::LEN, message).ok_or(FAILED)?;
    let excerpt = sum_of_excerpt6(frame.skip(Ethernet::LEN + HEADERS6)).ok_or(FAILED)?;
    let checksum = message.checksum(&header, excerpt);
    frame.write(Ethernet::LEN + Header::LEN, Message6 { checksum, ..message }).ok_or(FAILED)
}

#[inline(always)]
fn sum_of_excerpt6(excerpt: Packet) -> Option<u64> {
    const BLOCKS: usize = EXCERPT6 / BLOCK;
    let mut sum = 0;
    for number in 0..BLOCKS {
        sum = excerpt.sum_of_block(number * BLOCK, sum)?;
    }
    let rest: [u64; EXCERPT6 % BLOCK / 8] = excerpt.read(BLOCKS * BLOCK)?;
    Some(rest.iter().fold(sum.into(), |sum, word| sum + checksum::sum_of(*word)))
}

impl Message6 {
    /// RFC 4443 2.3: with the pseudo header. `excerpt`: the sum of what follows.
    #[inline(always)]
    fn checksum(&self, header: &Header, excerpt: u64) -> u16 {
        let pseudo = header.sum_of_addresses()
            + u64::from(header.payload_len)
            + u64::from(u16::from(header.next_header).to_be());
        !checksum::fold(pseudo + checksum::sum_of(zerocopy::transmute!(*self)) + excerpt)
    }
}
