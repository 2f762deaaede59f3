//! What does the VRRP thread do all day? It does nothing but VRRP: no locks, no disk, no names to resolve.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    net::IpAddr,
    sync::{Arc, atomic::Ordering, mpsc::Receiver},
    time::Duration,
};

use bytes::BytesMut;
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use socket2::SockAddr;
use tokio::sync::mpsc;

use super::{
    Event, EventKind, Instance, Options, Shared, Start, StartError, Word, clock, decode_fault,
    decode_standing, wall_clock,
};
use crate::{
    announce::{self, Frame},
    config::model::{Authentication, Family, Rules, Version},
    dataplane::lease::LeaseMap,
    vrrp::{
        FaultCause, Monotonic, State,
        auth::{AH_PROTOCOL, Guard, Proof},
        board::Counter,
        group::{self, Member, Order, Own},
        machine::{Effect, Effects, Machine, Settings},
        packet::{Checksum, Datagram, Format, MAX_DATAGRAM, PROTOCOL, Rejection},
        socket::{AdvertSocket, FrameSocket, HeartbeatSocket, Room, announced_on},
        track::Standing,
        ways::Ways,
    },
};

/// Owner of sockets, clock and leases.
pub(super) struct Engine {
    nodes: Vec<Node>,
    /// When each node's machine wants to be woken.
    deadlines: Vec<Monotonic>,
    links: Vec<Link>,
    pulses: Vec<Pulse>,
    frames: FrameSocket,
    leases: LeaseMap,
    events: mpsc::Sender<Event>,
    shared: Arc<Shared>,
    words: Receiver<Word>,
    epoll: Epoll,
    /// Room for all descriptors: no timer may fire because an advert waits in a socket that found no room here.
    ready: Vec<EpollEvent>,
    timer: TimerFd,
    effects: Effects,
    packet: BytesMut,
    received: Room,
    /// Nodes with frames left to send.
    announcing: VecDeque<usize>,
    /// Nodes of each sync group.
    groups: Vec<Vec<usize>>,
    /// All nodes have had their start: groups may look at them.
    started: bool,
    /// Until when nothing takes part.
    start_at: Option<Monotonic>,
    log_unknown_vrids: bool,
    /// Set once everything has been resigned: when to end at the latest.
    stop_at: Option<Monotonic>,
}

/// One interface, as one family sees it.
struct Link {
    ifindex: u32,
    family: Family,
    /// For plain adverts, in both directions, and to hear those behind an authentication header. None where there is
    /// no such interface: then the instance is in FAULT.
    sockets: Vec<AdvertSocket>,
    /// VRID to node.
    nodes: Box<[Option<usize>; 256]>,
    /// When the next announcement may leave.
    announce_at: Monotonic,
    /// VRIDs of others that were told of.
    strangers: Box<[bool; 256]>,
}

/// One heartbeat interface.
struct Pulse {
    ifindex: u32,
    socket: HeartbeatSocket,
    /// VRID to node, and which way of that node this is.
    nodes: Box<[Option<(usize, usize)>; 256]>,
}

/// One instance.
struct Node {
    machine: Machine,
    format: Format,
    guard: Guard,
    rules: Rules,
    /// Who sent the last advert that counted.
    heard: Option<IpAddr>,
    /// When it may be said again that a master of lower priority was heard.
    lower_at: Monotonic,
    announce_interval: Duration,
    lease: u32,
    group: Option<usize>,
    link: usize,
    /// Indexes of its heartbeat interfaces.
    pulses: Vec<usize>,
    /// Of adverts there.
    pulse_format: Format,
    ways: Ways,
    /// As told.
    silent: u32,
    /// The master has heard nothing of what we were meanwhile: it is told when its adverts come over `interface` again.
    owes_farewell: bool,
    identification: u16,
    frames: Vec<(SockAddr, Frame)>,
    next_frame: usize,
    frames_left: usize,
    fault: Option<FaultCause>,
    /// What was told since the last transition, one bit for each kind of remark.
    told: u32,
    /// When a claim was told last.
    told_claim: Option<Monotonic>,
    /// It has handed over and not heard of the new master yet.
    resigned: bool,
}

/// Longest run of one kind of work before the others get their turn. The receive buffer holds fewer adverts than
/// this, so a timer never fires while an advert that would have stopped it lies unread.
const RECEIVE_BATCH: usize = 4096;
/// Between two words about masters of lower priority.
const LOWER_PAUSE: Duration = Duration::from_secs(10);
const ANNOUNCE_BATCH: usize = 64;

/// A claim that goes on is told again after this.
const CLAIM_PAUSE: Duration = Duration::from_secs(60);

/// After a stop the program forwards on for so long when the new master was heard: its announcements follow its first
/// advert, and packets may be on their way.
const AFTERGLOW: Duration = Duration::from_millis(500);

const TIMER: u64 = u64::MAX;
const BELL: u64 = u64::MAX - 1;
/// With the index of a heartbeat interface.
const PULSE: u64 = 1 << 32;
const NEVER: Monotonic = Monotonic::from_nanos(u64::MAX);

impl Engine {
    pub(super) fn new(
        instances: &[Instance],
        starts: &[Start],
        options: Options,
        leases: LeaseMap,
        events: mpsc::Sender<Event>,
        shared: Arc<Shared>,
        words: Receiver<Word>,
    ) -> Result<Self, StartError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(io::Error::from)?;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)
                .map_err(io::Error::from)?;
        let readable = |data| EpollEvent::new(EpollFlags::EPOLLIN, data);
        epoll.add(&timer, readable(TIMER)).map_err(io::Error::from)?;
        epoll.add(&shared.bell, readable(BELL)).map_err(io::Error::from)?;
        let mut links: Vec<Link> = Vec::new();
        let mut pulses = Vec::new();
        let mut nodes = Vec::with_capacity(instances.len());
        for (index, instance) in instances.iter().enumerate() {
            let link = match links.iter().position(|link| link.is_of(instance)) {
                Some(link) => link,
                None => {
                    let is_ah = |it: &Instance| matches!(it.authentication, Authentication::Ah(_));
                    let mut link = Link::open(instance)?;
                    if instances.iter().any(|other| is_ah(other) && link.is_of(other)) {
                        link.add_socket(instance, AH_PROTOCOL)?;
                    }
                    let here = instances.iter().filter(|other| other.peers.is_empty() && link.is_of(other));
                    for group in here.map(|other| other.multicast).collect::<BTreeSet<_>>() {
                        link.join(instance, group)?;
                    }
                    for socket in &link.sockets {
                        epoll.add(socket, readable(links.len() as u64)).map_err(io::Error::from)?;
                    }
                    links.push(link);
                    links.len() - 1
                }
            };
            links[link].nodes[usize::from(instance.vrid.get())] = Some(index);
            let untracked = Standing { priority: instance.priority, fault: None };
            let start = starts.get(index).cloned().unwrap_or_else(|| Start {
                standing: untracked,
                handed_over: false,
                numbers: Arc::default(),
            });
            let mut node = Node::new(instance, &start, link)?;
            if start.handed_over {
                node.machine.hand_over(None, clock(), &mut Effects::new());
            }
            shared.board.set_priority(index, node.machine.priority().get());
            shared.board.set_handed_over(index, start.handed_over);
            for (ifindex, way) in instance.heartbeats.iter().zip(1..) {
                let Some(ifindex) = ifindex else { continue };
                let pulse = match pulses.iter().position(|pulse: &Pulse| pulse.ifindex == *ifindex) {
                    Some(pulse) => pulse,
                    None => {
                        let pulse = Pulse::open(instance, *ifindex)?;
                        epoll
                            .add(&pulse.socket, readable(PULSE | pulses.len() as u64))
                            .map_err(io::Error::from)?;
                        pulses.push(pulse);
                        pulses.len() - 1
                    }
                };
                pulses[pulse].join(instance)?;
                pulses[pulse].nodes[usize::from(instance.vrid.get())] = Some((index, way));
                node.pulses.push(pulse);
            }
            nodes.push(node);
        }
        Ok(Self {
            deadlines: vec![NEVER; nodes.len()],
            announcing: VecDeque::with_capacity(nodes.len()),
            ready: vec![
                EpollEvent::empty();
                links.iter().map(|link| link.sockets.len()).sum::<usize>() + pulses.len() + 2
            ],
            groups: groups(instances),
            started: false,
            nodes,
            links,
            pulses,
            frames: FrameSocket::open().map_err(StartError::Announcements)?,
            leases,
            events,
            shared,
            words,
            epoll,
            timer,
            effects: Effects::with_capacity(16),
            packet: BytesMut::with_capacity(MAX_DATAGRAM),
            received: Room::new(),
            start_at: (!options.startup_delay.is_zero()).then(|| clock() + options.startup_delay),
            log_unknown_vrids: options.log_unknown_vrids,
            stop_at: None,
        })
    }

    /// Until it is told to stop or to leave.
    pub(super) fn run(&mut self) -> io::Result<()> {
        let lease = |engine: &Self, index: usize| {
            Monotonic::from_nanos(engine.leases.until(engine.nodes[index].lease))
        };
        // Who is master still has not just been started.
        if (0..self.nodes.len()).any(|index| lease(self, index) > clock()) {
            self.start_at = None;
        }
        for index in 0..self.nodes.len() {
            let lease = lease(self, index);
            let fault = self.nodes[index].fault;
            // What has no result yet holds a start up, but does not end a lease that runs.
            if self.start_at.is_none() && (fault.is_none() || lease > clock()) {
                self.input(index, |machine, now, effects| machine.on_start(lease, now, effects));
            }
            self.fault(index, fault);
        }
        for index in 0..self.nodes.len() {
            self.join_masters(index);
        }
        self.started = true;
        (0..self.groups.len()).for_each(|group| self.settle(group));
        loop {
            let announce_at = self.announce();
            if self.set_timer(announce_at)? {
                return Ok(());
            }
            let is_due = announce_at.is_some_and(|at| at <= clock());
            let timeout = if is_due { EpollTimeout::ZERO } else { EpollTimeout::NONE };
            let count = match self.epoll.wait(&mut self.ready, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut rung = false;
            // Adverts before timers and before what others say: of two things that are due, the one that came in may
            // cancel the other.
            for index in 0..count {
                match self.ready[index].data() {
                    TIMER => {}
                    BELL => rung = true,
                    pulse if pulse & PULSE != 0 => self.feel((pulse & !PULSE) as usize),
                    link => self.receive(link as usize),
                }
            }
            if rung {
                let _ = self.shared.bell.read();
                if self.shared.leave.load(Ordering::Acquire) {
                    return Ok(());
                }
                self.read_mailbox();
            }
            self.fire();
            if self.start_at.is_some_and(|at| at <= clock()) {
                self.start_at = None;
                for index in 0..self.nodes.len() {
                    self.fault(index, self.nodes[index].fault);
                }
            }
        }
    }

    /// Arms the timer for what comes next. True when there is nothing left to do.
    fn set_timer(&self, announce_at: Option<Monotonic>) -> io::Result<bool> {
        let mut next =
            self.deadlines.iter().copied().chain(announce_at).chain(self.start_at).min().unwrap_or(NEVER);
        if let Some(stop_at) = self.stop_at {
            if clock() >= stop_at {
                return Ok(true);
            }
            next = next.min(stop_at);
        }
        arm(&self.timer, next)?;
        Ok(false)
    }

    fn fire(&mut self) {
        let now = clock();
        for index in 0..self.nodes.len() {
            if self.deadlines[index] <= now {
                self.input(index, Machine::on_timer);
            }
        }
    }

    fn receive(&mut self, link: usize) {
        let mut room = std::mem::take(&mut self.received);
        for socket in 0..self.links[link].sockets.len() {
            for _ in 0..RECEIVE_BATCH {
                let Some(datagram) = self.links[link].sockets[socket].receive(&mut room) else { break };
                let node = datagram.and_then(|datagram| {
                    let vrid = datagram.vrid()?;
                    Some((self.links[link].nodes[usize::from(vrid)]?, datagram))
                });
                match node {
                    Some((index, datagram)) => self.hear(index, 0, datagram),
                    None if datagram.is_some_and(|it| self.is_felt(self.links[link].ifindex, &it)) => {}
                    None => self.wonder(link, datagram.and_then(|it| Some((it.vrid()?, it.source)))),
                }
            }
        }
        self.received = room;
    }

    /// What comes over a heartbeat interface; on one that is an instance's `interface` too, other sockets get the rest.
    fn feel(&mut self, pulse: usize) {
        let mut room = std::mem::take(&mut self.received);
        for _ in 0..RECEIVE_BATCH {
            let Some(datagram) = self.pulses[pulse].socket.receive(&mut room) else { break };
            let Some(datagram) = datagram else { continue };
            let node = datagram.vrid().and_then(|vrid| self.pulses[pulse].nodes[usize::from(vrid)]);
            if let Some((index, way)) = node {
                self.hear(index, way, datagram);
            }
        }
        self.received = room;
    }

    fn is_felt(&self, ifindex: u32, datagram: &Datagram<'_>) -> bool {
        let pulse = self.pulses.iter().find(|pulse| pulse.ifindex == ifindex);
        let node = pulse.zip(datagram.vrid()).and_then(|(pulse, vrid)| pulse.nodes[usize::from(vrid)]);
        node.is_some()
    }

    /// What is of no instance here; with VRID and source if it has them.
    fn wonder(&mut self, link: usize, stranger: Option<(u8, IpAddr)>) {
        self.shared.board.count_stray();
        let beside = self.nodes.iter().position(|node| node.link == link);
        if let (true, Some((vrid, from)), Some(beside)) = (self.log_unknown_vrids, stranger, beside)
            && !std::mem::replace(&mut self.links[link].strangers[usize::from(vrid)], true)
        {
            self.tell(beside, EventKind::UnknownVrid { from, vrid });
        }
    }

    fn hear(&mut self, index: usize, way: usize, datagram: Datagram<'_>) {
        let (board, node, from) = (&self.shared.board, &mut self.nodes[index], datagram.source);
        let Node { format, pulse_format, guard, ways, machine, rules, .. } = node;
        let datagram = guard.open(datagram);
        let expected = if way == 0 { &*format } else { &*pulse_format };
        let (identification, now) = (datagram.identification, clock());
        // The costly part last. A copy is nothing new, and would look like a replay.
        let received = match expected.accept(&datagram) {
            Ok(received) if ways.is_copy(way, from, identification, received.advert.interval, now) => {
                ways.on_copy(way);
                return self.note_silence(index, way, from);
            }
            Ok(received) => guard.check(format, &datagram, wall_clock()).and_then(|()| {
                let is_deaf = rules.owner_ignore_adverts && machine.priority().is_owner();
                if is_deaf { Err(Rejection::Owner) } else { Ok(received) }
            }),
            Err(rejection) => Err(rejection),
        };
        let received = match received {
            Ok(received) => received,
            Err(rejection) => {
                board.count_rejection(index, rejection);
                self.tell(index, EventKind::Rejected { from, rejection });
                return;
            }
        };
        node.ways.on_advert(way, from, identification, now);
        self.note_silence(index, way, from);
        let board = &self.shared.board;
        board.count(index, Counter::AdvertsReceived);
        if received.advert.priority == 0 {
            board.count(index, Counter::ResignationsReceived);
        } else {
            self.succeeded(index);
        }
        let (board, node) = (&self.shared.board, &mut self.nodes[index]);
        if matches!((&node.guard, &datagram.proof), (Guard::Signature(_), Proof::None)) {
            board.count(index, Counter::Unsigned);
        }
        if node.format.version == Version::V3 && received.checksum == Checksum::Message {
            board.count(index, Counter::ChecksumOfMessage);
        }
        let own_address = from == node.format.source;
        let is_known = node.rules.skip_check_adv_addr && node.heard == Some(from);
        node.heard = Some(from);
        if received.addresses_differ && !is_known {
            board.count(index, Counter::AddressesDiffer);
            self.tell(index, EventKind::AddressesDiffer { from });
        }
        if own_address {
            self.shared.board.count(index, Counter::OwnAddress);
            self.tell(index, EventKind::OwnAddress { from });
        }
        let was_master = self.nodes[index].machine.state() == State::Master;
        let priority = self.nodes[index].machine.priority().get();
        self.input(index, |machine, now, effects| machine.on_advert(from, &received.advert, now, effects));
        let now = clock();
        let node = &mut self.nodes[index];
        // Its farewell went over `interface`, where nothing may arrive.
        node.owes_farewell |= way > 0 && was_master;
        let theirs = (received.advert.priority, from);
        if node.machine.state() == State::Master
            && received.advert.priority > 0
            && theirs < (priority, node.format.source)
            && now >= node.lower_at
        {
            node.lower_at = now + LOWER_PAUSE;
            self.tell(index, EventKind::LowerPriority { from, priority });
        }
    }

    /// A backup that hears a master over some of its interfaces only says so.
    fn note_silence(&mut self, index: usize, way: usize, from: IpAddr) {
        let node = &mut self.nodes[index];
        if node.machine.state() != State::Backup {
            node.ways.forget();
        } else if way == 0 && std::mem::take(&mut node.owes_farewell) {
            self.carry_out(index, Effect::Farewell { peer: from }, clock());
        }
        let node = &mut self.nodes[index];
        let (ways, before) = (node.ways.silent(), std::mem::replace(&mut node.silent, node.ways.silent()));
        node.owes_farewell |= ways & 1 == 1;
        if ways != before {
            self.shared.board.set_silent(index, ways);
            self.tell(index, EventKind::Silent { ways, before });
        }
    }

    fn read_mailbox(&mut self) {
        let shared = self.shared.clone();
        for (index, (fault, standing)) in shared.faults.iter().zip(&shared.standings).enumerate() {
            if self.stop_at.is_some() {
                break;
            }
            let standing = decode_standing(standing.load(Ordering::Acquire));
            if standing.priority != self.nodes[index].machine.standing() {
                let priority = standing.priority;
                self.input(index, |machine, now, effects| machine.on_priority(priority, now, effects));
                let priority = self.nodes[index].machine.priority().get();
                shared.board.set_priority(index, priority);
                let state = self.nodes[index].machine.state();
                if matches!(state, State::Master | State::Backup) {
                    self.tell(index, EventKind::Priority { state, priority });
                }
            }
            let fault = decode_fault(fault.load(Ordering::Acquire)).or(standing.fault);
            if fault != self.nodes[index].fault {
                self.nodes[index].fault = fault;
                self.fault(index, fault);
            }
        }
        while let Ok(word) = self.words.try_recv() {
            self.heed(&word);
        }
        if let Some(linger) = shared.stop.get()
            && self.stop_at.is_none()
        {
            let mut resigned = false;
            for index in 0..self.nodes.len() {
                self.nodes[index].resigned = self.nodes[index].machine.state() == State::Master;
                resigned |= self.nodes[index].resigned;
                self.input(index, Machine::stop);
            }
            self.stop_at = Some(if resigned { clock() + *linger } else { clock() });
        }
    }

    /// A master was heard. When all are that took over from us, there is no more to wait for than that the
    /// neighbours believe their announcements.
    fn succeeded(&mut self, index: usize) {
        if std::mem::take(&mut self.nodes[index].resigned)
            && !self.nodes.iter().any(|node| node.resigned)
            && let Some(stop_at) = &mut self.stop_at
        {
            *stop_at = (*stop_at).min(clock() + AFTERGLOW);
        }
    }

    fn heed(&mut self, word: &Word) {
        match word {
            _ if self.stop_at.is_some() => {}
            Word::HandOver { instances, to } => {
                self.move_together(instances, |machine, now, effects| machine.hand_over(*to, now, effects));
            }
            Word::TakePart { instances } => self.move_together(instances, Machine::take_part),
            Word::Claimed { instance, address, mac } if *instance < self.nodes.len() => {
                self.claimed(*instance, *address, *mac);
            }
            Word::Claimed { .. } => {}
        }
    }

    /// All members of a sync group say their farewell before the group settles.
    fn move_together(
        &mut self,
        instances: &[usize],
        input: impl Fn(&mut Machine, Monotonic, &mut Effects) + Copy,
    ) {
        let count = self.nodes.len();
        let instances = || instances.iter().copied().filter(|index| *index < count);
        for index in instances() {
            self.apply(index, input);
            let machine = &self.nodes[index].machine;
            self.shared.board.set_priority(index, machine.priority().get());
            self.shared.board.set_handed_over(index, machine.handed_over());
        }
        for index in instances() {
            self.input(index, |_, _, _| {});
        }
    }

    fn claimed(&mut self, index: usize, address: IpAddr, mac: [u8; 6]) {
        let mut contradicts = false;
        self.input(index, |machine, now, effects| contradicts = machine.on_claim(now, effects));
        if !contradicts {
            return;
        }
        let now = clock();
        self.shared.board.count(index, Counter::Claims);
        self.shared.board.set_claim(index, mac, now);
        let told = &mut self.nodes[index].told_claim;
        if told.is_none_or(|at| now >= at + CLAIM_PAUSE) {
            *told = Some(now);
            let priority = self.nodes[index].machine.priority().get();
            self.tell(index, EventKind::Claimed { address, mac, priority });
        }
    }

    fn fault(&mut self, index: usize, fault: Option<FaultCause>) {
        if fault == Some(FaultCause::Removed)
            && let Some(group) = self.nodes[index].group.take()
        {
            // The others go on, perhaps in a successor of this thread.
            self.groups[group].retain(|member| *member != index);
        }
        match fault {
            None if self.start_at.is_some() => {}
            // A member of a sync group recovers with the others.
            None if self.nodes[index].group.is_some() => self.input(index, |_, _, _| {}),
            None => self.input(index, Machine::on_recovered),
            // It waits in INIT, or goes on with the lease that it has adopted.
            Some(FaultCause::Untried) => {}
            Some(cause) => self.input(index, |machine, now, effects| machine.on_fault(cause, now, effects)),
        }
    }

    /// Gives one input to one machine and does what it wants; its group follows.
    fn input(&mut self, index: usize, input: impl FnOnce(&mut Machine, Monotonic, &mut Effects)) {
        self.apply(index, input);
        if let Some(group) = self.nodes[index].group {
            self.settle(group);
        }
    }

    /// While a lease of its sync group runs, no peer's group can have taken over: a member without a lease, new or
    /// a moment too late, is master with the others.
    fn join_masters(&mut self, index: usize) {
        let Some(group) = self.nodes[index].group else { return };
        let state = |index: &usize| self.nodes[*index].machine.state();
        if state(&index) == State::Backup && self.groups[group].iter().any(|it| state(it) == State::Master) {
            self.apply(index, |machine, now, effects| machine.obey(Order::TakeOver, now, effects));
        }
    }

    /// Tells the members of a sync group what they have to do, until they agree.
    fn settle(&mut self, group: usize) {
        if !self.started || self.stop_at.is_some() {
            return;
        }
        let members = &self.groups[group];
        // More orders than members have states would be a circle; the thread must not turn in it.
        for _ in 0..8 * members.len() {
            let (now, is_held) = (clock(), self.start_at.is_some());
            let members = self.groups[group].iter().map(|index| self.nodes[*index].member(now, is_held));
            let Some((member, order)) = group::next(members) else { return };
            let index = self.groups[group][member];
            self.apply(index, |machine, now, effects| machine.obey(order, now, effects));
        }
    }

    fn apply(&mut self, index: usize, input: impl FnOnce(&mut Machine, Monotonic, &mut Effects)) {
        let now = clock();
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
                // A thread that was stopped on its way here may be too late for the lease that this would earn. Who is no
                // master any more claims nothing by its last word.
                let in_time = priority == 0 || node.machine.lease().is_none_or(|lease| clock() < lease);
                if !in_time || !self.advertise(index, priority) {
                    self.nodes[index].machine.on_advert_failed(now, &mut self.effects);
                }
            }
            Effect::Farewell { peer } => {
                node.identification = node.identification.checked_add(1).unwrap_or(1);
                if self.advertise_to(index, 0, peer) {
                    self.shared.board.count(index, Counter::ResignationsSent);
                }
            }
            Effect::Announce { repeat } => {
                if !self.announcing.contains(&index) {
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
                node.ways.forget();
                node.silent = 0;
                board.set_silent(index, 0);
                let priority = node.machine.priority().get();
                self.tell(index, EventKind::Transition { from, to, cause, priority });
            }
        }
    }

    /// True if it has left for at least one receiver.
    fn advertise(&mut self, index: usize, priority: u8) -> bool {
        let mut sent = false;
        let node = &mut self.nodes[index];
        // One for all copies: so their receivers know them. The kernel would choose one of its own in place of zero.
        node.identification = node.identification.checked_add(1).unwrap_or(1);
        for receiver in 0..self.nodes[index].format.peers.len().max(1) {
            let node = &self.nodes[index];
            let destination = node.format.peers.get(receiver).copied();
            let destination = destination.unwrap_or(node.format.multicast);
            sent |= self.advertise_to(index, priority, destination);
        }
        // A master whose own interface takes no adverts says nothing elsewhere, lest its lease end unnoticed. Its
        // farewell has to arrive all the more.
        if sent || priority == 0 {
            sent |= self.beat(index, priority);
        }
        if sent && priority == 0 {
            self.shared.board.count(index, Counter::ResignationsSent);
        }
        sent
    }

    /// Over the heartbeat interfaces, by multicast.
    fn beat(&mut self, index: usize, priority: u8) -> bool {
        let mut sent = false;
        for pulse in 0..self.nodes[index].pulses.len() {
            let node = &mut self.nodes[index];
            let (Some(pulse), destination) = (node.pulses.get(pulse), node.format.multicast) else {
                continue;
            };
            // A multicast advert is its own copy, to the last byte of what authenticates it.
            if !node.format.peers.is_empty() {
                self.packet.clear();
                node.pulse_format.encode(priority, destination, node.identification, &mut self.packet);
                node.guard.seal(&node.pulse_format, &mut self.packet, wall_clock());
            }
            match self.pulses[*pulse].socket.send(&self.packet, destination) {
                Ok(()) => sent = true,
                Err(error) => self.send_failed(index, destination, &error),
            }
        }
        sent
    }

    fn send_failed(&mut self, index: usize, destination: IpAddr, error: &io::Error) {
        self.shared.board.count(index, Counter::SendFailures);
        let error = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
        self.tell(index, EventKind::SendFailed { destination, error });
    }

    fn advertise_to(&mut self, index: usize, priority: u8, destination: IpAddr) -> bool {
        let node = &mut self.nodes[index];
        self.packet.clear();
        node.format.encode(priority, destination, node.identification, &mut self.packet);
        node.guard.seal(&node.format, &mut self.packet, wall_clock());
        let [socket, ..] = self.links[node.link].sockets.as_slice() else { return false };
        match socket.send(&self.packet, destination) {
            Ok(()) => self.shared.board.count(index, Counter::AdvertsSent),
            Err(error) => {
                self.send_failed(index, destination, &error);
                return false;
            }
        }
        true
    }

    /// Sends some of the frames that are left, so that adverts are never held up by a thousand of them. Returns when
    /// the next one may leave.
    fn announce(&mut self) -> Option<Monotonic> {
        for _ in 0..ANNOUNCE_BATCH {
            let now = clock();
            let may = |index: &usize| self.links[self.nodes[*index].link].announce_at <= now;
            let Some(place) = self.announcing.iter().position(may) else { break };
            self.announcing.rotate_left(place);
            let Some(index) = self.announcing.front().copied() else { break };
            let node = &mut self.nodes[index];
            // Not without the lease, which may have run out meanwhile.
            let holds = now.nanos() < self.leases.until(node.lease);
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
            self.links[node.link].announce_at = now + node.announce_interval;
        }
        self.announcing.iter().map(|index| self.links[self.nodes[*index].link].announce_at).min()
    }

    /// Transitions always, remarks once until the next transition.
    fn tell(&mut self, index: usize, kind: EventKind) {
        let remark = match kind {
            EventKind::Transition { .. }
            | EventKind::AddressesUp
            | EventKind::AddressesDown
            | EventKind::Silent { .. }
            | EventKind::Claimed { .. }
            | EventKind::LowerPriority { .. }
            | EventKind::Priority { .. }
            | EventKind::UnknownVrid { .. } => None,
            EventKind::Rejected { rejection, .. } => Some(rejection.kind()),
            EventKind::AddressesDiffer { .. } => Some(Rejection::KINDS.len()),
            EventKind::OwnAddress { .. } => Some(Rejection::KINDS.len() + 1),
            EventKind::SendFailed { .. } => Some(Rejection::KINDS.len() + 2),
        };
        if let Some(remark) = remark {
            let told = &mut self.nodes[index].told;
            if *told & 1 << remark != 0 {
                return;
            }
            *told |= 1 << remark;
        }
        if self.events.try_send(Event { instance: index, kind }).is_err() {
            self.shared.board.count_lost_event();
        }
    }
}

impl Link {
    fn open(instance: &Instance) -> Result<Self, StartError> {
        let (ifindex, family) = (instance.ifindex, instance.family());
        let mut link = Self {
            ifindex,
            family,
            sockets: Vec::new(),
            nodes: Box::new([None; 256]),
            announce_at: Monotonic::default(),
            strangers: Box::new([false; 256]),
        };
        link.add_socket(instance, PROTOCOL)?;
        Ok(link)
    }

    fn add_socket(&mut self, instance: &Instance, protocol: u8) -> Result<(), StartError> {
        if instance.absent.is_some() {
            return Ok(());
        }
        let socket = AdvertSocket::open(&instance.interface, self.ifindex, self.family, protocol);
        self.sockets.push(socket.map_err(|source| Self::error(instance, source))?);
        Ok(())
    }

    fn is_of(&self, instance: &Instance) -> bool {
        (self.ifindex, self.family) == (instance.ifindex, instance.family())
    }

    fn join(&self, instance: &Instance, group: IpAddr) -> Result<(), StartError> {
        let joined = self.sockets.iter().try_for_each(|socket| socket.join(group));
        joined.map_err(|source| Self::error(instance, source))
    }

    fn error(instance: &Instance, source: io::Error) -> StartError {
        StartError::Socket { interface: instance.interface.clone(), source }
    }
}

impl Pulse {
    fn open(instance: &Instance, ifindex: u32) -> Result<Self, StartError> {
        let socket = HeartbeatSocket::open(ifindex).map_err(|source| Self::error(instance, source))?;
        Ok(Self { ifindex, socket, nodes: Box::new([None; 256]) })
    }

    fn join(&self, instance: &Instance) -> Result<(), StartError> {
        self.socket.join(instance.multicast).map_err(|source| Self::error(instance, source))
    }

    fn error(instance: &Instance, source: io::Error) -> StartError {
        StartError::Heartbeat { instance: instance.name.clone(), source }
    }
}

impl Node {
    fn member(&self, now: Monotonic, is_held: bool) -> Member {
        Member {
            state: self.machine.state(),
            wants_master: self.machine.wants_master(now),
            own: match self.fault {
                None if is_held => Own::Waiting,
                None => Own::Ready,
                Some(FaultCause::Untried) => Own::Waiting,
                Some(_) => Own::Failed,
            },
        }
    }

    fn new(instance: &Instance, start: &Start, link: usize) -> io::Result<Self> {
        let standing = start.standing;
        let frames = instance.addresses.iter().map(|address| {
            let frame = announce::announcement(address.address, address.mac, address.router);
            announced_on(address.ifindex, Family::of(address.address)).map(|interface| (interface, frame))
        });
        let format = Format {
            vrid: instance.vrid,
            version: instance.version,
            interval: instance.advert_interval,
            authentication: instance.authentication,
            checksum: match (instance.family(), instance.version) {
                (Family::V6, _) => Checksum::PseudoHeader,
                (Family::V4, Version::V2) => Checksum::Message,
                (Family::V4, Version::V3) if instance.checksum_of_message => Checksum::Message,
                (Family::V4, Version::V3) => Checksum::PseudoHeader,
            },
            source: instance.source,
            peers: instance.peers.clone(),
            multicast: instance.multicast,
            ttl: if instance.peers.is_empty() { 255 } else { instance.unicast_ttl },
            ttl_limits: instance.ttl_limits.clone(),
            addresses: instance.advertised().collect(),
        };
        Ok(Self {
            machine: Machine::new(Settings {
                source: instance.source,
                version: instance.version,
                priority: standing.priority,
                advert_interval: instance.advert_interval,
                start_as_master: instance.start_as_master,
                preempt: instance.preempt,
                garp: instance.garp,
                rules: instance.rules,
                down_timer_adverts: instance.down_timer_adverts,
                grouped: instance.group.is_some(),
            }),
            guard: Guard::new(&format, instance.signing.as_ref(), start.numbers.clone(), wall_clock()),
            pulse_format: Format { peers: Vec::new(), ..format.clone() },
            format,
            rules: instance.rules,
            heard: None,
            lower_at: Monotonic::default(),
            announce_interval: instance.announce_interval,
            pulses: Vec::new(),
            ways: Ways::new(1 + instance.heartbeats.len(), instance.down_timer_adverts),
            silent: 0,
            owes_farewell: false,
            lease: instance.lease,
            group: instance.group,
            link,
            identification: 0,
            frames: frames.collect::<io::Result<_>>()?,
            next_frame: 0,
            frames_left: 0,
            fault: instance.absent.or(standing.fault),
            told: 0,
            told_claim: None,
            resigned: false,
        })
    }
}

fn groups(instances: &[Instance]) -> Vec<Vec<usize>> {
    let count = instances.iter().filter_map(|instance| instance.group).max().map_or(0, |last| last + 1);
    let members = |group| (0..instances.len()).filter(move |index| instances[*index].group == Some(group));
    (0..count).map(|group| members(group).collect()).collect()
}

/// Lets the timer fire at `next`, at once if that has passed, and takes back that it has fired before.
fn arm(timer: &TimerFd, next: Monotonic) -> nix::Result<()> {
    if next == NEVER {
        return timer.unset();
    }
    let next = Duration::from_nanos(next.nanos().max(1)); // zero would disarm it
    let next = TimeSpec::from_duration(next);
    timer.set(Expiration::OneShot(next), TimerSetTimeFlags::TFD_TIMER_ABSTIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_takes_every_point_in_time() {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK).unwrap();
        let fires = |next| {
            arm(&timer, next).unwrap();
            timer.wait().is_ok()
        };
        assert!(fires(Monotonic::default()));
        assert!(fires(Monotonic::from_nanos(clock().nanos() - 1)));
        assert!(!fires(Monotonic::from_nanos(u64::MAX - 1)));
        arm(&timer, Monotonic::default()).unwrap();
        assert!(!fires(NEVER), "what has fired is taken back");
    }
}
