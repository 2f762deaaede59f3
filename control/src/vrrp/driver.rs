//! How does the rest of the daemon start, watch and stop VRRP?
//!
//! One real-time thread runs all machines. What takes longer than an advert (addresses, logs, scripts) leaves it as
//! an event; what it has to know lies in a mailbox of atomics, where the latest word counts and nothing overflows.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use lvs_ebpf_common::maps;
use nix::{
    errno::Errno,
    sys::eventfd::{EfdFlags, EventFd},
};
use tokio::sync::mpsc;

use super::{
    Cause, FaultCause, Monotonic, State,
    auth::Numbers,
    board::Board,
    packet::{Rejection, max_addresses},
    realtime,
    track::Standing,
};
use crate::{
    clock::monotonic,
    config::model::{
        Authentication, Family, Garp, OldChecksum, Preempt, Priority, Rules, Signing, TtlLimit, Version, Vrid,
    },
    dataplane::lease::LeaseMap,
};

mod engine;

/// A VRRP instance of the configuration, resolved for this host.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    pub name: String,
    pub interface: String,
    pub ifindex: u32,
    /// Why there is no such interface, or nothing to send from: it waits in FAULT for its successor.
    pub absent: Option<FaultCause>,
    /// What its multicast adverts come from, where that is not the interface's own MAC.
    pub advert_mac: Option<[u8; 6]>,
    /// Interfaces that adverts leave and count on as well, by index; those that are there.
    pub heartbeats: Vec<Option<u32>>,
    /// Its family is that of the instance.
    pub source: IpAddr,
    pub vrid: Vrid,
    pub priority: Priority,
    pub version: Version,
    pub advert_interval: Duration,
    pub start_as_master: bool,
    /// Empty = multicast.
    pub peers: Vec<IpAddr>,
    pub multicast: IpAddr,
    pub unicast_ttl: u8,
    pub ttl_limits: Vec<TtlLimit>,
    pub authentication: Authentication,
    pub signing: Option<Signing>,
    pub preempt: Preempt,
    /// Of the other family too, if they are not advertised.
    pub addresses: Vec<Address>,
    pub garp: Garp,
    /// Between two announcements on its interface.
    pub announce_interval: Duration,
    pub rules: Rules,
    pub down_timer_adverts: u32,
    /// Version 3 without a pseudo header.
    pub checksum_of_message: bool,
    /// Of version 3 adverts over IPv4 to its peers.
    pub old_checksum: OldChecksum,
    /// Its element of the lease map.
    pub lease: u32,
    /// Which sync group it is of.
    pub group: Option<usize>,
}

/// What is not of one instance.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// How long nothing takes part at first, unless the lease of an instance runs.
    pub startup_delay: Duration,
    /// Adverts of VRIDs that no instance on their interface has are told, once each.
    pub log_unknown_vrids: bool,
}

/// A virtual address and where it is announced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Address {
    pub address: IpAddr,
    /// Adverts name it.
    pub advertised: bool,
    pub ifindex: u32,
    pub mac: [u8; 6],
    /// The interface forwards IPv6, which neighbours are told.
    pub router: bool,
}

impl Instance {
    /// Of its adverts.
    pub fn family(&self) -> Family {
        Family::of(self.source)
    }

    /// For the peers: what it is called here does not matter.
    pub fn is_same_router(&self, other: &Self) -> bool {
        let router = |it: &Self| (it.vrid, it.family());
        router(self) == router(other) && self.interface == other.interface
    }

    /// In the order of the advert.
    pub fn advertised(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().filter(|address| address.advertised).map(|address| address.address)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("instance `{instance}`: {count} virtual addresses do not fit into one advert (at most {most})")]
    TooManyAddresses { instance: String, count: usize, most: usize },
    #[error("instances `{first}` and `{second}` both use virtual_router_id {vrid} on {interface}")]
    DuplicateVrid { first: String, second: String, vrid: u8, interface: String },
    #[error("instance `{instance}`: lease {lease} is beyond the lease map")]
    LeaseOutOfRange { instance: String, lease: u32 },
    #[error("instances `{first}` and `{second}` both use lease {lease}")]
    SharedLease { first: String, second: String, lease: u32 },
    #[error("cannot open a VRRP socket on {interface}: {source}")]
    Socket { interface: String, source: io::Error },
    #[error("instance `{instance}`: cannot open a heartbeat socket: {source}")]
    Heartbeat { instance: String, source: io::Error },
    #[error("cannot open a socket for announcements: {0}")]
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

/// A claim is told once a minute; what is rejected, differs or fails once per kind until the state of the instance
/// changes. The board counts them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// With the priority that it has now.
    Transition {
        from: State,
        to: State,
        cause: Cause,
        priority: u8,
    },
    AddressesUp,
    AddressesDown,
    Rejected {
        from: IpAddr,
        rejection: Rejection,
    },
    AddressesDiffer {
        from: IpAddr,
    },
    OwnAddress {
        from: IpAddr,
    },
    /// Over VRRPv3, where a backup goes by the master's.
    IntervalDiffers {
        from: IpAddr,
        ours: Duration,
        theirs: Duration,
    },
    /// From now on our adverts have the checksum that it understands.
    OldChecksum {
        from: IpAddr,
    },
    /// Another host says that an address of ours is its own.
    Claimed {
        address: IpAddr,
        mac: [u8; 6],
        priority: u8,
    },
    /// Over which of its interfaces, `interface` first, a backup hears nothing while it hears others; one bit each.
    Silent {
        ways: u32,
        before: u32,
    },
    /// As master; not more often than every ten seconds.
    LowerPriority {
        from: IpAddr,
        /// Ours.
        priority: u8,
    },
    /// Of a master or a backup.
    Priority {
        state: State,
        priority: u8,
    },
    /// Beside the instance.
    UnknownVrid {
        from: IpAddr,
        vrid: u8,
    },
    SendFailed {
        destination: IpAddr,
        error: Errno,
    },
}

/// Speaks to the running thread.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    words: SyncSender<Word>,
}

/// What the thread is told in order. Instances of a sync group are named together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// An operator wants to let a peer be master, this one if one is named, and to stay backup while there is any.
    HandOver { instances: Vec<usize>, to: Option<IpAddr> },
    /// An operator takes that back.
    TakePart { instances: Vec<usize> },
    /// Another host says that an address of ours is at its MAC.
    Claimed { instance: usize, address: IpAddr, mac: [u8; 6] },
}

/// The thread has as many unread words as it takes.
#[derive(Debug, thiserror::Error)]
#[error("the VRRP thread does not answer")]
pub struct Deaf;

/// How an instance begins.
#[derive(Clone, Debug)]
pub struct Start {
    pub standing: Standing,
    /// Before this thread there was one that an operator had told to hand over.
    pub handed_over: bool,
    /// Those of that thread, if it spoke for the same virtual router on the same interface.
    pub numbers: Arc<Numbers>,
}

/// The running thread. To be waited for: it ends when told, or when the kernel takes its means away.
pub struct Thread(thread::JoinHandle<io::Result<()>>);

impl Handle {
    pub fn board(&self) -> &Board {
        &self.shared.board
    }

    /// What an instance counts with, for a successor that speaks in its place.
    pub fn numbers(&self, instance: usize) -> Option<Arc<Numbers>> {
        self.shared.numbers.get(instance).cloned()
    }

    /// The cause why an instance cannot take part, or that it can again. The latest word counts.
    pub fn fault(&self, instance: usize, cause: Option<FaultCause>) {
        if let Some(fault) = self.shared.faults.get(instance) {
            fault.store(encode_fault(cause), Ordering::Release);
            self.shared.ring();
        }
    }

    /// The next configuration lacks the instance; or it is to stay after all.
    pub fn remove(&self, instance: usize, is_removed: bool) {
        if let Some(removed) = self.shared.removed.get(instance) {
            removed.store(is_removed, Ordering::Release);
            self.shared.ring();
        }
    }

    /// What trackers make of an instance. The latest word counts.
    pub fn stand(&self, instance: usize, standing: Standing) {
        if let Some(mailbox) = self.shared.standings.get(instance)
            && mailbox.swap(encode_standing(standing), Ordering::AcqRel) != encode_standing(standing)
        {
            self.shared.ring();
        }
    }

    pub fn say(&self, word: Word) -> Result<(), Deaf> {
        self.words.try_send(word).map_err(|_| Deaf)?;
        self.shared.ring();
        Ok(())
    }

    /// Hands everything over to the peers. The thread ends a moment after each instance that was master here has
    /// heard its new master, or after `linger`: so long packets for the addresses may still come this way.
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

/// What time it is for a lease: CLOCK_MONOTONIC.
pub fn clock() -> Monotonic {
    Monotonic::default() + monotonic()
}

/// What both sides see.
struct Shared {
    board: Board,
    /// One per instance: [`encode_fault`].
    faults: Box<[AtomicU64]>,
    /// One per instance. Not a fault among those of the host, who would take it back when a link comes up.
    removed: Box<[AtomicBool]>,
    /// One per instance: [`encode_standing`].
    standings: Box<[AtomicU64]>,
    /// One per instance.
    numbers: Box<[Arc<Numbers>]>,
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

/// A cause, and the tracker in the upper half.
fn encode_fault(cause: Option<FaultCause>) -> u64 {
    match cause {
        None => 0,
        Some(FaultCause::InterfaceMissing) => 1,
        Some(FaultCause::LinkDown) => 2,
        Some(FaultCause::SourceMissing) => 3,
        Some(FaultCause::Removed) => 4,
        Some(FaultCause::Untried) => 5,
        Some(FaultCause::Group) => 6,
        Some(FaultCause::NoPeer) => 8,
        Some(FaultCause::Tracker(index)) => 7 | u64::from(index) << 32,
    }
}

fn decode_fault(code: u64) -> Option<FaultCause> {
    match code & 0xff {
        1 => Some(FaultCause::InterfaceMissing),
        2 => Some(FaultCause::LinkDown),
        3 => Some(FaultCause::SourceMissing),
        4 => Some(FaultCause::Removed),
        5 => Some(FaultCause::Untried),
        6 => Some(FaultCause::Group),
        8 => Some(FaultCause::NoPeer),
        7 => u32::try_from(code >> 32).ok().map(FaultCause::Tracker),
        _ => None,
    }
}

/// The priority lies in the second byte of its fault.
fn encode_standing(standing: Standing) -> u64 {
    encode_fault(standing.fault) | u64::from(standing.priority.get()) << 8
}

fn decode_standing(code: u64) -> Standing {
    Standing {
        priority: Priority::new(i64::from((code >> 8) as u8)).unwrap_or(Priority::DEFAULT),
        fault: decode_fault(code),
    }
}

const WORDS: usize = 64;

/// Opens all sockets, then starts the thread. Instances begin at once, where their trackers (`starts`, one for
/// each) let them.
pub fn spawn(
    instances: Vec<Instance>,
    starts: &[Start],
    options: Options,
    leases: LeaseMap,
    events: mpsc::Sender<Event>,
) -> Result<(Handle, Thread), StartError> {
    check(&instances)?;
    let shared = Arc::new(Shared {
        board: Board::new(instances.len()),
        standings: starts.iter().map(|start| AtomicU64::new(encode_standing(start.standing))).collect(),
        numbers: starts.iter().map(|start| start.numbers.clone()).collect(),
        faults: instances.iter().map(|it| AtomicU64::new(encode_fault(it.absent))).collect(),
        removed: instances.iter().map(|_| AtomicBool::new(false)).collect(),
        stop: OnceLock::new(),
        leave: AtomicBool::new(false),
        bell: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(io::Error::from)?,
    });
    let (words, unread) = sync_channel(WORDS);
    let mut engine =
        engine::Engine::new(&instances, starts, options, leases, events, shared.clone(), unread)?;
    realtime::lock_memory();
    let thread = thread::Builder::new().name("vrrp".to_owned()).stack_size(256 << 10).spawn(move || {
        realtime::enter();
        engine.run()
    })?;
    Ok((Handle { shared, words }, Thread(thread)))
}

/// What no socket would complain about.
fn check(instances: &[Instance]) -> Result<(), StartError> {
    let (mut leases, mut routers) = (HashMap::new(), HashMap::new());
    for instance in instances {
        let (name, count, lease) = (&instance.name, instance.advertised().count(), instance.lease);
        let most = max_addresses(instance.family());
        if count > most {
            return Err(StartError::TooManyAddresses { instance: name.clone(), count, most });
        }
        if lease >= maps::LEASE_SLOTS {
            return Err(StartError::LeaseOutOfRange { instance: name.clone(), lease });
        }
        if let Some(first) = leases.insert(lease, instance) {
            return Err(StartError::SharedLease { first: first.name.clone(), second: name.clone(), lease });
        }
        for ifindex in instance.heartbeats.iter().copied().flatten().chain([instance.ifindex]) {
            if let Some(first) = routers.insert((ifindex, instance.vrid, instance.family()), instance) {
                return Err(StartError::DuplicateVrid {
                    first: first.name.clone(),
                    second: name.clone(),
                    vrid: instance.vrid.get(),
                    interface: instance.interface.clone(),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(name: &str, vrid: i64, lease: u32) -> Instance {
        Instance {
            name: name.to_owned(),
            interface: "eth0".to_owned(),
            ifindex: 2,
            absent: None,
            advert_mac: None,
            heartbeats: vec![],
            source: [10, 0, 0, 1].into(),
            vrid: Vrid::new(vrid).unwrap(),
            priority: Priority::DEFAULT,
            version: Version::V2,
            advert_interval: Duration::from_secs(1),
            start_as_master: false,
            peers: vec![],
            multicast: [224, 0, 0, 18].into(),
            unicast_ttl: 255,
            ttl_limits: vec![],
            authentication: Authentication::None,
            signing: None,
            preempt: Preempt::Immediate,
            addresses: vec![],
            garp: Garp::default(),
            announce_interval: Duration::ZERO,
            rules: Rules::default(),
            down_timer_adverts: 3,
            checksum_of_message: false,
            old_checksum: OldChecksum::FoundOut,
            lease,
            group: None,
        }
    }

    fn refusal(instances: &[Instance]) -> String {
        check(instances).unwrap_err().to_string()
    }

    #[test]
    fn one_vrid_is_used_once_per_interface_and_family() {
        let elsewhere = Instance { ifindex: 3, ..instance("c", 1, 2) };
        let other_family = Instance { source: [0xfe; 16].into(), ..instance("d", 1, 3) };
        check(&[instance("a", 1, 0), instance("b", 2, 1), elsewhere.clone(), other_family]).unwrap();
        let heard_there = Instance { heartbeats: vec![None, Some(3)], ..instance("a", 1, 0) };
        assert!(refusal(&[heard_there, elsewhere]).contains("both use virtual_router_id 1"));
        let refused = refusal(&[instance("a", 1, 0), instance("b", 1, 1)]);
        assert_eq!(refused, "instances `a` and `b` both use virtual_router_id 1 on eth0");
    }

    #[test]
    fn each_instance_has_a_lease_of_its_own() {
        assert_eq!(
            refusal(&[instance("a", 1, 7), instance("b", 2, 7)]),
            "instances `a` and `b` both use lease 7"
        );
        let beyond = refusal(&[instance("a", 1, maps::LEASE_SLOTS)]);
        assert_eq!(beyond, "instance `a`: lease 4096 is beyond the lease map");
    }

    #[test]
    fn more_addresses_than_an_advert_holds_are_refused() {
        let address = Address {
            address: [10, 0, 0, 9].into(),
            advertised: true,
            ifindex: 2,
            mac: [0; 6],
            router: false,
        };
        let full = Instance { addresses: vec![address; 255], ..instance("a", 1, 0) };
        check(std::slice::from_ref(&full)).unwrap();
        let excluded = Address { advertised: false, ..address };
        let beside = Instance { addresses: [vec![address; 255], vec![excluded; 9]].concat(), ..full.clone() };
        check(&[beside]).unwrap();
        let over = Instance { addresses: vec![address; 256], ..full };
        assert!(refusal(&[over]).contains("256 virtual addresses do not fit into one advert"));
    }

    #[test]
    fn a_fault_survives_the_mailbox() {
        let causes = [
            None,
            Some(FaultCause::InterfaceMissing),
            Some(FaultCause::LinkDown),
            Some(FaultCause::SourceMissing),
            Some(FaultCause::Removed),
            Some(FaultCause::Untried),
            Some(FaultCause::Group),
            Some(FaultCause::NoPeer),
            Some(FaultCause::Tracker(0)),
            Some(FaultCause::Tracker(u32::MAX)),
        ];
        for fault in causes {
            assert_eq!(decode_fault(encode_fault(fault)), fault);
            for priority in [1, 100, 255].map(|priority| Priority::new(priority).unwrap()) {
                let standing = Standing { priority, fault };
                assert_eq!(decode_standing(encode_standing(standing)), standing);
            }
        }
    }
}
