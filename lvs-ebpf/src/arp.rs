//! Who answers an ARP request for a virtual address: this node under its lease, and otherwise nobody here. And does
//! anybody else claim one?

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::{Address, Outcome};
use network_types::eth::EtherType;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    claim,
    packet::Packet,
    parse::{Ethernet, Mac},
    vip,
};

/// RFC 826, for Ethernet and IPv4. Addresses in two-byte words: the sender's is not aligned to four.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
struct Arp {
    hardware: u16,
    protocol: u16,
    lengths: [u8; 2],
    operation: u16,
    sender_mac: Mac,
    sender: [u16; 2],
    target_mac: Mac,
    target: [u16; 2],
}

const ETHERNET: u16 = 1_u16.to_be();
/// IEEE 802: Linux takes it for Ethernet, so a kernel behind us would answer (RFC 1042).
const IEEE_802: u16 = 6_u16.to_be();
const REQUEST: u16 = 1_u16.to_be();
const REPLY: u16 = 2_u16.to_be();

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
    let arp: Arp = frame.read(Ethernet::LEN).ok_or(Outcome::TruncatedHeader)?;
    if !arp.is_ipv4() {
        return Err(Outcome::NotOurs);
    }
    let sender: u32 = zerocopy::transmute!(arp.sender);
    if let Some(vip) = vip::find(sender) {
        claim::heed(ctx, Address::v4(sender).octets(), vip, arp.sender_mac);
    }
    if !arp.is_question() {
        return Err(Outcome::NotOurs);
    }
    let target: u32 = zerocopy::transmute!(arp.target);
    let vip = vip::find(target).ok_or(Outcome::NotOurs)?;
    let on_its_interface = vip.ifindex == ctx.ingress_ifindex() as u32;
    if on_its_interface && !ethernet.destination.is_multicast() && !ethernet.destination.is(vip.mac.into()) {
        return Err(Outcome::OtherHost);
    }
    vip::check_lease(ctx, target, vip, Outcome::ArpWithoutLease)?;
    if !on_its_interface || !arp.sender_is_host() {
        return Err(Outcome::NotOurs);
    }
    let (ethernet, arp) = arp.reply(vip.answers.into());
    frame.write(Ethernet::LEN, arp).ok_or(Outcome::TruncatedHeader)?;
    frame.write(0, ethernet).ok_or(Outcome::TruncatedHeader)?;
    Ok(Outcome::ArpAnswered)
}

impl Arp {
    /// Any kind tells its receivers where its sender's address is (RFC 826), if they know it already.
    #[inline(always)]
    fn is_ipv4(&self) -> bool {
        (self.hardware == ETHERNET || self.hardware == IEEE_802)
            && self.protocol == EtherType::Ipv4 as u16
            && self.lengths[0] == 6
            && self.lengths[1] == 4
            && (self.operation == REQUEST || self.operation == REPLY)
    }

    /// A request that wants an answer. One that asks for its own sender's address announces it
    /// (RFC 5227 2.3): the kernel shall learn of it. A probe (RFC 5227 1.1), from 0.0.0.0, does want one.
    #[inline(always)]
    fn is_question(&self) -> bool {
        self.is_ipv4()
            && self.operation == REQUEST
            && (self.sender[0] != self.target[0] || self.sender[1] != self.target[1])
    }

    #[inline(always)]
    fn sender_is_host(&self) -> bool {
        !self.sender_mac.is_multicast() && !self.sender_mac.is_zero()
    }

    /// RFC 826: fields swapped, sent to the sender, whatever the frame around the request said.
    #[inline(always)]
    fn reply(self, mac: Mac) -> (Ethernet, Self) {
        let ethernet =
            Ethernet { destination: self.sender_mac, source: mac, ether_type: EtherType::Arp as u16 };
        let arp = Self {
            hardware: ETHERNET,
            operation: REPLY,
            sender_mac: mac,
            sender: self.target,
            target_mac: self.sender_mac,
            target: self.sender,
            ..self
        };
        (ethernet, arp)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::transmute;

    use super::*;

    /// 10.0.0.7 at 02:00:00:00:00:07 asks for 10.0.0.100.
    const REQUEST: [u8; 28] = [
        0, 1, 8, 0, 6, 4, 0, 1, //
        2, 0, 0, 0, 0, 7, 10, 0, 0, 7, //
        0, 0, 0, 0, 0, 0, 10, 0, 0, 100,
    ];

    #[test]
    fn a_reply_carries_the_virtual_address_and_its_mac_as_sender() {
        let request: Arp = transmute!(REQUEST);
        assert!(request.is_question());
        let (ethernet, arp) = request.reply(Mac::from([2, 0, 0, 0, 0, 100]));
        let ethernet: [u8; 14] = transmute!(ethernet);
        assert_eq!(ethernet, [2, 0, 0, 0, 0, 7, 2, 0, 0, 0, 0, 100, 8, 6]);
        let arp: [u8; 28] = transmute!(arp);
        assert_eq!(
            arp,
            [
                0, 1, 8, 0, 6, 4, 0, 2, //
                2, 0, 0, 0, 0, 100, 10, 0, 0, 100, //
                2, 0, 0, 0, 0, 7, 10, 0, 0, 7
            ]
        );
    }

    #[test]
    fn only_an_ethernet_ipv4_request_is_a_question() {
        for (at, value) in [(1, 7), (0, 1), (2, 0), (3, 6), (4, 8), (5, 16), (7, 2), (6, 1), (7, 0)] {
            let mut bytes = REQUEST;
            bytes[at] = value;
            let arp: Arp = transmute!(bytes);
            assert!(!arp.is_question(), "byte {at} = {value}");
        }
    }

    #[test]
    fn a_question_by_ieee_802_is_one_to_the_kernel_and_so_to_us() {
        let mut bytes = REQUEST;
        bytes[1] = 6;
        let arp: Arp = transmute!(bytes);
        assert!(arp.is_question());
    }

    #[test]
    fn an_announcement_is_no_question_but_a_probe_is() {
        let mut bytes = REQUEST;
        bytes[14..18].copy_from_slice(&[10, 0, 0, 100]);
        let arp: Arp = transmute!(bytes);
        assert!(!arp.is_question());
        bytes[14..18].copy_from_slice(&[0; 4]);
        let arp: Arp = transmute!(bytes);
        assert!(arp.is_question());
    }
}
