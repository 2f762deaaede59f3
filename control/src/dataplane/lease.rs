//! The lease map, written by the VRRP thread without a system call, and who owns which element of it.

use std::{
    io,
    os::fd::AsFd,
    sync::{Arc, atomic::Ordering},
};

use lvs_ebpf_common::{Lease, LeaseOwner, maps};

use super::mapped::Mapped;

/// `LEASES`, mapped into this process.
#[derive(Clone)]
pub struct LeaseMap(Arc<Mapped<Lease>>);

/// Words of [`Lease`].
const UNTIL: usize = std::mem::offset_of!(Lease, until) / 8;
const HELD: usize = std::mem::offset_of!(Lease, held) / 8;

impl LeaseMap {
    pub fn map(fd: impl AsFd) -> io::Result<Self> {
        Mapped::map(fd, maps::LEASE_SLOTS).map(Arc::new).map(Self)
    }

    /// A map no XDP program reads, for tests.
    pub fn anonymous() -> io::Result<Self> {
        Mapped::anonymous(maps::LEASE_SLOTS).map(Arc::new).map(Self)
    }

    /// Allows answers until `until` (CLOCK_MONOTONIC nanoseconds).
    pub fn hold(&self, index: u32, until: u64) {
        self.0.word(index, HELD).store(until, Ordering::Release);
        self.0.word(index, UNTIL).store(until, Ordering::Release);
    }

    /// Forbids answers from now on.
    pub fn resign(&self, index: u32) {
        self.0.word(index, UNTIL).store(0, Ordering::Release);
    }

    /// Until when answers are allowed; 0 = resigned.
    pub fn until(&self, index: u32) -> u64 {
        self.0.word(index, UNTIL).load(Ordering::Acquire)
    }

    /// Gives each owner its element: the one it had, else a free one. Elements of owners that are gone are
    /// resigned and freed.
    pub fn assign(&self, owners: &[LeaseOwner]) -> Result<Vec<u32>, NoLeaseLeft> {
        let mut free = Vec::new();
        let mut had = std::collections::HashMap::new();
        for index in (0..maps::LEASE_SLOTS).rev() {
            let lease = self.0.read(index);
            if owners.contains(&lease.owner) {
                had.insert(lease.owner, index);
                continue;
            }
            if lease != Lease::default() {
                self.resign(index);
                self.0.write(index, &Lease::default());
            }
            free.push(index);
        }
        owners
            .iter()
            .map(|owner| {
                if let Some(index) = had.get(owner) {
                    return Ok(*index);
                }
                let index = free.pop().ok_or(NoLeaseLeft { instances: owners.len() })?;
                self.0.write(index, &Lease { owner: *owner, ..Lease::default() });
                Ok(index)
            })
            .collect()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{instances} vrrp_instances are more than the {} this node can run", maps::LEASE_SLOTS)]
pub struct NoLeaseLeft {
    instances: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_held_until_it_is_resigned() {
        let leases = LeaseMap::anonymous().unwrap();
        assert_eq!(leases.until(3), 0);
        leases.hold(3, 77);
        assert_eq!((leases.until(2), leases.until(3)), (0, 77));
        leases.resign(3);
        assert_eq!(leases.until(3), 0);
        assert_eq!(leases.0.read(3).held, 77, "packets may be on their way still");
    }

    #[test]
    fn a_restart_finds_its_lease_again_and_frees_those_of_removed_instances() {
        let leases = LeaseMap::anonymous().unwrap();
        let owner = |vrid| LeaseOwner { ifindex: 4, vrid, family: 2 };
        let before = leases.assign(&[owner(51), owner(52)]).unwrap();
        for index in &before {
            leases.hold(*index, 99);
        }
        let after = leases.assign(&[owner(53), owner(52)]).unwrap();
        assert_eq!(after[1], before[1]);
        assert_eq!(leases.until(after[1]), 99, "still held");
        assert_eq!(leases.until(after[0]), 0, "a new instance starts without one");
        assert!(before[0] == after[0] || leases.until(before[0]) == 0, "resigned with its instance");
    }
}
