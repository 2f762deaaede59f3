//! What a director's VRRP thread does with what it gets: the machines are the daemon's own, the rest is what
//! `vrrp/driver/engine.rs` does with sockets and a clock.

use control::vrrp::{
    Cause, FaultCause, Monotonic, State,
    group::Order,
    machine::{Effect, Effects, Machine},
    packet::Advert,
};

use crate::{
    host::{Daemon, Letter, Unfinished, address},
    judge::Excuse,
    plan::{Mood, nanos},
    world::{Happening, Verdict, World},
};

impl World {
    pub fn start(&mut self, host: usize) -> Verdict {
        if self.hosts[host].daemon.is_some() || self.hosts[host].frozen {
            return Ok(());
        }
        self.memories[host].iter_mut().for_each(|memory| memory.forget());
        self.hosts[host].daemon = Some(Daemon::new(&self.hosts[host].settings));
        for lan in 0..self.lans {
            let (lease, plugged) = (self.hosts[host].leases[lan], self.hosts[host].cables[lan]);
            if plugged || self.hosts[host].holds(lan, self.now) {
                self.apply(host, lan, |machine, now, effects| machine.on_start(lease, now, effects))?;
            }
            self.follow_cable(host, lan)?;
        }
        // While a lease of its sync group runs, no peer's group can have taken over.
        for lan in 0..self.lans {
            let masters = (0..self.lans).any(|lan| self.hosts[host].is_master(lan));
            if masters && self.lans > 1 && self.state(host, lan) == Some(State::Backup) {
                self.apply(host, lan, |machine, now, effects| machine.obey(Order::TakeOver, now, effects))?;
            }
        }
        if let Some(daemon) = &mut self.hosts[host].daemon {
            daemon.started = true;
        }
        self.turn(host)
    }

    pub fn stop(&mut self, host: usize) -> Verdict {
        (0..self.lans).try_for_each(|lan| self.apply(host, lan, Machine::stop))
    }

    /// One round of the thread: what is left, what came in, what is due. Adverts before timers.
    pub fn turn(&mut self, host: usize) -> Verdict {
        if self.hosts[host].frozen || self.hosts[host].daemon.as_ref().is_none_or(|daemon| daemon.stalled) {
            return Ok(());
        }
        if let Some(unfinished) = self.hosts[host].daemon.as_mut().and_then(|daemon| daemon.unfinished.take())
        {
            self.work(host, unfinished)?;
        }
        self.settle(host)?;
        for lan in 0..self.lans {
            self.read_mailbox(host, lan)?;
        }
        while self.hosts[host].is_idle() {
            let Some(letter) = self.hosts[host].daemon.as_mut().and_then(|daemon| daemon.inbox.pop_front())
            else {
                break;
            };
            self.read(host, &letter)?;
            self.settle(host)?;
        }
        for lan in 0..self.lans {
            self.apply(host, lan, Machine::on_timer)?;
            self.settle(host)?;
        }
        self.set_timer(host);
        Ok(())
    }

    fn set_timer(&mut self, host: usize) {
        if let Some(at) =
            self.hosts[host].next_deadline().and_then(|it| self.hosts[host].clock.when(it, self.now))
        {
            let late = self.dice.up_to(self.network.delay / 10);
            self.hosts[host].wake_at = at + nanos(late);
            self.at(at + nanos(late), Happening::Wake(host));
        }
    }

    fn read_mailbox(&mut self, host: usize, lan: usize) -> Verdict {
        let priority = self.hosts[host].settings[lan].priority;
        if self.hosts[host].daemon.as_ref().is_some_and(|it| it.machines[lan].standing() != priority) {
            self.apply(host, lan, |machine, now, effects| machine.on_priority(priority, now, effects))?;
        }
        let wish = self.hosts[host].handed_over;
        let done = |daemon: &Daemon| daemon.machines[lan].handed_over() == wish.is_some();
        if !self.hosts[host].daemon.as_ref().is_none_or(done) {
            self.apply(host, lan, |machine, now, effects| match wish {
                Some(to) => machine.hand_over(to.map(address), now, effects),
                None => machine.take_part(now, effects),
            })?;
        }
        self.follow_cable(host, lan)
    }

    fn follow_cable(&mut self, host: usize, lan: usize) -> Verdict {
        let plugged = self.hosts[host].cables[lan];
        let Some(daemon) = &mut self.hosts[host].daemon else { return Ok(()) };
        if std::mem::replace(&mut daemon.cables[lan], plugged) != plugged {
            match plugged {
                // A member of a sync group recovers with the others.
                true if self.lans > 1 => {}
                true => self.apply(host, lan, Machine::on_recovered)?,
                false => self.apply(host, lan, |machine, now, effects| {
                    machine.on_fault(FaultCause::LinkDown, now, effects)
                })?,
            }
        }
        self.settle(host)
    }

    fn read(&mut self, host: usize, letter: &Letter) -> Verdict {
        let (lan, from) = (letter.lan, address(letter.from));
        let now = self.hosts[host].clock.show(self.now);
        match self.state(host, lan) {
            Some(State::Backup | State::Master) => {
                self.memories[host][lan].read(letter, &self.hosts[host].settings[lan], now);
            }
            // Whoever takes no part asks nobody and waits when it returns.
            _ => self.memories[host][lan].forget(),
        }
        if self.hosts[host].is_master(lan) {
            self.read_as_master.insert((lan, host, letter.from), self.now);
        }
        let advert = Advert { priority: letter.priority, interval: letter.interval };
        self.apply(host, lan, |machine, now, effects| machine.on_advert(from, &advert, now, effects))?;
        // RFC 9568 6.4.3: of two masters the worse one yields to the first advert of the better that it reads.
        let ours = (self.hosts[host].settings[lan].priority.get(), address(host));
        if self.hosts[host].is_idle()
            && (letter.priority, from) > ours
            && self.hosts[host].holds(lan, self.now)
        {
            return Err(format!(
                "host {host} goes on answering beside {from}, which it has heard and which is better"
            ));
        }
        Ok(())
    }

    /// Tells the members of the sync group what they have to do, until they agree.
    fn settle(&mut self, host: usize) -> Verdict {
        for _ in 0..8 * self.lans {
            if !self.hosts[host].is_idle() {
                return Ok(());
            }
            let Some((lan, order)) = self.hosts[host].next_order(self.now) else { return Ok(()) };
            self.apply(host, lan, |machine, now, effects| machine.obey(order, now, effects))?;
        }
        Err(format!("the sync group of host {host} turns in a circle"))
    }

    fn state(&self, host: usize, lan: usize) -> Option<State> {
        self.hosts[host].daemon.as_ref().map(|daemon| daemon.machines[lan].state())
    }

    /// Gives one input to one machine and does what it wants, unless the thread is stopped within something else.
    fn apply(
        &mut self,
        host: usize,
        lan: usize,
        input: impl FnOnce(&mut Machine, Monotonic, &mut Effects),
    ) -> Verdict {
        if !self.hosts[host].is_idle() {
            return Ok(());
        }
        let since = self.hosts[host].clock.show(self.now);
        let Some(daemon) = &mut self.hosts[host].daemon else { return Ok(()) };
        let mut effects = Effects::new();
        input(&mut daemon.machines[lan], since, &mut effects);
        self.work(host, Unfinished { lan, effects, since })
    }

    fn work(&mut self, host: usize, mut work: Unfinished) -> Verdict {
        while !work.effects.is_empty() {
            // All members of a sync group start as one, or none has yet.
            let started = self.hosts[host].daemon.as_ref().is_some_and(|daemon| daemon.started);
            if started && !self.healing && self.dice.chance(self.network.stall_per_mille) {
                let lan = work.lan;
                self.stall(host, work);
                return self.check_earned(host, lan);
            }
            if let Some(effect) = work.effects.pop_front() {
                self.carry_out(host, effect, &mut work)?;
            }
        }
        self.check_earned(host, work.lan)
    }

    /// Even where the thread is stopped, or killed, between two effects.
    fn check_earned(&self, host: usize, lan: usize) -> Verdict {
        match self.hosts[host].leases[lan] > self.hosts[host].earned[lan] {
            true => Err(format!("host {host} holds a lease that no advert has earned")),
            false => Ok(()),
        }
    }

    /// Between two effects the thread is stopped for a while, or for good.
    fn stall(&mut self, host: usize, work: Unfinished) {
        self.say(|| format!("host {host} is stopped before {:?}", work.effects));
        if self.dice.chance(200) {
            self.count("crash between two effects");
            self.hosts[host].kill();
            let later = self.now + nanos(self.dice.up_to(self.interval * 6));
            self.at(later, Happening::Start(host));
        } else if let Some(daemon) = &mut self.hosts[host].daemon {
            daemon.unfinished = Some(work);
            daemon.stalled = true;
            self.count("stall between two effects");
            let later = self.now + nanos(self.dice.up_to(self.interval * 5));
            self.at(later, Happening::GoOn(host));
        }
    }

    fn carry_out(&mut self, host: usize, effect: Effect, work: &mut Unfinished) -> Verdict {
        let lan = work.lan;
        let now = self.hosts[host].clock.show(self.now);
        self.say(|| format!("host {host} LAN {lan}: {effect:?}"));
        match effect {
            Effect::HoldLease { until } => {
                let settings = &self.hosts[host].settings[lan];
                if until > now + settings.advert_interval * settings.down_timer_adverts {
                    return Err(format!("host {host} holds a lease for longer than a peer waits"));
                }
                if !self.hosts[host].holds(lan, self.now) && until > now {
                    // Whoever was stopped after the advert of a lease that ran then goes on.
                    if self.hosts[host].leases[lan] <= work.since {
                        self.judge_takeover(host, lan, work.since)?;
                    }
                    self.hosts[host].leases[lan] = until;
                    self.hosts[host].tenures[lan] += 1;
                    self.note_overlap(host, lan);
                }
                self.hosts[host].leases[lan] = until;
            }
            Effect::ResignLease => self.hosts[host].leases[lan] = Monotonic::default(),
            Effect::SendAdvert { priority } => {
                let daemon = self.hosts[host].daemon.as_ref();
                let deadline = daemon.and_then(|daemon| daemon.machines[lan].advert_deadline());
                let in_time = priority == 0 || deadline.is_none_or(|deadline| now < deadline);
                if !in_time || !self.send(host, lan, priority) {
                    let Some(daemon) = &mut self.hosts[host].daemon else { return Ok(()) };
                    daemon.machines[lan].on_advert_failed(work.since, &mut work.effects);
                }
            }
            Effect::Farewell { peer } => {
                let to = (0..self.hosts.len()).find(|other| address(*other) == peer);
                if let Some(to) = to.filter(|_| self.hosts[host].cables[lan]) {
                    self.write(host, to, lan, 0);
                }
            }
            Effect::Announce { .. } => {
                // The driver asks the lease before each frame.
                if self.hosts[host].holds(lan, self.now) && self.hosts[host].cables[lan] {
                    self.announced_at.insert((lan, host), self.now);
                    let arrives = self.now + nanos(self.delay());
                    self.at(arrives, Happening::Announced { from: host, lan });
                }
            }
            Effect::AddressesUp => self.hosts[host].addresses[lan] = true,
            Effect::AddressesDown => self.hosts[host].addresses[lan] = false,
            Effect::Transition { cause, .. } if self.is_settled() => {
                return Err(format!("host {host} changes its role long after the healing: {cause}"));
            }
            Effect::Transition { to: State::Fault, .. } => self.memories[host][lan].forget(),
            Effect::Transition { cause, .. } => self.count(match cause {
                Cause::Adopted => "adopted",
                Cause::LeaseLapsed => "lapsed",
                Cause::MasterSilent => "silent",
                Cause::MasterResigned => "resigned",
                Cause::BetterMaster { .. } => "yielded",
                Cause::Owner => "owner",
                Cause::Group => "group",
                Cause::HandedOver => "handed over",
                _ => "other",
            }),
        }
        Ok(())
    }

    /// True if it left for somebody.
    fn send(&mut self, host: usize, lan: usize, priority: u8) -> bool {
        if !self.hosts[host].cables[lan] {
            return false;
        }
        let settings = &self.hosts[host].settings[lan];
        let lasts = settings.advert_interval * settings.down_timer_adverts;
        self.hosts[host].earned[lan] = self.hosts[host].clock.show(self.now) + lasts;
        for to in (0..self.hosts.len()).filter(|to| *to != host) {
            self.write(host, to, lan, priority);
        }
        true
    }

    fn write(&mut self, host: usize, to: usize, lan: usize, priority: u8) {
        let (interval, tenure) =
            (self.hosts[host].settings[lan].advert_interval, self.hosts[host].tenures[lan]);
        let letter = Letter { from: host, lan, priority, interval, tenure };
        if let Some(arrives) = self.way(lan, host, to) {
            self.at(arrives, Happening::Letter { to, letter: letter.clone() });
        }
        if !self.healing && self.dice.chance(self.network.double_per_mille) {
            let later = self.dice.up_to(self.network.delay * 4);
            if let Some(arrives) = self.way(lan, host, to) {
                self.at(arrives + nanos(later), Happening::Letter { to, letter });
            }
        }
    }

    /// A lease begins, as was decided at `now`: if others run, there has to be a reason.
    fn judge_takeover(&mut self, host: usize, lan: usize, now: Monotonic) -> Verdict {
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            if !self.hosts[other].holds(lan, self.now) {
                continue;
            }
            let settings = &self.hosts[host].settings[lan];
            let excuse = match settings.start_as_master && settings.priority.is_owner() {
                true => Some(Excuse::Owner),
                false => {
                    self.memories[host][lan].excuse(other, self.hosts[other].tenures[lan], settings, now)
                }
            };
            let Some(excuse) = excuse else {
                let memory = &self.memories[host][lan];
                return Err(format!(
                    "host {host} takes over on LAN {lan} at {now:?} from {other}, which it has heard: {memory:?}"
                ));
            };
            self.say(|| format!("host {host} takes over beside {other}: {excuse:?}"));
            if excuse == Excuse::Preempts && !self.hosts[other].is_idle() {
                self.count("preempts one that has just died");
                self.forgiven.insert(lan);
            }
            if self.mood == Mood::Calm && excuse == Excuse::Told {
                return Err(format!("host {host} takes over from {other}, {excuse:?}, in a calm network"));
            }
            self.count(excuse.name());
        }
        Ok(())
    }
}
