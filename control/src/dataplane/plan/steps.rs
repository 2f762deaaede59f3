//! The writes of one plan by phase, and what of the maps' space it takes and frees.

use super::{Tables, Write};

#[derive(Default)]
pub(super) struct Steps {
    /// Where no packet looks, or of which each old and new word is right.
    pub prepare: Vec<Write>,
    pub publish: Vec<Write>,
    /// When no packet can still be using it.
    pub retire: Vec<Write>,
    /// The table of services has to be filled anew.
    pub rebuild: bool,
    /// To be given back if the plan fails.
    pub taken: Places,
    /// To be given back when it is done.
    pub freed: Places,
}

/// Start and length; numbers of services.
#[derive(Default)]
pub(super) struct Places {
    pub chunks: Vec<(u32, u32)>,
    pub ranges: Vec<(u32, u32)>,
    pub ids: Vec<u16>,
}

impl Tables {
    pub(super) fn give_back(&mut self, places: &Places) {
        for (start, len) in &places.chunks {
            self.chunks.give(*start, *len);
        }
        for (start, len) in &places.ranges {
            self.ranges.give(*start, *len);
        }
        for id in &places.ids {
            self.ids.give(u32::from(*id), 1);
        }
    }

    /// The writes in order.
    pub(super) fn finish(&mut self, steps: Steps) -> Vec<Write> {
        self.give_back(&steps.freed);
        let mut writes = steps.prepare;
        if !steps.publish.is_empty() {
            writes.extend(steps.publish);
            writes.push(Write::Grace);
        }
        writes.extend(steps.retire);
        if !steps.freed.ids.is_empty() {
            writes.push(Write::Forget { ids: steps.freed.ids });
        }
        writes
    }
}
