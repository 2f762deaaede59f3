//! The lease map, written by the VRRP thread without a system call.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use lvs_ebpf_common::{Lease, maps};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// `LEASES`, mapped into this process: a store is visible to the next ARP request.
pub struct LeaseMap {
    leases: NonNull<Lease>,
}

// SAFETY: the mapping lives as long as the value and is only touched through atomics.
unsafe impl Send for LeaseMap {}

const LEN: std::num::NonZeroUsize = {
    // Multiple of the page size, as the kernel rounds it.
    let bytes = maps::LEASE_SLOTS as usize * size_of::<Lease>();
    assert!(bytes % 4096 == 0);
    match std::num::NonZeroUsize::new(bytes) {
        Some(len) => len,
        None => panic!("no lease slots"),
    }
};

impl LeaseMap {
    /// Maps the BPF map behind `fd` (an array of [`Lease`] created with BPF_F_MMAPABLE).
    pub fn map(fd: impl AsFd) -> io::Result<Self> {
        Self::map_fd(fd.as_fd())
    }

    fn map_fd(fd: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a fresh shared mapping at an address the kernel chooses; the kernel refuses a length beyond the map.
        let address = unsafe {
            mmap(None, LEN, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, fd, 0)?
        };
        Ok(Self { leases: address.cast() })
    }

    /// A map no XDP program reads, for tests.
    pub fn anonymous() -> io::Result<Self> {
        // SAFETY: a fresh private mapping at an address the kernel chooses.
        let address = unsafe {
            mmap_anonymous(None, LEN, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)?
        };
        Ok(Self { leases: address.cast() })
    }

    fn until_cell(&self, index: u32) -> &AtomicU64 {
        assert!(index < maps::LEASE_SLOTS, "lease index {index} is beyond the map");
        // SAFETY: inside the mapping by the check above; `until` is the first field, 8-byte aligned since the
        // mapping is page aligned and `Lease` is 16 bytes.
        unsafe { AtomicU64::from_ptr(self.leases.as_ptr().add(index as usize).cast()) }
    }

    /// Allows answers until `until` (CLOCK_MONOTONIC nanoseconds).
    pub fn hold(&self, index: u32, until: u64) {
        self.until_cell(index).store(until, Ordering::Release);
    }

    /// Forbids answers from now on.
    pub fn resign(&self, index: u32) {
        self.until_cell(index).store(0, Ordering::Release);
    }

    /// Until when answers are allowed; 0 = resigned.
    pub fn until(&self, index: u32) -> u64 {
        self.until_cell(index).load(Ordering::Acquire)
    }
}

impl Drop for LeaseMap {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `map` or `anonymous`, not used after this. Failure would leak it, no more.
        let _ = unsafe { munmap(self.leases.cast(), LEN.get()) };
    }
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
    }
}
