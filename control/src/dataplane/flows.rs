//! The flow table as `lvsd` sees it: who is in it, and how long ago each flow was last met.

use std::{
    cell::Cell,
    io,
    os::fd::AsFd,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use lvs_ebpf_common::flow_table::{Entry, FlowKey, FlowSet, Home, Phase, SETS, WAYS};
use nix::time::{ClockId, clock_getres};

use super::mapped::Mapped;

/// `FLOWS` and `FLOW_CLOCK`, mapped into this process.
pub struct Flows {
    sets: Mapped<FlowSet>,
    clock: Mapped<u64>,
    tick: Tick,
    /// The program's clock as last seen, and when that was.
    seen: Cell<(u64, Duration)>,
}

/// A flow that has an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveFlow {
    pub key: FlowKey,
    /// Index inside its service's range.
    pub real: u16,
    pub phase: Phase,
    pub idle: Duration,
}

/// The program's unit of time: some power of two of the kernel's jiffies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// `maps::TICK_SHIFT`
    pub shift: u32,
    pub length: Duration,
}

impl Tick {
    /// The shortest of at least a second: then 16 bits last for 18 hours.
    pub fn of_this_kernel() -> Self {
        // The resolution of the coarse clock is one jiffy.
        let jiffy = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from);
        Self::of(jiffy)
    }

    fn of(jiffy: Duration) -> Self {
        let jiffy = jiffy.clamp(Duration::from_millis(1), Duration::from_millis(10));
        let shift = (0..10).find(|shift| jiffy * (1 << shift) >= Duration::from_secs(1)).unwrap_or(10);
        Self { shift, length: jiffy * (1 << shift) }
    }
}

/// Words of a [`FlowSet`] that hold `seen`.
const SEEN: usize = std::mem::offset_of!(FlowSet, seen) / 8;
const SEEN_IN_A_WORD: usize = 4;

impl Flows {
    pub fn map(sets: impl AsFd, clock: impl AsFd, tick: Tick, now: Duration) -> io::Result<Self> {
        let (sets, clock) = (Mapped::map(sets, SETS)?, Mapped::map(clock, 1)?);
        let seen = Cell::new((clock.read(0), now));
        Ok(Self { sets, clock, tick, seen })
    }

    /// Meets every flow and removes those that `meet` says have ended.
    pub fn sweep(&self, now: Duration, mut meet: impl FnMut(&LiveFlow) -> bool) {
        for set in 0..SETS {
            for way in 0..WAYS {
                let word = self.sets.word(set, way);
                let value = word.load(Ordering::Acquire);
                let Some(entry) = Entry::unpack(value) else { continue };
                let seen = self.sets.word(set, SEEN + way / SEEN_IN_A_WORD).load(Ordering::Acquire);
                let [a, b, ..] = (seen >> (16 * (way % SEEN_IN_A_WORD))).to_le_bytes();
                // Two CPUs may differ by a tick.
                let ticks = self.ticks(now).wrapping_sub(u16::from_le_bytes([a, b]));
                let ticks = if ticks > u16::MAX - 8 { 0 } else { ticks };
                let flow = LiveFlow {
                    key: FlowKey::at(Home { set, rest: entry.rest }),
                    real: entry.real,
                    phase: entry.phase,
                    idle: self.tick.length * ticks.into(),
                };
                if !meet(&flow) {
                    remove(word, value);
                }
            }
        }
    }

    /// The program's clock by now. Read after the entry whose age it tells: the first flow after a silence, or of all, sets
    /// the clock, maybe while this side is on its way through the table.
    fn ticks(&self, now: Duration) -> u16 {
        let clock = self.clock.read(0);
        if clock != self.seen.get().0 {
            self.seen.set((clock, now));
        }
        // It stands still while no flow asks the table; ours goes on. One that stood still before this daemon began makes
        // flows look younger than they are.
        let since = now.saturating_sub(self.seen.get().1).as_nanos() / self.tick.length.as_nanos().max(1);
        clock.wrapping_add(since as u64) as u16
    }

    /// Removes the flows of services.
    pub fn forget(&self, ids: &[u16]) {
        for set in 0..SETS {
            for way in 0..WAYS {
                let word = self.sets.word(set, way);
                let value = word.load(Ordering::Acquire);
                let Some(entry) = Entry::unpack(value) else { continue };
                if ids.contains(&FlowKey::at(Home { set, rest: entry.rest }).service) {
                    remove(word, value);
                }
            }
        }
    }
}

/// Unless the program has written the place since.
fn remove(word: &AtomicU64, value: u64) {
    let _ = word.compare_exchange(value, 0, Ordering::AcqRel, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Flows {
        Flows {
            sets: Mapped::anonymous(SETS).unwrap(),
            clock: Mapped::anonymous(1).unwrap(),
            tick: Tick::of(Duration::from_millis(4)),
            seen: Cell::new((0, Duration::ZERO)),
        }
    }

    /// As the program writes it.
    fn put(flows: &Flows, way: usize, source_port: u16, service: u16, seen: u16) -> LiveFlow {
        let key = FlowKey { source: 0x0900_000a, source_port, service };
        let home = FlowKey::home(key.pack());
        let mut set = flows.sets.read(home.set);
        set.entries[way] = Entry { rest: home.rest, real: 9, phase: Phase::Established }.pack();
        set.seen[way] = seen;
        flows.sets.write(home.set, &set);
        LiveFlow { key, real: 9, phase: Phase::Established, idle: Duration::ZERO }
    }

    fn flows(table: &Flows, now: Duration) -> Vec<LiveFlow> {
        let mut all = Vec::new();
        table.sweep(now, |flow| {
            all.push(*flow);
            true
        });
        all
    }

    #[test]
    fn a_tick_is_the_power_of_two_of_a_jiffy_that_reaches_a_second() {
        for (hz, shift) in [(100, 7), (250, 8), (300, 9), (1000, 10)] {
            let tick = Tick::of(Duration::from_secs(1) / hz);
            assert_eq!(tick.shift, shift, "{hz}");
            assert!(tick.length >= Duration::from_secs(1) && tick.length < Duration::from_secs(2), "{hz}");
        }
        assert_eq!(Tick::of(Duration::ZERO).shift, 10);
    }

    #[test]
    fn every_place_of_a_set_is_read_with_its_own_time_across_the_wrap() {
        let table = table();
        table.clock.write(0, &0x1_0003);
        for way in 0..WAYS {
            let expected = put(&table, way, 1000 + way as u16, 1, 3u16.wrapping_sub(way as u16));
            let found = flows(&table, Duration::from_secs(9));
            let idle = table.tick.length * way as u32;
            assert!(found.contains(&LiveFlow { idle, ..expected }), "{found:?}");
        }
    }

    #[test]
    fn flows_age_while_the_programs_clock_stands_still() {
        let table = table();
        put(&table, 0, 1, 1, 0);
        let tick = table.tick.length;
        assert_eq!(flows(&table, tick * 7)[0].idle, tick * 7);
        table.clock.write(0, &100);
        assert_eq!(flows(&table, tick * 8)[0].idle, tick * 100);
        assert_eq!(flows(&table, tick * 10)[0].idle, tick * 102);
    }

    #[test]
    fn a_flow_that_sets_the_clock_during_a_sweep_is_young() {
        let table = table();
        let homes =
            [1, 2].map(|port| put(&table, 0, port, 1, 0).key).map(|key| FlowKey::home(key.pack()).set);
        let later = homes.into_iter().max().unwrap();
        let mut idle = Vec::new();
        table.sweep(table.tick.length * 7, |flow| {
            if idle.is_empty() {
                let mut set = table.sets.read(later);
                set.seen[0] = 30_000;
                table.sets.write(later, &set);
                table.clock.write(0, &30_000);
            }
            idle.push(flow.idle);
            true
        });
        assert_eq!(idle, [table.tick.length * 7, Duration::ZERO]);
    }

    #[test]
    fn only_flows_that_have_ended_or_lost_their_service_are_removed() {
        let table = table();
        for (port, service) in [(1, 1), (2, 1), (3, 2)] {
            put(&table, usize::from(port), port, service, 0);
        }
        table.sweep(Duration::ZERO, |flow| flow.key.source_port != 1);
        table.forget(&[2]);
        let left: Vec<u16> = flows(&table, Duration::ZERO).iter().map(|flow| flow.key.source_port).collect();
        assert_eq!(left, [2]);
    }
}
