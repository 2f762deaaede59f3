//! Where maps and links outlive the daemon: a BPF file system below the run directory.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
};

use lvs_ebpf_common::maps;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// The maps that are pinned; the log ring is not, each program has its own.
const PINNED: [&str; 8] = [
    maps::TABLE,
    maps::SERVICES,
    maps::RINGS,
    maps::REALS,
    maps::REAL_COUNTERS,
    maps::LEASES,
    maps::VIPS,
    maps::OUTCOMES,
];

pub struct Pins {
    root: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    #[error("cannot mount a BPF file system on {}: {source}", path.display())]
    Mount { path: PathBuf, source: io::Error },
    #[error("cannot use {}: {source}", path.display())]
    Directory { path: PathBuf, source: io::Error },
}

impl Pins {
    /// Mounts a BPF file system at `run_dir/bpf` unless one is there.
    pub fn mount(run_dir: &Path) -> Result<Self, PinsError> {
        let root = run_dir.join("bpf");
        create(&root)?;
        if !is_bpffs(&root) {
            mount_bpffs(&root).map_err(|source| PinsError::Mount { path: root.clone(), source })?;
        }
        let pins = Self { root };
        create(&pins.maps())?;
        create(&pins.links())?;
        Ok(pins)
    }

    /// What an earlier daemon mounted, if anything.
    pub fn existing(run_dir: &Path) -> Option<Self> {
        let root = run_dir.join("bpf");
        is_bpffs(&root).then_some(Self { root })
    }

    fn maps(&self) -> PathBuf {
        self.root.join(format!("maps-v{}", maps::LAYOUT))
    }

    fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Name and pin of every map that survives a restart.
    pub fn map_pins(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let directory = self.maps();
        PINNED.into_iter().map(move |name| (name, directory.join(name)))
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
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let is_maps = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("maps-v"));
            if is_maps && path != current {
                remove_dir(&path);
            }
        }
    }

    /// Detaches the program everywhere and forgets all maps.
    pub fn remove(self) -> Result<(), PinsError> {
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            remove_dir(&entry.path());
        }
        in_mount_namespace_of_init(|| umount2(&self.root, MntFlags::MNT_DETACH))
            .map_err(|source| PinsError::Mount { path: self.root.clone(), source })?;
        // Without propagation from init's namespace it was mounted in ours.
        if is_bpffs(&self.root) {
            let _ = umount2(&self.root, MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir(&self.root);
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

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}

/// `ip netns exec` and hardened service units give a process a mount namespace of its own, which ends with
/// it: a file system mounted only there would take the pinned program along. So it is mounted where init
/// lives, from where it propagates to ours (such namespaces are made as slaves of init's).
fn mount_bpffs(root: &Path) -> io::Result<()> {
    let mount_it =
        || mount(Some("bpf"), root, Some("bpf"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, Some("mode=0700"));
    in_mount_namespace_of_init(mount_it)?;
    if !is_bpffs(root) {
        tracing::warn!(
            path = %root.display(),
            "the BPF file system is visible in this mount namespace only: forwarding will end with it"
        );
        mount_it()?;
    }
    Ok(())
}

fn in_mount_namespace_of_init(act: impl FnOnce() -> nix::Result<()> + Send) -> io::Result<()> {
    const OURS: &str = "/proc/self/ns/mnt";
    const INIT: &str = "/proc/1/ns/mnt";
    if fs::metadata(OURS)?.ino() == fs::metadata(INIT)?.ino() {
        return Ok(act()?);
    }
    let init = File::open(INIT)?;
    // A thread of its own: setns(2) wants one that shares its file system state with no other.
    thread::scope(|scope| {
        let entered = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS)?;
            setns(&init, CloneFlags::CLONE_NEWNS)?;
            act()
        });
        entered.join().map_err(|_| io::Error::other("the mounting thread panicked"))?.map_err(io::Error::from)
    })
}
