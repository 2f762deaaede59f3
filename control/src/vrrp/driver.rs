//! Who runs the machines? One real-time thread that owns their sockets, their clock and their leases.
//!
//! It does nothing but VRRP: what takes longer (addresses, logs, scripts) leaves as an event, what comes in from
//! the rest of the daemon lies in a mailbox of atomics. No locks, no disk, no names to resolve.

use std::{
    collections::VecDeque,
    io,
    net::Ipv4Addr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::BytesMut;
use lvs_ebpf_common::maps;
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
        time::{TimeSpec, TimeValLike as _},
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use socket2::SockAddr;
use tokio::sync::mpsc;

use super::{
    Cause, FaultCause, Monotonic, State,
    board::{Board, Counter},
    machine::{Effect, Effects, Machine, Settings},
    packet::{Checksum, Datagram, Format, GROUP, MAX_ADDRESSES, MAX_DATAGRAM, Rejection},
    realtime,
    socket::{AdvertSocket, FrameSocket, arp_interface},
};
use crate::{
    announce::{self, Frame},
    config::model::{Authentication, Garp, Preempt, Priority, Version, Vrid},
    dataplane::lease::LeaseMap,
};

/// A VRRP instance of the configuration, resolved for this host.
#[derive(Clone, Debug)]
pub struct Instance {
    pub name: String,
    pub interface: String,
    pub ifindex: u32,
    pub source: Ipv4Addr,
    pub vrid: Vrid,
    pub priority: Priority,
    pub version: Version,
    pub advert_interval: Duration,
    pub start_as_master: bool,
    /// Empty = multicast.
    pub peers: Vec<Ipv4Addr>,
    pub authentication: Authentication,
    pub preempt: Preempt,
    pub addresses: Vec<Address>,
    pub garp: Garp,
    /// Its element of the lease map.
    pub lease: u32,
}

/// A virtual address and where it is announced.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub address: Ipv4Addr,
    pub ifindex: u32,
    pub mac: [u8; 6],
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "instance `{instance}`: {count} virtual addresses do not fit into one advert (at most {MAX_ADDRESSES})"
    )]
    TooManyAddresses { instance: String, count: usize },
    #[error("instances `{first}` and `{second}` both use virtual_router_id {vrid} on {interface}")]
    DuplicateVrid { first: String, second: String, vrid: u8, interface: String },
    #[error("instance `{instance}`: lease {lease} is beyond the lease map")]
    LeaseOutOfRange { instance: String, lease: u32 },
    #[error("cannot open a VRRP socket on {interface}: {source}")]
    Socket { interface: String, source: io::Error },
    #[error("cannot open a socket for gratuitous ARP: {0}")]
    Announcements(io::Error),
    #[error("cannot set up the VRRP thread: {0}")]
    Thread(#[from] io::Error),
}

/// What the rest of the daemon is told. If the channel is full the event is lost and counted on the
/// [`Board`], which always holds the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Index into the instances given to [`spawn`].
    pub instance: usize,
    pub kind: EventKind,
}

/// The last four are told once per kind until the state of the instance changes; the board counts them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Transition { from: State, to: State, cause: Cause },
    AddressesUp,
    AddressesDown,
    Rejected { from: Ipv4Addr, rejection: Rejection },
    AddressesDiffer { from: Ipv4Addr },
    OwnAddress { from: Ipv4Addr },
    SendFailed { destination: Ipv4Addr, error: Errno },
}

/// Speaks to the running thread.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// The running thread. To be waited for: it ends when told, and where the kernel takes its means away.
pub struct Thread(thread::JoinHandle<io::Result<()>>);

impl Handle {
    pub fn board(&self) -> &Board {
        &self.shared.board
    }

    /// The cause why an instance cannot take part, or that it can again. The latest word counts.
    pub fn fault(&self, instance: usize, cause: Option<FaultCause>) {
        if let Some(fault) = self.shared.faults.get(instance) {
            fault.store(encode_fault(cause), Ordering::Release);
            self.shared.ring();
        }
    }

    /// Hands everything over to the peers. The thread ends when each instance that was master here has heard
    /// its new master, or after `linger`: so long packets for the addresses may still come this way.
    pub fn stop(&self, linger: Duration) {
        // A second call changes nothing.
        let _ = self.shared.stop.set(linger);
        self.shared.ring();
    }

    /// Ends the thread in silence. The leases run on for a successor to adopt.
    pub fn leave(&self) {
        self.shared.leave.store(true, Ordering::Release);
        self.shared.ring();
    }
}

impl Thread {
    /// Waits for it to end.
    pub fn join(self) -> io::Result<()> {
        self.0.join().unwrap_or_else(|_| Err(io::Error::other("the VRRP thread panicked")))
    }
}

/// What both sides see.
struct Shared {
    board: Board,
    /// One per instance: [`encode_fault`].
    faults: Box<[AtomicU8]>,
    stop: OnceLock<Duration>,
    leave: AtomicBool,
    bell: EventFd,
}

impl Shared {
    fn ring(&self) {
        // It only fails where the bell has rung 2^64 - 1 times unheard.
        let _ = self.bell.write(1);
    }
}

fn encode_fault(cause: Option<FaultCause>) -> u8 {
    match cause {
        None => 0,
        Some(FaultCause::InterfaceMissing) => 1,
        Some(FaultCause::LinkDown) => 2,
        Some(FaultCause::SourceMissing) => 3,
    }
}

fn decode_fault(code: u8) -> Option<FaultCause> {
    match code {
        1 => Some(FaultCause::InterfaceMissing),
        2 => Some(FaultCause::LinkDown),
        3 => Some(FaultCause::SourceMissing),
        _ => None,
    }
}

/// Opens all sockets, then starts the thread. Instances begin at once.
pub fn spawn(
    instances: Vec<Instance>,
    leases: LeaseMap,
    events: mpsc::Sender<Event>,
) -> Result<(Handle, Thread), StartError> {
    let shared = Arc::new(Shared {
        board: Board::new(instances.len()),
        faults: instances.iter().map(|_| AtomicU8::new(0)).collect(),
        stop: OnceLock::new(),
        leave: AtomicBool::new(false),
        bell: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(io::Error::from)?,
    });
    let mut driver = Driver::new(instances, leases, events, shared.clone())?;
    realtime::lock_memory();
    let thread = thread::Builder::new().name("vrrp".to_owned()).stack_size(256 << 10).spawn(move || {
        realtime::enter();
        driver.run()
    })?;
    Ok((Handle { shared }, Thread(thread)))
}

struct Driver {
    nodes: Vec<Node>,
    /// When each node's machine wants to be woken.
    deadlines: Vec<Monotonic>,
    links: Vec<Link>,
    frames: FrameSocket,
    leases: LeaseMap,
    events: mpsc::Sender<Event>,
    shared: Arc<Shared>,
    epoll: Epoll,
    timer: TimerFd,
    effects: Effects,
    packet: BytesMut,
    received: Box<[u8]>,
    /// Nodes with frames left to send.
    announcing: VecDeque<usize>,
    /// Set by [`Handle::stop`]: when to end at the latest.
    stop_at: Option<Monotonic>,
}

/// One interface.
struct Link {
    ifindex: u32,
    socket: AdvertSocket,
    /// VRID to node.
    nodes: Box<[Option<usize>; 256]>,
}

/// One instance.
struct Node {
    machine: Machine,
    format: Format,
    lease: u32,
    link: usize,
    identification: u16,
    frames: Vec<(SockAddr, Frame)>,
    next_frame: usize,
    frames_left: usize,
    fault: Option<FaultCause>,
    told: u16,
    resigned: bool,
}

/// Longest run of one kind of work before the others get their turn. The receive buffer holds fewer adverts than
/// this, so a timer never fires while an advert that would have stopped it lies unread.
const RECEIVE_BATCH: usize = 4096;
const ANNOUNCE_BATCH: usize = 64;

const TIMER: u64 = u64::MAX;
const BELL: u64 = u64::MAX - 1;
const NEVER: Monotonic = Monotonic::from_nanos(u64::MAX);

impl Driver {
    fn new(
        instances: Vec<Instance>,
        leases: LeaseMap,
        events: mpsc::Sender<Event>,
        shared: Arc<Shared>,
    ) -> Result<Self, StartError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(io::Error::from)?;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)
                .map_err(io::Error::from)?;
        let readable = |data| EpollEvent::new(EpollFlags::EPOLLIN, data);
        epoll.add(&timer, readable(TIMER)).map_err(io::Error::from)?;
        epoll.add(&shared.bell, readable(BELL)).map_err(io::Error::from)?;
        let mut links: Vec<Link> = Vec::new();
        let mut nodes = Vec::with_capacity(instances.len());
        for (index, instance) in instances.iter().enumerate() {
            let link = match links.iter().position(|link| link.ifindex == instance.ifindex) {
                Some(link) => link,
                None => {
                    let on_it = |other: &&Instance| other.ifindex == instance.ifindex;
                    let multicast = instances.iter().filter(on_it).any(|other| other.peers.is_empty());
                    let link = Link::open(instance, multicast)?;
                    epoll.add(&link.socket, readable(links.len() as u64)).map_err(io::Error::from)?;
                    links.push(link);
                    links.len() - 1
                }
            };
            let taken = &mut links[link].nodes[usize::from(instance.vrid.get())];
            if let Some(first) = *taken {
                return Err(StartError::DuplicateVrid {
                    first: instances[first].name.clone(),
                    second: instance.name.clone(),
                    vrid: instance.vrid.get(),
                    interface: instance.interface.clone(),
                });
            }
            *taken = Some(index);
            nodes.push(Node::new(instance, link)?);
        }
        Ok(Self {
            deadlines: vec![NEVER; nodes.len()],
            announcing: VecDeque::with_capacity(nodes.len()),
            nodes,
            links,
            frames: FrameSocket::open().map_err(StartError::Announcements)?,
            leases,
            events,
            shared,
            epoll,
            timer,
            effects: Effects::with_capacity(16),
            packet: BytesMut::with_capacity(MAX_DATAGRAM),
            received: vec![0; 2 * MAX_DATAGRAM].into(),
            stop_at: None,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        for index in 0..self.nodes.len() {
            let lease = Monotonic::from_nanos(self.leases.until(self.nodes[index].lease));
            self.input(index, |machine, now, effects| machine.on_start(lease, now, effects));
        }
        let mut ready = [EpollEvent::empty(); 32];
        loop {
            self.announce();
            if self.set_timer()? {
                return Ok(());
            }
            let timeout = if self.announcing.is_empty() { EpollTimeout::NONE } else { EpollTimeout::ZERO };
            let count = match self.epoll.wait(&mut ready, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            // Adverts before timers: of two things that are due, the one that came in may cancel the other.
            for event in ready.iter().take(count) {
                match event.data() {
                    TIMER => {}
                    BELL => {
                        let _ = self.shared.bell.read();
                        if self.shared.leave.load(Ordering::Acquire) {
                            return Ok(());
                        }
                        self.read_mailbox();
                    }
                    link => self.receive(link as usize),
                }
            }
            self.fire();
        }
    }

    /// Arms the timer for what comes next. True when there is nothing left to do.
    fn set_timer(&self) -> io::Result<bool> {
        let mut next = self.deadlines.iter().copied().min().unwrap_or(NEVER);
        if let Some(stop_at) = self.stop_at {
            if Monotonic::now() >= stop_at || !self.nodes.iter().any(|node| node.resigned) {
                return Ok(true);
            }
            next = next.min(stop_at);
        }
        // Zero would disarm it. A point in the past fires at once. Setting it also takes back that it has fired.
        let at = i64::try_from(next.nanos().max(1)).unwrap_or(i64::MAX);
        self.timer
            .set(Expiration::OneShot(TimeSpec::nanoseconds(at)), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
        Ok(false)
    }

    fn fire(&mut self) {
        let now = Monotonic::now();
        for index in 0..self.nodes.len() {
            if self.deadlines[index] <= now {
                self.input(index, Machine::on_timer);
            }
        }
    }

    fn receive(&mut self, link: usize) {
        let mut buffer = std::mem::take(&mut self.received);
        for _ in 0..RECEIVE_BATCH {
            let Some(bytes) = self.links[link].socket.receive(&mut buffer) else { break };
            let datagram = Datagram::parse(bytes);
            let node = datagram.and_then(|datagram| {
                let vrid = datagram.vrid()?;
                Some((self.links[link].nodes[usize::from(vrid)]?, datagram))
            });
            match node {
                Some((index, datagram)) => self.hear(index, &datagram),
                None => self.shared.board.count_stray(),
            }
        }
        self.received = buffer;
    }

    fn hear(&mut self, index: usize, datagram: &Datagram<'_>) {
        let (board, node, from) = (&self.shared.board, &mut self.nodes[index], datagram.source);
        let received = match node.format.accept(datagram) {
            Ok(received) => received,
            Err(rejection) => {
                board.count_rejection(index, rejection);
                self.tell_once(index, rejection.kind(), EventKind::Rejected { from, rejection });
                return;
            }
        };
        board.count(index, Counter::AdvertsReceived);
        if received.advert.priority == 0 {
            board.count(index, Counter::ResignationsReceived);
        } else {
            node.resigned = false;
        }
        if node.format.version == Version::V3 && received.checksum == Checksum::Message {
            board.count(index, Counter::ChecksumOfMessage);
        }
        let own_address = from == node.format.source;
        if received.addresses_differ {
            board.count(index, Counter::AddressesDiffer);
            self.tell_once(index, Rejection::KINDS.len(), EventKind::AddressesDiffer { from });
        }
        if own_address {
            self.shared.board.count(index, Counter::OwnAddress);
            self.tell_once(index, Rejection::KINDS.len() + 1, EventKind::OwnAddress { from });
        }
        self.input(index, |machine, now, effects| machine.on_advert(from, &received.advert, now, effects));
    }

    fn read_mailbox(&mut self) {
        let shared = self.shared.clone();
        for (index, fault) in shared.faults.iter().enumerate() {
            let fault = decode_fault(fault.load(Ordering::Acquire));
            if fault != self.nodes[index].fault {
                self.nodes[index].fault = fault;
                match fault {
                    Some(cause) => {
                        self.input(index, |machine, now, effects| machine.on_fault(cause, now, effects));
                    }
                    None => self.input(index, Machine::on_recovered),
                }
            }
        }
        if let Some(linger) = shared.stop.get()
            && self.stop_at.is_none()
        {
            self.stop_at = Some(Monotonic::now() + *linger);
            for index in 0..self.nodes.len() {
                self.nodes[index].resigned = self.nodes[index].machine.state() == State::Master;
                self.input(index, Machine::stop);
            }
        }
    }

    /// Gives one input to one machine and does what it wants.
    fn input(&mut self, index: usize, input: impl FnOnce(&mut Machine, Monotonic, &mut Effects)) {
        let now = Monotonic::now();
        input(&mut self.nodes[index].machine, now, &mut self.effects);
        while let Some(effect) = self.effects.pop_front() {
            self.carry_out(index, effect, now);
        }
        self.deadlines[index] = self.nodes[index].machine.next_deadline().unwrap_or(NEVER);
    }

    fn carry_out(&mut self, index: usize, effect: Effect, now: Monotonic) {
        let (board, node) = (&self.shared.board, &mut self.nodes[index]);
        match effect {
            Effect::HoldLease { until } => {
                self.leases.hold(node.lease, until.nanos());
                board.set_lease(index, until);
            }
            Effect::ResignLease => {
                self.leases.resign(node.lease);
                board.set_lease(index, Monotonic::default());
                node.frames_left = 0;
            }
            Effect::SendAdvert { priority } => {
                // A thread that was stopped between the lease and here may be too late for it.
                let in_time = priority == 0 || Monotonic::now().nanos() < self.leases.until(node.lease);
                if !in_time || !self.advertise(index, priority) {
                    self.nodes[index].machine.on_advert_failed(now, &mut self.effects);
                }
            }
            Effect::Announce { repeat } => {
                if node.frames_left == 0 && !node.frames.is_empty() {
                    self.announcing.push_back(index);
                }
                node.next_frame = 0;
                node.frames_left = node.frames.len().saturating_mul(repeat as usize);
            }
            Effect::AddressesUp => self.tell(index, EventKind::AddressesUp),
            Effect::AddressesDown => self.tell(index, EventKind::AddressesDown),
            Effect::Transition { from, to, cause } => {
                board.set_state(index, to);
                if to == State::Master {
                    board.count(index, Counter::BecameMaster);
                }
                node.told = 0;
                self.tell(index, EventKind::Transition { from, to, cause });
            }
        }
    }

    /// True if it has left for at least one receiver.
    fn advertise(&mut self, index: usize, priority: u8) -> bool {
        let mut sent = false;
        for receiver in 0.. {
            let node = &mut self.nodes[index];
            let destination = match node.format.peers.get(receiver) {
                Some(peer) => *peer,
                None if receiver == 0 => GROUP,
                None => break,
            };
            // The kernel would choose one of its own in place of zero.
            node.identification = node.identification.checked_add(1).unwrap_or(1);
            self.packet.clear();
            node.format.encode(priority, destination, node.identification, &mut self.packet);
            match self.links[node.link].socket.send(&self.packet, destination) {
                Ok(()) => {
                    sent = true;
                    self.shared.board.count(index, Counter::AdvertsSent);
                }
                Err(error) => {
                    self.shared.board.count(index, Counter::SendFailures);
                    let error = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
                    let kind = EventKind::SendFailed { destination, error };
                    self.tell_once(index, Rejection::KINDS.len() + 2, kind);
                }
            }
        }
        if sent && priority == 0 {
            self.shared.board.count(index, Counter::ResignationsSent);
        }
        sent
    }

    /// Sends some of the frames that are left, so that adverts are never held up by a thousand of them.
    fn announce(&mut self) {
        for _ in 0..ANNOUNCE_BATCH {
            let Some(index) = self.announcing.front().copied() else { break };
            let node = &mut self.nodes[index];
            // Not without the lease, which may have run out meanwhile.
            let holds = Monotonic::now().nanos() < self.leases.until(node.lease);
            let Some((interface, frame)) =
                node.frames.get(node.next_frame).filter(|_| holds && node.frames_left > 0)
            else {
                node.frames_left = 0;
                self.announcing.pop_front();
                continue;
            };
            let counter = match self.frames.send(frame, interface) {
                Ok(()) => Counter::AnnouncementsSent,
                Err(_) => Counter::AnnouncementFailures,
            };
            self.shared.board.count(index, counter);
            node.frames_left -= 1;
            node.next_frame = (node.next_frame + 1) % node.frames.len();
        }
    }

    fn tell_once(&mut self, index: usize, bit: usize, kind: EventKind) {
        let told = &mut self.nodes[index].told;
        if *told & 1 << bit == 0 {
            *told |= 1 << bit;
            self.tell(index, kind);
        }
    }

    fn tell(&self, index: usize, kind: EventKind) {
        if self.events.try_send(Event { instance: index, kind }).is_err() {
            self.shared.board.count_lost_event();
        }
    }
}

impl Link {
    fn open(instance: &Instance, multicast: bool) -> Result<Self, StartError> {
        let socket = AdvertSocket::open(&instance.interface, instance.ifindex, multicast)
            .map_err(|source| StartError::Socket { interface: instance.interface.clone(), source })?;
        Ok(Self { ifindex: instance.ifindex, socket, nodes: Box::new([None; 256]) })
    }
}

impl Node {
    fn new(instance: &Instance, link: usize) -> Result<Self, StartError> {
        if instance.addresses.len() > MAX_ADDRESSES {
            let count = instance.addresses.len();
            return Err(StartError::TooManyAddresses { instance: instance.name.clone(), count });
        }
        if instance.lease >= maps::LEASE_SLOTS {
            let lease = instance.lease;
            return Err(StartError::LeaseOutOfRange { instance: instance.name.clone(), lease });
        }
        let frames = instance.addresses.iter().map(|address| {
            let frame = announce::gratuitous_arp(address.address, address.mac);
            arp_interface(address.ifindex).map(|interface| (interface, frame))
        });
        Ok(Self {
            machine: Machine::new(Settings {
                source: instance.source,
                version: instance.version,
                priority: instance.priority,
                advert_interval: instance.advert_interval,
                start_as_master: instance.start_as_master,
                preempt: instance.preempt,
                garp: instance.garp,
            }),
            format: Format {
                vrid: instance.vrid,
                version: instance.version,
                interval: instance.advert_interval,
                authentication: instance.authentication,
                checksum: match instance.version {
                    Version::V2 => Checksum::Message,
                    Version::V3 => Checksum::PseudoHeader,
                },
                source: instance.source,
                peers: instance.peers.clone(),
                addresses: instance.addresses.iter().map(|address| address.address).collect(),
            },
            lease: instance.lease,
            link,
            identification: 0,
            frames: frames.collect::<io::Result<_>>()?,
            next_frame: 0,
            frames_left: 0,
            fault: None,
            told: 0,
            resigned: false,
        })
    }
}
