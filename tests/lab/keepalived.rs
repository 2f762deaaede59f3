//! A host that runs keepalived, the peer `lvsd` has to get on with.

use std::{fs, io, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::{Node, Process, find_program, process::signal_pid, wait_for};

/// Dropped, it is killed.
pub struct Keepalived {
    process: Process,
    /// Where the child that speaks VRRP leaves its process id.
    vrrp_pid: PathBuf,
}

impl Keepalived {
    /// VRRP only: no checks, no IPVS. Real-time, which it is on request only: on a busy machine its timers mean little
    /// otherwise.
    pub fn start(node: &Node, config: &str) -> Result<Self> {
        Self::start_without_options(
            node,
            &format!("global_defs {{\n    vrrp_rt_priority 50\n    vrrp_rlimit_rttime 1000000\n}}\n{config}"),
        )
    }

    /// As most people run it.
    pub fn start_without_options(node: &Node, config: &str) -> Result<Self> {
        let config = node.write_file("keepalived.conf", config)?;
        let [pid, vrrp_pid] = ["keepalived.pid", "keepalived-vrrp.pid"].map(|name| node.dir().join(name));
        // A predecessor that was killed may still be a zombie, which would count as running.
        for file in [&pid, &vrrp_pid] {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        let mut command = node.command(find_program("keepalived").context("no program `keepalived`")?);
        command
            .args(["--vrrp", "--dont-fork", "--log-console", "--log-detail", "--use-file"])
            .arg(&config)
            .arg("--pid")
            .arg(&pid)
            .arg("--vrrp_pid")
            .arg(&vrrp_pid);
        Ok(Self { process: node.spawn("keepalived", command)?, vrrp_pid })
    }

    /// Leaves the pool properly, with a last advert of priority 0.
    pub fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(Duration::from_secs(10))?;
        Ok(())
    }

    /// Both processes at once: a child that outlives its parent would still send its priority 0.
    pub fn kill(&mut self) -> Result<()> {
        let child = self.child()?;
        self.process.signal(Signal::SIGSTOP)?;
        signal_pid(child, Signal::SIGKILL)?;
        self.process.kill()
    }

    /// Both processes, so that neither notices that the other one is.
    pub fn freeze(&self) -> Result<()> {
        self.process.signal(Signal::SIGSTOP)?;
        signal_pid(self.child()?, Signal::SIGSTOP)
    }

    pub fn thaw(&self) -> Result<()> {
        signal_pid(self.child()?, Signal::SIGCONT)?;
        self.process.signal(Signal::SIGCONT)
    }

    fn child(&self) -> Result<u32> {
        wait_for("keepalived's pid file", Duration::from_secs(5), || {
            Ok(fs::read_to_string(&self.vrrp_pid).ok().and_then(|pid| pid.trim().parse().ok()))
        })
    }
}
