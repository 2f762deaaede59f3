//! What keeps other work on this host from delaying an advert?

use nix::{
    errno::Errno,
    libc,
    sys::{
        mman::{MlockAllFlags, mlockall},
        signal::SigSet,
    },
};

/// Above everything that is not real-time itself, below the kernel's own threads at 99.
const PRIORITY: i32 = 50;

/// Keeps the whole daemon out of swap: a page fault on the VRRP thread may take longer than a lease.
pub fn lock_memory() {
    if let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        tracing::warn!(%error, "memory not locked: under memory pressure adverts may be late");
    }
}

/// Makes the calling thread a real-time one that no signal interrupts.
pub fn enter() {
    if let Err(error) = SigSet::all().thread_block() {
        tracing::warn!(%error, "signals not blocked on the VRRP thread");
    }
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: `parameters` is valid for the call; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) };
    if let Err(error) = Errno::result(result) {
        tracing::warn!(%error, "no real-time scheduling: under load adverts may be late");
    }
}
