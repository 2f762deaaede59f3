//! Established flows through changes: at no step does one on a living real server change it.

use lvs_ebpf_common::{
    flow::Flow,
    flow_table::{FlowKey, Phase},
    maps::{MOVED, NOBODY},
};

use super::*;
use crate::{config::model::Timeouts, dataplane::flows::LiveFlow};

const SECOND: Duration = Duration::from_secs(1);

/// The maps, a flow table without bounds, and clients that send after every write.
struct Site {
    maps: Maps,
    tables: Tables,
    plan: Way,
    now: Duration,
    /// Real server and time of the last packet.
    entries: HashMap<FlowKey, (u16, Duration)>,
    /// Each flow's real server.
    clients: HashMap<u16, IpAddr>,
}

impl Site {
    fn new(desired: &Desired) -> Self {
        let maps = Maps::new();
        let tables = maps.tables();
        let mut site =
            Self { maps, tables, plan: WAYS[0], now: NOW, entries: HashMap::new(), clients: HashMap::new() };
        site.reach(desired);
        site
    }

    fn reach(&mut self, desired: &Desired) {
        for real in desired.services.iter().flat_map(|service| &service.reals).filter(|real| !real.alive) {
            self.clients.retain(|_, address| *address != real.address);
        }
        let writes = (self.plan)(&mut self.tables, desired, &self.maps, self.now).unwrap();
        self.carry_out(writes);
    }

    fn settle(&mut self) {
        let timeouts = Timeouts::default();
        let mut survey = self.tables.survey(timeouts);
        let now = self.now;
        self.entries.retain(|key, (real, seen)| {
            survey.meet(&LiveFlow { key: *key, real: *real, phase: Phase::Established, idle: now - *seen })
        });
        let found = survey.finish();
        let writes = self.tables.settle(&found, timeouts, &self.maps, self.now);
        self.carry_out(writes);
    }

    fn carry_out(&mut self, writes: Vec<Write>) {
        for write in writes {
            self.maps.apply(&write);
            // A third of the flows is busy; the others have sent nothing since they were opened.
            self.send_if(|port| port % 3 == 0);
        }
    }

    fn open(&mut self, ports: std::ops::Range<u16>) {
        for port in ports {
            let real = self.send(port, true).expect("an alive pool takes new flows");
            self.clients.insert(port, address(&real));
        }
    }

    fn everybody_sends(&mut self) {
        self.send_if(|_| true);
    }

    fn send_if(&mut self, who: impl Fn(u16) -> bool) {
        for (port, expected) in self.clients.clone() {
            if who(port) {
                let real = self.send(port, false);
                assert_eq!(real.map(|real| address(&real)), Some(expected), "the flow from port {port}");
            }
        }
    }

    /// As the XDP program does it (lvs-ebpf/src/flow_table.rs), for TCP.
    fn send(&mut self, port: u16, opens: bool) -> Option<Real> {
        let service = self.maps.service(&WEB)?;
        let flow = Flow {
            source: 0x0900_000a,
            destination: WEB.packed().address,
            source_port: port.to_be(),
            destination_port: WEB.packed().port,
        };
        let hash = flow.hash(service.hash);
        let ring = RingRef::unpack(service.ring);
        let slot = self.maps.slot(ring.chunk, hash, ring.length);
        let real = |index: u16| {
            (index != NOBODY).then(|| self.maps.reals[(service.reals_base + u32::from(index)) as usize])
        };
        let takes = |index: u16, opens: bool| {
            real(index).is_some_and(|real| {
                takes_flows(&real) || matches!(real.state, Real::DRAINING | Real::LEAVING) && !opens
            })
        };
        if slot & MOVED == 0 && service.takes_turns == Service::NO_TURNS {
            return real(slot);
        }
        let key = FlowKey { source: flow.source, source_port: flow.source_port, service: service.id };
        let known = self.entries.get(&key).map(|(real, _)| *real);
        let is_lost = |index: u16| !opens && real(index).is_some_and(|real| real.state == Real::DEAD);
        let owner = slot & !MOVED;
        let header = ring.chunk + ring.length.div_ceil(maps::RING_CHUNK as u32);
        let old = match u32::from(self.maps.chunk(header)[0]) {
            length if slot & MOVED != 0 && length > 0 => {
                self.maps.slot(header + 1, flow.hash(service.old_hash), length)
            }
            _ => owner,
        };
        if is_lost(known.unwrap_or(if slot & MOVED != 0 && old != owner { old } else { NOBODY })) {
            return None;
        }
        let known = known.filter(|real| takes(*real, opens));
        let turn = self.maps.turns(service.id);
        let takes_turn = match service.takes_turns {
            Service::NO_TURNS => false,
            Service::EVERY_TURN => true,
            _ => real(owner).is_some_and(|real| real.state == Real::OVERLOADED),
        };
        let choice = match known {
            Some(real) => real,
            None if opens && takes_turn && turn.length > 0 => {
                let at = self.maps.taken(service.id) as u32 % turn.length;
                let chunk = self.maps.chunk(turn.chunk + at / maps::RING_CHUNK as u32);
                chunk[at as usize % maps::RING_CHUNK]
            }
            None if !opens && takes(old, false) => old,
            None => owner,
        };
        let real = real(choice);
        if choice != NOBODY {
            self.entries.insert(key, (choice, self.now));
            if known.is_none() && opens {
                self.maps.turns.entry(service.id).or_default().taken += 1;
            }
        }
        real
    }
}

fn address(real: &Real) -> IpAddr {
    real.address.into()
}

fn dead(last: u8) -> DesiredReal {
    DesiredReal { alive: false, ..real(last, 0) }
}

#[test]
fn a_real_that_dies_and_returns_takes_no_flow_of_the_others() {
    let all = web(&[real(1, 1), real(2, 1), real(3, 1)]);
    let mut site = Site::new(&all);
    site.open(1000..1600);
    site.reach(&web(&[real(1, 1), dead(2), real(3, 1)]));
    site.everybody_sends();
    // Some of these are on slots of the dead one, which it gets back.
    site.open(1600..2200);
    site.now += SECOND;
    site.reach(&all);
    site.everybody_sends();
}

#[test]
fn idle_flows_are_found_again_within_the_timeout() {
    let mut site = Site::new(&web(&[real(1, 1), real(2, 1)]));
    site.open(1000..1600);
    site.reach(&web(&[real(1, 1), real(2, 1), real(3, 1)]));
    site.now += 899 * SECOND;
    site.settle();
    site.everybody_sends();
}

#[test]
fn a_draining_real_keeps_its_flows_and_gets_no_new_one() {
    let mut site = Site::new(&web(&[real(1, 1), real(2, 1)]));
    site.open(1000..1600);
    site.reach(&web(&[real(1, 1), real(2, 0)]));
    site.everybody_sends();
    site.open(2000..2600);
    assert!((2000..2600).all(|port| site.clients[&port] == IpAddr::from([10, 77, 0, 1])));
}

#[test]
fn a_pool_that_drains_as_a_whole_keeps_all_its_flows_and_takes_none() {
    let mut site = Site::new(&web(&[real(1, 1), real(2, 1)]));
    site.open(1000..1600);
    site.reach(&web(&[real(1, 0), real(2, 0)]));
    site.everybody_sends();
    assert_eq!(site.send(9, true), None);
    site.reach(&web(&[real(1, 1), real(2, 1)]));
    site.everybody_sends();
}

#[test]
fn a_removed_real_goes_when_its_last_flow_has_ended() {
    let mut site = Site::new(&web(&[real(1, 1), real(2, 1)]));
    site.open(1000..1600);
    site.reach(&web(&[real(1, 1)]));
    let stays =
        |site: &Site| site.maps.reals.iter().any(|real| address(real) == IpAddr::from([10, 77, 0, 2]));
    for _ in 0..20 {
        site.now += 60 * SECOND;
        site.everybody_sends();
        site.settle();
    }
    assert!(stays(&site), "flows still live on it");
    site.clients.clear();
    site.now += 901 * SECOND;
    site.settle();
    assert!(!stays(&site));
}

#[test]
fn a_ring_forgets_its_moves_when_no_flow_needs_them() {
    let mut site = Site::new(&web(&[real(1, 1), real(2, 1)]));
    site.open(1000..1600);
    site.reach(&web(&[real(1, 1), real(2, 1), real(3, 1)]));
    let moved = |site: &Site| site.tables.pools[&WEB].ring.has_moved();
    for _ in 0..20 {
        site.now += 60 * SECOND;
        site.everybody_sends();
        site.settle();
    }
    assert!(moved(&site), "flows still live elsewhere than their slots say");
    site.clients.clear();
    site.now += 901 * SECOND;
    site.settle();
    assert!(!moved(&site));
    assert!(!site.tables.uses_flow_table());
    assert_eq!(site.maps.tables().pools[&WEB].ring, site.tables.pools[&WEB].ring, "the map agrees");
}

#[test]
fn a_ring_that_has_forwarded_nothing_has_no_past() {
    let mut maps = Maps { has_forwarded: false, ..Maps::new() };
    let mut tables = maps.tables();
    maps.reach(&mut tables, &web(&[real(1, 1)]));
    maps.reach(&mut tables, &web(&[real(1, 1), real(2, 1)]));
    assert!(!tables.pools[&WEB].ring.has_moved());
}

#[test]
fn a_restart_in_the_middle_of_a_move_knows_the_old_owners() {
    let mut site = Site::new(&web(&[real(1, 1), real(2, 1)]));
    site.open(1000..1600);
    let after = web(&[real(1, 1), real(2, 1), real(3, 1)]);
    site.reach(&after);
    site.tables = site.maps.tables();
    assert_eq!(site.tables.plan(&after, &site.maps, site.now).unwrap(), []);
    site.reach(&web(&[real(1, 5), real(2, 1), real(3, 1)]));
    site.everybody_sends();
}

#[test]
fn random_changes_move_no_flow_of_a_living_real() {
    random_changes(None);
}

#[test]
fn random_changes_move_no_flow_that_got_its_real_by_turn() {
    random_changes(Some(Turns::RoundRobin));
}

#[test]
fn random_changes_move_no_flow_that_got_its_real_by_load() {
    random_changes(Some(Turns::WeightedLeastConnections));
}

#[test]
fn random_changes_of_fo_move_no_flow_of_a_living_real() {
    random_changes(Some(Turns::Failover));
}

fn random_changes(turns: Option<Turns>) {
    WAYS.into_iter().for_each(|way| random_changes_of(turns, way));
}

fn random_changes_of(turns: Option<Turns>, plan: Way) {
    let service = |pool: &[DesiredReal]| {
        let mut desired = web(pool);
        desired.services[0].turns = turns;
        desired
    };
    let mut random = fastrand::Rng::with_seed(1);
    // Across rings of 1021, 2039 and 4093 slots, and out of the first range of reals.
    let mut pool: Vec<DesiredReal> = (1..=9).map(|last| real(last, 1)).collect();
    let mut site = Site { plan, ..Site::new(&service(&pool)) };
    let mut port = 1000;
    for step in 0..45 {
        site.open(port..port + 30);
        port += 30;
        for _ in 0..random.usize(1..4) {
            let last = random.u8(1..=40);
            match pool.iter().position(|real| real.address == IpAddr::from([10, 77, 0, last])) {
                Some(at) => match random.u8(0..4) {
                    0 => drop(pool.remove(at)),
                    1 => pool[at] = dead(last),
                    2 => pool[at] = real(last, 0),
                    _ => pool[at] = real(last, random.u16(1..9)),
                },
                None => pool.push(real(last, 1)),
            }
        }
        if pool.iter().all(|real| real.weight == 0) {
            pool.push(real(99, 1));
        }
        site.reach(&service(&pool));
        site.now += random.u32(1..400) * SECOND;
        site.everybody_sends();
        site.settle();
        if step % 20 == 19 {
            site.tables = site.maps.tables();
        }
    }
    assert!(site.clients.len() > 300, "only {} flows lived", site.clients.len());
}

#[test]
fn a_scheduler_without_memory_inherits_the_flows_of_one_with() {
    let mut rr = web(&[real(1, 1), real(2, 1)]);
    rr.services[0].turns = Some(Turns::RoundRobin);
    let mut site = Site::new(&rr);
    site.open(1000..1600);
    site.reach(&web(&[real(1, 1), real(2, 1)]));
    site.everybody_sends();
}

#[test]
fn a_scheduler_that_hashes_otherwise_inherits_the_flows_of_those_before() {
    let by = |hash, turns, last| {
        let mut desired = web(&(1..=last).map(|last| real(last, 1)).collect::<Vec<_>>());
        (desired.services[0].hash, desired.services[0].turns) = (hash, turns);
        desired
    };
    let (mh, wlc) = (Service::HASH_SOURCE_PORT, Some(Turns::WeightedLeastConnections));
    let changes = [
        by(Service::HASH_CONNECTION, wlc, 3),
        by(Service::HASH_CONNECTION, wlc, 4),
        by(mh, None, 4),
        // Rings of other lengths.
        by(mh, None, 12),
        by(Service::HASH_CONNECTION, None, 12),
    ];
    for restarts in [false, true] {
        let mut site = Site::new(&by(mh, None, 3));
        let mut port = 1000;
        for change in &changes {
            site.open(port..port + 200);
            port += 200;
            if restarts {
                site.tables = site.maps.tables();
            }
            site.reach(change);
            site.everybody_sends();
            site.now += 300 * SECOND;
            site.settle();
        }
        // When nobody needs the past any more, moves are as ever.
        site.clients.clear();
        site.now += 901 * SECOND;
        site.settle();
        assert!(!site.tables.pools[&WEB].ring.has_moved());
        site.open(5000..5600);
        site.reach(&by(Service::HASH_CONNECTION, None, 11));
        site.everybody_sends();
    }
}

#[test]
fn turns_that_follow_the_load_go_to_the_real_with_fewest_flows() {
    let mut wlc = web(&[real(1, 1)]);
    wlc.services[0].turns = Some(Turns::WeightedLeastConnections);
    let mut site = Site::new(&wlc);
    site.open(1000..1100);
    wlc.services[0].reals.push(real(2, 1));
    site.reach(&wlc);
    site.settle();
    site.open(1100..1200);
    let second = |port: &u16| site.clients[port] == IpAddr::from([10, 77, 0, 2]);
    // The first is overloaded by a hundred to none; who is the second's by the ring needs no turn.
    assert_eq!((1100..1200).filter(second).count(), 100, "until both have a hundred");
    site.settle();
    assert!(site.maps.reals.iter().all(|real| real.state != Real::OVERLOADED), "both have a hundred now");
    assert!(!site.tables.has_taken_turns(&site.maps), "nothing new to plan for");
}

#[test]
fn a_service_by_load_that_is_not_out_of_balance_is_spread_by_the_ring_alone() {
    let mut wlc = web(&[real(1, 1), real(2, 1), real(3, 2)]);
    wlc.services[0].turns = Some(Turns::WeightedLeastConnections);
    let mut site = Site::new(&wlc);
    for step in 0..40 {
        site.open(1000 + step * 100..1100 + step * 100);
        site.settle();
    }
    // Another director has the ring and no entries.
    site.entries.clear();
    site.everybody_sends();
}

#[test]
fn a_mark_survives_a_change_of_the_pool_and_goes_with_the_scheduler() {
    let mut wlc = web(&[real(1, 1)]);
    wlc.services[0].turns = Some(Turns::WeightedLeastConnections);
    let mut site = Site::new(&wlc);
    site.open(1000..1100);
    wlc.services[0].reals.push(real(2, 1));
    site.reach(&wlc);
    site.settle();
    let state = |site: &Site| {
        site.maps.reals.iter().find(|real| address(real) == IpAddr::from([10, 77, 0, 1])).unwrap().state
    };
    assert_eq!(state(&site), Real::OVERLOADED);
    wlc.services[0].reals.push(real(3, 1));
    site.reach(&wlc);
    assert_eq!(state(&site), Real::OVERLOADED);
    site.tables = site.maps.tables();
    site.reach(&wlc);
    assert_eq!(state(&site), Real::OVERLOADED);
    wlc.services[0].turns = None;
    site.reach(&wlc);
    assert_eq!(state(&site), Real::ALIVE);
}

#[test]
fn fo_sends_new_flows_to_the_heaviest_that_lives_and_every_director_agrees() {
    let mut fo = web(&[real(1, 1), real(2, 9), real(3, 5)]);
    fo.services[0].turns = Some(Turns::Failover);
    let mut site = Site::new(&fo);
    let ends_at = |site: &Site, ports: std::ops::Range<u16>, last: u8| {
        assert!(ports.into_iter().all(|port| site.clients[&port] == IpAddr::from([10, 77, 0, last])));
    };
    site.open(1000..1100);
    ends_at(&site, 1000..1100, 2);
    assert!(site.entries.is_empty() && !site.tables.uses_flow_table(), "nothing to remember");
    fo.services[0].reals[1] = dead(2);
    site.reach(&fo);
    site.open(1100..1200);
    ends_at(&site, 1100..1200, 3);
    fo.services[0].reals[1] = real(2, 9);
    site.reach(&fo);
    site.everybody_sends();
    site.open(1200..1300);
    ends_at(&site, 1200..1300, 2);
}

/// Two real servers of which the second may have ten connections, and the first `first`.
fn limited(turns: Turns, first: Option<Limit>) -> Desired {
    let second = Some(Limit { upper: 10, lower: 6 });
    let mut desired =
        web(&[DesiredReal { limit: first, ..real(1, 1) }, DesiredReal { limit: second, ..real(2, 9) }]);
    desired.services[0].turns = Some(turns);
    desired
}

const LIMITED: [Turns; 6] = [
    Turns::Hashed,
    Turns::RoundRobin,
    Turns::WeightedRoundRobin,
    Turns::WeightedLeastConnections,
    Turns::Failover,
    Turns::Overflow,
];

#[test]
fn who_is_full_keeps_its_flows_and_gets_no_new_one_until_it_has_clearly_less() {
    for turns in LIMITED {
        let mut site = Site::new(&limited(turns, None));
        let at = |site: &Site, ports: std::ops::Range<u16>, last: u8| {
            ports.filter(|port| site.clients[port] == IpAddr::from([10, 77, 0, last])).count()
        };
        for port in 1000..1200 {
            site.open(port..port + 1);
            site.settle();
        }
        assert_eq!(at(&site, 1000..1200, 2), 10, "{turns:?}");
        site.everybody_sends();
        // Four of its flows end: six are not below the lower limit.
        let ends = |site: &mut Site, many: usize| {
            let second = |port: &u16| site.clients[port] == IpAddr::from([10, 77, 0, 2]);
            let ports: Vec<u16> = (1000..1200)
                .filter(|port| site.clients.contains_key(port))
                .filter(second)
                .take(many)
                .collect();
            for port in ports {
                site.clients.remove(&port);
                site.entries.retain(|key, _| key.source_port != port.to_be());
            }
            site.settle();
        };
        ends(&mut site, 4);
        site.open(2000..2050);
        assert_eq!(at(&site, 2000..2050, 2), 0, "{turns:?}");
        ends(&mut site, 1);
        site.open(3000..3200);
        assert!(at(&site, 3000..3200, 2) > 0, "{turns:?}");
    }
}

#[test]
fn a_pool_that_is_full_takes_nothing_new_until_there_is_room() {
    for turns in LIMITED {
        let mut site = Site::new(&limited(turns, Some(Limit { upper: 10, lower: 8 })));
        let mut taken = 0;
        for port in 1000..1100 {
            if site.send(port, true).is_some() {
                taken += 1;
            }
            site.settle();
        }
        assert_eq!(taken, 20, "{turns:?}");
        // All end but what the first may have.
        site.entries.retain(|_, (real, _)| *real == 0);
        site.settle();
        site.settle();
        assert!(site.send(2000, true).is_some(), "{turns:?}");
    }
}

#[test]
fn a_limit_that_comes_with_a_reload_moves_no_flow() {
    let mut site = Site::new(&web(&[real(1, 1), real(2, 9)]));
    site.open(1000..1600);
    site.reach(&limited(Turns::Hashed, None));
    site.everybody_sends();
    site.settle();
    site.everybody_sends();
    site.reach(&web(&[real(1, 1), real(2, 9)]));
    site.everybody_sends();
}

#[test]
fn a_move_of_udp_is_over_after_its_own_timeout() {
    let udp = |reals: &[DesiredReal]| {
        let mut desired = web(reals);
        desired.services[0].key.protocol = 17;
        desired
    };
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    maps.reach(&mut tables, &udp(&[real(1, 1)]));
    maps.reach(&mut tables, &udp(&[real(1, 1), real(2, 1)]));
    let timeouts = Timeouts::default();
    for (after, is_over) in [(299, false), (300, true)] {
        let nobody = tables.survey(timeouts).finish();
        tables.settle(&nobody, timeouts, &maps, NOW + after * SECOND);
        assert_eq!(!tables.uses_flow_table(), is_over, "{after} s");
    }
}
