//! A director: its daemon, as `vrrp/driver/engine.rs` runs it, and what outlives that.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use control::{
    config::model::Priority,
    vrrp::{
        Monotonic, State,
        group::{self, Member, Order, Own},
        machine::{Effects, Machine, Settings},
    },
};

use crate::clock::{Clock, Moment};

/// A socket's buffer.
const INBOX: usize = 500;

pub struct Host {
    /// One instance on each LAN.
    pub settings: Vec<Settings>,
    /// An operator has handed its roles over, to whom if that was said.
    pub handed_over: Option<Option<usize>>,
    /// Its priority while trackers are content.
    pub nominal: Priority,
    pub clock: Clock,
    pub daemon: Option<Daemon>,
    /// What the XDP program looks at.
    pub leases: Vec<Monotonic>,
    /// Until when its adverts let it answer.
    pub earned: Vec<Monotonic>,
    /// Which lease this is, by LAN, counted from their beginnings.
    pub tenures: Vec<usize>,
    pub addresses: Vec<bool>,
    pub cables: Vec<bool>,
    pub frozen: bool,
    /// Since when it could have taken over, had nobody else been there; `None` while it cannot.
    pub ready_since: Option<Moment>,
    pub wake_at: Moment,
}

pub struct Daemon {
    pub machines: Vec<Machine>,
    /// What it knows of its cables.
    pub cables: Vec<bool>,
    /// What is left to do, when the thread was stopped between two effects.
    pub unfinished: Option<Unfinished>,
    /// For a moment only, unlike [`Host::frozen`].
    pub stalled: bool,
    pub inbox: VecDeque<Letter>,
    /// All machines have had their start: the group may look at them.
    pub started: bool,
}

pub struct Unfinished {
    pub lan: usize,
    pub effects: Effects,
    /// When the input came of which these are the effects.
    pub since: Monotonic,
}

/// An advert on its way.
#[derive(Clone, Debug)]
pub struct Letter {
    pub from: usize,
    pub lan: usize,
    pub priority: u8,
    pub interval: Duration,
    pub tenure: usize,
}

pub fn address(host: usize) -> IpAddr {
    Ipv4Addr::from(0x0a00_0001 + host as u32).into()
}

impl Host {
    pub fn new(settings: Vec<Settings>, clock: Clock) -> Self {
        let lans = settings.len();
        Self {
            handed_over: None,
            nominal: settings[0].priority,
            settings,
            clock,
            daemon: None,
            leases: vec![Monotonic::default(); lans],
            earned: vec![Monotonic::default(); lans],
            tenures: vec![0; lans],
            addresses: vec![false; lans],
            cables: vec![true; lans],
            frozen: false,
            ready_since: None,
            wake_at: 0,
        }
    }

    pub fn holds(&self, lan: usize, now: Moment) -> bool {
        self.leases[lan] > self.clock.show(now)
    }

    pub fn is_master(&self, lan: usize) -> bool {
        self.daemon.as_ref().is_some_and(|daemon| daemon.machines[lan].state() == State::Master)
    }

    /// Its thread sleeps until something comes.
    pub fn is_idle(&self) -> bool {
        !self.frozen
            && self.daemon.as_ref().is_some_and(|daemon| !daemon.stalled && daemon.unfinished.is_none())
    }

    /// Alive, awake and plugged in everywhere.
    pub fn is_ready(&self) -> bool {
        let running = |daemon: &Daemon| daemon.started && !daemon.stalled;
        !self.frozen && self.daemon.as_ref().is_some_and(running) && self.cables.iter().all(|cable| *cable)
    }

    pub fn kill(&mut self) {
        self.daemon = None;
        // The next daemon does not know of it.
        self.handed_over = None;
        self.addresses.fill(false);
    }

    pub fn suspend(&mut self, now: Moment) {
        self.frozen = true;
        self.clock.suspend(now, true);
    }

    pub fn resume(&mut self, now: Moment) {
        self.frozen = false;
        self.clock.suspend(now, false);
    }

    pub fn is_suspended(&self) -> bool {
        self.clock.is_still()
    }

    pub fn reweigh(&mut self, priority: Priority) {
        self.settings.iter_mut().for_each(|settings| settings.priority = priority);
    }

    /// Into the socket's buffer, if there is one.
    pub fn receive(&mut self, letter: Letter) {
        if let Some(daemon) = &mut self.daemon
            && self.cables[letter.lan]
            && !self.clock.is_still()
            && daemon.inbox.len() < INBOX
        {
            daemon.inbox.push_back(letter);
        }
    }

    pub fn go_on(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.stalled = false;
        }
    }

    pub fn next_deadline(&self) -> Option<Monotonic> {
        self.daemon.as_ref()?.machines.iter().filter_map(Machine::next_deadline).min()
    }

    /// What the sync group has to tell a member next.
    pub fn next_order(&self, now: Moment) -> Option<(usize, Order)> {
        let now = self.clock.show(now);
        let daemon = self.daemon.as_ref().filter(|daemon| daemon.started && self.settings.len() > 1)?;
        group::next(daemon.machines.iter().zip(&daemon.cables).map(|(machine, cable)| Member {
            state: machine.state(),
            wants_master: machine.wants_master(now),
            own: if *cable { Own::Ready } else { Own::Failed },
        }))
    }
}

impl Daemon {
    pub fn new(settings: &[Settings]) -> Self {
        Self {
            machines: settings.iter().cloned().map(Machine::new).collect(),
            cables: vec![true; settings.len()],
            unfinished: None,
            stalled: false,
            inbox: VecDeque::new(),
            started: false,
        }
    }
}
