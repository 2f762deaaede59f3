//! Who makes the hosts and the switch, and who removes them, whatever happens?
//!
//! All of a lab is found again by its name alone: directory `/run/lvs-lab/ID`, namespaces `lvs-ID-HOST`, and the
//! processes and mounts in these. One lock allows one process with labs at a time on a machine (two would spoil each
//! other's timing), so whoever holds it may remove every other lab: its owner is gone. Only a lab marked as kept stays.

use std::{
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, umount2},
    sys::signal::Signal,
};

use crate::{
    Mac, Need, Node, Stamp, find_program,
    node::output,
    process::signal_pid,
    signals::{add_current, leave_current, undisturbed},
    wait_for,
};

const LABS: &str = "/run/lvs-lab";
const NAMESPACES: &str = "/run/netns";
/// Present in the directory of a lab that outlives its process.
const KEPT: &str = "kept";
/// How long to wait for other labs on this machine: several test binaries may queue.
const PATIENCE: Duration = Duration::from_secs(1200);

/// Hosts on one switch. Dropped, it is removed with everything that runs in it.
pub struct Lab {
    id: String,
    dir: PathBuf,
    switch: Node,
    hosts: u8,
    kept: Arc<AtomicBool>,
    lock: Arc<Flock<File>>,
}

impl Lab {
    /// An empty switch. Waits for other labs on this machine to end.
    pub fn new() -> Result<Self> {
        if let Some(missing) = Need::Lab.missing() {
            bail!("no lab: {missing}");
        }
        let lock = lock()?;
        sweep(false)?;
        Self::make(Arc::new(lock))
    }

    /// Another one under the same lock, for what does not mind it.
    pub fn beside(&self) -> Result<Self> {
        Self::make(Arc::clone(&self.lock))
    }

    fn make(lock: Arc<Flock<File>>) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(LABS).join(&id);
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        add_current(&dir);
        let kept = Arc::new(AtomicBool::new(false));
        let switch = match make_switch(&id, &dir, &kept) {
            Ok(switch) => switch,
            Err(error) => {
                // The first error is the one to tell.
                leave_current(&dir, || drop(remove(&dir)));
                return Err(error);
            }
        };
        Ok(Self { id, dir, switch, hosts: 0, kept, lock })
    }

    /// The host that is the switch: its interface `NAME` is the port of the host of that name.
    pub fn switch(&self) -> &Node {
        &self.switch
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A host with `address` on its only interface, `eth0`.
    pub fn host(&mut self, name: &str, address: Ipv4Addr) -> Result<Node> {
        self.hosts = self.hosts.checked_add(1).context("too many hosts")?;
        let mac = Mac([2, 0, 0, 0, 0, self.hosts]);
        let node = make_namespace(&self.id, &self.dir, &self.kept, name, address, mac)?;
        // The names must exist in the new namespace only: the host's own `eth0` is not to be touched.
        self.switch.run(&format!(
            "ip link add {name} type veth peer name eth0 address {mac} netns {}",
            node.namespace
        ))?;
        self.switch.run(&format!("ip link set {name} master br0 up"))?;
        // A frame redirected to a host's veth needs NAPI on its peer, the port of the switch.
        self.switch.run(&format!("ethtool -K {name} gro on"))?;
        // A veth passes on frames whose checksum is still to be computed. A program that reads it would see nonsense.
        node.run("ethtool -K eth0 tx off")?;
        node.run(&format!("ip address add {address}/24 dev eth0"))?;
        node.run("ip link set eth0 up")?;
        Ok(node)
    }

    /// Pulls the host's cable out of the switch.
    pub fn unplug(&self, host: &Node) -> Result<()> {
        self.switch.run(&format!("ip link set {} down", host.name)).map(drop)
    }

    pub fn plug_in(&self, host: &Node) -> Result<()> {
        self.switch.run(&format!("ip link set {} up", host.name)).map(drop)
    }

    /// From now on the lab stays when it is dropped, with all that runs in it, until [`remove_leftovers`]. A signal
    /// still removes it.
    pub fn keep(&self) -> Result<()> {
        File::create(self.dir.join(KEPT))?;
        self.kept.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// A cable between two hosts, beside the switch: interface `name` on both.
    pub fn connect(&self, hosts: [&Node; 2], name: &str) -> Result<()> {
        let [one, other] = hosts.map(|host| &host.namespace);
        self.switch
            .run(&format!("ip link add {name} netns {one} type veth peer name {name} netns {other}"))?;
        for host in hosts {
            host.run(&format!("ip link set {name} up"))?;
        }
        Ok(())
    }

    /// Moves the cables of these hosts, link up all the time, to a second switch behind [`Lab::cut`] and [`Lab::mend`].
    pub fn second_switch(&self, hosts: &[&Node]) -> Result<()> {
        self.switch.run("ip link add br1 type bridge forward_delay 0 mcast_snooping 0")?;
        self.switch.run("ip link add trunk0 type veth peer name trunk1")?;
        for line in ["trunk0 master br0 up", "trunk1 master br1 up", "br1 up"] {
            self.switch.run(&format!("ip link set {line}"))?;
        }
        for host in hosts {
            self.switch.run(&format!("ip link set {} master br1", host.name))?;
        }
        Ok(())
    }

    /// Parts the two switches. No host's link goes down.
    pub fn cut(&self) -> Result<()> {
        self.switch.run("ip link set trunk0 down").map(drop)
    }

    pub fn mend(&self) -> Result<()> {
        self.switch.run("ip link set trunk0 up").map(drop)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            print_logs(&self.dir);
        }
        let kept = self.kept.load(Ordering::Relaxed);
        leave_current(&self.dir, || {
            if !kept && let Err(error) = remove(&self.dir) {
                eprintln!("{error:#}");
            }
        });
    }
}

/// Removes what dead processes left behind, and kept labs too. Returns how many labs that were.
pub fn remove_leftovers() -> Result<usize> {
    let _lock = lock()?;
    sweep(true)
}

fn lock() -> Result<Flock<File>> {
    fs::create_dir_all(LABS).with_context(|| format!("creating {LABS}"))?;
    let path = Path::new(LABS).join("lock");
    let start = Stamp::now();
    let mut file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EAGAIN)) if start.elapsed() < PATIENCE => file = back,
            Err((_, error)) => return Err(error).context("waiting for another lab on this machine to end"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn make_switch(id: &str, dir: &Path, kept: &Arc<AtomicBool>) -> Result<Node> {
    let switch = make_namespace(id, dir, kept, "switch", Ipv4Addr::UNSPECIFIED, Mac([0; 6]))?;
    switch.run("ip link add br0 type bridge forward_delay 0 mcast_snooping 0")?;
    // A switch does not look at IP. With br_netfilter built into the kernel, this one would.
    for table in ["arptables", "iptables", "ip6tables"] {
        match switch.sysctl(&format!("bridge.bridge-nf-call-{table}"), "0") {
            Err(error) if !is_not_found(&error) => return Err(error),
            _ => {}
        }
    }
    switch.run("ip link set br0 up")?;
    Ok(switch)
}

fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn make_namespace(
    id: &str,
    lab: &Path,
    kept: &Arc<AtomicBool>,
    name: &str,
    address: Ipv4Addr,
    mac: Mac,
) -> Result<Node> {
    let namespace = format!("lvs-{id}-{name}");
    let dir = lab.join(name);
    let mut command = Command::new(find_program("ip").context("no program `ip`")?);
    command.args(["netns", "add", &namespace]);
    undisturbed(|| {
        fs::create_dir(&dir)?;
        output(command)
    })?;
    let handle = File::open(Path::new(NAMESPACES).join(&namespace))?;
    let node = Node {
        name: name.to_owned(),
        namespace,
        handle: Arc::new(handle),
        address,
        mac,
        dir,
        kept: Arc::clone(kept),
    };
    node.run("ip link set lo up")?;
    // Neighbour discovery would be noise in every capture.
    for family in ["all", "default"] {
        node.sysctl(&format!("ipv6.conf.{family}.disable_ipv6"), "1")?;
    }
    // Replies leave a real server with the VIP as source, on an interface that does not own it.
    for family in ["all", "default"] {
        node.sysctl(&format!("ipv4.conf.{family}.rp_filter"), "0")?;
    }
    Ok(node)
}

fn sweep(kept_too: bool) -> Result<usize> {
    let mut swept = 0;
    for entry in fs::read_dir(LABS)? {
        let path = entry?.path();
        if path.is_dir() && (kept_too || !path.join(KEPT).exists()) {
            remove(&path)?;
            swept += 1;
        }
    }
    Ok(swept)
}

/// Ends the processes of the lab in `dir`, then its mounts, its namespaces and its files.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    let id = dir.file_name().and_then(|id| id.to_str()).context("a lab without a name")?;
    let prefix = format!("lvs-{id}-");
    let namespaces: Vec<PathBuf> = match fs::read_dir(NAMESPACES) {
        Ok(entries) => entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
            .collect(),
        // `ip` makes the directory with the first namespace.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).context(NAMESPACES),
    };
    kill_inhabitants(&namespaces)?;
    unmount_below(dir)?;
    for namespace in &namespaces {
        let mut command = Command::new(find_program("ip").context("no program `ip`")?);
        command.args(["netns", "delete"]).args(namespace.file_name());
        output(command)?;
    }
    fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))
}

/// Whoever lives in a namespace of the lab was started by the lab.
fn kill_inhabitants(namespaces: &[PathBuf]) -> Result<()> {
    let homes: Vec<u64> =
        namespaces.iter().filter_map(|path| fs::metadata(path).ok()).map(|home| home.ino()).collect();
    wait_for("end of the lab's processes", Duration::from_secs(10), || {
        let mut alive = 0;
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()) else {
                continue;
            };
            // A process that has just ended has no namespace to look at, a zombie neither.
            let lives_here = fs::metadata(path.join("ns/net")).is_ok_and(|home| homes.contains(&home.ino()));
            if lives_here && pid != process::id() {
                alive += 1;
                // It may have ended since.
                let _ = signal_pid(pid, Signal::SIGKILL);
            }
        }
        Ok((alive == 0).then_some(()))
    })
}

/// `lvsd` mounts a BPF file system below its run directory; what is pinned there ends with the mount.
fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    // Field 5 is where; later mounts may lie on earlier ones.
    for place in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(place).starts_with(dir) {
            umount2(place, MntFlags::MNT_DETACH).map_err(|error| anyhow!("unmounting {place}: {error}"))?;
        }
    }
    Ok(())
}

/// The ends of all logs of the lab in `dir`.
pub(crate) fn print_logs(dir: &Path) {
    let mut command = Command::new("tail");
    command.args(["-n", "40"]).args(log_files(dir));
    match output(command) {
        Ok(text) => eprintln!("{text}"),
        Err(error) => eprintln!("no logs: {error:#}"),
    }
}

fn log_files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .flat_map(|path| if path.is_dir() { log_files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect()
}
