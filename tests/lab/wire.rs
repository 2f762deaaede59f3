//! What do captured ARP and VRRP frames say? Read here apart from `lvsd`'s own code, which is under test.

use std::net::Ipv4Addr;

use etherparse::{NetSlice, SlicedPacket};

use crate::{Mac, Stamp};

/// VRRP's IP protocol number (RFC 9568 5.1.1.4).
const VRRP: u8 = 112;

/// A VRRP advertisement.
#[derive(Clone, Debug, PartialEq)]
pub struct Advert {
    pub at: Stamp,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub version: u8,
    pub vrid: u8,
    pub priority: u8,
}

impl Advert {
    pub(crate) fn read(at: Stamp, frame: &[u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(NetSlice::Ipv4(ip)) = packet.net else { return None };
        if ip.payload_ip_number().0 != VRRP {
            return None;
        }
        let &[version_and_type, vrid, priority, ..] = ip.payload().payload else { return None };
        Some(Self {
            at,
            source: ip.header().source_addr(),
            destination: ip.header().destination_addr(),
            version: version_and_type >> 4,
            vrid,
            priority,
        })
    }
}

/// An ARP request or reply for IPv4 over Ethernet.
#[derive(Clone, Debug, PartialEq)]
pub struct Arp {
    pub at: Stamp,
    pub is_reply: bool,
    pub sender: (Mac, Ipv4Addr),
    pub target: (Mac, Ipv4Addr),
}

impl Arp {
    pub(crate) fn read(at: Stamp, frame: &[u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(NetSlice::Arp(arp)) = packet.net else { return None };
        let arp = arp.to_packet().try_eth_ipv4().ok()?;
        Some(Self {
            at,
            is_reply: arp.operation == etherparse::ArpOperation::REPLY,
            sender: (Mac(arp.sender_mac), arp.sender_ipv4.into()),
            target: (Mac(arp.target_mac), arp.target_ipv4.into()),
        })
    }

    /// Announces its sender's address to everybody (RFC 5944 4.6).
    pub fn is_gratuitous(&self) -> bool {
        self.sender.1 == self.target.1
    }
}

/// Who had a turn, in order: `A A B B B A` is `A B A`.
pub fn turns<T: PartialEq>(all: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut turns: Vec<T> = all.into_iter().collect();
    turns.dedup();
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn an_advert_of_keepalived_is_read() {
        // Captured from keepalived 2.2.7: VRRPv3, vrid 51, priority 100, 10.77.0.1, one address.
        let frame = bytes(
            "01005e00001202000000000108004\
             5c0002000010000ff70d0470a4d0001e000001231336401006446b90a4d0064",
        );
        let advert = Advert::read(Stamp::now(), &frame).unwrap();
        assert_eq!((advert.version, advert.vrid, advert.priority), (3, 51, 100));
        assert_eq!(advert.source, Ipv4Addr::new(10, 77, 0, 1));
        assert_eq!(Arp::read(Stamp::now(), &frame), None);
    }

    #[test]
    fn a_gratuitous_arp_is_told_from_a_question() {
        let frame =
            bytes("ffffffffffff020000000001080600010800060400010200000000010a4d0064ffffffffffff0a4d0064");
        let arp = Arp::read(Stamp::now(), &frame).unwrap();
        assert!(arp.is_gratuitous() && !arp.is_reply);
        let mut question = frame;
        *question.last_mut().unwrap() = 0x65;
        assert!(!Arp::read(Stamp::now(), &question).unwrap().is_gratuitous());
    }

    #[test]
    fn turns_are_what_changed_hands() {
        assert_eq!(turns(["a", "a", "b", "b", "a"]), ["a", "b", "a"]);
    }
}
