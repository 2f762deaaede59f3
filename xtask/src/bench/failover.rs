//! `cargo xtask bench failover`: how long is a VIP away when its master goes, and does it ever move for nothing?
//!
//! Two directors on one switch, `lvsd` or keepalived (as most people run it), with the same configuration. The VIP is
//! answered by the directors themselves, since keepalived forwards nothing here: UDP and HTTP echo on both. Most of the
//! time such a pair waits for its timers, so several work side by side where those are long, each on a switch of its own.
//! None starts a daemon while another one is measured.

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
    Capture, Director, Keepalived, Lab, Load, Need, Node, Process, Request, Stamp, VIP, Vrrp, at_real_time,
    outage, require, serve, wait_for,
};

use socket2::{Domain, Socket, Type};

use super::figures;

#[derive(clap::Args)]
pub struct Arguments {
    /// Runs of each event at each interval
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

/// With how many pairs are side by side. At 10 ms one alone has enough to do.
pub const INTERVALS: [(Duration, u32); 3] =
    [(Duration::from_millis(10), 1), (Duration::from_millis(100), 2), (Duration::from_secs(1), 4)];
const PATIENCE: Duration = Duration::from_secs(30);
const PROBE: Duration = Duration::from_micros(500);
const ECHO: u16 = 7;
const LOADS: [usize; 3] = [0, 4, 16];
/// What goes wrong so soon after a takeover counts.
const AFTERMATH: Duration = Duration::from_millis(250);
/// Other labs on this machine look each 20 ms whether it is their turn.
const TURN: Duration = Duration::from_millis(100);

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
    /// The same as the new master's own interface has it, without the way to the third host.
    pub at_backup: Duration,
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
    /// Load averages, as each event at each interval began.
    pub loads: Vec<f64>,
    /// Runs that came to no end: no answer within [`PATIENCE`], say.
    pub begun_again: u32,
}

/// More of one event are no accident.
const MOST_BEGUN_AGAIN: u32 = 10;

pub fn bench(arguments: &Arguments) -> Result<()> {
    ensure!(require(&[Need::Lab, Need::Lvsd, Need::Keepalived]), "this machine lacks something");
    let (runs, seconds) = if arguments.quick { (2, 3) } else { (arguments.runs, 30) };
    let mut circumstances = Circumstances { runs, start: Stamp::now(), loads: Vec::new(), begun_again: 0 };
    let mut all = Runs::new();
    let mut falsehoods = Vec::new();
    for program in [Program::Keepalived, Program::Lvsd] {
        for (interval, lanes) in INTERVALS {
            for event in EVENTS {
                if (program, event) == (Program::Keepalived, Event::HandOver) {
                    continue;
                }
                circumstances.loads.extend(figures::load_average());
                let mut cell = Cell::new(program, event, interval)?;
                all.insert((program, event, interval), cell.measure(runs, lanes)?);
                circumstances.begun_again += cell.begun_again;
                println!("{}", figures::row(program, event, interval, &all));
                drop(cell);
                thread::sleep(TURN);
            }
        }
        for interval in [Duration::from_millis(10), Duration::from_millis(100)] {
            for loops in LOADS {
                let pair = Pair::new(Lab::new()?, program, interval)?;
                let takeovers = pair.stay(loops, Duration::from_secs(seconds))?;
                println!(
                    "{} at {interval:?}, {loops} busy loops: {takeovers} false takeovers",
                    program.name()
                );
                falsehoods.push(Falsehood { program, interval, loops, seconds, takeovers });
                drop(pair);
                thread::sleep(TURN);
            }
        }
    }
    fs::create_dir_all(&arguments.out)?;
    figures::write(&arguments.out, &circumstances, &all, &falsehoods)
}

/// All runs of one event at one interval.
struct Cell {
    program: Program,
    event: Event,
    interval: Duration,
    begun_again: u32,
    lab: Lab,
}

impl Cell {
    fn new(program: Program, event: Event, interval: Duration) -> Result<Self> {
        Ok(Self { program, event, interval, begun_again: 0, lab: Lab::new()? })
    }

    fn measure(&mut self, count: u32, lanes: u32) -> Result<Vec<Run>> {
        let mut pairs: Vec<_> = (0..lanes.min(count)).map(|_| None).collect();
        let mut runs = Vec::new();
        while runs.len() < count as usize {
            let left = count as usize - runs.len();
            pairs.truncate(left);
            self.all(&mut pairs, |cell, pair| match pair {
                Some(pair) => pair.recover(cell.event),
                None => Pair::new(cell.lab.beside()?, cell.program, cell.interval).map(|it| *pair = Some(it)),
            })?;
            let event = self.event;
            let done =
                self.all(&mut pairs, |_, pair| pair.as_mut().map(|pair| pair.lose(event)).transpose())?;
            runs.extend(done.into_iter().flatten());
        }
        Ok(runs)
    }

    /// All at once. What one fails in is told and costs only its pair: one run of many hundred is not worth the others.
    fn all<T: Send>(
        &mut self,
        pairs: &mut [Option<Pair>],
        work: impl Fn(&Self, &mut Option<Pair>) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let (cell, work) = (&*self, &work);
        let results: Vec<Result<T>> = thread::scope(|scope| {
            let threads: Vec<_> = pairs
                .iter_mut()
                .map(|pair| scope.spawn(move || work(cell, pair).inspect_err(|_| *pair = None)))
                .collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|_| Err(anyhow!("a measurement panicked")))
            };
            threads.into_iter().map(join).collect()
        });
        let mut done = Vec::new();
        for result in results {
            match result {
                Ok(it) => done.push(it),
                Err(error) => {
                    let Self { program, event, interval, .. } = self;
                    eprintln!("{program:?}, {event:?} at {interval:?} is begun again: {error:#}");
                    self.begun_again += 1;
                }
            }
        }
        ensure!(self.begun_again <= MOST_BEGUN_AGAIN, "too often");
        Ok(done)
    }
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
    beside_second: Capture,
    first: Daemon,
    _second: Daemon,
    _echoes: [Echo; 2],
    _servers: [Process; 2],
    lab: Lab,
}

impl Pair {
    fn new(mut lab: Lab, program: Program, interval: Duration) -> Result<Self> {
        let client = lab.host("client", [10, 77, 0, 9].into())?;
        let watcher = lab.host("watcher", [10, 77, 0, 8].into())?;
        let nodes = [lab.host("lb1", [10, 77, 0, 1].into())?, lab.host("lb2", [10, 77, 0, 2].into())?];
        let servers = [serve(&nodes[0])?, serve(&nodes[1])?];
        let echoes = [Echo::start(&nodes[0])?, Echo::start(&nodes[1])?];
        let watch = Capture::start(&watcher, "eth0")?;
        let beside_second = Capture::start(&nodes[1], "eth0")?;
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
            beside_second,
            _echoes: echoes,
            _servers: servers,
            lab,
        };
        pair.wait_for_first()?;
        Ok(pair)
    }

    /// Until lb1 alone advertises.
    fn wait_for_first(&self) -> Result<()> {
        let first = self.nodes[0].address();
        wait_for("lb1 as the only master", PATIENCE, || {
            let adverts = self.watch.adverts();
            let last: Vec<_> = adverts.iter().rev().take(2).collect();
            Ok((last.len() == 2 && last.iter().all(|it| it.source == first && it.priority > 0)).then_some(()))
        })?;
        // keepalived adds and announces its addresses after its first advert.
        thread::sleep(Duration::from_millis(50));
        Ok(())
    }

    fn lose(&mut self, event: Event) -> Result<Run> {
        let one = self.nodes[0].address();
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
        let garp = wait_for("a gratuitous ARP of lb2", PATIENCE, || Ok(self.takeover(&self.watch, lost)))?;
        thread::sleep(AFTERMATH);
        // Requests that failed have to be followed by one that did not.
        let is_new = |request: &&Request| request.started > garp + AFTERMATH && request.answer.is_ok();
        let end = wait_for("an answer afterwards", PATIENCE, || {
            Ok(load.requests().iter().find(is_new).map(|request| request.started))
        })?;
        let [seen, at_backup] = [&self.watch, &self.beside_second].map(|capture| {
            let garp =
                self.takeover(capture, lost).context("no gratuitous ARP of lb2 at its own interface")?;
            let adverts = capture.adverts();
            let last = adverts.into_iter().rfind(|it| it.source == one && it.at < garp);
            Ok::<_, anyhow::Error>((garp, last.context("no advert of lb1")?))
        });
        let (seen, at_backup) = (seen?, at_backup?);
        let backup = Vrrp { priority: 100, ..self.vrrp.clone() };
        let resigned = seen.1.priority == 0;
        let mut requests = load.finish()?;
        requests.retain(|request| request.started <= end);
        Ok(Run {
            advert_to_garp: seen.0.since(seen.1.at),
            at_backup: at_backup.0.since(at_backup.1.at),
            theory: if resigned { backup.skew() } else { backup.lifetime() + backup.skew() },
            udp: probe.finish(lost)?,
            tcp: outage(&requests, lost)?.length,
        })
    }

    /// When lb2 first said that the VIP is its own.
    fn takeover(&self, capture: &Capture, lost: Stamp) -> Option<Stamp> {
        let mac = self.nodes[1].mac();
        let arps = capture.arps();
        let new = arps.iter().find(|arp| arp.at > lost && arp.is_gratuitous() && arp.sender.0 == mac);
        new.map(|arp| arp.at)
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
