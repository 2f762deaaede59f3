//! `cargo xtask bench ipvs`: how many instructions does a packet cost, beside kernel IPVS?

mod guest;

use std::{env, fmt::Write as _, fs};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::figures::opening;
use crate::{
    build, root,
    setup::setup,
    vm::{Kernel, Machine},
};

#[derive(clap::Args)]
pub struct Arguments {
    /// Whose IPVS; may be given several times
    #[arg(long, default_values = ["6.1"])]
    kernel: Vec<Kernel>,
    /// One round of few packets: does it work at all?
    #[arg(long)]
    quick: bool,
    /// Set when this runs in the virtual machine
    #[arg(long, hide = true)]
    inside: bool,
}

const DIRECTOR_MAC: &str = "02:00:00:00:00:02";
const GENERATOR_MAC: &str = "02:00:00:00:00:01";
/// Of each service.
const REALS: u8 = 10;
const PACKETS: u64 = 20_000;
const ROUNDS: u32 = 3;
/// What `lvsd` is to reach: so many times fewer instructions.
const TARGET: f64 = 3.5;
/// How a line of the guest's begins that is a figure.
const MARK: &str = "measured: ";

const INTRODUCTION: &str = "\
# Instructions a packet, beside kernel IPVS

Written by `cargo xtask bench ipvs`. One virtual machine with Debian's kernel and two virtio-net cards on one cable. The kernel's
packet generator sends UDP of 60 bytes on one, the director forwards on the other by direct routing to 10 real servers: `lvsd` with XDP
in the driver, or IPVS. Both read the same file; keepalived fills the tables of IPVS. They take turns within one run.

QEMU executes each instruction of the guest by itself, and lets the guest's clock advance by one nanosecond for each
(`-icount shift=0`). What passes inside the driver's `virtnet_poll` on the director's card, by the kernel's function graph tracer, is
receiving, forwarding and sending. It is divided by the packets that came in. The card's interrupts are put off by half a millisecond, so
that packets come in batches for both (`napi_defer_hard_irqs`). So the figures do not depend on the machine or its load. But they know neither caches nor DMA: they say how many instructions, not how many packets a second.

*One flow* is known to both after its first packet. *New flow*: another client address and port for each packet. With `mh` and `mh-port` `lvsd`
hashes every packet and remembers none; with `rr` it remembers all flows, as IPVS does with both.

";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Director {
    Lvsd,
    Ipvs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduler {
    MhPort,
    Rr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    One,
    AllNew,
}

impl Director {
    const ALL: [Self; 2] = [Self::Lvsd, Self::Ipvs];

    fn name(self) -> &'static str {
        match self {
            Self::Lvsd => "lvsd",
            Self::Ipvs => "IPVS",
        }
    }
}

impl Scheduler {
    const ALL: [Self; 2] = [Self::MhPort, Self::Rr];

    fn name(self) -> &'static str {
        match self {
            Self::MhPort => "mh-port",
            Self::Rr => "rr",
        }
    }

    /// As keepalived.conf says it.
    fn words(self) -> &'static str {
        match self {
            Self::MhPort => "lvs_sched mh\n    mh-port",
            Self::Rr => "lvs_sched rr",
        }
    }

    /// Of its service.
    fn port(self) -> u16 {
        match self {
            Self::MhPort => 1001,
            Self::Rr => 1002,
        }
    }
}

impl Flows {
    const ALL: [Self; 2] = [Self::One, Self::AllNew];

    fn name(self) -> &'static str {
        match self {
            Self::One => "one flow",
            Self::AllNew => "new flow",
        }
    }
}

/// What one measurement has shown.
#[derive(Clone, Debug)]
pub struct Line {
    program: Director,
    scheduler: Scheduler,
    flows: Flows,
    packets: u64,
    /// In how many calls of the driver they came.
    polls: u64,
    instructions: u64,
}

impl Line {
    fn json(&self) -> Value {
        json!({
            "director": self.program.name(),
            "scheduler": self.scheduler.name(),
            "flows": self.flows.name(),
            "packets": self.packets,
            "polls": self.polls,
            "instructions": self.instructions,
        })
    }

    fn read(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let number = |name: &str| value[name].as_u64();
        Some(Self {
            program: Director::ALL.into_iter().find(|it| value["director"] == it.name())?,
            scheduler: Scheduler::ALL.into_iter().find(|it| value["scheduler"] == it.name())?,
            flows: Flows::ALL.into_iter().find(|it| value["flows"] == it.name())?,
            packets: number("packets")?,
            polls: number("polls")?,
            instructions: number("instructions")?,
        })
    }

    fn cost(&self) -> f64 {
        self.instructions as f64 / self.packets as f64
    }
}

pub fn bench(arguments: &Arguments) -> Result<()> {
    let (packets, rounds) = if arguments.quick { (PACKETS / 10, 1) } else { (PACKETS, ROUNDS) };
    if arguments.inside {
        return guest::measure(packets, rounds, |line| println!("{MARK}{}", line.json()));
    }
    setup()?;
    build::build(&build::Arguments::default())?;
    let mut all = Vec::new();
    for kernel in &arguments.kernel {
        let figures = run(*kernel, arguments.quick)?;
        ensure!(figures.is_complete(rounds), "the guest ended before all was measured");
        all.push(figures);
    }
    let text = text(&all)?;
    println!("\n{text}");
    if arguments.quick {
        println!("Few packets: docs/performance/ipvs.* stay as they are.");
        return Ok(());
    }
    let file = root().join("docs/performance/ipvs.md");
    let lists: Vec<_> = all.iter().map(Figures::json).collect();
    fs::write(file.with_extension("json"), format!("[\n{}\n]\n", lists.join(",\n")))?;
    fs::write(file.with_extension("svg"), plot(&all)?)?;
    Ok(fs::write(file, text)?)
}

/// Boots a machine and listens to it.
fn run(kernel: Kernel, quick: bool) -> Result<Figures> {
    let mut machine = Machine::new(kernel)?;
    // Counting is the emulator's.
    machine.emulated = true;
    machine.cpus = 1;
    // To zero whole pages for packets of 60 bytes, which Debian's 6.1 does, costs more than all that is measured.
    machine.boot = "init_on_alloc=0".to_owned();
    machine.qemu = format!(
        "-icount shift=0,sleep=off \
         -netdev hubport,id=h0,hubid=0 -device virtio-net-pci,netdev=h0,mac={DIRECTOR_MAC} \
         -netdev hubport,id=h1,hubid=0 -device virtio-net-pci,netdev=h1,mac={GENERATOR_MAC}"
    );
    println!("{}: some minutes", machine.describe());
    let mut script = format!("{} bench ipvs --inside", env::current_exe()?.display());
    if quick {
        script += " --quick";
    }
    let mut lines = Vec::new();
    machine.run(&script, |line| {
        if let Some(figure) = line.strip_prefix(MARK) {
            lines.push(Line::read(figure).with_context(|| format!("not a figure: {figure}"))?);
        }
        Ok(())
    })?;
    Ok(Figures { machine: machine.describe(), lines })
}

/// Of one machine.
struct Figures {
    machine: String,
    lines: Vec<Line>,
}

impl Figures {
    fn is_complete(&self, rounds: u32) -> bool {
        let kinds = Director::ALL.len() * Scheduler::ALL.len() * Flows::ALL.len();
        self.lines.len() == kinds * rounds as usize
    }

    /// Of all rounds: least, median, most.
    fn costs(&self, program: Director, scheduler: Scheduler, flows: Flows) -> Result<[f64; 3]> {
        let is_it = |line: &&Line| (line.program, line.scheduler, line.flows) == (program, scheduler, flows);
        let mut costs: Vec<_> = self.lines.iter().filter(is_it).map(Line::cost).collect();
        costs.sort_by(f64::total_cmp);
        let at = |place: usize| costs.get(place).copied().context("something was not measured");
        Ok([at(0)?, at(costs.len() / 2)?, at(costs.len().saturating_sub(1))?])
    }

    fn table(&self) -> Result<String> {
        let mut text = format!("{}.\n\n", self.machine);
        text += "| scheduler | flows | IPVS: min / median / max | lvsd: min / median / max | times fewer | target |\n";
        text += "|---|---|---|---|---|---|\n";
        for scheduler in Scheduler::ALL {
            for flows in Flows::ALL {
                let [least, ipvs, most] = self.costs(Director::Ipvs, scheduler, flows)?;
                let [fewest, lvsd, largest] = self.costs(Director::Lvsd, scheduler, flows)?;
                let verdict = if ipvs / lvsd >= TARGET { "kept" } else { "missed" };
                // Writing to a String cannot fail.
                let _ = writeln!(
                    text,
                    "| {} | {} | {least:.0} / {ipvs:.0} / {most:.0} | {fewest:.0} / {lvsd:.0} / {largest:.0} | {:.1} | \
                     {TARGET}: {verdict} |",
                    scheduler.name(),
                    flows.name(),
                    ipvs / lvsd
                );
            }
        }
        let batch = |program| {
            let lines = self.lines.iter().filter(|line| line.program == program);
            let (packets, polls) =
                lines.fold((0, 0), |(packets, polls), line| (packets + line.packets, polls + line.polls));
            packets as f64 / polls as f64
        };
        let _ = writeln!(
            text,
            "\nPackets in a call of the driver: IPVS {:.0}, lvsd {:.0}.\n",
            batch(Director::Ipvs),
            batch(Director::Lvsd)
        );
        Ok(text)
    }

    fn json(&self) -> String {
        let lines: Vec<_> = self.lines.iter().map(|line| line.json().to_string()).collect();
        format!("{{\"machine\":{},\"lines\":[\n{}\n]}}\n", json!(self.machine), lines.join(",\n"))
    }
}

fn text(all: &[Figures]) -> Result<String> {
    let tables = all.iter().map(Figures::table).collect::<Result<Vec<_>>>()?;
    Ok(format!("{INTRODUCTION}![the plot](ipvs.svg)\n\n{}\n", tables.concat().trim_end()))
}

/// Two bars for each line of the tables: the medians.
fn plot(all: &[Figures]) -> Result<String> {
    const LEFT: f64 = 210.0;
    const RIGHT: f64 = 60.0;
    const WIDTH: f64 = 900.0;
    const TOP: f64 = 36.0;
    const STEP: f64 = 46.0;
    let mut rows = Vec::new();
    for figures in all {
        let kernel: String = figures.machine.chars().take_while(|c| *c != '-' && *c != '+').collect();
        for scheduler in Scheduler::ALL {
            for flows in Flows::ALL {
                let bar = |program| anyhow::Ok((program, figures.costs(program, scheduler, flows)?[1]));
                let label = format!("{kernel}: {}, {}", scheduler.name(), flows.name());
                rows.push((label, [bar(Director::Ipvs)?, bar(Director::Lvsd)?]));
            }
        }
    }
    let longest = rows.iter().flat_map(|(_, bars)| bars).map(|(_, cost)| *cost).fold(1.0, f64::max);
    let size = (WIDTH, TOP + STEP * rows.len() as f64);
    let mut svg = opening(size, 10.0, "Instructions a packet: kernel IPVS and lvsd");
    for (row, (label, bars)) in rows.iter().enumerate() {
        let top = TOP + STEP * row as f64;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.0}\" text-anchor=\"end\">{label}</text>",
            LEFT - 8.0,
            top + 21.0
        );
        for (place, (program, cost)) in bars.iter().enumerate() {
            let y = top + 18.0 * place as f64;
            let width = cost / longest * (WIDTH - LEFT - RIGHT);
            let colour = if *program == Director::Lvsd { "#1a6faf" } else { "#c1561a" };
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"15\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{:.0}\">{cost:.0}</text>",
                LEFT + width + 6.0,
                y + 12.0
            );
        }
    }
    Ok(svg + "</svg>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_guest_reads_back() {
        let line = Line {
            program: Director::Ipvs,
            scheduler: Scheduler::Rr,
            flows: Flows::AllNew,
            packets: 10,
            polls: 2,
            instructions: 70_005,
        };
        let back = Line::read(&line.json().to_string()).unwrap();
        assert_eq!((back.program, back.scheduler, back.flows), (line.program, line.scheduler, line.flows));
        assert_eq!((back.packets, back.polls, back.instructions), (10, 2, 70_005));
        assert!(Line::read("{}").is_none());
    }
}
