//! What keeps a busy machine out of what the lab measures?

use nix::{errno::Errno, libc};

/// Before all that is not real-time, behind the VRRP thread of `lvsd`.
const PRIORITY: i32 = 10;

/// For the thread of an instrument, which sleeps between its short works: on a busy machine it would see its own
/// lateness otherwise.
pub fn enter() {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: `parameters` is valid for the call; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) };
    if let Err(error) = Errno::result(result) {
        eprintln!("no real-time scheduling, measurements depend on the machine's load: {error}");
    }
}
