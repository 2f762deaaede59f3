//! What time is it, and how long does a test wait for something?

use std::{
    env,
    ops::Add,
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Result, bail};

/// A moment, comparable with the time that the kernel writes on a captured frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(Duration);

impl Stamp {
    #[expect(clippy::disallowed_methods, reason = "the lab watches real daemons on a real clock")]
    pub fn now() -> Self {
        // A clock before 1970 would only make all stamps equal.
        Self(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }

    pub(crate) fn from_unix(since_epoch: Duration) -> Self {
        Self(since_epoch)
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

/// Looks every few milliseconds until `look` finds something, for at most `limit` of what an ordinary machine needs.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Stamp::now();
    let limit = limit * slowness();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > limit {
            bail!("{what}: not within {limit:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// How many times slower than others this machine is: one that is emulated, as by `cargo xtask test --kernel`.
pub(crate) fn slowness() -> u32 {
    env::var("LAB_SLOWNESS").ok().and_then(|times| times.parse().ok()).unwrap_or(1)
}
