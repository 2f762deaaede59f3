//! What happens to a packet, in order.

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::{
    Outcome, Real, Service,
    protocol::{TCP, UDP},
};
use network_types::{eth::EtherType, ip::IpProto};

use crate::{
    arp, flow_table, forward, icmp, icmp_error, icmpv6, interface,
    ip::Ip,
    ipv6::Ipv6,
    maps::REALS,
    packet::Packet,
    parse::{Ethernet, Ipv4, Ipv4Header, Ports, check_tcp, check_udp, tcp_flags},
    quic, schedule,
    service::Table,
    veth, vlan,
};

pub const ARP: u16 = EtherType::Arp as u16;
pub const IPV4: u16 = EtherType::Ipv4 as u16;
pub const IPV6: u16 = EtherType::Ipv6 as u16;
const ICMP: u8 = IpProto::Icmp as u8;
const ICMPV6: u8 = IpProto::Ipv6Icmp as u8;

/// `Ok` says what was done with the packet, `Err` why it is not forwarded. What the kernel gets is as it was found, but for a tag
/// of no network.
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
    let mut frame = if TAGGED { Packet::of_context(ctx) } else { Packet::new(ctx) };
    let mut ethernet: Ethernet = frame.read(0).ok_or(Outcome::TruncatedHeader)?;
    if !TAGGED && matches!(ethernet.ether_type, vlan::CUSTOMER | vlan::SERVICE) {
        vlan::take_off_priority(ctx);
        frame = Packet::of_context(ctx);
        ethernet = frame.read(0).ok_or(Outcome::TruncatedHeader)?;
    }
    match ethernet.ether_type {
        ARP => Ok(arp::answer(ctx)),
        IPV4 => {
            let table = Table::live();
            let destination = frame.read(Ipv4Header::DESTINATION).ok_or(Outcome::TruncatedHeader)?;
            // Besides what is for others, VRRP and the like. A unicast address in a broadcast frame is a trick, not a client
            // (RFC 1122 3.3.6).
            if !table.get().addresses.may_have(destination) || ethernet.destination.is_multicast() {
                return Err(Outcome::NotOurs);
            }
            let ip = Ipv4::parse(frame)?;
            let real = match ip.header.protocol {
                TCP | UDP if TAGGED => balance(ctx, table, &ip, NO_NAT)?,
                TCP | UDP => balance(ctx, table, &ip, Some(forward::nat::reply))?,
                // The stack has no room for it below that of a tagged frame.
                ICMP if !TAGGED && icmp::is_error(&ip) => {
                    follow(ctx, table, icmp_error::destination(ctx), forward::nat::error_from_real)?
                }
                ICMP => return Ok(icmp::answer(ctx)),
                _ => return Err(Outcome::NotOurs),
            };
            // By its tags a frame belongs to the network that it came from.
            if TAGGED && !forward::stays(ctx, real.1) {
                return Err(Outcome::NotOurs);
            }
            forward::to_real::<TAGGED>(ctx, frame, real)
        }
        IPV6 if !TAGGED => {
            let found = match balance_v6(ctx) {
                Found::OTHER => follow_v6(ctx),
                found => found,
            };
            Ok(match found.elsewhere() {
                Some(real) => forward::to_real_elsewhere6(ctx, real),
                None => found.outcome().unwrap_or_else(|| icmpv6::answer(ctx)),
            })
        }
        // Not on veth devices, whose checksums would have to be computed here too: the verifier would walk that loop twice.
        vlan::CUSTOMER | vlan::SERVICE if !TAGGED && !veth::is_any() => Ok(vlan::run(ctx)),
        _ => Err(Outcome::NotOurs),
    }
}

// IPv6 has functions of its own, so that IPv4 does not pay for it; one for each kind of packet and none calling another,
// since there is little room on the stack for functions that call each other.

/// What such a function has come to, as one word: BPF functions return no more.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Found(u64);

impl Found {
    /// The packet is of another kind.
    const OTHER: Self = Self(1 << 32);
    /// With the index of a real server below.
    const ELSEWHERE: u64 = 1 << 33;

    #[inline(always)]
    fn of(outcome: Outcome) -> Self {
        Self(outcome as u64)
    }

    /// It is for a real server that is not reached by direct routing.
    #[inline(always)]
    fn at(index: u32) -> Self {
        Self(Self::ELSEWHERE | u64::from(index))
    }

    #[inline(always)]
    fn elsewhere(self) -> Option<u32> {
        (self.0 & Self::ELSEWHERE != 0).then_some(self.0 as u32)
    }

    #[inline(always)]
    fn outcome(self) -> Option<Outcome> {
        // SAFETY: a word without the upper bits was made of an outcome.
        (self.0 >> 32 == 0).then(|| unsafe { core::mem::transmute::<u32, Outcome>(self.0 as u32) })
    }
}

/// All but ICMPv6.
#[inline(never)]
fn balance_v6(ctx: &XdpContext) -> Found {
    let balanced = open_v6(ctx, |frame, ethernet, ip| {
        let real = match ip.protocol {
            ICMPV6 => return Ok(Found::OTHER),
            _ if ethernet.destination.is_multicast() => return Err(Outcome::NotOurs),
            TCP | UDP => balance(ctx, Table::live(), ip, NO_NAT)?,
            // It names the first header behind it, which may be one of options (RFC 8200 4.5).
            _ if !ip.is_first_fragment() => balance(ctx, Table::live(), ip, NO_NAT)?,
            _ => return Err(Outcome::NotOurs),
        };
        if forward::is_elsewhere(ctx, real.1) {
            return Ok(Found::at(real.0));
        }
        forward::to_real6(ctx, frame, real, true).map(Found::of)
    });
    balanced.unwrap_or_else(Found::of)
}

/// An error, to the real server of the flow that it is about.
#[inline(never)]
fn follow_v6(ctx: &XdpContext) -> Found {
    let followed = open_v6(ctx, |frame, _, ip| {
        // The kernel's, if anybody's: discovery is never in pieces (RFC 6980).
        if ip.is_fragment() {
            return Err(Outcome::NotOurs);
        }
        if !icmpv6::is_error(ip) {
            return Ok(Found::OTHER);
        }
        let real = follow(ctx, Table::live(), icmp_error::destination6(ctx), |_| Outcome::NotOurs)?;
        if forward::is_elsewhere(ctx, real.1) {
            return Ok(Found::at(real.0));
        }
        forward::to_real6(ctx, frame, real, false).map(Found::of)
    });
    followed.unwrap_or_else(Found::of)
}

#[inline(always)]
fn open_v6<T>(
    ctx: &XdpContext,
    then: impl FnOnce(Packet, Ethernet, &Ipv6) -> Result<T, Outcome>,
) -> Result<T, Outcome> {
    let frame = Packet::of_context(ctx);
    let ethernet: Ethernet = frame.read(0).ok_or(Outcome::TruncatedHeader)?;
    then(frame, ethernet, &Ipv6::parse(frame)?)
}

/// There is none for IPv6, nor between VLANs.
const NO_NAT: Option<fn(&XdpContext) -> Outcome> = None;

/// A real server and its place in `REALS`.
type Destination = (u32, &'static Real);

/// `of_real`: what becomes of a packet for no service that may be from a real server by NAT.
#[inline(always)]
fn balance<I: Ip>(
    ctx: &XdpContext,
    table: Table,
    ip: &I,
    of_real: Option<impl FnOnce(&XdpContext) -> Outcome>,
) -> Result<Destination, Outcome> {
    if !ip.is_first_fragment() {
        // What stands where the ports would is data.
        let index = I::destination_of_fragment(ctx);
        return match REALS.get(index) {
            Some(real) => Ok((index, real)),
            None if ip.vip().is_some() => Err(Outcome::StrayFragment),
            None => Err(Outcome::NotOurs),
        };
    }
    let found = Ports::parse(ip).and_then(|ports| Some((ports, ip.service(table, ports.destination)?)));
    let Some((ports, service)) = found else {
        return Err(match without_service(ip) {
            Outcome::NotOurs if table.get().translates => {
                of_real.map_or(Outcome::NotOurs, |of_real| of_real(ctx))
            }
            outcome => outcome,
        });
    };
    let named = if ip.protocol() == TCP {
        check_tcp(ip)?;
        quic::NONE
    } else {
        check_udp(ip)?;
        quic::named(service, ip)
    };
    // It would take a turn, and leave a trace.
    if service.takes_turns != Service::NO_TURNS && !interface::is_addressed(ctx) {
        return Err(Outcome::OtherHost);
    }
    let packet = || match ip.protocol() {
        TCP => flow_table::Packet::tcp(tcp_flags(ip)),
        _ => flow_table::Packet::Udp,
    };
    let (index, real) = match schedule::pick(service, ip.flow(service, ports), packet, named) {
        Err(Outcome::ConnectionReset) => return Err(I::reset(ctx)),
        picked => picked?,
    };
    if ip.is_fragment() {
        I::remember_fragment(ctx, index);
    }
    Ok((index, real))
}

/// Whom an ICMP error is for; `index` is where the flow goes that it is about.
#[inline(always)]
fn follow(
    ctx: &XdpContext,
    table: Table,
    index: u32,
    of_real: impl FnOnce(&XdpContext) -> Outcome,
) -> Result<Destination, Outcome> {
    match REALS.get(index) {
        Some(real) => Ok((index, real)),
        None if table.get().translates => Err(of_real(ctx)),
        None => Err(Outcome::NotOurs),
    }
}

/// A packet whose ports were not seen may still belong to a service: its address tells. A service on an
/// address of no VRRP instance is not known by it; there the kernel gets such a packet and cannot use it either.
#[inline(always)]
fn without_service(ip: &impl Ip) -> Outcome {
    let outcome = if ip.payload_len() >= size_of::<Ports>() {
        return Outcome::NotOurs;
    } else if ip.protocol() == TCP {
        Outcome::TruncatedTcp
    } else {
        Outcome::TruncatedUdp
    };
    if ip.vip().is_some() { outcome } else { Outcome::NotOurs }
}
