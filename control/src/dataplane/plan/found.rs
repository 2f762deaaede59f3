//! What do the maps say that are found at a start?

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use lvs_ebpf_common::{AddressFilter, Real, Reply, RingRef, Service, ServiceKey, TableRef, Vip, maps};

use super::{
    Endpoint, Pool, PoolTurns, Source, Tables, chunks, replies::Translated, server_ids::ServerIds,
    space::Space, table,
};
use crate::{config::model::Persistence, dataplane::ring::Ring};

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
            addresses: AddressFilter::default(),
            interfaces: (0..maps::INTERFACE_SLOTS).map(|slot| source.interface(slot)).collect(),
            replies,
            chunks: Space::new(source.room().chunks),
            ranges: Space::new(source.room().reals),
            ids: Space::new(maps::SERVICE_IDS),
            translated: Translated::default(),
            stray_ids: HashMap::new(),
        };
        let live: Vec<Service> = tables.slots[table::half(table.half)].to_vec();
        for service in live {
            let place = RingRef::unpack(service.ring);
            let end = source.room().chunks;
            let Some(mut ring) = Ring::read(place, end, |chunk| source.chunk(chunk), now) else {
                continue;
            };
            if service.old_hash != service.hash {
                ring.had_another_hash();
            }
            let Some(key) = Endpoint::of(&service, source) else { continue };
            let chunks = (place.chunk, ring.chunks().len() as u32);
            if !tables.take(&service, chunks) {
                continue;
            }
            let mut pool = Pool {
                id: service.id,
                base: service.reals_base,
                len: service.reals_len,
                hash: service.hash,
                old_hash: service.old_hash,
                persistence: service
                    .persistence
                    .checked_sub(1)
                    .map(|prefix_len| Persistence { timeout: Duration::ZERO, prefix_len }),
                connection_ids: service.connection_ids,
                server_ids: ServerIds::default(),
                made_of: None,
                chunk: place.chunk,
                ring: Arc::new(ring),
                used: false,
                takers: service.takes_turns,
                turns: None,
                leaving: Vec::new(),
            };
            if !matches!(service.takes_turns, Service::NO_TURNS | Service::REMEMBERED) {
                pool.turns = tables.read_turns(service.id, source);
            }
            for index in pool.range() {
                let real = tables.reals[index as usize];
                tables.translated.replace(&key, index, &Real::default(), &real);
            }
            tables.pools.insert(key, pool);
        }
        tables.translated.doubt(tables.replies.keys());
        tables.addresses = tables.all_addresses();
        tables.know_server_ids(source.server_ids());
        tables
    }

    /// What a predecessor's service has of the maps: all of it, or nothing where some of it is another's.
    fn take(&mut self, service: &Service, chunks: (u32, u32)) -> bool {
        let wanted = [
            (&mut self.ids, service.id.into(), 1),
            (&mut self.ranges, service.reals_base, service.reals_len),
            (&mut self.chunks, chunks.0, chunks.1),
        ];
        let mut taken = Vec::new();
        for (space, start, len) in wanted {
            if !space.take(start, len) {
                taken.into_iter().for_each(|(space, start, len): (&mut Space, _, _)| space.give(start, len));
                return false;
            }
            taken.push((space, start, len));
        }
        true
    }

    fn read_turns(&mut self, id: u16, source: &impl Source) -> Option<PoolTurns> {
        let place = source.turns(id);
        let end = place.chunk.checked_add(chunks(place.length)).filter(|end| *end <= source.room().chunks)?;
        let taken = self.chunks.take(place.chunk, chunks(place.length));
        let sequence = (place.chunk..end).flat_map(|chunk| source.chunk(chunk)).take(place.length as usize);
        let sequence = sequence.collect();
        taken.then(|| PoolTurns { chunk: place.chunk, sequence, ..PoolTurns::default() })
    }
}

impl Endpoint {
    /// None of an empty slot, and of one that no such endpoint has.
    fn of(service: &Service, source: &impl Source) -> Option<Self> {
        let ServiceKey { port, protocol, .. } = service.key;
        if protocol == 0 || u32::from(service.id) >= maps::SERVICE_IDS {
            return None;
        }
        let address = source.address(service.id).into();
        let endpoint = Self { address, port: u16::from_be(port), protocol };
        (endpoint.packed() == service.key).then_some(endpoint)
    }
}
