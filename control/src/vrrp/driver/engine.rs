//! What does the VRRP thread do all day? It does nothing but VRRP: no locks, no disk, no names to resolve.

use std::{
    collections::BTreeSet,
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

mod deadlines;
mod node;
mod receive;
mod send;

use self::{
    deadlines::{Deadlines, NEVER},
    node::{Link, Node, Pulse},
};
use super::{
    Event, EventKind, Instance, Options, Shared, Start, StartError, Word, clock, decode_fault,
    decode_standing,
};
use crate::{
    announce::{self, Frame},
    clock::since_epoch,
    config::model::{Authentication, Family, OldChecksum, Rules, Version},
    dataplane::lease::LeaseMap,
    vrrp::{
        FaultCause, Monotonic, State,
        auth::{AH_PROTOCOL, Guard, Proof},
        board::Counter,
        group::{self, Member, Order, Own},
        machine::{Effect, Effects, Machine, Settings},
        packet::{Checksum, Datagram, Format, MAX_DATAGRAM, PROTOCOL, Rejection},
        socket::{AdvertSocket, Envelope, FrameSocket, HeartbeatSocket, Room, announced_on},
        ways::Ways,
    },
};

/// Owner of sockets, clock and leases.
pub(super) struct Engine {
    nodes: Vec<Node>,
    /// When each node's machine wants to be woken.
    deadlines: Deadlines,
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
    /// When each link may send its next announcement.
    announcing: Deadlines,
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
        // Before any socket is open: what is heard there is newer than what they remember of a predecessor.
        let mut nodes = instances.iter().zip(starts).map(Node::new).collect::<io::Result<Vec<_>>>()?;
        for ((index, instance), node) in instances.iter().enumerate().zip(&mut nodes) {
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
            links[link].announcing.reserve(1);
            node.link = link;
            shared.board.set_priority(index, node.machine.priority().get());
            shared.board.set_handed_over(index, node.machine.handed_over());
            for (ifindex, way) in instance.heartbeats.iter().zip(1..) {
                let Some(ifindex) = ifindex else { continue };
                let is_shared = |pulse: &Pulse| pulse.is_at(*ifindex, instance.family());
                let pulse = match pulses.iter().position(is_shared) {
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
        }
        Ok(Self {
            deadlines: Deadlines::new(nodes.len()),
            announcing: Deadlines::new(links.len()),
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
            self.announce();
            if self.set_timer()? {
                return Ok(());
            }
            let timeout =
                if self.announcing.earliest() <= clock() { EpollTimeout::ZERO } else { EpollTimeout::NONE };
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
    fn set_timer(&self) -> io::Result<bool> {
        let mut next = self.deadlines.earliest().min(self.announcing.earliest());
        next = next.min(self.start_at.unwrap_or(NEVER));
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
        // No more than once each: what is due again meanwhile comes after the adverts that have come in.
        for _ in 0..self.nodes.len() {
            let Some(index) = self.deadlines.due(now) else { break };
            self.input(index, Machine::on_timer);
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
            let is_removed = shared.removed[index].load(Ordering::Acquire);
            let fault = is_removed
                .then_some(FaultCause::Removed)
                .or(decode_fault(fault.load(Ordering::Acquire)))
                .or(standing.fault);
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
        let node = &mut self.nodes[index];
        if fault == Some(FaultCause::Removed) {
            // The others go on, perhaps in a successor of this thread.
            node.left_group = node.group.take();
            if let Some(group) = node.left_group {
                self.groups[group].retain(|member| *member != index);
            }
        } else if let Some(group) = node.left_group.take() {
            node.group = Some(group);
            self.groups[group].push(index);
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
        self.deadlines.set(index, self.nodes[index].machine.next_deadline().unwrap_or(NEVER));
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
                // A thread that was stopped on its way here may be too late. Who is no master any more claims nothing by
                // its last word.
                let in_time =
                    priority == 0 || node.machine.advert_deadline().is_none_or(|deadline| clock() < deadline);
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
                // From where it is: who is provoked again and again must not announce its first address only.
                node.frames_left = node.frames.len().saturating_mul(repeat as usize);
                if !std::mem::replace(&mut node.is_announcing, true) {
                    let link = &mut self.links[node.link];
                    link.announcing.push_back(index);
                    self.announcing.set(node.link, link.announce_at);
                }
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
            EventKind::OldChecksum { .. } => Some(Rejection::KINDS.len() + 3),
            EventKind::IntervalDiffers { .. } => Some(Rejection::KINDS.len() + 4),
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
