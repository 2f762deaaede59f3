//! `cargo xtask bench instances`: does every advert leave on time when one node has thousands of instances?

use std::{collections::HashMap, fmt::Write as _, fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{Advert, Capture, Director, Lab, Need, Stamp, require, wait_for};
use nix::unistd::{SysconfVar, sysconf};

use super::figures::{conditions, opening, scale_line};

#[derive(clap::Args)]
pub struct Arguments {
    /// Seconds of watching, of each number of instances at each interval
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Where table, JSON and plot go
    #[arg(long, default_value = "docs/performance")]
    out: String,
    /// Set when sudo runs this a second time
    #[arg(long, hide = true)]
    pub built: bool,
}

const COUNTS: [usize; 4] = [1, 256, 2048, 4096];
const INTERVALS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];
/// VRIDs of one interface (RFC 9568 5.2.3).
const VRIDS: usize = 255;
const PATIENCE: Duration = Duration::from_secs(120);

struct Figures {
    instances: usize,
    interval: Duration,
    adverts: usize,
    /// That the time of watching has room for and that did not come.
    missing: usize,
    /// Of the VRRP thread, in seconds for each second.
    cpu: f64,
    /// Median, 99 and 99.9 per cent, and the most, in milliseconds.
    lateness: [f64; 4],
}

pub fn bench(arguments: &Arguments) -> Result<()> {
    ensure!(require(&[Need::Lab, Need::Lvsd]), "this machine lacks something");
    let mut all = Vec::new();
    for interval in INTERVALS {
        for count in COUNTS {
            let figures = measure(count, interval, Duration::from_secs(arguments.seconds))
                .with_context(|| format!("{count} instances at {interval:?}"))?;
            println!("{}", figures.row());
            all.push(figures);
        }
    }
    let directory = Path::new(&arguments.out);
    fs::create_dir_all(directory)?;
    let rows: String = all.iter().map(|figures| figures.row() + "\n").collect();
    let text = format!("{INTRODUCTION}{}, {} s each.\n\n{HEADER}\n{rows}", conditions(), arguments.seconds);
    fs::write(directory.join("instances.md"), text)?;
    let objects: Vec<_> = all.iter().map(Figures::json).collect();
    fs::write(directory.join("instances.json"), format!("[\n{}\n]\n", objects.join(",\n")))?;
    fs::write(directory.join("instances.svg"), plot(&all))?;
    Ok(())
}

/// One director, all of whose instances are masters; as many cables to a host that listens as their VRIDs need.
fn measure(count: usize, interval: Duration, window: Duration) -> Result<Figures> {
    let mut lab = Lab::new()?;
    let node = lab.host("lb1", [10, 77, 0, 1].into())?;
    let listener = lab.host("listener", [10, 77, 0, 8].into())?;
    let cables: Vec<_> = (0..count.div_ceil(VRIDS)).map(|cable| format!("cable{cable}")).collect();
    for (number, cable) in cables.iter().enumerate() {
        lab.connect([&node, &listener], cable)?;
        node.run(&format!("ip address add 10.{}.0.1/24 dev {cable}", 100 + number))?;
    }
    let captures = cables.iter().map(|cable| Capture::start(&listener, cable)).collect::<Result<Vec<_>>>()?;
    let director = Director::start(&node, &config(count, interval))?;
    wait_for("masters", PATIENCE, || {
        thread::sleep(Duration::from_millis(500));
        let states = director.status()?.instances;
        Ok(states.iter().all(|instance| instance.state == "MASTER").then_some(()))
    })?;
    // Past their announcements, the second round of which comes after five seconds.
    thread::sleep(Duration::from_secs(8));
    let (from, cpu) = (Stamp::now(), cpu_seconds(director.process().pid())?);
    thread::sleep(window);
    let (to, cpu) = (Stamp::now(), cpu_seconds(director.process().pid())? - cpu);
    drop(director);

    let mut adverts: HashMap<(usize, u8), Vec<Stamp>> = HashMap::new();
    for (cable, capture) in captures.iter().enumerate() {
        let inside = |advert: &Advert| advert.at >= from && advert.at < to;
        for advert in capture.adverts().into_iter().filter(inside) {
            adverts.entry((cable, advert.vrid)).or_default().push(advert.at);
        }
    }
    ensure!(adverts.len() == count, "{} of {count} instances have advertised", adverts.len());
    let mut lateness: Vec<_> = adverts.values().flat_map(|times| late(times, interval)).collect();
    lateness.sort_unstable();
    let at = |part: f64| {
        let place = (lateness.len().saturating_sub(1) as f64 * part) as usize;
        lateness.get(place).map_or(0.0, |late| late.as_secs_f64() * 1e3)
    };
    // Each has at least so many of its moments within the window.
    let room = count * (to.since(from).as_nanos() / interval.as_nanos()) as usize;
    Ok(Figures {
        instances: count,
        interval,
        adverts: lateness.len(),
        missing: room.saturating_sub(lateness.len()),
        cpu: cpu / to.since(from).as_secs_f64(),
        lateness: [at(0.5), at(0.99), at(0.999), at(1.0)],
    })
}

/// How much later each came than the schedule of its instance has it, which its most punctual one tells.
fn late(times: &[Stamp], interval: Duration) -> Vec<Duration> {
    let Some(start) = times.first() else { return Vec::new() };
    // By how much it came after, or, wrapped, before a whole number of intervals.
    let phase = |at: &Stamp| {
        let into = at.since(*start).as_nanos() % interval.as_nanos();
        let half = interval.as_nanos() / 2;
        ((into + half) % interval.as_nanos()) as i128 - half as i128
    };
    let first = times.iter().map(phase).min().unwrap_or_default();
    times.iter().map(|at| Duration::from_nanos((phase(at) - first) as u64)).collect()
}

/// Priority 255: they are masters at once.
fn config(count: usize, interval: Duration) -> String {
    let mut text = String::new();
    for number in 0..count {
        let (cable, vrid) = (number / VRIDS, number % VRIDS + 1);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "vrrp_instance V{number} {{\n    state MASTER\n    interface cable{cable}\n    virtual_router_id {vrid}\n    \
             priority 255\n    version 3\n    advert_int {}\n    virtual_ipaddress {{\n        10.{}.1.{vrid}/32\n    }}\n}}\n",
            interval.as_secs_f64(),
            100 + cable,
        );
    }
    text
}

/// Of the VRRP thread, in user space and in the kernel (proc(5): fields 14 and 15).
fn cpu_seconds(pid: u32) -> Result<f64> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(task?.path().join("stat"))?;
        let (name, fields) = stat.rsplit_once(')').context("no name in /proc/PID/task/TID/stat")?;
        if !name.ends_with("(vrrp") {
            continue;
        }
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        let ticks: u64 = ticks.sum::<Result<_, _>>()?;
        let a_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
        return Ok(ticks as f64 / a_second as f64);
    }
    anyhow::bail!("no VRRP thread")
}

const INTRODUCTION: &str = "\
# Thousands of instances on one node

Written by `cargo xtask bench instances`. One director in a network namespace, master of all its instances (255 VRIDs on each of up to 17
interfaces, VRRPv3), and a host that takes the time at which each advert arrives, by the kernel's timestamps. `lvsd` and the
libraries that work in it all the time (tokio, netlink, aya) optimised, others not. Whatever else runs on the machine is in the figures.

- *Late*: an instance advertises on a fixed grid, which its most punctual advert shows; how much later than that each advert came.
- *Missing*: adverts that the time of watching has room for and that did not come.
- *CPU*: of the VRRP thread, user and system, in seconds a second.

![the plot](instances.svg)

";
const HEADER: &str = "\
| interval | instances | adverts | missing | late: median / 99 % / 99.9 % / max | CPU |
|---|---|---|---|---|---|";

impl Figures {
    fn row(&self) -> String {
        let [median, p99, p999, most] = self.lateness;
        format!(
            "| {} ms | {} | {} | {} | {median:.3} / {p99:.3} / {p999:.3} / {most:.3} ms | {:.3} s |",
            self.interval.as_millis(),
            self.instances,
            self.adverts,
            self.missing,
            self.cpu
        )
    }

    /// Milliseconds.
    fn json(&self) -> String {
        let [median, p99, p999, most] = self.lateness;
        format!(
            r#"{{"interval":{},"instances":{},"adverts":{},"missing":{},"median":{median:.4},"p99":{p99:.4},"p999":{p999:.4},"max":{most:.4},"cpu":{:.4}}}"#,
            self.interval.as_millis(),
            self.instances,
            self.adverts,
            self.missing,
            self.cpu
        )
    }
}

/// Microseconds on a logarithmic scale, four dots for each line of the table.
fn plot(all: &[Figures]) -> String {
    const WIDTH: f64 = 900.0;
    const HEIGHT: f64 = 360.0;
    const LEFT: f64 = 70.0;
    const TOP: f64 = 50.0;
    const BOTTOM: f64 = 50.0;
    const DECADES: f64 = 5.0;
    const MARKS: [(&str, &str); 4] =
        [("median", "#1a6faf"), ("99 %", "#2c8a4b"), ("99.9 %", "#c1961a"), ("max", "#c1561a")];
    let mut svg = opening((WIDTH, HEIGHT), LEFT, "How late adverts leave, in microseconds");
    for (place, (name, colour)) in MARKS.iter().enumerate() {
        let x = LEFT + 70.0 * place as f64;
        // Writing to a String cannot fail.
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"38\" fill=\"{colour}\">{name}</text>");
    }
    let height = |micros: f64| {
        HEIGHT - BOTTOM - micros.max(1.0).log10().min(DECADES) / DECADES * (HEIGHT - TOP - BOTTOM)
    };
    for decade in 0..=DECADES as i32 {
        let micros = 10_f64.powi(decade);
        scale_line(&mut svg, [LEFT, WIDTH - 20.0], height(micros), micros);
    }
    let step = (WIDTH - LEFT - 20.0) / all.len().max(1) as f64;
    for (column, figures) in all.iter().enumerate() {
        let x = LEFT + step * (column as f64 + 0.5);
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{} ms</text>",
            HEIGHT - BOTTOM + 20.0,
            figures.instances,
            HEIGHT - BOTTOM + 36.0,
            figures.interval.as_millis()
        );
        for (late, (_, colour)) in figures.lateness.iter().zip(MARKS) {
            let y = height(late * 1e3);
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>");
        }
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_is_counted_from_the_most_punctual_advert() {
        let start = Stamp::now();
        let at = |micros| start + Duration::from_micros(micros);
        // The first is 300 us late, one is missing.
        let late = late(&[at(300), at(10_000), at(20_050), at(40_000)], Duration::from_millis(10));
        assert_eq!(late, [300, 0, 50, 0].map(Duration::from_micros));
    }
}
