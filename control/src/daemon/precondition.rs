//! What has to hold before a director may start.

use std::{
    fmt, fs,
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

/// What the director is made of, and since which Linux each exists. 5.10 is the first long-term kernel with all of it, and
/// the oldest one that it is tested on (`cargo xtask test --kernel 5.10`).
const PARTS: [(Version, &str); 3] = [
    (Version(5, 5), "BPF arrays mapped into memory"),
    (Version(5, 8), "BPF ring buffers"),
    (Version(5, 9), "XDP programs attached by a bpf_link"),
];
const OLDEST: Version = Version(5, 10);

pub fn kernel_is_recent() -> anyhow::Result<()> {
    let name = nix::sys::utsname::uname().context("cannot ask for the kernel's version")?;
    runs_on(&name.release().to_string_lossy())
}

fn runs_on(release: &str) -> anyhow::Result<()> {
    let version =
        Version::parse(release).with_context(|| format!("no version of Linux can be read in {release:?}"))?;
    if version >= OLDEST {
        return Ok(());
    }
    let missing = PARTS.iter().filter(|(since, _)| version < *since);
    let lacking: Vec<_> = missing.map(|(since, part)| format!("{part} ({since})")).collect();
    let lacks =
        if lacking.is_empty() { String::new() } else { format!(". It lacks: {}", lacking.join(", ")) };
    bail!("Linux {OLDEST} or later is needed, this is {release}{lacks}")
}

/// The first two numbers of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

impl Version {
    /// Of `6.1.0-56-cloud-amd64` or `6.12-rc1`.
    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Self(numbers.next()?.ok()?, numbers.next()?.ok()?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// More descriptors for checks. More locked memory for BPF maps before Linux 5.11 and for the VRRP thread; where
/// that is not allowed, whoever needs it says so.
pub fn raise_limits() {
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let _ = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_first_two_numbers_of_a_release() {
        for (release, version) in [
            ("5.10.0-46-cloud-amd64", Some(Version(5, 10))),
            ("6.12-rc1", Some(Version(6, 12))),
            ("6.1", Some(Version(6, 1))),
            ("10.0.1+", Some(Version(10, 0))),
            ("6", None),
            ("6.x", None),
            ("", None),
            ("linux-6.1", None),
            ("6.99999999999", None),
        ] {
            assert_eq!(Version::parse(release), version, "{release}");
        }
    }

    #[test]
    fn a_kernel_that_is_too_old_is_told_what_it_lacks() {
        for release in ["5.10.0", "5.11", "6.0.9", "10.0"] {
            assert!(runs_on(release).is_ok(), "{release}");
        }
        let refusal = |release| runs_on(release).unwrap_err().to_string();
        assert_eq!(
            refusal("4.19.0-21-amd64"),
            "Linux 5.10 or later is needed, this is 4.19.0-21-amd64. It lacks: BPF arrays mapped into memory (5.5), \
             BPF ring buffers (5.8), XDP programs attached by a bpf_link (5.9)"
        );
        assert!(refusal("5.8.18").ends_with("It lacks: XDP programs attached by a bpf_link (5.9)"));
        assert_eq!(refusal("5.9.16"), "Linux 5.10 or later is needed, this is 5.9.16");
        assert!(refusal("unknown").contains("no version"));
    }
}
