//! Which flows are remembered, and how a cache line holds six of them.
//!
//! A flow's key is spread over 64 bits by a bijection. The upper bits name the set, so the entry need only keep the
//! others: key, real server and phase fit one word. It is read and written whole, by the program and by `lvsd`, and
//! it matches the flow exactly. Sets do not chain: what finds no room is not remembered.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::flow;

/// Entries of one set.
pub const WAYS: usize = 6;
/// Bits of the spread key that name the set.
const SET_BITS: u32 = 18;
/// Elements of `FLOWS`: 16 MiB for 1.5 million flows.
pub const SETS: u32 = 1 << SET_BITS;

/// A set, an element of `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FlowSet {
    /// Packed [`Entry`] words; 0 = free.
    pub entries: [u64; WAYS],
    /// When each was last met, in ticks (`maps::TICK_SHIFT`). Wraps.
    pub seen: [u16; WAYS],
    pub _pad: u32,
}

const _: () = assert!(size_of::<FlowSet>() == 64);

/// What the flows of one service differ in: a service is one address, port and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Network byte order.
    pub source: u32,
    /// Network byte order.
    pub source_port: u16,
    /// `Service::id`.
    pub service: u16,
}

/// Where a flow's entry is and what it looks like there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    pub set: u32,
    /// The bits of the spread key that the set does not say, where [`Entry::pack`] has them.
    pub rest: u64,
}

impl FlowKey {
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.source as u64 | (self.source_port as u64) << 32 | (self.service as u64) << 48
    }

    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        Self { source: packed as u32, source_port: (packed >> 32) as u16, service: (packed >> 48) as u16 }
    }

    #[inline(always)]
    pub const fn home(packed: u64) -> Home {
        let spread = flow::spread(packed);
        Home { set: (spread >> (64 - SET_BITS)) as u32, rest: spread << SET_BITS }
    }

    /// The other way round.
    pub const fn at(home: Home) -> Self {
        Self::unpack(flow::unspread((home.set as u64) << (64 - SET_BITS) | home.rest >> SET_BITS))
    }
}

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Only one packet was seen: it may be forged.
    New = 1,
    /// A TCP FIN or RST went by.
    Closing = 2,
    Established = 3,
}

/// A remembered flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As in [`Home`].
    pub rest: u64,
    /// Index into the service's range of `REALS`, 15 bits.
    pub real: u16,
    pub phase: Phase,
}

const REAL_SHIFT: u32 = 2;
const PHASE: u64 = (1 << REAL_SHIFT) - 1;
const REST: u64 = u64::MAX << SET_BITS;
const _: () = assert!(crate::maps::REALS_PER_SERVICE <= 1 << (SET_BITS - REAL_SHIFT));

impl Entry {
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.rest | (self.real as u64) << REAL_SHIFT | self.phase as u64
    }

    /// Whether a packed word, if it is an entry, has this rest.
    #[inline(always)]
    pub const fn has_rest(word: u64, rest: u64) -> bool {
        word & REST == rest
    }

    #[inline(always)]
    pub const fn unpack(word: u64) -> Option<Self> {
        let phase = match word & PHASE {
            1 => Phase::New,
            2 => Phase::Closing,
            3 => Phase::Established,
            _ => return None,
        };
        Some(Self { rest: word & REST, real: ((word & !REST) >> REAL_SHIFT) as u16, phase })
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), only integers, no padding (zerocopy's derives prove it).
    unsafe impl aya::Pod for super::FlowSet {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_told_by_its_place_alone() {
        for key in [
            FlowKey { source: 0, source_port: 0, service: 0 },
            FlowKey { source: u32::MAX, source_port: u16::MAX, service: u16::MAX },
            FlowKey { source: 0x0700_000a, source_port: 0x409c, service: 3 },
        ] {
            let home = FlowKey::home(key.pack());
            assert!(home.set < SETS);
            for (real, phase) in [(0, Phase::New), (0x7fff, Phase::Established), (7, Phase::Closing)] {
                let entry = Entry { rest: home.rest, real, phase };
                assert_eq!(Entry::unpack(entry.pack()), Some(entry));
            }
            assert_eq!(FlowKey::at(home), key);
        }
        assert_eq!(Entry::unpack(0), None);
    }

    #[test]
    fn the_ports_of_one_client_spread_over_the_sets() {
        const FLOWS: usize = 60_000;
        let mut sets = [0u8; SETS as usize];
        for port in 0..FLOWS as u16 {
            let key = FlowKey { source: 0x0700_000a, source_port: port.to_be(), service: 1 };
            sets[FlowKey::home(key.pack()).set as usize] += 1;
        }
        // At this load, seven in one set are an event of one in a thousand tables.
        assert!(sets.iter().all(|n| usize::from(*n) <= WAYS), "{:?}", sets.iter().max());
    }
}
