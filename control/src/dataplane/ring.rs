//! A service's ring through its changes: who owns each slot, which slots have moved, and whose they were before.

use std::time::Duration;

use lvs_ebpf_common::{
    RingRef,
    maps::{MOVED, NOBODY, RING_CHUNK, RingChunk},
};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ring {
    /// As the map has them: an owner's index, with MOVED.
    slots: Vec<u16>,
    /// For each slot its owner before it moved; that of an unmoved slot is its owner. After a change of the number
    /// of slots it is that of the ring before, of another length. Empty = each slot's owner.
    old: Vec<u16>,
    /// When each moved slot did, in seconds; 0 of an unmoved one. Empty while none has moved. Not in the map.
    since: Vec<u32>,
    /// The old owners are found by another hash than the slots: no slot is any old one's. Not in the map.
    has_another_hash: bool,
}

impl Ring {
    /// A ring that no flow knew before.
    pub fn new(owners: Vec<u16>) -> Self {
        Self { slots: owners, ..Self::default() }
    }

    /// Slots.
    pub fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    pub fn owner(&self, slot: u32) -> Option<u16> {
        self.slots.get(slot as usize).map(|slot| slot & !MOVED)
    }

    /// Whether some flow may be led to this real server, by the ring or by its past.
    pub fn knows(&self, index: u16) -> bool {
        self.slots.iter().any(|slot| slot & !MOVED == index) || self.old.contains(&index)
    }

    pub fn has_moved(&self) -> bool {
        !self.since.is_empty()
    }

    pub fn is_owned_as(&self, owners: &[u16]) -> bool {
        self.slots.len() == owners.len() && self.slots.iter().zip(owners).all(|(slot, o)| slot & !MOVED == *o)
    }

    /// The ring once its slots have these owners. A flow without an entry that began before the first of several
    /// moves has met no owner but the first; one that began later has an entry. So the old owner stays what it was.
    pub fn moved_to(&self, owners: &[u16], now: Duration) -> Self {
        if self.slots.is_empty() {
            return Self::new(owners.to_vec());
        }
        let same_slots = self.slots.len() == owners.len() && self.has_own_old_owners();
        let mut next = self.clone();
        if next.old.is_empty() {
            next.old = self.slots.iter().map(|slot| slot & !MOVED).collect();
        }
        if same_slots {
            next.since.resize(self.slots.len(), 0);
            for (slot, owner) in owners.iter().enumerate() {
                let before = self.slots[slot] & !MOVED;
                if before == *owner {
                    continue;
                }
                next.slots[slot] = owner | MOVED;
                if next.old[slot] == before {
                    next.since[slot] = seconds(now);
                }
            }
        } else {
            next.slots = self.overlapped_by(owners);
            next.since = since_now(&next.slots, now);
        }
        next.forget_unmoved();
        next
    }

    /// The ring once flows find these owners by another hash: each may be on any slot. The old owners stay those of before the
    /// first of several changes, since all flows that began later have entries.
    pub fn rehashed_to(&self, owners: &[u16], now: Duration) -> Self {
        if self.slots.is_empty() {
            return Self::new(owners.to_vec());
        }
        let mut next = Self { slots: owners.to_vec(), has_another_hash: true, ..self.clone() };
        if next.old.is_empty() {
            next.old = self.slots.iter().map(|slot| slot & !MOVED).collect();
        }
        next.doubt_all(now);
        next
    }

    pub fn has_another_hash(&self) -> bool {
        self.has_another_hash
    }

    /// Of a ring as it was read.
    pub fn had_another_hash(&mut self) {
        self.has_another_hash = !self.old.is_empty();
    }

    /// Rings of different lengths share the hashes, not the slots: moved is what has another owner for any of them.
    fn overlapped_by(&self, owners: &[u16]) -> Vec<u16> {
        let (before, after) = (self.slots.len() as u64, owners.len() as u64);
        let slots = (0..after).zip(owners).map(|(slot, owner)| {
            let first = (slot * before / after) as usize;
            let last = (((slot + 1) * before).div_ceil(after) as usize).min(self.slots.len());
            let moved = self.slots[first..last].iter().any(|before| before != owner);
            if moved { owner | MOVED } else { *owner }
        });
        slots.collect()
    }

    fn has_own_old_owners(&self) -> bool {
        self.old.is_empty() || !self.has_another_hash && self.old.len() == self.slots.len()
    }

    fn forget_unmoved(&mut self) {
        if self.slots.iter().all(|slot| slot & MOVED == 0) {
            self.since = Vec::new();
            self.forget_old();
        }
    }

    fn forget_old(&mut self) {
        (self.old, self.has_another_hash) = (Vec::new(), false);
    }

    /// Makes every packet ask the flow table.
    pub fn doubt_all(&mut self, now: Duration) {
        self.slots.iter_mut().for_each(|slot| *slot |= MOVED);
        self.since = since_now(&self.slots, now);
    }

    /// Whether some slot moved `timeout` ago.
    pub fn has_due(&self, now: Duration, timeout: Duration) -> bool {
        let mut moved = self.slots.iter().zip(&self.since).filter(|(slot, _)| *slot & MOVED != 0);
        moved.any(|(_, since)| is_due(*since, now, timeout))
    }

    /// Forgets the old owner of slots that moved `timeout` ago: flows of before have shown themselves or ended. The
    /// slot is as if it had never moved unless it is in `dissent`: a flow lives elsewhere than at its owner.
    pub fn settle(&mut self, now: Duration, timeout: Duration, dissent: &[u32]) {
        let is_due = |since: u32| is_due(since, now, timeout);
        if !self.has_own_old_owners() {
            if self.since.iter().any(|since| !is_due(*since)) {
                return;
            }
            self.forget_old();
        }
        let mut dissents = vec![false; self.slots.len()];
        for slot in dissent {
            dissents[*slot as usize] = true;
        }
        let mut is_past = true;
        for (slot, dissents) in dissents.into_iter().enumerate() {
            let owner = self.slots[slot] & !MOVED;
            let old = self.old.get_mut(slot);
            if self.slots[slot] != owner && is_due(self.since[slot]) {
                if !dissents {
                    (self.slots[slot], self.since[slot]) = (owner, 0);
                }
                old.into_iter().for_each(|old| *old = owner);
            } else {
                is_past &= old.is_none_or(|old| *old == owner);
            }
        }
        if is_past {
            self.forget_old();
        }
        self.forget_unmoved();
    }

    /// As the map has it: the slots; where one has moved, a chunk that says how many old owners there are, and those.
    pub fn chunks(&self) -> Vec<RingChunk> {
        let mut chunks: Vec<RingChunk> = self.slots.chunks(RING_CHUNK).map(chunk).collect();
        if self.has_moved() {
            chunks.push(chunk(&halves(self.old.len() as u32)));
            chunks.extend(self.old.chunks(RING_CHUNK).map(chunk));
        }
        chunks
    }

    /// None where it would reach beyond the map of `room` chunks.
    pub fn read(place: RingRef, room: u32, chunk: impl Fn(u32) -> RingChunk, now: Duration) -> Option<Self> {
        let read = |first: u32, length: u32| {
            let chunks = length.div_ceil(RING_CHUNK as u32);
            let end = first.checked_add(chunks).filter(|end| *end <= room)?;
            let slots: Vec<u16> = (first..end).flat_map(&chunk).take(length as usize).collect();
            Some((slots, end))
        };
        let (slots, end) = read(place.chunk, place.length)?;
        let mut ring = Self::new(slots);
        if ring.slots.iter().any(|slot| slot & MOVED != 0) {
            let (header, end) = read(end, RING_CHUNK as u32)?;
            ring.old = read(end, whole(&header))?.0;
            ring.since = since_now(&ring.slots, now);
        }
        Some(ring)
    }
}

fn is_due(since: u32, now: Duration, timeout: Duration) -> bool {
    u64::from(since).saturating_add(timeout.as_secs()) <= seconds(now).into()
}

fn since_now(slots: &[u16], now: Duration) -> Vec<u32> {
    slots.iter().map(|slot| if slot & MOVED == 0 { 0 } else { seconds(now) }).collect()
}

fn seconds(now: Duration) -> u32 {
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX)
}

/// Slots for a service none of whose real servers takes new flows.
pub fn owned_by_nobody(length: u32) -> Vec<u16> {
    vec![NOBODY; length as usize]
}

pub fn chunk(slots: &[u16]) -> RingChunk {
    let mut chunk = [0; RING_CHUNK];
    chunk.iter_mut().zip(slots).for_each(|(to, from)| *to = *from);
    chunk
}

/// A number as the program loads it from two slots.
fn halves(number: u32) -> [u16; 2] {
    let [a, b, c, d] = number.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}

fn whole(halves: &[u16]) -> u32 {
    let mut bytes = [0; 4];
    for (to, from) in bytes.chunks_exact_mut(2).zip(halves) {
        to.copy_from_slice(&from.to_ne_bytes());
    }
    u32::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use lvs_ebpf_common::flow;

    use super::*;

    const T: Duration = Duration::from_secs(900);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn only_slots_with_another_owner_have_moved() {
        let ring = Ring::new(vec![1, 2, 3]).moved_to(&[1, 5, 3], at(7));
        assert_eq!(ring.slots, [1, 5 | MOVED, 3]);
        assert_eq!(ring.old, [1, 2, 3]);
    }

    #[test]
    fn a_second_move_keeps_the_first_owners_and_the_way_back_stays_moved() {
        let ring = Ring::new(vec![1, 2, 3]).moved_to(&[1, 5, 6], at(7)).moved_to(&[1, 2, 7], at(8));
        assert_eq!(ring.slots, [1, 2 | MOVED, 7 | MOVED]);
        assert_eq!(ring.old, [1, 2, 3]);
    }

    #[test]
    fn each_slot_has_its_own_time_whatever_moves_after_it() {
        let mut ring = Ring::new(vec![1, 2, 3]).moved_to(&[1, 5, 3], at(0)).moved_to(&[1, 5, 6], at(899));
        ring.settle(at(899), T, &[]);
        assert_eq!(ring.slots, [1, 5 | MOVED, 6 | MOVED]);
        ring.settle(at(900), T, &[]);
        assert_eq!((&ring.slots[..], &ring.old[..]), (&[1, 5, 6 | MOVED][..], &[1, 5, 3][..]));
        ring.settle(at(1799), T, &[]);
        assert_eq!((&ring.slots[..], ring.old.len()), (&[1, 5, 6][..], 0));
    }

    #[test]
    fn a_slot_with_a_flow_elsewhere_stays_moved_and_forgets_its_old_owner() {
        let mut ring = Ring::new(vec![1, 2, 3]).moved_to(&[1, 5, 6], at(0));
        ring.settle(at(900), T, &[1]);
        assert_eq!((&ring.slots[..], ring.old.len()), (&[1, 5 | MOVED, 6][..], 0));
        let ring = ring.moved_to(&[1, 8, 7], at(901));
        assert_eq!(ring.slots, [1, 8 | MOVED, 7 | MOVED]);
        assert_eq!(ring.old, [1, 5, 6]);
    }

    #[test]
    fn a_ring_of_another_length_settles_as_a_whole() {
        let mut ring = Ring::new(vec![1, 2]).moved_to(&[1, 1, 2, 3], at(0));
        assert_eq!((&ring.slots[..], &ring.old[..]), (&[1, 1, 2, 3 | MOVED][..], &[1, 2][..]));
        ring = ring.moved_to(&[4, 1, 2, 3], at(10));
        assert_eq!((&ring.slots[..], &ring.old[..]), (&[4 | MOVED, 1, 2, 3 | MOVED][..], &[1, 2][..]));
        ring.settle(at(909), T, &[]);
        assert!(ring.has_moved());
        ring.settle(at(910), T, &[]);
        assert_eq!((&ring.slots[..], ring.old.len()), (&[4, 1, 2, 3][..], 0));
    }

    #[test]
    fn by_another_hash_all_slots_have_moved_and_the_old_owners_are_those_of_before_the_first_one() {
        let mut ring = Ring::new(vec![1, 2]).moved_to(&[1, 3], at(0)).rehashed_to(&[1, 3], at(10));
        assert_eq!((&ring.slots[..], &ring.old[..]), (&[1 | MOVED, 3 | MOVED][..], &[1, 2][..]));
        ring = ring.moved_to(&[1, 4], at(20));
        assert_eq!((&ring.slots[..], &ring.old[..]), (&[1 | MOVED, 4 | MOVED][..], &[1, 2][..]));
        ring.settle(at(919), T, &[]);
        assert!(ring.has_another_hash());
        ring.settle(at(920), T, &[1]);
        assert_eq!((&ring.slots[..], ring.old.len()), (&[1, 4 | MOVED][..], 0));
        assert!(!ring.has_another_hash());
    }

    #[test]
    fn an_unmoved_slot_of_a_longer_ring_covers_only_hashes_of_the_same_owner() {
        let short: Vec<u16> = (0..1021).map(|slot| slot * 7 % 10).collect();
        let long: Vec<u16> = (0..2039).map(|slot| slot / 2 * 7 % 10).collect();
        for (from, to) in [(&short, &long), (&long, &short)] {
            let before = Ring::new(from.clone());
            let after = before.moved_to(to, at(0));
            for hash in (0..=u32::MAX).step_by(100_003) {
                let (was, is) = (flow::slot(hash, before.len()), flow::slot(hash, after.len()));
                if after.slots[is as usize] & MOVED == 0 {
                    assert_eq!(before.owner(was), after.owner(is));
                }
                assert_eq!(before.owner(was), Some(after.old[was as usize]));
            }
            assert!(after.slots.iter().any(|slot| slot & MOVED == 0));
        }
    }

    #[test]
    fn a_ring_reads_back_as_written() {
        let owners: Vec<u16> = (0..70).map(|i| i / 2).collect();
        let moved = Ring::new((0..100).collect()).moved_to(&owners, at(5));
        let mut doubted = Ring::new(vec![4; 40]);
        doubted.doubt_all(at(5));
        for ring in [Ring::default(), Ring::new(vec![3; 33]), moved, doubted] {
            let chunks = ring.chunks();
            let read = |chunk: u32| chunks.get(chunk as usize - 9).copied().unwrap_or([0xffff; RING_CHUNK]);
            let place = RingRef { chunk: 9, length: ring.len() };
            assert_eq!(Ring::read(place, 1000, read, at(5)), Some(ring));
        }
        let place = RingRef { chunk: 999, length: 33 };
        assert_eq!(Ring::read(place, 1000, |_| [0; RING_CHUNK], at(5)), None);
    }
}
