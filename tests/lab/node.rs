//! One host of the lab: a network namespace with one interface, `eth0`, on the lab's switch.

use std::{
    fmt, fs,
    fs::File,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, atomic::AtomicBool},
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

use crate::{PATIENCE, Process, need::built_program, signals::undisturbed, wait_for};

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    pub const BROADCAST: Self = Self([0xff; 6]);
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Cheap to clone; the lab owns the namespace itself.
#[derive(Clone)]
pub struct Node {
    pub(crate) name: String,
    /// As `ip netns list` shows it.
    pub(crate) namespace: String,
    pub(crate) handle: Arc<File>,
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: Mac,
    /// Its files: configuration, logs, run directories.
    pub(crate) dir: PathBuf,
    pub(crate) kept: Arc<AtomicBool>,
}

impl Node {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// What it has once IPv6 is on (RFC 4291 appendix A).
    pub fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac.0.map(u16::from);
        Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f)
    }

    /// Its address in fd77::/64, once IPv6 is on: with the last byte of the other one.
    pub fn address_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, self.address.octets()[3].into())
    }

    /// Hosts come without IPv6. Its addresses can be used at once.
    pub fn enable_ipv6(&self) -> Result<()> {
        self.sysctl("ipv6.conf.eth0.accept_dad", "0")?;
        for interface in ["all", "default", "lo", "eth0"] {
            self.sysctl(&format!("ipv6.conf.{interface}.disable_ipv6"), "0")?;
        }
        self.run(&format!("ip address add {}/64 dev eth0 nodad", self.address_v6()))?;
        wait_for("a link-local address", PATIENCE, || {
            let addresses = self.run("ip -6 address show dev eth0 scope link")?;
            Ok((addresses.contains(&self.link_local().to_string()) && !addresses.contains("tentative"))
                .then_some(()))
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command that will run on this host. Not by `ip netns exec`: that gives the program mounts of its own,
    /// and what it pins in a BPF file system would end with it.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        let handle = Arc::clone(&self.handle);
        // Ctrl-C in the terminal is the lab's to handle, not its hosts'.
        command.process_group(0);
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(move || Ok(setns(&handle, CloneFlags::CLONE_NEWNET)?));
        }
        command
    }

    /// The same for a program of the lab's own.
    pub fn lab_program(&self, name: &str) -> Command {
        self.command(built_program(name))
    }

    /// Runs a command line (split at spaces) to its end and returns what it printed.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        let mut command = self.command(program);
        command.args(words);
        output(command).with_context(|| format!("on {}", self.name))
    }

    /// Starts a program that runs until it is killed or the lab ends; `label` names its log.
    pub fn spawn(&self, label: &str, command: Command) -> Result<Process> {
        Process::spawn(
            &format!("{label} on {}", self.name),
            command,
            self.dir.join(format!("{label}.log")),
            Arc::clone(&self.kept),
        )
    }

    /// Runs code of the test itself on this host: its sockets are this host's sockets.
    pub fn in_ns<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            // A thread of its own, because there is no way back out of a namespace.
            let thread = scope.spawn(|| {
                self.enter()?;
                work()
            });
            thread.join().map_err(|_| anyhow!("code on {} panicked", self.name))?
        })
    }

    /// Moves the calling thread onto this host, for good.
    pub(crate) fn enter(&self) -> Result<()> {
        setns(&self.handle, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", self.name))
    }

    /// `key` as `sysctl` writes it, below `net.`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{}", key.replace('.', "/"));
        self.in_ns(|| fs::write(&path, value).with_context(|| format!("{path} = {value}")))
    }

    /// A shell script that may be run: only root can write to it.
    pub fn script(&self, name: &str, body: &str) -> Result<PathBuf> {
        let path = self.write_file(name, &format!("#!/bin/sh\n{body}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    pub fn write_file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        undisturbed(|| fs::write(&path, text)).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// Runs to its end; an exit code other than 0 is an error that shows what was printed.
pub(crate) fn output(mut command: Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
