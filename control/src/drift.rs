//! How often was something put back that is ours and that something else had changed?

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// What can be changed behind the daemon's back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drift {
    /// Virtual addresses of a master.
    Addresses,
    /// Virtual and static routes and rules.
    Routes,
    /// Elements of the BPF tables.
    Tables,
    /// The XDP program on an interface.
    Attachments,
    /// Files in the BPF file system, by which the next daemon finds all that.
    Pins,
}

impl Drift {
    const ALL: [(Self, &str); 5] = [
        (Self::Addresses, "addresses"),
        (Self::Routes, "routes"),
        (Self::Tables, "tables"),
        (Self::Attachments, "attachments"),
        (Self::Pins, "pins"),
    ];
}

/// Cheap to clone: all count together.
#[derive(Clone, Debug, Default)]
pub struct Drifts(Arc<[AtomicU64; Drift::ALL.len()]>);

impl Drifts {
    pub fn count(&self, drift: Drift, times: usize) {
        if let Some(counter) = self.0.get(drift as usize) {
            counter.fetch_add(times as u64, Ordering::Relaxed);
        }
    }

    /// All counters by name.
    pub fn named(&self) -> BTreeMap<String, u64> {
        let named = Drift::ALL.iter().zip(self.0.iter());
        named.map(|((_, name), count)| ((*name).to_owned(), count.load(Ordering::Relaxed))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_counted_under_its_own_name() {
        for (drift, name) in Drift::ALL {
            let drifts = Drifts::default();
            drifts.clone().count(drift, 2);
            let counted: Vec<_> = drifts.named().into_iter().filter(|(_, count)| *count > 0).collect();
            assert_eq!(counted, [(name.to_owned(), 2)]);
        }
    }
}
