//! `cargo xtask setup`: is everything here that the eBPF build and the labs need?
//!
//! Two Rust toolchains can compile the XDP program, and `control/build.rs` chooses between them as this does: one
//! called `bpf` that ships `core` for BPF (Debian's rustc-web, linked into rustup), or a rustup nightly with the
//! source of `core`. Either needs bpf-linker, built against the LLVM of that toolchain.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use lvs_tests::find_program;
use nix::unistd::geteuid;

use crate::{cargo, run_visibly};

const BPF_TARGET: &str = "bpfel-unknown-none";
const BPF_LINKER: &str = "0.13.0";
const TOOLCHAIN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// Program, and the Debian package that has it. keepalived's package starts no service: its unit asks for a
/// configuration that the package does not bring.
const LAB_TOOLS: [(&str, &str); 3] =
    [("ip", "iproute2"), ("ethtool", "ethtool"), ("keepalived", "keepalived")];

/// Installs what is missing where it may: as root on Debian. Does nothing where nothing is missing.
pub fn setup() -> Result<()> {
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(());
    }
    if !may_install() {
        bail!(by_hand(&missing));
    }
    eprintln!("setup: installing {}", names(&missing));
    if let Err(error) = install(&missing) {
        return Err(error.context(by_hand(&missing)));
    }
    match self::missing()? {
        left if left.is_empty() => Ok(()),
        left => bail!(by_hand(&left)),
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Missing {
    Toolchain,
    Linker,
    LabTool { program: &'static str, package: &'static str },
}

impl Missing {
    fn name(&self) -> &'static str {
        match self {
            Missing::Toolchain => "a Rust toolchain for BPF",
            Missing::Linker => "bpf-linker",
            Missing::LabTool { program, .. } => program,
        }
    }
}

fn missing() -> Result<Vec<Missing>> {
    if find_program("rustup").is_none() {
        bail!(
            "no rustup: it keeps the two Rust toolchains apart that this project needs (https://rustup.rs)"
        );
    }
    let mut missing = Vec::new();
    if !has_bpf_toolchain() && !has_nightly_with_source() {
        missing.push(Missing::Toolchain);
    }
    if find_program("bpf-linker").is_none() {
        missing.push(Missing::Linker);
    }
    for (program, package) in LAB_TOOLS {
        if find_program(program).is_none() {
            missing.push(Missing::LabTool { program, package });
        }
    }
    Ok(missing)
}

fn has_bpf_toolchain() -> bool {
    sysroot("bpf").is_some_and(|root| root.join("lib/rustlib").join(BPF_TARGET).exists())
}

fn has_nightly_with_source() -> bool {
    sysroot("nightly").is_some_and(|root| root.join("lib/rustlib/src/rust/library/core").exists())
}

fn sysroot(toolchain: &str) -> Option<PathBuf> {
    rustc(toolchain, &["--print", "sysroot"]).map(|path| PathBuf::from(path.trim()))
}

/// What rustc of that toolchain prints; nothing where there is no such toolchain.
fn rustc(toolchain: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new("rustup")
        .args(["run", toolchain, "rustc"])
        .args(arguments)
        // To look is not to download.
        .env("RUSTUP_AUTO_INSTALL", "0")
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

fn install(missing: &[Missing]) -> Result<()> {
    let mut packages = lab_packages(missing);
    // Without a linker the toolchain is `bpf` too, because its LLVM is one that Debian has for the linker's build.
    let toolchain = missing.iter().any(|missing| matches!(missing, Missing::Toolchain | Missing::Linker))
        && !has_bpf_toolchain();
    if toolchain {
        packages.extend(TOOLCHAIN_PACKAGES);
    }
    apt_install(&packages)?;
    if toolchain {
        run_visibly(Command::new("rustup").args(["toolchain", "link", "bpf", "/usr"]))?;
    }
    if missing.contains(&Missing::Linker) {
        install_linker()?;
    }
    Ok(())
}

/// Packages for something that not everybody runs.
pub fn install_packages(packages: &[&str], what: &str) -> Result<()> {
    if !packages.is_empty() && !may_install() {
        bail!("for {what}, as root:\n    apt-get install {}", packages.join(" "));
    }
    apt_install(packages)
}

fn may_install() -> bool {
    geteuid().is_root() && find_program("apt-get").is_some()
}

fn apt_install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    run_visibly(Command::new("apt-get").args(["update", "-q"]))?;
    run_visibly(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-qy", "--no-install-recommends"])
            .args(packages),
    )
}

fn install_linker() -> Result<()> {
    let llvm = llvm_of_bpf_toolchain().context("the toolchain `bpf` does not tell its LLVM")?;
    let (llvm_dev, polly) = (format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev"));
    apt_install(&["g++", &llvm_dev, &polly, "zlib1g-dev", "libzstd-dev"])?;
    run_visibly(
        cargo()
            .env("LLVM_PREFIX", Path::new("/usr/lib").join(format!("llvm-{llvm}")))
            .args(["install", "bpf-linker", "--locked", "--version", BPF_LINKER])
            .args(["--no-default-features", "--features", &format!("llvm-{llvm}")]),
    )
}

/// The major number of "LLVM version: 22.1.8".
fn llvm_of_bpf_toolchain() -> Option<u32> {
    let verbose = rustc("bpf", &["-vV"])?;
    let version = verbose.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

fn names(missing: &[Missing]) -> String {
    missing.iter().map(Missing::name).collect::<Vec<_>>().join(", ")
}

fn lab_packages(missing: &[Missing]) -> Vec<&'static str> {
    let package = |missing: &Missing| match missing {
        Missing::LabTool { package, .. } => Some(*package),
        Missing::Toolchain | Missing::Linker => None,
    };
    missing.iter().filter_map(package).collect()
}

/// One message with all there is to do.
fn by_hand(missing: &[Missing]) -> String {
    let mut text = format!("missing: {}.\n", names(missing));
    if missing.iter().any(|missing| matches!(missing, Missing::Toolchain | Missing::Linker)) {
        text += &format!(
            "For the XDP program, on any system:\n    \
             rustup toolchain install nightly --component rust-src\n    \
             cargo binstall bpf-linker@{BPF_LINKER}    (or the release from https://github.com/aya-rs/bpf-linker)\n\
             or on Debian 12, as root:\n    \
             apt-get install {toolchain} g++ llvm-22-dev libpolly-22-dev zlib1g-dev libzstd-dev\n    \
             rustup toolchain link bpf /usr\n    \
             LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --locked --version {BPF_LINKER} \
             --no-default-features --features llvm-22\n",
            toolchain = TOOLCHAIN_PACKAGES.join(" "),
        );
    }
    let tools = lab_packages(missing);
    if !tools.is_empty() {
        text += &format!("For the labs, as root:\n    apt-get install {}\n", tools.join(" "));
    }
    text + "On Debian, `cargo xtask setup` does this by itself when it runs as root."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_every_missing_thing_with_its_package() {
        let text = by_hand(&[
            Missing::Toolchain,
            Missing::LabTool { program: "ip", package: "iproute2" },
            Missing::LabTool { program: "keepalived", package: "keepalived" },
        ]);
        for word in ["rust-src", "rustc-web", "bpf-linker", "iproute2", "keepalived"] {
            assert!(text.contains(word), "no {word} in:\n{text}");
        }
        let text = by_hand(&[Missing::LabTool { program: "ip", package: "iproute2" }]);
        assert!(!text.contains("rustc-web"), "{text}");
    }
}
