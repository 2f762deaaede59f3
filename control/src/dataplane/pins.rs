//! Where maps and links outlive the daemon: a BPF file system below the run directory.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    thread,
};

use aya::maps::{MapData, MapInfo};
use lvs_ebpf_common::maps;
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{
        stat::Mode,
        statfs::{BPF_FS_MAGIC, fstatfs},
    },
    unistd::getppid,
};

/// The maps that are pinned; the log ring is not, each program has its own.
pub const PINNED: [&str; 20] = [
    maps::TABLE,
    maps::SERVICES,
    maps::ADDRESSES,
    maps::RINGS,
    maps::REALS,
    maps::REAL_COUNTERS,
    maps::FLOWS,
    maps::FLOW_CLOCK,
    maps::TURNS,
    maps::LEASES,
    maps::VIPS,
    maps::VIPS6,
    maps::INTERFACES,
    maps::REPLIES,
    maps::SERVER_IDS,
    maps::BY_ID,
    maps::NAT_FLOWS,
    maps::CLIENTS,
    maps::WANTED,
    maps::OUTCOMES,
];

pub struct Pins {
    /// Where it is mounted, as an operator knows it.
    mountpoint: PathBuf,
    /// The same by descriptor: it may be mounted in a mount namespace that is not ours.
    root: OwnedFd,
}

#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    #[error("cannot mount a BPF file system on {}: {source}", path.display())]
    Mount { path: PathBuf, source: io::Error },
    #[error("cannot use {}: {source}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot pin {map} again: {reason}")]
    Restore { map: &'static str, reason: String },
}

impl Pins {
    /// Mounts a BPF file system at `run_dir/bpf` unless one is there.
    pub fn mount(run_dir: &Path) -> Result<Self, PinsError> {
        let mountpoint = run_dir.join("bpf");
        create(&mountpoint)?;
        let root = match open_bpffs(&mountpoint) {
            Some(root) => root,
            None => mount_bpffs(&mountpoint)
                .map_err(|source| PinsError::Mount { path: mountpoint.clone(), source })?,
        };
        let pins = Self { mountpoint, root };
        create(&pins.maps())?;
        create(&pins.links())?;
        Ok(pins)
    }

    /// What an earlier daemon mounted, if anything.
    pub fn existing(run_dir: &Path) -> Option<Self> {
        let mountpoint = run_dir.join("bpf");
        let root = open_bpffs(&mountpoint)?;
        Some(Self { mountpoint, root })
    }

    fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.root.as_raw_fd()))
    }

    fn maps(&self) -> PathBuf {
        self.root().join(format!("maps-v{}", maps::LAYOUT))
    }

    fn links(&self) -> PathBuf {
        self.root().join("links")
    }

    /// Name and pin of every map that survives a restart.
    pub fn map_pins(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let directory = self.maps();
        PINNED.into_iter().map(move |name| (name, directory.join(name)))
    }

    /// What is pinned under each name now.
    pub fn map_ids(&self) -> Vec<(&'static str, u32)> {
        let id = |(name, path)| Some((name, MapInfo::from_pin(path).ok()?.id()));
        self.map_pins().filter_map(id).collect()
    }

    /// Pins these maps again where they are not: how many were not.
    pub fn restore(&self, maps: &[(&'static str, u32)]) -> Result<usize, PinsError> {
        create(&self.maps())?;
        create(&self.links())?;
        let mut restored = 0;
        for (name, id) in maps {
            let path = self.maps().join(name);
            if MapInfo::from_pin(&path).is_ok_and(|info| info.id() == *id) {
                continue;
            }
            let failed = |reason: String| PinsError::Restore { map: name, reason };
            let map = MapData::from_id(*id).map_err(|error| failed(error.to_string()))?;
            // Something else that has its name.
            let _ = fs::remove_file(&path);
            map.pin(&path).map_err(|error| failed(error.to_string()))?;
            restored += 1;
        }
        Ok(restored)
    }

    /// Pin of the link that attaches the program to an interface in a mode.
    pub fn link_pin(&self, ifindex: u32, mode: &str) -> PathBuf {
        self.links().join(format!("{ifindex}-{mode}"))
    }

    /// Pins of all links, also those of interfaces that are no longer wanted.
    pub fn all_links(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.links()).into_iter().flatten();
        entries.flatten().map(|entry| entry.path()).collect()
    }

    /// Removes the maps of other layouts, once nothing uses them any more.
    pub fn remove_other_layouts(&self) {
        let current = self.maps();
        self.map_directories().iter().filter(|path| **path != current).for_each(|path| remove_dir(path));
    }

    /// Of all layouts.
    pub fn forget_maps(&self) -> Result<(), PinsError> {
        self.map_directories().iter().for_each(|path| remove_dir(path));
        create(&self.maps())
    }

    fn map_directories(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.root()).into_iter().flatten().flatten();
        let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("maps-v"));
        ours.map(|entry| entry.path()).collect()
    }

    /// Detaches the program everywhere and forgets all maps.
    pub fn remove(self) -> Result<(), PinsError> {
        remove_dir(&self.links());
        self.map_directories().iter().for_each(|path| remove_dir(path));
        let Self { mountpoint, root } = self;
        drop(root);
        let unmount = || umount2(&mountpoint, MntFlags::MNT_DETACH);
        if let Some(outer) = outer_namespace() {
            // Not there if it was only ever mounted in ours.
            let _ = in_namespace(&outer, unmount);
        }
        if open_bpffs(&mountpoint).is_some() {
            unmount().map_err(|e| PinsError::Mount { path: mountpoint.clone(), source: e.into() })?;
        }
        let _ = fs::remove_dir(&mountpoint);
        Ok(())
    }
}

fn create(path: &Path) -> Result<(), PinsError> {
    fs::create_dir_all(path).map_err(|source| PinsError::Directory { path: path.to_owned(), source })
}

fn remove_dir(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let _ = fs::remove_file(entry.path());
    }
    if let Err(error) = fs::remove_dir(path) {
        tracing::warn!(path = %path.display(), %error, "pinned objects are left behind");
    }
}

fn open_bpffs(path: &Path) -> Option<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(path, flags, Mode::empty()).ok()?;
    let is_bpffs = fstatfs(&root).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
    is_bpffs.then_some(root)
}

/// `ip netns exec` and hardened service units give a process a mount namespace of its own, which ends with
/// it: a file system mounted only there would take the pinned program along. So it is mounted where our
/// ancestors live.
fn mount_bpffs(mountpoint: &Path) -> io::Result<OwnedFd> {
    let mount_it = || {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some("bpf"), mountpoint, Some("bpf"), flags, Some("mode=0700"))?;
        open_bpffs(mountpoint).ok_or(Errno::ENOENT)
    };
    if let Some(outer) = outer_namespace() {
        // Where an earlier daemon mounted it there, that one is right.
        match in_namespace(&outer, || open_bpffs(mountpoint).map_or_else(mount_it, Ok)) {
            Ok(root) => return Ok(root),
            Err(error) => tracing::warn!(
                path = %mountpoint.display(),
                %error,
                "mounted in this mount namespace only: forwarding will end with it"
            ),
        }
    }
    Ok(mount_it()?)
}

/// The mount namespace of our oldest ancestor that we may look at, where it is not ours.
fn outer_namespace() -> Option<File> {
    let ours = fs::metadata("/proc/self/ns/mnt").ok()?.ino();
    let mut outermost = None;
    let mut pid = getppid().as_raw();
    while pid > 0 {
        outermost = File::open(format!("/proc/{pid}/ns/mnt")).ok().or(outermost);
        pid = parent(pid)?;
    }
    outermost.filter(|outer| outer.metadata().is_ok_and(|outer| outer.ino() != ours))
}

/// 0 = none.
fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc_pid_stat(5): the name in parentheses may contain anything, also parentheses.
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Acts in another mount namespace, on a thread of its own: setns(2) wants one that shares its file system
/// state with no other.
fn in_namespace<T: Send>(namespace: &File, act: impl FnOnce() -> nix::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let entered = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS)?;
            setns(namespace, CloneFlags::CLONE_NEWNS)?;
            act()
        });
        entered.join().map_err(|_| io::Error::other("the mounting thread panicked"))?.map_err(io::Error::from)
    })
}
