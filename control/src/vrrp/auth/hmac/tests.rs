use std::net::Ipv6Addr;

use super::*;
use crate::{
    config::model::{Authentication, Secret, SigningKey, Version, Vrid},
    vrrp::{
        auth::{Guard, Proof},
        packet::Checksum,
    },
};

const NOW: Duration = Duration::from_secs(1_795_000_000);
const SECOND: Duration = Duration::from_secs(1);

fn format(host: u8) -> Format {
    Format {
        vrid: Vrid::new(51).unwrap(),
        version: Version::V3,
        interval: SECOND,
        authentication: Authentication::None,
        checksum: Checksum::PseudoHeader,
        source: [10, 77, 0, host].into(),
        peers: vec![],
        multicast: [224, 0, 0, 18].into(),
        ttl: 255,
        ttl_limits: vec![],
        addresses: vec![[10, 77, 0, 100].into()],
    }
}

fn signing(ids: &[u8]) -> Signing {
    let key = |id: &u8| SigningKey { id: *id, secret: Secret::new(vec![*id; 32]) };
    Signing {
        keys: ids.iter().map(key).collect(),
        active: ids[0],
        window: Some(5 * SECOND),
        mode: SigningMode::Enforce,
    }
}

/// Keys 1 and 2, signs with 1.
fn guard() -> Guard {
    of(signing(&[1, 2]))
}

fn of(signing: Signing) -> Guard {
    Guard::new(&format(1), Some(&signing), Arc::default(), NOW)
}

fn sent_by(guard: &mut Guard, host: u8, wall: Duration) -> BytesMut {
    let mut packet = BytesMut::new();
    format(host).encode(100, packet::group(Family::V4), 1, &mut packet);
    guard.seal(&format(host), &mut packet, wall);
    packet
}

fn sent(guard: &mut Guard, wall: Duration) -> BytesMut {
    sent_by(guard, 1, wall)
}

fn check(guard: &mut Guard, packet: &[u8], wall: Duration) -> Result<(), Rejection> {
    let datagram = guard.open(Datagram::parse(packet).unwrap());
    format(2).accept(&datagram)?;
    guard.check(&format(2), &datagram, wall)
}

#[test]
fn a_signed_advert_counts_once() {
    let (mut sender, mut receiver) = (guard(), guard());
    let first = sent(&mut sender, NOW);
    let second = sent(&mut sender, NOW);
    assert_eq!(check(&mut receiver, &first, NOW), Ok(()));
    assert_eq!(check(&mut receiver, &first, NOW), Err(Rejection::Replay));
    assert_eq!(check(&mut receiver, &second, NOW), Ok(()), "the same time, and a number more");
    assert_eq!(check(&mut receiver, &first, NOW), Err(Rejection::Replay));
}

#[test]
fn an_advert_of_another_time_does_not_count() {
    for (apart, outcome) in [(0, Ok(())), (5, Ok(())), (6, Err(Rejection::Stale))] {
        let apart = apart * SECOND;
        let captured = sent(&mut guard(), NOW);
        assert_eq!(check(&mut guard(), &captured, NOW + apart), outcome, "{apart:?} late");
        let captured = sent(&mut guard(), NOW + apart);
        assert_eq!(check(&mut guard(), &captured, NOW), outcome, "{apart:?} early");
    }
}

#[test]
fn with_monotonic_numbers_the_time_does_not_matter_but_order_does() {
    let mut receiver = of(Signing { window: None, ..signing(&[1]) });
    let mut sender = guard();
    let (old, new) = (sent(&mut sender, NOW), sent(&mut sender, NOW + SECOND));
    assert_eq!(check(&mut receiver, &new, NOW + 1_000 * SECOND), Ok(()));
    assert_eq!(check(&mut receiver, &old, NOW), Err(Rejection::Replay));
}

#[test]
fn numbers_grow_when_the_clock_of_the_sender_is_set_back() {
    let mut sender = guard();
    let mut receiver = of(Signing { window: None, ..signing(&[1]) });
    for wall in [NOW, NOW - 100 * SECOND, NOW - SECOND, NOW + SECOND] {
        assert_eq!(check(&mut receiver, &sent(&mut sender, wall), NOW), Ok(()));
    }
}

#[test]
fn a_successor_after_a_reload_signs_on_though_the_clock_was_set_back() {
    let signing = Signing { window: None, ..signing(&[1]) };
    let numbers = Arc::<Numbers>::default();
    let guard = || Guard::new(&format(1), Some(&signing), numbers.clone(), NOW);
    let (mut before, mut after, mut receiver) = (guard(), guard(), of(signing.clone()));
    // The last one: the reload fails, and who was there before speaks on.
    for (sender, wall) in [(0, NOW), (1, NOW - 100 * SECOND), (0, NOW - 200 * SECOND)] {
        let sender = if sender == 0 { &mut before } else { &mut after };
        assert_eq!(check(&mut receiver, &sent(sender, wall), NOW), Ok(()));
    }
}

#[test]
fn a_successor_after_a_reload_knows_what_was_heard_before() {
    let signing = Signing { window: None, ..signing(&[1]) };
    let numbers = Arc::<Numbers>::default();
    let receiver = || Guard::new(&format(2), Some(&signing), numbers.clone(), NOW);
    let (mut sender, mut before) = (guard(), receiver());
    let adverts = [0, 1, 2].map(|second| sent(&mut sender, NOW + second * SECOND));
    check(&mut before, &adverts[0], NOW).unwrap();
    check(&mut before, &adverts[1], NOW).unwrap();
    let mut after = receiver();
    let heard = adverts.each_ref().map(|advert| check(&mut after, advert, NOW));
    assert_eq!(heard, [Err(Rejection::Replay), Err(Rejection::Replay), Ok(())]);
    assert_eq!(check(&mut before, &adverts[2], NOW), Ok(()));
}

#[test]
fn numbers_are_the_time_after_2038_too() {
    let late = Duration::from_secs(u64::from(u32::MAX) - 1_000);
    let sealed = sent(&mut guard(), late);
    assert_eq!(check(&mut guard(), &sealed, late), Ok(()));
}

#[test]
fn a_restarted_sender_whose_clock_was_set_back_is_heard_once_its_old_numbers_are_stale() {
    let mut receiver = guard();
    check(&mut receiver, &sent(&mut guard(), NOW), NOW).unwrap();
    // Both clocks were set back.
    let back = NOW - 100 * SECOND;
    assert_eq!(check(&mut receiver, &sent(&mut guard(), back), back), Ok(()));
}

#[test]
fn every_sender_has_numbers_of_its_own() {
    let mut receiver = guard();
    assert_eq!(check(&mut receiver, &sent_by(&mut guard(), 3, NOW + SECOND), NOW), Ok(()));
    assert_eq!(check(&mut receiver, &sent_by(&mut guard(), 4, NOW), NOW), Ok(()));
}

#[test]
fn any_changed_byte_of_an_advert_is_noticed() {
    let packet = sent(&mut guard(), NOW);
    for at in packet::IPV4_HEADER..packet.len() {
        let mut changed = packet.clone();
        changed[at] ^= 1;
        assert!(check(&mut guard(), &changed, NOW).is_err(), "byte {at}");
    }
}

#[test]
fn an_advert_of_another_source_or_router_is_no_ones() {
    let mut packet = BytesMut::new();
    format(1).encode(100, packet::group(Family::V4), 1, &mut packet);
    let mut signed = packet.clone();
    guard().seal(&format(9), &mut signed, NOW);
    assert_eq!(check(&mut guard(), &signed, NOW), Err(Rejection::Integrity));
    let other = Format { vrid: Vrid::new(52).unwrap(), ..format(1) };
    guard().seal(&other, &mut packet, NOW);
    assert_eq!(check(&mut guard(), &packet, NOW), Err(Rejection::Integrity));
}

#[test]
fn keys_are_changed_without_a_gap() {
    let (old, both, new) = (signing(&[1]), signing(&[1, 2]), signing(&[2]));
    let (both, later) = (of(both.clone()), of(Signing { active: 2, ..both }));
    let (old, new) = (of(old), of(new));
    for (sender, receiver) in [(&old, &both), (&both, &old), (&later, &both), (&both, &later), (&later, &new)]
    {
        let packet = sent(&mut sender.clone(), NOW);
        assert_eq!(check(&mut receiver.clone(), &packet, NOW), Ok(()));
    }
    let refused = check(&mut old.clone(), &sent(&mut new.clone(), NOW), NOW);
    assert_eq!(refused, Err(Rejection::UnknownKey { id: 2 }));
}

#[test]
fn what_is_not_signed_counts_unless_it_must_be() {
    let unsigned = sent(&mut Guard::Open, NOW);
    for (mode, outcome) in [
        (SigningMode::Enforce, Err(Rejection::Unsigned)),
        (SigningMode::Permissive, Ok(())),
        (SigningMode::ReceiveOnly, Ok(())),
    ] {
        let mut receiver = of(Signing { mode, ..signing(&[1]) });
        assert_eq!(check(&mut receiver, &unsigned, NOW), outcome, "{mode:?}");
        let mut forged = sent(&mut guard(), NOW);
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(check(&mut receiver, &forged, NOW), Err(Rejection::Integrity), "{mode:?}");
        assert_eq!(sent(&mut receiver, NOW) == unsigned, mode == SigningMode::ReceiveOnly, "{mode:?}");
    }
}

#[test]
fn who_knows_no_signatures_refuses_a_signed_advert_for_its_length() {
    let refused = check(&mut Guard::Open, &sent(&mut guard(), NOW), NOW);
    assert_eq!(refused, Err(Rejection::Length { expected: 12, got: 40 }));
}

/// Key 00..1f, VRID 51, priority 200, an interval of one second, one address.
fn assert_signed(source: IpAddr, destination: IpAddr, address: IpAddr, message: &str) {
    let key = SigningKey { id: 1, secret: Secret::new((0..32).collect()) };
    let format = Format {
        checksum: if source.is_ipv6() { Checksum::PseudoHeader } else { Checksum::Message },
        source,
        peers: vec![destination],
        multicast: [224, 0, 0, 18].into(),
        addresses: vec![address],
        ..format(1)
    };
    let wall = Duration::from_secs(0x6800_0000) + Duration::from_millis(500);
    let signing = Signing { keys: vec![key.clone()], ..signing(&[1]) };
    let guard = || Guard::new(&format, Some(&signing), Arc::default(), wall);
    let mut packet = BytesMut::new();
    format.encode(200, destination, 1, &mut packet);
    guard().seal(&format, &mut packet, wall);
    let (_, sent) = packet::parts(&packet, format.family()).unwrap();
    let hex: String = sent.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, message);

    let peer = Format { source: destination, peers: vec![source], ..format.clone() };
    let mut receiver = guard();
    let datagram =
        Datagram { source, destination, identification: 0, ttl: 255, proof: Proof::None, message: sent };
    let datagram = receiver.open(datagram);
    assert!(peer.accept(&datagram).is_ok());
    assert_eq!(receiver.check(&peer, &datagram, wall), Ok(()));
}

#[test]
fn the_vectors_of_the_draft_are_signed_to_the_byte() {
    assert_signed(
        [198, 51, 100, 10].into(),
        [192, 0, 2, 10].into(),
        [192, 0, 2, 100].into(),
        "3133c80100644402c00002640101000068000000800000001b84bc4e8e43892dc6d98448f8ee2265",
    );
    let link_local = |host| Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, host).into();
    assert_signed(
        link_local(0x10),
        link_local(0x20),
        link_local(0x100),
        "3133c8010064a2e9fe80000000000000000000000000010001010000680000008000000\
         0c8c56146ebfd66ee10ec4d8186461b78",
    );
}
