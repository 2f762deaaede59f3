//! How a packet is put into another one, which takes it to its real server over any number of routers.
//!
//! The inner packet stays as the client sent it, its TTL too: it has come to its destination, the virtual address, so
//! the tunnel does not forward it in the sense of RFC 2003 3.1, and a real server that sends it back instead of taking
//! it is a router that counts it down.

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::{Outcome, Real, flow};
use network_types::{eth::EtherType, ip::IpProto};
use zerocopy::{Immutable, IntoBytes};

use super::refusal;
use crate::{
    packet::Packet,
    parse::{Ethernet, Ipv4, Ipv4Header, Ports, TTL},
};

const OUTER: usize = size_of::<Ipv4Header>();
const IPV4: u16 = EtherType::Ipv4 as u16;
const IPIP: u8 = IpProto::Ipv4 as u8;

/// UDP header and that of GUE variant 0 (draft-ietf-intarea-gue 3.1).
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct Gue {
    source_port: u16,
    destination_port: u16,
    length: u16,
    /// 0 = not computed. RFC 768 allows it, and the inner packet has its own.
    checksum: u16,
    /// Version 0, data, no optional fields.
    version: u8,
    protocol: u8,
    flags: u16,
}

/// RFC 2784 2.1, without a checksum.
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct Gre {
    version: u16,
    protocol: u16,
}

/// Puts the outer headers before the packet, or says why that cannot be. The MACs are still to be written.
///
/// A function of its own, which looks at the packet again, so that direct routing does not pay for it.
#[inline(never)]
pub fn enter(ctx: &XdpContext, real: &Real) -> Result<(), Outcome> {
    let frame = Packet::new(ctx);
    let ethernet: Ethernet = frame.read(0).ok_or(Outcome::TruncatedHeader)?;
    let ip = Ipv4::parse(frame)?;
    match limit(real) {
        // Not from an address of the director's own: the client knows this one, and its firewall expects it.
        Some(limit) if ip.total_len() > limit => {
            Err(refusal::too_big(ctx, ethernet, &ip, limit, ip.header.destination))
        }
        Some(_) => encapsulate(ctx, &ip, real),
        None => Err(Outcome::BadTable),
    }
}

/// The largest packet that fits into the tunnel to `real`; none if a tunnel of no kind leads there.
#[inline(always)]
fn limit(real: &Real) -> Option<u16> {
    let header = match real.method {
        Real::IPIP => 0,
        Real::GUE => size_of::<Gue>(),
        Real::GRE => size_of::<Gre>(),
        _ => return None,
    };
    Some(real.mtu.saturating_sub((OUTER + header) as u16))
}

#[inline(always)]
fn encapsulate(ctx: &XdpContext, ip: &Ipv4, real: &Real) -> Result<(), Outcome> {
    match real.method {
        Real::IPIP => wrap(ctx, ip, real, IPIP, ()),
        Real::GUE => {
            let header = Gue {
                source_port: entropy(ip)?,
                destination_port: real.tunnel_port,
                length: ip.total_len().wrapping_add(size_of::<Gue>() as u16).to_be(),
                checksum: 0,
                version: 0,
                protocol: IPIP,
                flags: 0,
            };
            wrap(ctx, ip, real, IpProto::Udp as u8, header)
        }
        Real::GRE => wrap(ctx, ip, real, IpProto::Gre as u8, Gre { version: 0, protocol: IPV4 }),
        _ => Err(Outcome::BadTable),
    }
}

#[inline(always)]
fn wrap<T: IntoBytes + Immutable>(
    ctx: &XdpContext,
    ip: &Ipv4,
    real: &Real,
    protocol: u8,
    header: T,
) -> Result<(), Outcome> {
    let room = OUTER + size_of::<T>();
    let outer = outer(&ip.header, ip.total_len().wrapping_add(room as u16), real, protocol)?;
    let frame = Packet::grown(ctx, room).ok_or(Outcome::NoHeadroom)?;
    frame.write(Ethernet::LEN - size_of::<u16>(), IPV4).ok_or(Outcome::TruncatedHeader)?;
    frame.write(Ethernet::LEN, outer).ok_or(Outcome::TruncatedHeader)?;
    frame.write(Ethernet::LEN + OUTER, header).ok_or(Outcome::TruncatedHeader)
}

#[inline(always)]
fn outer(inner: &Ipv4Header, total_len: u16, real: &Real, protocol: u8) -> Result<Ipv4Header, Outcome> {
    let (Some(source), Some(destination)) = (real.source.to_v4(), real.address.to_v4()) else {
        return Err(Outcome::BadTable);
    };
    let header = Ipv4Header {
        version_ihl: Ipv4Header::VERSION_IHL,
        // RFC 2003 3.1 for DSCP, RFC 6040 4.1 (normal mode) for ECN.
        tos: inner.tos,
        total_len: total_len.to_be(),
        id: identification(inner),
        // RFC 2003 3.1: what must not be fragmented must not be inside a fragment either.
        fragment: inner.fragment & Ipv4Header::DONT_FRAGMENT,
        ttl: TTL,
        protocol,
        checksum: 0,
        source,
        destination,
    };
    Ok(header.with_checksum())
}

/// RFC 6864 4: of no meaning with DF, else not to be met again soon between the same two hosts. The client's own number
/// is that as far as the client goes; its address keeps two clients' numbers apart, all but one in 65536 times.
#[inline(always)]
fn identification(inner: &Ipv4Header) -> u16 {
    match inner.may_be_fragmented() {
        true => inner.id ^ inner.source as u16 ^ (inner.source >> 16) as u16,
        false => 0,
    }
}

/// A source port that differs between flows, of the range for such uses (RFC 6335 6): by it the receiver's card spreads
/// them over its queues.
#[inline(always)]
fn entropy(ip: &Ipv4) -> Result<u16, Outcome> {
    let ports: u32 = zerocopy::transmute!(Ports::parse(ip).ok_or(Outcome::TruncatedHeader)?);
    let hash = flow::mix(u64::from(ip.header.source) | u64::from(ports) << 32);
    Ok((0xc000 | hash as u16).to_be())
}
