//! Ctrl-C: the running lab is removed before the program ends.

use std::{
    path::{Path, PathBuf},
    process,
    sync::{Mutex, MutexGuard, Once, PoisonError},
    thread,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::lab;

/// The directory of the lab that this process runs; the lock on labs allows one at a time.
static CURRENT: Mutex<Option<PathBuf>> = Mutex::new(None);
static INSTALLED: Once = Once::new();

pub(crate) fn set_current(lab: &Path) {
    INSTALLED.call_once(|| match Signals::new([SIGINT, SIGTERM, SIGHUP]) {
        Ok(signals) => {
            thread::spawn(move || remove_on_signal(signals));
        }
        // The lab still ends properly by itself, and the next one sweeps.
        Err(error) => eprintln!("Ctrl-C will leave the lab behind: {error}"),
    });
    *current() = Some(lab.to_owned());
}

/// Adds something to the lab that a signal must not miss. Where the signal came first, this waits for the end of
/// the program, which is near.
pub(crate) fn undisturbed<T>(work: impl FnOnce() -> T) -> T {
    let _lock = current();
    work()
}

/// For a test that ends with an error: it does not panic, and when it is known to have failed its lab is gone. Says nothing
/// while the lab is being removed.
pub(crate) fn print_current_logs() {
    if let Ok(current) = CURRENT.try_lock()
        && let Some(directory) = current.as_ref()
    {
        lab::print_logs(directory);
    }
}

/// Removes the current lab by `remove`, unless a signal came first: see [`undisturbed`].
pub(crate) fn leave_current(remove: impl FnOnce()) {
    let mut current = current();
    remove();
    *current = None;
}

fn remove_on_signal(mut signals: Signals) {
    let Some(signal) = signals.forever().next() else { return };
    // Held to the end: see `undisturbed`.
    let current = current();
    if let Some(directory) = current.as_ref() {
        eprintln!("removing the lab");
        if let Err(error) = lab::remove(directory) {
            eprintln!("{error:#}");
        }
    }
    process::exit(128 + signal);
}

fn current() -> MutexGuard<'static, Option<PathBuf>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}
