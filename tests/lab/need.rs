//! What a test needs of this machine. A test that cannot run says so and why.

use std::{
    env,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::geteuid,
};

/// Where FRR has its daemons, on Debian and elsewhere.
pub(crate) const FRR: &str = "/usr/lib/frr";

/// Something that not every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Root,
    /// Root, network namespaces and the tools to fill them.
    Lab,
    /// `lvsd`, built into the directory where this test was built.
    Lvsd,
    Keepalived,
    /// A kernel with macvlan.
    Macvlan,
    /// FRR's vrrpd, and a kernel with the macvlan that it wants.
    Frr,
}

/// False, and said so, where this machine lacks something.
pub fn require(needs: &[Need]) -> bool {
    let Some(reason) = needs.iter().find_map(|need| need.missing()) else { return true };
    skip(&reason);
    false
}

/// Says that the calling test is skipped, in the line that `cargo xtask test` counts. It is written past libtest's
/// capture, so that a skipped test is never a silent one.
pub fn skip(reason: &str) {
    let line = format!("skipped: {}: {reason}\n", thread::current().name().unwrap_or("?"));
    // In one piece, since other threads write too. Without stderr there is nobody to tell.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

impl Need {
    pub(crate) fn missing(self) -> Option<String> {
        match self {
            Need::Root => (!geteuid().is_root()).then(|| "not root".to_owned()),
            Need::Lab => Need::Root.missing().or_else(no_namespaces).or_else(|| {
                ["ip", "ethtool"].into_iter().find_map(|tool| missing_program(tool, find_program(tool)))
            }),
            Need::Lvsd => {
                let lvsd = built_program("lvsd");
                (!lvsd.exists()).then(|| format!("no {} (`cargo xtask build` makes it)", lvsd.display()))
            }
            Need::Keepalived => missing_program("keepalived", find_program("keepalived")),
            Need::Frr => {
                let vrrpd = Path::new(FRR).join("vrrpd");
                let absent =
                    (!vrrpd.exists()).then(|| format!("no {} (`apt-get install frr`)", vrrpd.display()));
                absent.or_else(no_macvlan)
            }
            Need::Macvlan => no_macvlan(),
        }
    }
}

fn missing_program(name: &str, found: Option<PathBuf>) -> Option<String> {
    found.is_none().then(|| format!("no {name} (`cargo xtask setup` installs it)"))
}

/// On a thread of its own, in a namespace that ends with it.
fn no_macvlan() -> Option<String> {
    let attempt = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).ok()?;
        let ip = |line: &str| {
            Command::new("ip").args(line.split(' ')).output().ok().filter(|it| it.status.success())
        };
        ip("link add left type veth peer name right")?;
        ip("link add third link left type macvlan")
    });
    attempt.join().ok().flatten().is_none().then(|| "this kernel has no macvlan".to_owned())
}

fn no_namespaces() -> Option<String> {
    // On a thread of its own, since it ends up in the new namespace.
    match thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join() {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("no network namespaces: {error}")),
        Err(_) => Some("no network namespaces: the attempt panicked".to_owned()),
    }
}

/// Looks where `PATH` says and where Debian keeps an administrator's programs.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}

/// A program of this workspace: cargo leaves it beside this one, tests are one directory further down.
pub(crate) fn built_program(name: &str) -> PathBuf {
    let here = env::current_exe().unwrap_or_default();
    let directory = here.parent().unwrap_or(Path::new("."));
    let directory =
        if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
    directory.join(name)
}
