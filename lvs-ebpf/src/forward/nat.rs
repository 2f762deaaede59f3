//! How a real server that does not have the virtual address is reached: destination address and port become its own,
//! and its answers, which come back through this node, become the service's again.
//!
//! Both ways this node is a router: TTLs count down and what does not fit is told its sender. Whose an answer is, is
//! told by its source, on every director alike. Only where that is not enough are flows remembered (`NAT_FLOWS`):
//!
//! | from a real server's address and port | |
//! |---|---|
//! | to this node itself, such as an answer to a check | the kernel's |
//! | TCP, one service has the real server | an answer of the service, unless the flow was seen to begin without it |
//! | TCP, several services have it | an answer of the one that the client was seen to talk to |
//! | UDP | the same: what nobody asked for, such as a query of its own, is the real server's own |
//! | either, and a service of all ports has the real server | as with UDP |

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup as FibParameters,
    },
    helpers::{bpf_fib_lookup, bpf_redirect},
    programs::XdpContext,
};
use lvs_ebpf_common::{
    Face, LastHop, NatFlow, Outcome, Real, Reply, ServiceKey, Wanted, flow,
    maps::WANTED_SLOTS,
    protocol::{TCP, UDP},
};
use network_types::ip::IpProto;

use super::refusal;
use crate::{
    checksum,
    icmp_error::About,
    ip::Ip as _,
    maps::{CLIENTS, NAT_FLOWS, REALS, REPLIES, WANTED},
    packet::Packet,
    parse::{ACK, Ethernet, Ipv4, Ipv4Header, Mac, Ports, SYN, check_tcp, check_udp, tcp_flags},
    service::Table,
    veth,
};

const ICMP: u8 = IpProto::Icmp as u8;

/// Gives a client's packet its real server's address and port. The MACs are still to be written.
///
/// A function of its own, which looks at the packet again, so that direct routing does not pay for it.
#[inline(never)]
pub fn to_real(ctx: &XdpContext, real: &Real) -> Result<(), Outcome> {
    let frame = Packet::new(ctx);
    let ethernet: Ethernet = frame.read(0).ok_or(Outcome::TruncatedHeader)?;
    let ip = Ipv4::parse(frame)?;
    if ip.header.protocol == ICMP {
        return error_to_real(frame, &ip, real);
    }
    if ip.header.ttl <= 1 {
        return Err(refusal::time_exceeded(ctx, ethernet, &ip, ip.header.destination));
    }
    if ip.total_len() > real.mtu {
        return Err(refusal::too_big(ctx, ethernet, &ip, real.mtu, ip.header.destination));
    }
    let address = real.address.to_v4().ok_or(Outcome::BadTable)?;
    if !ip.is_first_fragment() {
        // Its packet's ports and checksum are in the first one.
        let header = Ipv4Header { destination: address, ..ip.header };
        let header = one_hop_further(&ip.header, header);
        return frame.write(Ethernet::LEN, header).ok_or(Outcome::TruncatedHeader);
    }
    let ports = Ports::parse(&ip).ok_or(Outcome::TruncatedHeader)?;
    let to = Face { address, port: port_of(real, ports.destination), _pad: 0 };
    let flow = NatFlow {
        client: ip.header.source,
        real: to.address,
        client_port: ports.source,
        real_port: to.port,
        protocol: ip.header.protocol.into(),
    };
    let face = Face { address: ip.header.destination, port: ports.destination, _pad: 0 };
    let needs_entry = real.method == Real::NAT_SHARED || ip.header.protocol == UDP;
    // Where none is needed there may still be one: the client has talked to the real server itself from this port
    // before, or somebody else has in its name.
    // SAFETY: any integers make a Face, and nothing of it is kept.
    if needs_entry || unsafe { NAT_FLOWS.get(flow) }.is_some() {
        remember(&flow, face);
    }
    remember_hop(ctx, ip.header.source, ethernet);
    let header = Ipv4Header { destination: to.address, ..ip.header };
    translate(frame, &ip, header, ports, Ports { destination: to.port, ..ports })
        .ok_or(Outcome::TruncatedHeader)
}

/// An error about what the real server sent: to its eyes it came from itself.
#[inline(always)]
fn error_to_real(frame: Packet, ip: &Ipv4, real: &Real) -> Result<(), Outcome> {
    let about = About::parse(ip).ok_or(Outcome::TruncatedHeader)?;
    if ip.header.ttl <= 1 {
        return Err(Outcome::TtlEnded);
    }
    let address = real.address.to_v4().ok_or(Outcome::BadTable)?;
    let header = Ipv4Header { destination: address, ..ip.header };
    let inner = Ipv4Header { source: address, ..about.header };
    let ports = Ports { source: port_of(real, about.ports.source), ..about.ports };
    translate_error(frame, ip, header, &about, inner, ports).ok_or(Outcome::TruncatedHeader)
}

/// What becomes of an ICMP error that is about no service's flow, but may be about one on its way to a real server.
#[inline(never)]
pub fn error_from_real(ctx: &XdpContext) -> Outcome {
    match try_error_from_real(ctx) {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

#[inline(always)]
fn try_error_from_real(ctx: &XdpContext) -> Result<Outcome, Outcome> {
    let frame = Packet::new(ctx);
    let ethernet: Ethernet = frame.read(0).ok_or(Outcome::TruncatedHeader)?;
    let ip = Ipv4::parse(frame)?;
    let about = About::parse(&ip).ok_or(Outcome::NotOurs)?;
    // Not of what passes in the other direction.
    if about.header.source != ip.header.destination {
        return Err(Outcome::NotOurs);
    }
    let (real, port) = (about.header.destination, about.ports.destination);
    let reply = of_real(real, port, about.header.protocol).ok_or(Outcome::NotOurs)?;
    check_addressee(ctx, ethernet, REALS.get(reply.real).ok_or(Outcome::BadTable)?)?;
    let flow = NatFlow {
        client: about.header.source,
        real,
        client_port: about.ports.source,
        real_port: port,
        protocol: about.header.protocol.into(),
    };
    // SAFETY: any integers make a Face, and the copy does not outlive the element's memory.
    let face = unsafe { NAT_FLOWS.get(flow) }.copied().unwrap_or(reply.face);
    if face.address == 0 {
        return Err(Outcome::NotOurs);
    }
    let Way::Open(hop) = way(ctx, &ip, face)? else { return Err(Outcome::TooBig) };
    if ip.header.ttl <= 1 {
        return Err(Outcome::TtlEnded);
    }
    // In the service's name, like all that the client hears of it.
    let header = Ipv4Header { source: face.address, ..ip.header };
    let inner = Ipv4Header { destination: face.address, ..about.header };
    let ports = Ports { destination: face.port, ..about.ports };
    translate_error(frame, &ip, header, &about, inner, ports).ok_or(Outcome::TruncatedHeader)?;
    send(ctx, frame, ethernet, hop)
}

/// A real server without a port of its own keeps the service's.
#[inline(always)]
fn port_of(real: &Real, port: u16) -> u16 {
    if real.port == 0 { port } else { real.port }
}

/// What becomes of a packet that is for no service, but may be from or for a real server.
#[inline(never)]
pub fn reply(ctx: &XdpContext) -> Outcome {
    match try_reply(ctx) {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

#[inline(always)]
fn try_reply(ctx: &XdpContext) -> Result<Outcome, Outcome> {
    let frame = Packet::new(ctx);
    let ethernet: Ethernet = frame.read(0).ok_or(Outcome::TruncatedHeader)?;
    let ip = Ipv4::parse(frame)?;
    let ports = Ports::parse(&ip).ok_or(Outcome::NotOurs)?;
    let is_tcp = ip.header.protocol == TCP;
    let Some(reply) = of_real(ip.header.source, ports.source, ip.header.protocol) else {
        if is_tcp && of_real(ip.header.destination, ports.destination, TCP).is_some() {
            // Somebody talks to the real server itself: its answers are not the service's.
            let flow = NatFlow {
                client: ip.header.source,
                real: ip.header.destination,
                client_port: ports.source,
                real_port: ports.destination,
                protocol: TCP.into(),
            };
            remember(&flow, Face::default());
        }
        return Err(Outcome::NotOurs);
    };
    if ip.is_fragment() {
        return Err(Outcome::Fragment);
    }
    if is_tcp {
        check_tcp(&ip)?
    } else {
        check_udp(&ip)?
    }
    let real = REALS.get(reply.real).ok_or(Outcome::BadTable)?;
    check_addressee(ctx, ethernet, real)?;
    let flow = NatFlow {
        client: ip.header.destination,
        real: ip.header.source,
        client_port: ports.destination,
        real_port: ports.source,
        protocol: ip.header.protocol.into(),
    };
    if is_tcp && tcp_flags(&ip) & (SYN | ACK) == SYN {
        // It begins a connection of its own.
        remember(&flow, Face::default());
        return Err(Outcome::NotOurs);
    }
    // SAFETY: any integers make a Face, and the copy does not outlive the element's memory. Should the kernel give
    // the element to another flow in this very moment, one packet has the other's face.
    let face = match unsafe { NAT_FLOWS.get(flow) }.copied() {
        Some(face) if face.address == 0 => return Err(Outcome::NotOurs),
        Some(face) => Some(face),
        None if is_tcp && real.port != 0 => (reply.face.address != 0).then_some(reply.face),
        None => return Err(Outcome::NotOurs),
    };
    let from = face.unwrap_or(Face { address: ip.header.source, port: ports.source, _pad: 0 });
    let way = way(ctx, &ip, from)?;
    if face.is_none() {
        return Err(Outcome::UnknownNatFlow);
    }
    let own = real.source.to_v4().ok_or(Outcome::BadTable)?;
    if ip.header.ttl <= 1 {
        return Err(refusal::time_exceeded(ctx, ethernet, &ip, own));
    }
    let hop = match way {
        Way::Open(hop) => hop,
        Way::Narrow(mtu) => return Err(refusal::too_big(ctx, ethernet, &ip, mtu, own)),
    };
    veth::complete_checksum::<Ipv4>(ctx);
    let header = Ipv4Header { source: from.address, ..ip.header };
    translate(frame, &ip, header, ports, Ports { source: from.port, ..ports })
        .ok_or(Outcome::TruncatedHeader)?;
    send(ctx, frame, ethernet, hop)
}

/// Not what a switch floods: another director would send it on too.
#[inline(always)]
fn check_addressee(ctx: &XdpContext, ethernet: Ethernet, real: &Real) -> Result<(), Outcome> {
    let is_ours =
        real.ifindex != ctx.ingress_ifindex() as u32 || ethernet.destination.is(Mac::from(real.source_mac));
    if is_ours { Ok(()) } else { Err(Outcome::OtherHost) }
}

#[inline(always)]
fn send(ctx: &XdpContext, frame: Packet, ethernet: Ethernet, hop: LastHop) -> Result<Outcome, Outcome> {
    let macs = Ethernet { destination: hop.destination.into(), source: hop.source.into(), ..ethernet };
    frame.write(0, macs).ok_or(Outcome::TruncatedHeader)?;
    if hop.ifindex == ctx.ingress_ifindex() as u32 {
        return Ok(Outcome::NatReply);
    }
    // SAFETY: a helper on plain integers; with flags 0 it cannot fail.
    unsafe { bpf_redirect(hop.ifindex, 0) };
    Ok(Outcome::NatReplyRedirected)
}

#[inline(always)]
fn of_real(address: u32, port: u16, protocol: u8) -> Option<Reply> {
    let key = ServiceKey { address, port, protocol, family: ServiceKey::V4 };
    // SAFETY: any integers make a Reply, and the copy does not outlive the element's memory.
    match unsafe { REPLIES.get(key) } {
        // SAFETY: as above.
        None if Table::live().get().has_all_ports => unsafe { REPLIES.get(ServiceKey { port: 0, ..key }) },
        found => found,
    }
    .copied()
}

/// Where an answer goes.
enum Way {
    Open(LastHop),
    /// The largest packet that fits.
    Narrow(u16),
}

/// By the kernel's routes, as any packet from `from`. The kernel may know no neighbour: clients on the link learn this
/// node's MAC from our answers, so it never asked for theirs. Then the answer goes where the client's packets came
/// from, or waits until the kernel has asked.
#[inline(always)]
fn way(ctx: &XdpContext, ip: &Ipv4, from: Face) -> Result<Way, Outcome> {
    const AF_INET: u8 = 2;
    let client = ip.header.destination;
    const WORDS: usize = size_of::<FibParameters>() / size_of::<u32>();
    let mut fib = MaybeUninit::<FibParameters>::uninit();
    for word in 0..WORDS {
        // Not by one `zeroed`, which is compiled to a call. Its empty stack frame counts 32 bytes on Linux 6.1, too many.
        // SAFETY: inside the value, which is made of words.
        unsafe { fib.as_mut_ptr().cast::<u32>().add(word).write_volatile(0) };
    }
    // SAFETY: integers and unions of integers: all zero is a question.
    let fib = unsafe { fib.assume_init_mut() };
    fib.family = AF_INET;
    fib.l4_protocol = ip.header.protocol;
    fib.sport = from.port;
    fib.ifindex = ctx.ingress_ifindex() as u32;
    fib.__bindgen_anon_1.tot_len = ip.total_len();
    fib.__bindgen_anon_2.tos = ip.header.tos;
    fib.__bindgen_anon_3.ipv4_src = from.address;
    fib.__bindgen_anon_4.ipv4_dst = client;
    // SAFETY: the kernel reads and writes one question, which lives until it returns.
    let answer =
        unsafe { bpf_fib_lookup(ctx.ctx.cast(), &raw mut *fib, size_of::<FibParameters>() as i32, 0) };
    match answer as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => {
            Ok(Way::Open(LastHop { destination: fib.dmac, source: fib.smac, ifindex: fib.ifindex }))
        }
        BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            // SAFETY: the kernel has written this of the union.
            Ok(Way::Narrow(unsafe { fib.__bindgen_anon_1.mtu_result }))
        }
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            // SAFETY: any integers make a LastHop, and the copy does not outlive the element's memory.
            if let Some(hop) = unsafe { CLIENTS.get(client) } {
                return Ok(Way::Open(*hop));
            }
            // SAFETY: the kernel leaves the next hop here.
            want(Wanted { address: unsafe { fib.__bindgen_anon_4.ipv4_dst }, ifindex: fib.ifindex });
            Err(Outcome::NoNeighbour)
        }
        BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => {
            Err(Outcome::NoRoute)
        }
        BPF_FIB_LKUP_RET_FWD_DISABLED => Err(Outcome::NotForwarding),
        // To this node itself, or no route, which the kernel tells the sender.
        _ => Err(Outcome::NotOurs),
    }
}

/// A place that another neighbour has is simply taken: that one is asked for again with its next packet.
#[inline(always)]
fn want(wanted: Wanted) {
    let place = flow::mix(wanted.address.into()) & (WANTED_SLOTS - 1);
    if let Some(place) = WANTED.get_ptr_mut(place) {
        // SAFETY: an element of the map, written whole.
        unsafe { place.cast::<u64>().write_volatile(zerocopy::transmute!(wanted)) };
    }
}

/// A write costs far more than a look, and most packets change nothing.
#[inline(always)]
fn remember(flow: &NatFlow, face: Face) {
    // SAFETY: any integers make a Face, and the copy does not outlive the element's memory.
    if unsafe { NAT_FLOWS.get(flow) }.copied() != Some(face) {
        // Without room the oldest gives way; should even that fail, the next packet tries again.
        let _ = NAT_FLOWS.insert(flow, face, 0);
    }
}

#[inline(always)]
fn remember_hop(ctx: &XdpContext, client: u32, ethernet: Ethernet) {
    let hop = LastHop {
        destination: ethernet.source.into(),
        source: ethernet.destination.into(),
        ifindex: ctx.ingress_ifindex() as u32,
    };
    let words = |hop: LastHop| -> [u32; 4] { zerocopy::transmute!(hop) };
    // SAFETY: as above.
    let known = unsafe { CLIENTS.get(client) }.copied().map(words);
    let differs = known.is_none_or(|known| {
        let new = words(hop);
        (known[0] ^ new[0]) | (known[1] ^ new[1]) | (known[2] ^ new[2]) | (known[3] ^ new[3]) != 0
    });
    if differs {
        let _ = CLIENTS.insert(client, hop, 0);
    }
}

/// One hop further with other addresses and ports. Every checksum follows by the difference (RFC 1624), so what was
/// wrong stays wrong.
#[inline(always)]
fn translate(frame: Packet, ip: &Ipv4, header: Ipv4Header, old: Ports, new: Ports) -> Option<()> {
    frame.write(Ethernet::LEN, one_hop_further(&ip.header, header))?;
    ip.payload.write(0, new)?;
    let offset = if header.protocol == TCP { 16 } else { 6 };
    let checksum: u16 = ip.payload.read(offset)?;
    // RFC 768: none was computed.
    if header.protocol == UDP && checksum == 0 {
        return Some(());
    }
    let words =
        |header: &Ipv4Header, ports: Ports| [header.source, header.destination, zerocopy::transmute!(ports)];
    let changed = checksum::exchange(checksum, words(&ip.header, old), words(&header, new));
    // RFC 768: a sum that comes out as "none" is sent as its other zero.
    let changed = if header.protocol == UDP && changed == 0 { !0 } else { changed };
    ip.payload.write(offset, changed)
}

#[inline(always)]
fn one_hop_further(old: &Ipv4Header, new: Ipv4Header) -> Ipv4Header {
    let ttl = new.ttl.wrapping_sub(1);
    let word = |ttl| u16::from_ne_bytes([ttl, new.protocol]);
    let checksum = checksum::update(new.checksum, word(new.ttl), word(ttl));
    let new = Ipv4Header { ttl, checksum, ..new };
    Ipv4Header { checksum: readdressed(old, &new), ..new }
}

/// The checksum of a header that has other addresses now.
#[inline(always)]
fn readdressed(old: &Ipv4Header, new: &Ipv4Header) -> u16 {
    checksum::exchange(new.checksum, [old.source, old.destination], [new.source, new.destination])
}

/// The same for an ICMP error, with other addresses and ports in what it quotes too. The quoted TCP or UDP checksum
/// stays: there may be no room for it in the quote, and nobody computes it over one.
#[inline(always)]
fn translate_error(
    frame: Packet,
    ip: &Ipv4,
    header: Ipv4Header,
    about: &About,
    inner: Ipv4Header,
    ports: Ports,
) -> Option<()> {
    /// Of the ICMP message.
    const CHECKSUM: usize = 2;
    let checksum: u16 = ip.payload.read(CHECKSUM)?;
    let quoted = Ipv4Header { checksum: readdressed(&about.header, &inner), ..inner };
    let words = |header: &Ipv4Header, ports: Ports| {
        [header.source, header.destination, header.checksum.into(), zerocopy::transmute!(ports)]
    };
    let changed = checksum::exchange(checksum, words(&about.header, about.ports), words(&quoted, ports));
    frame.write(Ethernet::LEN, one_hop_further(&ip.header, header))?;
    ip.payload.write(CHECKSUM, changed)?;
    ip.payload.write(About::AT, quoted)?;
    ip.payload.skip(about.ports_at).write(0, ports)
}
