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

/// The directories of the labs that this process runs.
static CURRENT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static INSTALLED: Once = Once::new();

pub(crate) fn add_current(lab: &Path) {
    INSTALLED.call_once(|| match Signals::new([SIGINT, SIGTERM, SIGHUP]) {
        Ok(signals) => {
            thread::spawn(move || remove_on_signal(signals));
        }
        // The lab still ends properly by itself, and the next one sweeps.
        Err(error) => eprintln!("Ctrl-C will leave the lab behind: {error}"),
    });
    current().push(lab.to_owned());
}

/// Adds something to a lab that a signal must not miss. Where the signal came first, this waits for the end of
/// the program, which is near.
pub(crate) fn undisturbed<T>(work: impl FnOnce() -> T) -> T {
    let _lock = current();
    work()
}

/// For a test that ends with an error: it does not panic, and when it is known to have failed its lab is gone. Says nothing
/// while a lab is being removed.
pub(crate) fn print_current_logs() {
    if let Ok(current) = CURRENT.try_lock() {
        current.iter().for_each(|directory| lab::print_logs(directory));
    }
}

/// Removes a lab by `remove`, unless a signal came first: see [`undisturbed`].
pub(crate) fn leave_current(lab: &Path, remove: impl FnOnce()) {
    let mut current = current();
    remove();
    current.retain(|other| other != lab);
}

fn remove_on_signal(mut signals: Signals) {
    let Some(signal) = signals.forever().next() else { return };
    // Held to the end: see `undisturbed`.
    let current = current();
    for directory in current.iter() {
        eprintln!("removing {}", directory.display());
        if let Err(error) = lab::remove(directory) {
            eprintln!("{error:#}");
        }
    }
    process::exit(128 + signal);
}

fn current() -> MutexGuard<'static, Vec<PathBuf>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}
