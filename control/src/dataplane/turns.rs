//! Whose turn is it to get a new flow? The schedulers that go by order or by load, as sequences of real servers that
//! the XDP program walks through. What follows the load is planned ahead and replaced a few times a second.
//!
//! A flow that took a turn is lost at a failover, for the other director knows only the ring. So turns that follow the load
//! are taken only by flows whose owner on the ring is overloaded.

use std::cmp::Reverse;

use lvs_ebpf_common::{Service, maps};

use super::maglev::Member;
use crate::config::model::Scheduler;

/// How a service's turns go, by the name of the IPVS scheduler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Turns {
    /// `rr`
    #[default]
    RoundRobin,
    /// `wrr`
    WeightedRoundRobin,
    /// `lc`
    LeastConnections,
    /// `wlc`
    WeightedLeastConnections,
    /// `sed`
    ShortestExpectedDelay,
    /// `nq`
    NeverQueue,
    /// `fo`
    Failover,
    /// `ovf`
    Overflow,
    /// `twos`
    TwoChoices,
    /// `mh`, `sh`, `dh`: turns are taken where the real server by hash is full.
    Hashed,
}

/// A real server that may get a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    pub index: u16,
    /// 0 = gets none.
    pub weight: u16,
    pub load: Load,
    /// It has as many connections as it may have: it gets none either.
    pub full: bool,
}

/// The flows of a real server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Established.
    pub active: u32,
    /// Opening or closing.
    pub inactive: u32,
}

/// How many turns are planned ahead where they follow the load.
pub const AHEAD: usize = 256;
/// Nobody is overloaded who has less than so many connections more than the least loaded has by weight: hashing alone
/// spreads a few connections no better.
const MARGIN: u64 = 16;
/// And less than this part of what it would have if it were loaded as that one.
const MARGIN_PART: u64 = 4;
/// Turns of a `wrr` sequence, at most, unless there are more candidates: each has one. It is exact while the weights, divided
/// by what divides them all, add up to no more.
const LONGEST: u64 = 4096;

/// How long the sequences of a service with so many real servers are at most.
pub fn longest(scheduler: Scheduler, reals: usize) -> usize {
    match scheduler {
        // What is cut down to `LONGEST` is lengthened again by a turn for each that would have none.
        Scheduler::Wrr => LONGEST as usize + reals,
        _ => AHEAD.max(reals),
    }
}

impl Turns {
    /// Which flows take them: `Service::takes_turns`. `limited`: some real servers may have only so many connections.
    pub fn takers(self, limited: bool) -> u16 {
        match self {
            Self::RoundRobin | Self::WeightedRoundRobin => Service::EVERY_TURN,
            Self::Failover | Self::Hashed if !limited => Service::NO_TURNS,
            _ => Service::TURNS_OF_OVERLOADED,
        }
    }

    pub fn follow_load(self, limited: bool) -> bool {
        limited || self.takers(limited) == Service::TURNS_OF_OVERLOADED
    }

    /// Who is on the service's ring, and with which weight.
    pub fn on_ring(self, members: &[Member]) -> Vec<Member> {
        // One of the heaviest, and on every director the same one.
        let first = members.iter().max_by_key(|m| (m.weight, Reverse(m.identity))).map(|m| m.index);
        let weight = |member: &Member| match self {
            Self::LeastConnections => member.weight.min(1),
            Self::Failover | Self::Overflow if Some(member.index) != first => 0,
            _ => member.weight,
        };
        members.iter().map(|m| Member { weight: weight(m), ..*m }).collect()
    }

    /// Indexes of those that new flows had better avoid.
    pub fn overloaded(self, candidates: &[Candidate]) -> Vec<u16> {
        let full = candidates.iter().filter(|c| c.full).map(|c| c.index);
        self.busy(candidates).into_iter().chain(full).collect()
    }

    /// Those that have clearly more to do than others.
    fn busy(self, candidates: &[Candidate]) -> Vec<u16> {
        let able = || candidates.iter().filter(|c| c.may_take());
        // A connection as `cost` counts it.
        let (cost, unit): (fn(&Candidate) -> Cost, u64) = match self {
            Self::Overflow => {
                let full = able().filter(|c| !has_room(c));
                return full.map(|c| c.index).collect();
            }
            Self::NeverQueue if able().any(is_idle) => {
                let busy = able().filter(|c| !is_idle(c));
                return busy.map(|c| c.index).collect();
            }
            Self::ShortestExpectedDelay | Self::NeverQueue => (delay, 1),
            Self::LeastConnections => (unweighted, ACTIVE),
            Self::RoundRobin | Self::WeightedRoundRobin | Self::Failover | Self::Hashed => return Vec::new(),
            Self::WeightedLeastConnections | Self::TwoChoices => (weighted, ACTIVE),
        };
        let Some(least) = able().map(cost).reduce(|a, b| if is_less(b, a) { b } else { a }) else {
            return Vec::new();
        };
        let is_overloaded = |candidate: &&Candidate| {
            let (load, weight) = cost(candidate);
            let share = least.0.saturating_mul(weight) / least.1.max(1);
            load > share + (share / MARGIN_PART).max(MARGIN * unit)
        };
        able().filter(is_overloaded).map(|c| c.index).collect()
    }

    /// The turns to come from number `turn` on, [`AHEAD`] of them where they follow the load, else to be repeated. Empty
    /// without candidates.
    pub fn sequence(self, candidates: &[Candidate], turn: u64, limited: bool) -> Vec<u16> {
        let mut able: Vec<_> = candidates.iter().copied().filter(Candidate::may_take).collect();
        // As IPVS has it, a pool that is full takes nothing new.
        if able.is_empty() && candidates.iter().any(|c| c.full && c.weight > 0) {
            return vec![maps::NOBODY; AHEAD];
        }
        match self {
            Self::RoundRobin | Self::WeightedRoundRobin => {
                let round = match self {
                    Self::RoundRobin => able.iter().map(|c| c.index).collect(),
                    _ => interleaved(&able),
                };
                if !limited {
                    return round;
                }
                let first = turn.checked_rem(round.len() as u64).unwrap_or_default() as usize;
                round.into_iter().cycle().skip(first).take(AHEAD).collect()
            }
            Self::Failover | Self::Hashed if !limited => Vec::new(),
            _ => {
                let mut random = fastrand::Rng::with_seed(turn);
                let turn = |_| {
                    let next = self.next(&able, &mut random)?;
                    able[next].load.active = able[next].load.active.saturating_add(1);
                    Some(able[next].index)
                };
                (0..AHEAD).map_while(turn).collect()
            }
        }
    }

    fn next(self, candidates: &[Candidate], random: &mut fastrand::Rng) -> Option<usize> {
        match self {
            Self::LeastConnections => least(candidates, unweighted),
            Self::ShortestExpectedDelay => least(candidates, delay),
            Self::NeverQueue => candidates.iter().position(is_idle).or_else(|| least(candidates, delay)),
            Self::Overflow => heaviest(candidates, has_room).or_else(|| least(candidates, weighted)),
            Self::Failover => heaviest(candidates, |_| true),
            Self::TwoChoices => {
                let first = by_weight(candidates, random)?;
                let second = by_weight(candidates, random)?;
                Some(if is_less(weighted(&candidates[second]), weighted(&candidates[first])) {
                    second
                } else {
                    first
                })
            }
            _ => least(candidates, weighted),
        }
    }
}

impl Candidate {
    fn may_take(&self) -> bool {
        self.weight > 0 && !self.full
    }
}

/// A fraction: what, by what weight.
type Cost = (u64, u64);

/// As ip_vs_wlc has it: an inactive connection costs a 256th of an active one.
const ACTIVE: u64 = 256;

fn overhead(candidate: &Candidate) -> u64 {
    u64::from(candidate.load.active) * ACTIVE + u64::from(candidate.load.inactive)
}

fn unweighted(candidate: &Candidate) -> Cost {
    (overhead(candidate), 1)
}

fn weighted(candidate: &Candidate) -> Cost {
    (overhead(candidate), candidate.weight.into())
}

fn delay(candidate: &Candidate) -> Cost {
    (u64::from(candidate.load.active) + 1, candidate.weight.into())
}

fn is_idle(candidate: &Candidate) -> bool {
    candidate.load.active == 0
}

/// For `ovf`.
fn has_room(candidate: &Candidate) -> bool {
    candidate.load.active <= u32::from(candidate.weight)
}

fn is_less(a: Cost, b: Cost) -> bool {
    a.0 * b.1 < b.0 * a.1
}

/// The first of those with the least cost.
fn least(candidates: &[Candidate], cost: impl Fn(&Candidate) -> Cost) -> Option<usize> {
    (0..candidates.len())
        .reduce(|best, i| if is_less(cost(&candidates[i]), cost(&candidates[best])) { i } else { best })
}

/// The first of those with the greatest weight.
fn heaviest(candidates: &[Candidate], may: impl Fn(&Candidate) -> bool) -> Option<usize> {
    (0..candidates.len())
        .filter(|i| may(&candidates[*i]))
        .reduce(|best, i| if candidates[i].weight > candidates[best].weight { i } else { best })
}

fn by_weight(candidates: &[Candidate], random: &mut fastrand::Rng) -> Option<usize> {
    let total: u64 = candidates.iter().map(|c| u64::from(c.weight)).sum();
    let mut at = (total > 0).then(|| random.u64(0..total))?;
    candidates.iter().position(|c| {
        let here = at < u64::from(c.weight);
        at = at.saturating_sub(c.weight.into());
        here
    })
}

/// ip_vs_wrr: in each round those whose weight reaches the mark, which sinks from the greatest weight by the greatest
/// common divisor.
fn interleaved(candidates: &[Candidate]) -> Vec<u16> {
    let mut weights: Vec<u64> = candidates.iter().map(|c| u64::from(c.weight)).collect();
    let mut divisor = weights.iter().copied().fold(0, gcd).max(1);
    let total = weights.iter().sum::<u64>() / divisor;
    if total > LONGEST {
        weights.iter_mut().for_each(|weight| *weight = (*weight * LONGEST / (total * divisor)).max(1));
        divisor = 1;
    }
    let greatest = weights.iter().copied().max().unwrap_or_default();
    let marks = (0..greatest / divisor).map(|round| greatest - round * divisor);
    marks
        .flat_map(|mark| {
            let reached = candidates.iter().zip(&weights).filter(move |(_, weight)| **weight >= mark);
            reached.map(|(candidate, _)| candidate.index)
        })
        .collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(weights_and_active: &[(u16, u32)]) -> Vec<Candidate> {
        let candidate = |(index, &(weight, active)): (usize, &(u16, u32))| Candidate {
            index: index as u16,
            weight,
            load: Load { active, inactive: 0 },
            full: false,
        };
        weights_and_active.iter().enumerate().map(candidate).collect()
    }

    fn shares(sequence: &[u16], reals: usize) -> Vec<usize> {
        (0..reals as u16).map(|real| sequence.iter().filter(|index| **index == real).count()).collect()
    }

    #[test]
    fn round_robin_passes_by_who_has_no_weight_and_knows_no_other() {
        let pool = pool(&[(1, 0), (0, 0), (9, 50)]);
        assert_eq!(Turns::RoundRobin.sequence(&pool, 0, false), [0, 2]);
    }

    #[test]
    fn weighted_round_robin_interleaves_as_ipvs_does() {
        assert_eq!(
            Turns::WeightedRoundRobin.sequence(&pool(&[(4, 0), (3, 0), (2, 0)]), 0, false),
            [0, 0, 1, 0, 1, 2, 0, 1, 2]
        );
        assert_eq!(Turns::WeightedRoundRobin.sequence(&pool(&[(200, 0), (100, 0)]), 0, false), [0, 0, 1]);
        let huge = Turns::WeightedRoundRobin.sequence(&pool(&[(65_535, 0), (65_534, 0), (1, 0)]), 0, false);
        assert_eq!(shares(&huge, 3), [2048, 2047, 1]);
    }

    #[test]
    fn no_sequence_is_longer_than_there_is_room_for() {
        for (heavy, light) in [(5000, 0), (0, 5000), (1, 5000), (4000, 4000)] {
            let weights = [vec![(60_000, 0); heavy], vec![(1, 0); light]].concat();
            let sequence = Turns::WeightedRoundRobin.sequence(&pool(&weights), 0, false);
            let room = longest(Scheduler::Wrr, weights.len());
            assert!(sequence.len() <= room, "{heavy} {light}: {} of {room}", sequence.len());
        }
    }

    #[test]
    fn fo_and_ovf_put_only_one_of_the_heaviest_on_the_ring() {
        for turns in [Turns::Failover, Turns::Overflow] {
            assert_eq!(weights_on_ring(turns, &[1, 7, 0, 7]), [0, 7, 0, 0], "{turns:?}");
        }
        assert_eq!(weights_on_ring(Turns::Failover, &[0, 0]), [0, 0]);
        assert_eq!(Turns::Failover.takers(false), Service::NO_TURNS);
    }

    #[test]
    fn lc_knows_no_weights_on_the_ring_and_the_others_do() {
        assert_eq!(weights_on_ring(Turns::LeastConnections, &[9, 0, 1]), [1, 0, 1]);
        for turns in [Turns::WeightedLeastConnections, Turns::TwoChoices, Turns::RoundRobin] {
            assert_eq!(weights_on_ring(turns, &[9, 0, 1]), [9, 0, 1], "{turns:?}");
        }
    }

    #[test]
    fn overloaded_is_who_exceeds_its_share_by_a_quarter_and_sixteen() {
        let wlc = |pool: &[(u16, u32)]| Turns::WeightedLeastConnections.overloaded(&self::pool(pool));
        assert_eq!(wlc(&[(1, 16), (1, 0), (1, 17)]), [2]);
        assert_eq!(wlc(&[(1, 1000), (1, 1251), (1, 1250)]), [1]);
        // By weight: thrice as much is its share.
        assert_eq!(wlc(&[(1, 100), (3, 375), (3, 376)]), [2]);
        assert_eq!(wlc(&[(0, 0), (1, 500)]), [0u16; 0], "who takes no flows is no measure");
        assert_eq!(wlc(&[]), [0u16; 0]);
    }

    #[test]
    fn each_scheduler_finds_the_overloaded_by_its_own_measure() {
        let pool = pool(&[(1, 100), (4, 400), (1, 150)]);
        for (turns, expected) in [
            (Turns::LeastConnections, &[1, 2][..]),
            (Turns::WeightedLeastConnections, &[2]),
            (Turns::TwoChoices, &[2]),
            (Turns::ShortestExpectedDelay, &[2]),
            (Turns::NeverQueue, &[2]),
            (Turns::Overflow, &[0, 1, 2]),
        ] {
            assert_eq!(turns.overloaded(&pool), expected, "{turns:?}");
        }
    }

    #[test]
    fn nq_avoids_the_busy_while_one_is_idle() {
        assert_eq!(Turns::NeverQueue.overloaded(&pool(&[(9, 1), (1, 0), (1, 2)])), [0, 2]);
        assert_eq!(Turns::NeverQueue.overloaded(&pool(&[(9, 1), (1, 1), (0, 0)])), [0u16; 0]);
    }

    #[test]
    fn ovf_avoids_the_full() {
        assert_eq!(Turns::Overflow.overloaded(&pool(&[(5, 5), (5, 6), (2, 0)])), [1]);
    }

    fn weights_on_ring(turns: Turns, weights: &[u16]) -> Vec<u16> {
        let member = |(index, weight): (usize, &u16)| Member {
            index: index as u16,
            weight: *weight,
            identity: index as u64,
            limit: None,
        };
        let members: Vec<_> = weights.iter().enumerate().map(member).collect();
        turns.on_ring(&members).iter().map(|m| m.weight).collect()
    }

    #[test]
    fn lc_fills_up_whoever_has_least() {
        let sequence = Turns::LeastConnections.sequence(&pool(&[(1, 100), (9, 0)]), 0, false);
        assert_eq!(shares(&sequence, 2), [78, 178]);
        assert!(sequence[..100].iter().all(|index| *index == 1));
    }

    #[test]
    fn wlc_and_sed_end_in_proportion_to_the_weights() {
        for turns in [Turns::WeightedLeastConnections, Turns::ShortestExpectedDelay] {
            let sequence = turns.sequence(&pool(&[(1, 0), (3, 0)]), 0, false);
            assert_eq!(shares(&sequence, 2), [64, 192], "{turns:?}");
        }
        // sed gives the fast one its second before the slow one its first; wlc has nobody idle.
        assert_eq!(Turns::ShortestExpectedDelay.sequence(&pool(&[(1, 0), (3, 0)]), 0, false)[..2], [1, 1]);
        assert_eq!(Turns::WeightedLeastConnections.sequence(&pool(&[(1, 0), (3, 0)]), 0, false)[..2], [0, 1]);
    }

    #[test]
    fn a_closing_connection_counts_a_256th() {
        let mut pool = pool(&[(1, 0), (1, 1)]);
        pool[0].load.inactive = 255;
        assert_eq!(Turns::WeightedLeastConnections.sequence(&pool, 0, false)[0], 0);
        pool[0].load.inactive = 257;
        assert_eq!(Turns::WeightedLeastConnections.sequence(&pool, 0, false)[0], 1);
    }

    #[test]
    fn nq_asks_the_idle_first() {
        let sequence = Turns::NeverQueue.sequence(&pool(&[(100, 1), (1, 0), (1, 0)]), 0, false);
        assert_eq!(sequence[..3], [1, 2, 0]);
    }

    #[test]
    fn ovf_overflows_from_the_heaviest_to_the_next() {
        let sequence = Turns::Overflow.sequence(&pool(&[(2, 0), (5, 4), (1, 0)]), 0, false);
        assert_eq!(sequence[..7], [1, 1, 0, 0, 0, 2, 2]);
        assert_eq!(sequence.len(), AHEAD, "then by weight and load");
    }

    #[test]
    fn twos_avoids_the_loaded_but_for_when_it_is_drawn_twice() {
        let sequence = Turns::TwoChoices.sequence(&pool(&[(1, 10_000), (1, 0), (1, 0), (1, 0)]), 7, false);
        let loaded = shares(&sequence, 4)[0];
        assert!((4..=32).contains(&loaded), "expected 16 of 256, got {loaded}");
    }

    #[test]
    fn nobody_has_no_turns() {
        for turns in [Turns::RoundRobin, Turns::WeightedRoundRobin, Turns::TwoChoices, Turns::Overflow] {
            assert_eq!(turns.sequence(&pool(&[(0, 0)]), 0, false), [0u16; 0], "{turns:?}");
        }
    }

    fn full(mut pool: Vec<Candidate>, indexes: &[u16]) -> Vec<Candidate> {
        pool.iter_mut().for_each(|candidate| candidate.full = indexes.contains(&candidate.index));
        pool
    }

    const ALL: [Turns; 10] = [
        Turns::RoundRobin,
        Turns::WeightedRoundRobin,
        Turns::LeastConnections,
        Turns::WeightedLeastConnections,
        Turns::ShortestExpectedDelay,
        Turns::NeverQueue,
        Turns::Failover,
        Turns::Overflow,
        Turns::TwoChoices,
        Turns::Hashed,
    ];

    #[test]
    fn who_is_full_gets_no_turn_and_is_to_be_avoided() {
        let pool = full(pool(&[(9, 0), (1, 0), (1, 0)]), &[0]);
        for turns in ALL {
            let sequence = turns.sequence(&pool, 7, true);
            assert_eq!((sequence.len(), shares(&sequence, 3)[0]), (AHEAD, 0), "{turns:?}");
            assert_eq!(turns.overloaded(&pool), [0], "{turns:?}");
            assert!(turns.follow_load(true), "{turns:?}");
        }
    }

    #[test]
    fn a_full_pool_takes_nothing_new() {
        for turns in ALL {
            let sequence = turns.sequence(&full(pool(&[(9, 9), (1, 9), (0, 0)]), &[0, 1]), 0, true);
            assert_eq!(sequence, [maps::NOBODY; AHEAD], "{turns:?}");
        }
    }

    #[test]
    fn limited_round_robin_goes_on_where_it_was() {
        let pool = pool(&[(1, 0), (1, 0), (1, 0)]);
        assert_eq!(Turns::RoundRobin.sequence(&pool, 7, true)[..4], [1, 2, 0, 1]);
    }
}
