//! What do trackers make of an instance: which priority, or which fault?

use std::{fmt, time::Duration};

use super::{FaultCause, Monotonic};
use crate::config::model::{Priority, Track};

mod process;
pub mod watch;

/// What is known of a tracker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Finding {
    /// It was never looked at.
    #[default]
    Untried,
    Up,
    Down,
    /// A file holds it.
    Number(i32),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untried => f.write_str("untried"),
            Self::Up => f.write_str("up"),
            Self::Down => f.write_str("down"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

/// An instance with all that is tracked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub priority: Priority,
    pub fault: Option<FaultCause>,
}

/// A file may take a priority so far up, and so far down it is a fault, as in keepalived.
const MOST: i64 = 253;
const TOO_LOW: i64 = -254;

/// `findings` are in the order of the configuration's trackers.
pub fn judge(base: Priority, tracks: &[Track], findings: &[Finding]) -> Standing {
    let mut sum = i64::from(base.get());
    let (mut failed, mut untried) = (None, None);
    for track in tracks {
        let finding = findings.get(track.tracker).copied().unwrap_or_default();
        match effect(track, finding) {
            Some(Effect::Adds(change)) => sum += change,
            Some(Effect::Fails) => {
                failed = failed.or(u32::try_from(track.tracker).ok().map(FaultCause::Tracker));
            }
            None if track.weight == 0 && finding == Finding::Untried => untried = Some(FaultCause::Untried),
            None => {}
        }
    }
    let priority = if base.is_owner() { base } else { Priority::clamped(sum) };
    Standing { priority, fault: failed.or(untried) }
}

enum Effect {
    Adds(i64),
    Fails,
}

fn effect(track: &Track, finding: Finding) -> Option<Effect> {
    let weight = i64::from(track.weight);
    let signed = |change: i64| if track.reverse { -change } else { change };
    let fails = |is_up: bool| (is_up == track.reverse).then_some(Effect::Fails);
    match finding {
        Finding::Untried => None,
        Finding::Number(number) if weight == 0 => fails(number == 0),
        Finding::Number(number) => match signed(weight * i64::from(number)) {
            ..=TOO_LOW => Some(Effect::Fails),
            change => Some(Effect::Adds(change.min(MOST))),
        },
        Finding::Up | Finding::Down if weight == 0 => fails(finding == Finding::Up),
        Finding::Up => (weight > 0).then(|| Effect::Adds(signed(weight))),
        Finding::Down => (weight < 0).then(|| Effect::Adds(signed(weight))),
    }
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
            Finding::Up => self.fall,
            Finding::Down => self.rise,
            Finding::Untried | Finding::Number(_) => 1,
        };
        self.against = if result == self.finding { 0 } else { self.against + 1 };
        if self.against >= needed.max(1) {
            (self.finding, self.against) = (result, 0);
        }
    }
}

/// What comes and goes counts only once it has lasted.
#[derive(Debug)]
pub struct Debounce {
    up_delay: Duration,
    down_delay: Duration,
    finding: Finding,
    /// When what is seen will count.
    due: Option<Monotonic>,
}

impl Debounce {
    pub fn new(up_delay: Duration, down_delay: Duration, finding: Finding) -> Self {
        Self { up_delay, down_delay, finding, due: None }
    }

    pub fn finding(&self) -> Finding {
        self.finding
    }

    /// What is seen first counts at once.
    pub fn on_look(&mut self, is_up: bool, now: Monotonic) -> Finding {
        let (seen, delay) =
            if is_up { (Finding::Up, self.up_delay) } else { (Finding::Down, self.down_delay) };
        if seen == self.finding {
            self.due = None;
        } else if self.finding == Finding::Untried || now >= *self.due.get_or_insert(now + delay) {
            (self.finding, self.due) = (seen, None);
        }
        self.finding
    }

    /// Until what was seen last will count, if it is seen then too.
    pub fn left(&self, now: Monotonic) -> Option<Duration> {
        self.due.map(|due| Duration::from_nanos(due.nanos().saturating_sub(now.nanos())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn priority(of: i64) -> Priority {
        Priority::new(of).unwrap()
    }

    fn track(weight: i32, reverse: bool) -> Track {
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
    fn the_number_of_a_file_counts_times_its_weight_and_too_low_is_a_fault() {
        let fault = Some(FaultCause::Tracker(0));
        for (weight, reverse, number, expected) in [
            (1, false, 20, (120, None)),
            (-2, false, 20, (60, None)),
            (2, true, 20, (60, None)),
            (1, false, -253, (1, None)),
            (1, false, -254, (100, fault)),
            (2, false, -127, (100, fault)),
            (-1, true, -254, (100, fault)),
            (1, false, i32::MAX, (254, None)),
            (i32::MIN, false, i32::MAX, (100, fault)),
            (0, false, 0, (100, None)),
            (0, false, -1, (100, fault)),
            (0, true, 0, (100, fault)),
            (0, true, 7, (100, None)),
        ] {
            let judged = judged(100, track(weight, reverse), Finding::Number(number));
            assert_eq!(judged, expected, "weight {weight} {reverse} times {number}");
        }
        assert_eq!(judged(255, track(1, false), Finding::Number(-254)), (255, fault), "the owner too");
        assert_eq!(judged(100, track(0, false), Finding::Untried).1, Some(FaultCause::Untried));
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
                Finding::Up => 'U',
                Finding::Down => 'D',
                Finding::Untried | Finding::Number(_) => '?',
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

    #[test]
    fn what_comes_and_goes_counts_once_it_has_lasted() {
        let at = |seconds| Monotonic::default() + Duration::from_secs(seconds);
        let mut debounce = Debounce::new(Duration::from_secs(3), Duration::from_secs(2), Finding::Untried);
        assert_eq!(debounce.on_look(true, at(10)), Finding::Up, "the first at once");
        assert_eq!(
            (debounce.on_look(false, at(20)), debounce.left(at(21))),
            (Finding::Up, Some(Duration::from_secs(1)))
        );
        assert_eq!((debounce.on_look(true, at(21)), debounce.left(at(21))), (Finding::Up, None));
        assert_eq!(debounce.on_look(false, at(30)), Finding::Up);
        assert_eq!(debounce.on_look(false, at(32)), Finding::Down);
        assert_eq!(debounce.on_look(true, at(33)), Finding::Down);
        assert_eq!(debounce.on_look(true, at(36)), Finding::Up);
        let mut at_once = Debounce::new(Duration::ZERO, Duration::ZERO, Finding::Up);
        assert_eq!(at_once.on_look(false, at(1)), Finding::Down);
    }
}
