//! Whom an ICMP error about a balanced flow is for: what it quotes tells, and leads to the flow's real server.

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::{
    flow::Flow,
    protocol::{TCP, UDP},
};

use crate::{
    flow_table,
    ip::Ip as _,
    ipv6::{Header, Ipv6},
    packet::Packet,
    parse::{Ipv4, Ipv4Header, Ports},
    quic, schedule,
    service::{self, Table},
};

/// The packet that an ICMP error is about, as far as it is quoted.
pub struct About {
    pub header: Ipv4Header,
    pub ports: Ports,
    /// From the beginning of the ICMP message.
    pub ports_at: usize,
}

impl About {
    /// Where the quote begins in the ICMP message (RFC 792).
    pub const AT: usize = 8;

    /// None unless the quote has the ports of TCP or UDP; RFC 792 has eight bytes of them in it.
    #[inline(always)]
    pub fn parse(ip: &Ipv4) -> Option<Self> {
        let header: Ipv4Header = ip.payload.read(Self::AT)?;
        let header_len = usize::from(header.version_ihl & 0xf) * 4;
        let ports_at = Self::AT + header_len;
        if header.version_ihl >> 4 != 4
            || header_len < size_of::<Ipv4Header>()
            || ip.payload_len < ports_at + size_of::<Ports>()
            || !header.is_first_fragment()
            || !matches!(header.protocol, TCP | UDP)
        {
            return None;
        }
        Some(Self { header, ports: ip.payload.skip(ports_at).read(0)?, ports_at })
    }
}

/// The same over IPv6.
pub struct About6 {
    pub header: Header,
    pub protocol: u8,
    pub ports: Ports,
}

impl About6 {
    /// RFC 4443 3: none unless the quote has the ports of TCP or UDP, behind whatever extension headers.
    #[inline(always)]
    pub fn parse(ip: &Ipv6) -> Option<Self> {
        let header: Header = ip.payload.read(About::AT)?;
        let quoted = ip.payload_len.checked_sub(About::AT + Header::LEN)?;
        let about = Ipv6::behind(header, ip.payload.skip(About::AT + Header::LEN), quoted).ok()??;
        if u32::from_be(header.version_class_flow) >> 28 != 6
            || !about.is_first_fragment()
            || !matches!(about.protocol, TCP | UDP)
        {
            return None;
        }
        Some(Self { header, protocol: about.protocol, ports: Ports::parse(&about)? })
    }
}

/// Index of the real server in `REALS`, or [`NONE`]. A function of its own: a rare one.
#[inline(never)]
pub fn destination(ctx: &XdpContext) -> u32 {
    find(ctx).unwrap_or(NONE)
}

/// As [`destination`].
#[inline(never)]
pub fn destination6(ctx: &XdpContext) -> u32 {
    find6(ctx).unwrap_or(NONE)
}

/// The error is not about a flow of a service.
const NONE: u32 = u32::MAX;

#[inline(always)]
fn find(ctx: &XdpContext) -> Option<u32> {
    let ip = Ipv4::parse(Packet::of_context(ctx)).ok()?;
    let about = About::parse(&ip)?;
    // What the service sent: its own side is the source.
    let (address, port) = (about.header.source, about.ports.source);
    if address != ip.header.destination {
        return None;
    }
    let service = service::find(Table::live(), address, port, about.header.protocol)?;
    let flow = Flow {
        source: about.header.destination,
        destination: address,
        source_port: about.ports.destination,
        destination_port: port,
    };
    let (index, _) =
        schedule::pick(service, service.flow(flow), || flow_table::Packet::About, quic::NONE).ok()?;
    Some(index)
}

#[inline(always)]
fn find6(ctx: &XdpContext) -> Option<u32> {
    let ip = Ipv6::parse(Packet::of_context(ctx)).ok()?;
    let about = About6::parse(&ip)?;
    let (address, port) = (about.header.source, about.ports.source);
    if !address.is(ip.header.destination) {
        return None;
    }
    let service = service::find6(Table::live(), address, port, about.protocol)?;
    let flow = Flow {
        source: 0,
        destination: address.fold(),
        source_port: about.ports.destination,
        destination_port: port,
    };
    let flow = service.flow6(about.header.destination, flow);
    let (index, _) = schedule::pick(service, flow, || flow_table::Packet::About, quic::NONE).ok()?;
    Some(index)
}
