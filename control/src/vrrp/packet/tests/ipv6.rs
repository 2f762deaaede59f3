//! Adverts over IPv6, those of keepalived among them.

use std::net::Ipv6Addr;

use super::{
    golden::{MAC, frames},
    *,
};
use crate::announce::announcement;

/// As [`v3`], with the addresses of the captures.
pub fn v6(centiseconds: u64) -> Format {
    let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().into();
    Format {
        source: address("fe80::ff:fe00:1"),
        multicast: group(Family::V6),
        addresses: vec![address("fe80::77:100"), address("fd77::100")],
        ..v3(centiseconds)
    }
}

/// All but the flow label, which the kernel makes up for keepalived, and the hop limit of its unicast adverts.
#[track_caller]
fn assert_golden_v6(format: &Format, text: &str, unicast_hop_limit: u8) {
    let mut adverts = 0;
    for (kind, frame) in frames(text) {
        if kind == "NA" {
            assert_eq!(*frame, *announcement(format.addresses[0], MAC, false));
            continue;
        }
        let mut packet = frame[14..].to_vec();
        packet[1..4].fill(0);
        if !format.peers.is_empty() {
            assert_eq!(packet[7], unicast_hop_limit);
            packet[7] = 255;
        }
        let priority = if kind.ends_with(" prio 0") { 0 } else { 100 };
        assert_eq!(sent(format, priority, 1), packet, "{kind} encoded");
        let received = Received {
            advert: Advert { priority, interval: format.interval },
            checksum: Checksum::PseudoHeader,
            addresses_differ: false,
        };
        let peers = if format.peers.is_empty() { vec![] } else { vec![format.source] };
        let mirrored = Format { peers, ..format.clone() };
        assert_eq!(mirrored.accept(&Datagram::parse(&packet).unwrap()), Ok(received), "{kind} decoded");
        adverts += 1;
    }
    assert_eq!(adverts, 2);
}

#[test]
fn keepalived_v3_over_ipv6() {
    assert_golden_v6(&v6(50), include_str!("../../../../testdata/keepalived-2.2.7/v3_ipv6.hex"), 255);
    assert_golden_v6(&v6(50), include_str!("../../../../testdata/keepalived-2.4.3/v3_ipv6.hex"), 255);
    let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().into();
    let unicast = Format { source: address("fd77::1"), peers: vec![address("fd77::2")], ..v6(50) };
    assert_golden_v6(&unicast, include_str!("../../../../testdata/keepalived-2.2.7/v3_unicast_ipv6.hex"), 64);
}

#[test]
fn over_ipv6_a_checksum_without_pseudo_header_is_wrong() {
    let format = Format { checksum: Checksum::Message, ..v6(100) };
    let packet = sent(&format, 100, 1);
    assert!(matches!(v6(100).accept(&Datagram::parse(&packet).unwrap()), Err(Rejection::Checksum { .. })));
}

#[test]
fn an_advert_over_ipv6_that_came_through_a_router_is_refused() {
    let packet = sent(&v6(100), 100, 1);
    let routed = Datagram { ttl: 254, ..Datagram::parse(&packet).unwrap() };
    assert_eq!(v6(100).accept(&routed), Err(Rejection::Ttl { got: 254, least: 255, most: 255 }));
}

#[test]
fn over_ipv6_adverts_that_differ_are_told_apart_and_copies_are_not() {
    let number = |priority, vrid| {
        let format = Format { vrid: Vrid::new(vrid).unwrap(), ..v6(100) };
        Datagram::parse(&sent(&format, priority, 1)).unwrap().identification
    };
    assert_eq!(number(100, 51), number(100, 51));
    assert_ne!(number(100, 51), number(0, 51));
    assert_ne!(number(100, 51), number(100, 52));
}

#[test]
fn over_ipv6_a_packet_with_less_than_its_header_says_is_none() {
    let packet = sent(&v6(100), 100, 1);
    for length in 0..packet.len() {
        assert_eq!(Datagram::parse(&packet[..length]), None, "{length} bytes");
    }
    let padded = [&packet[..], &[0; 6]].concat();
    assert_eq!(Datagram::parse(&padded), Datagram::parse(&packet));
}
