//! Builds the XDP program from source and leaves it in OUT_DIR, from where `dataplane` embeds it.
//!
//! Two toolchains can do it. A rustup nightly with rust-src compiles `core` for BPF itself; a toolchain
//! that ships `core` for bpfel (Debian's rustc-web with libstd-rust-web-dev-bpf, linked into rustup as
//! `bpf` by `cargo xtask setup`) needs only leave to use unstable inline assembly.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use aya_build::{Package, Toolchain};

const TARGET: &str = "bpfel-unknown-none";

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    let toolchain = if sysroot("bpf").is_some_and(|root| root.join("lib/rustlib").join(TARGET).exists()) {
        // Neither "1" nor the package's name: aya-build would take these as a wish for build-std.
        // SAFETY: a build script's main, no other thread runs.
        unsafe { env::set_var("RUSTC_BOOTSTRAP", "aya_ebpf,director,bench") };
        Toolchain::Custom("bpf")
    } else if sysroot("nightly").is_some_and(|root| root.join("lib/rustlib/src/rust/library/core").exists()) {
        Toolchain::Nightly
    } else {
        bail!(
            "no Rust toolchain here can build eBPF: run `cargo xtask setup`, which links Debian's \
             rustc-web as rustup toolchain `bpf`, or install a nightly with `rustup toolchain install \
             nightly --component rust-src`"
        );
    };
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../lvs-ebpf");
    println!("cargo:rerun-if-changed={}", root.join("../lvs-ebpf-common/src").display());
    aya_build::build_ebpf(
        [Package {
            name: "lvs-ebpf",
            root_dir: root.to_str().context("the path of the sources is not UTF-8")?,
            ..Default::default()
        }],
        toolchain,
    )
}

fn sysroot(toolchain: &str) -> Option<PathBuf> {
    let output = Command::new("rustup")
        .args(["run", toolchain, "rustc", "--print", "sysroot"])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}
