//! Over which interfaces do the adverts for an instance come, and which of these are silent while others are heard?

use std::{net::IpAddr, time::Duration};

use super::Monotonic;

/// An instance's `interface` (way 0) and its `heartbeat_interface`s. Every advert comes over each, unchanged: the first
/// copy counts, whichever way it took, and the others only say that their way is alive.
#[derive(Debug)]
pub struct Ways {
    /// Adverts in a row that came over other ways and not over this one.
    missed: Vec<u32>,
    /// So many make it silent.
    limit: u32,
    recent: [Option<Seen>; RECENT],
    next: usize,
}

/// An advert that counted.
#[derive(Clone, Copy, Debug)]
struct Seen {
    way: usize,
    from: IpAddr,
    identification: u16,
    at: Monotonic,
}

/// More than there are on their way at one time.
const RECENT: usize = 8;

impl Ways {
    pub fn new(count: usize, limit: u32) -> Self {
        Self { missed: vec![0; count], limit, recent: [None; RECENT], next: 0 }
    }

    /// The advert has counted when it came over another way. A number may come again when its sender has started anew, so
    /// it is remembered for less than the time between two adverts.
    pub fn is_copy(
        &self,
        way: usize,
        from: IpAddr,
        identification: u16,
        interval: Duration,
        now: Monotonic,
    ) -> bool {
        self.recent.iter().flatten().any(|seen| {
            seen.way != way
                && (seen.from, seen.identification) == (from, identification)
                && now < seen.at + interval / 2
        })
    }

    /// An advert counts.
    pub fn on_advert(&mut self, way: usize, from: IpAddr, identification: u16, now: Monotonic) {
        if let Some(slot) = self.recent.get_mut(self.next) {
            *slot = Some(Seen { way, from, identification, at: now });
        }
        self.next = (self.next + 1) % RECENT;
        for missed in &mut self.missed {
            *missed = missed.saturating_add(1);
        }
        self.on_copy(way);
    }

    pub fn on_copy(&mut self, way: usize) {
        if let Some(missed) = self.missed.get_mut(way) {
            *missed = 0;
        }
    }

    /// One bit for each way that is silent.
    pub fn silent(&self) -> u32 {
        let bit = |(way, missed): (usize, &u32)| u32::from(*missed >= self.limit) << way;
        self.missed.iter().enumerate().map(bit).fold(0, |bits, bit| bits | bit)
    }

    /// A master hears nobody: what was silent may not be any more.
    pub fn forget(&mut self) {
        self.missed.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    const SECOND: Duration = Duration::from_secs(1);

    /// Number and way of each copy, a millisecond apart. True for those that count.
    fn heard(ways: &mut Ways, copies: &[(u16, usize)]) -> Vec<bool> {
        let copies = copies.iter().zip(1..).map(|((identification, way), step)| {
            let now = Monotonic::default() + Duration::from_millis(step);
            let copy = ways.is_copy(*way, PEER, *identification, SECOND, now);
            if copy {
                ways.on_copy(*way);
            } else {
                ways.on_advert(*way, PEER, *identification, now);
            }
            !copy
        });
        copies.collect()
    }

    #[test]
    fn an_advert_counts_once_whichever_way_is_faster() {
        let mut ways = Ways::new(2, 3);
        let copies = [(1, 0), (1, 1), (2, 1), (2, 0), (3, 0), (4, 0), (3, 1), (4, 1)];
        assert_eq!(heard(&mut ways, &copies), [true, false, true, false, true, true, false, false]);
        assert_eq!(ways.silent(), 0);
    }

    #[test]
    fn a_way_that_misses_as_many_as_a_dead_master_is_silent_until_it_is_heard() {
        let mut ways = Ways::new(3, 3);
        heard(&mut ways, &[(1, 0), (1, 2), (2, 0), (2, 2)]);
        assert_eq!(ways.silent(), 0);
        heard(&mut ways, &[(3, 2), (3, 0)]);
        assert_eq!(ways.silent(), 0b010);
        heard(&mut ways, &[(4, 0), (4, 1)]);
        assert_eq!(ways.silent(), 0);
        heard(&mut ways, &[(5, 1), (6, 1), (7, 1)]);
        assert_eq!(ways.silent(), 0b101);
        ways.forget();
        assert_eq!(ways.silent(), 0);
    }

    #[test]
    fn the_same_number_over_the_same_way_or_an_interval_later_is_a_new_advert() {
        let mut ways = Ways::new(2, 3);
        assert_eq!(heard(&mut ways, &[(0, 0), (0, 0)]), [true, true], "a sender that does not count");
        let later = Monotonic::default() + SECOND;
        assert!(!ways.is_copy(1, PEER, 0, SECOND, later), "started anew, heard over the other way first");
    }
}
