//! `cargo xtask build`: where is lvsd?

use std::{env, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{cargo, run_visibly, setup::setup};

#[derive(clap::Args, Default)]
pub struct Arguments {
    /// Optimised, as it is to be installed
    #[arg(long)]
    pub release: bool,
}

/// The path of the program just built.
pub fn build(arguments: &Arguments) -> Result<PathBuf> {
    setup()?;
    let mut command = cargo();
    command.args(["build", "--bin", "lvsd"]);
    if arguments.release {
        command.arg("--release");
    }
    run_visibly(&mut command)?;
    Ok(target_directory()?.join(if arguments.release { "release" } else { "debug" }).join("lvsd"))
}

/// This program lies in `debug` below it.
pub fn target_directory() -> Result<PathBuf> {
    let here = env::current_exe()?;
    let target = here.parent().and_then(|debug| debug.parent()).context("xtask was not started by cargo")?;
    Ok(target.to_owned())
}
