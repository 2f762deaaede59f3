//! Which parts of a map are in use.

use std::collections::BTreeMap;

/// First-fit allocation of `len` elements.
#[derive(Clone)]
pub struct Space {
    len: u32,
    /// Start and length.
    used: BTreeMap<u32, u32>,
}

impl Space {
    pub fn new(len: u32) -> Self {
        Self { len, used: BTreeMap::new() }
    }

    pub fn find(&mut self, wanted: u32) -> Option<u32> {
        if wanted == 0 {
            return Some(0);
        }
        let mut at = 0u32;
        for (start, len) in &self.used {
            if start - at >= wanted {
                break;
            }
            at = start + len;
        }
        (self.len - at >= wanted).then(|| {
            self.used.insert(at, wanted);
            at
        })
    }

    /// Marks what a predecessor used; false where it overlaps or lies outside.
    pub fn take(&mut self, start: u32, len: u32) -> bool {
        if len == 0 {
            return true;
        }
        let Some(end) = start.checked_add(len).filter(|end| *end <= self.len) else { return false };
        let overlaps = self.used.range(..end).next_back().is_some_and(|(s, l)| s + l > start);
        if !overlaps {
            self.used.insert(start, len);
        }
        !overlaps
    }

    /// Keeps the first `len` elements of the range at `start`.
    pub fn shrink(&mut self, start: u32, len: u32) {
        if let Some(used) = self.used.get_mut(&start) {
            debug_assert!(len <= *used);
            *used = len;
        }
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.used.is_empty()
    }

    pub fn give(&mut self, start: u32, len: u32) {
        if len > 0 {
            let freed = self.used.remove(&start);
            debug_assert_eq!(freed, Some(len));
        }
    }
}
