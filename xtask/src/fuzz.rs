//! `cargo xtask fuzz`: is there an input that brings it down?

use anyhow::Result;

use crate::{cargo, run_visibly, setup::setup};

#[derive(clap::Args)]
pub struct Arguments {
    /// What to feed
    target: Target,
    /// For how long
    #[arg(long, default_value_t = 600)]
    seconds: u64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Target {
    /// Lexer, tree and reader of the configuration
    Config,
    /// Decoder of adverts and the state machine of VRRP
    Vrrp,
}

/// Optimised, for its number; the few seconds among the tests are not, and find arithmetic that overflows too.
pub fn fuzz(arguments: &Arguments) -> Result<()> {
    setup()?;
    let limits = "ten_minutes_find_no_panic_no_hang_and_no_flood";
    let test: &[&str] = match arguments.target {
        Target::Config => {
            &["control", "--release", "--test", "limits", "--", "--ignored", "--nocapture", limits]
        }
        Target::Vrrp => &["lvs-tests", "--release", "--test", "fuzz", "--", "--nocapture"],
    };
    let mut command = cargo();
    command.args(["test", "--package"]).args(test);
    run_visibly(command.env("LVSD_FUZZ_SECONDS", arguments.seconds.to_string()))
}
