//! `cargo xtask bench checks`: what do checks of 10,000 real servers cost, are they in time, and how soon is a dead
//! rack found?
//!
//! One host is all real servers: it takes connections at 10,000 addresses. When a probe comes, it notes; when a rack
//! is found dead, the FIFO of `lvs_notify_fifo` says, once the tables are changed.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs,
    io::{self, BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, TcpListener},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use lvs_tests::{Director, Lab, Need, Node, Stamp, VIP, Vrrp, at_real_time, require, wait_for};
use nix::{
    libc,
    unistd::{SysconfVar, sysconf},
};
use socket2::{Domain, Socket, Type};

use super::figures::conditions;

#[derive(clap::Args)]
pub struct Arguments {
    /// Real servers, in services of 100
    #[arg(long, default_value_t = 10_000)]
    reals: u32,
    /// Seconds of watching
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Where table and JSON go
    #[arg(long, default_value = "docs/performance")]
    out: String,
    /// Set when sudo runs this a second time
    #[arg(long, hide = true)]
    pub built: bool,
}

/// From the end of a check to the next, and the longest that a check waits.
const PERIOD: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);
const PER_SERVICE: u32 = 100;
const PORT: u16 = 80;
/// What dies: the first addresses, all in one network that nothing else is in.
const RACK: u32 = 1000;
const RACK_NETWORK: &str = "10.78.0.0/22";
const FIRST_BEHIND_RACK: u32 = 1024;
const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 0);

#[derive(Debug)]
struct Figures {
    reals: u32,
    seconds: f64,
    probes: usize,
    cpu: f64,
    memory_kib: u64,
    /// Of each pause between two probes of one real server: how much longer than the period. Sorted.
    lateness: Vec<Duration>,
    /// Of each real server of the rack: from its death until the tables are without it. Sorted.
    detection: Vec<Duration>,
    /// The same, but from when its next check was due and had waited for its answer. Sorted.
    overdue: Vec<Duration>,
}

pub fn bench(arguments: &Arguments) -> Result<()> {
    ensure!(require(&[Need::Lab, Need::Lvsd]), "this machine lacks something");
    ensure!(arguments.reals > RACK, "--reals: more than the {RACK} that die");
    let figures = measure(arguments.reals, Duration::from_secs(arguments.seconds))?;
    let directory = Path::new(&arguments.out);
    fs::create_dir_all(directory)?;
    let text = figures.table();
    println!("\n{text}");
    fs::write(directory.join("checks.md"), text)?;
    fs::write(directory.join("checks.json"), figures.json())?;
    Ok(())
}

fn measure(reals: u32, window: Duration) -> Result<Figures> {
    let mut lab = Lab::new()?;
    let node = lab.host("lb1", [10, 77, 0, 1].into())?;
    let farm = lab.host("farm", [10, 77, 0, 11].into())?;
    farm.run(&format!("ip route add local {NETWORK}/16 dev lo table local"))?;
    node.run(&format!("ip route add {NETWORK}/16 via {}", farm.address()))?;
    let server = Server::start(&farm)?;
    let fifo = node.dir().join("changes");
    as_the_unit_has_it();
    let director = Director::start(&node, &config(reals, &fifo))?;
    let changes = Changes::follow(&fifo)?;
    director.wait_for_state("MASTER", PATIENCE)?;
    wait_for("a probe of each", PATIENCE, || {
        thread::sleep(Duration::from_millis(100));
        Ok((server.arrivals().len() == reals as usize).then_some(()))
    })?;
    // Each checks at its own time now; the first were spread over one period.
    thread::sleep(PERIOD * 3);

    let pid = director.process().pid();
    let (from, cpu) = (Stamp::now(), cpu_seconds(pid)?);
    thread::sleep(window);
    let (to, cpu) = (Stamp::now(), cpu_seconds(pid)? - cpu);
    let memory_kib = memory_kib(pid)?;

    farm.run(&format!("ip route add blackhole {RACK_NETWORK} table local"))?;
    let died = Stamp::now();
    wait_for("the end of the rack", PATIENCE, || {
        thread::sleep(Duration::from_millis(100));
        Ok((changes.down().len() >= RACK as usize).then_some(()))
    })?;
    thread::sleep(PERIOD * 2);
    let down = changes.down();
    drop(director);
    let arrivals = server.finish()?;

    let inside = |at: &&Stamp| **at >= from && **at < to;
    let pauses = arrivals.values().flat_map(|arrivals| arrivals.windows(2)).filter_map(|pair| match pair {
        [one, next] if inside(&one) && inside(&next) => Some(next.since(*one)),
        _ => None,
    });
    let rack: Vec<_> = (0..RACK).map(address).collect();
    ensure!(down.len() == rack.len(), "{} of {RACK} are down", down.len());
    let (mut detection, mut overdue) = (Vec::new(), Vec::new());
    for real in rack {
        let at = *down.get(&real).with_context(|| format!("{real} is not found dead"))?;
        let last = arrivals.get(&real).and_then(|arrivals| arrivals.iter().rev().find(|it| **it <= died));
        // Its next check begins a period later and waits for another.
        let due = *last.with_context(|| format!("{real} was not checked"))? + PERIOD * 2;
        detection.push(at.since(died));
        overdue.push(at.since(due));
    }
    let mut figures = Figures {
        reals,
        seconds: to.since(from).as_secs_f64(),
        probes: arrivals.values().flatten().filter(inside).count(),
        cpu,
        memory_kib,
        lateness: pauses.map(|pause| pause.saturating_sub(PERIOD)).collect(),
        detection,
        overdue,
    };
    for times in [&mut figures.lateness, &mut figures.detection, &mut figures.overdue] {
        times.sort();
    }
    Ok(figures)
}

/// What is started from here on inherits the niceness of packaging/lvsd.service.
fn as_the_unit_has_it() {
    const NICE: libc::c_int = -10;
    // SAFETY: no memory of ours is involved.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } != 0 {
        println!("lvsd runs with the usual niceness: {}", io::Error::last_os_error());
    }
}

/// The rack first, then addresses beyond its network.
fn address(number: u32) -> Ipv4Addr {
    let offset = if number < RACK { number } else { number - RACK + FIRST_BEHIND_RACK };
    Ipv4Addr::from_bits(NETWORK.to_bits() + offset)
}

fn config(reals: u32, fifo: &Path) -> String {
    let mut text = format!("global_defs {{\n    lvs_notify_fifo {}\n}}\n", fifo.display());
    text += &Vrrp::v3(150, Duration::from_millis(100)).text();
    for first in (0..reals).step_by(PER_SERVICE as usize) {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "virtual_server {} {} {{\n    delay_loop {period}\n    lvs_sched mh\n    lvs_method TUN\n    protocol TCP\n",
            VIP.ip(),
            10_000 + first / PER_SERVICE,
            period = PERIOD.as_secs()
        );
        for number in first..(first + PER_SERVICE).min(reals) {
            let _ = write!(
                text,
                "    real_server {} {PORT} {{\n        TCP_CHECK {{\n            connect_port {PORT}\n            connect_timeout {}\n            \
                 retry 0\n        }}\n    }}\n",
                address(number),
                PERIOD.as_secs()
            );
        }
        text += "}\n";
    }
    text
}

type Arrivals = HashMap<Ipv4Addr, Vec<Stamp>>;

/// Takes connections at every local address, until it is finished, and notes when they came.
struct Server {
    arrivals: Arc<Mutex<Arrivals>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Server {
    fn start(node: &Node) -> Result<Self> {
        let listener = node.in_ns(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into())?;
            socket.listen(4096)?;
            // Else it would not see that it shall stop.
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(TcpListener::from(socket))
        })?;
        let (arrivals, stop) = (Arc::<Mutex<Arrivals>>::default(), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let (arrivals, stop) = (Arc::clone(&arrivals), Arc::clone(&stop));
            move || {
                at_real_time();
                while !stop.load(Ordering::Relaxed) {
                    let Ok((stream, _)) = listener.accept() else { continue };
                    let now = Stamp::now();
                    if let IpAddr::V4(address) = stream.local_addr()?.ip() {
                        let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
                        arrivals.entry(address).or_default().push(now);
                    }
                }
                Ok(())
            }
        });
        Ok(Self { arrivals, stop, thread })
    }

    fn arrivals(&self) -> Arrivals {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn finish(self) -> Result<Arrivals> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the server panicked"))??;
        Ok(std::mem::take(&mut self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// When the FIFO said of a real server that it is down.
struct Changes(Arc<Mutex<HashMap<Ipv4Addr, Stamp>>>);

impl Changes {
    fn follow(fifo: &Path) -> Result<Self> {
        // To be a writer as well keeps it from ending with the daemon.
        let reader = BufReader::new(fs::OpenOptions::new().read(true).write(true).open(fifo)?);
        let down = Arc::<Mutex<HashMap<_, _>>>::default();
        thread::spawn({
            let down = Arc::clone(&down);
            move || {
                at_real_time();
                // RS [ADDRESS]:tcp:PORT [VIP]:tcp:PORT DOWN
                for line in reader.lines().map_while(Result::ok) {
                    let now = Stamp::now();
                    let Some(rest) = line.strip_prefix("RS [").filter(|rest| rest.ends_with(" DOWN")) else {
                        continue;
                    };
                    if let Some(address) = rest.split(']').next().and_then(|it| it.parse::<Ipv4Addr>().ok()) {
                        down.lock().unwrap_or_else(PoisonError::into_inner).insert(address, now);
                    }
                }
            }
        });
        Ok(Self(down))
    }

    fn down(&self) -> HashMap<Ipv4Addr, Stamp> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Of all its threads, in user space and in the kernel (proc(5): fields 14 and 15).
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, after_name) = stat.rsplit_once(')').context("no name in /proc/PID/stat")?;
    let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.sum::<Result<_, _>>()?;
    let a_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
    Ok(ticks as f64 / a_second as f64)
}

fn memory_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

const INTRODUCTION: &str = "\
# What checks of many real servers cost

Written by `cargo xtask bench checks`. One director, one host that takes connections at all addresses, network namespaces on one
machine; `lvsd` and the libraries that work in it all the time (tokio, netlink, aya) are optimised, others not; its nice value is that of `packaging/lvsd.service`, -10. Each real server has a TCP_CHECK with `delay_loop 1`, `connect_timeout 1` and `retry 0`,
in services of 100. Whatever else runs on the machine (see its load average) is in the figures.

- *CPU*: user and system time of all threads of `lvsd`, per second. On one machine the kernel's work for both ends of the
  connections is counted where it happens to be done, much of it here.
- *Lateness*: how much more than one second lies between two probes of a real server, as it sees them: it includes the probe itself, and
  what the server needs to take the connection.
- *Detection*: 1,000 real servers fall silent at once; from then until the FIFO of `lvs_notify_fifo` says so, when the tables are without
  them. A check that begins a second after the last one and waits for a second takes between 1 and 2 seconds.
- *Beyond the check's time*: the same from when the real server's own next check, had it begun in time, gave up.

keepalived is not beside it: where the kernel has no ip_vs, as here, its checking process ends at once (2.2.7: \"IPVS: Can't initialize
ipvs\"). By its documents it keeps the same times: a first check after 1 s and a random part of `warmup`, the next one `delay_loop` after the
end of the last, a real server out of its pool by the first failure after the start, later by `retry` + 1. All its checks are one process
with one thread, which also takes each real server out by a request of its own to the kernel.

";

impl Figures {
    fn table(&self) -> String {
        let mut text = format!("{INTRODUCTION}{}.\n\n| | |\n|---|---|\n", conditions());
        let mut row = |name: &str, value: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "| {name} | {value} |");
        };
        row("real servers", self.reals.to_string());
        row("watched (`--seconds`)", format!("{:.0} s", self.seconds));
        row("probes a second", format!("{:.0}", self.probes as f64 / self.seconds));
        row("CPU", format!("{:.2} s a second", self.cpu / self.seconds));
        row("memory (RSS)", format!("{:.0} MiB", self.memory_kib as f64 / 1024.0));
        for (name, times) in self.times() {
            let [median, p99, most] = percentiles(times);
            row(&format!("{name}: median / p99 / max"), format!("{median:.1} / {p99:.1} / {most:.1} ms"));
        }
        text
    }

    /// Milliseconds.
    fn json(&self) -> String {
        let times = self.times().map(|(name, times)| {
            let [median, p99, most] = percentiles(times);
            format!("\"{name}\":{{\"median\":{median:.3},\"p99\":{p99:.3},\"max\":{most:.3}}}")
        });
        format!(
            "{{\"reals\":{},\"seconds\":{:.3},\"probes\":{},\"cpu_seconds\":{:.2},\"rss_kib\":{},\n{}}}\n",
            self.reals,
            self.seconds,
            self.probes,
            self.cpu,
            self.memory_kib,
            times.join(",\n")
        )
    }

    fn times(&self) -> [(&'static str, &[Duration]); 3] {
        [
            ("lateness", &self.lateness),
            ("detection", &self.detection),
            ("beyond the check's time", &self.overdue),
        ]
    }
}

fn percentiles(sorted: &[Duration]) -> [f64; 3] {
    let last = sorted.len().saturating_sub(1);
    [last / 2, last * 99 / 100, last].map(|at| sorted.get(at).map_or(0.0, |it| it.as_secs_f64() * 1e3))
}
