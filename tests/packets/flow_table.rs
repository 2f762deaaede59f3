//! Flows whose slot has moved, and flows that get their real server by turn.

use std::collections::HashMap;

use lvs_ebpf_common::{
    Turn,
    flow::{self, Flow},
    flow_table::{Entry, FlowKey, FlowSet, Phase, WAYS},
    maps::{MOVED, NOBODY},
};

use super::*;

const ID: u16 = 5;
const BASE: u32 = 100;
const FIN: u8 = 0x11;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const RST: u8 = 0x04;

/// A web service whose ring is one slot, and what has become of it.
struct Site(Director);

impl Site {
    /// Four real servers, all alive; the first owns the slot.
    fn new() -> Option<Self> {
        let mut site = Self(director()?);
        (0..4).for_each(|number| site.is(number, Real::ALIVE));
        site.ring(0, None);
        site.serve(Service::default());
        Some(site)
    }

    fn serve(&mut self, rest: Service) {
        let ring = site_ring();
        for key in [key(VIP, WEB, TCP), key(VIP, DNS, UDP)] {
            let number = if key.protocol == TCP { ID } else { ID + 1 };
            let Service { takes_turns, persistence, .. } = rest;
            self.0.service(Service { id: number, takes_turns, persistence, ..of(key, ring) });
        }
    }

    fn is(&mut self, number: u16, state: u8) {
        self.0.real(BASE + u32::from(number), Real { state, ..real(number as u8, INGRESS) });
    }

    /// `old` of `Some(None)`: the old owners are forgotten, and the slot is still moved.
    fn ring(&mut self, owner: u16, old: Option<Option<u16>>) {
        let moved = if old.is_some() { MOVED } else { 0 };
        self.0.ring(64, &[owner | moved]);
        self.0.ring(65, &[u16::from(old.flatten().is_some()), 0]);
        self.0.ring(66, &[old.flatten().unwrap_or(NOBODY)]);
    }

    /// Number of the real server that a packet goes to.
    fn send(&self, client: (Ipv4Addr, u16), flags: u8) -> u8 {
        let step = ip(VIP, |header| header.source = client.0.octets());
        self.to(&patched(write_tcp(step, client.1, WEB), 14 + 20 + 13, &[flags]))
    }

    fn to(&self, frame: &[u8]) -> u8 {
        let verdict = self.0.run(frame);
        assert_eq!(verdict.outcome, Outcome::Forwarded);
        assert_eq!(verdict.frame[..5], mac_of(0)[..5]);
        verdict.frame[5]
    }

    fn sets(&self) -> HashMap<u32, FlowSet> {
        self.0.flow_sets().into_iter().enumerate().map(|(set, flows)| (set as u32, flows)).collect()
    }
}

fn of(key: ServiceKey, ring: RingRef) -> Service {
    service(key, ring, BASE..BASE + 4)
}

fn from(port: u16) -> (Ipv4Addr, u16) {
    (CLIENT, port)
}

#[test]
fn an_unmoved_slot_leaves_the_flow_table_alone() {
    let Some(site) = Site::new() else { return };
    for flags in [SYN, ACK, FIN] {
        assert_eq!(site.send(from(1), flags), 0);
    }
    assert!(site.sets().values().all(|set| *set == FlowSet::default()));
}

#[test]
fn on_a_moved_slot_new_flows_go_to_the_new_owner_and_older_ones_to_the_old() {
    let Some(mut site) = Site::new() else { return };
    site.ring(1, Some(Some(0)));
    assert_eq!(site.send(from(1), SYN), 1);
    assert_eq!(site.send(from(1), ACK), 1);
    assert_eq!(site.send(from(2), ACK), 0);
    // What both are now does not depend on the ring any more, nor on the old owner.
    site.ring(2, Some(Some(3)));
    assert_eq!([site.send(from(1), ACK), site.send(from(2), ACK)], [1, 0]);
    // Once moved slots have no old owner, a flow without entry is a new one's.
    site.ring(2, Some(None));
    assert_eq!([site.send(from(1), ACK), site.send(from(3), ACK)], [1, 2]);
}

#[test]
fn what_a_switch_floods_takes_no_turn_and_leaves_no_trace() {
    let Some(mut site) = Site::new() else { return };
    let sequence = site.0.ring(70, &[1, 2, 3]);
    site.0.turn(ID, Turn { sequence: sequence.pack(), taken: 0 });
    site.serve(Service { takes_turns: Service::EVERY_TURN, ..Service::default() });
    let flooded = with_destination(patched(tcp_from(1, VIP, WEB), 47, &[SYN]), OTHER_MAC);
    assert_eq!(site.0.run(&flooded), verdict(Outcome::OtherHost, Action::Pass, flooded.clone()));
    assert!(site.sets().values().all(|set| *set == FlowSet::default()));
    assert_eq!([site.send(from(2), SYN), site.send(from(3), SYN)], [1, 2]);
    // Nor is its sender told anything.
    site.0.real(10, Real { mtu: 100, ..real(1, 77) });
    site.0.service(service(key(VIP, WEB, TCP), site_ring(), 10..11));
    let long = with_destination(web_of(1000, true), OTHER_MAC);
    assert_eq!(site.0.run(&long).outcome, Outcome::OtherHost);
}

fn site_ring() -> RingRef {
    RingRef { chunk: 64, length: 1 }
}

#[test]
fn after_a_change_of_the_scheduler_older_flows_are_where_its_hash_had_placed_them() {
    let Some(mut site) = Site::new() else { return };
    let ring = site.0.ring(64, &[3 | MOVED]);
    site.0.ring(65, &[4, 0]);
    site.0.ring(66, &[0, 1, 2, 3]);
    let (hash, old_hash) = (Service::HASH_CONNECTION, Service::HASH_SOURCE_PORT);
    site.0.service(Service { id: ID, hash, old_hash, ..of(key(VIP, WEB, TCP), ring) });
    for port in 1..30_u16 {
        let flow =
            Flow { source: be(CLIENT), source_port: port.to_be(), destination: 0, destination_port: 0 };
        let before = flow::slot(flow.hash(old_hash), 4) as u8;
        assert_eq!([site.send(from(port), ACK), site.send(from(port + 1000), SYN)], [before, 3], "{port}");
    }
}

#[test]
fn a_flow_of_a_dead_real_goes_nowhere_until_it_opens_anew() {
    let Some(mut site) = Site::new() else { return };
    let fate = |site: &Site, port| site.0.run(&patched(tcp_from(port, VIP, WEB), 47, &[ACK])).outcome;
    site.ring(1, Some(Some(0)));
    assert_eq!([site.send(from(1), ACK), site.send(from(2), SYN)], [0, 1]);
    site.is(0, Real::DEAD);
    assert_eq!([1, 3].map(|port| fate(&site, port)), [Outcome::DeadReal; 2]);
    assert_eq!([site.send(from(1), SYN), site.send(from(1), ACK), site.send(from(2), ACK)], [1; 3]);
    site.ring(2, Some(Some(0)));
    site.is(1, Real::DEAD);
    assert_eq!([1, 2].map(|port| fate(&site, port)), [Outcome::DeadReal; 2]);
    assert_eq!([site.send(from(1), SYN), site.send(from(2), SYN)], [2, 2]);
}

#[test]
fn a_draining_real_keeps_its_flows_until_they_end_and_gets_no_new_one() {
    let Some(mut site) = Site::new() else { return };
    site.ring(1, Some(Some(0)));
    assert_eq!(site.send(from(1), ACK), 0);
    site.is(0, Real::LEAVING);
    assert_eq!([site.send(from(1), ACK), site.send(from(3), SYN)], [0, 1]);
    site.is(0, Real::DRAINING);
    assert_eq!([site.send(from(1), ACK), site.send(from(2), ACK), site.send(from(3), SYN)], [0, 0, 1]);
    assert_eq!([site.send(from(1), FIN), site.send(from(1), ACK)], [0, 0], "its last words");
    assert_eq!([site.send(from(1), SYN), site.send(from(1), ACK)], [1, 1], "the port is used again");
}

#[test]
fn a_flow_of_a_pool_that_drains_as_a_whole_lives_on() {
    let Some(mut site) = Site::new() else { return };
    site.is(0, Real::DRAINING);
    site.ring(NOBODY, Some(Some(0)));
    assert_eq!(site.send(from(1), ACK), 0);
    assert_eq!(site.0.run(&patched(tcp_from(2, VIP, WEB), 47, &[SYN])).outcome, Outcome::NoReal);
    site.is(0, Real::DEAD);
    assert_eq!(site.0.run(&patched(tcp_from(1, VIP, WEB), 47, &[ACK])).outcome, Outcome::DeadReal);
}

#[test]
fn a_connection_that_ended_is_placed_anew_and_one_that_lives_is_not() {
    for (last, expected) in [(FIN, 2), (RST, 2), (ACK, 1)] {
        let Some(mut site) = Site::new() else { return };
        site.ring(1, Some(Some(0)));
        assert_eq!([site.send(from(1), SYN), site.send(from(1), ACK), site.send(from(1), last)], [1; 3]);
        site.ring(2, Some(Some(0)));
        assert_eq!(site.send(from(1), SYN), expected, "{last:#x}");
    }
}

#[test]
fn udp_stays_with_the_old_owner_until_that_one_is_forgotten_or_dead() {
    let Some(mut site) = Site::new() else { return };
    let send = |site: &Site, port: u16| {
        let mut frame = Vec::new();
        ip(VIP, |_| {}).udp(port, DNS).write(&mut frame, b"query").unwrap();
        site.to(&frame)
    };
    site.ring(1, Some(Some(0)));
    assert_eq!([send(&site, 1), send(&site, 2)], [0, 0]);
    site.ring(1, Some(None));
    assert_eq!([send(&site, 1), send(&site, 3)], [0, 1]);
    site.is(0, Real::DEAD);
    assert_eq!([send(&site, 1), send(&site, 3)], [1, 1]);
}

#[test]
fn flows_of_two_services_from_the_same_port_are_two() {
    let Some(mut site) = Site::new() else { return };
    site.ring(1, Some(Some(0)));
    let other = Service { id: ID + 2, ..of(key(BARE, WEB, TCP), RingRef { chunk: 64, length: 1 }) };
    site.0.service(other);
    assert_eq!(site.send(from(1), SYN), 1);
    site.ring(2, Some(Some(0)));
    assert_eq!(site.to(&patched(tcp_from(1, BARE, WEB), 47, &[SYN])), 2);
    assert_eq!(site.send(from(1), ACK), 1);
    assert_eq!(site.to(&patched(tcp_from(1, BARE, WEB), 47, &[ACK])), 2);
}

#[test]
fn an_entry_tells_the_flow_the_real_and_the_phase() {
    let Some(mut site) = Site::new() else { return };
    site.ring(3, Some(Some(0)));
    let home = FlowKey::home(FlowKey { source: be(CLIENT), source_port: 7u16.to_be(), service: ID }.pack());
    for (flags, phase) in [
        (SYN, Phase::New),
        (SYN, Phase::New),
        (ACK, Phase::Established),
        (FIN, Phase::Closing),
        (ACK, Phase::Closing),
    ] {
        site.send(from(7), flags);
        let sets = site.sets();
        let entries: Vec<_> =
            sets[&home.set].entries.iter().filter_map(|word| Entry::unpack(*word)).collect();
        assert_eq!(entries, [Entry { rest: home.rest, real: 3, phase }]);
    }
}

/// Clients whose flows share one of `sets` sets, so that a flood of the whole table can be played on a part of it.
fn neighbours(sets: u32) -> impl Iterator<Item = (u32, (Ipv4Addr, u16))> {
    (0..u32::MAX).filter_map(move |number| {
        let client = (Ipv4Addr::from(0x0b00_0000 | number >> 8), 1024 + (number & 0xff) as u16);
        let key = FlowKey { source: be(client.0), source_port: client.1.to_be(), service: ID };
        let set = FlowKey::home(key.pack()).set;
        (set < sets).then_some((set, client))
    })
}

#[test]
fn established_flows_survive_ten_times_more_syns_than_the_table_has_room() {
    const SETS: u32 = 64;
    const ROOM: usize = SETS as usize * WAYS;
    let Some(mut site) = Site::new() else { return };
    site.ring(1, Some(Some(0)));
    // Two established flows in every set.
    let mut known = [0; SETS as usize];
    let (established, flood): (Vec<_>, Vec<_>) = neighbours(SETS).take(11 * ROOM).partition(|(set, _)| {
        known[*set as usize] += 1;
        known[*set as usize] <= 2
    });
    for (_, client) in &established {
        assert_eq!([site.send(*client, SYN), site.send(*client, ACK)], [1, 1]);
    }
    site.ring(2, Some(Some(0)));
    assert!(flood.len() >= 10 * ROOM);
    assert!(flood.iter().all(|(_, client)| site.send(*client, SYN) == 2));
    assert!(established.iter().all(|(_, client)| site.send(*client, ACK) == 1));
}

#[test]
fn a_flow_that_finds_no_room_goes_where_its_next_packet_will_go() {
    let Some(mut site) = Site::new() else { return };
    site.ring(1, Some(Some(0)));
    let clients: Vec<_> = neighbours(1).take(WAYS + 2).map(|(_, client)| client).collect();
    for client in &clients[..WAYS] {
        assert_eq!([site.send(*client, SYN), site.send(*client, ACK)], [1, 1]);
    }
    assert_eq!([site.send(clients[WAYS], SYN), site.send(clients[WAYS], ACK)], [0, 0]);
    // The place of one that has ended is free.
    site.send(clients[3], FIN);
    assert_eq!([site.send(clients[WAYS + 1], SYN), site.send(clients[WAYS + 1], ACK)], [1, 1]);
    let others = clients[..WAYS].iter().filter(|client| **client != clients[3]);
    assert!(others.into_iter().all(|client| site.send(*client, ACK) == 1));
}

#[test]
fn turns_are_taken_by_new_flows_in_order_and_kept() {
    let Some(mut site) = Site::new() else { return };
    let sequence = site.0.ring(70, &[2, 0, 2, 3]);
    site.0.turn(ID, Turn { sequence: sequence.pack(), taken: 0 });
    site.serve(Service { takes_turns: Service::EVERY_TURN, ..Service::default() });
    let turns: Vec<u8> = (1..=8).map(|port| site.send(from(port), SYN)).collect();
    assert_eq!(turns, [2, 0, 2, 3, 2, 0, 2, 3]);
    let kept: Vec<u8> = (1..=8).map(|port| site.send(from(port), ACK)).collect();
    assert_eq!(kept, turns);
    assert_eq!(site.send(from(9), ACK), 0, "an unknown flow is the ring's");
    assert_eq!(site.send(from(1), SYN), 2, "a SYN that is repeated takes no turn");
    assert_eq!(site.send(from(10), SYN), 2);
}

/// The turns of the real servers 1, 2, 1, 2 and so on, for those whose owner is overloaded.
fn by_load() -> Option<Site> {
    let mut site = Site::new()?;
    let sequence = site.0.ring(70, &[1, 2]);
    for id in [ID, ID + 1] {
        site.0.turn(id, Turn { sequence: sequence.pack(), taken: 0 });
    }
    site.serve(Service { takes_turns: Service::TURNS_OF_OVERLOADED, ..Service::default() });
    Some(site)
}

#[test]
fn a_flow_is_the_rings_until_its_owner_is_overloaded_and_stays_where_it_began() {
    let Some(mut site) = by_load() else { return };
    assert_eq!([1, 2, 3].map(|port| site.send(from(port), SYN)), [0, 0, 0]);
    site.is(0, Real::OVERLOADED);
    let turns = [4, 5, 6].map(|port| site.send(from(port), SYN));
    assert_eq!(turns, [2, 1, 2], "the first three have passed theirs over");
    for _ in 0..2 {
        assert_eq!([1, 2, 3].map(|port| site.send(from(port), ACK)), [0, 0, 0]);
        assert_eq!([4, 5, 6].map(|port| site.send(from(port), ACK)), turns);
        site.is(0, Real::ALIVE);
    }
    assert_eq!(site.send(from(7), SYN), 0);
    assert_eq!(site.sets().values().flat_map(|set| set.entries).filter(|word| *word != 0).count(), 7);
}

#[test]
fn what_another_director_began_goes_by_the_ring_though_its_owner_is_overloaded() {
    let Some(mut site) = by_load() else { return };
    site.is(0, Real::OVERLOADED);
    assert_eq!([site.send(from(1), ACK), site.send(from(1), ACK)], [0, 0]);
}

#[test]
fn the_turn_of_an_overloaded_flow_may_be_a_real_that_is_overloaded_too_but_no_dead_one() {
    let Some(mut site) = by_load() else { return };
    for number in [0, 1] {
        site.is(number, Real::OVERLOADED);
    }
    site.is(2, Real::DEAD);
    assert_eq!([1, 2].map(|port| site.send(from(port), SYN)), [1, 0]);
}

#[test]
fn a_turn_of_nobody_drops_what_is_new_and_nothing_else() {
    let Some(mut site) = by_load() else { return };
    assert_eq!(site.send(from(1), SYN), 0);
    let fate =
        |site: &Site, port, flags| site.0.run(&patched(tcp_from(port, VIP, WEB), 47, &[flags])).outcome;
    let sequence = site.0.ring(80, &[NOBODY]);
    site.0.turn(ID, Turn { sequence: sequence.pack(), taken: 0 });
    assert_eq!(site.send(from(2), SYN), 0, "its owner has room");
    site.is(0, Real::OVERLOADED);
    assert_eq!(fate(&site, 3, SYN), Outcome::NoReal);
    assert_eq!([1, 2].map(|port| site.send(from(port), ACK)), [0, 0]);
    assert_eq!(site.send(from(4), ACK), 0, "it may be another director's");
}

#[test]
fn a_udp_flow_takes_a_turn_only_while_its_owner_is_overloaded() {
    let Some(mut site) = by_load() else { return };
    let send = |site: &Site, port: u16| {
        let mut frame = Vec::new();
        ip(VIP, |_| {}).udp(port, DNS).write(&mut frame, b"query").unwrap();
        site.to(&frame)
    };
    assert_eq!([send(&site, 1), send(&site, 1)], [0, 0]);
    site.is(0, Real::OVERLOADED);
    assert_eq!([send(&site, 1), send(&site, 2), send(&site, 2)], [0, 2, 2]);
    // All its flows are known, so those that are not are new: they need not wait for the old owner's end.
    site.ring(3, Some(Some(0)));
    assert_eq!([send(&site, 1), send(&site, 2), send(&site, 3)], [0, 2, 3]);
}

#[test]
fn a_turn_of_a_real_that_takes_none_and_a_sequence_of_nobody_are_the_rings() {
    let Some(mut site) = Site::new() else { return };
    site.serve(Service { takes_turns: Service::EVERY_TURN, ..Service::default() });
    assert_eq!(site.send(from(1), SYN), 0);
    let sequence = site.0.ring(70, &[1, 2]);
    site.0.turn(ID, Turn { sequence: sequence.pack(), taken: 0 });
    site.is(1, Real::DRAINING);
    assert_eq!([site.send(from(2), SYN), site.send(from(3), SYN)], [0, 2]);
}

#[test]
fn the_first_packet_of_a_udp_flow_takes_a_turn() {
    let Some(mut site) = Site::new() else { return };
    let sequence = site.0.ring(70, &[1, 2]);
    site.0.turn(ID + 1, Turn { sequence: sequence.pack(), taken: 0 });
    site.serve(Service { takes_turns: Service::EVERY_TURN, ..Service::default() });
    let frame = |port: u16| {
        let mut frame = Vec::new();
        ip(VIP, |_| {}).udp(port, DNS).write(&mut frame, b"query").unwrap();
        frame
    };
    let to: Vec<u8> = [1, 2, 1, 3, 2].map(|port| site.to(&frame(port))).into();
    assert_eq!(to, [1, 2, 1, 1, 2]);
}

#[test]
fn with_ops_each_packet_takes_a_turn_and_leaves_no_trace() {
    let Some(mut site) = Site::new() else { return };
    let sequence = site.0.ring(70, &[1, 2, 3]);
    site.0.turn(ID + 1, Turn { sequence: sequence.pack(), taken: 0 });
    site.serve(Service { takes_turns: Service::EVERY_PACKET, ..Service::default() });
    let frame = udp(VIP, DNS);
    let to: Vec<u8> = (0..5).map(|_| site.to(&frame)).collect();
    assert_eq!(to, [1, 2, 3, 1, 2]);
    site.is(3, Real::DEAD);
    assert_eq!([site.to(&frame), site.to(&frame)], [0, 1], "a dead one's turn is the ring's");
    assert!(site.sets().values().all(|set| *set == FlowSet::default()));
}

/// Persistent by the first 24 bits, and by the ring.
fn persistent() -> Option<Site> {
    let mut site = Site::new()?;
    site.serve(Service { takes_turns: Service::REMEMBERED, persistence: 25, ..Service::default() });
    Some(site)
}

#[test]
fn a_persistent_clients_connections_all_go_to_one_real_server_whatever_moves() {
    let Some(mut site) = persistent() else { return };
    let neighbour = (Ipv4Addr::new(10, 0, 0, 77), 9);
    let stranger = (Ipv4Addr::new(10, 0, 1, 7), 9);
    assert_eq!(site.send(from(1), SYN), 0);
    site.ring(1, Some(Some(0)));
    assert_eq!([site.send(from(2), SYN), site.send(neighbour, SYN), site.send(stranger, SYN)], [0, 0, 1]);
    // Its connections end, and it comes back.
    assert_eq!([site.send(from(1), FIN), site.send(from(3), SYN), site.send(from(3), ACK)], [0, 0, 0]);
    site.is(0, Real::DEAD);
    assert_eq!([site.send(from(4), SYN), site.send(neighbour, SYN)], [1, 1]);
    site.is(0, Real::ALIVE);
    assert_eq!(site.send(from(5), SYN), 1, "it stays where it went");
}

#[test]
fn a_persistent_client_lives_on_when_one_of_its_connections_ends() {
    let Some(site) = persistent() else { return };
    for (port, flags) in [(1, SYN), (1, ACK), (2, SYN), (1, FIN), (2, RST)] {
        assert_eq!(site.send(from(port), flags), 0);
        let entries: Vec<_> =
            site.sets().values().flat_map(|set| set.entries).filter_map(Entry::unpack).collect();
        assert!(matches!(entries[..], [Entry { phase: Phase::New | Phase::Established, .. }]), "{entries:?}");
    }
}

#[test]
fn a_persistent_client_comes_back_to_a_real_server_that_drains_but_not_to_one_that_left() {
    let Some(mut site) = persistent() else { return };
    assert_eq!(site.send(from(1), SYN), 0);
    site.ring(1, Some(Some(0)));
    site.is(0, Real::DRAINING);
    assert_eq!([site.send(from(2), SYN), site.send((Ipv4Addr::new(10, 0, 1, 7), 9), SYN)], [0, 1]);
    site.is(0, Real::LEAVING);
    assert_eq!([site.send(from(1), ACK), site.send(from(3), SYN), site.send(from(3), ACK)], [0, 1, 1]);
}

#[test]
fn a_persistent_client_of_udp_stays_while_its_real_server_drains_and_moves_once_it_has_left() {
    let Some(mut site) = persistent() else { return };
    let frame = udp(VIP, DNS);
    assert_eq!(site.to(&frame), 0);
    site.ring(1, Some(Some(0)));
    site.is(0, Real::DRAINING);
    assert_eq!(site.to(&frame), 0);
    site.is(0, Real::LEAVING);
    assert_eq!([site.to(&frame), site.to(&frame)], [1, 1]);
}

#[test]
fn a_persistent_client_takes_one_turn() {
    let Some(mut site) = persistent() else { return };
    let sequence = site.0.ring(70, &[1, 2, 3]);
    site.0.turn(ID, Turn { sequence: sequence.pack(), taken: 0 });
    site.serve(Service { takes_turns: Service::EVERY_TURN, persistence: 33, ..Service::default() });
    let other = (Ipv4Addr::new(10, 0, 0, 77), 1);
    let to = [from(1), from(2), other, from(3), other].map(|client| site.send(client, SYN));
    assert_eq!(to, [1, 1, 2, 1, 2]);
}
