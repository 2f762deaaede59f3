//! `cargo xtask bench failover`: how long is a VIP away when its master goes, and does it ever move for nothing?
//!
//! Two directors on one switch, `lvsd` or keepalived (as most people run it), with the same configuration. The VIP is
//! answered by the directors themselves, since keepalived forwards nothing here: UDP and HTTP echo on both.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lvs_tests::{
    Capture, Director, Keepalived, Lab, Load, Need, Node, Process, Stamp, VIP, Vrrp, at_real_time, outage,
    require, serve, wait_for,
};

use socket2::{Domain, Socket, Type};

use super::figures;

#[derive(clap::Args)]
pub struct Arguments {
    /// Runs of each event at each interval; 30 take an hour and a half
    #[arg(long, default_value_t = 30)]
    runs: u32,
    /// Few runs and short loads: does it work at all?
    #[arg(long)]
    quick: bool,
    /// Where table, JSON and plot go
    #[arg(long, default_value = "docs/performance")]
    out: String,
    /// Set when sudo runs this a second time
    #[arg(long, hide = true)]
    pub built: bool,
}

const INTERVALS: [Duration; 3] =
    [Duration::from_millis(10), Duration::from_millis(100), Duration::from_secs(1)];
const PATIENCE: Duration = Duration::from_secs(30);
const PROBE: Duration = Duration::from_micros(500);
const ECHO: u16 = 7;
const LOADS: [usize; 3] = [0, 4, 16];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    Lvsd,
    Keepalived,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    Kill,
    Freeze,
    LinkDown,
    Stop,
    /// `lvsd failover`, which keepalived has not.
    HandOver,
}

pub const EVENTS: [Event; 5] = [Event::Kill, Event::Freeze, Event::LinkDown, Event::Stop, Event::HandOver];

impl Event {
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill -9",
            Self::Freeze => "SIGSTOP",
            Self::LinkDown => "link down",
            Self::Stop => "SIGTERM",
            Self::HandOver => "lvsd failover",
        }
    }
}

impl Program {
    pub fn name(self) -> &'static str {
        match self {
            Self::Lvsd => "lvsd",
            Self::Keepalived => "keepalived",
        }
    }
}

/// What one run has shown.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// From the last advert of the old master (its priority 0 after SIGTERM) to the first gratuitous ARP of the new.
    pub advert_to_garp: Duration,
    /// What the timers say about that.
    pub theory: Duration,
    /// The longest time without an answer to the probe.
    pub udp: Duration,
    pub tcp: Duration,
}

/// By program, event and interval.
pub type Runs = BTreeMap<(Program, Event, Duration), Vec<Run>>;

/// Takeovers while the master was healthy, in so many seconds.
pub struct Falsehood {
    pub program: Program,
    pub interval: Duration,
    pub loops: usize,
    pub seconds: u64,
    pub takeovers: usize,
}

/// Under which it was measured.
pub struct Circumstances {
    /// Of each event at each interval.
    pub runs: u32,
    pub start: Stamp,
    /// As it began.
    pub load: String,
    /// Runs that came to no end: no answer within [`PATIENCE`], say.
    pub begun_again: u32,
}

/// More are no accident.
const MOST_BEGUN_AGAIN: u32 = 10;

pub fn bench(arguments: &Arguments) -> Result<()> {
    ensure!(require(&[Need::Lab, Need::Lvsd, Need::Keepalived]), "this machine lacks something");
    let (runs, seconds) = if arguments.quick { (2, 3) } else { (arguments.runs, 30) };
    let mut circumstances =
        Circumstances { runs, start: Stamp::now(), load: figures::load_average(), begun_again: 0 };
    let mut all = Runs::new();
    let mut falsehoods = Vec::new();
    for program in [Program::Keepalived, Program::Lvsd] {
        for interval in INTERVALS {
            let mut pair = Pair::new(program, interval)?;
            for event in EVENTS {
                if (program, event) == (Program::Keepalived, Event::HandOver) {
                    continue;
                }
                let mut done = 0;
                while done < runs {
                    match pair.lose(event) {
                        Ok(run) => {
                            all.entry((program, event, interval)).or_default().push(run);
                            done += 1;
                        }
                        // One run of many hundred is not worth the others.
                        Err(error) => {
                            eprintln!("{program:?}, {event:?} at {interval:?} is begun again: {error:#}");
                            circumstances.begun_again += 1;
                            ensure!(circumstances.begun_again <= MOST_BEGUN_AGAIN, "too often");
                            drop(pair);
                            pair = Pair::new(program, interval)?;
                        }
                    }
                }
                println!("{}", figures::row(program, event, interval, &all));
            }
        }
        for interval in [Duration::from_millis(10), Duration::from_millis(100)] {
            for loops in LOADS {
                let takeovers = Pair::new(program, interval)?.stay(loops, Duration::from_secs(seconds))?;
                println!(
                    "{} at {interval:?}, {loops} busy loops: {takeovers} false takeovers",
                    program.name()
                );
                falsehoods.push(Falsehood { program, interval, loops, seconds, takeovers });
            }
        }
    }
    fs::create_dir_all(&arguments.out)?;
    figures::write(&arguments.out, &circumstances, &all, &falsehoods)
}

enum Daemon {
    Lvsd(Director),
    Keepalived(Keepalived),
}

impl Daemon {
    fn start(program: Program, node: &Node, vrrp: &Vrrp) -> Result<Self> {
        Ok(match program {
            Program::Lvsd => Self::Lvsd(Director::start(node, &vrrp.text())?),
            Program::Keepalived => Self::Keepalived(Keepalived::start_without_options(node, &vrrp.text())?),
        })
    }
}

/// Two directors, the first one master.
struct Pair {
    program: Program,
    vrrp: Vrrp,
    nodes: [Node; 2],
    client: Node,
    watch: Capture,
    first: Daemon,
    _second: Daemon,
    _echoes: [Echo; 2],
    _servers: [Process; 2],
    lab: Lab,
}

impl Pair {
    fn new(program: Program, interval: Duration) -> Result<Self> {
        let mut lab = Lab::new()?;
        let client = lab.host("client", [10, 77, 0, 9].into())?;
        let watcher = lab.host("watcher", [10, 77, 0, 8].into())?;
        let nodes = [lab.host("lb1", [10, 77, 0, 1].into())?, lab.host("lb2", [10, 77, 0, 2].into())?];
        let servers = [serve(&nodes[0])?, serve(&nodes[1])?];
        let echoes = [Echo::start(&nodes[0])?, Echo::start(&nodes[1])?];
        let watch = Capture::start(&watcher, "eth0")?;
        let vrrp = Vrrp::v3(150, interval);
        let first = Daemon::start(program, &nodes[0], &vrrp)?;
        let pair = Self {
            program,
            first,
            _second: Daemon::start(program, &nodes[1], &Vrrp { priority: 100, ..vrrp.clone() })?,
            vrrp,
            nodes,
            client,
            watch,
            _echoes: echoes,
            _servers: servers,
            lab,
        };
        pair.wait_for_first()?;
        Ok(pair)
    }

    /// Until lb1 alone has advertised for a while.
    fn wait_for_first(&self) -> Result<()> {
        let first = self.nodes[0].address();
        wait_for("lb1 as the only master", PATIENCE, || {
            let adverts = self.watch.adverts();
            let last: Vec<_> = adverts.iter().rev().take(3).collect();
            Ok((last.len() == 3 && last.iter().all(|it| it.source == first && it.priority > 0)).then_some(()))
        })?;
        thread::sleep(self.vrrp.advert_interval);
        Ok(())
    }

    fn lose(&mut self, event: Event) -> Result<Run> {
        let [one, two] = [self.nodes[0].address(), self.nodes[1].address()];
        let probe = Probe::start(&self.client)?;
        let load = Load::start(&self.client, VIP, Duration::from_millis(5))?;
        wait_for("answers", PATIENCE, || {
            Ok((probe.is_answered() && load.requests().iter().any(|it| it.answer.is_ok())).then_some(()))
        })?;
        // Anywhere between two adverts.
        thread::sleep(Duration::from_micros(
            Stamp::now().nanos() / 1000 % 997 * self.vrrp.advert_interval.as_micros() as u64 / 997,
        ));
        let lost = Stamp::now();
        match (&mut self.first, event) {
            (_, Event::LinkDown) => self.lab.unplug(&self.nodes[0])?,
            (Daemon::Lvsd(director), Event::Kill) => director.kill()?,
            (Daemon::Lvsd(director), Event::Freeze) => director.freeze()?,
            (Daemon::Lvsd(director), Event::Stop) => director.stop()?,
            (Daemon::Lvsd(director), Event::HandOver) => drop(director.order(&["failover"])?),
            (Daemon::Keepalived(keepalived), Event::Kill) => keepalived.kill()?,
            (Daemon::Keepalived(keepalived), Event::Freeze) => keepalived.freeze()?,
            (Daemon::Keepalived(keepalived), Event::Stop) => keepalived.stop()?,
            (Daemon::Keepalived(_), Event::HandOver) => bail!("keepalived has no planned handover"),
        }
        let mac = self.nodes[1].mac();
        let garp = wait_for("a gratuitous ARP of lb2", PATIENCE, || {
            let arps = self.watch.arps();
            let new = arps.iter().find(|arp| arp.at > lost && arp.is_gratuitous() && arp.sender.0 == mac);
            Ok(new.map(|arp| arp.at))
        })?;
        thread::sleep(Duration::from_millis(300));
        let adverts = self.watch.adverts();
        let last = adverts.iter().rfind(|it| it.source == one && it.at < garp).context("no advert of lb1")?;
        ensure!(adverts.iter().any(|it| it.source == two), "no advert of lb2");
        let backup = Vrrp { priority: 100, ..self.vrrp.clone() };
        let theory = if last.priority == 0 { backup.skew() } else { backup.lifetime() + backup.skew() };
        let run = Run {
            advert_to_garp: garp.since(last.at),
            theory,
            udp: probe.finish(lost)?,
            tcp: outage(&load.finish()?, lost)?.length,
        };
        self.recover(event)?;
        Ok(run)
    }

    fn recover(&mut self, event: Event) -> Result<()> {
        match (&mut self.first, event) {
            (_, Event::LinkDown) => self.lab.plug_in(&self.nodes[0])?,
            (Daemon::Lvsd(director), Event::Freeze) => director.thaw()?,
            (Daemon::Lvsd(director), Event::Kill | Event::Stop) => director.start_again()?,
            (Daemon::Lvsd(director), Event::HandOver) => drop(director.order(&["failback"])?),
            (Daemon::Keepalived(keepalived), Event::Freeze) => keepalived.thaw()?,
            (Daemon::Keepalived(_), Event::Kill | Event::Stop | Event::HandOver) => {
                self.first = Daemon::start(self.program, &self.nodes[0], &self.vrrp)?;
            }
        }
        self.wait_for_first()
    }

    /// How often lb2 takes over although nothing happens to lb1 but load.
    fn stay(&self, loops: usize, time: Duration) -> Result<usize> {
        let before = self.takeovers();
        let stop = Arc::new(AtomicBool::new(false));
        let busy: Vec<_> = (0..loops)
            .map(|_| {
                thread::spawn({
                    let stop = Arc::clone(&stop);
                    move || {
                        while !stop.load(Ordering::Relaxed) {
                            std::hint::spin_loop();
                        }
                    }
                })
            })
            .collect();
        thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        busy.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a busy loop panicked")))?;
        Ok(self.takeovers() - before)
    }

    fn takeovers(&self) -> usize {
        let second = self.nodes[1].address();
        let adverts = self.watch.adverts();
        let masters = lvs_tests::turns(adverts.iter().filter(|it| it.priority > 0).map(|it| it.source));
        masters.iter().filter(|master| **master == second).count()
    }
}

/// Sends each datagram back, until it is dropped.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(node: &Node) -> Result<Self> {
        let socket = node.in_ns(|| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            // The answers have to come from the VIP, which is not always here.
            socket.set_freebind_v4(true)?;
            socket.bind(&SocketAddrV4::new(*VIP.ip(), ECHO).into())?;
            Ok(UdpSocket::from(socket))
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                at_real_time();
                let mut buffer = [0; 64];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                        // A client that has gone is no matter.
                        let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), from);
                    }
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Asks the VIP each half millisecond and notes when answers come.
struct Probe {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicBool>,
    threads: [JoinHandle<Vec<Stamp>>; 2],
}

impl Probe {
    fn start(client: &Node) -> Result<Self> {
        let socket = client.in_ns(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect((*VIP.ip(), ECHO))?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let asking = thread::spawn({
            let (stop, socket) = (Arc::clone(&stop), socket.try_clone()?);
            move || {
                at_real_time();
                while !stop.load(Ordering::Relaxed) {
                    // Refused or unreachable, it is asked again.
                    let _ = socket.send(b"?");
                    thread::sleep(PROBE);
                }
                Vec::new()
            }
        });
        let listening = thread::spawn({
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            move || {
                at_real_time();
                let (mut answers, mut buffer) = (Vec::new(), [0; 8]);
                while !stop.load(Ordering::Relaxed) {
                    if socket.recv(&mut buffer).is_ok() {
                        answers.push(Stamp::now());
                        answered.store(true, Ordering::Relaxed);
                    }
                }
                answers
            }
        });
        Ok(Self { stop, answered, threads: [asking, listening] })
    }

    fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// The longest time without an answer, of those that ended after `lost`.
    fn finish(self, lost: Stamp) -> Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let mut answers = Vec::new();
        for thread in self.threads {
            answers.extend(thread.join().map_err(|_| anyhow!("the probe panicked"))?);
        }
        let gaps = answers.windows(2).filter_map(|pair| match pair {
            [from, to] if *to > lost => Some(to.since(*from)),
            _ => None,
        });
        gaps.max().context("no answer after the loss")
    }
}
