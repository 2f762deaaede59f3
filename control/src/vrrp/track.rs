//! What do trackers make of an instance: which priority, or which fault?

use std::fmt;

use super::FaultCause;
use crate::config::model::{Priority, Track};

pub mod watch;

/// What is known of a tracker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Finding {
    /// It was never looked at.
    #[default]
    Untried,
    Up,
    Down,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untried => "untried",
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}

/// An instance with all that is tracked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub priority: Priority,
    pub fault: Option<FaultCause>,
}

/// `findings` are in the order of the configuration's trackers.
pub fn judge(base: Priority, tracks: &[Track], findings: &[Finding]) -> Standing {
    let mut sum = i64::from(base.get());
    let (mut failed, mut untried) = (None, None);
    for track in tracks {
        let finding = findings.get(track.tracker).copied().unwrap_or_default();
        let weight = i64::from(track.weight);
        let counts = match finding {
            Finding::Untried => false,
            Finding::Up => weight > 0,
            Finding::Down => weight < 0,
        };
        if counts {
            sum += if track.reverse { -weight } else { weight };
        } else if weight == 0 && finding == Finding::Untried {
            untried = Some(FaultCause::Untried);
        } else if weight == 0 && (finding == Finding::Up) == track.reverse {
            failed = failed.or(u32::try_from(track.tracker).ok().map(FaultCause::Tracker));
        }
    }
    let priority = if base.is_owner() { base } else { Priority::clamped(sum) };
    Standing { priority, fault: failed.or(untried) }
}

/// Results of a script in a row, counted as keepalived counts them.
#[derive(Debug)]
pub struct Streak {
    rise: u32,
    fall: u32,
    finding: Finding,
    /// Results since the last one that agreed with the finding.
    against: u32,
}

impl Streak {
    pub fn new(rise: u32, fall: u32, finding: Finding) -> Self {
        Self { rise, fall, finding, against: 0 }
    }

    pub fn finding(&self) -> Finding {
        self.finding
    }

    pub fn on_result(&mut self, success: bool) {
        let result = if success { Finding::Up } else { Finding::Down };
        let needed = match self.finding {
            // The first result counts fully.
            Finding::Untried => 1,
            Finding::Up => self.fall,
            Finding::Down => self.rise,
        };
        self.against = if result == self.finding { 0 } else { self.against + 1 };
        if self.against >= needed.max(1) {
            (self.finding, self.against) = (result, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn priority(of: i64) -> Priority {
        Priority::new(of).unwrap()
    }

    fn track(weight: i16, reverse: bool) -> Track {
        Track { tracker: 0, weight, reverse }
    }

    fn judged(base: i64, track: Track, finding: Finding) -> (u8, Option<FaultCause>) {
        let standing = judge(priority(base), &[track], &[finding]);
        (standing.priority.get(), standing.fault)
    }

    #[test]
    fn a_positive_weight_rewards_and_a_negative_one_punishes() {
        use Finding::{Down, Untried, Up};
        for (weight, reverse, [untried, up, down]) in [
            (20, false, [100, 120, 100]),
            (-20, false, [100, 100, 80]),
            (20, true, [100, 80, 100]),
            (-20, true, [100, 100, 120]),
        ] {
            for (finding, expected) in [(Untried, untried), (Up, up), (Down, down)] {
                let judged = judged(100, track(weight, reverse), finding);
                assert_eq!(judged, (expected, None), "weight {weight} {reverse} {finding:?}");
            }
        }
    }

    #[test]
    fn the_priority_stays_within_1_and_254_and_the_owner_keeps_his() {
        assert_eq!(judged(100, track(-253, false), Finding::Down), (1, None));
        assert_eq!(judged(100, track(253, false), Finding::Up), (254, None));
        assert_eq!(judged(255, track(-253, false), Finding::Down), (255, None));
    }

    #[test]
    fn weights_are_added_before_the_sum_is_cut() {
        let tracks = [
            track(253, false),
            Track { tracker: 1, weight: -200, reverse: false },
            Track { tracker: 2, weight: 50, reverse: false },
        ];
        let standing = judge(priority(100), &tracks, &[Finding::Up, Finding::Down, Finding::Down]);
        assert_eq!(standing.priority.get(), 153);
    }

    #[test]
    fn without_a_weight_a_failure_is_a_fault_that_names_its_tracker() {
        let tracks = [1, 0].map(|tracker| Track { tracker, weight: 0, reverse: false });
        let fault = |findings: &[Finding]| judge(priority(100), &tracks, findings).fault;
        assert_eq!(fault(&[Finding::Up, Finding::Up]), None);
        assert_eq!(fault(&[Finding::Up, Finding::Down]), Some(FaultCause::Tracker(1)));
        assert_eq!(fault(&[Finding::Up, Finding::Untried]), Some(FaultCause::Untried));
        assert_eq!(fault(&[Finding::Down, Finding::Untried]), Some(FaultCause::Tracker(0)));
        assert_eq!(judged(100, track(0, true), Finding::Up).1, Some(FaultCause::Tracker(0)));
        assert_eq!(judged(100, track(0, true), Finding::Down).1, None);
    }

    fn findings(streak: &mut Streak, results: &str) -> String {
        let mut letters = results.chars().map(|result| {
            streak.on_result(result == '+');
            match streak.finding() {
                Finding::Untried => '?',
                Finding::Up => 'U',
                Finding::Down => 'D',
            }
        });
        letters.by_ref().collect()
    }

    #[test]
    fn it_takes_rise_successes_or_fall_failures_in_a_row() {
        let mut streak = Streak::new(3, 2, Finding::Untried);
        assert_eq!(streak.finding(), Finding::Untried);
        assert_eq!(findings(&mut streak, "+-+--++-+++-"), "UUUUDDDDDDUU");
    }

    #[test]
    fn the_first_result_counts_fully_except_after_init_fail() {
        assert_eq!(findings(&mut Streak::new(3, 3, Finding::Untried), "+"), "U");
        assert_eq!(findings(&mut Streak::new(3, 3, Finding::Untried), "-+++"), "DDDU");
        let mut failed = Streak::new(2, 3, Finding::Down);
        assert_eq!(failed.finding(), Finding::Down);
        assert_eq!(findings(&mut failed, "++"), "DU");
    }
}
