//! When is this director master? The VRRP state machine (RFC 9568 6.4), keepalived's options and the lease.
//!
//! The lease ends before any peer that obeys the master may take over: a peer waits three intervals (`down_timer_adverts`) and its skew
//! from the last advert it got, the lease lasts three intervals from before that advert was sent.

use std::{collections::VecDeque, net::IpAddr, time::Duration};

use super::{Cause, FaultCause, Monotonic, State, group::Order, packet::Advert};
use crate::{
    announce::Schedule,
    config::model::{Garp, Preempt, Priority, Rules, Version},
};

/// One virtual router. Every input takes the time and appends what is to be done, in order.
#[derive(Debug)]
pub struct Machine {
    /// With the priority in force.
    settings: Settings,
    /// What the priority would be, had it not handed over.
    standing: Priority,
    handed_over: bool,
    /// Of the last master that was obeyed (v3), our own before that. It outlives our own mastership: a
    /// machine that wakes up with a lapsed lease has to wait as long as that master's peers do.
    master_interval: Duration,
    role: Role,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub source: IpAddr,
    pub version: Version,
    pub priority: Priority,
    pub advert_interval: Duration,
    pub start_as_master: bool,
    pub preempt: Preempt,
    pub garp: Garp,
    pub rules: Rules,
    /// Adverts that a backup misses before it takes over: the same on all nodes, and at least two.
    pub down_timer_adverts: u32,
    /// Of a sync group: it takes over when told.
    pub grouped: bool,
}

/// What the driver has to do. Effects are carried out in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    HoldLease {
        until: Monotonic,
    },
    ResignLease,
    /// To every peer. Where it reaches none: [`Machine::on_advert_failed`].
    SendAdvert {
        priority: u8,
    },
    /// Priority 0 to this peer alone.
    Farewell {
        peer: IpAddr,
    },
    /// Gratuitous ARP, so many frames for each address.
    Announce {
        repeat: u32,
    },
    AddressesUp,
    AddressesDown,
    Transition {
        from: State,
        to: State,
        cause: Cause,
    },
}

pub type Effects = VecDeque<Effect>;

#[derive(Debug)]
enum Role {
    Init,
    Backup(Backup),
    Master(Master),
    Fault,
    /// For good.
    Stopped,
}

#[derive(Debug)]
struct Backup {
    takeover_at: Monotonic,
    /// What it will be called if it comes to that.
    cause: Cause,
    /// `preempt_delay`: until when a master of lower priority is obeyed. Set by its first advert.
    tolerant_until: Option<Monotonic>,
    /// Its time has come, and it waits for its sync group.
    wants_master: bool,
    /// The last advert of a master of lower priority that is about to be preempted, and its interval.
    preempted: Option<(Monotonic, Duration)>,
    /// The peer that was invited alone has not taken over: when all the others are.
    invite_all_at: Option<Monotonic>,
}

#[derive(Debug)]
struct Master {
    lease: Monotonic,
    /// The lease before the last advert, in case that one was not sent; none if it was the first.
    previous_lease: Option<Monotonic>,
    advert_at: Monotonic,
    announcements: Schedule,
    /// While another one says that it owns the addresses, as we do: when it did last, and how often in a row.
    rival: Option<(Monotonic, u32)>,
}

impl Machine {
    pub fn new(settings: Settings) -> Self {
        Self {
            master_interval: settings.advert_interval,
            standing: settings.priority,
            handed_over: false,
            settings,
            role: Role::Init,
        }
    }

    pub fn state(&self) -> State {
        match self.role {
            Role::Init | Role::Stopped => State::Init,
            Role::Backup(_) => State::Backup,
            Role::Master(_) => State::Master,
            Role::Fault => State::Fault,
        }
    }

    /// The one its adverts say.
    pub fn priority(&self) -> Priority {
        self.settings.priority
    }

    /// A master's, once its next advert has left.
    pub fn lease(&self) -> Option<Monotonic> {
        match &self.role {
            Role::Master(master) => Some(master.lease),
            _ => None,
        }
    }

    /// An advert that leaves later is too late: the lease that it was to renew has ended, or with the first one the lease that
    /// it was to earn.
    pub fn advert_deadline(&self) -> Option<Monotonic> {
        match &self.role {
            Role::Master(master) => Some(master.previous_lease.unwrap_or(master.lease)),
            _ => None,
        }
    }

    /// What trackers make of it.
    pub fn standing(&self) -> Priority {
        self.standing
    }

    pub fn handed_over(&self) -> bool {
        self.handed_over
    }

    /// When [`Machine::on_timer`] has something to do.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        match &self.role {
            Role::Init | Role::Fault | Role::Stopped => None,
            Role::Backup(backup) => {
                let takeover_at = match backup.wants_master {
                    // A changed priority may have moved the takeover behind it.
                    true => backup
                        .doubted_at()
                        .map(|doubted| (doubted + Duration::from_nanos(1)).max(backup.takeover_at)),
                    false => Some(backup.takeover_at),
                };
                takeover_at.into_iter().chain(backup.invite_all_at).min()
            }
            // The lease is as a rule the last of these; it comes first where adverts cannot be sent.
            Role::Master(master) => [Some(master.advert_at), Some(master.lease), master.announcements.next()]
                .into_iter()
                .flatten()
                .min(),
        }
    }

    /// `lease` is what the lease map holds from a previous run.
    pub fn on_start(&mut self, lease: Monotonic, now: Monotonic, effects: &mut Effects) {
        if lease > now {
            self.become_master(Cause::Adopted, Some(lease), now, effects);
        } else {
            self.enter(Cause::Started, now, effects);
        }
    }

    pub fn on_advert(&mut self, from: IpAddr, advert: &Advert, now: Monotonic, effects: &mut Effects) {
        self.check_lease(now, effects);
        match &mut self.role {
            Role::Init | Role::Fault | Role::Stopped => {}
            Role::Backup(backup) => {
                backup.on_advert(advert, &self.settings, &mut self.master_interval, now);
            }
            Role::Master(master) if advert.priority == 0 => {
                // RFC 9568 6.4.3: somebody else thought to be master; make ourselves heard before its peers time out.
                // Neighbours may still believe that one.
                master.renew(&self.settings, now, effects);
                announce(master.announcements.provoke(now), effects);
            }
            Role::Master(master) => {
                let ours = (self.settings.priority.get(), self.settings.source);
                // RFC 9568 6.4.3: equal priority yields to the higher address.
                let theirs = (advert.priority, from);
                if theirs > ours {
                    self.master_interval = advert.interval;
                    let cause = Cause::BetterMaster { address: from, priority: advert.priority };
                    let backup = Backup::wait(now + self.settings.master_down(self.master_interval));
                    // Where both were cut off from each other, it does not know that there are neighbours who believe us.
                    let farewell = if self.settings.rules.higher_prio_send_advert {
                        Effect::SendAdvert { priority: self.settings.priority.get() }
                    } else {
                        Effect::Farewell { peer: from }
                    };
                    self.leave(Role::Backup(backup), cause, farewell, effects);
                } else if theirs < ours && master.is_rivalled(advert, now) {
                    self.become_backup(Cause::OtherOwner { address: from }, now, effects);
                } else if theirs < ours {
                    // RFC 9568 6.4.3: answer at once. The other one has announced the addresses, so do we.
                    if !self.settings.rules.lower_prio_no_advert {
                        master.renew(&self.settings, now, effects);
                    }
                    announce(master.announcements.provoke(now), effects);
                }
            }
        }
    }

    pub fn on_timer(&mut self, now: Monotonic, effects: &mut Effects) {
        self.check_lease(now, effects);
        match &mut self.role {
            Role::Init | Role::Fault | Role::Stopped => {}
            Role::Backup(backup) => {
                if backup.invite_all_at.take_if(|at| now >= *at).is_some() {
                    effects.push_back(Effect::SendAdvert { priority: 0 });
                }
                if now >= backup.takeover_at
                    && let Some(lease) = backup.dead_lease(&self.settings, now)
                {
                    backup.takeover_at = lease;
                    backup.wants_master = false;
                } else if now >= backup.takeover_at && self.settings.grouped {
                    if backup.doubted_at().is_some_and(|at| now > at) {
                        backup.preempted = None;
                    }
                    backup.wants_master = true;
                } else if now >= backup.takeover_at {
                    let cause = backup.cause;
                    self.become_master(cause, None, now, effects);
                }
            }
            Role::Master(master) => {
                if now >= master.advert_at {
                    master.advert_at = master.advert_at.next_after(self.settings.advert_interval, now);
                    master.renew(&self.settings, now, effects);
                }
                announce(master.announcements.due(now), effects);
            }
        }
    }

    /// The advert of the last [`Effect::SendAdvert`] has left for nobody. A lease is only as long as peers know of
    /// it: it stays what the advert before has earned.
    pub fn on_advert_failed(&mut self, now: Monotonic, effects: &mut Effects) {
        let Role::Master(master) = &mut self.role else { return };
        if let Some(previous) = master.previous_lease {
            master.lease = previous;
            effects.retain(|effect| !matches!(effect, Effect::HoldLease { .. }));
        } else {
            // A takeover that nobody hears of does not take place. What was to follow the advert is void.
            effects.clear();
            self.role = Role::Backup(Backup::wait(now + self.settings.advert_interval));
        }
    }

    /// Another host says that one of our addresses is its own. True if that contradicts us: then we say it again.
    pub fn on_claim(&mut self, now: Monotonic, effects: &mut Effects) -> bool {
        self.check_lease(now, effects);
        let Role::Master(master) = &mut self.role else { return false };
        announce(master.announcements.provoke(now), effects);
        true
    }

    /// Trackers have changed it. A backup's wait changes by as much as its skew; a master's next advert says it.
    pub fn on_priority(&mut self, priority: Priority, now: Monotonic, effects: &mut Effects) {
        self.check_lease(now, effects);
        self.standing = priority;
        if !self.handed_over {
            self.rank(priority);
        }
    }

    /// An operator wants another to be master: `to` alone is invited, if that is given. From now on we are last in line,
    /// which is still better than nobody.
    pub fn hand_over(&mut self, to: Option<IpAddr>, now: Monotonic, effects: &mut Effects) {
        self.check_lease(now, effects);
        self.handed_over = true;
        self.rank(Priority::LAST);
        if !matches!(self.role, Role::Master(_)) {
            return;
        }
        // That is what the peers have learned.
        self.master_interval = self.settings.advert_interval;
        let mut backup = Backup::wait(now + self.settings.master_down(self.master_interval));
        let farewell = match to {
            Some(peer) => {
                // By then its skew is over, whatever its priority: less than an interval, in v2 than the shortest one.
                backup.invite_all_at = Some(now + self.master_interval + self.master_interval / 2);
                Effect::Farewell { peer }
            }
            None => Effect::SendAdvert { priority: 0 },
        };
        self.leave(Role::Backup(backup), Cause::HandedOver, farewell, effects);
    }

    /// Takes back [`Machine::hand_over`]: it may be master again as its priority has it.
    pub fn take_part(&mut self, now: Monotonic, effects: &mut Effects) {
        self.check_lease(now, effects);
        self.handed_over = false;
        self.rank(self.standing);
    }

    fn rank(&mut self, priority: Priority) {
        let before = self.settings.skew(self.master_interval);
        self.settings.priority = priority;
        if let Role::Backup(backup) = &mut self.role {
            let later = backup.takeover_at + self.settings.skew(self.master_interval);
            backup.takeover_at = later.earlier_by(before);
        }
    }

    /// Not while the lease may run of a master that died as it was about to be preempted.
    pub fn wants_master(&self, now: Monotonic) -> bool {
        let Role::Backup(backup) = &self.role else { return false };
        backup.wants_master && backup.dead_lease(&self.settings, now).is_none()
    }

    /// What the sync group wants.
    pub fn obey(&mut self, order: Order, now: Monotonic, effects: &mut Effects) {
        self.check_lease(now, effects);
        match (order, &self.role) {
            (Order::TakeOver, Role::Backup(backup)) => {
                let cause = backup.cause;
                self.become_master(cause, None, now, effects);
            }
            (Order::StepDown, Role::Master(_)) => self.become_backup(Cause::Group, now, effects),
            (Order::TakeOver | Order::StepDown, _) => {}
            (Order::Fault, _) => self.on_fault(FaultCause::Group, now, effects),
            (Order::Recover, _) => self.on_recovered(now, effects),
        }
    }

    pub fn on_fault(&mut self, cause: FaultCause, now: Monotonic, effects: &mut Effects) {
        self.check_lease(now, effects);
        if !matches!(self.role, Role::Fault | Role::Stopped) {
            self.leave(Role::Fault, Cause::Fault(cause), Effect::SendAdvert { priority: 0 }, effects);
        }
    }

    /// Also the start of a machine that was not to start before.
    pub fn on_recovered(&mut self, now: Monotonic, effects: &mut Effects) {
        match self.role {
            Role::Init => self.enter(Cause::Started, now, effects),
            Role::Fault => self.enter(Cause::Recovered, now, effects),
            Role::Backup(_) | Role::Master(_) | Role::Stopped => {}
        }
    }

    /// Hands over to a peer and takes no further part.
    pub fn stop(&mut self, now: Monotonic, effects: &mut Effects) {
        self.check_lease(now, effects);
        if !matches!(self.role, Role::Stopped) {
            self.leave(Role::Stopped, Cause::Stopped, Effect::SendAdvert { priority: 0 }, effects);
        }
    }

    fn enter(&mut self, cause: Cause, now: Monotonic, effects: &mut Effects) {
        let at_once = self.settings.priority.is_owner() && self.settings.start_as_master;
        if at_once && !self.settings.grouped {
            self.become_master(Cause::Owner, None, now, effects);
        } else {
            self.become_backup(cause, now, effects);
        }
        if let Role::Backup(backup) = &mut self.role
            && at_once
        {
            (backup.wants_master, backup.cause) = (true, Cause::Owner);
        }
    }

    /// `lease` is one that still runs.
    fn become_master(
        &mut self,
        cause: Cause,
        lease: Option<Monotonic>,
        now: Monotonic,
        effects: &mut Effects,
    ) {
        let from = self.state();
        let (announcements, burst) = Schedule::start(self.settings.garp, now);
        let advert_at = now + self.settings.advert_interval;
        let mut master = Master { lease: now, previous_lease: None, advert_at, announcements, rival: None };
        master.renew(&self.settings, now, effects);
        master.previous_lease = lease;
        announce(burst, effects);
        effects.push_back(Effect::AddressesUp);
        effects.push_back(Effect::Transition { from, to: State::Master, cause });
        self.role = Role::Master(master);
    }

    fn become_backup(&mut self, cause: Cause, now: Monotonic, effects: &mut Effects) {
        let from = self.state();
        if from == State::Master {
            effects.push_back(Effect::ResignLease);
            effects.push_back(Effect::AddressesDown);
        }
        effects.push_back(Effect::Transition { from, to: State::Backup, cause });
        self.role = Role::Backup(Backup::wait(now + self.settings.master_down(self.master_interval)));
    }

    /// Makes room for a peer: the lease first, so that none is invited while we may still answer.
    fn leave(&mut self, role: Role, cause: Cause, farewell: Effect, effects: &mut Effects) {
        let from = self.state();
        if from == State::Master {
            effects.push_back(Effect::ResignLease);
            effects.push_back(farewell);
            effects.push_back(Effect::AddressesDown);
        }
        self.role = role;
        effects.push_back(Effect::Transition { from, to: self.state(), cause });
    }

    /// Whoever was frozen until its lease ran out cannot know who is master now.
    fn check_lease(&mut self, now: Monotonic, effects: &mut Effects) {
        if let Role::Master(master) = &self.role
            && now >= master.lease
        {
            self.become_backup(Cause::LeaseLapsed, now, effects);
        }
    }
}

impl Backup {
    fn wait(until: Monotonic) -> Self {
        Self {
            takeover_at: until,
            cause: Cause::MasterSilent,
            tolerant_until: None,
            wants_master: false,
            preempted: None,
            invite_all_at: None,
        }
    }

    fn on_advert(
        &mut self,
        advert: &Advert,
        settings: &Settings,
        master_interval: &mut Duration,
        now: Monotonic,
    ) {
        if advert.priority == 0 {
            self.takeover_at = now + settings.skew(*master_interval);
            self.cause = Cause::MasterResigned;
            self.wants_master = false;
            self.preempted = None;
            return;
        }
        self.invite_all_at = None;
        if advert.priority >= settings.priority.get() {
            self.tolerant_until = None;
        } else {
            match settings.preempt {
                Preempt::Never => {}
                Preempt::Immediate => {
                    self.preempted = Some((now, advert.interval));
                    return;
                }
                Preempt::After(delay) => {
                    if now >= *self.tolerant_until.get_or_insert(now + delay) {
                        self.preempted = Some((now, advert.interval));
                        return;
                    }
                }
            }
        }
        *master_interval = advert.interval;
        self.takeover_at = now + settings.master_down(*master_interval);
        self.cause = Cause::MasterSilent;
        self.wants_master = false;
        self.preempted = None;
    }

    /// A living master yields to our first advert. One that died or froze while we were about to preempt it cannot,
    /// and its lease runs on: until when we have to wait for that.
    fn dead_lease(&self, settings: &Settings, now: Monotonic) -> Option<Monotonic> {
        let (heard, interval) = self.preempted?;
        let silent = now > self.doubted_at()?;
        let lease = heard + interval * settings.down_timer_adverts;
        (silent && now < lease).then_some(lease)
    }

    /// Until when the master that is about to be preempted is taken for alive: it has missed an advert then.
    fn doubted_at(&self) -> Option<Monotonic> {
        self.preempted.map(|(heard, interval)| heard + interval + interval / 2)
    }
}

impl Master {
    /// The advert first: a daemon that is killed or stopped between the two must not hold what no peer knows of.
    fn renew(&mut self, settings: &Settings, now: Monotonic, effects: &mut Effects) {
        self.previous_lease = Some(self.lease);
        self.lease = now + settings.advert_interval * settings.down_timer_adverts;
        effects.push_back(Effect::SendAdvert { priority: settings.priority.get() });
        effects.push_back(Effect::HoldLease { until: self.lease });
    }
}

impl Master {
    /// An owner yields to nobody but another one that does not yield to us either: better one master too few than two.
    fn is_rivalled(&mut self, advert: &Advert, now: Monotonic) -> bool {
        const PATIENCE: u32 = 3;
        if advert.priority != Priority::OWNER.get() {
            return false;
        }
        let latest = |heard: Monotonic| heard + advert.interval + advert.interval / 5;
        let before = self.rival.filter(|(heard, _)| now <= latest(*heard)).map_or(0, |(_, count)| count);
        self.rival = Some((now, before + 1));
        before + 1 >= PATIENCE
    }
}

impl Settings {
    /// RFC 9568 6.1: Active_Down_Interval.
    fn master_down(&self, master_interval: Duration) -> Duration {
        master_interval * self.down_timer_adverts + self.skew(master_interval)
    }

    /// In whole microseconds, as keepalived computes it.
    fn skew(&self, master_interval: Duration) -> Duration {
        let rank = 256 - u64::from(self.priority.get());
        Duration::from_micros(match self.version {
            // RFC 3768 6.1: a fraction of one second, whatever the interval.
            Version::V2 => rank * 1_000_000 / 256,
            // RFC 9568 6.1: a fraction of the master's interval, which is counted in units of 10 ms.
            Version::V3 => {
                let units = u64::try_from(master_interval.as_millis() / 10).unwrap_or(u64::MAX);
                rank.saturating_mul(units).saturating_mul(625) / 16
            }
        })
    }
}

fn announce(repeat: u32, effects: &mut Effects) {
    if repeat > 0 {
        effects.push_back(Effect::Announce { repeat });
    }
}

#[cfg(test)]
mod tests;
