//! What does CLOCK_MONOTONIC of a host show? None shows the same as another, and none is exact.

use std::time::Duration;

use control::vrrp::Monotonic;

/// A moment of the world that no host can read, in nanoseconds.
pub type Moment = u64;

pub struct Clock {
    since: Moment,
    showed: u64,
    drift_ppm: i64,
    /// Of a machine that is suspended as a whole.
    still: bool,
}

impl Clock {
    pub fn new(now: Moment, shows: u64, drift_ppm: i64) -> Self {
        Self { since: now, showed: shows, drift_ppm, still: false }
    }

    pub fn show(&self, now: Moment) -> Monotonic {
        let elapsed = if self.still { 0 } else { i128::from(now - self.since) };
        let passed = elapsed * i128::from(1_000_000 + self.drift_ppm) / 1_000_000;
        Monotonic::from_nanos(self.showed + passed as u64)
    }

    /// The first moment at which it shows `time`, if it goes on like this.
    pub fn when(&self, time: Monotonic, now: Moment) -> Option<Moment> {
        if time <= self.show(now) {
            return Some(now);
        }
        if self.still {
            return None;
        }
        let wanted = i128::from(time.nanos() - self.showed);
        let rate = i128::from(1_000_000 + self.drift_ppm);
        Some(self.since + ((wanted * 1_000_000 + rate - 1) / rate) as u64)
    }

    pub fn jump(&mut self, now: Moment, by: Duration) {
        self.rebase(now);
        self.showed += by.as_nanos() as u64;
    }

    pub fn suspend(&mut self, now: Moment, still: bool) {
        self.rebase(now);
        self.still = still;
    }

    pub fn is_still(&self) -> bool {
        self.still
    }

    fn rebase(&mut self, now: Moment) {
        (self.showed, self.since) = (self.show(now).nanos(), now);
    }
}
