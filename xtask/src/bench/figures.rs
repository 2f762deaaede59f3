//! The figures of `cargo xtask bench failover` as a table, as JSON and as a plot.

use std::{
    fmt::{Display, Write as _},
    fs,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::Result;

use super::failover::{Circumstances, EVENTS, Event, Falsehood, Program, Run, Runs};

const INTRODUCTION: &str = "\
# How long a failover takes

Written by `cargo xtask bench failover`. Two directors (priorities 150 and 100) and a client on one switch, network namespaces on one
machine; `lvsd` and Debian's keepalived without options, with the same configuration, VRRPv3. The addresses are answered by the
directors themselves, since keepalived forwards nothing here: what the client sees is a service on the director. Services that
`lvsd` forwards lose no packet in SIGTERM and `lvsd failover`, because the old master forwards on what still reaches it
(`tests/handover.rs`).

- *Last advert to GARP*: from the last advert of the old master (its priority 0, where it resigns) to the first gratuitous ARP of the new
  one, by the kernel's timestamps at a third host. What the timers say is 3 x interval + skew, or the skew alone.
- *UDP*: the client asks each 0.5 ms; its longest time without an answer. A master that is only killed or frozen goes on answering
  whom it knows already, so this is short.
- *TCP*: a request each 5 ms; from the event to the first answer after the last request that failed, 0 if none did. One connection
  that was open when the address moved is enough to make it as long as the takeover took.

- Where timers are long, pairs work side by side, each on a switch of its own: two at 100 ms, four at 1000 ms. Clients, echoes and the
  watching hosts are real-time, like the VRRP thread of `lvsd`. What else `lvsd` does is not, nor are keepalived and the HTTP servers.

![the plot](failover.svg)

";
/// Longer after its time a takeover is called late.
const LATE: Duration = Duration::from_millis(1);
const HEADER: &str = "\
| program | event | interval | last advert to GARP: min / median / max | timers say | UDP: median / max | TCP: median / max |
|---|---|---|---|---|---|---|";

pub fn row(program: Program, event: Event, interval: Duration, all: &Runs) -> String {
    let Some(runs) = all.get(&(program, event, interval)) else { return String::new() };
    let of = |what: fn(&Run) -> Duration| {
        let mut values: Vec<_> = runs.iter().map(what).collect();
        values.sort();
        let at = |place: usize| values.get(place).copied().unwrap_or_default().as_secs_f64() * 1e3;
        [at(0), at(values.len() / 2), at(values.len().saturating_sub(1))]
    };
    let ([least, median, most], [_, theory, _]) = (of(|run| run.advert_to_garp), of(|run| run.theory));
    let ([_, udp, udp_most], [_, tcp, tcp_most]) = (of(|run| run.udp), of(|run| run.tcp));
    format!(
        "| {} | {} | {} ms | {least:.1} / {median:.1} / {most:.1} ms | {theory:.1} ms | {udp:.1} / {udp_most:.1} ms | \
         {tcp:.1} / {tcp_most:.1} ms |",
        program.name(),
        event.name(),
        interval.as_millis(),
    )
}

pub fn write(
    directory: &str,
    circumstances: &Circumstances,
    all: &Runs,
    falsehoods: &[Falsehood],
) -> Result<()> {
    let directory = Path::new(directory);
    let rows: Vec<_> =
        all.keys().map(|(program, event, interval)| row(*program, *event, *interval, all)).collect();
    let mut text = format!(
        "{INTRODUCTION}{} (load average {}), {}, `cargo xtask bench failover --runs {}`: {} minutes.{}\n\n{HEADER}\n{}\n\n{}",
        machine(),
        span(&circumstances.loads),
        keepalived(),
        circumstances.runs,
        circumstances.start.elapsed().as_secs().div_ceil(60),
        match circumstances.begun_again {
            0 => String::new(),
            count => format!(" {count} runs came to no end and were begun again."),
        },
        rows.join("\n"),
        late(all)
    );
    text += "False takeovers: how often the backup took over from a healthy master, while busy loops ran on the same CPUs.\n\n";
    text += "| program | interval | busy loops | false takeovers |\n|---|---|---|---|\n";
    for it in falsehoods {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} ms | {} | {} in {} s |",
            it.program.name(),
            it.interval.as_millis(),
            it.loops,
            it.takeovers,
            it.seconds
        );
    }
    println!("\n{text}");
    fs::write(directory.join("failover.md"), text)?;
    fs::write(directory.join("failover.json"), json(all, falsehoods))?;
    fs::write(directory.join("failover.svg"), plot(all))?;
    Ok(())
}

/// With its version, as it says it.
fn keepalived() -> String {
    let said = Command::new("keepalived").arg("--version").output().map(|it| it.stderr).unwrap_or_default();
    let said = String::from_utf8_lossy(&said).into_owned();
    let version = said.split_whitespace().find(|word| word.starts_with('v')).unwrap_or("?").to_owned();
    format!("keepalived {}", version.trim_start_matches('v'))
}

/// Of the last minute.
pub fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

fn span(loads: &[f64]) -> String {
    let (least, most) = (loads.iter().copied().reduce(f64::min), loads.iter().copied().reduce(f64::max));
    format!("{:.1} to {:.1}", least.unwrap_or_default(), most.unwrap_or_default())
}

/// What was measured on.
pub fn conditions() -> String {
    format!("{} (load average {:.1} at the end)", machine(), load_average().unwrap_or_default())
}

fn machine() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let version = release.trim().split('-').next().unwrap_or("?");
    format!("Linux {version}, {cpus} CPUs shared with whatever else ran")
}

/// Who was late, and whose fault that was.
fn late(all: &Runs) -> String {
    let mut text = String::new();
    for program in [Program::Lvsd, Program::Keepalived] {
        let of = all.iter().filter(|((of, ..), _)| *of == program).flat_map(|(_, runs)| runs);
        let of: Vec<_> = of.collect();
        let late = |when: fn(&Run) -> Duration| of.iter().filter(|run| when(run) > run.theory + LATE).count();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "Of {} takeovers of {}, {} were more than {} ms later than the timers say; at the new master's own interface, {}.",
            of.len(),
            program.name(),
            late(|run| run.advert_to_garp),
            LATE.as_millis(),
            late(|run| run.at_backup)
        );
    }
    text + "\n"
}

/// One object a run; milliseconds.
fn json(all: &Runs, falsehoods: &[Falsehood]) -> String {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let runs = all.iter().flat_map(|((program, event, interval), runs)| {
        runs.iter().map(move |run| {
            format!(
                r#"{{"program":"{}","event":"{}","interval":{},"advert_to_garp":{:.3},"at_backup":{:.3},"timers":{:.3},"udp":{:.3},"tcp":{:.3}}}"#,
                program.name(),
                event.name(),
                ms(*interval),
                ms(run.advert_to_garp),
                ms(run.at_backup),
                ms(run.theory),
                ms(run.udp),
                ms(run.tcp)
            )
        })
    });
    let loads = falsehoods.iter().map(|it| {
        format!(
            r#"{{"program":"{}","interval":{},"busy_loops":{},"seconds":{},"false_takeovers":{}}}"#,
            it.program.name(),
            ms(it.interval),
            it.loops,
            it.seconds,
            it.takeovers
        )
    });
    let list = |lines: Vec<String>| lines.join(",\n");
    format!("{{\"runs\":[\n{}\n],\n\"loads\":[\n{}\n]}}\n", list(runs.collect()), list(loads.collect()))
}

/// How a plot begins, with its title.
pub fn opening((width, height): (f64, f64), left: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{left}\" y=\"20\" font-size=\"14\">{title}</text>\n"
    )
}

/// A bar that begins at `left`, with its name before and its value behind it.
pub fn bar(svg: &mut String, (left, y): (f64, f64), width: f64, colour: &str, [name, value]: [&str; 2]) {
    let (before, behind, base) = (left - 8.0, left + width + 6.0, y + 11.0);
    let _ = writeln!(
        svg,
        "<text x=\"{before}\" y=\"{base:.0}\" text-anchor=\"end\">{name}</text><rect x=\"{left}\" y=\"{y:.0}\" \
         width=\"{width:.1}\" height=\"14\" fill=\"{colour}\"/><text x=\"{behind:.1}\" y=\"{base:.0}\">{value}</text>"
    );
}

/// A line across a plot at one value of its scale.
pub fn scale_line(svg: &mut String, [left, right]: [f64; 2], y: f64, value: impl Display) {
    let _ = writeln!(
        svg,
        "<line x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" \
         text-anchor=\"end\">{value}</text>",
        left - 8.0,
        y + 4.0
    );
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 70.0;
/// The upper end of the scale, in milliseconds; what is later lies on it.
const LATEST: f64 = 12.0;

/// How much later than the timers say the first gratuitous ARP came, a dot for each run.
fn plot(all: &Runs) -> String {
    let title = "First gratuitous ARP: milliseconds later than the timers say";
    let mut svg = opening((WIDTH, HEIGHT), LEFT, title);
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"38\" fill=\"#1a6faf\">lvsd</text><text x=\"{}\" y=\"38\" fill=\"#c1561a\">keepalived</text>",
        LEFT + 40.0
    );
    let height = |ms: f64| HEIGHT - BOTTOM - ms.clamp(0.0, LATEST) / LATEST * (HEIGHT - TOP - BOTTOM);
    for ms in 0..=LATEST as u32 {
        scale_line(&mut svg, [LEFT, WIDTH - 20.0], height(ms.into()), ms);
    }
    let mut intervals: Vec<_> = all.keys().map(|(_, _, interval)| *interval).collect();
    intervals.sort();
    intervals.dedup();
    let columns = EVENTS.len() * intervals.len();
    let step = (WIDTH - LEFT - 20.0) / columns as f64;
    let places = EVENTS.iter().flat_map(|event| intervals.iter().map(move |interval| (*event, *interval)));
    for (column, (event, interval)) in places.enumerate() {
        let x = LEFT + step * (column as f64 + 0.5);
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{} ms</text>",
            HEIGHT - BOTTOM + 20.0,
            event.name(),
            HEIGHT - BOTTOM + 36.0,
            interval.as_millis()
        );
        for (program, colour, offset) in
            [(Program::Lvsd, "#1a6faf", -0.2), (Program::Keepalived, "#c1561a", 0.2)]
        {
            for run in all.get(&(program, event, interval)).into_iter().flatten() {
                let late = (run.advert_to_garp.as_secs_f64() - run.theory.as_secs_f64()) * 1e3;
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\" fill=\"{colour}\" fill-opacity=\"0.5\"/>",
                    x + offset * step,
                    height(late)
                );
            }
        }
    }
    svg + "</svg>\n"
}
