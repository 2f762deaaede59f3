//! What the flows tell: which moves are over, which removed real servers may go, and who has least to do.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use lvs_ebpf_common::{
    Real, Service, ServiceKey,
    flow::{self, Flow},
    flow_table::Phase,
    maps::{self, RingChunk},
    protocol::UDP,
};

use super::{Pool, PoolTurns, Source, Tables, Write, takes_flows};
use crate::{
    config::model::Timeouts,
    dataplane::{
        flows::LiveFlow,
        maglev::{self, Member},
        ring,
        turns::{AHEAD, Candidate, Load},
    },
};

/// A pass over the flow table.
pub struct Survey<'a> {
    timeouts: Timeouts,
    pools: Vec<Option<(ServiceKey, &'a Pool)>>,
    found: Surveyed,
}

/// What it found.
#[derive(Default)]
pub struct Surveyed {
    /// By service and index of the real.
    loads: HashMap<u16, Vec<Load>>,
    /// Slots with a flow that lives elsewhere than at the slot's owner.
    dissent: HashMap<u16, Vec<u32>>,
}

impl Survey<'_> {
    /// Takes note of a flow. False = it has ended.
    pub fn meet(&mut self, flow: &LiveFlow) -> bool {
        let id = flow.key.service;
        let Some((key, pool)) = self.pools.get(usize::from(id)).copied().flatten() else { return false };
        if flow.idle >= pool.timeout(&self.timeouts, key.protocol, flow.phase) {
            return false;
        }
        if let Some(load) =
            self.found.loads.get_mut(&id).and_then(|loads| loads.get_mut(usize::from(flow.real)))
        {
            let count = if flow.phase == Phase::Established { &mut load.active } else { &mut load.inactive };
            *count = count.saturating_add(1);
        }
        if let Some(dissent) = self.found.dissent.get_mut(&id) {
            let hash = Flow {
                source: flow.key.source,
                source_port: flow.key.source_port,
                destination: key.address,
                destination_port: key.port,
            }
            .hash(pool.hash);
            let slot = flow::slot(hash, pool.ring.len());
            if pool.ring.owner(slot) != Some(flow.real) {
                dissent.push(slot);
            }
        }
        true
    }

    pub fn finish(self) -> Surveyed {
        self.found
    }
}

/// After how much silence a flow has ended.
fn timeout(timeouts: &Timeouts, protocol: u8, phase: Phase) -> Duration {
    match phase {
        _ if protocol == UDP => timeouts.udp,
        Phase::Closing => timeouts.tcp_fin,
        Phase::New | Phase::Established => timeouts.tcp,
    }
}

impl Tables {
    /// Whether the flow table is in use, so that it has to be looked at now and then.
    pub fn uses_flow_table(&self) -> bool {
        self.pools.values().any(|pool| pool.ring.has_moved() || !pool.leaving.is_empty() || pool.remembers())
    }

    /// Whether turns that follow the load were taken or made anew since the last look.
    pub fn has_taken_turns(&self, source: &impl Source) -> bool {
        self.pools.values().any(|pool| {
            pool.follows_load()
                && pool.turns.as_ref().is_some_and(|turns| Some(source.taken(pool.id)) != turns.taken)
        })
    }

    pub fn survey(&self, timeouts: Timeouts) -> Survey<'_> {
        let mut pools = vec![None; maps::SERVICE_IDS as usize];
        let mut found = Surveyed::default();
        for (key, pool) in &self.pools {
            pools[usize::from(pool.id)] = Some((key.packed(), pool));
            if pool.follows_load() || !pool.leaving.is_empty() {
                found.loads.insert(pool.id, vec![Load::default(); pool.len as usize]);
            }
            if pool.ring.has_moved() {
                found.dissent.insert(pool.id, Vec::new());
            }
        }
        Survey { timeouts, pools, found }
    }

    /// The steps that follow from the flows. A move is over when every flow of before it has either shown itself, and
    /// so has an entry, or been silent for longer than it may.
    pub fn settle(
        &mut self,
        found: &Surveyed,
        timeouts: Timeouts,
        source: &impl Source,
        now: Duration,
    ) -> Vec<Write> {
        let mut writes = Vec::new();
        let mut shrunk = Vec::new();
        let mut freed = Vec::new();
        for (key, pool) in &mut self.pools {
            let timeout = pool.timeout(&timeouts, key.protocol, Phase::Established);
            if let Some(dissent) = found.dissent.get(&pool.id).filter(|_| pool.ring.has_due(now, timeout)) {
                let before = pool.ring.chunks();
                Arc::make_mut(&mut pool.ring).settle(now, timeout, dissent);
                let after = pool.ring.chunks();
                if after != before {
                    rewrite(pool.chunk, pool.ring.len(), &before, &after, &mut writes);
                    let (start, end) = (after.len() as u32, before.len() as u32);
                    shrunk.push((pool.chunk + start, end - start));
                }
            }
            let loads = found.loads.get(&pool.id).map(Vec::as_slice).unwrap_or_default();
            let (ring, base) = (&pool.ring, pool.base);
            let left = pool.leaving.len();
            pool.leaving.retain(|index| {
                let load = loads.get(usize::from(*index)).copied().unwrap_or_default();
                let stays = ring.knows(*index) || load != Load::default();
                if !stays {
                    let index = base + u32::from(*index);
                    let before = std::mem::take(&mut self.reals[index as usize]);
                    self.translated.replace(key, index, &before, &Real::default());
                    freed.extend(super::freed(index));
                }
                stays
            });
            if pool.leaving.len() < left {
                let range = pool.base as usize..(pool.base + pool.len) as usize;
                pool.server_ids.settle(&self.reals[range], pool.id, &mut writes);
            }
            if follow_load(pool, loads, source, &mut writes) {
                mark(pool, &mut self.reals, &mut writes);
            }
        }
        self.plan_replies(&mut writes, &mut freed);
        if !shrunk.is_empty() || !freed.is_empty() {
            writes.push(Write::Grace);
        }
        writes.extend(freed);
        shrunk.into_iter().for_each(|(start, len)| self.chunks.give(start, len));
        writes
    }
}

/// In place: whichever of the old and the new words a packet meets, both are right by now.
fn rewrite(chunk: u32, slots: u32, before: &[RingChunk], after: &[RingChunk], writes: &mut Vec<Write>) {
    let header = slots.div_ceil(maps::RING_CHUNK as u32) as usize;
    // First that which says whether there are old owners: without a header there are none.
    let nothing = ring::chunk(&[]);
    if before.get(header).is_some_and(|before| before != after.get(header).unwrap_or(&nothing)) {
        let slots = after.get(header).copied().unwrap_or(nothing);
        writes.push(Write::Ring { chunk: chunk + header as u32, slots });
    }
    for (at, (after, before)) in after.iter().zip(before).enumerate() {
        if at != header && after != before {
            writes.push(Write::Ring { chunk: chunk + at as u32, slots: *after });
        }
    }
}

/// Plans the next turns from the one that is due. False: nothing has changed since the last look.
fn follow_load(pool: &mut Pool, loads: &[Load], source: &impl Source, writes: &mut Vec<Write>) -> bool {
    let taken = source.taken(pool.id);
    let (Some(turns), Some((members, Some(kind)))) = (&mut pool.turns, &pool.made_of) else { return false };
    let limited = maglev::are_limited(members);
    if !kind.follow_load(limited) || (turns.taken, turns.loads.as_slice()) == (Some(taken), loads) {
        return false;
    }
    turns.loads = loads.to_vec();
    turns.taken = Some(taken);
    turns.limit(members);
    let next = kind.sequence(&turns.candidates(members), taken, limited);
    if next.len() != AHEAD || turns.sequence.len() != AHEAD {
        return true;
    }
    let before = turns.sequence.clone();
    for (turn, index) in (taken as usize..).zip(next) {
        turns.sequence[turn % AHEAD] = index;
    }
    let both = turns.sequence.chunks(maps::RING_CHUNK).zip(before.chunks(maps::RING_CHUNK));
    for (chunk, (slots, before)) in (turns.chunk..).zip(both) {
        if slots != before {
            writes.push(Write::Ring { chunk, slots: ring::chunk(slots) });
        }
    }
    true
}

/// Says which of a service's real servers are overloaded.
fn mark(pool: &Pool, reals: &mut [Real], writes: &mut Vec<Write>) {
    let (Some(turns), Some((members, Some(kind)))) = (&pool.turns, &pool.made_of) else { return };
    let overloaded: HashSet<_> = kind.overloaded(&turns.candidates(members)).into_iter().collect();
    for member in members {
        let index = pool.base + u32::from(member.index);
        let real = &mut reals[index as usize];
        let state = if overloaded.contains(&member.index) { Real::OVERLOADED } else { Real::ALIVE };
        if takes_flows(real) && real.state != state {
            real.state = state;
            writes.push(Write::Real { index, real: *real });
        }
    }
}

impl Pool {
    fn follows_load(&self) -> bool {
        self.takers == Service::TURNS_OF_OVERLOADED || self.is_limited()
    }

    /// A persistent client is kept at least as long as any of its connections would be, whichever of them have ended.
    fn timeout(&self, timeouts: &Timeouts, protocol: u8, phase: Phase) -> Duration {
        match self.persistence {
            None => timeout(timeouts, protocol, phase),
            Some(it) => it.timeout.max(timeout(timeouts, protocol, Phase::Established)),
        }
    }
}

impl PoolTurns {
    /// Finds who has as many connections as it may have, by IPVS's rule: until it has clearly less.
    fn limit(&mut self, members: &[Member]) {
        for member in members {
            let load = self.loads.get(usize::from(member.index)).copied().unwrap_or_default();
            let all = load.active.saturating_add(load.inactive);
            match member.limit {
                Some(limit) if all >= limit.upper => drop(self.full.insert(member.index)),
                Some(limit) if all >= limit.lower => {}
                _ => drop(self.full.remove(&member.index)),
            }
        }
    }

    pub(super) fn candidates(&self, members: &[Member]) -> Vec<Candidate> {
        let load = |index: u16| self.loads.get(usize::from(index)).copied().unwrap_or_default();
        let candidate = |m: &Member| Candidate {
            index: m.index,
            weight: m.weight,
            load: load(m.index),
            full: self.full.contains(&m.index) && m.limit.is_some(),
        };
        members.iter().map(candidate).collect()
    }
}
