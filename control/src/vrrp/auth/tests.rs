use super::*;
use crate::{
    config::model::{Version, Vrid},
    vrrp::packet::Checksum,
};

const KEY: [u8; 8] = *b"s3cr3t\0\0";

/// An advert as far as the guard looks at it.
fn packet(ttl: u8) -> BytesMut {
    let mut header = [0x45, 0xc0, 0, 0, 0, 1, 0, 0, ttl, 0, 0, 0, 10, 77, 0, 1, 224, 0, 0, 18];
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
    let mut packet = packet(255);
    guard.seal(&format(), &mut packet, Duration::ZERO);
    packet
}

fn check(guard: &mut Guard, packet: &[u8]) -> Result<(), Rejection> {
    guard.check(&format(), &Datagram::parse(packet).unwrap(), Duration::ZERO)
}

fn ah(sequence: u32) -> Guard {
    Guard::Ah(Ah::new(KEY, false, sequence))
}

#[test]
fn a_sealed_advert_is_accepted_once() {
    let (mut sender, mut receiver) = (ah(7), ah(0));
    let (first, second) = (sealed(&mut sender), sealed(&mut sender));
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
    sealed(&mut backup);
    let Guard::Ah(Ah { highest, .. }) = backup else { panic!("another guard") };
    assert_eq!(highest, 1_002);
}

#[test]
fn a_restarted_daemon_begins_above_what_it_has_sent() {
    let start = Duration::from_secs(1_795_000_000);
    let mut before = first_sequence(start);
    for seconds in 1..100 {
        before += 2; // an advert a second, and as many answers
        assert!(first_sequence(start + Duration::from_secs(seconds)) > before);
    }
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
    assert_eq!(check(&mut ah(0), &packet(255)), Err(Rejection::Integrity));
    assert_eq!(check(&mut Guard::Open, &sealed(&mut ah(0))), Err(Rejection::Integrity));
}

#[test]
fn the_ttl_counts_by_multicast_only() {
    for (is_unicast, outcome) in [(false, Err(Rejection::Integrity)), (true, Ok(()))] {
        let guard = || Guard::Ah(Ah::new(KEY, is_unicast, 0));
        let mut packet = sealed(&mut guard());
        packet[8] = 60;
        assert_eq!(check(&mut guard(), &packet), outcome);
    }
}
