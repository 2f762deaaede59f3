//! A host that runs `lvsd`: start it, ask it, and end it in all the ways a daemon can end.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;

use crate::{Node, PATIENCE, Process, need::built_program, node::output, wait_for};

/// What `lvsd status --json` says; fields that no test reads are left out.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    pub router_id: String,
    pub instances: Vec<Instance>,
    pub services: Vec<Service>,
    pub drifts: BTreeMap<String, u64>,
    pub quic: BTreeMap<String, u64>,
    pub outcomes: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Instance {
    pub name: String,
    pub state: String,
    pub priority: u8,
    pub handed_over: bool,
    pub vrid: u8,
    pub interface: String,
    pub vips: Vec<String>,
    pub lease_remaining_ms: Option<u64>,
    pub trackers: Vec<Tracker>,
    pub claim: Option<Claim>,
    pub ways: Vec<Way>,
    pub counters: BTreeMap<String, u64>,
    pub rejected: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Way {
    pub interface: String,
    pub state: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Claim {
    pub mac: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Tracker {
    pub name: String,
    pub state: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Service {
    pub address: IpAddr,
    pub port: u16,
    pub suspended: bool,
    pub reals: Vec<Real>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Real {
    pub address: IpAddr,
    pub forwarding: String,
    pub weight: u16,
    pub ordered_weight: Option<u16>,
    pub state: String,
    pub packets: u64,
    pub bytes: u64,
    pub checks: Vec<Check>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Check {
    /// up, down, or unchecked before the first result.
    pub state: String,
    pub error: Option<String>,
}

/// How a daemon is brought onto its host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Entry {
    /// Only the network is the host's own.
    Network,
    /// As users do it: `ip netns exec` gives the daemon mounts of its own as well.
    IpNetnsExec,
}

/// Dropped, its daemon is killed.
pub struct Director {
    node: Node,
    entry: Entry,
    process: Process,
    config: PathBuf,
    run_dir: PathBuf,
}

impl Director {
    pub fn start(node: &Node, config: &str) -> Result<Self> {
        Self::start_by(Entry::Network, node, config)
    }

    pub fn start_by(entry: Entry, node: &Node, config: &str) -> Result<Self> {
        let config = node.write_file("lvsd.conf", config)?;
        let run_dir = node.dir().join("run");
        let process = spawn(entry, node, &config, &run_dir)?;
        let mut director = Self { node: node.clone(), entry, process, config, run_dir };
        director.wait_until_it_answers()?;
        Ok(director)
    }

    pub fn node(&self) -> &Node {
        &self.node
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Where it keeps what outlives it.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// `lvsd status --json --run-dir DIR`.
    pub fn status(&self) -> Result<Status> {
        let mut command = Command::new("timeout");
        command
            .arg("5")
            .arg(built_program("lvsd"))
            .args(["status", "--json", "--run-dir"])
            .arg(&self.run_dir);
        let text = output(command)?;
        serde_json::from_str(&text).with_context(|| format!("what `lvsd status --json` printed: {text}"))
    }

    /// State of its only VRRP instance.
    pub fn state(&self) -> Result<String> {
        let status = self.status()?;
        let [instance] = status.instances.as_slice() else { bail!("not one instance: {status:?}") };
        Ok(instance.state.clone())
    }

    pub fn wait_for_state(&self, state: &str, limit: Duration) -> Result<()> {
        wait_for(&format!("{} {state}", self.node.name()), limit, || {
            Ok((self.state()? == state).then_some(()))
        })
    }

    /// `kill -9`, or the out-of-memory killer.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    pub fn freeze(&self) -> Result<()> {
        self.process.signal(Signal::SIGSTOP)
    }

    pub fn thaw(&self) -> Result<()> {
        self.process.signal(Signal::SIGCONT)
    }

    /// Leaves the pool of directors properly.
    pub fn stop(&mut self) -> Result<()> {
        self.end_by(Signal::SIGTERM)
    }

    /// Ends so that a successor takes over its place.
    pub fn hand_over(&mut self) -> Result<()> {
        self.end_by(Signal::SIGUSR2)
    }

    /// Starts the daemon again where the last one left its tables.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(!self.process.is_running()?, "{} is still running lvsd", self.node.name());
        self.process = spawn(self.entry, &self.node, &self.config, &self.run_dir)?;
        self.wait_until_it_answers()
    }

    /// `lvsd unload`: removes what a killed daemon left.
    pub fn unload(&self) -> Result<()> {
        let mut command = self.node.command(built_program("lvsd"));
        command.args(["unload", "--run-dir"]).arg(&self.run_dir);
        output(command).map(drop)
    }

    /// `lvsd ARGUMENTS --run-dir DIR`, for the orders that it takes at run time. Returns what it printed.
    pub fn order(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("timeout");
        command.arg("60").arg(built_program("lvsd")).args(arguments).arg("--run-dir").arg(&self.run_dir);
        output(command)
    }

    /// Writes the configuration anew and has the daemon read it. The error is what `lvsd reload` said.
    pub fn reload(&self, config: &str) -> Result<()> {
        self.node.write_file("lvsd.conf", config)?;
        let mut command = Command::new("timeout");
        command.arg("10").arg(built_program("lvsd")).args(["reload", "--run-dir"]).arg(&self.run_dir);
        output(command).map(drop)
    }

    /// What `lvsd plan` says of a configuration.
    pub fn plan(&self, config: &str) -> Result<String> {
        let file = self.node.write_file("plan.conf", config)?;
        let mut command = Command::new("timeout");
        command
            .arg("10")
            .arg(built_program("lvsd"))
            .arg("plan")
            .arg(file)
            .arg("--run-dir")
            .arg(&self.run_dir);
        output(command)
    }

    fn end_by(&mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)?;
        let status = self.process.wait(PATIENCE)?;
        ensure!(status.success(), "lvsd on {} ended with {status} after {signal}", self.node.name());
        Ok(())
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        wait_for(&format!("lvsd on {}", self.node.name()), PATIENCE, || {
            if !self.process.is_running()? {
                let log = std::fs::read_to_string(self.process.log())?;
                bail!("lvsd on {} ended:\n{log}", self.node.name());
            }
            Ok(self.status().ok().map(drop))
        })
    }
}

fn spawn(entry: Entry, node: &Node, config: &Path, run_dir: &Path) -> Result<Process> {
    let lvsd = built_program("lvsd");
    let mut command = match entry {
        Entry::Network => node.command(lvsd),
        Entry::IpNetnsExec => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", node.namespace()]).arg(lvsd);
            command
        }
    };
    command.args(["run", "--xdp-mode", "native", "--config"]).arg(config).arg("--run-dir").arg(run_dir);
    node.spawn("lvsd", command)
}
