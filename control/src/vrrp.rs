//! Which director is master of a virtual address? The words all parts of VRRP share.

use std::{fmt, net::IpAddr, ops::Add, time::Duration};

pub mod auth;
pub mod board;
pub mod driver;
pub mod group;
pub mod machine;
pub mod packet;
mod realtime;
pub mod report;
mod socket;
pub mod track;
mod ways;

/// A point of CLOCK_MONOTONIC, the clock that leases are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Monotonic(u64);

impl Monotonic {
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub const fn nanos(self) -> u64 {
        self.0
    }

    pub fn earlier_by(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }

    /// The first point after `now` on the grid of `period` that `self` lies on. A late wake-up skips what it
    /// missed and does not shift the grid.
    pub fn next_after(self, period: Duration, now: Self) -> Self {
        let period = nanos(period).max(1);
        let missed = now.0.saturating_sub(self.0) / period;
        Self(self.0.saturating_add(period.saturating_mul(missed.saturating_add(1))))
    }
}

impl Add<Duration> for Monotonic {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// State of an instance as an operator knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Not started, or stopped.
    #[default]
    Init,
    Backup,
    Master,
    Fault,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Init => "INIT",
            Self::Backup => "BACKUP",
            Self::Master => "MASTER",
            Self::Fault => "FAULT",
        })
    }
}

/// Why an instance changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Started,
    /// Priority 255 and `state MASTER` wait for nobody.
    Owner,
    /// The lease of the previous run of the daemon had not ended: nobody can have taken over.
    Adopted,
    MasterSilent,
    MasterResigned,
    BetterMaster {
        address: IpAddr,
        priority: u8,
    },
    /// Ours is priority 255 too, and it does not yield to our higher address.
    OtherOwner {
        address: IpAddr,
    },
    /// The daemon, or its adverts, came to a halt for so long that a peer may have taken over.
    LeaseLapsed,
    Fault(FaultCause),
    Recovered,
    /// Another member of the sync group is not master.
    Group,
    /// An operator asked for it.
    HandedOver,
    Stopped,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => f.write_str("started"),
            Self::Owner => f.write_str("owner of the addresses"),
            Self::Adopted => f.write_str("adopted the lease of the previous run"),
            Self::MasterSilent => f.write_str("the master is silent"),
            Self::MasterResigned => f.write_str("the master resigned"),
            Self::BetterMaster { address, priority } => write!(f, "master {address} has priority {priority}"),
            Self::OtherOwner { address } => write!(f, "{address} owns the addresses too"),
            Self::LeaseLapsed => f.write_str("lease lapsed"),
            Self::Fault(cause) => write!(f, "{cause}"),
            Self::Recovered => f.write_str("recovered"),
            Self::Group => f.write_str("the sync group is not master"),
            Self::HandedOver => f.write_str("handed over"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// Why an instance cannot take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultCause {
    InterfaceMissing,
    LinkDown,
    /// The source address of its adverts is not on the interface.
    SourceMissing,
    /// It is to speak by unicast, and has nobody to speak to.
    NoPeer,
    /// The configuration has no such instance any more.
    Removed,
    /// By its place in the configuration.
    Tracker(u32),
    /// A tracker without weight has no result yet.
    Untried,
    /// Another member of the sync group.
    Group,
}

impl fmt::Display for FaultCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InterfaceMissing => f.write_str("interface missing"),
            Self::LinkDown => f.write_str("link down"),
            Self::SourceMissing => f.write_str("source address missing"),
            Self::NoPeer => f.write_str("no unicast_peer"),
            Self::Tracker(index) => write!(f, "tracker {index}"),
            Self::Untried => f.write_str("a tracker has no result yet"),
            Self::Removed => f.write_str("removed from the configuration"),
            Self::Group => f.write_str("the sync group is in FAULT"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_wake_up_skips_what_it_missed_and_keeps_the_grid() {
        let (at, period) = (Monotonic::from_nanos(100), Duration::from_nanos(10));
        for (now, next) in [(0, 110), (100, 110), (109, 110), (110, 120), (139, 140)] {
            assert_eq!(at.next_after(period, Monotonic::from_nanos(now)).nanos(), next, "woken at {now}");
        }
    }
}
