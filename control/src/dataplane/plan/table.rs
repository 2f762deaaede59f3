//! Where the service table has each service.

use std::collections::HashSet;

use lvs_ebpf_common::{Address, AddressFilter, Service, ServiceKey, TableRef, maps};

use super::{Draft, Endpoint, PlanError, Pool, Steps, Tables, Write};

/// A filled half of the service table, and the seed by which services are found in it.
pub(super) struct Placed {
    seed: u16,
    slots: Vec<Service>,
}

impl Tables {
    pub(super) fn live_slot(&self, key: &Endpoint, id: u16) -> Option<usize> {
        let key = key.packed();
        let live = half(self.table.half).start;
        let mut slots = key.homes(self.table.seed).into_iter().map(|slot| live + slot as usize);
        slots.find(|slot| (self.slots[*slot].key, self.slots[*slot].id) == (key, id))
    }

    pub(super) fn place(&self, drafts: &[Draft], gone: &[Endpoint]) -> Result<Placed, PlanError> {
        let others: HashSet<_> = drafts.iter().map(|draft| &draft.key).chain(gone).collect();
        let stay = self.pools.iter().filter(|(key, _)| !others.contains(key));
        let all = stay.chain(drafts.iter().map(|draft| (&draft.key, &draft.pool)));
        let (keys, pools): (Vec<ServiceKey>, Vec<&Pool>) =
            all.map(|(key, pool)| (key.packed(), pool)).unzip();
        let (seed, places) = place(&keys).ok_or(PlanError::TooManyServices { services: keys.len() })?;
        let mut slots = vec![Service::default(); maps::SERVICE_SLOTS as usize];
        for ((key, pool), slot) in keys.iter().zip(pools).zip(places) {
            slots[slot as usize] = pool.service(*key);
        }
        Ok(Placed { seed, slots })
    }

    /// Flips to the half nobody reads, where all services have been placed anew, and to whether answers and which addresses are
    /// looked at.
    pub(super) fn publish_table(&mut self, placed: Option<Placed>, steps: &mut Steps) {
        let translates = !self.replies.is_empty();
        // Answers by address translation go to any client.
        let addresses = if translates { AddressFilter::ALL } else { self.addresses };
        let mut table = TableRef { translates, addresses, ..self.table };
        if let Some(Placed { seed, slots }) = placed {
            (table.seed, table.half) = (seed, 1 - self.table.half);
            table.has_all_ports =
                slots.iter().any(|service| service.key.protocol != 0 && service.key.port == 0);
            for (slot, service) in half(table.half).zip(slots) {
                if self.slots[slot] != service {
                    self.slots[slot] = service;
                    steps.prepare.push(Write::Service { slot: slot as u32, service });
                }
            }
        }
        if table == self.table {
            return;
        }
        // Rings of services that stay were flipped in the half that is live until this store. Where answers will be looked
        // at, they are before the first packet is translated.
        let at = if table.translates { 0 } else { steps.publish.len() };
        steps.publish.insert(at, Write::Table(table));
        self.table = table;
    }

    pub(super) fn all_addresses(&self) -> AddressFilter {
        let ours = self.pools.keys().map(|key| key.address).chain(self.vips.keys().copied());
        ours.filter_map(|address| Address::from(address).to_v4())
            .fold(AddressFilter::default(), AddressFilter::with)
    }
}

impl Pool {
    fn service(&self, key: ServiceKey) -> Service {
        Service {
            key,
            ring: self.ring_ref().pack(),
            reals_base: self.base,
            reals_len: self.len,
            hash: self.hash,
            old_hash: self.old_hash,
            persistence: self.persistence.map_or(0, |it| it.prefix_len.saturating_add(1)),
            connection_ids: self.connection_ids,
            id: self.id,
            takes_turns: self.takers,
        }
    }
}

/// A seed with which each key has a slot of its own among its two, and those slots.
pub fn place(keys: &[ServiceKey]) -> Option<(u16, Vec<u32>)> {
    const SEEDS: u16 = 100;
    (0..SEEDS).find_map(|seed| Some((seed, place_by(keys, seed)?)))
}

/// Cuckoo hashing (Pagh and Rodler, 2001): who finds both slots taken drives one out to its other slot. First come
/// those that find their first slot free, since packets look there first.
fn place_by(keys: &[ServiceKey], seed: u16) -> Option<Vec<u32>> {
    const MOVES: usize = 1000;
    let homes: Vec<_> = keys.iter().map(|key| key.homes(seed)).collect();
    let mut owners = vec![None; maps::SERVICE_SLOTS as usize];
    let mut places: Vec<_> = homes.iter().map(|[first, _]| *first).collect();
    let mut left = Vec::new();
    for (key, [first, _]) in homes.iter().enumerate() {
        match &mut owners[*first as usize] {
            Some(_) => left.push(key),
            free => *free = Some(key),
        }
    }
    for key in left {
        let mut homeless = Some(key);
        for _ in 0..MOVES {
            let Some(key) = homeless else { break };
            let [first, second] = homes[key];
            places[key] = if places[key] == first { second } else { first };
            homeless = owners[places[key] as usize].replace(key);
        }
        if homeless.is_some() {
            return None;
        }
    }
    Some(places)
}

pub(super) fn half(half: u32) -> std::ops::Range<usize> {
    let start = half as usize * maps::SERVICE_SLOTS as usize;
    start..start + maps::SERVICE_SLOTS as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: u32) -> Vec<ServiceKey> {
        // One port of many addresses, as a hosting site has them.
        let key = |number: u32| ServiceKey {
            address: (0x0a00_0000 + number).to_be(),
            port: 443_u16.to_be(),
            protocol: 6,
            family: ServiceKey::V4,
        };
        (0..count).map(key).collect()
    }

    #[test]
    fn ten_thousand_services_have_a_slot_each_mostly_their_first() {
        let keys = keys(10_000);
        let (seed, places) = place(&keys).unwrap();
        let taken: HashSet<_> = places.iter().collect();
        assert_eq!(taken.len(), keys.len());
        assert!(keys.iter().zip(&places).all(|(key, slot)| key.homes(seed).contains(slot)));
        let first = keys.iter().zip(&places).filter(|(key, slot)| key.homes(seed)[0] == **slot).count();
        assert!(first > 8000, "{first}");
    }

    #[test]
    fn a_table_that_is_too_full_is_told() {
        assert_eq!(place(&keys(maps::SERVICE_SLOTS + 1)), None);
    }
}
