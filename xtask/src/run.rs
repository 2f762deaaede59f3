//! `cargo xtask run`: what does it look like when it works?

mod demonstration;

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};
use lvs_tests::remove_leftovers;
use nix::unistd::geteuid;

use crate::{as_root, build, cargo, run_visibly};

/// Without arguments: the demonstration, on hosts that are network namespaces.
#[derive(clap::Args)]
pub struct Arguments {
    /// Leave the hosts and their daemons up afterwards
    #[arg(long)]
    keep: bool,
    /// Remove what earlier runs left up
    #[arg(long, conflicts_with_all = ["keep", "lvsd"])]
    clean: bool,
    /// Set when sudo runs this a second time: root is not to build in a user's directory
    #[arg(long, hide = true)]
    built: bool,
    /// Run lvsd on this host instead, with these arguments
    #[arg(last = true, conflicts_with = "keep")]
    lvsd: Vec<String>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.built && !arguments.clean {
        let lvsd = build::build(&build::Arguments::default())?;
        if !arguments.lvsd.is_empty() {
            return Err(Command::new(&lvsd).args(&arguments.lvsd).exec())
                .context(format!("{}", lvsd.display()));
        }
        run_visibly(cargo().args(["build", "--package", "lvs-tests", "--bin", "lab-http"]))?;
    }
    if !geteuid().is_root() {
        return as_root::again();
    }
    if arguments.clean {
        println!("{} labs removed", remove_leftovers()?);
        return Ok(());
    }
    demonstration::show(arguments.keep)
}
