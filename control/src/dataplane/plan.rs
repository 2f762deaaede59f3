//! From the services one wants to the map writes that lead there without a packet meeting a hole.
//!
//! Pure: [`Tables`] is an image of the maps. Each change follows one order: write reals and rings where no packet
//! looks, publish by one 8-byte store, wait until every CPU has left the old ([`Write::Grace`]), then free it.
//! A flow on a living real server meets that one before, during and after: see `ring.rs`.
//!
//! First each service in question is drafted (`draft.rs`), which may fail and changes nothing. Then the drafts are
//! taken over into the image. So a change costs what it touches, not what there is.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lvs_ebpf_common::{
    Address, AddressFilter, ConnectionIds, Interface, Real, Reply, RingRef, ServerId, Service, ServiceKey,
    TableRef, Vip, maps,
};

pub use self::drift::Seen;
pub use self::room::Room;
use self::{
    draft::Draft, replies::Translated, server_ids::ServerIds, space::Space, steps::Steps, table::Placed,
};
use super::{
    maglev::{self, Member},
    ring::Ring,
    turns::{Load, Turns},
};
use crate::config::model::{Forwarding, Limit, Persistence};

mod draft;
mod drift;
mod found;
mod reals;
mod replies;
mod room;
mod server_ids;
mod settle;
mod space;
mod steps;
pub mod table;
mod vips;

/// What the tables shall say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    pub services: Vec<DesiredService>,
    pub vips: Vec<(IpAddr, Vip)>,
}

/// What a service is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub address: IpAddr,
    /// 0 = all ports that no other service of the address has.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DesiredService {
    pub key: Endpoint,
    /// One of `Service::HASH_*`.
    pub hash: u8,
    pub persistence: Option<Persistence>,
    /// By which QUIC connections find their real server.
    pub connection_ids: Option<ConnectionIds>,
    /// The scheduler, where it is not hashing alone.
    pub turns: Option<Turns>,
    /// `ops`: each packet by itself, so that no flow has to be kept where it is.
    pub one_packet: bool,
    /// Every configured real, alive or not: their number decides the ring's length.
    pub reals: Vec<DesiredReal>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DesiredReal {
    pub address: IpAddr,
    pub port: u16,
    /// 0 = takes no new flow.
    pub weight: u16,
    pub limit: Option<Limit>,
    pub forwarding: Forwarding,
    /// False = its check failed, and its flows are not to be kept.
    pub alive: bool,
    /// Once it is not alive, what is left of its TCP flows is reset.
    pub resets: bool,
    /// As `SERVER_IDS` has it.
    pub server_id: Option<[u8; 8]>,
    /// Where its frames go; `None` = not known yet, so it is not on the ring either.
    pub next_hop: Option<NextHop>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    pub mac: [u8; 6],
    pub source_mac: [u8; 6],
    pub ifindex: u32,
    /// An address of this node, for a tunnel to come from.
    pub source: Option<IpAddr>,
    /// The largest IP packet on the way.
    pub mtu: u16,
}

impl NextHop {
    /// This node itself.
    pub const LOCAL: Self = Self { mac: [0; 6], source_mac: [0; 6], ifindex: 0, source: None, mtu: u16::MAX };

    pub fn is_local(&self) -> bool {
        *self == Self::LOCAL
    }
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
    /// What was sent to an element of `REALS`: what was sent to another one so far, or nothing.
    Count {
        index: u32,
        from: Option<u32>,
    },
    /// The address of the service of this number.
    Address {
        id: u16,
        address: Address,
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
    /// Whose frames are for this node.
    Interface {
        slot: u32,
        interface: Interface,
    },
    /// What a real server's answers are translated to.
    Reply {
        key: ServiceKey,
        reply: Reply,
    },
    ReplyGone {
        key: ServiceKey,
    },
    /// Whose QUIC connections they are that have this ID.
    ServerId {
        key: ServerId,
        index: u32,
    },
    ServerIdGone {
        key: ServerId,
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
    #[error(
        "no room for {wanted} more real servers: the tables were made for {of} in all; a stop and a start make them anew"
    )]
    NoRoomForReals { wanted: u32, of: u32 },
    #[error("{reals} real servers in one service are more than {}", maps::REALS_PER_SERVICE)]
    ServiceTooLarge { reals: usize },
    #[error("no room for a ring of {length} slots: a stop and a start make the tables anew")]
    NoRoomForRing { length: u32 },
}

/// The maps as this process last wrote or read them.
pub struct Tables {
    table: TableRef,
    /// Both halves.
    slots: Vec<Service>,
    reals: Vec<Real>,
    pools: HashMap<Endpoint, Pool>,
    vips: HashMap<IpAddr, Vip>,
    /// Of services and virtual addresses, as far as they are IPv4.
    addresses: AddressFilter,
    /// All elements of `INTERFACES`.
    interfaces: Vec<Interface>,
    replies: HashMap<ServiceKey, Reply>,
    translated: Translated,
    /// Of no service that is known.
    stray_ids: HashMap<ServerId, u32>,
    /// What of `RINGS` is in use, in chunks.
    chunks: Space,
    /// What of `REALS` is in use.
    ranges: Space,
    /// What of `TURNS` is in use.
    ids: Space,
}

/// What the maps hold beside services, reals and virtual addresses.
pub trait Source {
    fn room(&self) -> Room;
    /// The address of the service of this number.
    fn address(&self, id: u16) -> Address;
    fn chunk(&self, chunk: u32) -> maps::RingChunk;
    /// The published sequence of turns.
    fn turns(&self, id: u16) -> RingRef;
    /// Turns taken so far.
    fn taken(&self, id: u16) -> u64;
    fn server_ids(&self) -> HashMap<ServerId, u32>;
    fn interface(&self, slot: u32) -> Interface;
    /// Whether a packet was ever sent to one of these reals.
    fn has_forwarded(&self, reals: std::ops::Range<u32>) -> bool;
}

/// One service's part of the tables.
#[derive(Clone)]
struct Pool {
    id: u16,
    base: u32,
    len: u32,
    hash: u8,
    /// `Service::old_hash`
    old_hash: u8,
    /// As read from the maps it has no timeout yet; the first plan knows it.
    persistence: Option<Persistence>,
    /// A packed [`ConnectionIds`].
    connection_ids: u8,
    server_ids: ServerIds,
    /// What ring and turns were made of; `None`: as read from the maps.
    made_of: Option<(Vec<Member>, Option<Turns>)>,
    /// First chunk of the ring.
    chunk: u32,
    ring: Arc<Ring>,
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
    chunk: u32,
    sequence: Vec<u16>,
    /// By index of the real, at the last look.
    loads: Vec<Load>,
    /// Who has as many connections as it may have.
    full: HashSet<u16>,
    /// Turns taken by then; `None`: they were made anew since.
    taken: Option<u64>,
}

impl Endpoint {
    /// As packets lead to it.
    pub fn packed(&self) -> ServiceKey {
        let address = Address::from(self.address);
        let (address, family) = match address.to_v4() {
            Some(address) => (address, ServiceKey::V4),
            None => (address.fold(), ServiceKey::V6),
        };
        ServiceKey { address, port: self.port.to_be(), protocol: self.protocol, family }
    }
}

impl Pool {
    /// Some of its real servers may have only so many connections.
    fn is_limited(&self) -> bool {
        self.made_of.as_ref().is_some_and(|(members, _)| maglev::are_limited(members))
    }

    /// The flow table knows all of its flows.
    fn remembers(&self) -> bool {
        !matches!(self.takers, Service::NO_TURNS | Service::EVERY_PACKET)
    }

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
    /// Index in `REALS` of a service's real server.
    pub fn real_index(&self, key: &Endpoint, address: IpAddr, port: u16) -> Option<u32> {
        let pool = self.pools.get(key)?;
        let position = self.members(pool).iter().position(|real| is(real, address, port))?;
        Some(pool.base + position as u32)
    }

    /// Whether a real server's checks succeeded; `None`: the tables do not say. `inhibits`: it drains when they fail. Others
    /// drain by their weight, or behind a sorry server, and are dead when they fail.
    pub fn was_up(&self, key: &Endpoint, address: IpAddr, port: u16, inhibits: bool) -> Option<bool> {
        match self.state(key, address, port)? {
            Real::ALIVE | Real::OVERLOADED => Some(true),
            Real::DRAINING => Some(!inhibits),
            Real::DEAD | Real::RESETTING | Real::DEAD_BESIDE_LOCAL => Some(false),
            // One that the file did not have any more, and that took flows until then.
            _ => inhibits.then_some(false),
        }
    }

    /// [`Real::state`] of a service's real server.
    fn state(&self, key: &Endpoint, address: IpAddr, port: u16) -> Option<u8> {
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
        let (mut steps, placed) = self.change(&desired.services, self.departing(desired), source, now)?;
        self.plan_vips(desired, &mut steps);
        self.addresses = self.all_addresses();
        self.publish_table(placed, &mut steps);
        Ok(self.finish(steps))
    }

    /// The first part of that: services that are not desired any more leave, and with them what they have of the maps.
    pub fn plan_departures(
        &mut self,
        desired: &Desired,
        source: &impl Source,
        now: Duration,
    ) -> Result<Vec<Write>, PlanError> {
        self.plan_change(&[], self.departing(desired), source, now)
    }

    fn departing(&self, desired: &Desired) -> Vec<Endpoint> {
        let wanted: HashSet<Endpoint> = desired.services.iter().map(|s| s.key).collect();
        self.pools.keys().filter(|key| !wanted.contains(key)).copied().collect()
    }

    /// The same where some services are not as they were and all else is.
    pub fn plan_services(
        &mut self,
        services: &[DesiredService],
        source: &impl Source,
        now: Duration,
    ) -> Result<Vec<Write>, PlanError> {
        self.plan_change(services, Vec::new(), source, now)
    }

    fn plan_change(
        &mut self,
        services: &[DesiredService],
        gone: Vec<Endpoint>,
        source: &impl Source,
        now: Duration,
    ) -> Result<Vec<Write>, PlanError> {
        let (mut steps, placed) = self.change(services, gone, source, now)?;
        self.publish_table(placed, &mut steps);
        Ok(self.finish(steps))
    }

    fn change(
        &mut self,
        services: &[DesiredService],
        gone: Vec<Endpoint>,
        source: &impl Source,
        now: Duration,
    ) -> Result<(Steps, Option<Placed>), PlanError> {
        let mut steps = Steps { rebuild: !gone.is_empty(), ..Steps::default() };
        let mut drafts = Vec::with_capacity(services.len());
        let drafted = services.iter().try_for_each(|service| {
            drafts.push(self.draft(service, source, now, &mut steps)?);
            Ok(())
        });
        let placed = drafted.and_then(|()| steps.rebuild.then(|| self.place(&drafts, &gone)).transpose());
        let placed = match placed {
            Ok(placed) => placed,
            Err(error) => {
                self.give_back(&steps.taken);
                return Err(error);
            }
        };
        self.drop_stray_ids(&mut steps);
        for draft in drafts {
            self.take_over(draft, &mut steps);
        }
        for key in gone {
            self.drop_pool(&key, &mut steps);
        }
        self.plan_replies(&mut steps.prepare, &mut steps.retire);
        Ok((steps, placed))
    }

    fn take_over(&mut self, draft: Draft, steps: &mut Steps) {
        let Draft { key, pool, reals, flips } = draft;
        let before = self.pools.get(&key).map_or(0..0, Pool::range);
        if before != pool.range() {
            // Without the packets of the moment until the flip.
            let moved = pool.range().zip(before.clone());
            steps.prepare.extend(moved.map(|(index, from)| Write::Count { index, from: Some(from) }));
        }
        for (index, real) in pool.range().zip(reals) {
            if self.put(&key, index, real) {
                steps.prepare.push(Write::Real { index, real });
            }
        }
        // A new or moved range of reals is published with its ring by the flip of the whole table; the ring
        // alone must not be, since its indexes count from the new range.
        if before == pool.range() {
            if let Some(slot) = self.live_slot(&key, pool.id).filter(|_| flips) {
                let ring = pool.ring_ref();
                self.slots[slot].ring = ring.pack();
                steps.publish.push(Write::ServiceRing { slot: slot as u32, ring });
            }
        } else {
            self.clear(&key, before, steps);
        }
        let before = self.pools.get(&key).map(|before| before.server_ids.clone()).unwrap_or_default();
        pool.server_ids.replace(&before, pool.id, steps);
        self.pools.insert(key, pool);
    }

    fn drop_pool(&mut self, key: &Endpoint, steps: &mut Steps) {
        let Some(pool) = self.pools.remove(key) else { return };
        steps.freed.chunks.push((pool.chunk, pool.ring_chunks()));
        if let Some(turns) = &pool.turns {
            steps.freed.chunks.push((turns.chunk, chunks(turns.sequence.len() as u32)));
        }
        steps.freed.ranges.push((pool.base, pool.len));
        steps.freed.ids.push(pool.id);
        ServerIds::default().replace(&pool.server_ids, pool.id, steps);
        self.clear(key, pool.range(), steps);
    }

    fn clear(&mut self, key: &Endpoint, range: std::ops::Range<u32>, steps: &mut Steps) {
        for index in range {
            if self.put(key, index, Real::default()) {
                steps.retire.extend(freed(index));
            }
        }
    }

    /// False: it is so already.
    fn put(&mut self, service: &Endpoint, index: u32, real: Real) -> bool {
        let before = std::mem::replace(&mut self.reals[index as usize], real);
        self.translated.replace(service, index, &before, &real);
        before != real
    }
}

fn chunks(length: u32) -> u32 {
    length.div_ceil(maps::RING_CHUNK as u32)
}

/// An element that nobody has is all zero, so that the next one finds nothing of the last.
fn freed(index: u32) -> [Write; 2] {
    [Write::Real { index, real: Real::default() }, Write::Count { index, from: None }]
}

fn takes_flows(real: &Real) -> bool {
    matches!(real.state, Real::ALIVE | Real::OVERLOADED)
}

fn is(real: &Real, address: IpAddr, port: u16) -> bool {
    real.address == address.into() && real.port == port.to_be()
}

#[cfg(test)]
mod tests;
