//! From the services one wants to the map writes that lead there without a packet meeting a hole.
//!
//! Pure: [`Tables`] is an image of the maps. Each change follows one order: write reals and rings where no packet
//! looks, publish by one 8-byte store, wait until every CPU has left the old ([`Write::Grace`]), then free it.
//! A flow on a living real server meets that one before, during and after: see `ring.rs`.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use lvs_ebpf_common::{Real, Reply, RingRef, Service, ServiceKey, TableRef, Vip, maps};

use self::space::Space;
use super::{
    maglev::{self, Member},
    ring::{self, Ring},
    turns::{Load, Turns},
};
use crate::config::model::{Forwarding, Persistence};

mod reals;
mod replies;
mod settle;
mod space;

/// What the tables shall say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    pub services: Vec<DesiredService>,
    pub vips: Vec<(IpAddr, Vip)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DesiredService {
    pub key: ServiceKey,
    /// One of `Service::HASH_*`.
    pub hash: u16,
    pub persistence: Option<Persistence>,
    /// The scheduler, where it is not hashing alone.
    pub turns: Option<Turns>,
    /// Every configured real, alive or not: their number decides the ring's length.
    pub reals: Vec<DesiredReal>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DesiredReal {
    pub address: Ipv4Addr,
    pub port: u16,
    /// 0 = takes no new flow.
    pub weight: u16,
    pub forwarding: Forwarding,
    /// False = its check failed, and its flows are not to be kept.
    pub alive: bool,
    /// Where its frames go; `None` = not known yet, so it is not on the ring either.
    pub next_hop: Option<NextHop>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    pub mac: [u8; 6],
    pub source_mac: [u8; 6],
    pub ifindex: u32,
    /// An address of this node, for a tunnel to come from.
    pub source: Option<Ipv4Addr>,
    /// The largest IP packet on the way.
    pub mtu: u16,
}

/// One step, in the order of the list.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Real {
        index: u32,
        real: Real,
    },
    Ring {
        chunk: u32,
        slots: maps::RingChunk,
    },
    Service {
        slot: u32,
        service: Service,
    },
    /// Flips one service to another ring.
    ServiceRing {
        slot: u32,
        ring: RingRef,
    },
    /// Publishes a service's sequence of turns.
    Turns {
        id: u16,
        sequence: RingRef,
    },
    /// Flips all services to the other half.
    Table(TableRef),
    Vip {
        address: IpAddr,
        vip: Vip,
    },
    VipGone {
        address: IpAddr,
    },
    /// What a real server's answers are translated to.
    Reply {
        key: ServiceKey,
        reply: Reply,
    },
    ReplyGone {
        key: ServiceKey,
    },
    /// Removes the flows of services from the flow table, so that others may have their numbers.
    Forget {
        ids: Vec<u16>,
    },
    /// Wait until no CPU can still be using what was unpublished.
    Grace,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("{services} services do not fit the service table")]
    TooManyServices { services: usize },
    #[error("no room for {wanted} more real servers (the table holds {})", maps::REAL_SLOTS)]
    NoRoomForReals { wanted: u32 },
    #[error("{reals} real servers in one service are more than {}", maps::REALS_PER_SERVICE)]
    ServiceTooLarge { reals: usize },
    #[error("no room for a ring of {length} slots")]
    NoRoomForRing { length: u32 },
}

/// The maps as this process last wrote or read them.
#[derive(Clone)]
pub struct Tables {
    table: TableRef,
    /// Both halves.
    slots: Vec<Service>,
    reals: Vec<Real>,
    pools: HashMap<ServiceKey, Pool>,
    vips: HashMap<IpAddr, Vip>,
    replies: HashMap<ServiceKey, Reply>,
    /// What of `RINGS` is in use, in chunks.
    chunks: Space,
    /// What of `REALS` is in use.
    ranges: Space,
    /// What of `TURNS` is in use.
    ids: Space,
}

/// What the maps hold beside services, reals and virtual addresses.
pub trait Source {
    fn chunk(&self, chunk: u32) -> maps::RingChunk;
    /// The published sequence of turns.
    fn turns(&self, id: u16) -> RingRef;
    /// Turns taken so far.
    fn taken(&self, id: u16) -> u64;
    /// Whether a packet was ever sent to one of these reals.
    fn has_forwarded(&self, reals: std::ops::Range<u32>) -> bool;
}

/// One service's part of the tables.
#[derive(Clone)]
struct Pool {
    id: u16,
    base: u32,
    len: u32,
    hash: u16,
    /// As read from the maps it has no timeout yet; the first plan knows it.
    persistence: Option<Persistence>,
    /// First chunk of the ring.
    chunk: u32,
    ring: Ring,
    /// A packet was seen to go by it: else the ring has no past to keep to.
    used: bool,
    /// `Service::takes_turns`
    takers: u16,
    turns: Option<PoolTurns>,
    /// Removed, but their flows may live.
    leaving: Vec<u16>,
}

#[derive(Clone, Default)]
struct PoolTurns {
    kind: Turns,
    chunk: u32,
    sequence: Vec<u16>,
    members: Vec<Member>,
    /// By index of the real, at the last look.
    loads: Vec<Load>,
    /// Turns taken by then.
    taken: u64,
}

impl Pool {
    fn ring_ref(&self) -> RingRef {
        RingRef { chunk: self.chunk, length: self.ring.len() }
    }

    fn ring_chunks(&self) -> u32 {
        self.ring.chunks().len() as u32
    }

    fn range(&self) -> std::ops::Range<u32> {
        self.base..self.base + self.len
    }
}

impl Tables {
    /// The image of maps as they are: empty ones, or those a predecessor left pinned. What cannot be
    /// understood is left out and therefore written anew.
    pub fn read(
        table: TableRef,
        slots: Vec<Service>,
        reals: Vec<Real>,
        vips: HashMap<IpAddr, Vip>,
        replies: HashMap<ServiceKey, Reply>,
        source: &impl Source,
        now: Duration,
    ) -> Self {
        let mut tables = Self {
            table,
            slots,
            reals,
            pools: HashMap::new(),
            vips,
            replies,
            chunks: Space::new(maps::RING_CHUNKS),
            ranges: Space::new(maps::REAL_SLOTS),
            ids: Space::new(maps::SERVICE_IDS),
        };
        let live: Vec<Service> = tables.slots[half(table.half)].to_vec();
        for service in live {
            let place = RingRef::unpack(service.ring);
            let Some(ring) = Ring::read(place.chunk, place.length, |chunk| source.chunk(chunk), now) else {
                continue;
            };
            if service.key.protocol == 0
                || !tables.ids.take(service.id.into(), 1)
                || !tables.ranges.take(service.reals_base, service.reals_len)
                || !tables.chunks.take(place.chunk, ring.chunks().len() as u32)
            {
                continue;
            }
            let mut pool = Pool {
                id: service.id,
                base: service.reals_base,
                len: service.reals_len,
                hash: service.hash,
                persistence: service.persistence.checked_sub(1).map(|bits| Persistence {
                    timeout: Duration::ZERO,
                    prefix_len: bits.try_into().unwrap_or(32),
                }),
                chunk: place.chunk,
                ring,
                used: false,
                takers: service.takes_turns,
                turns: None,
                leaving: Vec::new(),
            };
            if matches!(service.takes_turns, Service::EVERY_TURN | Service::TURNS_OF_OVERLOADED) {
                pool.turns = tables.read_turns(service.id, source);
            }
            tables.pools.insert(service.key, pool);
        }
        tables
    }

    fn read_turns(&mut self, id: u16, source: &impl Source) -> Option<PoolTurns> {
        let place = source.turns(id);
        let end = place.chunk.checked_add(chunks(place.length)).filter(|end| *end <= maps::RING_CHUNKS)?;
        let taken = self.chunks.take(place.chunk, chunks(place.length));
        let sequence = (place.chunk..end).flat_map(|chunk| source.chunk(chunk)).take(place.length as usize);
        let sequence = sequence.collect();
        // The kind and the weights are not in the maps; the first plan knows them.
        taken.then(|| PoolTurns {
            kind: Turns::RoundRobin,
            chunk: place.chunk,
            sequence,
            members: Vec::new(),
            loads: Vec::new(),
            taken: 0,
        })
    }

    /// Index in `REALS` of a service's real server.
    pub fn real_index(&self, key: &ServiceKey, address: Ipv4Addr, port: u16) -> Option<u32> {
        let pool = self.pools.get(key)?;
        let position = self.members(pool).iter().position(|real| is(real, address, port))?;
        Some(pool.base + position as u32)
    }

    /// [`Real::state`] of a service's real server.
    pub fn state(&self, key: &ServiceKey, address: Ipv4Addr, port: u16) -> Option<u8> {
        self.real_index(key, address, port).map(|index| self.reals[index as usize].state)
    }

    fn members(&self, pool: &Pool) -> &[Real] {
        &self.reals[pool.base as usize..(pool.base + pool.len) as usize]
    }

    /// The steps from here to `desired`; this image is then what the maps say once they are all done. On an
    /// error the image is unchanged.
    pub fn plan(
        &mut self,
        desired: &Desired,
        source: &impl Source,
        now: Duration,
    ) -> Result<Vec<Write>, PlanError> {
        let mut next = self.clone();
        let mut steps = Steps::default();
        for service in &desired.services {
            next.plan_service(service, source, now, &mut steps)?;
        }
        let wanted: HashSet<ServiceKey> = desired.services.iter().map(|s| s.key).collect();
        let gone: Vec<ServiceKey> = next.pools.keys().filter(|key| !wanted.contains(key)).copied().collect();
        for key in gone {
            steps.rebuild = true;
            next.drop_pool(&key, &mut steps);
        }
        next.plan_replies(&mut steps.prepare, &mut steps.retire);
        steps.rebuild |= next.table.translates == next.replies.is_empty();
        if steps.rebuild {
            next.rebuild(&mut steps)?;
        }
        next.plan_vips(desired, &mut steps);
        for (start, len) in steps.free_chunks.drain(..) {
            next.chunks.give(start, len);
        }
        for (start, len) in steps.free_ranges.drain(..) {
            next.ranges.give(start, len);
        }
        for id in &steps.free_ids {
            next.ids.give(u32::from(*id), 1);
        }
        *self = next;
        Ok(steps.in_order())
    }

    fn plan_service(
        &mut self,
        desired: &DesiredService,
        source: &impl Source,
        now: Duration,
        steps: &mut Steps,
    ) -> Result<(), PlanError> {
        let reals = desired.reals.len();
        let mut pool = match self.pools.get(&desired.key) {
            Some(pool) => pool.clone(),
            None => {
                steps.rebuild = true;
                let id =
                    self.ids.find(1).ok_or(PlanError::TooManyServices { services: self.pools.len() + 1 })?;
                Pool {
                    id: id as u16,
                    base: 0,
                    len: 0,
                    hash: desired.hash,
                    persistence: desired.persistence,
                    chunk: 0,
                    ring: Ring::default(),
                    used: false,
                    takers: Service::NO_TURNS,
                    turns: None,
                    leaving: Vec::new(),
                }
            }
        };
        // A new or moved range of reals is published with its ring by the flip of the whole table; the ring
        // alone must not be, since its indexes count from the new range.
        let mut live_slot = self.live_slot(&desired.key);
        if self.enlarge(&mut pool, desired, source, steps)? {
            steps.rebuild = true;
            live_slot = None;
        }
        let remembered = pool.takers != Service::NO_TURNS;
        let takers = match desired.turns.map_or(Service::NO_TURNS, Turns::takers) {
            Service::NO_TURNS if desired.persistence.is_some() => Service::REMEMBERED,
            takers => takers,
        };
        let prefix_len = |persistence: Option<Persistence>| persistence.map(|it| it.prefix_len);
        steps.rebuild |= (pool.hash, pool.takers) != (desired.hash, takers)
            || prefix_len(pool.persistence) != prefix_len(desired.persistence);
        (pool.hash, pool.takers, pool.persistence) = (desired.hash, takers, desired.persistence);
        let mut members = self.place_reals(&mut pool, desired, steps);
        self.plan_turns(
            &mut pool,
            desired.turns.filter(|turns| turns.takers() != Service::NO_TURNS),
            &members,
            steps,
        )?;
        if let Some(turns) = desired.turns {
            members = turns.on_ring(&members);
        }
        let length = maglev::length(reals);
        let mut owners = maglev::ring(&members, length);
        if owners.is_empty() {
            owners = ring::owned_by_nobody(length);
        }
        let mut ring = pool.ring.clone();
        if !ring.is_owned_as(&owners) {
            pool.used |= source.has_forwarded(pool.range());
            ring = if pool.used { ring.moved_to(&owners, now) } else { Ring::new(owners) };
        }
        if remembered && takers == Service::NO_TURNS {
            ring.doubt_all(now);
        }
        if ring != pool.ring {
            let chunks = ring.chunks();
            let count = chunks.len() as u32;
            let chunk = self.chunks.find(count).ok_or(PlanError::NoRoomForRing { length })?;
            for (i, slots) in chunks.into_iter().enumerate() {
                steps.prepare.push(Write::Ring { chunk: chunk + i as u32, slots });
            }
            steps.free_chunks.push((pool.chunk, pool.ring_chunks()));
            (pool.chunk, pool.ring) = (chunk, ring);
            if let Some(slot) = live_slot {
                let ring = pool.ring_ref();
                self.slots[slot].ring = ring.pack();
                steps.publish.push(Write::ServiceRing { slot: slot as u32, ring });
            }
        }
        self.pools.insert(desired.key, pool);
        Ok(())
    }

    fn plan_turns(
        &mut self,
        pool: &mut Pool,
        wanted: Option<Turns>,
        members: &[Member],
        steps: &mut Steps,
    ) -> Result<(), PlanError> {
        let before = pool.turns.take();
        let Some(kind) = wanted else {
            if let Some(turns) = before {
                steps.free_chunks.push((turns.chunk, chunks(turns.sequence.len() as u32)));
            }
            return Ok(());
        };
        let mut turns = PoolTurns { kind, members: members.to_vec(), ..before.clone().unwrap_or_default() };
        let unchanged =
            before.as_ref().is_some_and(|before| before.kind == kind && before.members == members);
        if !unchanged {
            turns.sequence = kind.sequence(&turns.candidates(), 0);
        }
        let length = turns.sequence.len() as u32;
        if before.as_ref().is_none_or(|before| before.sequence != turns.sequence) {
            turns.chunk = self.chunks.find(chunks(length)).ok_or(PlanError::NoRoomForRing { length })?;
            for (chunk, slots) in (turns.chunk..).zip(turns.sequence.chunks(maps::RING_CHUNK)) {
                steps.prepare.push(Write::Ring { chunk, slots: ring::chunk(slots) });
            }
            if let Some(before) = before {
                steps.free_chunks.push((before.chunk, chunks(before.sequence.len() as u32)));
            }
            let sequence = RingRef { chunk: turns.chunk, length };
            steps.publish.push(Write::Turns { id: pool.id, sequence });
        }
        pool.turns = Some(turns);
        Ok(())
    }

    fn drop_pool(&mut self, key: &ServiceKey, steps: &mut Steps) {
        let Some(pool) = self.pools.remove(key) else { return };
        steps.free_chunks.push((pool.chunk, pool.ring_chunks()));
        if let Some(turns) = &pool.turns {
            steps.free_chunks.push((turns.chunk, chunks(turns.sequence.len() as u32)));
        }
        steps.free_ranges.push((pool.base, pool.len));
        steps.free_ids.push(pool.id);
        for index in pool.range() {
            if self.reals[index as usize] != Real::default() {
                self.reals[index as usize] = Real::default();
                steps.retire.push(Write::Real { index, real: Real::default() });
            }
        }
    }

    fn live_slot(&self, key: &ServiceKey) -> Option<usize> {
        let live = half(self.table.half);
        let home = live.start + key.home(self.table.seed) as usize;
        (0..maps::SERVICE_PROBES as usize)
            .map(|probe| live.start + (home - live.start + probe) % maps::SERVICE_SLOTS as usize)
            .find(|slot| self.slots[*slot].key == *key)
    }

    /// Fills the half nobody reads with all services and flips to it.
    fn rebuild(&mut self, steps: &mut Steps) -> Result<(), PlanError> {
        let other = 1 - self.table.half;
        let target = half(other);
        let (seed, placed) = self.place_services()?;
        for (offset, service) in placed.into_iter().enumerate() {
            let slot = target.start + offset;
            if self.slots[slot] != service {
                self.slots[slot] = service;
                steps.prepare.push(Write::Service { slot: slot as u32, service });
            }
        }
        self.table = TableRef { seed, half: other, translates: !self.replies.is_empty() };
        // Rings of services that stay were flipped in the half that is live until this store.
        steps.publish.push(Write::Table(self.table));
        Ok(())
    }

    /// A seed with which every service lands in its home slot or the next ones, and that table.
    fn place_services(&self) -> Result<(u32, Vec<Service>), PlanError> {
        const SEEDS: u32 = 1000;
        'seeds: for seed in 0..SEEDS {
            let mut table = vec![Service::default(); maps::SERVICE_SLOTS as usize];
            for (key, pool) in &self.pools {
                let home = key.home(seed);
                let free = (home..home + maps::SERVICE_PROBES)
                    .map(|slot| (slot % maps::SERVICE_SLOTS) as usize)
                    .find(|slot| table[*slot].key.protocol == 0);
                let Some(slot) = free else { continue 'seeds };
                table[slot] = Service {
                    key: *key,
                    ring: pool.ring_ref().pack(),
                    reals_base: pool.base,
                    reals_len: pool.len,
                    hash: pool.hash,
                    persistence: pool.persistence.map_or(0, |it| u16::from(it.prefix_len) + 1),
                    id: pool.id,
                    takes_turns: pool.takers,
                };
            }
            return Ok((seed, table));
        }
        Err(PlanError::TooManyServices { services: self.pools.len() })
    }

    fn plan_vips(&mut self, desired: &Desired, steps: &mut Steps) {
        for (address, vip) in &desired.vips {
            if self.vips.insert(*address, *vip) != Some(*vip) {
                steps.prepare.push(Write::Vip { address: *address, vip: *vip });
            }
        }
        let wanted: HashSet<IpAddr> = desired.vips.iter().map(|(address, _)| *address).collect();
        self.vips.retain(|address, _| {
            let keep = wanted.contains(address);
            if !keep {
                steps.retire.push(Write::VipGone { address: *address });
            }
            keep
        });
    }
}

/// The writes of one plan by phase.
#[derive(Default)]
struct Steps {
    prepare: Vec<Write>,
    publish: Vec<Write>,
    retire: Vec<Write>,
    rebuild: bool,
    free_chunks: Vec<(u32, u32)>,
    free_ranges: Vec<(u32, u32)>,
    free_ids: Vec<u16>,
}

impl Steps {
    fn in_order(self) -> Vec<Write> {
        let mut writes = self.prepare;
        if !self.publish.is_empty() {
            writes.extend(self.publish);
            writes.push(Write::Grace);
        }
        writes.extend(self.retire);
        if !self.free_ids.is_empty() {
            writes.push(Write::Forget { ids: self.free_ids });
        }
        writes
    }
}

fn half(half: u32) -> std::ops::Range<usize> {
    let start = half as usize * maps::SERVICE_SLOTS as usize;
    start..start + maps::SERVICE_SLOTS as usize
}

fn chunks(length: u32) -> u32 {
    length.div_ceil(maps::RING_CHUNK as u32)
}

fn takes_flows(real: &Real) -> bool {
    matches!(real.state, Real::ALIVE | Real::OVERLOADED)
}

fn is(real: &Real, address: Ipv4Addr, port: u16) -> bool {
    real.address == u32::from_ne_bytes(address.octets()) && real.port == port.to_be()
}

#[cfg(test)]
mod tests;
