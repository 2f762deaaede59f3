//! What only time changes about a real server: `slow_start` raises its weight step by step, `drain_timeout` ends what
//! is left of a drain.

use std::time::Instant;

use super::Standing;
use crate::config::model::Pace;

/// Weights change this many times at most until a real server has all of its own: each change moves flows to be looked up.
const STEPS: u128 = 10;

/// Where a real server is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// Not looked at yet: what stands at the start stands in full.
    New,
    Up,
    Rising {
        since: Instant,
        /// Of [`STEPS`].
        step: u16,
    },
    Draining {
        since: Instant,
        over: bool,
    },
    Down,
}

impl Course {
    pub fn advance(self, standing: Standing, pace: Pace, now: Instant) -> Self {
        match (standing, self) {
            (Standing::Down, _) => Self::Down,
            (Standing::Draining, was) => {
                let since = if let Self::Draining { since, .. } = was { since } else { now };
                let past = now.saturating_duration_since(since);
                Self::Draining { since, over: pace.drain_timeout.is_some_and(|limit| past >= limit) }
            }
            (Standing::Up, Self::New | Self::Up) => Self::Up,
            (Standing::Up, was) => {
                let since = if let Self::Rising { since, .. } = was { since } else { now };
                let past = now.saturating_duration_since(since);
                if past >= pace.slow_start {
                    return Self::Up;
                }
                let step = past.as_nanos() * STEPS / pace.slow_start.as_nanos().max(1);
                Self::Rising { since, step: step as u16 }
            }
        }
    }

    /// What of a weight counts for new flows. Never nothing: a pool of which all rise together is not empty.
    pub fn part_of(self, weight: u16) -> u16 {
        match self {
            Self::Rising { step, .. } => {
                let part = u128::from(weight) * u128::from(step) / STEPS;
                (part as u16).max(weight.min(1))
            }
            _ => weight,
        }
    }

    /// Whether time changes it.
    pub fn is_moving(self, pace: Pace) -> bool {
        match self {
            Self::Rising { .. } => true,
            Self::Draining { over, .. } => !over && pace.drain_timeout.is_some(),
            Self::New | Self::Up | Self::Down => false,
        }
    }

    /// Its connections are to end.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Draining { over: true, .. })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PACE: Pace =
        Pace { slow_start: Duration::from_secs(10), drain_timeout: Some(Duration::from_secs(5)) };

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn a_weight_rises_in_steps_after_a_return_and_not_at_the_start() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let course = Course::New.advance(Standing::Up, PACE, start);
        assert_eq!(course.part_of(100), 100);

        let mut course = course.advance(Standing::Down, PACE, start);
        let mut parts = Vec::new();
        for second in 1..=12 {
            course = course.advance(Standing::Up, PACE, at(second));
            parts.push(course.part_of(100));
        }
        assert_eq!(parts, [1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 100]);
        let lowest = course.advance(Standing::Draining, PACE, at(13)).advance(Standing::Up, PACE, at(14));
        assert_eq!((lowest.part_of(1), lowest.part_of(0)), (1, 0));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn a_drain_is_over_when_its_time_has_passed_since_it_began() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let course = Course::Up.advance(Standing::Draining, PACE, start);
        let later = course.advance(Standing::Draining, PACE, at(4));
        assert!(!later.is_over());
        assert!(later.advance(Standing::Draining, PACE, at(5)).is_over());
        let again = later.advance(Standing::Up, PACE, at(4)).advance(Standing::Draining, PACE, at(5));
        assert!(!again.advance(Standing::Draining, PACE, at(9)).is_over(), "another drain, another time");
        let without = Pace::default();
        assert!(!course.advance(Standing::Draining, without, at(1_000_000)).is_over());
        assert_eq!(Course::Down.advance(Standing::Up, without, at(1)).part_of(7), 7);
    }
}
