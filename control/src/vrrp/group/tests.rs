use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use super::*;
use crate::{
    config::model::{Garp, Preempt, Priority, Rules, Version},
    vrrp::{
        Cause, FaultCause, Monotonic,
        machine::{Effect, Effects, Machine, Settings},
        packet::Advert,
    },
};

const START: Monotonic = Monotonic::from_nanos(5_000_000_000_000);
const SECOND: Duration = Duration::from_secs(1);
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));

fn member(state: State, own: Own) -> Member {
    Member { state, wants_master: false, own }
}

fn wanting() -> Member {
    Member { wants_master: true, ..member(State::Backup, Own::Ready) }
}

fn told(members: &[Member]) -> Option<(usize, Order)> {
    next(members.iter().copied())
}

#[test]
fn all_take_over_or_none() {
    let backup = member(State::Backup, Own::Ready);
    let master = member(State::Master, Own::Ready);
    assert_eq!(told(&[wanting(), backup]), None);
    assert_eq!(told(&[wanting(), wanting()]), Some((0, Order::TakeOver)));
    assert_eq!(told(&[master, wanting()]), Some((1, Order::TakeOver)));
    assert_eq!(told(&[master, master]), None);
    assert_eq!(told(&[master, backup]), Some((0, Order::StepDown)));
    assert_eq!(told(&[backup, backup]), None);
}

#[test]
fn one_in_fault_takes_all_and_all_return_with_the_last() {
    let [failed, follower] = [Own::Failed, Own::Ready].map(|own| member(State::Fault, own));
    for state in [State::Backup, State::Master, State::Init] {
        assert_eq!(told(&[failed, member(state, Own::Ready)]), Some((1, Order::Fault)));
    }
    assert_eq!(told(&[failed, follower]), None);
    assert_eq!(told(&[member(State::Fault, Own::Waiting), follower]), None, "it is not over yet");
    assert_eq!(told(&[follower, follower]), Some((0, Order::Recover)));
    assert_eq!(told(&[member(State::Backup, Own::Ready), follower]), Some((1, Order::Recover)));
}

#[test]
fn who_waits_for_a_result_keeps_the_others_from_being_master() {
    let waiting = member(State::Init, Own::Waiting);
    assert_eq!(told(&[waiting, wanting()]), None);
    assert_eq!(told(&[waiting, member(State::Master, Own::Ready)]), Some((1, Order::StepDown)));
    assert_eq!(told(&[waiting, member(State::Fault, Own::Failed)]), None);
    assert_eq!(told(&[member(State::Init, Own::Ready), wanting()]), Some((0, Order::Recover)));
}

/// Machines of one node, as the VRRP thread drives them.
struct Node {
    machines: Vec<Machine>,
    failed: Vec<bool>,
    /// Whether its adverts leave.
    links: Vec<bool>,
    leases: Vec<Monotonic>,
    now: Monotonic,
    transitions: Vec<(usize, State, Cause)>,
}

impl Node {
    fn new(priority: i64, members: usize) -> Self {
        let settings = || Settings {
            source: [10, 0, 0, 1].into(),
            version: Version::V3,
            priority: Priority::new(priority).unwrap(),
            advert_interval: SECOND,
            start_as_master: priority == 255,
            preempt: Preempt::Immediate,
            garp: Garp::default(),
            rules: Rules::default(),
            down_timer_adverts: 3,
            grouped: true,
        };
        Self {
            machines: (0..members).map(|_| Machine::new(settings())).collect(),
            failed: vec![false; members],
            links: vec![true; members],
            leases: vec![Monotonic::default(); members],
            now: START,
            transitions: Vec::new(),
        }
    }

    fn started(priority: i64, members: usize) -> Self {
        let mut node = Self::new(priority, members);
        for index in 0..members {
            node.apply(index, |machine, now, effects| machine.on_start(Monotonic::default(), now, effects));
        }
        node.settle();
        node
    }

    fn apply(&mut self, index: usize, input: impl FnOnce(&mut Machine, Monotonic, &mut Effects)) {
        let mut effects = Effects::new();
        let machine = &mut self.machines[index];
        input(machine, self.now, &mut effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::HoldLease { until } => self.leases[index] = until,
                Effect::ResignLease => self.leases[index] = Monotonic::default(),
                Effect::SendAdvert { .. } if !self.links[index] => {
                    machine.on_advert_failed(self.now, &mut effects)
                }
                Effect::Transition { to, cause, .. } => self.transitions.push((index, to, cause)),
                _ => {}
            }
        }
    }

    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 10 * self.machines.len(), "orders without an end: {:?}", self.states());
            let members = self.machines.iter().zip(&self.failed).map(|(machine, failed)| Member {
                state: machine.state(),
                wants_master: machine.wants_master(self.now),
                own: if *failed { Own::Failed } else { Own::Ready },
            });
            let Some((index, order)) = next(members) else { break };
            self.apply(index, |machine, now, effects| machine.obey(order, now, effects));
        }
        let masters = self.states().iter().filter(|state| **state == State::Master).count();
        assert!(masters == 0 || masters == self.machines.len(), "{:?}", self.states());
        for (machine, lease) in self.machines.iter().zip(&self.leases) {
            assert!(machine.state() == State::Master || *lease <= self.now, "a lease without a master");
        }
    }

    fn states(&self) -> Vec<State> {
        self.machines.iter().map(Machine::state).collect()
    }

    fn pass(&mut self, duration: Duration) {
        self.now = self.now + duration;
        for index in 0..self.machines.len() {
            if self.machines[index].next_deadline().is_some_and(|at| at <= self.now) {
                self.apply(index, Machine::on_timer);
                self.settle();
            }
        }
    }

    fn hear(&mut self, index: usize, priority: u8) {
        let advert = Advert { priority, interval: SECOND };
        self.apply(index, |machine, now, effects| machine.on_advert(PEER, &advert, now, effects));
        self.settle();
    }

    fn fail(&mut self, index: usize, failed: bool) {
        self.failed[index] = failed;
        if failed {
            self.apply(index, |machine, now, effects| machine.on_fault(FaultCause::LinkDown, now, effects));
        }
        self.settle();
    }
}

#[test]
fn a_member_that_hears_a_master_keeps_all_from_taking_over() {
    let mut node = Node::started(100, 2);
    for _ in 0..10 {
        node.hear(1, 150);
        node.pass(SECOND);
    }
    assert_eq!(node.states(), [State::Backup; 2]);
    node.pass(4 * SECOND);
    assert_eq!(node.states(), [State::Master; 2]);
    let masters = node.transitions.iter().filter(|(_, to, _)| *to == State::Master);
    assert_eq!(masters.map(|(_, _, cause)| *cause).collect::<Vec<_>>(), [Cause::MasterSilent; 2]);
}

#[test]
fn a_member_that_would_preempt_a_master_waits_for_its_lease_when_that_one_has_died() {
    let mut node = Node::started(100, 2);
    for _ in 0..5 {
        node.hear(0, 50);
        node.hear(1, 150);
        node.pass(SECOND);
    }
    // Nothing is heard any more but that the other member's master resigns.
    node.pass(SECOND);
    node.hear(1, 0);
    node.pass(Duration::from_millis(700));
    assert_eq!(node.states(), [State::Backup; 2]);
    node.pass(Duration::from_millis(400));
    assert_eq!(node.states(), [State::Master; 2]);
}

#[test]
fn a_better_master_of_one_member_takes_all() {
    let mut node = Node::started(100, 3);
    node.pass(4 * SECOND);
    assert_eq!(node.states(), [State::Master; 3]);
    node.hear(1, 150);
    assert_eq!(node.states(), [State::Backup; 3]);
    assert_eq!(node.transitions.last().unwrap().2, Cause::Group);
}

#[test]
fn an_owner_waits_for_nobody_but_his_group() {
    let mut node = Node::new(255, 2);
    node.failed[1] = true;
    for index in 0..2 {
        node.apply(index, |machine, now, effects| machine.on_start(Monotonic::default(), now, effects));
    }
    node.settle();
    assert_eq!(node.states(), [State::Fault; 2]);
    assert_eq!(Node::started(255, 2).states(), [State::Master; 2]);
}

#[test]
fn a_takeover_whose_advert_does_not_leave_is_taken_back_by_all() {
    let mut node = Node::started(100, 2);
    node.links[1] = false;
    node.pass(4 * SECOND);
    assert_eq!(node.states(), [State::Backup; 2]);
    node.links[1] = true;
    node.pass(4 * SECOND);
    assert_eq!(node.states(), [State::Master; 2]);
}

#[test]
fn whatever_happens_members_are_master_together_or_not_at_all() {
    for seed in 0..2_000 {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut node = Node::started(100, 3);
        for _ in 0..100 {
            let member = dice.usize(..3);
            match dice.u8(..8) {
                0 => node.hear(member, dice.u8(..)),
                1 => node.fail(member, dice.bool()),
                2 => node.links[member] = dice.bool(),
                3 => node.pass(5 * SECOND),
                _ => node.pass(Duration::from_millis(dice.u64(1..1500))),
            }
        }
        (node.failed, node.links) = (vec![false; 3], vec![true; 3]);
        node.settle();
        for _ in 0..10 {
            node.pass(SECOND);
        }
        assert_eq!(node.states(), [State::Master; 3], "seed {seed}");
    }
}
