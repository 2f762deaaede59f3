//! `cargo xtask bench`: what does a packet cost on each path, and what a large configuration?
//!
//! Packets: BPF_PROG_TEST_RUN of the real object. Gross figures: the frame that is not ours is the baseline of the same run.

use anyhow::Result;

use crate::{cargo, run_visibly, setup::setup};

#[derive(clap::Args)]
pub struct Arguments {
    /// What to measure
    #[arg(default_value = "packets")]
    what: What,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum What {
    /// The XDP program, path by path
    Packets,
    /// Reading 1,000 virtual servers of 100 real servers, in a release build
    Config,
}

pub fn bench(arguments: &Arguments) -> Result<()> {
    setup()?;
    let (test, name): (&[&str], _) = match arguments.what {
        What::Packets => (&["-p", "lvs-tests", "--test", "packets"], "what_a_packet_costs"),
        What::Config => (&["-p", "control", "--release", "--test", "limits"], "what_a_large_site_costs"),
    };
    run_visibly(cargo().arg("test").args(test).args(["--", "--ignored", "--nocapture", name]))
}
