use std::net::Ipv4Addr;

use proptest::{collection, prelude::*};

use super::*;

mod golden;
mod ipv6;

const SOURCE: IpAddr = v4(1);
const PEER: IpAddr = v4(2);
const VIP: IpAddr = v4(100);
const GROUP: IpAddr = group(Family::V4);

const fn v4(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, host))
}

const fn v4_group(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(224, 0, 0, last))
}

fn v2() -> Format {
    Format {
        vrid: Vrid::new(51).unwrap(),
        version: Version::V2,
        interval: Duration::from_secs(1),
        authentication: Authentication::None,
        checksum: Checksum::Message,
        source: SOURCE,
        peers: Vec::new(),
        multicast: GROUP,
        ttl: 255,
        ttl_limits: vec![],
        addresses: vec![VIP],
    }
}

fn v3(centiseconds: u64) -> Format {
    Format {
        version: Version::V3,
        interval: Duration::from_millis(10 * centiseconds),
        checksum: Checksum::PseudoHeader,
        ..v2()
    }
}

fn sent(format: &Format, priority: u8, identification: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    format.encode(priority, *format.peers.first().unwrap_or(&format.multicast), identification, &mut bytes);
    bytes
}

/// The format as the node at the other end has it.
fn mirrored(format: &Format) -> Format {
    Format {
        source: PEER,
        peers: if format.peers.is_empty() { vec![] } else { vec![SOURCE] },
        ..format.clone()
    }
}

fn answer(format: &Format, bytes: &[u8]) -> Result<Received, Rejection> {
    mirrored(format).accept(&Datagram::parse(bytes).unwrap())
}

#[test]
fn another_multicast_group_is_refused() {
    let theirs = Format { multicast: v4_group(19), ..v2() };
    let refused = Rejection::Destination { destination: theirs.multicast };
    assert_eq!(answer(&v2(), &sent(&theirs, 100, 1)), Err(refused));
    assert!(answer(&theirs, &sent(&theirs, 100, 1)).is_ok());
}

#[test]
fn ethernet_padding_behind_the_ip_length_is_ignored() {
    let mut bytes = sent(&v3(100), 100, 1);
    bytes.extend([0; 14]);
    assert!(answer(&v3(100), &bytes).is_ok());
}

#[test]
fn bytes_behind_the_advert_are_refused() {
    let format = v3(100);
    let bytes = sent(&format, 100, 1);
    let datagram = Datagram::parse(&bytes).unwrap();
    let longer = [datagram.message, &[0; 28]].concat();
    let refused = format.accept(&Datagram { message: &longer, ..datagram });
    assert_eq!(refused, Err(Rejection::Length { expected: 12, got: 40 }));
}

#[test]
fn a_length_in_the_ip_header_beyond_what_came_is_refused() {
    let bytes = sent(&v2(), 100, 1);
    assert_eq!(Datagram::parse(&bytes[..bytes.len() - 1]), None);
}

#[test]
fn a_routed_multicast_advert_is_refused_and_a_routed_unicast_one_is_not() {
    for (peers, outcome) in
        [(vec![], Some(Rejection::Ttl { got: 254, least: 255, most: 255 })), (vec![PEER], None)]
    {
        let format = Format { peers, ..v2() };
        let mut bytes = sent(&format, 100, 1);
        bytes[8] = 254;
        assert_eq!(answer(&format, &bytes).err(), outcome);
    }
}

#[test]
fn a_unicast_advert_has_the_ttl_that_is_set_and_may_cross_as_many_routers_as_the_peer_is_away() {
    let format = Format { peers: vec![PEER], ttl: 64, ..v2() };
    assert_eq!(sent(&format, 100, 1)[8], 64);
    for (least, most, ttl, is_fine) in
        [(60, 62, 59, false), (60, 62, 60, true), (60, 62, 62, true), (60, 62, 63, false), (0, 255, 1, true)]
    {
        let limits = vec![TtlLimit { peer: SOURCE, least, most }];
        let mut bytes = sent(&format, 100, 1);
        bytes[8] = ttl;
        let receiver = Format { ttl_limits: limits, ..mirrored(&format) };
        let outcome = receiver.accept(&Datagram::parse(&bytes).unwrap());
        let refused = Rejection::Ttl { got: ttl, least, most };
        assert_eq!(outcome.err(), (!is_fine).then_some(refused), "{ttl} within {least} to {most}");
    }
}

#[test]
fn another_version_is_refused() {
    assert_eq!(answer(&v2(), &sent(&v3(100), 100, 1)), Err(Rejection::Version { expected: 2, got: 3 }));
    assert_eq!(answer(&v3(100), &sent(&v2(), 100, 1)), Err(Rejection::Version { expected: 3, got: 2 }));
}

#[test]
fn another_password_or_none_is_refused() {
    let ours = Format { authentication: Authentication::Pass(*b"right\0\0\0"), ..v2() };
    let wrong = Format { authentication: Authentication::Pass(*b"rigHt\0\0\0"), ..v2() };
    assert_eq!(answer(&ours, &sent(&wrong, 100, 1)), Err(Rejection::Password));
    let kind = |expected, got| Err(Rejection::AuthenticationType { expected, got });
    assert_eq!(answer(&ours, &sent(&v2(), 100, 1)), kind(1, 0));
    assert_eq!(answer(&v2(), &sent(&ours, 100, 1)), kind(0, 1));
}

#[test]
fn another_interval_is_refused_in_v2_and_learned_in_v3() {
    let slow = Format { interval: Duration::from_secs(2), ..v2() };
    let refused = Rejection::Interval { expected: Duration::from_secs(1), got: Duration::from_secs(2) };
    assert_eq!(answer(&v2(), &sent(&slow, 100, 1)), Err(refused));
    let learned = answer(&v3(100), &sent(&v3(30), 100, 1)).unwrap();
    assert_eq!(learned.advert.interval, Duration::from_millis(300));
}

#[test]
fn an_interval_of_zero_is_refused() {
    let refused = Rejection::Interval { expected: Duration::from_secs(1), got: Duration::ZERO };
    assert_eq!(answer(&v3(100), &sent(&v3(0), 100, 1)), Err(refused));
}

#[test]
fn another_type_is_refused() {
    let mut bytes = sent(&v2(), 100, 1);
    bytes[20] = 0x22;
    assert_eq!(answer(&v2(), &bytes), Err(Rejection::Type { got: 2 }));
}

#[test]
fn a_flipped_bit_is_refused() {
    for format in [v2(), v3(100)] {
        let mut bytes = sent(&format, 100, 1);
        bytes[22] ^= 1; // priority
        assert!(matches!(answer(&format, &bytes), Err(Rejection::Checksum { .. })));
    }
}

#[test]
fn a_pseudo_header_checksum_is_no_v2_checksum() {
    let format = Format { checksum: Checksum::PseudoHeader, ..v2() };
    assert!(matches!(answer(&v2(), &sent(&format, 100, 1)), Err(Rejection::Checksum { .. })));
}

/// It covers the multicast group, so that the message is as in an advert by multicast.
#[test]
fn the_checksum_of_old_keepalived_counts_between_unicast_peers_alone() {
    let unicast = |checksum| Format { peers: vec![PEER], checksum, ..v3(100) };
    let old = sent(&unicast(Checksum::OldUnicast), 100, 1);
    assert_eq!(old[20..], sent(&v3(100), 100, 1)[20..]);
    let taken = |format: &Format, bytes: &[u8]| answer(format, bytes).map(|received| received.checksum);
    assert_eq!(taken(&unicast(Checksum::PseudoHeader), &old), Ok(Checksum::OldUnicast));
    let new = sent(&unicast(Checksum::PseudoHeader), 100, 1);
    assert_eq!(taken(&unicast(Checksum::OldUnicast), &new), Ok(Checksum::PseudoHeader));
    let elsewhere = |checksum| Format { multicast: v4_group(19), checksum, ..v3(100) };
    let old = sent(&elsewhere(Checksum::OldUnicast), 100, 1);
    assert!(matches!(taken(&elsewhere(Checksum::PseudoHeader), &old), Err(Rejection::Checksum { .. })));
}

#[test]
fn unicast_and_multicast_do_not_mix() {
    let unicast = Format { peers: vec![PEER], ..v2() };
    assert_eq!(answer(&v2(), &sent(&unicast, 100, 1)), Err(Rejection::Destination { destination: PEER }));
    assert_eq!(answer(&unicast, &sent(&v2(), 100, 1)), Err(Rejection::Destination { destination: GROUP }));
}

#[test]
fn a_farewell_to_one_of_the_multicast_group_counts() {
    let unicast = Format { peers: vec![PEER], ..v2() };
    assert_eq!(answer(&v2(), &sent(&unicast, 0, 1)).unwrap().advert.priority, 0);
}

#[test]
fn a_stranger_is_no_unicast_peer() {
    let format = Format { peers: vec![PEER], ..v2() };
    let stranger = Format { source: v4(9), ..format.clone() };
    assert_eq!(answer(&format, &sent(&stranger, 100, 1)), Err(Rejection::UnknownPeer));
}

#[test]
fn other_addresses_are_accepted_and_said() {
    let second = v4(101);
    let differ = |ours: &[IpAddr], theirs: &[IpAddr]| {
        let format = |addresses: &[IpAddr]| Format { addresses: addresses.to_vec(), ..v2() };
        answer(&format(ours), &sent(&format(theirs), 100, 1)).unwrap().addresses_differ
    };
    assert!(differ(&[VIP], &[second]));
    assert!(differ(&[VIP], &[VIP, second]));
    assert!(differ(&[VIP, second], &[VIP, VIP]));
    assert!(!differ(&[VIP, second], &[second, VIP]), "the order means nothing");
}

#[test]
fn kinds_of_rejection_have_one_name_each() {
    let unique: std::collections::HashSet<_> = Rejection::KINDS.into_iter().collect();
    assert_eq!(unique.len(), Rejection::KINDS.len());
    assert_eq!(Rejection::Owner.kind(), Rejection::KINDS.len() - 1);
}

fn any_format() -> impl Strategy<Value = Format> {
    let addresses = collection::vec(any::<[u8; 4]>().prop_map(IpAddr::from), 0..=max_addresses(Family::V4));
    let password = prop_oneof![Just(Authentication::None), any::<[u8; 8]>().prop_map(Authentication::Pass)];
    (1..=255i64, any::<bool>(), 1..=255u64, 1..=4095u64, password, any::<bool>(), any::<bool>(), addresses)
        .prop_map(|(vrid, is_v2, seconds, centiseconds, authentication, pseudo, unicast, addresses)| Format {
            vrid: Vrid::new(vrid).unwrap(),
            peers: if unicast { vec![PEER] } else { vec![] },
            addresses,
            ..if is_v2 {
                Format { interval: Duration::from_secs(seconds), authentication, ..v2() }
            } else {
                let checksum = if pseudo { Checksum::PseudoHeader } else { Checksum::Message };
                Format { checksum, ..v3(centiseconds) }
            }
        })
}

proptest! {
    #[test]
    fn what_is_sent_is_what_a_peer_reads(format in any_format(), priority: u8, identification: u16) {
        let bytes = sent(&format, priority, identification);
        prop_assert!(bytes.len() <= MAX_DATAGRAM);
        prop_assert_eq!(Datagram::parse(&bytes).unwrap().vrid(), Some(format.vrid.get()));
        let received = answer(&format, &bytes).unwrap();
        prop_assert_eq!(received.advert, Advert { priority, interval: format.interval });
        prop_assert!(!received.addresses_differ);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(format in any_format(), bytes in collection::vec(any::<u8>(), 0..1200)) {
        let _ = Datagram::parse(&bytes).map(|datagram| format.accept(&datagram));
        let message = Datagram { source: SOURCE, destination: GROUP, identification: 0, ttl: 255, proof: Proof::None, message: &bytes };
        let _ = format.accept(&message);
        let _ = ipv6::v6(1).accept(&Datagram { destination: group(Family::V6), ..message });
    }

    #[test]
    fn a_damaged_advert_never_passes_as_another_one(
        format in any_format(), priority: u8, at: proptest::sample::Index, bit in 0..8u8,
    ) {
        let mut bytes = sent(&format, priority, 1);
        let at = 20 + at.index(bytes.len() - 20);
        bytes[at] ^= 1 << bit;
        prop_assert!(answer(&format, &bytes).is_err());
    }
}
