//! Does every single packet to the VIP arrive at a real server?

use std::{
    collections::HashMap,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt};

use crate::{Node, RealServer, Stamp};

/// So many client ports: flows on every real server.
const FLOWS: usize = 16;
/// What comes later than this after the last packet is lost.
const STRAGGLERS: Duration = Duration::from_millis(500);
/// Room for what comes while the machine is busy with something else.
const QUEUE: usize = 16 << 20;

/// Numbered UDP packets from the client to `target`, so many a second, until it is finished.
pub struct Datagrams {
    sending: Arc<AtomicBool>,
    receiving: Arc<AtomicBool>,
    sender: JoinHandle<Result<u64>>,
    receivers: Vec<JoinHandle<Result<Vec<u64>>>>,
}

/// What became of them.
#[derive(Debug)]
pub struct Tally {
    pub sent: u64,
    /// Numbers that arrived nowhere.
    pub lost: Vec<u64>,
    /// Arrived more than once, or at two real servers.
    pub doubled: u64,
}

impl Datagrams {
    pub fn start(client: &Node, reals: &[RealServer], target: SocketAddrV4, rate: u32) -> Result<Self> {
        let (sending, receiving) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        let mut receivers = Vec::new();
        for real in reals {
            let socket = real.node.in_ns(|| Ok(UdpSocket::bind(target)?))?;
            setsockopt(&socket, sockopt::RcvBufForce, &QUEUE)?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            let receiving = Arc::clone(&receiving);
            receivers.push(thread::spawn(move || receive(&socket, &receiving)));
        }
        let sockets = client.in_ns(|| {
            let socket = || {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.connect(target).map(|()| socket)
            };
            Ok((0..FLOWS).map(|_| socket()).collect::<Result<Vec<_>, _>>()?)
        })?;
        let sender = thread::spawn({
            let sending = Arc::clone(&sending);
            move || send(&sockets, rate, &sending)
        });
        Ok(Self { sending, receiving, sender, receivers })
    }

    pub fn finish(self) -> Result<Tally> {
        self.sending.store(false, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow!("the sender panicked"))??;
        thread::sleep(STRAGGLERS);
        self.receiving.store(false, Ordering::Relaxed);
        let mut arrived: HashMap<u64, u64> = HashMap::new();
        for receiver in self.receivers {
            let numbers = receiver.join().map_err(|_| anyhow!("a receiver panicked"))??;
            numbers.into_iter().for_each(|number| *arrived.entry(number).or_default() += 1);
        }
        Ok(Tally {
            sent,
            lost: (0..sent).filter(|number| !arrived.contains_key(number)).collect(),
            doubled: arrived.values().map(|count| count - 1).sum(),
        })
    }
}

/// Returns how many. What a sleep was too long is made up for.
fn send(sockets: &[UdpSocket], rate: u32, sending: &AtomicBool) -> Result<u64> {
    let start = Stamp::now();
    let mut sent = 0;
    while sending.load(Ordering::Relaxed) {
        while sent < (start.elapsed().as_secs_f64() * f64::from(rate)) as u64 {
            let flow = usize::try_from(sent)? % sockets.len();
            let socket = sockets.get(flow).context("no flow")?;
            socket.send(&u64::to_be_bytes(sent)).with_context(|| format!("sending packet {sent}"))?;
            sent += 1;
        }
        thread::sleep(Duration::from_micros(100));
    }
    Ok(sent)
}

fn receive(socket: &UdpSocket, receiving: &AtomicBool) -> Result<Vec<u64>> {
    let mut numbers = Vec::new();
    let mut buffer = [0; size_of::<u64>()];
    while receiving.load(Ordering::Relaxed) {
        match socket.recv(&mut buffer) {
            Ok(_) => numbers.push(u64::from_be_bytes(buffer)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(numbers)
}
