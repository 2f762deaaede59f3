//! `cargo xtask bench`: what does a packet cost in the XDP program, path by path?

use std::{fmt::Write as _, fs, path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::figures::{bar, conditions, opening};
use crate::{as_root, cargo, root, run_visibly, setup::setup};

const ROUNDS: u32 = 100;
const QUICK_ROUNDS: u32 = 20;
const DIRECTORY: &str = "docs/performance";

const INTRODUCTION: &str = "\
# What a packet costs

Written by `cargo xtask bench` (`--quick`: fewer rounds). BPF_PROG_TEST_RUN of the program that `lvsd` carries, on one CPU, with tables written by
hand: 100 real servers, a ring of 10,007 slots. Before it runs a prologue (`lvs-ebpf/src/bench.rs`): it restores the frame, of 64 bytes,
picks one of the flows at random and makes a tail call. The same prologue before a program that only returns XDP_TX is `floor`;
*net* is what is above that. `phys` sees that the frame is a whole TCP packet of IPv4 and swaps its MACs. Paths take turns, 200,000 runs each; the figures are
the least and the median of all rounds, in nanoseconds of the thread's own CPU time. Neither a driver nor the copying of a frame is in them.

";

/// Name in the JSON, and in words.
const PATHS: [(&str, &str); 17] = [
    ("floor", "floor"),
    ("phys", "phys"),
    ("grow", "floor, giving room for a header and taking it back"),
    ("foreign", "not ours: TCP to another address"),
    ("arp", "ARP answered under the lease"),
    ("solicitation", "neighbour solicitation answered"),
    ("established", "DR, established"),
    ("established6", "DR over IPv6, established"),
    ("syn", "DR, SYN"),
    ("1000 services", "DR, one of 1,000 services"),
    ("10000 services", "DR, one of 10,000 services"),
    ("moved", "DR, known flow of a moved slot"),
    ("wlc", "DR, known flow of a wlc service"),
    ("wlc syn", "DR, SYN to a wlc service"),
    ("ipip", "ipip, established"),
    ("nat", "NAT, to the real server"),
    ("nat answer", "NAT, the answer"),
];

pub fn bench(quick: bool) -> Result<()> {
    setup()?;
    let file = root().join(DIRECTORY).join("packets.json");
    let mut command = as_root::cargo_test();
    command.args(["--package", "lvs-tests", "--test", "packets"]);
    command.args(["--", "--ignored", "--nocapture", "what_a_packet_costs"]);
    command.env("BENCH_OBJECT", object()?).env("BENCH_FIGURES", &file);
    command.env("BENCH_ROUNDS", if quick { QUICK_ROUNDS } else { ROUNDS }.to_string());
    run_visibly(&mut command)?;
    let costs = Costs::read(&file)?;
    let text = costs.text()?;
    println!("\n{text}");
    fs::write(file.with_extension("md"), text)?;
    fs::write(file.with_extension("svg"), costs.plot()?)?;
    Ok(())
}

/// The prologue's object: the build script of `control` leaves it beside the director's.
pub fn object() -> Result<String> {
    let mut command = cargo();
    command.args(["build", "--package", "control", "--message-format", "json"]).stderr(Stdio::inherit());
    let output = command.output().context("running cargo")?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    let messages = String::from_utf8(output.stdout)?;
    let directory = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_it = message["reason"] == "build-script-executed"
            && message["package_id"].as_str()?.contains("/control#");
        is_it.then(|| message["out_dir"].as_str().map(str::to_owned))?
    });
    Ok(directory.context("cargo does not tell where the XDP program was built")? + "/bench")
}

struct Cost {
    path: String,
    flows: String,
    least: f64,
    median: f64,
}

struct Costs {
    rounds: u64,
    all: Vec<Cost>,
}

impl Costs {
    fn read(file: &Path) -> Result<Self> {
        let value: Value = serde_json::from_slice(&fs::read(file)?)?;
        let cost = |it: &Value| {
            Some(Cost {
                path: it["path"].as_str()?.to_owned(),
                flows: it["flows"].as_str()?.to_owned(),
                least: it["min"].as_f64()?,
                median: it["median"].as_f64()?,
            })
        };
        let all = value["gross"].as_array().and_then(|list| list.iter().map(cost).collect());
        Ok(Self {
            rounds: value["rounds"].as_u64().context("no rounds")?,
            all: all.context("not the figures of packets")?,
        })
    }

    fn find(&self, path: &str, flows: &str) -> Result<&Cost> {
        let found = self.all.iter().find(|it| it.path == path && it.flows == flows);
        found.with_context(|| format!("{path} with {flows} flows was not measured"))
    }

    /// Above the floor: least and median.
    fn net(&self, cost: &Cost) -> Result<[f64; 2]> {
        let (floor, grow) = (self.find("floor", "1")?, self.find("grow", "1")?);
        // Half of what `grow` is above the floor is the prologue's, which takes the room back.
        let share = if matches!(&*cost.path, "ipip" | "grow") { 0.5 } else { 0.0 };
        let of = |what: fn(&Cost) -> f64| what(cost) - what(floor) - share * (what(grow) - what(floor));
        Ok([of(|it| it.least), of(|it| it.median)])
    }

    fn least(&self, path: &str, flows: &str) -> Result<f64> {
        Ok(self.net(self.find(path, flows)?)?[0])
    }

    fn in_order(&self) -> impl Iterator<Item = (&'static str, &Cost)> {
        PATHS.iter().flat_map(|(path, label)| {
            self.all.iter().filter(move |cost| cost.path == *path).map(move |cost| (*label, cost))
        })
    }

    fn text(&self) -> Result<String> {
        let mut text = format!(
            "{INTRODUCTION}{}, {} rounds.\n\n![the plot](packets.svg)\n\n",
            conditions(),
            self.rounds
        );
        text += "| path | flows | gross: min / median | net: min / median |\n|---|---|---|---|\n";
        // Writing to a String cannot fail.
        for (label, cost) in self.in_order() {
            let [least, median] = self.net(cost)?;
            let Cost { flows, least: gross, median: usual, .. } = cost;
            let _ =
                writeln!(text, "| {label} | {flows} | {gross:.1} / {usual:.1} | {least:.1} / {median:.1} |");
        }
        text += "\n## The budget\n\nNet, least of all rounds, unless it says gross.\n\n| what | budget | measured | |\n|---|---|---|---|\n";
        for (what, budget, measured, unit) in self.budget()? {
            let verdict = if measured <= budget { "kept" } else { "missed" };
            let _ = writeln!(text, "| {what} | {budget:.1}{unit} | {measured:.1}{unit} | {verdict} |");
        }
        text += "\n## Where the nanoseconds go\n\nDifferences of the lines above, net.\n\n| step | ns |\n|---|---|\n";
        for (step, time) in self.steps()? {
            let _ = writeln!(text, "| {step} | {time:.1} |");
        }
        Ok(text)
    }

    /// (what, at most, measured, unit)
    fn budget(&self) -> Result<[(&'static str, f64, f64, &'static str); 7]> {
        let one = self.least("established", "1")?;
        let gross = |path| anyhow::Ok(self.find(path, "1")?.least);
        Ok([
            ("DR, established, one flow", 20.0, one, " ns"),
            ("the same, gross, by `phys`", 1.7, gross("established")? / gross("phys")?, " times"),
            ("the same, a million flows by one", 1.3, self.least("established", "1M")? / one, " times"),
            ("known flow of a wlc service, one flow", 25.0, self.least("wlc", "1")?, " ns"),
            (
                "10,000 services by one, 64K flows",
                1.2,
                self.least("10000 services", "64K")? / self.least("established", "64K")?,
                " times",
            ),
            ("DR over IPv6, by IPv4, one flow", 1.4, self.least("established6", "1")? / one, " times"),
            ("not ours, by `phys`, gross", 1.0, gross("foreign")? / gross("phys")?, " times"),
        ])
    }

    fn steps(&self) -> Result<[(&'static str, f64); 9]> {
        let between =
            |(path, flows), (than, of)| anyhow::Ok(self.least(path, flows)? - self.least(than, of)?);
        let dr = ("established", "1");
        Ok([
            (
                "parsing, the look for a service, the outcome's counter (not ours)",
                self.least("foreign", "1")?,
            ),
            ("hash, ring, real server and its counters, MACs", between(dr, ("foreign", "1"))?),
            (
                "the same for a million flows: the ring and the real servers are in the cache",
                between(("established", "1M"), dr)?,
            ),
            (
                "one of 10,000 services: the table is not in the nearest cache",
                between(("10000 services", "64K"), ("established", "64K"))?,
            ),
            ("an entry of the flow table", between(("wlc", "1"), dr)?),
            ("the same, not in the cache (a million flows)", between(("wlc", "1M"), ("wlc", "1"))?),
            ("an ipip header", between(("ipip", "1"), dr)?),
            ("translation: TTL, address, port, checksums, last hop", between(("nat", "1"), dr)?),
            ("an answer's route and neighbour, beyond that", between(("nat answer", "1"), ("nat", "1"))?),
        ])
    }

    /// A bar for each line: the least, net.
    fn plot(&self) -> Result<String> {
        const LEFT: f64 = 330.0;
        const RIGHT: f64 = 60.0;
        const WIDTH: f64 = 900.0;
        const TOP: f64 = 36.0;
        const STEP: f64 = 18.0;
        let mut bars = Vec::new();
        for (label, cost) in self.in_order().filter(|(_, cost)| !matches!(&*cost.path, "floor" | "grow")) {
            bars.push((format!("{label}, flows: {}", cost.flows), self.net(cost)?[0]));
        }
        let longest = bars.iter().map(|(_, time)| *time).fold(1.0, f64::max);
        let mut svg = opening(
            (WIDTH, TOP + STEP * bars.len() as f64 + 10.0),
            10.0,
            "Nanoseconds a packet, above the floor",
        );
        for (place, (label, time)) in bars.iter().enumerate() {
            let y = TOP + STEP * place as f64;
            let width = time.max(0.0) / longest * (WIDTH - LEFT - RIGHT);
            bar(&mut svg, (LEFT, y), width, "#1a6faf", [label, &format!("{time:.1}")]);
        }
        Ok(svg + "</svg>\n")
    }
}
