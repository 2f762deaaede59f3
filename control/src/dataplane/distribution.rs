//! Does each scheduler spread flows as it is defined? By hashing: as the weights say, by the chi-square test. By turns: each
//! turn is one that the definition allows.

use std::net::Ipv4Addr;

use lvs_ebpf_common::{
    Service,
    flow::{self, Flow},
};

use super::{
    maglev::{self, Member},
    turns::{Candidate, Load, Turns},
};

const WEIGHTS: [u16; 4] = [1, 2, 3, 4];
const FLOWS: u32 = 100_000;

/// Three degrees of freedom: what one run in 10,000 exceeds. Nothing here is left to chance but the hash.
const LIMIT: f64 = 21.1;

fn chi_square(counts: [u32; 4], shares: [f64; 4]) -> f64 {
    let total = f64::from(counts.iter().sum::<u32>());
    let part = |(count, share): (u32, f64)| (f64::from(count) - share * total).powi(2) / (share * total);
    counts.into_iter().zip(shares).map(part).sum()
}

fn assert_spread(what: &str, counts: [u32; 4], shares: [f64; 4]) {
    let found = chi_square(counts, shares);
    assert!(found <= LIMIT, "{what}: {counts:?} for {shares:?}, chi-square {found:.1}");
}

/// Those of [`WEIGHTS`].
fn shares_by_weight() -> [f64; 4] {
    let total: u16 = WEIGHTS.iter().sum();
    WEIGHTS.map(|weight| f64::from(weight) / f64::from(total))
}

fn members() -> Vec<Member> {
    let member = |(index, weight): (usize, u16)| {
        let address = Ipv4Addr::new(10, 77, 0, 10 + index as u8);
        Member { index: index as u16, weight, identity: maglev::identity(address.into(), 80), limit: None }
    };
    WEIGHTS.into_iter().enumerate().map(member).collect()
}

/// What of the flows each real server gets.
fn hashed(kind: u8, flow: impl Fn(u32) -> Flow) -> [u32; 4] {
    let ring = maglev::ring(&members(), maglev::length(WEIGHTS.len()));
    let mut counts = [0; 4];
    for number in 0..FLOWS {
        let slot = flow::slot(flow(number).hash(kind), ring.len() as u32);
        counts[usize::from(ring[slot as usize])] += 1;
    }
    counts
}

/// From one client to the next address, as clients are numbered.
fn from(number: u32, source_port: u16) -> Flow {
    let source = (0x0a00_0000 + number).to_be();
    Flow {
        source,
        destination: 0x6400_4d0a,
        source_port: source_port.to_be(),
        destination_port: 80_u16.to_be(),
    }
}

#[test]
fn sh_and_mh_spread_clients_by_weight_and_keep_each_at_one_real_server() {
    let by_address = |port| hashed(Service::HASH_SOURCE, move |number| from(number, port));
    assert_spread("clients", by_address(40_000), shares_by_weight());
    assert_eq!(by_address(40_000), by_address(40_001), "the port does not count");
}

#[test]
fn with_ports_the_connections_of_one_client_are_spread_by_weight() {
    let of_one = |number: u32| from(7 + number / 50_000, 1024 + (number % 50_000) as u16);
    assert_spread("sh-port, mh-port", hashed(Service::HASH_SOURCE_PORT, of_one), shares_by_weight());
    assert_spread("by connection", hashed(Service::HASH_CONNECTION, of_one), shares_by_weight());
}

#[test]
fn dh_spreads_destinations_by_weight_and_knows_no_clients() {
    let to = |client: u32| {
        move |number: u32| Flow { destination: (0x0a4d_0000 + number).to_be(), ..from(client, 9) }
    };
    let counts = hashed(Service::HASH_DESTINATION, to(1));
    assert_spread("destinations", counts, shares_by_weight());
    assert_eq!(counts, hashed(Service::HASH_DESTINATION, to(2)));
}

/// Pools with loads, by chance.
fn pools(count: u64) -> impl Iterator<Item = (u64, Vec<Candidate>)> {
    (0..count).map(|seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let candidate = |index| {
            let load = Load { active: random.u32(0..40), inactive: random.u32(0..400) };
            Candidate { index, weight: random.u16(0..6), load, full: false }
        };
        (seed, (0..6).map(candidate).collect())
    })
}

/// Each turn is one of those that `allowed` finds in the pool as all turns before have left it.
fn assert_turns(turns: Turns, allowed: impl Fn(&[Candidate]) -> Vec<u16>) {
    for (seed, mut pool) in pools(200) {
        let is_empty = pool.iter().all(|candidate| candidate.weight == 0);
        let sequence = turns.sequence(&pool, seed, false);
        assert_eq!(sequence.is_empty(), is_empty);
        for (at, index) in sequence.into_iter().enumerate() {
            let may: Vec<u16> = allowed(&pool);
            assert!(
                may.contains(&index),
                "{turns:?}, seed {seed}, turn {at}: {index}, not of {may:?} in {pool:?}"
            );
            pool[usize::from(index)].load.active += 1;
        }
    }
}

/// Those of some weight for which `cost` is least.
fn least(pool: &[Candidate], cost: impl Fn(&Candidate) -> f64) -> Vec<u16> {
    let able = || pool.iter().filter(|candidate| candidate.weight > 0);
    let least = able().map(&cost).fold(f64::INFINITY, f64::min);
    able()
        .filter(|candidate| cost(candidate) <= least * (1.0 + 1e-12))
        .map(|candidate| candidate.index)
        .collect()
}

fn connections(candidate: &Candidate) -> f64 {
    f64::from(candidate.load.active) + f64::from(candidate.load.inactive) / 256.0
}

fn delay(candidate: &Candidate) -> f64 {
    f64::from(candidate.load.active + 1) / f64::from(candidate.weight)
}

#[test]
fn lc_and_wlc_give_each_turn_to_who_has_least_connections() {
    assert_turns(Turns::LeastConnections, |pool| least(pool, connections));
    let by_weight = |candidate: &Candidate| connections(candidate) / f64::from(candidate.weight);
    assert_turns(Turns::WeightedLeastConnections, |pool| least(pool, by_weight));
}

#[test]
fn sed_gives_each_turn_to_the_shortest_delay_and_nq_to_an_idle_one_first() {
    assert_turns(Turns::ShortestExpectedDelay, |pool| least(pool, delay));
    assert_turns(Turns::NeverQueue, |pool| {
        let idle = pool.iter().filter(|candidate| candidate.weight > 0 && candidate.load.active == 0);
        let idle: Vec<u16> = idle.map(|candidate| candidate.index).collect();
        if idle.is_empty() { least(pool, delay) } else { idle }
    });
}

#[test]
fn ovf_gives_each_turn_to_the_heaviest_that_has_no_more_connections_than_weight() {
    assert_turns(Turns::Overflow, |pool| {
        let roomy: Vec<Candidate> =
            pool.iter().filter(|it| it.load.active <= u32::from(it.weight)).copied().collect();
        let heaviest = least(&roomy, |candidate| 1.0 / f64::from(candidate.weight));
        let by_weight = |candidate: &Candidate| connections(candidate) / f64::from(candidate.weight);
        if heaviest.is_empty() { least(pool, by_weight) } else { heaviest }
    });
}

#[test]
fn rr_and_wrr_give_exactly_their_shares_in_each_round() {
    for (_, pool) in pools(200) {
        let able = || pool.iter().filter(|candidate| candidate.weight > 0);
        let count = |sequence: &[u16], index| sequence.iter().filter(|it| **it == index).count();
        let once = Turns::RoundRobin.sequence(&pool, 0, false);
        assert!(able().all(|candidate| count(&once, candidate.index) == 1) && once.len() == able().count());
        let round = Turns::WeightedRoundRobin.sequence(&pool, 0, false);
        let total: u16 = able().map(|candidate| candidate.weight).sum();
        for candidate in able() {
            let share = count(&round, candidate.index) * usize::from(total);
            assert_eq!(share, round.len() * usize::from(candidate.weight), "{pool:?}: {round:?}");
        }
    }
}

#[test]
fn twos_draws_two_by_weight_and_takes_the_one_with_less_to_do() {
    // By connections a weight: the third, the fourth, the second, the first.
    let loads = [40, 60, 30, 60];
    let order = [2, 3, 1, 0];
    let pool: Vec<Candidate> = (0..4)
        .map(|index| {
            let load = Load { active: loads[usize::from(index)], inactive: 0 };
            Candidate { index, weight: WEIGHTS[usize::from(index)], load, full: false }
        })
        .collect();
    let mut counts = [0; 4];
    for seed in 0..20_000 {
        counts[usize::from(Turns::TwoChoices.sequence(&pool, seed, false)[0])] += 1;
    }
    // Who is drawn twice, or with one that has more to do.
    let by_weight = shares_by_weight();
    let mut shares = [0.0; 4];
    let mut busier = 1.0;
    for index in order {
        let share: f64 = by_weight[index];
        busier -= share;
        shares[index] = share * share + 2.0 * share * busier;
    }
    assert_spread("twos", counts, shares);
}

#[test]
fn fo_gives_all_to_the_heaviest() {
    let ring = maglev::ring(&Turns::Failover.on_ring(&members()), maglev::length(WEIGHTS.len()));
    assert!(ring.iter().all(|index| *index == 3));
}
