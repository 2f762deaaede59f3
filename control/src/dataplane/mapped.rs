//! BPF arrays mapped into this process: a store is visible to the next packet, without a system call.

use std::{
    io, marker::PhantomData, num::NonZeroUsize, os::fd::AsFd, ptr::NonNull, sync::atomic::AtomicU64,
    sync::atomic::Ordering,
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const PAGE: usize = 4096;
const WORD: usize = size_of::<u64>();

/// An array map created with BPF_F_MMAPABLE (Linux 5.5), its elements read and written in aligned 8-byte
/// words: a word is never seen half written.
pub struct Mapped<T> {
    words: NonNull<u64>,
    len: u32,
    bytes: NonZeroUsize,
    element: PhantomData<T>,
}

// SAFETY: the mapping lives as long as the value and is only touched through atomics.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

impl<T: FromBytes + IntoBytes + Immutable> Mapped<T> {
    const WORDS: usize = {
        assert!(
            size_of::<T>().is_multiple_of(WORD),
            "array maps pad elements to 8 bytes: declare the padding"
        );
        size_of::<T>() / WORD
    };

    /// Maps the array of `len` elements behind `fd`.
    pub fn map(fd: impl AsFd, len: u32) -> io::Result<Self> {
        let bytes = Self::bytes(len)?;
        // SAFETY: a fresh shared mapping where the kernel chooses; it refuses a length beyond the map.
        let address = unsafe {
            mmap(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, fd, 0)?
        };
        Ok(Self { words: address.cast(), len, bytes, element: PhantomData })
    }

    /// An array that no XDP program reads, for tests.
    pub fn anonymous(len: u32) -> io::Result<Self> {
        let bytes = Self::bytes(len)?;
        // SAFETY: a fresh private mapping where the kernel chooses.
        let address = unsafe {
            mmap_anonymous(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)?
        };
        Ok(Self { words: address.cast(), len, bytes, element: PhantomData })
    }

    fn bytes(len: u32) -> io::Result<NonZeroUsize> {
        NonZeroUsize::new((len as usize * size_of::<T>()).next_multiple_of(PAGE))
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    pub fn len(&self) -> u32 {
        self.len
    }

    /// Word `word` of element `index`.
    pub fn word(&self, index: u32, word: usize) -> &AtomicU64 {
        assert!(index < self.len && word < Self::WORDS, "{index}.{word} is beyond a map of {}", self.len);
        // SAFETY: inside the mapping by the check above; aligned, since the mapping begins on a page.
        unsafe { AtomicU64::from_ptr(self.words.as_ptr().add(index as usize * Self::WORDS + word)) }
    }

    pub fn read(&self, index: u32) -> T {
        let mut value = T::new_zeroed();
        for (word, bytes) in value.as_mut_bytes().chunks_exact_mut(WORD).enumerate() {
            bytes.copy_from_slice(&self.word(index, word).load(Ordering::Acquire).to_ne_bytes());
        }
        value
    }

    /// Each word is stored whole; a reader may meet old and new words of one element together.
    pub fn write(&self, index: u32, value: &T) {
        for (word, bytes) in value.as_bytes().chunks_exact(WORD).enumerate() {
            let mut new = [0; WORD];
            new.copy_from_slice(bytes);
            self.word(index, word).store(u64::from_ne_bytes(new), Ordering::Release);
        }
    }

    pub fn read_all(&self) -> Vec<T> {
        (0..self.len).map(|index| self.read(index)).collect()
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `map` or `anonymous`, not used after this. Failure would leak it, no more.
        let _ = unsafe { munmap(self.words.cast(), self.bytes.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_reads_back_as_written_and_leaves_its_neighbours_alone() {
        let map = Mapped::<[u16; 32]>::anonymous(3).unwrap();
        let mut ring = [7u16; 32];
        ring[31] = 9;
        map.write(1, &ring);
        assert_eq!(map.read_all(), vec![[0; 32], ring, [0; 32]]);
    }
}
