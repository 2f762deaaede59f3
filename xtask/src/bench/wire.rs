//! `cargo xtask bench wire`: how many packets a second, beside what the kernel does by itself?

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};
use lvs_tests::find_program;
use serde_json::Value;

use super::{
    figures::{bar, conditions, opening},
    packets,
};
use crate::{
    as_root, cargo, root, run_visibly,
    setup::{install_packages, setup},
};

const ROUNDS: u32 = 50;
const QUICK_ROUNDS: u32 = 5;

const INTRODUCTION: &str = "\
# Packets a second, beside the kernel

Written by `cargo xtask bench wire` (`--quick`: fewer rounds). Hosts are network namespaces, cables veth devices: generator, director, real
server. The director is `lvsd` with XDP in the driver (`mh` with `mh-port`, direct routing to 4 real servers), or the kernel with a
route for the virtual address, which balances nothing, or nftables with a map of a hash of the client's address and port to the 4 real
servers, by NAT. *No director* is one cable between both ends: what all of them pay for.

The frames are UDP of 64 bytes, made in the kernel (live frames of BPF_PROG_TEST_RUN) and counted and dropped by an XDP program at the real
servers' end. One CPU makes, forwards and counts them, in turns of 200,000; the figures are the median and the most of all rounds.
*Above no director* is the least time that a packet takes, less what it takes there. veth devices are no cards: for packets that XDP does not
forward they build the kernel's buffers and take them apart again, which is part of what XDP saves; but there is no DMA and no cache miss of a card's.

";

/// Name in the JSON, and in words.
const WAYS: [(&str, &str); 4] = [
    ("nothing", "no director"),
    ("lvsd", "lvsd"),
    ("kernel", "plain forwarding"),
    ("nftables", "balancer of nftables"),
];

pub fn bench(quick: bool) -> Result<()> {
    setup()?;
    if find_program("nft").is_none() {
        install_packages(&["nftables"], "the balancer to compare with")?;
    }
    run_visibly(cargo().args(["build", "--package", "control", "--package", "lvs-tests", "--bins"]))?;
    let file = root().join("docs/performance/wire.json");
    let mut command = as_root::cargo_test();
    command.args(["--package", "lvs-tests", "--test", "wire"]);
    command.args(["--", "--ignored", "--nocapture", "how_many_packets_a_second"]);
    command.env("BENCH_OBJECT", packets::object()?).env("BENCH_FIGURES", &file);
    command.env("BENCH_ROUNDS", if quick { QUICK_ROUNDS } else { ROUNDS }.to_string());
    run_visibly(&mut command)?;
    let rates = Rates::read(&file)?;
    let text = rates.text()?;
    println!("\n{text}");
    fs::write(file.with_extension("md"), text)?;
    Ok(fs::write(file.with_extension("svg"), rates.plot()?)?)
}

struct Rate {
    way: String,
    flows: String,
    median: f64,
    most: f64,
}

struct Rates {
    rounds: u64,
    all: Vec<Rate>,
}

impl Rates {
    fn read(file: &Path) -> Result<Self> {
        let value: Value = serde_json::from_slice(&fs::read(file)?)?;
        let rate = |it: &Value| {
            Some(Rate {
                way: it["way"].as_str()?.to_owned(),
                flows: it["flows"].as_str()?.to_owned(),
                median: it["median"].as_f64()?,
                most: it["max"].as_f64()?,
            })
        };
        let all = value["packets_a_second"].as_array().and_then(|list| list.iter().map(rate).collect());
        Ok(Self {
            rounds: value["rounds"].as_u64().context("no rounds")?,
            all: all.context("not the figures of packets a second")?,
        })
    }

    fn find(&self, way: &str, flows: &str) -> Result<&Rate> {
        let found = self.all.iter().find(|it| it.way == way && it.flows == flows);
        found.with_context(|| format!("{way} with {flows} flows was not measured"))
    }

    fn in_order(&self) -> impl Iterator<Item = (&'static str, &Rate)> {
        WAYS.iter().flat_map(|(way, label)| {
            self.all.iter().filter(move |rate| rate.way == *way).map(move |rate| (*label, rate))
        })
    }

    fn text(&self) -> Result<String> {
        let mut text =
            format!("{INTRODUCTION}{}, {} rounds.\n\n![the plot](wire.svg)\n\n", conditions(), self.rounds);
        text += "| director | flows | packets a second: median / max | lvsd, times as many: median / max | above no director |\n|---|---|---|---|---|\n";
        for (label, rate) in self.in_order() {
            let (lvsd, nothing) = (self.find("lvsd", &rate.flows)?, self.find("nothing", &rate.flows)?);
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "| {label} | {} | {:.2} / {:.2} million | {:.1} / {:.1} | {:.0} ns |",
                rate.flows,
                rate.median / 1e6,
                rate.most / 1e6,
                lvsd.median / rate.median,
                lvsd.most / rate.most,
                1e9 / rate.most - 1e9 / nothing.most,
            );
        }
        Ok(text)
    }

    /// A bar for each line: the median.
    fn plot(&self) -> Result<String> {
        const LEFT: f64 = 230.0;
        const RIGHT: f64 = 60.0;
        const WIDTH: f64 = 900.0;
        const TOP: f64 = 36.0;
        const STEP: f64 = 20.0;
        let longest = self.all.iter().map(|rate| rate.median).fold(1.0, f64::max);
        let height = TOP + STEP * self.all.len() as f64 + 10.0;
        let mut svg = opening((WIDTH, height), 10.0, "Millions of packets a second over veth devices");
        for (place, (label, rate)) in self.in_order().enumerate() {
            let y = TOP + STEP * place as f64;
            let width = rate.median / longest * (WIDTH - LEFT - RIGHT);
            let colour = if rate.way == "lvsd" { "#1a6faf" } else { "#999" };
            let label = format!("{label}, flows: {}", rate.flows);
            bar(&mut svg, (LEFT, y), width, colour, [&label, &format!("{:.2}", rate.median / 1e6)]);
        }
        Ok(svg + "</svg>\n")
    }
}
