//! How one service shall be: its range of real servers, its turns and its ring.

use std::{sync::Arc, time::Duration};

use lvs_ebpf_common::{ConnectionIds, Real, RingRef, Service, maps};

use super::{DesiredService, Endpoint, PlanError, Pool, ServerIds, Source, Steps, Tables, Write, chunks};
use crate::{
    config::model::Persistence,
    dataplane::{
        maglev::{self, Member},
        ring::{self, Ring},
        turns::Turns,
    },
};

/// A service before any packet meets it so.
pub(super) struct Draft {
    pub key: Endpoint,
    pub pool: Pool,
    /// Its elements of `REALS`.
    pub reals: Vec<Real>,
    /// It has another ring than before.
    pub flips: bool,
}

/// As `Service::connection_ids` has it.
pub(super) fn packed(ids: Option<ConnectionIds>) -> u8 {
    ids.map_or(0, ConnectionIds::pack)
}

impl Tables {
    /// Takes space in the maps, and leaves everything else as it is.
    pub(super) fn draft(
        &mut self,
        desired: &DesiredService,
        source: &impl Source,
        now: Duration,
        steps: &mut Steps,
    ) -> Result<Draft, PlanError> {
        let pool = match self.pools.get(&desired.key) {
            Some(pool) => pool.clone(),
            None => self.new_pool(desired, steps)?,
        };
        let reals = self.members(&pool).to_vec();
        let mut draft = Draft { key: desired.key, pool, reals, flips: false };
        self.enlarge(&mut draft, desired, source, steps)?;
        let members = draft.place_reals(desired);

        let pool = &mut draft.pool;
        let remembered = pool.remembers();
        let limited = maglev::are_limited(&members);
        let takers = match desired.turns.map_or(Service::NO_TURNS, |turns| turns.takers(limited)) {
            Service::EVERY_TURN if desired.one_packet => Service::EVERY_PACKET,
            // What its connection ID does not lead is to go where those go that it does.
            Service::NO_TURNS if desired.persistence.is_some() || desired.connection_ids.is_some() => {
                Service::REMEMBERED
            }
            takers => takers,
        };
        let prefix_len = |persistence: Option<Persistence>| persistence.map(|it| it.prefix_len);
        let connection_ids = packed(desired.connection_ids);
        steps.rebuild |= (pool.hash, pool.takers, pool.connection_ids)
            != (desired.hash, takers, connection_ids)
            || prefix_len(pool.persistence) != prefix_len(desired.persistence);
        let before = pool.hash;
        let is_rehashed = before != desired.hash;
        (pool.hash, pool.takers, pool.persistence) = (desired.hash, takers, desired.persistence);
        pool.connection_ids = connection_ids;

        let length = maglev::length(desired.reals.len());
        let doubted = remembered && !pool.remembers() && !desired.one_packet;
        let is_past = desired.one_packet && pool.ring.has_moved();
        let made_of = (members, desired.turns);
        if pool.made_of.as_ref() == Some(&made_of)
            && pool.ring.len() == length
            && !doubted
            && !is_past
            && !is_rehashed
        {
            return Ok(draft);
        }
        self.draft_turns(pool, &made_of, steps)?;
        let mut owners = match &made_of {
            (members, Some(turns)) => maglev::ring(&turns.on_ring(members), length),
            (members, None) => maglev::ring(members, length),
        };
        if owners.is_empty() {
            owners = ring::owned_by_nobody(length);
        }
        pool.made_of = Some(made_of);
        let mut ring = Ring::clone(&pool.ring);
        if desired.one_packet {
            ring = Ring::new(owners);
        } else if is_rehashed || !ring.is_owned_as(&owners) {
            pool.used |= source.has_forwarded(pool.range());
            ring = match pool.used {
                false => Ring::new(owners),
                true if is_rehashed => ring.rehashed_to(&owners, now),
                true => ring.moved_to(&owners, now),
            };
        }
        if doubted {
            ring.doubt_all(now);
        }
        if ring != *pool.ring {
            steps.freed.chunks.push((pool.chunk, pool.ring_chunks()));
            pool.chunk = self.write_slots(ring.chunks(), length, steps)?;
            let old_hash = match (ring.has_another_hash(), pool.ring.has_another_hash()) {
                (false, _) => pool.hash,
                (true, false) => before,
                (true, true) => pool.old_hash,
            };
            // Its old owners must not be looked for by the hash of others: it comes with the whole table.
            let comes_alone = (before, pool.old_hash) == (pool.hash, old_hash);
            steps.rebuild |= !comes_alone;
            pool.old_hash = old_hash;
            pool.ring = Arc::new(ring);
            draft.flips = comes_alone;
        }
        Ok(draft)
    }

    fn new_pool(&mut self, desired: &DesiredService, steps: &mut Steps) -> Result<Pool, PlanError> {
        let id =
            self.ids.find(1).ok_or(PlanError::TooManyServices { services: self.pools.len() + 1 })? as u16;
        steps.taken.ids.push(id);
        steps.prepare.push(Write::Address { id, address: desired.key.address.into() });
        steps.rebuild = true;
        Ok(Pool {
            id,
            base: 0,
            len: 0,
            hash: desired.hash,
            old_hash: desired.hash,
            persistence: desired.persistence,
            connection_ids: 0,
            server_ids: ServerIds::default(),
            made_of: None,
            chunk: 0,
            ring: Arc::default(),
            used: false,
            takers: Service::NO_TURNS,
            turns: None,
            leaving: Vec::new(),
        })
    }

    fn draft_turns(
        &mut self,
        pool: &mut Pool,
        (members, kind): &(Vec<Member>, Option<Turns>),
        steps: &mut Steps,
    ) -> Result<(), PlanError> {
        let limited = maglev::are_limited(members);
        let before = pool.turns.take();
        let Some(kind) = kind.filter(|kind| kind.takers(limited) != Service::NO_TURNS) else {
            if let Some(turns) = before {
                steps.freed.chunks.push((turns.chunk, chunks(turns.sequence.len() as u32)));
            }
            return Ok(());
        };
        let mut turns = before.clone().unwrap_or_default();
        turns.taken = None;
        turns.sequence = kind.sequence(&turns.candidates(members), 0, limited);
        let length = turns.sequence.len() as u32;
        if before.as_ref().is_none_or(|before| before.sequence != turns.sequence) {
            let slots = turns.sequence.chunks(maps::RING_CHUNK).map(ring::chunk).collect();
            turns.chunk = self.write_slots(slots, length, steps)?;
            if let Some(before) = before {
                steps.freed.chunks.push((before.chunk, chunks(before.sequence.len() as u32)));
            }
            let sequence = RingRef { chunk: turns.chunk, length };
            steps.publish.push(Write::Turns { id: pool.id, sequence });
        }
        pool.turns = Some(turns);
        Ok(())
    }

    /// Where no packet looks yet; the first chunk of it.
    fn write_slots(
        &mut self,
        slots: Vec<maps::RingChunk>,
        length: u32,
        steps: &mut Steps,
    ) -> Result<u32, PlanError> {
        let count = slots.len() as u32;
        let first = self.chunks.find(count).ok_or(PlanError::NoRoomForRing { length })?;
        steps.taken.chunks.push((first, count));
        let writes = (first..).zip(slots).map(|(chunk, slots)| Write::Ring { chunk, slots });
        steps.prepare.extend(writes);
        Ok(first)
    }
}
