//! What time is it? Machines take `now`; only drivers ask here.

use std::time::Duration;

use nix::{
    sys::time::TimeValLike as _,
    time::{ClockId, clock_gettime},
};

/// CLOCK_MONOTONIC, which leases are measured by.
pub fn monotonic() -> Duration {
    read(ClockId::CLOCK_MONOTONIC)
}

/// How long this host has been up, sleep included.
pub fn since_boot() -> Duration {
    read(ClockId::CLOCK_BOOTTIME)
}

/// The time of day, since 1970.
pub fn since_epoch() -> Duration {
    read(ClockId::CLOCK_REALTIME)
}

fn read(clock: ClockId) -> Duration {
    // It fails only where there is no such clock. Before 1970 is a mistake, too.
    let now = clock_gettime(clock).map_or(0, |now| now.num_nanoseconds());
    Duration::from_nanos(u64::try_from(now).unwrap_or(0))
}
