//! What has to hold before a director may start.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::Path,
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit},
    unistd::geteuid,
};

pub fn is_root() -> anyhow::Result<()> {
    ensure!(geteuid().is_root(), "must be started by root: it loads BPF programs and opens raw sockets");
    Ok(())
}

/// Takes the run directory for this process.
pub fn lock(run_dir: &Path) -> anyhow::Result<Flock<fs::File>> {
    fs::create_dir_all(run_dir).with_context(|| format!("cannot create {}", run_dir.display()))?;
    let path = run_dir.join("lvsd.pid");
    let open = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = open.with_context(|| format!("cannot open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut file) => {
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())?;
            Ok(file)
        }
        Err((mut file, _)) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid)?;
            bail!("another lvsd (pid {}) runs in {}", pid.trim(), run_dir.display())
        }
    }
}

/// bpf_link for XDP came with Linux 5.9; 5.10 is the first long-term kernel with it.
pub fn kernel_is_recent() -> anyhow::Result<()> {
    let name = nix::sys::utsname::uname().context("cannot ask for the kernel's version")?;
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    ensure!(version >= (5, 10), "Linux 5.10 or later is needed, this is {release}");
    Ok(())
}

/// More descriptors for checks. More locked memory for BPF maps before Linux 5.11 and for the VRRP thread; where
/// that is not allowed, whoever needs it says so.
pub fn raise_limits() {
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let _ = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
}
