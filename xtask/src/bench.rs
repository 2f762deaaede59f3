//! `cargo xtask bench`: what does it cost, how fast is it, and for how long does it hold?

mod checks;
mod failover;
mod figures;
mod instances;
mod ipvs;
mod packets;
mod update;
mod wire;

use std::env;

use anyhow::Result;
use nix::unistd::geteuid;

use crate::{as_root, build, cargo, run_visibly, setup::setup};

/// Without a word: what a packet costs in the XDP program, path by path, into docs/performance/packets.*
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    /// What a packet costs, in less than a minute
    #[arg(long)]
    quick: bool,
}

#[derive(clap::Subcommand)]
enum What {
    /// Reading 1,000 virtual servers of 100 real servers, in a release build
    Config,
    /// How long a failover takes, and whether there are false ones under load, beside keepalived
    Failover(failover::Arguments),
    /// What checks of 10,000 real servers cost, whether they are in time, and how soon a dead rack is found
    Checks(checks::Arguments),
    /// Whether adverts leave on time with up to 4,096 instances on one node
    Instances(instances::Arguments),
    /// Packets a second over veth devices, beside plain forwarding by the kernel and a balancer of nftables
    Wire {
        /// Few rounds, in less than a minute
        #[arg(long)]
        quick: bool,
    },
    /// What changes of large tables cost, and whether a reload of 100,000 real servers loses packets
    Update(update::Arguments),
    /// How many instructions a packet costs, beside kernel IPVS, counted in a virtual machine
    Ipvs(ipvs::Arguments),
    /// Ten minutes of random faults on three directors; seed and length by CHAOS_SEED and CHAOS_SECONDS
    Chaos,
}

/// The daemon's own code and what its sockets go through, where the lab looks for it. What is timed would be a compiler's
/// sloth otherwise.
const OPTIMISED: &[&str] = &[
    "--config",
    "profile.dev.package.control.opt-level=3",
    "--config",
    "profile.dev.package.tokio.opt-level=3",
    "--config",
    "profile.dev.package.mio.opt-level=3",
    "--config",
    "profile.dev.package.netlink-proto.opt-level=3",
    "--config",
    "profile.dev.package.netlink-packet-route.opt-level=3",
    "--config",
    "profile.dev.package.netlink-packet-core.opt-level=3",
    "--config",
    "profile.dev.package.netlink-sys.opt-level=3",
    "--config",
    "profile.dev.package.aya.opt-level=3",
    "--config",
    "profile.dev.package.serde_json.opt-level=3",
];
const TEN_MINUTES: &str = "600";

pub fn bench(arguments: &Arguments) -> Result<()> {
    match &arguments.what {
        None => packets::bench(arguments.quick),
        Some(What::Config) => {
            measure(&["-p", "control", "--release", "--test", "limits"], "what_a_large_site_costs")
        }
        Some(What::Failover(arguments)) => in_lab(arguments.built, &[], || failover::bench(arguments)),
        Some(What::Checks(arguments)) => in_lab(arguments.built, OPTIMISED, || checks::bench(arguments)),
        Some(What::Instances(arguments)) => {
            in_lab(arguments.built, OPTIMISED, || instances::bench(arguments))
        }
        Some(What::Wire { quick }) => wire::bench(*quick),
        Some(What::Update(arguments)) => {
            in_lab(arguments.built, OPTIMISED, || update::bench(arguments, OPTIMISED))
        }
        Some(What::Ipvs(arguments)) => ipvs::bench(arguments),
        Some(What::Chaos) => chaos(),
    }
}

/// As root, after all that runs there is built.
fn in_lab(built: bool, options: &[&str], bench: impl FnOnce() -> Result<()>) -> Result<()> {
    if !built {
        build_all()?;
    }
    if !built && !options.is_empty() {
        run_visibly(cargo().args(["build", "--bin", "lvsd"]).args(options))?;
    }
    if geteuid().is_root() { bench() } else { as_root::again() }
}

fn build_all() -> Result<()> {
    build::build(&build::Arguments::default())?;
    run_visibly(cargo().args(["build", "--package", "lvs-tests", "--bins"]))
}

/// A measurement among the tests.
fn measure(test: &[&str], name: &str) -> Result<()> {
    setup()?;
    run_visibly(cargo().arg("test").args(test).args(["--", "--ignored", "--nocapture", name]))
}

fn chaos() -> Result<()> {
    setup()?;
    build_all()?;
    let mut command = as_root::cargo_test();
    command.args(["--package", "lvs-tests", "--test", "chaos"]);
    command.args(["--", "--nocapture", "never_two_answer"]);
    if env::var_os("CHAOS_SECONDS").is_none() {
        command.env("CHAOS_SECONDS", TEN_MINUTES);
    }
    run_visibly(&mut command)
}
