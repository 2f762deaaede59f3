//! Which directors, which network, and what goes wrong when? All of it follows from the seed.

use std::time::Duration;

use control::{
    config::model::{Garp, Preempt, Priority, Rules, Version},
    vrrp::machine::Settings,
};

use lvs_tests::Dice;

use crate::{clock::Moment, host::address};

/// How much may go wrong at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// One fault of one host at a time, none of the network. Two leases are told from one to the nanosecond.
    Calm,
    /// The same, over a network that loses, doubles and reorders.
    Lossy,
    /// All that can happen, at any time, to everybody.
    Wild,
}

/// What happens to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Crash,
    Freeze,
    Stop,
    /// Of one LAN, and the kernel knows.
    Unplug {
        lan: usize,
    },
    Reweigh {
        priority: Priority,
    },
    /// An operator wants another to be master, until it is repaired.
    HandOver {
        to: Option<usize>,
    },
    /// Nothing passes this way, and nobody is told.
    Cut {
        to: usize,
        lan: usize,
    },
    /// The machine as a whole stands still and its clock with it.
    Suspend,
    Jump {
        by: Duration,
    },
}

impl Fault {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Freeze => "freeze",
            Self::Stop => "stop",
            Self::Unplug { .. } => "unplug",
            Self::Reweigh { .. } => "reweigh",
            Self::HandOver { .. } => "hand over",
            Self::Cut { .. } => "cut",
            Self::Suspend => "suspend",
            Self::Jump { .. } => "jump",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Incident {
    pub at: Moment,
    pub repaired: Moment,
    pub host: usize,
    pub fault: Fault,
}

#[derive(Debug)]
pub struct Plan {
    pub mood: Mood,
    pub settings: Vec<Vec<Settings>>,
    pub drift_ppm: Vec<i64>,
    pub shows: Vec<u64>,
    pub starts: Vec<Moment>,
    /// The longest of all.
    pub interval: Duration,
    pub network: Network,
    pub incidents: Vec<Incident>,
    /// When all that was broken is whole again.
    pub healed: Moment,
}

#[derive(Clone, Copy, Debug)]
pub struct Network {
    pub delay: Duration,
    pub loss_per_mille: u64,
    pub double_per_mille: u64,
    /// Out of so many effects, the thread is stopped before one.
    pub stall_per_mille: u64,
}

/// Incidents begin in so many intervals.
const TROUBLE: u32 = 80;
pub const START: Moment = 1_000_000_000_000;

pub fn plan(dice: &mut Dice) -> Plan {
    let mood = dice.pick(&[Mood::Calm, Mood::Calm, Mood::Lossy, Mood::Wild, Mood::Wild]);
    let hosts = 2 + dice.index(4);
    let lans = if dice.chance(250) { 2 } else { 1 };
    let version = dice.pick(&[Version::V2, Version::V3, Version::V3]);
    let mixed_intervals = version == Version::V3 && mood == Mood::Wild && dice.chance(150);
    let interval = match version {
        Version::V2 => Duration::from_secs(1),
        Version::V3 if mixed_intervals => Duration::from_millis(100),
        Version::V3 => Duration::from_millis(dice.pick(&[10, 100, 1000])),
    };
    let preempt =
        dice.pick(&[Preempt::Immediate, Preempt::Immediate, Preempt::Never, Preempt::After(interval * 5)]);
    let mixed_preempt = mood == Mood::Wild && dice.chance(200);
    let equal = mood == Mood::Wild && dice.chance(200);
    let owner = dice.chance(150).then(|| dice.index(hosts));
    let down_timer_adverts = dice.pick(&[3, 3, 3, 2, 5]);
    let mut settings = Vec::new();
    for host in 0..hosts {
        let advert_interval = if mixed_intervals && host > 0 {
            Duration::from_millis(dice.pick(&[10, 20, 50]))
        } else {
            interval
        };
        let priority = match owner {
            Some(owner) if owner == host => Priority::OWNER,
            _ if equal => Priority::DEFAULT,
            // Skews lie further apart than any delay, or two backups take over before they hear of each other.
            _ => Priority::clamped(20 + 50 * host as i64),
        };
        let one = Settings {
            source: address(host),
            version,
            priority,
            advert_interval,
            start_as_master: priority.is_owner(),
            preempt: if mixed_preempt {
                dice.pick(&[Preempt::Immediate, Preempt::Never, Preempt::After(interval * 3)])
            } else {
                preempt
            },
            garp: Garp { delay: interval * 2, lower_prio_delay: interval * 2, ..Garp::default() },
            rules: Rules::default(),
            down_timer_adverts,
            grouped: lans > 1,
        };
        settings.push(vec![one; lans]);
    }
    let interval = settings.iter().map(|all| all[0].advert_interval).max().unwrap_or(interval);
    let network = match mood {
        Mood::Calm => {
            Network { delay: interval / 100, loss_per_mille: 0, double_per_mille: 0, stall_per_mille: 0 }
        }
        Mood::Lossy => {
            Network { delay: interval / 20, loss_per_mille: 50, double_per_mille: 50, stall_per_mille: 0 }
        }
        Mood::Wild => Network {
            delay: interval / dice.pick(&[2, 10, 100]),
            loss_per_mille: dice.pick(&[0, 20, 250]),
            double_per_mille: dice.pick(&[0, 20, 250]),
            stall_per_mille: dice.pick(&[0, 0, 5]),
        },
    };
    let starts: Vec<_> = (0..hosts).map(|_| START + nanos(dice.up_to(interval * 2))).collect();
    let end = START + nanos(interval * TROUBLE);
    let mut incidents = Vec::new();
    let settled = starts.iter().copied().max().unwrap_or(START);
    match mood {
        Mood::Wild => {
            for host in 0..hosts {
                let mut at = settled;
                while at < end {
                    at += nanos(dice.up_to(interval * 15));
                    let incident = incident(dice, host, at, &settings, interval, mood);
                    incidents.push(incident);
                    // Some faults overlap others of the same host.
                    at = if dice.chance(200) { at } else { incident.repaired };
                }
            }
        }
        // The next one when mastership, and its way back, has settled.
        Mood::Calm | Mood::Lossy => {
            let mut at = settled;
            while at < end {
                at += nanos(interval * 14 + dice.up_to(interval * 2));
                let host = dice.index(hosts);
                let incident = incident(dice, host, at, &settings, interval, mood);
                incidents.push(incident);
                at = incident.repaired;
            }
        }
    }
    let healed = incidents.iter().map(|it| it.repaired).fold(end, Moment::max);
    let drift_ppm = (0..hosts).map(|_| dice.roll(1001) as i64 - 500).collect();
    let shows = (0..hosts).map(|_| dice.roll(1 << 50)).collect();
    Plan { mood, settings, drift_ppm, shows, starts, interval, network, incidents, healed }
}

fn incident(
    dice: &mut Dice,
    host: usize,
    at: Moment,
    settings: &[Vec<Settings>],
    interval: Duration,
    mood: Mood,
) -> Incident {
    let (hosts, lans) = (settings.len(), settings[host].len());
    let fault = match dice.roll(if mood == Mood::Wild { 10 } else { 5 }) {
        0 => Fault::Crash,
        1 => Fault::Freeze,
        2 => Fault::Stop,
        3 => Fault::Unplug { lan: dice.index(lans) },
        4 if mood == Mood::Wild => Fault::Reweigh { priority: Priority::clamped(dice.roll(254) as i64) },
        // Below all others, whose skews are as far apart as they were.
        4 => Fault::Reweigh { priority: Priority::clamped(1 + 3 * host as i64) },
        5 | 6 => Fault::Cut { to: (host + 1 + dice.index(hosts - 1)) % hosts, lan: dice.index(lans) },
        7 => Fault::Suspend,
        8 => {
            let peer = (host + 1 + dice.index(hosts - 1)) % hosts;
            Fault::HandOver { to: dice.chance(500).then_some(peer) }
        }
        _ => Fault::Jump { by: dice.up_to(interval * 6) },
    };
    // Short enough to resume or adopt, or long enough to lose the lease.
    let repaired = at + nanos(dice.up_to(interval * 6));
    Incident { at, repaired, host, fault }
}

pub fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
