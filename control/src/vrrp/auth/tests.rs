use super::*;
use crate::{
    config::model::{Version, Vrid},
    vrrp::packet::Checksum,
};

const KEY: [u8; 8] = *b"s3cr3t\0\0";

/// An advert as far as the guard looks at it.
fn packet(ttl: u8, identification: u8) -> BytesMut {
    let mut header = [0x45, 0xc0, 0, 0, 0, identification, 0, 0, ttl, 0, 0, 0, 10, 77, 0, 1, 224, 0, 0, 18];
    let message = [0x21, 51, 100, 1, 2, 1, 0, 0, 10, 77, 0, 100, 0, 0, 0, 0, 0, 0, 0, 0];
    packet::readdress(&mut header, packet::PROTOCOL, IPV4_HEADER + message.len());
    BytesMut::from(&[&header[..], &message].concat()[..])
}

fn format() -> Format {
    Format {
        vrid: Vrid::new(51).unwrap(),
        version: Version::V2,
        interval: Duration::from_secs(1),
        authentication: Authentication::Ah(KEY),
        checksum: Checksum::Message,
        source: [10, 77, 0, 1].into(),
        peers: vec![],
        multicast: [224, 0, 0, 18].into(),
        ttl: 255,
        ttl_limits: vec![],
        addresses: vec![],
    }
}

fn sealed(guard: &mut Guard) -> BytesMut {
    sealed_as(guard, 1)
}

fn sealed_as(guard: &mut Guard, identification: u8) -> BytesMut {
    let mut packet = packet(255, identification);
    guard.seal(&format(), &mut packet, Duration::ZERO);
    packet
}

fn check(guard: &mut Guard, packet: &[u8]) -> Result<(), Rejection> {
    guard.check(&format(), &Datagram::parse(packet).unwrap(), Duration::ZERO)
}

/// It has counted up to `sequence`.
fn ah(sequence: u32) -> Guard {
    Guard::Ah(Ah::new(KEY, false, Numbers::up_to(sequence)))
}

fn sequence(packet: &[u8]) -> u32 {
    let datagram = Datagram::parse(packet).unwrap();
    let Proof::Ah(header) = datagram.proof else { panic!("no header") };
    header.sequence()
}

#[test]
fn a_sealed_advert_is_accepted_once() {
    let (mut sender, mut receiver) = (ah(7), ah(0));
    let (first, second) = (sealed(&mut sender), sealed_as(&mut sender, 2));
    assert_eq!(
        Datagram::parse(&first).map(|it| (it.source, it.message.len())),
        Some(([10, 77, 0, 1].into(), 20))
    );
    for (packet, outcome) in [
        (&first, Ok(())),
        (&first, Err(Rejection::Replay)),
        (&second, Ok(())),
        (&first, Err(Rejection::Replay)),
    ] {
        assert_eq!(check(&mut receiver, packet), outcome);
    }
}

#[test]
fn a_master_that_began_to_count_at_one_is_heard_by_who_counts_from_the_time() {
    let mut receiver = ah(first_sequence(Duration::from_secs(1_795_000_000)));
    assert_eq!(check(&mut receiver, &sealed(&mut ah(0))), Ok(()));
}

#[test]
fn who_takes_over_goes_on_where_the_master_ended() {
    let (mut master, mut backup) = (ah(1_000), ah(3));
    check(&mut backup, &sealed(&mut master)).unwrap();
    assert_eq!(sequence(&sealed(&mut backup)), 1_002);
}

#[test]
fn a_restarted_daemon_begins_above_what_it_has_sent() {
    let start = Duration::from_secs(1_795_000_000);
    let mut guard = Guard::new(&format(), None, Arc::default(), start);
    let mut identification = 0_u8;
    for seconds in 1..100 {
        let mut before = 0;
        // An advert a second, and as many answers; each to many peers.
        for _ in 0..2 {
            identification = identification.wrapping_add(1);
            before = (0..50).map(|_| sequence(&sealed_as(&mut guard, identification))).max().unwrap();
        }
        assert!(first_sequence(start + Duration::from_secs(seconds)) > before);
    }
}

#[test]
fn a_successor_after_a_reload_counts_on_though_the_clock_was_set_back() {
    let start = Duration::from_secs(1_795_000_000);
    let (numbers, mut receiver) = (Numbers::up_to(u32::MAX / 2), ah(0));
    let mut before = Guard::new(&format(), None, numbers.clone(), start);
    check(&mut receiver, &sealed(&mut before)).unwrap();
    let mut after = Guard::new(&format(), None, numbers, start - Duration::from_secs(3_600));
    check(&mut receiver, &sealed(&mut after)).unwrap();
    // The reload fails: who was there before speaks on.
    assert_eq!(check(&mut receiver, &sealed_as(&mut before, 2)), Ok(()));
}

#[test]
fn a_successor_after_a_reload_knows_what_was_heard_before() {
    let (numbers, mut sender) = (Numbers::up_to(0), ah(7));
    let receiver = || Guard::new(&format(), None, numbers.clone(), Duration::ZERO);
    let mut before = receiver();
    let adverts = [1, 2, 3].map(|number| sealed_as(&mut sender, number));
    check(&mut before, &adverts[0]).unwrap();
    check(&mut before, &adverts[1]).unwrap();
    let mut after = receiver();
    let heard = adverts.each_ref().map(|advert| check(&mut after, advert));
    assert_eq!(heard, [Err(Rejection::Replay), Err(Rejection::Replay), Ok(())]);
    // While both are there each hears every advert.
    assert_eq!(check(&mut before, &adverts[2]), Ok(()));
}

#[test]
fn any_changed_byte_is_noticed_but_those_that_routers_change() {
    let packet = sealed(&mut ah(0));
    for at in 0..packet.len() {
        let mut changed = packet.clone();
        changed[at] ^= 1;
        let Some(datagram) = Datagram::parse(&changed) else { continue };
        let mutable = matches!(at, 1 | 6 | 7 | 10 | 11);
        assert_eq!(ah(0).check(&format(), &datagram, Duration::ZERO).is_ok(), mutable, "byte {at}");
    }
}

#[test]
fn a_refused_advert_moves_no_count() {
    let (mut receiver, mut forged) = (ah(0), sealed(&mut ah(5_000)));
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(check(&mut receiver, &forged), Err(Rejection::Integrity));
    assert_eq!(check(&mut receiver, &sealed(&mut ah(0))), Ok(()));
}

#[test]
fn with_and_without_a_header_do_not_mix() {
    assert_eq!(check(&mut ah(0), &packet(255, 1)), Err(Rejection::Integrity));
    assert_eq!(check(&mut Guard::Open, &sealed(&mut ah(0))), Err(Rejection::Integrity));
}

#[test]
fn the_ttl_counts_by_multicast_only() {
    for (is_unicast, outcome) in [(false, Err(Rejection::Integrity)), (true, Ok(()))] {
        let guard = || Guard::Ah(Ah::new(KEY, is_unicast, Arc::default()));
        let mut packet = sealed(&mut guard());
        packet[8] = 60;
        assert_eq!(check(&mut guard(), &packet), outcome);
    }
}
