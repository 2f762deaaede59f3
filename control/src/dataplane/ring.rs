//! A service's ring through its changes: who owns each slot, which slots have moved, and whose they were before.

use lvs_ebpf_common::maps::{MOVED, NOBODY, RING_CHUNK, RING_CHUNKS, RingChunk};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ring {
    /// As the map has them: an owner's index, with MOVED.
    slots: Vec<u16>,
    /// The owners before the first move since the ring was settled, on a ring that may be of another length.
    /// Empty = nothing has moved, or all flows of then have ended.
    old: Vec<u16>,
}

impl Ring {
    /// A ring that no flow knew before.
    pub fn new(owners: Vec<u16>) -> Self {
        Self { slots: owners, old: Vec::new() }
    }

    /// Slots.
    pub fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    pub fn owner(&self, slot: u32) -> Option<u16> {
        self.slots.get(slot as usize).map(|slot| slot & !MOVED)
    }

    pub fn is_owner(&self, index: u16) -> bool {
        self.slots.iter().any(|slot| slot & !MOVED == index)
    }

    /// Whether some flow may be led to this real server, by the ring or by its past.
    pub fn knows(&self, index: u16) -> bool {
        self.is_owner(index) || self.old.contains(&index)
    }

    pub fn has_moved(&self) -> bool {
        self.slots.iter().any(|slot| slot & MOVED != 0)
    }

    pub fn is_owned_as(&self, owners: &[u16]) -> bool {
        self.slots.len() == owners.len() && self.slots.iter().zip(owners).all(|(slot, o)| slot & !MOVED == *o)
    }

    /// The ring once its slots have these owners. A flow without an entry that began before the first of several
    /// moves has met no owner but the first; one that began later has an entry. So the old owners stay what they were.
    pub fn moved_to(&self, owners: &[u16]) -> Self {
        if self.slots.is_empty() {
            return Self::new(owners.to_vec());
        }
        let length = owners.len() as u64;
        let before = self.slots.len() as u64;
        let slots = owners.iter().enumerate().map(|(slot, owner)| {
            // Rings of different lengths share the hashes, not the slots.
            let first = (slot as u64 * before / length) as usize;
            let last = (((slot as u64 + 1) * before).div_ceil(length) as usize).min(self.slots.len());
            let moved = self.slots[first..last].iter().any(|before| before != owner);
            if moved { owner | MOVED } else { *owner }
        });
        let slots: Vec<u16> = slots.collect();
        let old = if self.old.is_empty() {
            self.slots.iter().map(|slot| slot & !MOVED).collect()
        } else {
            self.old.clone()
        };
        let ring = Self { slots, old };
        if ring.has_moved() { ring } else { Self { old: Vec::new(), ..ring } }
    }

    /// Makes every packet ask the flow table.
    pub fn doubt_all(&mut self) {
        self.slots.iter_mut().for_each(|slot| *slot |= MOVED);
    }

    /// Forgets the old owners, and of the moves all but those that `dissent`: where a flow lives elsewhere than its
    /// slot's owner.
    pub fn settle(&mut self, dissent: impl Fn(u32) -> bool) {
        self.old.clear();
        for (slot, entry) in self.slots.iter_mut().enumerate() {
            if !dissent(slot as u32) {
                *entry &= !MOVED;
            }
        }
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

    /// None where it would reach beyond the map.
    pub fn read(first: u32, length: u32, chunk: impl Fn(u32) -> RingChunk) -> Option<Self> {
        let read = |first: u32, length: u32| {
            let chunks = length.div_ceil(RING_CHUNK as u32);
            let end = first.checked_add(chunks).filter(|end| *end <= RING_CHUNKS)?;
            let slots: Vec<u16> = (first..end).flat_map(&chunk).take(length as usize).collect();
            Some((slots, end))
        };
        let (slots, end) = read(first, length)?;
        let mut ring = Self::new(slots);
        if ring.has_moved() {
            let (header, end) = read(end, RING_CHUNK as u32)?;
            ring.old = read(end, whole(&header))?.0;
        }
        Some(ring)
    }
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

    #[test]
    fn only_slots_with_another_owner_have_moved() {
        let ring = Ring::new(vec![1, 2, 3]).moved_to(&[1, 5, 3]);
        assert_eq!(ring.slots, [1, 5 | MOVED, 3]);
        assert_eq!(ring.old, [1, 2, 3]);
    }

    #[test]
    fn a_second_move_keeps_the_first_owners_and_the_way_back_stays_moved() {
        let ring = Ring::new(vec![1, 2, 3]).moved_to(&[1, 5, 3]).moved_to(&[1, 2, 6]);
        assert_eq!(ring.slots, [1, 2 | MOVED, 6 | MOVED]);
        assert_eq!(ring.old, [1, 2, 3]);
    }

    #[test]
    fn a_move_after_settling_has_the_owners_of_then_as_the_old() {
        let mut ring = Ring::new(vec![1, 2, 3]).moved_to(&[1, 5, 6]);
        ring.settle(|slot| slot == 1);
        assert_eq!(ring, Ring { slots: vec![1, 5 | MOVED, 6], old: Vec::new() });
        let ring = ring.moved_to(&[1, 5, 7]);
        assert_eq!(ring, Ring { slots: vec![1, 5 | MOVED, 7 | MOVED], old: vec![1, 5, 6] });
    }

    #[test]
    fn an_unmoved_slot_of_a_longer_ring_covers_only_hashes_of_the_same_owner() {
        let short: Vec<u16> = (0..1021).map(|slot| slot * 7 % 10).collect();
        let long: Vec<u16> = (0..2039).map(|slot| slot / 2 * 7 % 10).collect();
        for (from, to) in [(&short, &long), (&long, &short)] {
            let before = Ring::new(from.clone());
            let after = before.moved_to(to);
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
        let moved = Ring::new((0..100).collect()).moved_to(&(0..70).map(|i| i / 2).collect::<Vec<_>>());
        let mut doubted = Ring::new(vec![4; 40]);
        doubted.doubt_all();
        for ring in [Ring::default(), Ring::new(vec![3; 33]), moved, doubted] {
            let chunks = ring.chunks();
            let read = |chunk: u32| chunks.get(chunk as usize - 9).copied().unwrap_or([0xffff; RING_CHUNK]);
            assert_eq!(Ring::read(9, ring.len(), read), Some(ring));
        }
        assert_eq!(Ring::read(RING_CHUNKS - 1, 33, |_| [0; RING_CHUNK]), None);
    }
}
