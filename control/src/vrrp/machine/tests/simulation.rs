//! Many seeds of two or three directors on one virtual clock: crashes, freezes, restarts, stops, link faults, loss.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::*;

const SEEDS: u64 = 5_000;
/// Faults begin in so many intervals. So many are left, after the last repair, for healing.
const CHAOS: u32 = 80;
const HEALING: u32 = 16;

/// SplitMix64: a stream of numbers that a seed reproduces.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn up_to(&mut self, duration: Duration) -> Duration {
        Duration::from_nanos(self.roll(duration.as_nanos() as u64 + 1))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Wake(usize),
    Advert { from: usize, to: usize, priority: u8 },
    Crash(usize),
    Start(usize),
    Freeze(usize),
    Thaw(usize),
    Stop(usize),
    LinkDown(usize),
    LinkUp(usize),
    Priority(usize, Priority),
}

struct Node {
    settings: Settings,
    /// None = no daemon.
    machine: Option<Machine>,
    /// What outlives the daemon.
    lease: Monotonic,
    addresses: bool,
    frozen: bool,
    link: bool,
    wake_at: Monotonic,
    /// Heard while frozen.
    backlog: Vec<(usize, u8)>,
}

impl Node {
    fn is_master(&self) -> bool {
        self.machine.as_ref().is_some_and(|machine| machine.state() == State::Master)
    }
}

struct Overlap {
    since: Monotonic,
    nodes: [usize; 2],
}

/// What a run has shown to happen, so that a claim about it is not empty.
#[derive(Default)]
struct Seen {
    adopted: usize,
    lapsed: usize,
    silent: usize,
    resigned: usize,
    preempted: usize,
    reweighted: usize,
}

struct World {
    seed: u64,
    dice: Dice,
    now: Monotonic,
    queue: BinaryHeap<Reverse<(Monotonic, u64, Happening)>>,
    sequence: u64,
    nodes: Vec<Node>,
    interval: Duration,
    delay: Duration,
    /// Adverts get lost and faults coincide. Nobody can promise a single lease then, only healing.
    wild: bool,
    healing: bool,
    overlap: Option<Overlap>,
    seen: Seen,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let version = if dice.roll(2) == 0 { Version::V2 } else { Version::V3 };
        let interval = match version {
            Version::V2 => SECOND,
            Version::V3 => ms([10, 100, 1_000][dice.roll(3) as usize]),
        };
        let preempt = [Preempt::Immediate, Preempt::Immediate, Preempt::Never, Preempt::After(interval * 5)]
            [dice.roll(4) as usize];
        // Skews lie further apart than any delay, or two backups could take over before they hear of each other.
        let nodes = (0..2 + dice.roll(2)).map(|index| Node {
            settings: Settings {
                source: Ipv4Addr::from(0x0a00_0001 + index as u32).into(),
                version,
                advert_interval: interval,
                preempt,
                ..settings(100 + 50 * index as i64)
            },
            machine: None,
            lease: Monotonic::default(),
            addresses: false,
            frozen: false,
            link: true,
            wake_at: Monotonic::default(),
            backlog: vec![],
        });
        let wild = dice.roll(4) == 0;
        let nodes: Vec<_> = nodes.collect();
        let mut world = Self {
            seed,
            dice,
            now: START,
            queue: BinaryHeap::new(),
            sequence: 0,
            nodes,
            interval,
            delay: interval / 100,
            wild,
            healing: false,
            overlap: None,
            seen: Seen::default(),
        };
        world.plan_faults();
        world
    }

    /// Trackers change their minds, and have the last word before the healing. Wild, since two nodes of one
    /// priority may take over together.
    fn plan_priorities(&mut self) {
        for _ in 0..self.dice.roll(30) {
            let node = self.dice.roll(self.nodes.len() as u64) as usize;
            let at = self.now + self.dice.up_to(self.interval * CHAOS);
            let priority = Priority::clamped(1 + self.dice.roll(254) as i64);
            self.at(at, Happening::Priority(node, priority));
        }
        for node in 0..self.nodes.len() {
            let priority = Priority::clamped(100 + 50 * node as i64);
            self.at(START + self.interval * (CHAOS + 24), Happening::Priority(node, priority));
        }
    }

    fn plan_faults(&mut self) {
        let mut settled = self.now;
        for node in 0..self.nodes.len() {
            let start = self.now + self.dice.up_to(self.interval * 2);
            self.at(start, Happening::Start(node));
            settled = settled.max(start);
        }
        let end = self.now + self.interval * CHAOS;
        if self.wild {
            self.plan_priorities();
            for node in 0..self.nodes.len() {
                let mut at = settled;
                while at < end {
                    let calm = self.dice.up_to(self.interval * 20);
                    at = self.plan_fault(node, at + calm);
                }
            }
        } else {
            // One at a time, the next one when mastership, and its way back, has settled.
            let mut at = settled;
            while at < end {
                let node = self.dice.roll(self.nodes.len() as u64) as usize;
                let calm = self.interval * 12 + self.dice.up_to(self.interval * 2);
                at = self.plan_fault(node, at + calm);
            }
        }
    }

    /// Returns when it is repaired.
    fn plan_fault(&mut self, node: usize, at: Monotonic) -> Monotonic {
        let (fault, repair) = match self.dice.roll(5) {
            0 => (Happening::Crash(node), Happening::Start(node)),
            1 => (Happening::Freeze(node), Happening::Thaw(node)),
            2 => (Happening::Stop(node), Happening::Start(node)),
            3 => {
                // Below all others, whose skews are as far apart as they were.
                let priority = |of: usize| Happening::Priority(node, Priority::clamped(of as i64));
                (priority(10 + 20 * node), priority(100 + 50 * node))
            }
            _ => (Happening::LinkDown(node), Happening::LinkUp(node)),
        };
        // Short enough to resume or adopt, or long enough to lose the lease.
        let repaired = at + self.dice.up_to(self.interval * 6);
        self.at(at, fault);
        self.at(repaired, repair);
        repaired
    }

    fn at(&mut self, at: Monotonic, what: Happening) {
        self.sequence += 1;
        self.queue.push(Reverse((at, self.sequence, what)));
    }

    fn run(mut self) -> Seen {
        let chaos_end = START + self.interval * (CHAOS + 24);
        let end = chaos_end + self.interval * HEALING;
        while let Some(Reverse((at, _, what))) = self.queue.pop() {
            self.check_overlap(at);
            if at > end {
                break;
            }
            self.now = at;
            self.healing = at > chaos_end;
            self.happen(what);
            self.check_nodes();
        }
        self.check_healed();
        self.seen
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Wake(node) => {
                if self.nodes[node].wake_at == self.now
                    && self.nodes[node].machine.is_some()
                    && !self.nodes[node].frozen
                {
                    self.input(node, Machine::on_timer);
                }
            }
            Happening::Advert { from, to, priority } => {
                if self.nodes[to].link {
                    if self.nodes[to].frozen {
                        self.nodes[to].backlog.push((from, priority));
                    } else {
                        self.hear(to, from, priority);
                    }
                }
            }
            Happening::Crash(node) => {
                self.nodes[node].machine = None;
                self.nodes[node].addresses = false;
            }
            Happening::Start(node) => {
                let lease = self.nodes[node].lease;
                self.nodes[node].machine = Some(Machine::new(self.nodes[node].settings.clone()));
                self.input(node, |machine, now, effects| machine.on_start(lease, now, effects));
            }
            Happening::Freeze(node) => self.nodes[node].frozen = true,
            Happening::Thaw(node) => {
                self.nodes[node].frozen = false;
                for (from, priority) in std::mem::take(&mut self.nodes[node].backlog) {
                    self.hear(node, from, priority);
                }
                self.input(node, Machine::on_timer);
            }
            Happening::Stop(node) => self.input(node, Machine::stop),
            Happening::LinkDown(node) => {
                self.nodes[node].link = false;
                self.input(node, |machine, now, effects| {
                    machine.on_fault(FaultCause::LinkDown, now, effects)
                });
            }
            Happening::LinkUp(node) => {
                self.nodes[node].link = true;
                self.input(node, Machine::on_recovered);
            }
            Happening::Priority(node, priority) => {
                self.nodes[node].settings.priority = priority;
                self.input(node, |machine, now, effects| machine.on_priority(priority, now, effects));
                self.seen.reweighted += 1;
            }
        }
    }

    fn hear(&mut self, to: usize, from: usize, priority: u8) {
        let (address, interval) = (self.nodes[from].settings.source, self.interval);
        let advert = Advert { priority, interval };
        self.input(to, |machine, now, effects| machine.on_advert(address, &advert, now, effects));
    }

    fn input(&mut self, node: usize, input: impl FnOnce(&mut Machine, Monotonic, &mut Effects)) {
        let Some(mut machine) = self.nodes[node].machine.take() else { return };
        let mut effects = Effects::new();
        input(&mut machine, self.now, &mut effects);
        while let Some(effect) = effects.pop_front() {
            self.carry_out(node, &mut machine, effect, &mut effects);
        }
        let late = self.dice.up_to(self.delay / 10);
        if let Some(deadline) = machine.next_deadline() {
            let wake_at = deadline.max(self.now) + late;
            self.nodes[node].wake_at = wake_at;
            self.at(wake_at, Happening::Wake(node));
        }
        self.nodes[node].machine = Some(machine);
    }

    fn carry_out(&mut self, node: usize, machine: &mut Machine, effect: Effect, effects: &mut Effects) {
        match effect {
            Effect::HoldLease { until } => {
                self.nodes[node].lease = until;
                self.note_overlap(node);
            }
            Effect::ResignLease => self.nodes[node].lease = Monotonic::default(),
            Effect::SendAdvert { .. } if !self.nodes[node].link => {
                machine.on_advert_failed(self.now, effects)
            }
            Effect::SendAdvert { priority } => {
                for to in (0..self.nodes.len()).filter(|to| *to != node) {
                    let arrives = self.now + self.dice.up_to(self.delay);
                    if !(self.wild && !self.healing && self.dice.roll(4) == 0) {
                        self.at(arrives, Happening::Advert { from: node, to, priority });
                    }
                }
            }
            Effect::Announce { .. } => {
                assert!(self.nodes[node].lease > self.now, "seed {}: announced without a lease", self.seed);
            }
            Effect::AddressesUp => self.nodes[node].addresses = true,
            Effect::AddressesDown => self.nodes[node].addresses = false,
            Effect::Transition { cause, .. } => match cause {
                Cause::Adopted => self.seen.adopted += 1,
                Cause::LeaseLapsed => self.seen.lapsed += 1,
                Cause::MasterSilent => self.seen.silent += 1,
                Cause::MasterResigned => self.seen.resigned += 1,
                Cause::BetterMaster { .. } => self.seen.preempted += 1,
                _ => {}
            },
        }
    }

    /// A second lease begins while another runs.
    fn note_overlap(&mut self, node: usize) {
        let running = |other: &usize| *other != node && self.nodes[*other].lease > self.now;
        if let Some(other) = (0..self.nodes.len()).find(running)
            && self.overlap.is_none()
        {
            self.overlap = Some(Overlap { since: self.now, nodes: [other, node] });
        }
    }

    /// Called before `next` happens: how long have two leases run by then? Two masters part when the better one's
    /// advert arrives, perhaps as an answer to the worse one's. No message travels faster.
    fn check_overlap(&mut self, next: Monotonic) {
        let Some(Overlap { since, nodes }) = self.overlap else { return };
        let end = nodes.map(|node| self.nodes[node].lease).into_iter().fold(next, Monotonic::min);
        let length = Duration::from_nanos(end.nanos().saturating_sub(since.nanos()));
        assert!(
            self.wild || length <= self.delay * 2,
            "seed {}: nodes {nodes:?} both answer for {length:?}",
            self.seed,
        );
        if end < next {
            self.overlap = None;
        }
    }

    fn check_nodes(&self) {
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.machine.is_some()) {
            let seed = self.seed;
            assert_eq!(node.addresses, node.is_master(), "seed {seed}: addresses of node {index}");
            assert!(
                node.is_master() || node.lease <= self.now,
                "seed {seed}: node {index} answers as no master"
            );
        }
    }

    fn check_healed(&self) {
        let masters: Vec<_> = (0..self.nodes.len()).filter(|node| self.nodes[*node].is_master()).collect();
        let holders: Vec<_> =
            (0..self.nodes.len()).filter(|node| self.nodes[*node].lease > self.now).collect();
        assert_eq!(masters.len(), 1, "seed {}: masters after healing: {masters:?}", self.seed);
        assert_eq!(holders, masters, "seed {}: the master holds the lease", self.seed);
        if self.nodes[0].settings.preempt == Preempt::Immediate {
            assert_eq!(masters, [self.nodes.len() - 1], "seed {}: the best node is master", self.seed);
        }
    }
}

#[test]
fn two_leases_never_outlast_the_network_delay_and_one_master_remains() {
    let mut all = Seen::default();
    for seed in 0..SEEDS {
        let seen = World::new(seed).run();
        all.adopted += seen.adopted;
        all.lapsed += seen.lapsed;
        all.silent += seen.silent;
        all.resigned += seen.resigned;
        all.preempted += seen.preempted;
        all.reweighted += seen.reweighted;
    }
    for count in [all.adopted, all.lapsed, all.silent, all.resigned, all.preempted, all.reweighted] {
        assert!(count > SEEDS as usize / 10, "a kind of event is too rare to prove anything");
    }
}
