//! What needs root: how does it become it?

use std::{env, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result, bail};
use lvs_tests::find_program;
use nix::unistd::geteuid;

use crate::cargo;

/// `cargo test` whose test programs run as root: they make namespaces and load XDP. Where there is no sudo they say
/// that they are skipped.
pub fn cargo_test() -> Command {
    let mut command = cargo();
    command.arg("test");
    if !geteuid().is_root() && find_program("sudo").is_some() {
        command.args(["--config", "target.'cfg(all())'.runner = 'sudo -E'"]);
    }
    command
}

/// This very command once more, by sudo, which is told that all is built: root is not to build in a user's directory.
pub fn again() -> Result<()> {
    let Some(sudo) = find_program("sudo") else {
        bail!("network namespaces and XDP need root, and there is no sudo: run this as root");
    };
    let mut command = Command::new(sudo);
    command.arg("--preserve-env").arg(env::current_exe()?).args(env::args_os().skip(1)).arg("--built");
    Err(command.exec()).context("running sudo")
}
