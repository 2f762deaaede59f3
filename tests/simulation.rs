//! Can two directors ever both answer, or none for long, whatever crashes, clocks and the network do?
//!
//! Two to five directors with the daemon's own state machines on one virtual clock, many seeds of it. What VRRP
//! promises is demanded; where it cannot promise (`judge.rs`) there has to be a lawful excuse.
//!
//! `SIMULATION_SEED=N cargo test -p lvs-tests --test simulation` plays one seed again and tells all that happens.
//! `SIMULATION_SEEDS=N` plays more than usual.
#![expect(clippy::panic, reason = "the helpers of tests fail as tests do")]

use std::{
    env,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use lvs_tests::Dice;

use crate::world::{Seen, World};

#[path = "simulation/clock.rs"]
mod clock;
#[path = "simulation/host.rs"]
mod host;
#[path = "simulation/judge.rs"]
mod judge;
#[path = "simulation/plan.rs"]
mod plan;
#[path = "simulation/thread.rs"]
mod thread_of_vrrp;
#[path = "simulation/world.rs"]
mod world;

const SEEDS: u64 = 10_000;
const OCCURRENCES: [&str; 26] = [
    "crash",
    "freeze",
    "stop",
    "unplug",
    "reweigh",
    "hand over",
    "cut",
    "suspend",
    "jump",
    "stall between two effects",
    "crash between two effects",
    "adopted",
    "lapsed",
    "silent",
    "resigned",
    "yielded",
    "owner",
    "group",
    "handed over",
    "deaf",
    "preempts",
    "preempts one that has just died",
    "told",
    "heard another",
    "owner asks nobody",
    "other",
];

fn play(seed: u64, talkative: bool) -> Result<Seen, String> {
    let mut dice = Dice::new(seed);
    let plan = plan::plan(&mut dice);
    if talkative {
        println!("{plan:#?}");
    }
    World::new(plan, dice, talkative).run()
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

#[test]
fn no_two_directors_answer_but_where_vrrp_cannot_know() {
    if let Some(seed) = number("SIMULATION_SEED") {
        play(seed, true).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        return;
    }
    let (seeds, next) = (number("SIMULATION_SEEDS").unwrap_or(SEEDS), AtomicU64::new(0));
    let work = || {
        let (mut seen, mut wrong) = (Seen::new(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return (seen, wrong);
            }
            match play(seed, false) {
                Ok(more) => {
                    more.into_iter().for_each(|(what, count)| *seen.entry(what).or_default() += count)
                }
                Err(what) => wrong.push((seed, what)),
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let (mut seen, mut wrong) = (Seen::new(), Vec::new());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let (more, what) = worker.join().expect("a worker that does not panic");
            more.into_iter().for_each(|(what, count)| *seen.entry(what).or_default() += count);
            wrong.extend(what);
        }
    });
    println!("{seeds} seeds: {seen:?}");
    wrong.sort();
    // A claim about what hardly ever happens would be empty.
    let rare = |what: &&str| seeds >= SEEDS && seen.get(*what).is_none_or(|count| *count < 20);
    let rare: Vec<_> = OCCURRENCES.iter().filter(|what| rare(what)).collect();
    assert!(rare.is_empty(), "too rare to prove anything: {rare:?}");
    let first: Vec<_> = wrong.iter().take(10).collect();
    assert!(wrong.is_empty(), "{} seeds failed; replay one with SIMULATION_SEED=N: {first:#?}", wrong.len());
}
