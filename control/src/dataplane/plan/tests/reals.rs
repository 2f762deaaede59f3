//! What a real server is to packets, and what is left of one that goes.

use super::*;

#[test]
fn who_drained_was_up_unless_that_is_what_it_does_when_it_fails() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let failed = |last| DesiredReal { alive: false, ..real(last, 0) };
    maps.reach(
        &mut tables,
        &web(&[real(1, 1), real(2, 0), failed(3), DesiredReal { resets: true, ..failed(4) }, real(5, 1)]),
    );
    // The last one leaves the file.
    let desired = web(&[real(1, 1), real(2, 0), failed(3), DesiredReal { resets: true, ..failed(4) }]);
    maps.reach(&mut tables, &desired);
    let adopted = maps.tables();
    for (inhibits, drained) in [(false, true), (true, false)] {
        let was_up = |last| adopted.was_up(&WEB, [10, 77, 0, last].into(), 80, inhibits);
        let left = inhibits.then_some(false);
        let known = [Some(true), Some(drained), Some(false), Some(false), left, None];
        assert_eq!([1, 2, 3, 4, 5, 6].map(was_up), known, "{inhibits}");
    }
}

#[test]
fn a_persistent_service_remembers_all_its_clients_and_no_longer_doubts_none() {
    use crate::config::model::{Persistence, Timeouts};
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let persistence = |timeout| Some(Persistence { timeout: Duration::from_secs(timeout), prefix_len: 24 });
    let with = |persistence| {
        let mut desired = web(&[real(1, 1), real(2, 1)]);
        desired.services[0].persistence = persistence;
        desired
    };
    maps.reach(&mut tables, &with(persistence(50)));
    let service = maps.service(&WEB).unwrap();
    assert_eq!((service.persistence, service.takes_turns), (25, Service::REMEMBERED));
    assert!(tables.uses_flow_table());
    assert_eq!(maps.tables().plan(&with(persistence(50)), &maps, NOW).unwrap(), []);

    // A silent client lives as long as its connections may, and as long as it is to persist.
    let key = FlowKey { source: 0x0000_000a, source_port: 0, service: service.id };
    let lives = |tables: &Tables, idle| {
        let flow = LiveFlow { key, real: 0, phase: Phase::Closing, idle: Duration::from_secs(idle) };
        tables.survey(Timeouts::default()).meet(&flow)
    };
    assert_eq!([899, 900].map(|idle| lives(&tables, idle)), [true, false]);
    maps.reach(&mut tables, &with(persistence(5000)));
    assert_eq!([4999, 5000].map(|idle| lives(&tables, idle)), [true, false]);

    // Without persistence those who are elsewhere than the ring says are asked for.
    maps.reach(&mut tables, &with(None));
    let ring = RingRef::unpack(maps.service(&WEB).unwrap().ring);
    assert_ne!(maps.slot(ring.chunk, 0, ring.length) & maps::MOVED, 0);
}

#[test]
fn a_real_server_that_left_answers_until_its_flows_have_ended() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let mut service = translated(WEB, 8080);
    service.reals.push(DesiredReal { port: 8080, forwarding: Forwarding::Nat, ..real(2, 1) });
    let both = Desired { services: vec![service.clone()], vips: Vec::new() };
    maps.reach(&mut tables, &both);
    service.reals.pop();
    maps.reach(&mut tables, &Desired { services: vec![service], vips: Vec::new() });
    assert_eq!(maps.replies.len(), 2);
    let timeouts = crate::config::model::Timeouts::default();
    let found = tables.survey(timeouts).finish();
    let writes = tables.settle(&found, timeouts, &maps, NOW + timeouts.tcp);
    // A packet that has just read the old owners may still be on its way.
    let at = |is: fn(&Write) -> bool| writes.iter().position(is).unwrap();
    let grace = at(|write| *write == Write::Grace);
    assert!(at(|write| matches!(write, Write::Ring { .. })) < grace);
    assert!(grace < at(|write| matches!(write, Write::Real { real, .. } if *real == Real::default())));
    writes.iter().for_each(|write| maps.apply(write));
    assert_eq!(maps.replies.len(), 1);
}

#[test]
fn what_a_real_server_was_sent_moves_with_it_and_is_nobody_elses_when_it_has_gone() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let reals: Vec<_> = (1..=9).map(|last| real(last, 1)).collect();
    let index = |tables: &Tables, last| tables.real_index(&WEB, [10, 77, 0, last].into(), 80).unwrap();
    maps.reach(&mut tables, &web(&reals[..8]));
    let before = tables.pools[&WEB].range();
    maps.counts.extend((1..=8).map(|last| (index(&tables, last), last.into())));
    maps.reach(&mut tables, &web(&reals));
    assert_ne!(tables.pools[&WEB].range(), before);
    assert!((1..=8).all(|last| maps.counts[&index(&tables, last)] == u64::from(last)));
    assert!(before.into_iter().all(|index| maps.counts[&index] == 0));

    let second = index(&tables, 2);
    maps.reach(&mut tables, &web(&[&reals[..1], &reals[2..]].concat()));
    let timeouts = crate::config::model::Timeouts::default();
    let found = tables.survey(timeouts).finish();
    let writes = tables.settle(&found, timeouts, &maps, NOW + timeouts.tcp);
    writes.iter().for_each(|write| maps.apply(write));
    maps.reach(&mut tables, &web(&[&reals[..1], &reals[2..], &[real(20, 1)]].concat()));
    assert_eq!((index(&tables, 20), maps.counts[&second]), (second, 0));
    maps.reach(&mut tables, &Desired::default());
    assert!(maps.counts.values().all(|count| *count == 0));
}

#[test]
fn what_is_placed_packet_by_packet_has_no_past_and_uses_no_flow_table() {
    let mut maps = Maps::new();
    maps.has_forwarded = true;
    let mut tables = maps.tables();
    let with = |turns, one_packet, second| {
        let mut desired = web(&[real(1, 1), real(2, second)]);
        (desired.services[0].turns, desired.services[0].one_packet) = (turns, one_packet);
        desired
    };
    let moved = |maps: &Maps| {
        let ring = RingRef::unpack(maps.service(&WEB).unwrap().ring);
        (0..ring.length).any(|slot| maps.chunk(ring.chunk + slot / 32)[slot as usize % 32] & maps::MOVED != 0)
    };
    maps.reach(&mut tables, &with(None, false, 1));
    maps.reach(&mut tables, &with(None, false, 0));
    assert!(moved(&maps) && tables.uses_flow_table());
    maps.reach(&mut tables, &with(None, true, 0));
    assert!(!moved(&maps) && !tables.uses_flow_table());
    maps.reach(&mut tables, &with(None, true, 1));
    assert!(!moved(&maps));
    let rr = Some(Turns::RoundRobin);
    maps.reach(&mut tables, &with(rr, true, 1));
    let service = maps.service(&WEB).unwrap();
    assert_eq!((service.takes_turns, maps.turns(service.id).length), (Service::EVERY_PACKET, 2));
    assert!(!tables.uses_flow_table());
    assert_eq!(maps.tables().plan(&with(rr, true, 1), &maps, NOW).unwrap(), [], "by a restarted daemon");
    maps.reach(&mut tables, &with(rr, false, 1));
    assert!(tables.uses_flow_table());
}

#[test]
fn a_real_server_on_this_node_is_local_and_those_beside_it_know() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let with = |first: Option<NextHop>| {
        let nat = DesiredReal { forwarding: Forwarding::Nat, next_hop: first, ..real(1, 1) };
        web(&[nat, real(2, 1)])
    };
    let methods = |maps: &Maps, tables: &Tables| -> Vec<u8> {
        let index = |last| tables.real_index(&WEB, [10, 77, 0, last].into(), 80).unwrap() as usize;
        [1, 2].map(|last| maps.reals[index(last)].method).to_vec()
    };
    maps.reach(&mut tables, &with(Some(NextHop::LOCAL)));
    assert_eq!(methods(&maps, &tables), [Real::LOCAL, Real::DIRECT_BESIDE_LOCAL]);
    assert!(maps.replies.is_empty(), "what is here is not translated");
    assert_eq!(
        maps.tables().plan(&with(Some(NextHop::LOCAL)), &maps, NOW).unwrap(),
        [],
        "by a restarted daemon"
    );
    // What a backup has in its flow table may be the local one's by the master's choice.
    let mut one_is_dead = with(Some(NextHop::LOCAL));
    one_is_dead.services[0].reals[1] = DesiredReal { alive: false, resets: true, ..real(2, 1) };
    maps.reach(&mut tables, &one_is_dead);
    assert_eq!(tables.state(&WEB, [10, 77, 0, 2].into(), 80), Some(Real::DEAD_BESIDE_LOCAL));
    maps.reach(&mut tables, &with(Some(NextHop { source: Some(Ipv4Addr::LOCALHOST.into()), ..HOP })));
    assert_eq!(methods(&maps, &tables), [Real::NAT, Real::DIRECT]);
}

#[test]
fn a_real_server_is_told_apart_by_how_its_packets_travel() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let own = IpAddr::from([10, 77, 0, 1]);
    let by = |forwarding| {
        let hop = NextHop { source: Some(own), mtu: 1400, ..HOP };
        DesiredReal { forwarding, next_hop: Some(hop), ..real(1, 1) }
    };
    let gue = Forwarding::Tunnel(Tunnel::Gue { port: 6080 });
    for (forwarding, method, port) in [
        (Forwarding::Tunnel(Tunnel::Ipip), Real::IPIP, 0),
        (gue, Real::GUE, 6080_u16),
        (Forwarding::Tunnel(Tunnel::Gre), Real::GRE, 0),
        (Forwarding::Nat, Real::NAT, 0),
        (Forwarding::Direct, Real::DIRECT, 0),
    ] {
        for write in tables.plan(&web(&[by(forwarding)]), &maps, NOW).unwrap() {
            maps.apply(&write);
        }
        let index = tables.real_index(&WEB, [10, 77, 0, 1].into(), 80).unwrap();
        let Real { method: got, source, mtu, tunnel_port, .. } = maps.reals[index as usize];
        assert_eq!((got, source, mtu, tunnel_port), (method, own.into(), 1400, port.to_be()));
    }
}
