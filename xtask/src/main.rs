//! `cargo xtask`: what a developer types. One file per subcommand.

mod as_root;
mod bench;
mod build;
mod fuzz;
mod run;
mod setup;
mod test;
mod vm;

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Setup, build, run, test, measure and fuzz lvs-ebpf")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install what builds and labs need (the other subcommands do it by themselves)
    Setup,
    /// Build lvsd, with the XDP program inside
    Build(build::Arguments),
    /// Watch a VIP survive the death of its master and of a real server, or run lvsd on this host
    Run(run::Arguments),
    /// Run all tests: unit, packets, labs, interop
    Test(test::Arguments),
    /// Measure what a packet or a large configuration costs and how long a failover takes; ten minutes of chaos
    Bench(bench::Arguments),
    /// Change inputs at random until something panics, hangs or takes memory without measure
    Fuzz(fuzz::Arguments),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Task::Setup => setup::setup(),
        Task::Build(arguments) => build::build(&arguments).map(|lvsd| println!("{}", lvsd.display())),
        Task::Run(arguments) => run::run(&arguments),
        Task::Test(arguments) => test::test(&arguments),
        Task::Bench(arguments) => bench::bench(&arguments),
        Task::Fuzz(arguments) => fuzz::fuzz(&arguments),
    }
}

/// The cargo that started this, in the root of the workspace.
fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Of the workspace.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Runs to its end before the user's eyes.
fn run_visibly(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("running {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
