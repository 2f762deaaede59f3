//! When does a real server leave the pool, when does it return, and when is the next probe due?
//!
//! keepalived's rules. A real server starts in the pool, and its very first failure takes it out; after that
//! it takes `retry` + 1 failures in a row. One success brings it back. Where `rise` or `fall` are given, they are
//! the numbers of results in a row that count instead. With several urls one is asked per
//! cycle; after a failure the failed url is asked until it answers, and then every url must answer once.

use std::time::{Duration, Instant};

use crate::config::model::{Check, CheckKind, CheckTiming};

/// One checker. Feed it what its probes found; it says when and what to ask next.
#[derive(Clone, Debug)]
pub struct Machine {
    timing: CheckTiming,
    /// `None`: the check has no urls.
    urls: Option<Urls>,
    state: State,
    /// A verdict has been given.
    decided: bool,
    due: Instant,
}

/// What one probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    Success,
    Failure,
    /// This host could not even try: it says nothing about the real server.
    NotTried,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Up,
    Down,
}

#[derive(Clone, Copy, Debug)]
struct Urls {
    count: usize,
    next: usize,
    /// The next url is the one that took the real server out.
    failed: bool,
    /// On the way back all are asked without a pause.
    fast: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Up { failures: u32 },
    Down { successes: u32 },
}

/// Before the first probe, so that interfaces and routes can settle.
const BOOT_DELAY: Duration = Duration::from_secs(1);
/// A delay of zero would spin; one beyond a year could leave the clock's range.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

impl Machine {
    /// `up` is whether the real server starts in the pool: it does, unless a daemon before this one had taken
    /// it out. `random` spreads the first probes of many checkers over `warmup`.
    pub fn new(check: &Check, up: bool, random: u32, now: Instant) -> Self {
        let timing = *check.timing;
        let warmup = timing.warmup.min(LONGEST).mul_f64(f64::from(random) / (f64::from(u32::MAX) + 1.0));
        Self {
            timing,
            urls: match &check.kind {
                CheckKind::Http(http) => {
                    Some(Urls { count: http.urls.len(), next: 0, failed: false, fast: http.fast_recovery })
                }
                _ => None,
            },
            state: match (up, timing.fall) {
                // The retries count as used up: the first failure decides.
                (true, None) => State::Up { failures: timing.retry },
                (true, Some(_)) => State::Up { failures: 0 },
                (false, _) => State::Down { successes: 0 },
            },
            decided: false,
            due: now + BOOT_DELAY + warmup,
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// When the next probe shall start.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Index of the url to ask; 0 for a check without urls.
    pub fn url(&self) -> usize {
        self.urls.map_or(0, |urls| urls.next)
    }

    /// A probe has ended at `now`: delays count from the end of a check, not from its start.
    pub fn on_finding(&mut self, finding: Finding, now: Instant) -> Option<Change> {
        let (delay, change) = match finding {
            Finding::Success => {
                let change = self.on_success();
                (if self.hurries() { Duration::ZERO } else { self.timing.delay_loop }, change)
            }
            Finding::Failure => self.on_failure(),
            Finding::NotTried => (self.timing.delay_loop, None),
        };
        self.due = now + delay.clamp(SHORTEST, LONGEST);
        change
    }

    /// Within a round on the way back, with `fast_recovery`.
    fn hurries(&self) -> bool {
        match (self.state, self.urls) {
            (State::Down { successes }, Some(urls)) => urls.fast && (urls.next > 0 || successes == 0),
            _ => false,
        }
    }

    fn on_success(&mut self) -> Option<Change> {
        if (self.decided || self.timing.fall.is_some()) && matches!(self.state, State::Up { .. }) {
            self.state = State::Up { failures: 0 };
        }
        if let Some(urls) = &mut self.urls {
            if urls.failed {
                // It answers again; that is no proof for the others: all of them, from the first.
                (urls.failed, urls.next) = (false, 0);
                return None;
            }
            urls.next += 1;
            if urls.next < urls.count {
                return None;
            }
            urls.next = 0;
        }
        let news = match &mut self.state {
            State::Down { successes } => {
                *successes += 1;
                if *successes < self.timing.rise {
                    return None;
                }
                true
            }
            State::Up { .. } => !self.decided,
        };
        self.decided = true;
        self.state = State::Up { failures: 0 };
        news.then_some(Change::Up)
    }

    fn on_failure(&mut self) -> (Duration, Option<Change>) {
        let CheckTiming { delay_loop, delay_before_retry, retry, fall, .. } = self.timing;
        let tolerated = fall.map_or(retry, |fall| fall.saturating_sub(1));
        let change = match &mut self.state {
            State::Up { failures } if *failures < tolerated => {
                *failures += 1;
                return (delay_before_retry, None);
            }
            State::Up { .. } => Some(Change::Down),
            State::Down { .. } => (!self.decided).then_some(Change::Down),
        };
        self.state = State::Down { successes: 0 };
        self.decided = true;
        let delay = match &mut self.urls {
            None => delay_loop,
            Some(urls) => {
                urls.failed = true;
                delay_loop.max(delay_before_retry)
            }
        };
        (delay, change)
    }
}

#[cfg(test)]
mod tests;
