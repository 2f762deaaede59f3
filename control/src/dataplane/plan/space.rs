//! Which parts of a map are in use.

use std::collections::BTreeMap;

/// First-fit allocation of `len` elements.
pub struct Space {
    len: u32,
    /// Start and length; no two touch.
    free: BTreeMap<u32, u32>,
}

impl Space {
    pub fn new(len: u32) -> Self {
        Self { len, free: (len > 0).then_some((0, len)).into_iter().collect() }
    }

    pub fn find(&mut self, wanted: u32) -> Option<u32> {
        if wanted == 0 {
            return Some(0);
        }
        let start = self.free.iter().find(|(_, len)| **len >= wanted).map(|(start, _)| *start)?;
        self.take(start, wanted).then_some(start)
    }

    /// Marks what a predecessor used; false where it overlaps or lies outside.
    pub fn take(&mut self, start: u32, len: u32) -> bool {
        if len == 0 {
            return true;
        }
        let Some(end) = start.checked_add(len) else { return false };
        let around = self.free.range(..=start).next_back().map(|(first, len)| (*first, first + len));
        let Some((first, last)) = around.filter(|(_, last)| *last >= end) else { return false };
        self.free.remove(&first);
        for (from, to) in [(first, start), (end, last)] {
            if from < to {
                self.free.insert(from, to - from);
            }
        }
        true
    }

    /// Of what was taken, or a part of it.
    pub fn give(&mut self, start: u32, len: u32) {
        if len == 0 {
            return;
        }
        let (mut first, mut end) = (start, start + len);
        let before = self.free.range(..start).next_back().map(|(first, len)| (*first, first + len));
        debug_assert!(before.is_none_or(|(_, last)| last <= start) && end <= self.len, "{start} + {len}");
        if let Some((before, _)) = before.filter(|(_, last)| *last == start) {
            first = before;
        }
        if let Some(behind) = self.free.remove(&end) {
            end += behind;
        }
        self.free.insert(first, end - first);
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.free.get(&0) == Some(&self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_gap_that_is_large_enough_is_taken() {
        let mut space = Space::new(100);
        assert_eq!([10, 20, 30].map(|len| space.find(len)), [Some(0), Some(10), Some(30)]);
        space.give(10, 20);
        assert_eq!([21, 20, 20].map(|len| space.find(len)), [Some(60), Some(10), None]);
        assert_eq!(space.find(19), Some(81));
        assert_eq!(space.find(0), Some(0));
    }

    #[test]
    fn what_is_given_back_piece_by_piece_is_one_again() {
        let mut space = Space::new(100);
        assert_eq!(space.find(100), Some(0));
        for (start, len) in [(0, 10), (20, 30), (10, 10), (50, 50)] {
            assert!(!space.is_empty());
            space.give(start, len);
        }
        assert!(space.is_empty());
    }

    #[test]
    fn a_predecessors_ranges_may_neither_overlap_nor_reach_beyond() {
        let mut space = Space::new(100);
        assert!(space.take(40, 20));
        for (start, len) in [(40, 1), (30, 11), (59, 9), (30, 60), (90, 11), (u32::MAX, 2)] {
            assert!(!space.take(start, len), "{start} + {len}");
        }
        assert!(space.take(30, 10) && space.take(60, 40) && space.take(7, 0));
    }
}
