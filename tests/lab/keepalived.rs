//! A host that runs keepalived, the peer `lvsd` has to get on with.

use std::{fs, path::PathBuf, time::Duration};

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
        let config = format!("global_defs {{\n    vrrp_rt_priority 50\n}}\n{config}");
        let config = node.write_file("keepalived.conf", &config)?;
        let vrrp_pid = node.dir().join("keepalived-vrrp.pid");
        let mut command = node.command(find_program("keepalived").context("no program `keepalived`")?);
        command
            .args(["--vrrp", "--dont-fork", "--log-console", "--log-detail", "--use-file"])
            .arg(&config)
            .arg("--pid")
            .arg(node.dir().join("keepalived.pid"))
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

    fn child(&self) -> Result<u32> {
        wait_for("keepalived's pid file", Duration::from_secs(5), || {
            Ok(fs::read_to_string(&self.vrrp_pid).ok().and_then(|pid| pid.trim().parse().ok()))
        })
    }
}
