//! Who answers a ping to a virtual IPv6 address: this node under its lease, and otherwise nobody here. Neighbour
//! discovery is ICMPv6 too.

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::{Outcome, Vip};
use network_types::ip::IpProto;

use crate::{
    icmp::{ECHO_HEADER, Icmp},
    ip::Ip as _,
    ipv6::{Header, Ipv6},
    ndp,
    packet::Packet,
    parse::{Ethernet, TTL},
    vip,
};

const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;

/// An error about some packet, which it quotes (RFC 4443 2.1).
#[inline(always)]
pub fn is_error(ip: &Ipv6) -> bool {
    const UNREACHABLE: u8 = 1;
    const PARAMETER_PROBLEM: u8 = 4;
    matches!(ip.payload.read(0), Some(UNREACHABLE..=PARAMETER_PROBLEM))
}

/// A function of its own, so that what is balanced does not pay for it.
#[inline(never)]
pub fn answer(ctx: &XdpContext) -> Outcome {
    let (Ok(outcome) | Err(outcome)) = try_answer(ctx);
    outcome
}

#[inline(always)]
fn try_answer(ctx: &XdpContext) -> Result<Outcome, Outcome> {
    let frame = Packet::of_context(ctx);
    let ethernet: Ethernet = frame.read(0).ok_or(Outcome::TruncatedHeader)?;
    let ip = &Ipv6::parse(frame)?;
    // Discovery is never in pieces (RFC 6980).
    if ip.protocol != IpProto::Ipv6Icmp as u8 || ip.is_fragment() {
        return Err(Outcome::NotOurs);
    }
    let icmp: Icmp = ip.payload.read(0).ok_or(Outcome::NotOurs)?;
    match icmp.kind {
        ndp::SOLICITATION | ndp::ADVERTISEMENT => {
            ndp::heed(ctx, ip);
            if icmp.kind == ndp::ADVERTISEMENT {
                return Err(Outcome::NotOurs);
            }
            ndp::answer(ctx, ethernet, ip)
        }
        ECHO_REQUEST if ip.payload_len >= ECHO_HEADER => echo(ctx, frame, ethernet, ip, icmp),
        _ => Err(Outcome::NotOurs),
    }
}

#[inline(always)]
fn echo(
    ctx: &XdpContext,
    frame: Packet,
    ethernet: Ethernet,
    ip: &Ipv6,
    icmp: Icmp,
) -> Result<Outcome, Outcome> {
    let address = ip.header.destination;
    let vip = vip::find_v6(address).ok_or(Outcome::NotOurs)?;
    let on_its_interface = vip.ifindex == ctx.ingress_ifindex() as u32;
    if on_its_interface && !ethernet.destination.is(vip.mac.into()) {
        return Err(Outcome::OtherHost);
    }
    vip::check_lease_v6(ctx, address, vip, Outcome::EchoWithoutLease)?;
    // RFC 9568 6.4.3: without Accept_Mode only neighbour discovery is answered.
    if vip.flags & Vip::NOT_ACCEPTED != 0 {
        return Err(Outcome::EchoNotAccepted);
    }
    // The master's kernel has the address too and answers what is not plain.
    if !on_its_interface || !ip.is_plain || !ip.header.source_is_host() || ethernet.source.is_multicast() {
        return Err(Outcome::NotOurs);
    }
    frame.write(Ethernet::LEN + Header::LEN, icmp.answered_by(ECHO_REPLY)).ok_or(Outcome::TruncatedHeader)?;
    let header = Header { source: address, destination: ip.header.source, hop_limit: TTL, ..ip.header };
    frame.write(Ethernet::LEN, header).ok_or(Outcome::TruncatedHeader)?;
    let ethernet = Ethernet { destination: ethernet.source, source: vip.answers.into(), ..ethernet };
    frame.write(0, ethernet).ok_or(Outcome::TruncatedHeader)?;
    Ok(Outcome::EchoAnswered)
}
