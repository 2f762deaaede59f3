//! Does a connection break while its pool is changed, again and again? Ten thousand of them, for a minute of random changes.

use std::{
    env,
    fmt::Write as _,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use lvs_tests::{
    Dice, Director, Need, Node, PATIENCE, RealServer, Scene, Stamp, VIP, Vrrp, require, skip, wait_for,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

const CONNECTIONS: u16 = 10_000;
const FIRST_PORT: u16 = 20_000;
const REALS: u8 = 8;
/// RFC 862.
const ECHO: u16 = 7;
const LENGTH: Duration = Duration::from_secs(60);
const SEED: u64 = 20_261_124;
/// One end of the connections, and whatever else is open.
const FILES: u64 = CONNECTIONS as u64 + 1000;
/// So many speak at a time.
const GROUP: usize = 250;
/// So many that break say all: each may take as long as the following.
const ENOUGH: usize = 10;
/// A packet that is lost on a busy machine is sent again until then. What reaches another real server is reset at once.
const SILENCE: Duration = Duration::from_secs(20);

#[test]
fn ten_thousand_connections_live_through_a_minute_of_random_changes_of_their_pool() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let (_, limit) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if limit < FILES {
        skip(&format!("{FILES} open files are needed, the limit is {limit}"));
        return Ok(());
    }
    // For the real servers' processes as well.
    setrlimit(Resource::RLIMIT_NOFILE, FILES, limit)?;
    let seed = env::var("CHURN_SEED").ok().map_or(Ok(SEED), |text| text.parse())?;
    println!("again by CHURN_SEED={seed}");
    let mut scene = Scene::new()?;
    for number in 4..=REALS {
        let node = scene.lab.host(&format!("rs{number}"), Ipv4Addr::new(10, 77, 0, 10 + number))?;
        scene.reals.push(RealServer::new(node)?);
    }
    let echo = |real: &RealServer| {
        let mut command = real.node.lab_program("lab-echo");
        command.arg(ECHO.to_string());
        real.node.spawn("echo", command)
    };
    let _echoes = scene.reals.iter().map(echo).collect::<Result<Vec<_>>>()?;
    let mut pool = Pool::new(&scene.reals, seed);
    let lb1 = Director::start(&scene.lb1, &pool.config())?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    wait_for("all real servers up", PATIENCE, || {
        let status = lb1.status()?;
        let service = status.services.first().context("no service")?;
        Ok(service.reals.iter().all(|real| real.state == "up").then_some(()))
    })?;

    let talks = connect(&scene.client)?;
    let stop = Arc::new(AtomicBool::new(false));
    let talking = thread::spawn({
        let stop = Arc::clone(&stop);
        move || talk(talks, &stop)
    });
    let end = Stamp::now() + LENGTH;
    let mut changes = 0;
    while Stamp::now() < end {
        pool.change(&lb1)?;
        changes += 1;
        thread::sleep(pool.dice.up_to(Duration::from_secs(1)));
    }
    stop.store(true, Ordering::Relaxed);
    let talked = talking.join().map_err(|_| anyhow!("the client panicked"))?;
    println!("{changes} changes, {} rounds of {CONNECTIONS} connections", talked.rounds);
    ensure!(talked.broken.is_empty(), "{} broke: {:?}", talked.broken.len(), talked.broken);
    // One change alone moves a part of all slots.
    ensure!(changes >= 20 && talked.rounds >= 3, "the machine was too slow to tell");
    Ok(())
}

/// The real servers of the service, and what happens to them.
struct Pool {
    addresses: Vec<Ipv4Addr>,
    /// None is out of the configuration.
    weights: Vec<Option<u16>>,
    dice: Dice,
}

impl Pool {
    fn new(reals: &[RealServer], seed: u64) -> Self {
        let addresses = reals.iter().map(|real| real.node.address()).collect();
        Self { addresses, weights: vec![Some(1); reals.len()], dice: Dice::new(seed) }
    }

    fn config(&self) -> String {
        let mut text = Vrrp::v3(150, Duration::from_millis(100)).text();
        let vip = VIP.ip();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "virtual_server {vip} {ECHO} {{\n    lvs_sched wlc\n    lvs_method DR\n    protocol TCP"
        );
        for (address, weight) in self.addresses.iter().zip(&self.weights) {
            let Some(weight) = weight else { continue };
            let _ = writeln!(text, "    real_server {address} {ECHO} {{\n        weight {weight}\n    }}");
        }
        text + "}\n"
    }

    /// By the configuration, which may leave nobody to take new connections, or by an operator's order.
    fn change(&mut self, lb1: &Director) -> Result<()> {
        let number = self.dice.index(self.weights.len());
        let Some(address) = self.addresses.get(number) else { return Ok(()) };
        let (service, real) = (format!("tcp:{}:{ECHO}", VIP.ip()), format!("{address}:{ECHO}"));
        let weight = self.dice.roll(6) as u16;
        let configured = self.weights.get(number).copied().flatten();
        let is_configured = configured.is_some();
        match self.dice.roll(8) {
            0 if is_configured => lb1.order(&["drain", &service, &real]).map(drop),
            1 if is_configured => lb1.order(&["weight", &service, &real, &weight.to_string()]).map(drop),
            // One that is configured to drain is not enabled.
            2 if configured > Some(0) => lb1.order(&["enable", &service, &real]).map(drop),
            3 => lb1.order(&["reset"]).map(drop),
            kind => {
                let others = self.weights.iter().flatten().count() - usize::from(is_configured);
                if let Some(it) = self.weights.get_mut(number) {
                    *it = (kind < 6 || others == 0).then_some(weight);
                }
                lb1.reload(&self.config())
            }
        }
    }
}

struct Talk {
    port: u16,
    socket: Socket,
}

fn connect(client: &Node) -> Result<Vec<Talk>> {
    let talk = |port| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        let vip = SocketAddr::from((*VIP.ip(), ECHO)).into();
        socket.connect_timeout(&vip, PATIENCE).with_context(|| format!("from port {port}"))?;
        socket.set_read_timeout(Some(SILENCE))?;
        Ok(Talk { port, socket })
    };
    client.in_ns(|| (FIRST_PORT..FIRST_PORT + CONNECTIONS).map(talk).collect())
}

#[derive(Default)]
struct Talked {
    rounds: u64,
    broken: Vec<(u16, ErrorKind)>,
}

/// Round by round each says something and wants to hear it again; the last round begins after the last change.
fn talk(mut talks: Vec<Talk>, stop: &AtomicBool) -> Talked {
    let mut talked = Talked::default();
    loop {
        let is_last = stop.load(Ordering::Relaxed);
        talked.rounds += 1;
        let word = talked.rounds.to_be_bytes();
        let mut broken = Vec::new();
        for group in talks.chunks_mut(GROUP) {
            for talk in &mut *group {
                if let Err(error) = talk.socket.write_all(&word) {
                    broken.push((talk.port, error.kind()));
                }
            }
            for talk in group {
                if broken.len() > ENOUGH {
                    break;
                }
                let mut heard = [0; 8];
                match talk.socket.read_exact(&mut heard) {
                    Ok(()) if heard == word => {}
                    Ok(()) => broken.push((talk.port, ErrorKind::InvalidData)),
                    Err(error) => broken.push((talk.port, error.kind())),
                }
            }
        }
        talks.retain(|talk| broken.iter().all(|(port, _)| *port != talk.port));
        talked.broken.append(&mut broken);
        if is_last || talked.broken.len() > ENOUGH {
            return talked;
        }
    }
}
