//! `cargo xtask bench`: what does a packet cost on each path?
//!
//! BPF_PROG_TEST_RUN of the real object. Gross figures: the frame that is not ours is the baseline of the same run.

use anyhow::Result;

use crate::{cargo, run_visibly, setup::setup};

pub fn bench() -> Result<()> {
    setup()?;
    let measurement = ["--ignored", "--nocapture", "what_a_packet_costs"];
    run_visibly(cargo().args(["test", "-p", "lvs-tests", "--test", "packets", "--"]).args(measurement))
}
