//! Whose a flow is when the ring alone cannot tell: its slot has moved, or its service takes turns or is persistent.
//! The table in ARCHITECTURE.md, "When the flow table is asked", says who it is.
//!
//! A flow that itself names its real server, by the connection ID of QUIC, goes there; what of it names none follows, and ICMP errors
//! about it. A persistent client's other flows stay where they are.
//!
//! With persistence a flow is all that one client does with the service.
//!
//! A flow that finds no room in its set goes where its next packet, which finds no entry, will go as well.

use aya_ebpf::{Global, helpers::bpf_jiffies64};
use lvs_ebpf_common::{
    Real, RingRef, Service,
    flow_table::{Entry, FlowKey, FlowSet, Phase, WAYS},
    maps::{MOVED, NOBODY, RING_CHUNK},
};

use crate::{
    maps::{FLOW_CLOCK, FLOWS, REALS, RINGS, TURNS},
    parse::{ACK, FIN, RST, SYN},
    schedule,
};

/// `lvs_ebpf_common::maps::TICK_SHIFT`; this fits 250 jiffies a second.
#[unsafe(no_mangle)]
static TICK_SHIFT: Global<u32> = Global::new(8);

/// What a packet says about its flow.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Packet {
    /// Opens the flow: a SYN without ACK.
    Opens,
    Continues,
    /// A FIN or RST.
    Ends,
    /// UDP has no such words: any packet may be the first.
    Udp,
    /// Not of the flow itself: an ICMP error about it, which anybody may have made up. It is led to the flow's real server and
    /// changes nothing.
    About,
}

impl Packet {
    /// Nobody but the real server that knows its connection can use it.
    #[inline(always)]
    fn needs_its_connection(self) -> bool {
        matches!(self, Self::Continues | Self::Ends)
    }

    #[inline(always)]
    pub fn tcp(flags: u8) -> Self {
        if flags & (FIN | RST) != 0 {
            Self::Ends
        } else if flags & (SYN | ACK) == SYN {
            Self::Opens
        } else {
            Self::Continues
        }
    }
}

/// Of a place: the slot is as if it were the flow's own, and always had been.
pub const NAMED: u64 = 1 << 48;

/// The flow's real server is dead.
pub const LOST: u32 = 1 << 16;
/// The same, and its client is to be told.
pub const LOST_AND_RESET: u32 = LOST + 1;

/// Index of the real server inside the range of `service`, `NOBODY`, [`LOST`] and its kin, or one beyond the range. The arguments are what
/// fits five registers: the packed ring, the flow's hash with its slot above ([`NAMED`]: it is whom the packet names), the packed key. A function of its own, so
/// that it costs packets of unmoved slots nothing.
#[inline(never)]
pub fn owner(service: &Service, ring: u64, place: u64, key: u64, packet: Packet) -> u32 {
    let (hash, slot) = (place as u32, (place >> 32) as u16);
    let names = place & NAMED != 0;
    let packet = match packet {
        // The flow is all that the client does, of which one connection ends.
        Packet::Ends if service.persistence != 0 => Packet::Continues,
        packet => packet,
    };
    if service.takes_turns == Service::EVERY_PACKET {
        let turn = if packet == Packet::About { None } else { next_turn(service) };
        return turn.unwrap_or(slot & !MOVED).into();
    }
    let home = FlowKey::home(key);
    let Some(set) = FLOWS.get_ptr_mut(home.set) else { return MOVED.into() };
    let now = now();
    let opens = packet == Packet::Opens;

    let mut place = None;
    // SAFETY: an element of the map.
    if let Some((way, entry)) = unsafe { find(set, home.rest) } {
        // A persistent client comes back to where it was, also while that one drains.
        let moves = opens && service.persistence == 0;
        let reopened = moves && entry.phase == Phase::Closing;
        // UDP does not say what opens, so a client that goes on sending would never leave.
        let comes_back = opens || packet == Packet::Udp && service.persistence != 0;
        let state = state(service, entry.real);
        if names && slot != entry.real {
            if service.persistence != 0 {
                return slot.into();
            }
        } else if !reopened && takes(state, moves) && !(comes_back && state == Real::LEAVING) {
            if packet != Packet::About {
                // SAFETY: as above; `way` is inside the set.
                unsafe { refresh(set, way, entry, packet, now) };
            }
            return entry.real.into();
        }
        if packet.needs_its_connection()
            && let Some(lost) = lost(state)
        {
            return lost;
        }
        place = Some(way);
    }

    let owner = slot & !MOVED;
    let before = if slot & MOVED == 0 { owner } else { old_owner(service, ring, key, hash).unwrap_or(owner) };
    let without_memory = if before != owner && takes(state(service, before), false) { before } else { owner };
    if packet == Packet::About {
        return without_memory.into();
    }
    if place.is_none()
        && before != owner
        && packet.needs_its_connection()
        && let Some(lost) = lost(state(service, before))
    {
        return lost;
    }
    // Services with turns know all their flows, so a UDP flow without an entry is a new one there.
    let is_new = opens || packet == Packet::Udp && service.takes_turns != Service::NO_TURNS;
    let by_ring = if is_new { owner } else { without_memory };
    let real = match service.takes_turns {
        Service::EVERY_TURN | Service::TURNS_OF_OVERLOADED if is_new && !names => {
            let turn = next_turn(service);
            // Every director has the same ring. Only one that remembers a flow knows whose turn that was.
            if service.takes_turns == Service::EVERY_TURN || state(service, by_ring) == Real::OVERLOADED {
                turn.unwrap_or(without_memory)
            } else {
                by_ring
            }
        }
        _ => by_ring,
    };
    if real == NOBODY {
        return real.into();
    }
    // SAFETY: as above.
    let Some(way) = place.or_else(|| unsafe { vacancy(set, now as u16) }) else {
        return without_memory.into();
    };
    let entry = Entry { rest: home.rest, real, phase: Phase::New };
    // SAFETY: as above; `way` is inside the set.
    unsafe { remember(set, way, entry, now) };
    real.into()
}

/// Whether a real server of the service may have packets of flows that are its own.
#[inline(always)]
pub fn keeps_flows(service: &Service, index: u32) -> bool {
    index < u32::from(NOBODY) && takes(state(service, index as u16), false)
}

/// In ticks.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_jiffies64() >> TICK_SHIFT.load() }
}

/// Whether a real server in this state may get this packet.
#[inline(always)]
fn takes(state: u8, opens: bool) -> bool {
    match state {
        Real::ALIVE | Real::OVERLOADED => true,
        Real::DRAINING | Real::LEAVING => !opens,
        _ => false,
    }
}

/// What the flows of a real server in this state meet, if it is dead.
#[inline(always)]
fn lost(state: u8) -> Option<u32> {
    match state {
        Real::DEAD => Some(LOST),
        Real::RESETTING => Some(LOST_AND_RESET),
        _ => None,
    }
}

/// Of nobody's real server.
const NONE: u8 = u8::MAX;

/// [`Real::state`] of one of the service's, or [`NONE`].
#[inline(always)]
fn state(service: &Service, index: u16) -> u8 {
    let index = u32::from(index);
    if index >= service.reals_len {
        return NONE;
    }
    REALS.get(service.reals_base.wrapping_add(index)).map_or(NONE, |real| real.state)
}

/// None where the ring has no old owners any more.
#[inline(always)]
fn old_owner(service: &Service, ring: u64, key: u64, hash: u32) -> Option<u16> {
    let ring = RingRef::unpack(ring);
    let header = ring.chunk.wrapping_add(ring.length.div_ceil(RING_CHUNK as u32));
    // SAFETY: an element of the map. lvsd clears the length with one aligned store.
    let length = unsafe { RINGS.get_ptr(header)?.cast::<u32>().read_volatile() };
    if length == 0 {
        return None;
    }
    let hash = if service.old_hash == service.hash {
        hash
    } else {
        let key = FlowKey::unpack(key);
        service.flow_of(key).hash(service.old_hash)
    };
    schedule::owner(header + 1, hash, length)
}

/// Two CPUs in the same instant may both be given one turn: an addition that tells the sum needs Linux 5.12.
#[inline(always)]
fn next_turn(service: &Service) -> Option<u16> {
    let turn = TURNS.get_ptr_mut(service.id.into())?;
    // SAFETY: an element of the map. Both words are read and written whole.
    let (sequence, taken) = unsafe {
        ((&raw const (*turn).sequence).read_volatile(), (&raw const (*turn).taken).read_volatile())
    };
    let sequence = RingRef::unpack(sequence);
    if sequence.length == 0 {
        return None;
    }
    // SAFETY: as above.
    unsafe { (&raw mut (*turn).taken).write_volatile(taken.wrapping_add(1)) };
    let at = taken as u32 % sequence.length;
    let chunk = RINGS.get(sequence.chunk.wrapping_add(at / RING_CHUNK as u32))?;
    chunk
        .get(at as usize % RING_CHUNK)
        .copied()
        .filter(|index| *index == NOBODY || takes(state(service, *index), true))
}

/// # Safety
/// `set` must point to a set and `way` be below `WAYS`.
#[inline(always)]
unsafe fn entry_at(set: *mut FlowSet, way: usize) -> *mut u64 {
    // SAFETY: as the caller promises. Not by index: the check would be a call that never returns, which the
    // verifier does not know.
    unsafe { (&raw mut (*set).entries).cast::<u64>().add(way) }
}

/// # Safety
/// `set` must point to a set and `way` be below `WAYS`.
#[inline(always)]
unsafe fn seen_at(set: *mut FlowSet, way: usize) -> *mut u16 {
    // SAFETY: as above.
    unsafe { (&raw mut (*set).seen).cast::<u16>().add(way) }
}

/// # Safety
/// `set` must point to a set.
#[inline(always)]
unsafe fn find(set: *mut FlowSet, rest: u64) -> Option<(usize, Entry)> {
    for way in 0..WAYS {
        // SAFETY: inside the set. Another CPU may be writing the word, whole.
        let word = unsafe { entry_at(set, way).read_volatile() };
        if Entry::has_rest(word, rest)
            && let Some(entry) = Entry::unpack(word)
        {
            return Some((way, entry));
        }
    }
    None
}

/// Where a new flow may go: a free place, else that of a flow whose only packet may have been forged, else of one
/// that has ended; the oldest of them. An established flow is never forgotten for a new one.
///
/// # Safety
/// `set` must point to a set.
#[inline(always)]
unsafe fn vacancy(set: *mut FlowSet, now: u16) -> Option<usize> {
    // What an established flow never exceeds.
    let (mut best, mut vacant) = (u32::from(u16::MAX), None);
    for way in 0..WAYS {
        // SAFETY: inside the set. Another CPU may be writing either, whole.
        let (word, seen) = unsafe { (entry_at(set, way).read_volatile(), seen_at(set, way).read_volatile()) };
        // Without a branch: Linux 6.1 refuses a loop into whose head the compiler lets the body fall.
        let phase = Entry::unpack(word).map_or(0, |entry| entry.phase as u32);
        let rank = (Phase::Established as u32 - phase) << 16 | u32::from(now.wrapping_sub(seen));
        if rank > best {
            (best, vacant) = (rank, Some(way));
        }
    }
    vacant
}

/// # Safety
/// `set` must point to a set and `way` be below `WAYS`.
#[inline(always)]
unsafe fn refresh(set: *mut FlowSet, way: usize, entry: Entry, packet: Packet, now: u64) {
    let phase = match (entry.phase, packet) {
        (_, Packet::Ends) => Phase::Closing,
        (Phase::New, Packet::Continues | Packet::Udp) => Phase::Established,
        (phase, _) => phase,
    };
    if phase != entry.phase {
        // SAFETY: as the caller promises. Should another CPU have given the place to another flow meanwhile, that
        // one is forgotten.
        unsafe { entry_at(set, way).write_volatile(Entry { phase, ..entry }.pack()) };
    }
    // SAFETY: as the caller promises.
    if unsafe { seen_at(set, way).read_volatile() } != now as u16 {
        // SAFETY: as above.
        unsafe { mark_seen(set, way, now) };
    }
}

/// # Safety
/// `set` must point to a set and `way` be below `WAYS`.
#[inline(always)]
unsafe fn remember(set: *mut FlowSet, way: usize, entry: Entry, now: u64) {
    // SAFETY: as the caller promises. The time comes first: an entry is never older than it looks.
    unsafe {
        mark_seen(set, way, now);
        entry_at(set, way).write_volatile(entry.pack());
    }
}

/// # Safety
/// `set` must point to a set and `way` be below `WAYS`.
#[inline(always)]
unsafe fn mark_seen(set: *mut FlowSet, way: usize, now: u64) {
    // SAFETY: as the caller promises.
    unsafe { seen_at(set, way).write_volatile(now as u16) };
    let Some(clock) = FLOW_CLOCK.get_ptr_mut(0) else { return };
    // SAFETY: an element of the map, read and written whole. The line is shared by all CPUs: written once a tick.
    unsafe {
        if clock.read_volatile() != now {
            clock.write_volatile(now);
        }
    }
}
