//! Packets in pieces: all go where the first one goes, and none anywhere else.

use crate::{director::Action, frames::*, *};

/// A piece of the packet with this identification, from `offset` (in units of eight bytes) on.
fn piece(id: u16, offset: u16, more: bool, data: &[u8]) -> Vec<u8> {
    let step = ip(VIP, |header| {
        header.identification = id;
        header.dont_fragment = false;
        header.fragment_offset = IpFragOffset::try_from(offset).unwrap();
        header.more_fragments = more;
    });
    raw(step, IpNumber::UDP, data)
}

/// The first sixteen bytes of a datagram of 32 from `port`, and the rest of it.
fn datagram(id: u16, port: u16) -> [Vec<u8>; 2] {
    let mut whole = Vec::new();
    ip(VIP, |_| {}).udp(port, DNS).write(&mut whole, &[7; 24]).unwrap();
    let data = &whole[34..];
    [piece(id, 0, true, &data[..16]), piece(id, 2, false, &data[16..])]
}

/// A DNS service with four real servers.
fn balanced() -> Option<Director> {
    const REALS: u32 = 4;
    let mut director = director()?;
    let slots: Vec<u16> = (0..251).map(|slot| slot % REALS as u16).collect();
    let ring = director.ring(64, &slots);
    (0..REALS).for_each(|number| director.real(100 + number, real(number as u8, INGRESS)));
    director.service(service(key(VIP, DNS, UDP), ring, 100..100 + REALS));
    Some(director)
}

#[test]
fn later_fragments_follow_the_first() {
    let Some(director) = balanced() else { return };
    let mut met = HashSet::new();
    for id in 1..64 {
        let [first, last] = datagram(id, 20_000 + id);
        let stray = verdict(Outcome::StrayFragment, Action::Pass, last.clone());
        assert_eq!(director.run(&last), stray, "before the first one");
        let number = director.run(&first).frame[5];
        met.insert(number);
        assert_eq!(director.run(&first), verdict(Outcome::Forwarded, Action::Tx, routed(&first, number)));
        assert_eq!(director.run(&last), verdict(Outcome::Forwarded, Action::Tx, routed(&last, number)));
        // The same flow, not in pieces.
        let mut whole = Vec::new();
        ip(VIP, |_| {}).udp(20_000 + id, DNS).write(&mut whole, &[7; 24]).unwrap();
        assert_eq!(director.run(&whole).frame[5], number);
    }
    assert_eq!(met.len(), 4);
}

#[test]
fn a_fragment_of_another_packet_does_not_follow() {
    let Some(director) = balanced() else { return };
    let [first, last] = datagram(7, 20_000);
    director.run(&first);
    assert_eq!(director.run(&last).outcome, Outcome::Forwarded);
    let others = [datagram(8, 20_000)[1].clone(), nat::with_ttl(patched(last, 23, &[TCP]), 61)];
    for other in others {
        assert_eq!(director.run(&other), verdict(Outcome::StrayFragment, Action::Pass, other.clone()));
    }
}

#[test]
fn all_fragments_are_translated_and_their_checksum_with_the_first() {
    let Some(mut director) = director() else { return };
    nat::lead(&mut director);
    let real = Ipv4Addr::new(10, 0, 1, 2);
    let pieces = datagram(7, 20_000);
    let translated = pieces.clone().map(|piece| {
        let out = director.run(&piece);
        assert_eq!(out.outcome, Outcome::Redirected);
        out.frame
    });
    let mut whole = Vec::new();
    ip(real, |_| {}).udp(20_000, DNS).write(&mut whole, &[7; 24]).unwrap();
    let data: Vec<u8> = translated.iter().flat_map(|piece| piece[34..].to_vec()).collect();
    assert_eq!(data, whole[34..]);
    for (piece, out) in pieces.iter().zip(&translated) {
        let mut wanted = routed(piece, 2);
        wanted[30..34].copy_from_slice(&real.octets());
        assert_eq!(out[..34], nat::with_ttl(wanted, 60)[..34]);
    }
}
