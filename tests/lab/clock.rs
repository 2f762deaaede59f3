//! What time is it, and how long does a test wait for something?

use std::{env, ops::Add, thread, time::Duration};

use anyhow::{Result, bail};
use nix::time::{ClockId, clock_gettime};

use crate::signals::print_current_logs;

/// A moment of the clock that nobody sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(Duration);

impl Stamp {
    #[cfg(test)]
    pub(crate) const START: Self = Self(Duration::ZERO);

    pub fn now() -> Self {
        Self(read(ClockId::CLOCK_MONOTONIC))
    }

    /// The time that the kernel wrote on a frame a moment ago, by the clock that can be set.
    pub(crate) fn of_frame(since_epoch: Duration) -> Self {
        let age = read(ClockId::CLOCK_REALTIME).saturating_sub(since_epoch);
        Self(Self::now().0.saturating_sub(age))
    }

    pub fn nanos(self) -> u64 {
        self.0.as_nanos() as u64
    }

    /// Zero where `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    pub fn elapsed(self) -> Duration {
        Self::now().since(self)
    }
}

impl Add<Duration> for Stamp {
    type Output = Self;
    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }
}

fn read(clock: ClockId) -> Duration {
    // Every Linux has both clocks.
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// Looks every few milliseconds until `look` finds something, for at most `limit` of what an ordinary machine needs. In
/// vain, the lab's logs are printed.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Stamp::now();
    let limit = limit * slowness();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > limit {
            print_current_logs();
            bail!("{what}: not within {limit:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Time for what must not happen, or for what nothing tells: as much more of it on a slow machine as [`wait_for`] has.
pub fn pause(time: Duration) {
    thread::sleep(time * slowness());
}

/// How many times slower than others this machine is: one that is emulated, as by `cargo xtask test --kernel`.
pub(crate) fn slowness() -> u32 {
    env::var("LAB_SLOWNESS").ok().and_then(|times| times.parse().ok()).unwrap_or(1)
}
