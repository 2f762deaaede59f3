//! What a client hears whose connection has lost its real server: a reset, as from a host that knows nothing of it.

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::Outcome;
use network_types::ip::IpProto;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    checksum, icmp,
    ip::Ip,
    ipv6::{Header, Ipv6},
    packet::Packet,
    parse::{ACK, Ethernet, FIN, Ipv4, Ipv4Header, Mac, Ports, RST, SYN, TTL},
};

/// RFC 9293 3.1. Network order.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct Segment {
    ports: Ports,
    sequence: u32,
    acknowledgment: u32,
    /// In units of four bytes, in the upper four bits.
    offset: u8,
    flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}

const HEADER: usize = size_of::<Segment>();
const TOTAL: usize = size_of::<Ipv4Header>() + HEADER;
/// With padding, as long as a frame on a cable is at least.
const PADDED: usize = 60;

/// Makes the frame its answer. A function of its own: a rare one.
#[inline(never)]
pub fn answer(ctx: &XdpContext) -> Outcome {
    match try_answer(ctx) {
        Ok(()) => Outcome::ConnectionReset,
        Err(outcome) => outcome,
    }
}

#[inline(always)]
fn try_answer(ctx: &XdpContext) -> Result<(), Outcome> {
    let frame = Packet::of_context(ctx);
    let ethernet: Ethernet = frame.read(0).ok_or(Outcome::TruncatedHeader)?;
    let ip = Ipv4::parse(frame)?;
    let reset = Segment::answer(ctx, ethernet, &ip, icmp::asker_is_host(ethernet, &ip.header))?;
    let header = Ipv4Header {
        version_ihl: Ipv4Header::VERSION_IHL,
        tos: 0,
        total_len: (TOTAL as u16).to_be(),
        id: 0,
        fragment: Ipv4Header::DONT_FRAGMENT,
        ttl: TTL,
        protocol: IpProto::Tcp as u8,
        checksum: 0,
        source: ip.header.destination,
        destination: ip.header.source,
    };
    // The same both ways.
    let ip_sum = ip.sum_of_addresses();
    let macs = Ethernet { destination: ethernet.source, source: ethernet.destination, ..ethernet };
    // Shorter frames come from virtual links.
    let length = if frame.len() < PADDED { Ethernet::LEN + TOTAL } else { PADDED };
    let frame = Packet::resized(ctx, length).ok_or(Outcome::DeadReal)?;
    frame.write(0, macs).ok_or(Outcome::DeadReal)?;
    frame.write(Ethernet::LEN, header.with_checksum()).ok_or(Outcome::DeadReal)?;
    let reset = reset.with_checksum(ip_sum);
    frame.write(Ethernet::LEN + size_of::<Ipv4Header>(), reset).ok_or(Outcome::DeadReal)?;
    // None where there is no padding.
    let _ = frame.write(Ethernet::LEN + TOTAL, [0u8; PADDED - Ethernet::LEN - TOTAL]);
    Ok(())
}

/// As [`answer`].
#[inline(never)]
pub fn answer6(ctx: &XdpContext) -> Outcome {
    match try_answer6(ctx) {
        Ok(()) => Outcome::ConnectionReset,
        Err(outcome) => outcome,
    }
}

#[inline(always)]
fn try_answer6(ctx: &XdpContext) -> Result<(), Outcome> {
    let frame = Packet::of_context(ctx);
    let ethernet: Ethernet = frame.read(0).ok_or(Outcome::TruncatedHeader)?;
    let ip = Ipv6::parse(frame)?;
    let is_host = ip.header.source_is_host() && !ethernet.source.is_multicast();
    let reset = Segment::answer(ctx, ethernet, &ip, is_host)?.with_checksum(ip.sum_of_addresses());
    let header = Header {
        version_class_flow: (6_u32 << 28).to_be(),
        payload_len: (HEADER as u16).to_be(),
        next_header: IpProto::Tcp as u8,
        hop_limit: TTL,
        source: ip.header.destination,
        destination: ip.header.source,
    };
    let macs = Ethernet { destination: ethernet.source, source: ethernet.destination, ..ethernet };
    let frame = Packet::resized(ctx, Ethernet::LEN + Header::LEN + HEADER).ok_or(Outcome::DeadReal)?;
    frame.write(0, macs).ok_or(Outcome::DeadReal)?;
    frame.write(Ethernet::LEN, header).ok_or(Outcome::DeadReal)?;
    frame.write(Ethernet::LEN + Header::LEN, reset).ok_or(Outcome::DeadReal)
}

impl Segment {
    /// What the packet is answered by. `is_from_host`: its source may be answered.
    #[inline(always)]
    fn answer(
        ctx: &XdpContext,
        ethernet: Ethernet,
        ip: &impl Ip,
        is_from_host: bool,
    ) -> Result<Self, Outcome> {
        if let Some(vip) = ip.vip()
            && vip.ifindex == ctx.ingress_ifindex() as u32
            && !ethernet.destination.is(Mac::from(vip.mac))
        {
            return Err(Outcome::OtherHost);
        }
        let segment: Self = ip.payload().read(0).ok_or(Outcome::TruncatedTcp)?;
        let header_len = usize::from(segment.offset >> 4) * 4;
        let data_len = ip.payload_len().checked_sub(header_len).ok_or(Outcome::TruncatedTcp)?;
        // RFC 9293 3.5.2: never in answer to a reset. The length of a packet in pieces is not known.
        if segment.flags & RST != 0 || ip.is_fragment() || !is_from_host {
            return Err(Outcome::DeadReal);
        }
        Ok(segment.reset(data_len as u32))
    }

    /// RFC 9293 3.10.7.1: what a closed port says to this segment.
    #[inline(always)]
    fn reset(self, data_len: u32) -> Self {
        let Self { sequence, acknowledgment, flags, .. } = self;
        let (sequence, acknowledgment, flags) = if flags & ACK != 0 {
            (acknowledgment, 0, RST)
        } else {
            let bits = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
            let next = u32::from_be(sequence).wrapping_add(data_len).wrapping_add(bits);
            (0, next.to_be(), RST | ACK)
        };
        Self {
            ports: Ports { source: self.ports.destination, destination: self.ports.source },
            sequence,
            acknowledgment,
            offset: (HEADER as u8 / 4) << 4,
            flags,
            window: 0,
            checksum: 0,
            urgent: 0,
        }
    }

    #[inline(always)]
    fn with_checksum(self, sum_of_addresses: u64) -> Self {
        let rest = u64::from(u16::from(IpProto::Tcp as u8).to_be()) + u64::from((HEADER as u16).to_be());
        let words: [u32; 5] = zerocopy::transmute!(self);
        let sum = words.iter().fold(sum_of_addresses + rest, |sum, word| sum + u64::from(*word));
        Self { checksum: !checksum::fold(sum), ..self }
    }
}
