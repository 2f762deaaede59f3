//! `cargo xtask bench`: what does it cost, how fast is it, and for how long does it hold?

mod failover;
mod figures;

use std::{env, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result, bail};
use lvs_tests::find_program;
use nix::unistd::geteuid;

use crate::{build, cargo, run_visibly, setup::setup};

/// Without a word: what a packet costs in the XDP program, path by path. BPF_PROG_TEST_RUN of the real object; gross
/// figures: the frame that is not ours is the baseline of the same run.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(clap::Subcommand)]
enum What {
    /// Reading 1,000 virtual servers of 100 real servers, in a release build
    Config,
    /// How long a failover takes, and whether there are false ones under load, beside keepalived
    Failover(failover::Arguments),
    /// Ten minutes of random faults on three directors; seed and length by CHAOS_SEED and CHAOS_SECONDS
    Chaos,
}

const TEN_MINUTES: &str = "600";

pub fn bench(arguments: &Arguments) -> Result<()> {
    match &arguments.what {
        None => measure(&["-p", "lvs-tests", "--test", "packets"], "what_a_packet_costs"),
        Some(What::Config) => {
            measure(&["-p", "control", "--release", "--test", "limits"], "what_a_large_site_costs")
        }
        Some(What::Failover(arguments)) => {
            if !geteuid().is_root() {
                build_all()?;
                return again_as_root();
            }
            if !arguments.built {
                build_all()?;
            }
            failover::bench(arguments)
        }
        Some(What::Chaos) => chaos(),
    }
}

fn build_all() -> Result<()> {
    build::build(&build::Arguments::default())?;
    run_visibly(cargo().args(["build", "--package", "lvs-tests", "--bins"]))
}

fn again_as_root() -> Result<()> {
    let Some(sudo) = find_program("sudo") else {
        bail!("network namespaces and XDP need root: run this as root")
    };
    let mut command = Command::new(sudo);
    command.arg("--preserve-env").arg(env::current_exe()?).args(env::args_os().skip(1)).arg("--built");
    Err(command.exec()).context("running sudo")
}

/// A measurement among the tests.
fn measure(test: &[&str], name: &str) -> Result<()> {
    setup()?;
    run_visibly(cargo().arg("test").args(test).args(["--", "--ignored", "--nocapture", name]))
}

fn chaos() -> Result<()> {
    setup()?;
    build_all()?;
    let mut command = cargo();
    command.args(["test", "--package", "lvs-tests", "--test", "chaos"]);
    if !geteuid().is_root() && find_program("sudo").is_some() {
        command.args(["--config", "target.'cfg(all())'.runner = 'sudo -E'"]);
    }
    command.args(["--", "--nocapture", "never_two_answer"]);
    if env::var_os("CHAOS_SECONDS").is_none() {
        command.env("CHAOS_SECONDS", TEN_MINUTES);
    }
    run_visibly(&mut command)
}
