//! One clock, one queue of what happens next, and the directors to whom it happens.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::Duration,
};

use control::config::model::Preempt;

use lvs_tests::Dice;

use crate::{
    clock::{Clock, Moment},
    host::{Host, Letter, address},
    judge::Memory,
    plan::{Fault, Incident, Mood, Network, Plan, nanos},
};

/// Intervals from the healing to the last change of a role, and to the last look.
const SETTLING: u32 = 30;
const HEALING: u32 = 45;

#[derive(Debug)]
pub enum Happening {
    Start(usize),
    Wake(usize),
    Letter {
        to: usize,
        letter: Letter,
    },
    /// A gratuitous ARP has reached the neighbours.
    Announced {
        from: usize,
        lan: usize,
    },
    Broken(Incident),
    Repaired(Incident),
    /// A thread that was stopped between two effects goes on.
    GoOn(usize),
    Healed,
}

/// What has happened in a run, so that a claim about it is not empty.
pub type Seen = BTreeMap<&'static str, usize>;

/// What was wrong, and when.
pub type Verdict = Result<(), String>;

pub struct World {
    pub dice: Dice,
    pub now: Moment,
    queue: BinaryHeap<Reverse<(Moment, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    sequence: u64,
    pub hosts: Vec<Host>,
    pub lans: usize,
    /// What each host has read, by host and LAN.
    pub memories: Vec<Vec<Memory>>,
    /// Ways that are cut: LAN, from, to, and how often.
    cuts: BTreeMap<(usize, usize, usize), usize>,
    pub mood: Mood,
    pub network: Network,
    /// The longest of all.
    pub interval: Duration,
    shortest: Duration,
    /// The longest that a backup waits.
    patience: Duration,
    healed: Moment,
    pub healing: bool,
    /// Two leases, since when, by LAN.
    overlaps: Vec<Option<Overlap>>,
    /// LANs on which somebody preempts a master that it has just heard and that has died since. Its lease runs out
    /// beside the new one (ARCHITECTURE.md, the lease).
    pub forgiven: BTreeSet<usize>,
    /// Since when no lease runs, by LAN.
    nobody_since: Vec<Option<Moment>>,
    /// Whom the neighbours on each LAN send to.
    neighbours: Vec<Option<usize>>,
    /// When a host has last announced itself, by LAN and host.
    pub announced_at: BTreeMap<(usize, usize), Moment>,
    /// When a master has last heard another one, by LAN, master and the other.
    pub read_as_master: BTreeMap<(usize, usize, usize), Moment>,
    seen: Seen,
    talkative: bool,
}

#[derive(Clone, Copy)]
struct Overlap {
    since: Moment,
    hosts: [usize; 2],
}

impl World {
    pub fn new(plan: Plan, dice: Dice, talkative: bool) -> Self {
        let Plan { mood, settings, drift_ppm, shows, starts, interval, network, incidents, healed } = plan;
        let (count, lans) = (settings.len(), settings[0].len());
        let adverts = settings[0][0].down_timer_adverts;
        let shortest = settings.iter().map(|all| all[0].advert_interval).min().unwrap_or(interval);
        let now = starts.iter().copied().min().unwrap_or_default();
        let clocks = shows.into_iter().zip(drift_ppm).map(|(shows, ppm)| Clock::new(now, shows + 1, ppm));
        let hosts = settings.into_iter().zip(clocks).map(|(settings, clock)| Host::new(settings, clock));
        let mut world = Self {
            dice,
            now,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            sequence: 0,
            hosts: hosts.collect(),
            lans,
            memories: vec![vec![Memory::new(count); lans]; count],
            cuts: BTreeMap::new(),
            mood,
            network,
            interval,
            shortest,
            // A skew is at most one interval, or one second where that is the unit.
            patience: interval * (adverts + 1),
            healed,
            healing: false,
            overlaps: vec![None; lans],
            forgiven: BTreeSet::new(),
            nobody_since: vec![Some(now); lans],
            neighbours: vec![None; lans],
            announced_at: BTreeMap::new(),
            read_as_master: BTreeMap::new(),
            seen: Seen::new(),
            talkative,
        };
        for (host, at) in starts.into_iter().enumerate() {
            world.at(at, Happening::Start(host));
        }
        for incident in incidents {
            world.at(incident.at, Happening::Broken(incident));
            world.at(incident.repaired, Happening::Repaired(incident));
        }
        world.at(healed, Happening::Healed);
        world
    }

    pub fn run(mut self) -> Result<Seen, String> {
        let end = self.healed + nanos(self.interval * HEALING) + nanos(Duration::from_millis(300));
        while let Some(Reverse((at, sequence))) = self.queue.pop() {
            self.check_overlaps(at)?;
            if at > end {
                break;
            }
            self.now = at;
            if let Some(happening) = self.happenings.remove(&sequence) {
                self.happen(happening)?;
            }
            self.check()?;
        }
        self.now = end;
        self.check_healed()?;
        Ok(self.seen)
    }

    pub fn at(&mut self, at: Moment, happening: Happening) {
        self.sequence += 1;
        self.queue.push(Reverse((at, self.sequence)));
        self.happenings.insert(self.sequence, happening);
    }

    fn happen(&mut self, happening: Happening) -> Verdict {
        match happening {
            Happening::Wake(host) if self.hosts[host].wake_at != self.now => Ok(()),
            Happening::Wake(host) => self.turn(host),
            Happening::Letter { to, letter } => {
                self.hosts[to].receive(letter);
                self.turn(to)
            }
            Happening::Announced { from, lan } => {
                self.say(|| format!("LAN {lan}: the neighbours believe {from}"));
                self.neighbours[lan] = Some(from);
                Ok(())
            }
            Happening::Start(host) => self.start(host),
            Happening::GoOn(host) => {
                self.hosts[host].go_on();
                self.turn(host)
            }
            Happening::Broken(incident) => {
                self.say(|| format!("host {} {:?}", incident.host, incident.fault));
                self.count(incident.fault.name());
                self.shatter(incident)
            }
            Happening::Repaired(incident) => {
                self.say(|| format!("host {} no longer {:?}", incident.host, incident.fault));
                self.repair(incident)
            }
            Happening::Healed => {
                self.say(|| "all is whole".to_owned());
                self.healing = true;
                Ok(())
            }
        }
    }

    fn shatter(&mut self, Incident { host: index, fault, .. }: Incident) -> Verdict {
        let now = self.now;
        let host = &mut self.hosts[index];
        match fault {
            Fault::Crash => host.kill(),
            Fault::Freeze => host.frozen = true,
            Fault::Suspend => host.suspend(now),
            Fault::Stop => {
                if host.is_idle() {
                    self.stop(index)?;
                }
                self.hosts[index].kill();
            }
            Fault::Unplug { lan } => host.cables[lan] = false,
            Fault::Reweigh { priority } => host.reweigh(priority),
            // A daemon that is not there cannot be asked.
            Fault::HandOver { to } => host.handed_over = host.daemon.is_some().then_some(to),
            Fault::Cut { to, lan } => *self.cuts.entry((lan, index, to)).or_default() += 1,
            Fault::Jump { by } => host.clock.jump(now, by),
        }
        self.turn(index)
    }

    fn repair(&mut self, Incident { host: index, fault, .. }: Incident) -> Verdict {
        let now = self.now;
        let host = &mut self.hosts[index];
        match fault {
            Fault::Crash | Fault::Stop | Fault::Jump { .. } => {}
            Fault::Freeze => host.frozen = host.is_suspended(),
            Fault::Suspend => host.resume(now),
            Fault::Unplug { lan } => host.cables[lan] = true,
            Fault::Reweigh { .. } => host.reweigh(host.nominal),
            Fault::HandOver { .. } => host.handed_over = None,
            Fault::Cut { to, lan } => {
                let count = self.cuts.entry((lan, index, to)).or_default();
                *count = count.saturating_sub(1);
            }
        }
        if host.daemon.is_none() && !host.frozen {
            return self.start(index);
        }
        self.turn(index)
    }

    pub fn delay(&mut self) -> Duration {
        let longest =
            if self.healing { self.network.delay.min(self.shortest / 100) } else { self.network.delay };
        self.dice.up_to(longest)
    }

    /// Whether something sent now arrives, and when.
    pub fn way(&mut self, lan: usize, from: usize, to: usize) -> Option<Moment> {
        let delay = self.delay();
        let cut = self.cuts.get(&(lan, from, to)).is_some_and(|count| *count > 0);
        let lost = !self.healing && self.dice.chance(self.network.loss_per_mille);
        (!cut && !lost).then(|| self.now + nanos(delay))
    }

    /// What holds at every moment, for every mood.
    fn check(&mut self) -> Verdict {
        let now = self.now;
        for (index, host) in self.hosts.iter_mut().enumerate() {
            host.ready_since = if host.is_ready() { host.ready_since.or(Some(now)) } else { None };
            if !host.is_idle() {
                continue;
            }
            for lan in 0..self.lans {
                if host.addresses[lan] != host.is_master(lan) {
                    return Err(format!("host {index} has its addresses without its role, or the reverse"));
                }
                if host.holds(lan, now) && !host.is_master(lan) {
                    return Err(format!("host {index} answers as no master"));
                }
                if host.is_master(lan) != host.is_master(0) {
                    return Err(format!("host {index} is master on some LANs of its group only"));
                }
            }
        }
        self.check_that_somebody_answers()
    }

    fn check_that_somebody_answers(&mut self) -> Verdict {
        for lan in 0..self.lans {
            if self.hosts.iter().any(|host| host.holds(lan, self.now)) {
                self.nobody_since[lan] = None;
                continue;
            }
            let since = *self.nobody_since[lan].get_or_insert(self.now);
            // Members of a sync group may wait for each other, and all for one that was stopped after its advert.
            let waits = self.lans + usize::from(self.network.stall_per_mille > 0);
            let limit = nanos(self.patience + self.interval + self.network.delay * 4) * waits as u64;
            let long_since = |at: Moment| at + limit < self.now;
            let idle = self.hosts.iter().position(|host| host.ready_since.is_some_and(long_since));
            if let Some(idle) = idle.filter(|_| long_since(since)) {
                return Err(format!("nobody answers on LAN {lan}, and host {idle} looks on"));
            }
        }
        Ok(())
    }

    /// A second lease begins while another runs.
    pub fn note_overlap(&mut self, host: usize, lan: usize) {
        let other =
            (0..self.hosts.len()).find(|other| *other != host && self.hosts[*other].holds(lan, self.now));
        if let Some(other) = other
            && self.overlaps[lan].is_none()
        {
            self.overlaps[lan] = Some(Overlap { since: self.now, hosts: [other, host] });
        }
    }

    /// Called before `next` happens: how long have two leases run by then? Two masters part when the better one's
    /// advert arrives, perhaps as an answer to the worse one's. No message travels faster.
    fn check_overlaps(&mut self, next: Moment) -> Verdict {
        for lan in 0..self.lans {
            let Some(Overlap { since, hosts }) = self.overlaps[lan] else { continue };
            let end = |host: usize| self.hosts[host].clock.when(self.hosts[host].leases[lan], self.now);
            let end = hosts.into_iter().filter_map(end).fold(next, Moment::min);
            let length = end.saturating_sub(since);
            let limit = nanos(self.network.delay * 2);
            if self.mood == Mood::Calm && length > limit && !self.forgiven.contains(&lan) {
                return Err(format!("hosts {hosts:?} both answer on LAN {lan} for {length} ns"));
            }
            if end < next {
                self.overlaps[lan] = None;
                self.forgiven.remove(&lan);
            }
        }
        Ok(())
    }

    fn check_healed(&self) -> Verdict {
        for lan in 0..self.lans {
            let all = 0..self.hosts.len();
            let masters: Vec<_> = all.clone().filter(|host| self.hosts[*host].is_master(lan)).collect();
            let holders: Vec<_> = all.clone().filter(|host| self.hosts[*host].holds(lan, self.now)).collect();
            if masters.len() != 1 || holders != masters {
                return Err(format!(
                    "after healing {masters:?} are masters on LAN {lan}, {holders:?} answer"
                ));
            }
            let master = masters[0];
            let rank = |host: &usize| (self.hosts[*host].nominal, address(*host));
            let settings = |host: usize| &self.hosts[host].settings[lan];
            let preempts = all.clone().all(|host| settings(host).preempt != Preempt::Never);
            let equal = all.clone().all(|host| self.hosts[host].nominal == self.hosts[0].nominal);
            if preempts && !equal && Some(master) != all.max_by_key(rank) {
                return Err(format!("after healing {master} is master, not the best"));
            }
            self.check_neighbours(lan, master)?;
        }
        Ok(())
    }

    /// Neighbours believe whoever announced itself last. Of two masters that meet the worse one yields and says so to
    /// the better one, which need not have heard of it before. That may be lost; what is promised is that the better one
    /// announces itself when it has heard.
    fn check_neighbours(&self, lan: usize, master: usize) -> Verdict {
        let Some(believed) = self.neighbours[lan] else {
            return Err("nobody has announced itself".to_owned());
        };
        let heard = self.read_as_master.get(&(lan, master, believed));
        // In a wild network the other's frames may be under way for longer than all of the master's.
        let has_answered = self.mood == Mood::Wild && self.announced_at.get(&(lan, master)) >= heard;
        if believed != master && heard >= self.announced_at.get(&(lan, believed)) && !has_answered {
            return Err(format!("neighbours send to {believed}, which {master}, the master, has heard"));
        }
        Ok(())
    }

    /// Once the last fault is long over, nobody changes its role any more.
    pub fn is_settled(&self) -> bool {
        self.healing && self.now > self.healed + nanos(self.interval * SETTLING)
    }

    pub fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.talkative {
            let intervals = (self.now as f64 - crate::plan::START as f64) / nanos(self.interval) as f64;
            println!("{intervals:9.4} intervals: {}", what());
        }
    }
}
