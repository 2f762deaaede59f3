//! What the guest does: it measures `lvsd` and kernel IPVS in turns, on the same interface, with the same generator.
//!
//! Two virtio-net cards are on one cable. The kernel's packet generator sends on one, a director forwards on the other. All that
//! a packet costs there, from the card to the card, happens inside the driver's `virtnet_poll`, whose time the function graph
//! tracer writes down; and QEMU lets the guest's clock advance by one nanosecond an instruction.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lvs_tests::wait_for;
use serde_json::Value;

use super::{DIRECTOR_MAC, Director, Flows, GENERATOR_MAC, Line, REALS, Scheduler};
use crate::build;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
const TRACING: &str = "/sys/kernel/tracing";
const PKTGEN: &str = "/proc/net/pktgen";
const PATIENCE: Duration = Duration::from_secs(120);
const CONFIG: &str = "/run/services.conf";
const RUN_DIR: &str = "/run/lvsd";
/// Before anything is measured, so that no table grows and no cache is filled in between.
const WARM_UP: u64 = 2_000;

pub fn measure(packets: u64, rounds: u32, said: impl Fn(&Line)) -> Result<()> {
    for module in ["virtio_net", "pktgen", "ip_vs", "ip_vs_rr", "ip_vs_mh"] {
        run(&format!("modprobe {module}"))?;
    }
    let generator = card(GENERATOR_MAC)?;
    let director = card(DIRECTOR_MAC)?;
    prepare(&generator, &director)?;
    let trace = Trace::new()?;
    for _ in 0..rounds {
        for program in [Director::Lvsd, Director::Ipvs] {
            let running = Running::start(program)?;
            for scheduler in [Scheduler::MhPort, Scheduler::Rr] {
                for flows in [Flows::One, Flows::AllNew] {
                    running.send(&generator, scheduler, flows, WARM_UP)?;
                    let before = (received(&director)?, running.forwarded()?);
                    trace.begin()?;
                    running.send(&generator, scheduler, flows, packets)?;
                    let (instructions, polls) = trace.end()?;
                    let received = received(&director)? - before.0;
                    let forwarded = running.forwarded()? - before.1;
                    ensure!(
                        received > 0 && forwarded >= received * 99 / 100,
                        "{program:?} forwarded {forwarded} of {received} packets"
                    );
                    said(&Line { program, scheduler, flows, packets: received, polls, instructions });
                }
            }
            running.stop()?;
        }
    }
    Ok(())
}

/// The name of the interface with this MAC.
fn card(mac: &str) -> Result<String> {
    let cards = fs::read_dir("/sys/class/net")?.flatten();
    let has_it = |path: &Path| fs::read_to_string(path.join("address")).is_ok_and(|it| it.trim() == mac);
    let card = cards.map(|entry| entry.path()).find(|path| has_it(path));
    let name = card.as_deref().and_then(Path::file_name).with_context(|| format!("no card {mac}"))?;
    Ok(name.to_string_lossy().into_owned())
}

fn prepare(generator: &str, director: &str) -> Result<()> {
    for setting in
        ["ipv4/conf/all/rp_filter=0", "ipv4/conf/default/rp_filter=0", "ipv6/conf/all/disable_ipv6=1"]
    {
        let (name, value) = setting.split_once('=').context("a setting without a value")?;
        write(&Path::new("/proc/sys/net").join(name), value)?;
    }
    write(&Path::new("/proc/sys/net/ipv4/conf").join(director).join("rp_filter"), "0")?;
    run("ip link set lo up")?;
    for card in [generator, director] {
        run(&format!("ip link set {card} up"))?;
    }
    // Else a packet's share of a call of the driver, some 1,500 instructions, depends on how soon QEMU sends interrupts, that is
    // on what else this machine does.
    for (setting, value) in [("napi_defer_hard_irqs", "100"), ("gro_flush_timeout", "500000")] {
        write(&Path::new("/sys/class/net").join(director).join(setting), value)?;
    }
    run(&format!("ip address add 10.77.0.1/16 dev {director}"))?;
    // IPVS takes what is for the kernel itself.
    run(&format!("ip address add {VIP}/32 dev lo"))?;
    // Clients are anywhere: else answers to what is not forwarded, and checks of the source, would have no route.
    run(&format!("ip route add default via 10.77.0.2 dev {director}"))?;
    let mut config = String::new();
    for scheduler in [Scheduler::MhPort, Scheduler::Rr] {
        config += &format!(
            "virtual_server {VIP} {} {{\n    {}\n    lvs_method DR\n    protocol UDP\n",
            scheduler.port(),
            scheduler.words()
        );
        for number in 1..=REALS {
            config += &format!("    real_server 10.77.1.{number} {} {{\n    }}\n", scheduler.port());
        }
        config += "}\n";
    }
    fs::write(CONFIG, config)?;
    for number in 1..=REALS {
        run(&format!(
            "ip neighbour add 10.77.1.{number} lladdr 02:00:00:00:01:{number:02x} dev {director} nud permanent"
        ))?;
    }
    Ok(())
}

fn received(card: &str) -> Result<u64> {
    let file = Path::new("/sys/class/net").join(card).join("statistics/rx_packets");
    Ok(fs::read_to_string(file)?.trim().parse()?)
}

/// A director that has its tables.
struct Running {
    program: Director,
    process: Child,
}

impl Running {
    fn start(program: Director) -> Result<Self> {
        let mut command = match program {
            Director::Lvsd => {
                let mut command = Command::new(lvsd()?);
                command.args(["run", "--xdp-mode", "native", "--config", CONFIG, "--run-dir", RUN_DIR]);
                command
            }
            Director::Ipvs => {
                // It only fills the kernel's tables.
                let mut command = Command::new("keepalived");
                command.args(["--check", "--dont-fork", "--log-console", "--use-file", CONFIG]);
                command
            }
        };
        let process =
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("starting a director")?;
        let mut running = Self { program, process };
        let wanted = 2 * usize::from(REALS);
        wait_for("all real servers in their pools", PATIENCE, || {
            if let Some(status) = running.process.try_wait()? {
                bail!("{program:?} ended: {status}");
            }
            Ok((running.reals() == wanted).then_some(()))
        })?;
        Ok(running)
    }

    fn reals(&self) -> usize {
        match self.program {
            Director::Lvsd => {
                let Ok(status) = status() else { return 0 };
                let services = status["services"].as_array().into_iter().flatten();
                let reals = services.flat_map(|service| service["reals"].as_array().into_iter().flatten());
                reals.filter(|real| real["state"] == "up").count()
            }
            Director::Ipvs => {
                let table = fs::read_to_string("/proc/net/ip_vs").unwrap_or_default();
                // "  -> 0A4D0101:03E9      Route   1      0          0"
                table.lines().filter(|line| line.contains("Route")).count()
            }
        }
    }

    /// How many packets went to real servers so far.
    fn forwarded(&self) -> Result<u64> {
        match self.program {
            Director::Lvsd => Ok(status()?["outcomes"]["forwarded"].as_u64().unwrap_or(0)),
            Director::Ipvs => {
                // The totals of ip_vs_stats are two seconds old.
                let text = fs::read_to_string("/proc/net/ip_vs_stats_percpu")?;
                // Two lines of titles; then of the only CPU its number, connections, packets in: hexadecimal.
                let counts = text.lines().nth(2).context("no CPU in ip_vs_stats_percpu")?;
                let packets = counts.split_whitespace().nth(2).context("no packets in ip_vs_stats_percpu")?;
                Ok(u64::from_str_radix(packets, 16)?)
            }
        }
    }

    /// Returns when all are sent.
    fn send(&self, generator: &str, scheduler: Scheduler, flows: Flows, packets: u64) -> Result<()> {
        let thread = Path::new(PKTGEN).join("kpktgend_0");
        write(&thread, "rem_device_all")?;
        write(&thread, &format!("add_device {generator}"))?;
        let device = Path::new(PKTGEN).join(generator);
        let mut settings = vec![
            format!("count {packets}"),
            "pkt_size 60".to_owned(),
            "delay 0".to_owned(),
            format!("dst {VIP}"),
            format!("dst_mac {DIRECTOR_MAC}"),
            format!("udp_dst_min {0}", scheduler.port()),
            format!("udp_dst_max {0}", scheduler.port()),
        ];
        match flows {
            Flows::One => settings.extend(
                ["src_min 12.1.2.3", "src_max 12.1.2.3", "udp_src_min 4096", "udp_src_max 4096"]
                    .map(str::to_owned),
            ),
            Flows::AllNew => settings.extend(
                [
                    "src_min 13.0.0.1",
                    "src_max 13.255.255.254",
                    "udp_src_min 1024",
                    "udp_src_max 65000",
                    "flag IPSRC_RND",
                    "flag UDPSRC_RND",
                ]
                .map(str::to_owned),
            ),
        }
        settings.iter().try_for_each(|setting| write(&device, setting))?;
        write(&Path::new(PKTGEN).join("pgctrl"), "start")?;
        // The last ones are on their way.
        thread::sleep(Duration::from_millis(20));
        Ok(())
    }

    fn stop(mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.process.id().try_into()?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        wait_for("end of the director", PATIENCE, || Ok(self.process.try_wait()?))?;
        if self.program == Director::Ipvs {
            wait_for("empty tables of IPVS", PATIENCE, || Ok((self.reals() == 0).then_some(())))?;
        }
        Ok(())
    }
}

fn lvsd() -> Result<PathBuf> {
    Ok(build::target_directory()?.join("debug/lvsd"))
}

fn status() -> Result<Value> {
    let output = Command::new(lvsd()?).args(["status", "--json", "--run-dir", RUN_DIR]).output()?;
    ensure!(output.status.success(), "lvsd status: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The kernel's function graph tracer, looking at one function.
struct Trace;

impl Trace {
    fn new() -> Result<Self> {
        if !Path::new(TRACING).join("trace").exists() {
            run(&format!("mount -t tracefs tracefs {TRACING}"))?;
        }
        let trace = Self;
        trace.set("tracing_on", "0")?;
        trace.set("buffer_size_kb", "65536")?;
        trace.set("set_ftrace_filter", "virtnet_poll")?;
        trace.set("current_tracer", "function_graph")?;
        Ok(trace)
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        write(&Path::new(TRACING).join(file), value)
    }

    fn begin(&self) -> Result<()> {
        self.set("trace", "")?;
        self.set("tracing_on", "1")
    }

    /// Nanoseconds in the function since the beginning, and how often it was called.
    fn end(&self) -> Result<(u64, u64)> {
        self.set("tracing_on", "0")?;
        let text = fs::read_to_string(Path::new(TRACING).join("trace"))?;
        let times: Vec<_> = text.lines().filter_map(duration).collect();
        ensure!(!times.is_empty(), "nothing was traced:\n{text}");
        Ok((times.iter().sum(), times.len() as u64))
    }
}

/// Nanoseconds, of ` 0) + 12.345 us   |  virtnet_poll [virtio_net]();` or ` 0) + 12.345 us   |  }`.
pub fn duration(line: &str) -> Option<u64> {
    let (before, _) = line.split_once(" us ")?;
    let (whole, part) = before.rsplit(' ').next()?.split_once('.')?;
    Some(whole.parse::<u64>().ok()? * 1000 + part.parse::<u64>().ok()?)
}

fn run(line: &str) -> Result<()> {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    let output = command.args(words).output().with_context(|| format!("running {line}"))?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// With a line's end: the packet generator takes the last byte for one.
fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, format!("{text}\n")).with_context(|| format!("{} = {text}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_to_the_nanosecond_whatever_mark_stands_before_them() {
        assert_eq!(duration(" 0)   8.012 us    |  virtnet_poll [virtio_net]();"), Some(8012));
        assert_eq!(duration(" 0) # 1234.567 us |  }"), Some(1_234_567));
        assert_eq!(duration(" 0)               |  virtnet_poll [virtio_net]() {"), None);
        assert_eq!(duration("# CPU  DURATION                  FUNCTION CALLS"), None);
    }
}
