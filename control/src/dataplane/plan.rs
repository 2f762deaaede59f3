//! From the services one wants to the map writes that lead there without a packet meeting a hole.
//!
//! Pure: [`Tables`] is an image of the maps. Each change follows one order: write reals and rings where no packet
//! looks, publish by one 8-byte store, wait until every CPU has left the old ([`Write::Grace`]), then free it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::Ipv4Addr,
};

use lvs_ebpf_common::{Real, RingRef, Service, ServiceKey, TableRef, Vip, maps};

use super::maglev::{self, Member};

/// What the tables shall say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    pub services: Vec<DesiredService>,
    pub vips: Vec<(Ipv4Addr, Vip)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DesiredService {
    pub key: ServiceKey,
    /// One of `Service::HASH_*`.
    pub hash: u32,
    /// Every configured real, alive or not: their number decides the ring's length.
    pub reals: Vec<DesiredReal>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DesiredReal {
    pub address: Ipv4Addr,
    pub port: u16,
    /// 0 = takes no new flow.
    pub weight: u16,
    /// Where its frames go; `None` = not known yet, so it is not on the ring either.
    pub next_hop: Option<NextHop>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    pub mac: [u8; 6],
    pub source_mac: [u8; 6],
    pub ifindex: u32,
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
    /// Flips all services to the other half.
    Table(TableRef),
    Vip {
        address: Ipv4Addr,
        vip: Vip,
    },
    VipGone {
        address: Ipv4Addr,
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
    vips: HashMap<Ipv4Addr, Vip>,
    /// What of `RINGS` is in use, in chunks.
    chunks: Space,
    /// What of `REALS` is in use.
    ranges: Space,
}

/// One service's part of the tables.
#[derive(Clone)]
struct Pool {
    base: u32,
    len: u32,
    hash: u32,
    ring: RingRef,
    slots: Vec<u16>,
}

impl Tables {
    /// The image of maps as they are: empty ones, or those a predecessor left pinned. What cannot be
    /// understood is left out and therefore written anew.
    pub fn read(
        table: TableRef,
        slots: Vec<Service>,
        reals: Vec<Real>,
        chunk: impl Fn(u32) -> maps::RingChunk,
        vips: HashMap<Ipv4Addr, Vip>,
    ) -> Self {
        let mut tables = Self {
            table,
            slots,
            reals,
            pools: HashMap::new(),
            vips,
            chunks: Space::new(maps::RING_CHUNKS),
            ranges: Space::new(maps::REAL_SLOTS),
        };
        let live = half(table.half);
        for service in tables.slots[live].iter().copied() {
            let ring = RingRef::unpack(service.ring);
            if service.key.protocol == 0
                || !tables.ranges.take(service.reals_base, service.reals_len)
                || !tables.chunks.take(ring.chunk, chunks(ring.length))
            {
                continue;
            }
            let slots = (ring.chunk..ring.chunk + chunks(ring.length)).flat_map(&chunk);
            tables.pools.insert(
                service.key,
                Pool {
                    base: service.reals_base,
                    len: service.reals_len,
                    hash: service.hash,
                    ring,
                    slots: slots.take(ring.length as usize).collect(),
                },
            );
        }
        tables
    }

    /// Index in `REALS` of a service's real server.
    pub fn real_index(&self, key: &ServiceKey, address: Ipv4Addr, port: u16) -> Option<u32> {
        let pool = self.pools.get(key)?;
        let position = self.members(pool).iter().position(|real| is(real, address, port))?;
        Some(pool.base + position as u32)
    }

    /// Whether a real server has slots on its service's ring.
    pub fn on_ring(&self, key: &ServiceKey, address: Ipv4Addr, port: u16) -> bool {
        let (Some(pool), Some(index)) = (self.pools.get(key), self.real_index(key, address, port)) else {
            return false;
        };
        let index = index - pool.base;
        pool.slots.iter().any(|slot| u32::from(*slot) == index)
    }

    fn members(&self, pool: &Pool) -> &[Real] {
        &self.reals[pool.base as usize..(pool.base + pool.len) as usize]
    }

    /// The steps from here to `desired`; this image is then what the maps say once they are all done. On an
    /// error the image is unchanged.
    pub fn plan(&mut self, desired: &Desired) -> Result<Vec<Write>, PlanError> {
        let mut next = self.clone();
        let mut steps = Steps::default();
        for service in &desired.services {
            next.plan_service(service, &mut steps)?;
        }
        let wanted: HashSet<ServiceKey> = desired.services.iter().map(|s| s.key).collect();
        let gone: Vec<ServiceKey> = next.pools.keys().filter(|key| !wanted.contains(key)).copied().collect();
        for key in gone {
            steps.rebuild = true;
            next.drop_pool(&key, &mut steps);
        }
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
        *self = next;
        Ok(steps.in_order())
    }

    fn plan_service(&mut self, desired: &DesiredService, steps: &mut Steps) -> Result<(), PlanError> {
        let reals = desired.reals.len();
        if reals > maps::REALS_PER_SERVICE as usize {
            return Err(PlanError::ServiceTooLarge { reals });
        }
        let stays = self.pools.get(&desired.key).filter(|pool| self.fits(pool, desired)).cloned();
        // A new or moved range of reals is published with its ring by the flip of the whole table; the ring
        // alone must not be, since its indexes count from the new range.
        let live_slot = stays.as_ref().and_then(|_| self.live_slot(&desired.key));
        let mut pool = match stays {
            Some(pool) => {
                steps.rebuild |= pool.hash != desired.hash;
                pool
            }
            None => {
                self.drop_pool(&desired.key, steps);
                steps.rebuild = true;
                let len = (reals as u32).next_power_of_two().clamp(8, maps::REALS_PER_SERVICE);
                let base = self.ranges.find(len).ok_or(PlanError::NoRoomForReals { wanted: len })?;
                Pool { base, len, hash: desired.hash, ring: RingRef::default(), slots: Vec::new() }
            }
        };
        pool.hash = desired.hash;

        let members = self.place_reals(&pool, desired, steps);
        let length = maglev::length(reals);
        let slots = maglev::ring(&members, length);
        if slots != pool.slots {
            let ring = if slots.is_empty() {
                RingRef::default()
            } else {
                let chunk = self.chunks.find(chunks(length)).ok_or(PlanError::NoRoomForRing { length })?;
                for (i, part) in slots.chunks(maps::RING_CHUNK).enumerate() {
                    let mut slots = [0; maps::RING_CHUNK];
                    slots[..part.len()].copy_from_slice(part);
                    steps.prepare.push(Write::Ring { chunk: chunk + i as u32, slots });
                }
                RingRef { chunk, length }
            };
            if pool.ring.length > 0 {
                steps.free_chunks.push((pool.ring.chunk, chunks(pool.ring.length)));
            }
            pool.ring = ring;
            pool.slots = slots;
            if let Some(slot) = live_slot {
                self.slots[slot].ring = ring.pack();
                steps.publish.push(Write::ServiceRing { slot: slot as u32, ring });
            }
        }
        self.pools.insert(desired.key, pool);
        Ok(())
    }

    /// Whether all wanted reals find a place in the range the service has.
    fn fits(&self, pool: &Pool, desired: &DesiredService) -> bool {
        let members = self.members(pool);
        let known = |real: &&DesiredReal| members.iter().any(|m| is(m, real.address, real.port));
        let new = desired.reals.iter().filter(|real| !known(real)).count();
        new <= members.iter().filter(|m| m.address == 0).count()
    }

    /// Writes new and changed reals, schedules removed ones for after the flip, and says who is on the ring.
    fn place_reals(&mut self, pool: &Pool, desired: &DesiredService, steps: &mut Steps) -> Vec<Member> {
        let range = pool.base..pool.base + pool.len;
        let mut members = Vec::with_capacity(desired.reals.len());
        let mut kept = HashSet::new();
        let mut new = Vec::new();
        for real in &desired.reals {
            match range.clone().find(|i| is(&self.reals[*i as usize], real.address, real.port)) {
                Some(index) => {
                    kept.insert(index);
                    self.write_real(index, real, steps);
                    members.push(member(index - pool.base, real));
                }
                None => new.push(real),
            }
        }
        // A place that becomes free now may still be on the old ring: new reals take others.
        let mut free = range.clone().filter(|i| self.reals[*i as usize].address == 0).collect::<Vec<_>>();
        free.reverse();
        for index in range {
            if self.reals[index as usize].address != 0 && !kept.contains(&index) {
                self.reals[index as usize] = Real::default();
                steps.retire.push(Write::Real { index, real: Real::default() });
            }
        }
        for real in new {
            let Some(index) = free.pop() else { continue };
            self.write_real(index, real, steps);
            members.push(member(index - pool.base, real));
        }
        members
    }

    fn write_real(&mut self, index: u32, desired: &DesiredReal, steps: &mut Steps) {
        let mut real = self.reals[index as usize];
        real.address = u32::from_ne_bytes(desired.address.octets());
        real.port = desired.port.to_be();
        // An unknown next hop never replaces a known one: packets on their way keep theirs.
        if let Some(hop) = desired.next_hop {
            real.mac = hop.mac;
            real.source_mac = hop.source_mac;
            real.ifindex = hop.ifindex;
        }
        if real != self.reals[index as usize] {
            self.reals[index as usize] = real;
            steps.prepare.push(Write::Real { index, real });
        }
    }

    fn drop_pool(&mut self, key: &ServiceKey, steps: &mut Steps) {
        let Some(pool) = self.pools.remove(key) else { return };
        if pool.ring.length > 0 {
            steps.free_chunks.push((pool.ring.chunk, chunks(pool.ring.length)));
        }
        steps.free_ranges.push((pool.base, pool.len));
        for index in pool.base..pool.base + pool.len {
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
        self.table = TableRef { seed, half: other };
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
                    ring: pool.ring.pack(),
                    reals_base: pool.base,
                    reals_len: pool.len,
                    hash: pool.hash,
                    _pad: 0,
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
        let wanted: HashSet<Ipv4Addr> = desired.vips.iter().map(|(address, _)| *address).collect();
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
}

impl Steps {
    fn in_order(self) -> Vec<Write> {
        let mut writes = self.prepare;
        if !self.publish.is_empty() {
            writes.extend(self.publish);
            writes.push(Write::Grace);
        }
        writes.extend(self.retire);
        writes
    }
}

/// First-fit allocation of `len` elements.
#[derive(Clone)]
struct Space {
    len: u32,
    /// Start and length.
    used: BTreeMap<u32, u32>,
}

impl Space {
    fn new(len: u32) -> Self {
        Self { len, used: BTreeMap::new() }
    }

    fn find(&mut self, wanted: u32) -> Option<u32> {
        let mut at = 0u32;
        for (start, len) in &self.used {
            if start - at >= wanted {
                break;
            }
            at = start + len;
        }
        (self.len - at >= wanted).then(|| {
            self.used.insert(at, wanted);
            at
        })
    }

    /// Marks what a predecessor used; false where it overlaps or lies outside.
    fn take(&mut self, start: u32, len: u32) -> bool {
        if len == 0 {
            return true;
        }
        let Some(end) = start.checked_add(len).filter(|end| *end <= self.len) else { return false };
        let overlaps = self.used.range(..end).next_back().is_some_and(|(s, l)| s + l > start);
        if !overlaps {
            self.used.insert(start, len);
        }
        !overlaps
    }

    fn give(&mut self, start: u32, len: u32) {
        let freed = self.used.remove(&start);
        debug_assert_eq!(freed, Some(len));
    }
}

fn half(half: u32) -> std::ops::Range<usize> {
    let start = half as usize * maps::SERVICE_SLOTS as usize;
    start..start + maps::SERVICE_SLOTS as usize
}

fn chunks(length: u32) -> u32 {
    length.div_ceil(maps::RING_CHUNK as u32)
}

fn is(real: &Real, address: Ipv4Addr, port: u16) -> bool {
    real.address == u32::from_ne_bytes(address.octets()) && real.port == port.to_be()
}

fn member(index: u32, real: &DesiredReal) -> Member {
    Member {
        index: index as u16,
        weight: if real.next_hop.is_some() { real.weight } else { 0 },
        identity: u64::from(u32::from(real.address)) << 16 | u64::from(real.port),
    }
}

#[cfg(test)]
mod tests;
