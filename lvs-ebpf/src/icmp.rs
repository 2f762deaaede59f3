//! Who answers a ping to a virtual address: this node under its lease, and otherwise nobody here.

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::{Outcome, Vip};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    checksum,
    ip::Ip as _,
    packet::Packet,
    parse::{Ethernet, Ipv4, Ipv4Header, TTL},
    vip,
};

/// RFC 792 and RFC 4443 2.1, as far as an answer changes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    pub checksum: u16,
}

const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const ECHO_REQUEST: u8 = 8;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;
/// Both kinds of echo have an identifier and a sequence number.
pub const ECHO_HEADER: usize = 8;

/// An error about some packet, which it quotes.
#[inline(always)]
pub fn is_error(ip: &Ipv4) -> bool {
    let kind = ip.payload.read(0);
    matches!(kind, Some(UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)) && !ip.is_fragment()
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
    let ip = &Ipv4::parse(frame)?;
    if !ip.is_first_fragment() || ip.payload_len < ECHO_HEADER {
        return Err(Outcome::NotOurs);
    }
    let icmp: Icmp = ip.payload.read(0).ok_or(Outcome::NotOurs)?;
    if icmp.kind != ECHO_REQUEST {
        return Err(Outcome::NotOurs);
    }
    let address = ip.header.destination;
    let vip = vip::find(address).ok_or(Outcome::NotOurs)?;
    let on_its_interface = vip.ifindex == ctx.ingress_ifindex() as u32;
    if on_its_interface && !ethernet.destination.is(vip.mac.into()) {
        return Err(Outcome::OtherHost);
    }
    vip::check_lease(ctx, address, vip, Outcome::EchoWithoutLease)?;
    // RFC 9568 6.4.3: without Accept_Mode only neighbour discovery is answered.
    if vip.flags & Vip::NOT_ACCEPTED != 0 {
        return Err(Outcome::EchoNotAccepted);
    }
    // The rest of the master's kernel has the address too and answers what is not plain.
    if !on_its_interface || ip.is_fragment() || ip.has_options() || !asker_is_host(ethernet, &ip.header) {
        return Err(Outcome::NotOurs);
    }
    let reply = icmp.answered_by(ECHO_REPLY);
    frame.write(Ethernet::LEN + size_of::<Ipv4Header>(), reply).ok_or(Outcome::TruncatedHeader)?;
    frame.write(Ethernet::LEN, reply_header(ip.header)).ok_or(Outcome::TruncatedHeader)?;
    frame
        .write(0, Ethernet { destination: ethernet.source, source: vip.answers.into(), ..ethernet })
        .ok_or(Outcome::TruncatedHeader)?;
    Ok(Outcome::EchoAnswered)
}

/// RFC 1122 3.2.1.3: no answer to an address that is no single host's.
#[inline(always)]
pub fn asker_is_host(ethernet: Ethernet, header: &Ipv4Header) -> bool {
    let network = u32::from_be(header.source) >> 24;
    network != 0
        && network != 127
        && network < 224
        && header.source != header.destination
        && !ethernet.source.is_multicast()
}

impl Icmp {
    /// The sum of the identifier, sequence number and data does not change, so neither is looked at; nor does that of an
    /// IPv6 pseudo header, whose addresses are swapped.
    #[inline(always)]
    pub fn answered_by(self, kind: u8) -> Self {
        let word = |kind| u16::from_ne_bytes([kind, self.code]);
        let checksum = checksum::update(self.checksum, word(self.kind), word(kind));
        Self { kind, checksum, ..self }
    }
}

/// Swapping the addresses leaves the sum as it is; only the TTL counts.
#[inline(always)]
fn reply_header(mut header: Ipv4Header) -> Ipv4Header {
    let word = |ttl| u16::from_ne_bytes([ttl, header.protocol]);
    header.checksum = checksum::update(header.checksum, word(header.ttl), word(TTL));
    header.ttl = TTL;
    (header.source, header.destination) = (header.destination, header.source);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_keeps_a_bad_checksum_bad_by_as_much() {
        // Type 8, code 0, identifier 1, sequence 1: the sum is 0x0802, of the reply 0x0002.
        for error in [0, 1, 0x1234] {
            let request = Icmp { kind: 8, code: 0, checksum: (!0x0802_u16 - error).to_be() };
            let answer = Icmp { kind: 0, code: 0, checksum: (!0x0002_u16 - error).to_be() };
            assert_eq!(request.answered_by(ECHO_REPLY), answer, "{error}");
        }
    }
}
