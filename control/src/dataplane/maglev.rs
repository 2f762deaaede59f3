//! Which real server owns which slot of a service's ring.
//!
//! Weighted Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4). The ring depends only on the members'
//! identities and weights, never on their order or history: every director and every restart computes the same.

use std::net::IpAddr;

use lvs_ebpf_common::flow;

use crate::config::model::Limit;

/// A real server on the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// What its slots hold: the index inside the service's range of reals.
    pub index: u16,
    pub weight: u16,
    /// What both directors know it by.
    pub identity: u64,
    pub limit: Option<Limit>,
}

/// Whether some may have only so many connections.
pub fn are_limited(members: &[Member]) -> bool {
    members.iter().any(|member| member.limit.is_some())
}

/// Of an IPv4 address and port it is all of both.
pub fn identity(address: IpAddr, port: u16) -> u64 {
    match address {
        IpAddr::V4(address) => u64::from(address.to_bits()) << 16 | u64::from(port),
        IpAddr::V6(address) => {
            let (network, host) = ((address.to_bits() >> 64) as u64, address.to_bits() as u64);
            flow::spread(flow::spread(network) ^ host) ^ u64::from(port)
        }
    }
}

/// Ring lengths: the largest prime below each power of two, so that every permutation step visits all slots.
const LENGTHS: [u32; 13] =
    [1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071, 262139, 524287, 1048573, 2097143, 4194301];
/// With this many slots a real, shares are exact to 1 %.
const SLOTS_PER_REAL: usize = 100;

/// Length for a service with `reals` configured real servers, alive or not: a check must not change it.
pub fn length(reals: usize) -> u32 {
    let wanted = reals.saturating_mul(SLOTS_PER_REAL);
    LENGTHS.into_iter().find(|length| *length as usize >= wanted).unwrap_or(LENGTHS[LENGTHS.len() - 1])
}

/// Fills a ring of prime `length`. Members of weight 0 get no slot; without any other the ring is empty.
pub fn ring(members: &[Member], length: u32) -> Vec<u16> {
    let mut members: Vec<Member> = members.iter().copied().filter(|m| m.weight > 0).collect();
    members.sort_unstable_by_key(|m| m.identity);
    let Some(heaviest) = members.iter().map(|m| u32::from(m.weight)).max() else { return Vec::new() };

    let mut walks: Vec<Walk> = members.iter().map(|m| Walk::new(m.identity, length)).collect();
    let mut credit = vec![0u32; members.len()];
    let mut owners = vec![0; length as usize];
    // A bit for each slot: nearly all looks are at taken ones, and this fits the nearest cache.
    let mut taken = vec![0u64; length.div_ceil(u64::BITS) as usize];
    let is_taken = |taken: &[u64], at: u32| taken[(at / u64::BITS) as usize] >> (at % u64::BITS) & 1 == 1;
    let mut left = length;
    // Each round gives the heaviest member one slot and the others their fraction of one.
    loop {
        for (i, member) in members.iter().enumerate() {
            credit[i] += u32::from(member.weight);
            if credit[i] < heaviest {
                continue;
            }
            credit[i] -= heaviest;
            let walk = &mut walks[i];
            while is_taken(&taken, walk.at) {
                walk.step(length);
            }
            taken[(walk.at / u64::BITS) as usize] |= 1 << (walk.at % u64::BITS);
            owners[walk.at as usize] = member.index;
            left -= 1;
            if left == 0 {
                return owners;
            }
        }
    }
}

/// A member's own order of preference over all slots.
struct Walk {
    at: u32,
    skip: u32,
}

impl Walk {
    fn new(identity: u64, length: u32) -> Self {
        let at = flow::mix(identity) % length;
        let skip = flow::mix(identity ^ 0x9ddf_ea08_eb38_2d69) % (length - 1) + 1;
        Self { at, skip }
    }

    fn step(&mut self, length: u32) {
        self.at += self.skip;
        if self.at >= length {
            self.at -= length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(weights: &[u16]) -> Vec<Member> {
        weights
            .iter()
            .enumerate()
            .map(|(i, weight)| Member {
                index: i as u16,
                weight: *weight,
                identity: 0x0a4d_0000_0050 + (i as u64) * 0x1_0000,
                limit: None,
            })
            .collect()
    }

    fn shares(ring: &[u16], reals: usize) -> Vec<usize> {
        let mut shares = vec![0; reals];
        for index in ring {
            shares[*index as usize] += 1;
        }
        shares
    }

    #[test]
    fn slots_are_shared_by_weight_to_one_slot() {
        let shares = shares(&ring(&members(&[1, 2, 5, 0]), 1021), 4);
        let total = 8.0;
        for (share, weight) in shares.iter().zip([1.0, 2.0, 5.0, 0.0]) {
            let exact = 1021.0 * weight / total;
            assert!((*share as f64 - exact).abs() <= 1.0, "{shares:?}");
        }
    }

    #[test]
    fn a_ring_of_nobody_is_empty() {
        assert!(ring(&[], 1021).is_empty());
        assert!(ring(&members(&[0, 0]), 1021).is_empty());
    }

    #[test]
    fn the_order_of_the_members_does_not_matter() {
        let forward = members(&[3, 1, 4, 1, 5]);
        let mut backward = forward.clone();
        backward.reverse();
        assert_eq!(ring(&forward, 1021), ring(&backward, 1021));
    }

    #[test]
    fn losing_one_of_a_hundred_moves_little_more_than_its_own_slots() {
        let weights: Vec<u16> = (0..100).map(|number| number % 5 + 1).collect();
        let pools = [members(&[1; 100]), members(&weights)];
        for (all, lost) in pools.iter().flat_map(|all| [0, 17, 42, 99].map(|lost| (all, lost))) {
            let length = length(100);
            let before = ring(all, length);
            let mut less = all.clone();
            less[usize::from(lost)].weight = 0;
            let after = ring(&less, length);
            let must = before.iter().filter(|index| **index == lost).count();
            let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
            let beyond = (moved - must) as f64 / length as f64;
            assert!(beyond <= 0.02, "{beyond} of the ring moved without need");
            assert!(!after.contains(&lost));
        }
    }

    #[test]
    fn the_length_is_a_prime_of_at_least_a_hundred_slots_a_real() {
        for length in LENGTHS {
            assert!((2..).take_while(|d| d * d <= length).all(|d| length % d != 0), "{length}");
        }
        assert_eq!((length(0), length(10), length(11), length(100)), (1021, 1021, 2039, 16381));
    }
}
