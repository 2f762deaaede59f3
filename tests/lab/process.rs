//! A program that runs on a host of the lab, and dies with it.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{signals::undisturbed, wait_for};

/// Its output goes to a log file. Dropped, it is killed, unless the lab is kept.
pub struct Process {
    label: String,
    child: Child,
    log: PathBuf,
    kept: Arc<AtomicBool>,
}

impl Process {
    pub(crate) fn spawn(
        label: &str,
        mut command: Command,
        log: PathBuf,
        kept: Arc<AtomicBool>,
    ) -> Result<Self> {
        let child = undisturbed(|| {
            let output = File::options().create(true).append(true).open(&log)?;
            command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn()
        })
        .with_context(|| format!("starting {label} ({:?})", command.get_program()))?;
        Ok(Self { label: label.to_owned(), child, log, kept })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        signal_pid(self.pid(), signal).with_context(|| format!("{signal} to {}", self.label))
    }

    /// As the kernel's OOM killer does it: no last word.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }

    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait_for(&format!("end of {}", self.label), limit, || Ok(self.child.try_wait()?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Relaxed) {
            // Both fail only where it has ended and been waited for.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

pub(crate) fn signal_pid(pid: u32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(pid)?), signal)?;
    Ok(())
}
