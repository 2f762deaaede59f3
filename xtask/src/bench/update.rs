//! `cargo xtask bench update`: what do changes of large tables cost, in time and memory, and does a reload lose packets?

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{Need, Reloaded, reload_under_load, require};
use serde_json::{Value, json};

use super::figures::{bar, conditions, opening};
use crate::{cargo, run_visibly};

#[derive(clap::Args)]
pub struct Arguments {
    /// Where table, JSON and plot go
    #[arg(long, default_value = "docs/performance")]
    out: String,
    /// Set when sudo runs this a second time
    #[arg(long, hide = true)]
    pub built: bool,
}

const INTRODUCTION: &str = "\
# What changes of large tables cost

Written by `cargo xtask bench update`. `lvsd` and the libraries that work in it all the time (tokio, netlink, aya) are optimised, others not. The tables are those of
the kernel, filled and changed as the daemon does it; no packet meets them.

- *parse*: the file, with a TCP_CHECK for each real server.
- *fill*: from empty tables to all services, as at a start.
- *again*: all services once more, of which none has changed: what a reload adds for those that it leaves as they are.
- *one changes*: a check fails or succeeds, in one service; until the tables are changed and one grace period has passed, after which
  nothing uses what was there before. That period is the kernel's, in whole ticks of its clock, and the same for any change.
- *work*: the CPU time of that. New flows meet the change when it is done, before the grace period.
- *memory*: of `lvsd` beyond the configuration; of the kernel for rings, and for real servers with their counters, on so many CPUs. Maps are as
  large as the configuration needs and as much again as any site has (`control/src/dataplane/plan/room.rs`), so this is linear.

";

pub fn bench(arguments: &Arguments, options: &[&str]) -> Result<()> {
    ensure!(require(&[Need::Lab, Need::Lvsd]), "this machine lacks something");
    let directory = Path::new(&arguments.out);
    fs::create_dir_all(directory)?;
    let file = directory.join("update.json");
    let mut command = cargo();
    command.args(["test", "--package", "control", "--test", "limits"]).args(options);
    command.args(["--", "--ignored", "--nocapture", "what_changes_of_large_tables_cost"]);
    command.env("UPDATE_FIGURES", std::path::absolute(&file)?);
    run_visibly(&mut command)?;
    let mut figures: Value = serde_json::from_slice(&fs::read(&file)?)?;
    const SERVICES: u32 = 1000;
    const RELOADS: u16 = 5;
    figures["reload"] = reload(SERVICES, &reload_under_load(SERVICES, RELOADS)?);
    fs::write(&file, format!("{figures:#}\n"))?;
    let text = text(&figures)?;
    println!("\n{text}");
    fs::write(file.with_extension("md"), text)?;
    fs::write(file.with_extension("svg"), plot(&figures)?)?;
    Ok(())
}

fn reload(services: u32, reloaded: &Reloaded) -> Value {
    let Reloaded { times, tally, without_real } = reloaded;
    let times: Vec<_> = times.iter().map(Duration::as_millis).collect();
    json!({
        "services": services,
        "ms": times,
        "sent": tally.sent,
        "lost": tally.lost.len() as u64 + without_real,
    })
}

fn sites(figures: &Value) -> Result<&Vec<Value>> {
    figures["sites"].as_array().context("no sites")
}

fn text(figures: &Value) -> Result<String> {
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    let mebibytes = |value: &Value| number(value) / f64::from(1 << 20);
    let grace = &figures["grace"];
    let mut text = format!("{INTRODUCTION}{}.\n\n![the plot](update.svg)\n\n", conditions());
    text += "| services x real servers | parse | fill | again | one changes: median / max | work: median / max | memory: lvsd / rings / real servers |\n\
             |---|---|---|---|---|---|---|\n";
    // Writing to a String cannot fail.
    for site in sites(figures)? {
        let _ = writeln!(
            text,
            "| {} | {:.0} ms | {:.0} ms | {:.1} ms | {:.1} / {:.1} ms | {:.2} / {:.2} ms | {:.0} / {:.0} / {:.0} MiB |",
            name(site),
            number(&site["parse_ms"]),
            number(&site["fill_ms"]),
            number(&site["again_ms"]),
            number(&site["change_ms"]["median"]),
            number(&site["change_ms"]["max"]),
            number(&site["work_ms"]["median"]),
            number(&site["work_ms"]["max"]),
            mebibytes(&site["heap_bytes"]),
            mebibytes(&site["ring_bytes"]),
            mebibytes(&site["real_bytes"]),
        );
    }
    let _ = writeln!(
        text,
        "\nA grace period alone took {:.1} / {:.1} / {:.1} ms (min / median / max).",
        number(&grace["min"]),
        number(&grace["median"]),
        number(&grace["max"])
    );
    let reload = &figures["reload"];
    let _ = writeln!(
        text,
        "\n## A reload under load\n\n{} services of 100 real servers, and one that gets 5,000 UDP packets a second; each reload changes the \
         weight of one of its real servers. `lvsd reload` took {} ms. Of {} packets {} were lost.",
        reload["services"], reload["ms"], reload["sent"], reload["lost"]
    );
    Ok(text)
}

fn name(site: &Value) -> String {
    let (services, reals) = (site["services"].as_u64().unwrap_or(1), site["reals"].as_u64().unwrap_or(0));
    format!("{services} x {}", reals / services.max(1))
}

/// Bars on a logarithmic scale, for each site: to fill the tables, and the work of one change.
fn plot(figures: &Value) -> Result<String> {
    const LEFT: f64 = 190.0;
    const WIDTH: f64 = 900.0;
    const TOP: f64 = 36.0;
    const STEP: f64 = 18.0;
    /// Of a factor of ten; the axis begins at 0.01 ms.
    const DECADE: f64 = 120.0;
    let mut bars = Vec::new();
    for site in sites(figures)? {
        bars.push((format!("{}, fill", name(site)), &site["fill_ms"], "#1a6faf"));
        bars.push((format!("{}, one changes", name(site)), &site["work_ms"]["median"], "#c2571a"));
    }
    let mut svg = opening(
        (WIDTH, TOP + STEP * bars.len() as f64 + 10.0),
        10.0,
        "Milliseconds to fill the tables, and of work for one change; logarithmic from 0.01",
    );
    for (place, (label, time, colour)) in bars.iter().enumerate() {
        let y = TOP + STEP * place as f64;
        let time = time.as_f64().unwrap_or_default();
        let width = (time * 100.0).max(1.0).log10() * DECADE;
        bar(&mut svg, (LEFT, y), width, colour, [label, &format!("{time:.2}")]);
    }
    svg += "</svg>\n";
    Ok(svg)
}
