//! What do captured ARP, neighbour discovery and VRRP frames say? Read here apart from `lvsd`'s own code, which is under test.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use crate::{Mac, Stamp};

/// VRRP's IP protocol number (RFC 9568 5.1.1.4).
const VRRP: u8 = 112;

/// A VRRP advertisement.
#[derive(Clone, Debug, PartialEq)]
pub struct Advert {
    pub at: Stamp,
    /// What the switch learns.
    pub mac: Mac,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub version: u8,
    pub vrid: u8,
    pub priority: u8,
    /// As it was on the wire.
    pub frame: Vec<u8>,
}

impl Advert {
    pub(crate) fn read(at: Stamp, frame: &[u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let mac = Mac(packet.link?.to_header()?.ethernet2()?.source);
        let (source, destination, payload): (IpAddr, IpAddr, _) = match packet.net? {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                (header.source_addr().into(), header.destination_addr().into(), ip.payload().clone())
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                (header.source_addr().into(), header.destination_addr().into(), ip.payload().clone())
            }
            NetSlice::Arp(_) => return None,
        };
        let &[version_and_type, vrid, priority, ..] = payload.payload else { return None };
        (payload.ip_number.0 == VRRP).then_some(Self {
            at,
            mac,
            source,
            destination,
            version: version_and_type >> 4,
            vrid,
            priority,
            frame: frame.to_vec(),
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

/// A neighbour advertisement that says where its target is (RFC 4861 4.4).
#[derive(Clone, Debug, PartialEq)]
pub struct Advertisement {
    pub at: Stamp,
    /// Somebody asked for it.
    pub is_solicited: bool,
    pub overrides: bool,
    pub target: Ipv6Addr,
    pub mac: Mac,
}

impl Advertisement {
    pub(crate) fn read(at: Stamp, frame: &[u8]) -> Option<Self> {
        const ADVERTISEMENT: u8 = 136;
        const TARGET_MAC: [u8; 2] = [2, 1];
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { return None };
        let message = icmp.slice();
        let (flags, target) = (*message.get(4)?, message.get(8..24)?);
        let (kind, mac) = message.get(24..32)?.split_first_chunk::<2>()?;
        (*message.first()? == ADVERTISEMENT && *kind == TARGET_MAC).then_some(Self {
            at,
            is_solicited: flags & 0x40 != 0,
            overrides: flags & 0x20 != 0,
            target: <[u8; 16]>::try_from(target).ok()?.into(),
            mac: Mac(mac.try_into().ok()?),
        })
    }
}

/// An advert of the master before that leaves so soon after its successor's first one was not yet told of it: both are
/// on their way at once, and a daemon has to be woken. Nobody comes back so fast, who would have to wait three intervals.
const CROSSING: Duration = Duration::from_millis(50);

/// Who was master, in order, by what was sent.
pub fn masters(adverts: &[Advert]) -> Vec<IpAddr> {
    let mut masters: Vec<IpAddr> = Vec::new();
    let mut since = None;
    for Advert { at, source, .. } in adverts.iter().filter(|advert| advert.priority > 0) {
        let crosses = masters.len().checked_sub(2).and_then(|before| masters.get(before)) == Some(source)
            && since.is_some_and(|since| *at < since + CROSSING);
        if masters.last() != Some(source) && !crosses {
            masters.push(*source);
            since = Some(*at);
        }
    }
    masters
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

    #[test]
    fn an_advert_that_crosses_another_is_no_turn_and_a_later_one_is() {
        let [a, b] = [1, 2].map(|host| IpAddr::from([10, 77, 0, host]));
        let start = Stamp::now();
        let advert = |millis, source| Advert {
            at: start + Duration::from_millis(millis),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            source,
            destination: source,
            version: 3,
            vrid: 51,
            priority: 100,
            frame: Vec::new(),
        };
        assert_eq!(masters(&[advert(0, a), advert(90, b), advert(100, a), advert(190, b)]), [a, b]);
        assert_eq!(masters(&[advert(0, a), advert(90, b), advert(150, a), advert(190, b)]), [a, b, a]);
        assert_eq!(masters(&[advert(0, a), advert(90, b), advert(390, a)]), [a, b, a]);
    }

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
    fn an_announcement_of_keepalived_over_ipv6_is_read() {
        // Captured from keepalived 2.2.7.
        let frame = bytes(
            "33330000000102000000000186dd6000000000203afffe800000000000000000000000770100ff02000000000000000000000000\
             0001880054af20000000fe8000000000000000000000007701000201020000000001",
        );
        let read = Advertisement::read(Stamp::now(), &frame).unwrap();
        assert!(read.overrides && !read.is_solicited);
        assert_eq!((read.target.to_string().as_str(), read.mac), ("fe80::77:100", Mac([2, 0, 0, 0, 0, 1])));
        assert_eq!(Advert::read(Stamp::now(), &frame), None);
    }

    #[test]
    fn turns_are_what_changed_hands() {
        assert_eq!(turns(["a", "a", "b", "b", "a"]), ["a", "b", "a"]);
    }
}
