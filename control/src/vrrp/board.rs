//! What does the VRRP thread show of itself? Atomics that anybody reads and only it writes.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::{Monotonic, State, packet::Rejection};

/// State and counters of all instances, in the order in which they were given to the driver.
pub struct Board {
    instances: Box<[Row]>,
    lost_events: AtomicU64,
    strays: AtomicU64,
}

/// One instance at one moment. The fields are read one by one: a counter may be ahead of the state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub state: State,
    /// With the weights of trackers.
    pub priority: u8,
    /// An operator wants another to be master.
    pub handed_over: bool,
    /// The end of its lease; in the past or zero where it holds none.
    pub lease: Monotonic,
    /// Ways (`interface`, then `heartbeat_interface`s) that are silent while others are heard; one bit each.
    pub silent: u32,
    /// The last host that said an address of ours is its own, and when.
    pub claim: Option<([u8; 6], Monotonic)>,
    /// In the order of [`Counter::ALL`].
    pub counters: [u64; Counter::ALL.len()],
    /// In the order of [`Rejection::KINDS`].
    pub rejected: [u64; Rejection::KINDS.len()],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    AdvertsSent,
    AdvertsReceived,
    /// Adverts that could not be sent to one of their receivers.
    SendFailures,
    BecameMaster,
    ResignationsSent,
    ResignationsReceived,
    /// Gratuitous ARP frames.
    AnnouncementsSent,
    AnnouncementFailures,
    /// Adverts with other addresses than ours, accepted.
    AddressesDiffer,
    /// v3 adverts at another interval than ours, accepted.
    IntervalDiffers,
    /// Adverts with our own source address: a loop in the network, or an address in use twice.
    OwnAddress,
    /// Another host said that an address of this master's is its own.
    Claims,
    /// v3 adverts whose checksum leaves out the pseudo header (RFC 9568).
    ChecksumOfMessage,
    /// Unicast v3 adverts with the checksum of keepalived before 1.3.7.
    OldChecksum,
    /// Adverts without the signature of `auth_hmac`, accepted because its mode is not `enforce`.
    Unsigned,
}

impl Counter {
    pub const ALL: [(Self, &'static str); 15] = [
        (Self::AdvertsSent, "adverts_sent"),
        (Self::AdvertsReceived, "adverts_received"),
        (Self::SendFailures, "send_failures"),
        (Self::BecameMaster, "became_master"),
        (Self::ResignationsSent, "resignations_sent"),
        (Self::ResignationsReceived, "resignations_received"),
        (Self::AnnouncementsSent, "announcements_sent"),
        (Self::AnnouncementFailures, "announcement_failures"),
        (Self::AddressesDiffer, "addresses_differ"),
        (Self::IntervalDiffers, "interval_differs"),
        (Self::OwnAddress, "own_address"),
        (Self::Claims, "claims"),
        (Self::ChecksumOfMessage, "checksum_of_message"),
        (Self::OldChecksum, "old_checksum"),
        (Self::Unsigned, "unsigned"),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

#[derive(Default)]
struct Row {
    state: AtomicU8,
    priority: AtomicU8,
    handed_over: AtomicBool,
    lease: AtomicU64,
    silent: AtomicU32,
    claimant: AtomicU64,
    claimed_at: AtomicU64,
    counters: [AtomicU64; Counter::ALL.len()],
    rejected: [AtomicU64; Rejection::KINDS.len()],
}

impl Board {
    pub(super) fn new(instances: usize) -> Self {
        Self {
            instances: (0..instances).map(|_| Row::default()).collect(),
            lost_events: AtomicU64::new(0),
            strays: AtomicU64::new(0),
        }
    }

    pub fn view(&self, instance: usize) -> Option<View> {
        let row = self.instances.get(instance)?;
        Some(View {
            state: match row.state.load(Ordering::Acquire) {
                1 => State::Backup,
                2 => State::Master,
                3 => State::Fault,
                _ => State::Init,
            },
            priority: row.priority.load(Ordering::Acquire),
            handed_over: row.handed_over.load(Ordering::Acquire),
            lease: Monotonic::from_nanos(row.lease.load(Ordering::Acquire)),
            silent: row.silent.load(Ordering::Acquire),
            claim: Some(row.claimed_at.load(Ordering::Acquire)).filter(|at| *at > 0).map(|at| {
                let [_, _, mac @ ..] = row.claimant.load(Ordering::Acquire).to_be_bytes();
                (mac, Monotonic::from_nanos(at))
            }),
            counters: row.counters.each_ref().map(|counter| counter.load(Ordering::Relaxed)),
            rejected: row.rejected.each_ref().map(|counter| counter.load(Ordering::Relaxed)),
        })
    }

    /// How many events found the channel full since the last call. If any did, the reader is to trust
    /// [`Board::view`] and converge from there.
    pub fn take_lost_events(&self) -> u64 {
        self.lost_events.swap(0, Ordering::AcqRel)
    }

    /// VRRP packets that were malformed or of a virtual router that is not ours.
    pub fn strays(&self) -> u64 {
        self.strays.load(Ordering::Relaxed)
    }

    pub(super) fn set_state(&self, instance: usize, state: State) {
        let state = match state {
            State::Init => 0,
            State::Backup => 1,
            State::Master => 2,
            State::Fault => 3,
        };
        self.instances[instance].state.store(state, Ordering::Release);
    }

    pub(super) fn set_priority(&self, instance: usize, priority: u8) {
        self.instances[instance].priority.store(priority, Ordering::Release);
    }

    pub(super) fn set_handed_over(&self, instance: usize, handed_over: bool) {
        self.instances[instance].handed_over.store(handed_over, Ordering::Release);
    }

    pub(super) fn set_silent(&self, instance: usize, ways: u32) {
        self.instances[instance].silent.store(ways, Ordering::Release);
    }

    pub(super) fn set_claim(&self, instance: usize, mac: [u8; 6], at: Monotonic) {
        let [a, b, c, d, e, f] = mac;
        let row = &self.instances[instance];
        row.claimant.store(u64::from_be_bytes([0, 0, a, b, c, d, e, f]), Ordering::Release);
        row.claimed_at.store(at.nanos(), Ordering::Release);
    }

    pub(super) fn set_lease(&self, instance: usize, until: Monotonic) {
        self.instances[instance].lease.store(until.nanos(), Ordering::Release);
    }

    pub(super) fn count(&self, instance: usize, counter: Counter) {
        self.instances[instance].counters[counter as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_rejection(&self, instance: usize, rejection: Rejection) {
        self.instances[instance].rejected[rejection.kind()].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_stray(&self) {
        self.strays.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_lost_event(&self) {
        self.lost_events.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_stands_where_its_name_does() {
        for (index, (counter, _)) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, index);
        }
    }

    #[test]
    fn a_view_shows_what_was_written_last() {
        let board = Board::new(2);
        for state in [State::Backup, State::Master, State::Fault, State::Init] {
            board.set_state(1, state);
            assert_eq!(board.view(1).map(|view| view.state), Some(state));
        }
        assert_eq!(board.view(2), None);
    }

    #[test]
    fn lost_events_are_reported_once() {
        let board = Board::new(0);
        board.count_lost_event();
        assert_eq!((board.take_lost_events(), board.take_lost_events()), (1, 0));
    }
}
