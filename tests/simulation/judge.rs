//! Was that right? What VRRP promises, and where it cannot promise, whether the reason was one of the lawful ones.

use std::time::Duration;

use control::{
    config::model::Preempt,
    vrrp::{Monotonic, machine::Settings},
};

use crate::host::Letter;

/// Why a host may take over while another one's lease runs. No other reason counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excuse {
    /// It has read no advert of the other, since that one has taken over, for as long as a lease lasts: lost, late or
    /// both.
    Deaf,
    /// It has better priority and may preempt; it has just heard the other, who will yield to its first advert. This
    /// is VRRP's own rule (ARCHITECTURE.md, the lease).
    Preempts,
    /// A master has resigned, and of the other nothing was heard since.
    Told,
    /// There were two masters already. It has heard the other one last, which is silent now, or which it preempts.
    HeardAnother,
    /// Priority 255 with `state MASTER` asks nobody.
    Owner,
}

impl Excuse {
    pub fn name(self) -> &'static str {
        match self {
            Self::Deaf => "deaf",
            Self::Preempts => "preempts",
            Self::Told => "told",
            Self::HeardAnother => "heard another",
            Self::Owner => "owner asks nobody",
        }
    }
}

/// What one host has read on one LAN.
#[derive(Clone, Debug)]
pub struct Memory {
    heard: Vec<Option<Heard>>,
    /// Who was heard last.
    last: Option<usize>,
    resigned: bool,
    lower_since: Option<Monotonic>,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Monotonic,
    interval: Duration,
    tenure: usize,
    /// Its sender was not to be obeyed.
    preempted: bool,
}

impl Memory {
    pub fn new(hosts: usize) -> Self {
        Self { heard: vec![None; hosts], last: None, resigned: false, lower_since: None }
    }

    /// A daemon that has just started knows of nobody.
    pub fn forget(&mut self) {
        *self = Self::new(self.heard.len());
    }

    pub fn read(&mut self, letter: &Letter, settings: &Settings, now: Monotonic) {
        if letter.priority == 0 {
            self.resigned = true;
            return;
        }
        let preempted = if letter.priority >= settings.priority.get() {
            self.lower_since = None;
            false
        } else {
            match settings.preempt {
                Preempt::Never => false,
                Preempt::Immediate => true,
                Preempt::After(delay) => now >= *self.lower_since.get_or_insert(now) + delay,
            }
        };
        let heard = Heard { at: now, interval: letter.interval, tenure: letter.tenure, preempted };
        self.heard[letter.from] = Some(heard);
        self.last = Some(letter.from);
        self.resigned = false;
    }

    /// Why this host may take over at `now` although `other` has a lease, which began with `tenure`.
    pub fn excuse(&self, other: usize, tenure: usize, settings: &Settings, now: Monotonic) -> Option<Excuse> {
        let adverts = settings.down_timer_adverts;
        let over = |heard: Heard| now >= heard.at + heard.interval * adverts;
        // Else it may be dead, and its lease is to be waited for.
        let alive = |heard: Heard| now <= heard.at + heard.interval + heard.interval / 2;
        let heard = match self.heard[other] {
            Some(heard) if heard.tenure == tenure && !over(heard) => heard,
            _ => return Some(Excuse::Deaf),
        };
        if self.resigned {
            return Some(Excuse::Told);
        }
        let entitled = |heard: Heard| if heard.preempted { alive(heard) || over(heard) } else { over(heard) };
        let last = self.last.filter(|last| *last != other).and_then(|last| self.heard[last]);
        match last {
            None => entitled(heard).then_some(Excuse::Preempts),
            Some(last) => entitled(last).then_some(Excuse::HeardAnother),
        }
    }
}
