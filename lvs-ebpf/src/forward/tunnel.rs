//! How a packet is put into another one, which takes it to its real server over any number of routers. Either may be of
//! either family.
//!
//! The inner packet stays as the client sent it, its TTL too: it has come to its destination, the virtual address, so
//! the tunnel does not forward it in the sense of RFC 2003 3.1 and RFC 2473 3.1, and a real server that sends it back instead
//! of taking it is a router that counts it down.

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::{Address, Outcome, Real, flow};
use network_types::{eth::EtherType, ip::IpProto};
use zerocopy::{Immutable, IntoBytes};

use super::refusal;
use crate::{
    ip::Ip,
    ipv6::{Header, Ipv6},
    packet::Packet,
    parse::{Ethernet, Ipv4, Ipv4Header, Ports, TTL},
};

const IPV4: u16 = EtherType::Ipv4 as u16;
const IPV6: u16 = EtherType::Ipv6 as u16;

/// UDP header and that of GUE variant 0 (draft-ietf-intarea-gue 3.1).
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct Gue {
    source_port: u16,
    destination_port: u16,
    length: u16,
    /// 0 = not computed. RFC 768 allows it, over IPv6 RFC 6935 does for tunnels, and the inner packet has its own.
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

/// What the outer headers say of the packet in them.
struct Inner {
    ether_type: u16,
    protocol: u8,
    /// DSCP and ECN.
    tos: u8,
    total_len: u16,
    /// Of the outer packet, where that is one of IPv4.
    id: u16,
    dont_fragment: u16,
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
        Some(_) => encapsulate(ctx, &Inner::from(&ip.header), real, || entropy(&ip, ip.header.source)),
        None => Err(Outcome::BadTable),
    }
}

/// As [`enter`], but whose packet does not fit is still to be told ([`refusal::too_big6`]): both together would be more than
/// the stack has room for.
#[inline(never)]
pub fn enter6(ctx: &XdpContext, real: &Real) -> Result<(), Outcome> {
    let ip = Ipv6::parse(Packet::new(ctx))?;
    let inner = Inner::from(&ip.header);
    match limit(real) {
        Some(limit) if inner.total_len > limit => Err(Outcome::TooBig),
        Some(_) => encapsulate(ctx, &inner, real, || entropy(&ip, ip.header.source.fold())),
        None => Err(Outcome::BadTable),
    }
}

/// The largest packet that fits into the tunnel to `real`; none if a tunnel of no kind leads there.
#[inline(always)]
pub fn limit(real: &Real) -> Option<u16> {
    let outer = match real.address.to_v4() {
        Some(_) => size_of::<Ipv4Header>(),
        None => Header::LEN,
    };
    let header = match real.method {
        Real::IPIP => 0,
        Real::GUE => size_of::<Gue>(),
        Real::GRE => size_of::<Gre>(),
        _ => return None,
    };
    Some(real.mtu.saturating_sub((outer + header) as u16))
}

/// `entropy`: a number that differs between flows.
#[inline(always)]
fn encapsulate(
    ctx: &XdpContext,
    inner: &Inner,
    real: &Real,
    entropy: impl Fn() -> u32,
) -> Result<(), Outcome> {
    match real.method {
        Real::IPIP => wrap(ctx, inner, real, inner.protocol, (), entropy),
        Real::GUE => {
            let entropy = entropy();
            let header = Gue {
                // Of the range for such uses (RFC 6335 6): by it the receiver's card spreads flows over its queues.
                source_port: (0xc000 | entropy as u16).to_be(),
                destination_port: real.tunnel_port,
                length: inner.total_len.wrapping_add(size_of::<Gue>() as u16).to_be(),
                checksum: 0,
                version: 0,
                protocol: inner.protocol,
                flags: 0,
            };
            wrap(ctx, inner, real, IpProto::Udp as u8, header, || entropy)
        }
        Real::GRE => {
            let header = Gre { version: 0, protocol: inner.ether_type };
            wrap(ctx, inner, real, IpProto::Gre as u8, header, entropy)
        }
        _ => Err(Outcome::BadTable),
    }
}

#[inline(always)]
fn wrap<T: IntoBytes + Immutable>(
    ctx: &XdpContext,
    inner: &Inner,
    real: &Real,
    protocol: u8,
    header: T,
    entropy: impl Fn() -> u32,
) -> Result<(), Outcome> {
    let len = inner.total_len.wrapping_add(size_of::<T>() as u16);
    match (real.source.to_v4(), real.address.to_v4()) {
        (Some(source), Some(destination)) => {
            put(ctx, IPV4, inner.outer(len, protocol, source, destination), header)
        }
        (None, None) if !real.source.is_unspecified() => {
            let outer = inner.outer6(len, protocol, entropy(), real.source, real.address);
            put(ctx, IPV6, outer, header)
        }
        _ => Err(Outcome::BadTable),
    }
}

#[inline(always)]
fn put<O: IntoBytes + Immutable, T: IntoBytes + Immutable>(
    ctx: &XdpContext,
    ether_type: u16,
    outer: O,
    header: T,
) -> Result<(), Outcome> {
    let frame = Packet::grown(ctx, size_of::<O>() + size_of::<T>()).ok_or(Outcome::NoHeadroom)?;
    frame.write(Ethernet::LEN - size_of::<u16>(), ether_type).ok_or(Outcome::TruncatedHeader)?;
    frame.write(Ethernet::LEN, outer).ok_or(Outcome::TruncatedHeader)?;
    frame.write(Ethernet::LEN + size_of::<O>(), header).ok_or(Outcome::TruncatedHeader)
}

impl From<&Ipv4Header> for Inner {
    #[inline(always)]
    fn from(header: &Ipv4Header) -> Self {
        Self {
            ether_type: IPV4,
            protocol: IpProto::Ipv4 as u8,
            tos: header.tos,
            total_len: u16::from_be(header.total_len),
            id: identification(header),
            // RFC 2003 3.1: what must not be fragmented must not be inside a fragment either.
            dont_fragment: header.fragment & Ipv4Header::DONT_FRAGMENT,
        }
    }
}

impl From<&Header> for Inner {
    #[inline(always)]
    fn from(header: &Header) -> Self {
        Self {
            ether_type: IPV6,
            protocol: IpProto::Ipv6 as u8,
            tos: (u32::from_be(header.version_class_flow) >> 20) as u8,
            // It ends inside the frame.
            total_len: u16::from_be(header.payload_len).wrapping_add(Header::LEN as u16),
            id: 0,
            // No router makes fragments of it (RFC 4213 3.2.2).
            dont_fragment: Ipv4Header::DONT_FRAGMENT,
        }
    }
}

// RFC 2003 3.1 and RFC 2473 6.4 for DSCP, RFC 6040 4.1 (normal mode) for ECN: both are those of the inner header.
impl Inner {
    /// Before `len` bytes, as in [`Inner::outer6`].
    #[inline(always)]
    fn outer(&self, len: u16, protocol: u8, source: u32, destination: u32) -> Ipv4Header {
        let header = Ipv4Header {
            version_ihl: Ipv4Header::VERSION_IHL,
            tos: self.tos,
            total_len: len.wrapping_add(size_of::<Ipv4Header>() as u16).to_be(),
            id: self.id,
            fragment: self.dont_fragment,
            ttl: TTL,
            protocol,
            checksum: 0,
            source,
            destination,
        };
        header.with_checksum()
    }

    #[inline(always)]
    fn outer6(&self, len: u16, protocol: u8, entropy: u32, source: Address, destination: Address) -> Header {
        // RFC 6438 3: the label spreads flows over paths and queues. Zero would be none (RFC 6437 2).
        let label = entropy >> 12 | 1;
        Header {
            version_class_flow: (6 << 28 | u32::from(self.tos) << 20 | label).to_be(),
            payload_len: len.to_be(),
            next_header: protocol,
            hop_limit: TTL,
            source,
            destination,
        }
    }
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

/// The same for all packets of a flow that are whole; pieces of one packet stay together by their addresses.
#[inline(always)]
fn entropy(ip: &impl Ip, source: u32) -> u32 {
    let ports: u32 = match Ports::parse(ip) {
        Some(ports) if !ip.is_fragment() => zerocopy::transmute!(ports),
        _ => 0,
    };
    flow::mix(u64::from(source) | u64::from(ports) << 32)
}
