//! What happens to a packet, in order.

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::{Outcome, Real, flow::Flow};
use network_types::{eth::EtherType, ip::IpProto};

use crate::{
    arp, flow_table, forward, fragment, icmp, icmp_error, ipv6,
    maps::REALS,
    packet::Packet,
    parse::{Ethernet, Ipv4, Ports, check_tcp, check_udp, tcp_flags},
    reset, schedule, service, veth, vip, vlan,
};

pub const ARP: u16 = EtherType::Arp as u16;
pub const IPV4: u16 = EtherType::Ipv4 as u16;
pub const IPV6: u16 = EtherType::Ipv6 as u16;
const ICMP: u8 = IpProto::Icmp as u8;
const TCP: u8 = IpProto::Tcp as u8;
const UDP: u8 = IpProto::Udp as u8;

/// `Ok` says what was done with the packet, `Err` why it is not forwarded. What the kernel gets is as it was found.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> Result<Outcome, Outcome> {
    run_with::<false>(ctx)
}

/// The same for a frame whose VLAN tags are taken off, but IPv6. A function of its own, so that frames without tags do not pay
/// for it.
#[inline(never)]
pub fn run_tagged(ctx: &XdpContext) -> Outcome {
    let (Ok(outcome) | Err(outcome)) = run_with::<true>(ctx);
    outcome
}

#[inline(always)]
fn run_with<const TAGGED: bool>(ctx: &XdpContext) -> Result<Outcome, Outcome> {
    let frame = if TAGGED { Packet::of_context(ctx) } else { Packet::new(ctx) };
    let ethernet: Ethernet = frame.read(0).ok_or(Outcome::TruncatedHeader)?;
    match ethernet.ether_type {
        ARP => arp::answer(ctx, frame, ethernet),
        // VRRP and the like. A unicast address in a broadcast frame is a trick, not a client (RFC 1122 3.3.6).
        IPV4 if ethernet.destination.is_multicast() => Err(Outcome::NotOurs),
        IPV4 => {
            let ip = Ipv4::parse(frame)?;
            let (index, real) = match ip.header.protocol {
                TCP | UDP => balance::<TAGGED>(ctx, &ip)?,
                // The stack has no room for it below that of a tagged frame.
                ICMP if !TAGGED && icmp::is_error(&ip) => follow(ctx)?,
                ICMP => return icmp::answer(ctx, frame, ethernet, &ip),
                _ => return Err(Outcome::NotOurs),
            };
            // By its tags a frame belongs to the network that it came from.
            if TAGGED && !forward::stays(ctx, real) {
                return Err(Outcome::NotOurs);
            }
            forward::to_real(ctx, frame, ethernet, index, real)
        }
        IPV6 if !TAGGED => Ok(ipv6::run(ctx)),
        // Not on veth devices, whose checksums would have to be computed here too: the verifier would walk that loop twice.
        vlan::CUSTOMER | vlan::SERVICE if !TAGGED && !veth::is_any() => Ok(vlan::run(ctx)),
        _ => Err(Outcome::NotOurs),
    }
}

/// A real server and its place in `REALS`.
type Destination = (u32, &'static Real);

#[inline(always)]
fn balance<const TAGGED: bool>(ctx: &XdpContext, ip: &Ipv4) -> Result<Destination, Outcome> {
    if !ip.is_first_fragment() {
        // What stands where the ports would is data.
        let index = fragment::destination(ctx);
        return match REALS.get(index) {
            Some(real) => Ok((index, real)),
            None if vip::find(ip.header.destination).is_some() => Err(Outcome::StrayFragment),
            None => Err(Outcome::NotOurs),
        };
    }
    let found = Ports::parse(ip).and_then(|ports| {
        Some((ports, service::find(ip.header.destination, ports.destination, ip.header.protocol)?))
    });
    let Some((ports, service)) = found else {
        return Err(match without_service(ip) {
            Outcome::NotOurs if !TAGGED && service::any_translates() => forward::nat::reply(ctx),
            outcome => outcome,
        });
    };
    if ip.header.protocol == TCP {
        check_tcp(ip)?
    } else {
        check_udp(ip)?
    }
    let flow = Flow {
        source: ip.header.source,
        destination: ip.header.destination,
        source_port: ports.source,
        destination_port: ports.destination,
    };
    let packet = || match ip.header.protocol {
        TCP => flow_table::Packet::tcp(tcp_flags(ip)),
        _ => flow_table::Packet::Udp,
    };
    let (index, real) = match schedule::pick(service, flow, packet) {
        Err(Outcome::ConnectionReset) => return Err(reset::answer(ctx)),
        picked => picked?,
    };
    if ip.is_fragment() {
        fragment::remember(ctx, index);
    }
    Ok((index, real))
}

#[inline(always)]
fn follow(ctx: &XdpContext) -> Result<Destination, Outcome> {
    let index = icmp_error::destination(ctx);
    match REALS.get(index) {
        Some(real) => Ok((index, real)),
        None if service::any_translates() => Err(forward::nat::error_from_real(ctx)),
        None => Err(Outcome::NotOurs),
    }
}

/// A packet whose ports were not seen may still belong to a service: its address tells. A service on an
/// address of no VRRP instance is not known by it; there the kernel gets such a packet and cannot use it either.
#[inline(always)]
fn without_service(ip: &Ipv4) -> Outcome {
    let outcome = if ip.payload_len >= size_of::<Ports>() {
        return Outcome::NotOurs;
    } else if ip.header.protocol == TCP {
        Outcome::TruncatedTcp
    } else {
        Outcome::TruncatedUdp
    };
    if vip::find(ip.header.destination).is_some() { outcome } else { Outcome::NotOurs }
}
