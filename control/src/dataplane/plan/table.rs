//! Where the service table has each service.

use std::collections::HashSet;

use lvs_ebpf_common::{Service, ServiceKey, TableRef, maps};

use super::{Draft, PlanError, Pool, Steps, Tables, Write};

/// A filled half of the service table, and the seed by which services are found in it.
pub(super) struct Placed {
    seed: u32,
    slots: Vec<Service>,
}

impl Tables {
    pub(super) fn live_slot(&self, key: &ServiceKey) -> Option<usize> {
        let live = half(self.table.half);
        let home = live.start + key.home(self.table.seed) as usize;
        (0..maps::SERVICE_PROBES as usize)
            .map(|probe| live.start + (home - live.start + probe) % maps::SERVICE_SLOTS as usize)
            .find(|slot| self.slots[*slot].key == *key)
    }

    /// A seed with which every service lands in its home slot or the next ones, and that table.
    pub(super) fn place(&self, drafts: &[Draft], gone: &[ServiceKey]) -> Result<Placed, PlanError> {
        const SEEDS: u32 = 1000;
        let others: HashSet<_> = drafts.iter().map(|draft| &draft.key).chain(gone).collect();
        let stay = self.pools.iter().filter(|(key, _)| !others.contains(key));
        let services: Vec<(&ServiceKey, &Pool)> =
            stay.chain(drafts.iter().map(|draft| (&draft.key, &draft.pool))).collect();
        'seeds: for seed in 0..SEEDS {
            let mut slots = vec![Service::default(); maps::SERVICE_SLOTS as usize];
            for (key, pool) in &services {
                let home = key.home(seed);
                let free = (home..home + maps::SERVICE_PROBES)
                    .map(|slot| (slot % maps::SERVICE_SLOTS) as usize)
                    .find(|slot| slots[*slot].key.protocol == 0);
                let Some(slot) = free else { continue 'seeds };
                slots[slot] = pool.service(key);
            }
            return Ok(Placed { seed, slots });
        }
        Err(PlanError::TooManyServices { services: services.len() })
    }

    /// Flips to the half nobody reads, where all services have been placed anew, and to whether answers are looked at.
    pub(super) fn publish_table(&mut self, placed: Option<Placed>, steps: &mut Steps) {
        let mut table = TableRef { translates: !self.replies.is_empty(), ..self.table };
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
}

impl Pool {
    fn service(&self, key: &ServiceKey) -> Service {
        Service {
            key: *key,
            ring: self.ring_ref().pack(),
            reals_base: self.base,
            reals_len: self.len,
            hash: self.hash,
            persistence: self.persistence.map_or(0, |it| u16::from(it.prefix_len) + 1),
            id: self.id,
            takes_turns: self.takers,
        }
    }
}

pub(super) fn half(half: u32) -> std::ops::Range<usize> {
    let start = half as usize * maps::SERVICE_SLOTS as usize;
    start..start + maps::SERVICE_SLOTS as usize
}
