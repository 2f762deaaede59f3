//! Which real server of a service has which ID in the connection IDs of QUIC.

use std::collections::HashMap;

use lvs_ebpf_common::{Address, Real, ServerId};

use super::{DesiredReal, Pool, Steps, Tables, Write};

/// Indexes into the service's range of `REALS`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ServerIds(HashMap<[u8; 8], u16>);

impl ServerIds {
    pub fn add(&mut self, real: &DesiredReal, index: usize) {
        if let Some(id) = real.server_id {
            self.0.insert(id, index as u16);
        }
    }

    /// What is left of a real server's connections goes on to find it, unless its ID is another's by now.
    pub fn keep(&mut self, before: &Self, leaving: &[u16]) {
        for (id, index) in before.0.iter().filter(|(_, index)| leaving.contains(index)) {
            self.0.entry(*id).or_insert(*index);
        }
    }

    /// The steps from `before`, of the service of that number. Who is named is there before its name, and until nobody can
    /// have just read it.
    pub fn replace(&self, before: &Self, service: u16, steps: &mut Steps) {
        for (id, index) in self.0.iter().filter(|(id, index)| before.0.get(*id) != Some(*index)) {
            steps.prepare.push(Write::ServerId { key: key(*id, service), index: (*index).into() });
        }
        for id in before.0.keys().filter(|id| !self.0.contains_key(*id)) {
            steps.retire.push(Write::ServerIdGone { key: key(*id, service) });
        }
    }

    /// Forgets those whose element of `reals`, the service's range, is free.
    pub fn settle(&mut self, reals: &[Real], service: u16, writes: &mut Vec<Write>) {
        self.0.retain(|id, index| {
            let stays = reals.get(usize::from(*index)).is_some_and(|real| real.address != Address::default());
            if !stays {
                writes.push(Write::ServerIdGone { key: key(*id, service) });
            }
            stays
        });
    }

    fn all(&self, service: u16) -> impl Iterator<Item = (ServerId, u32)> {
        self.0.iter().map(move |(id, index)| (key(*id, service), (*index).into()))
    }
}

fn key(octets: [u8; 8], service: u16) -> ServerId {
    ServerId { octets, service: service.into() }
}

impl Tables {
    /// Of maps as they are found.
    pub(super) fn know_server_ids(&mut self, found: HashMap<ServerId, u32>) {
        let mut pools: HashMap<u32, &mut Pool> =
            self.pools.values_mut().map(|pool| (pool.id.into(), pool)).collect();
        for (key, index) in found {
            match pools.get_mut(&key.service).filter(|pool| index < pool.len) {
                Some(pool) => {
                    pool.server_ids.0.insert(key.octets, index as u16);
                }
                None => {
                    self.stray_ids.insert(key, index);
                }
            }
        }
    }

    /// First of all: their services' numbers may be others' by the end of the plan.
    pub(super) fn drop_stray_ids(&mut self, steps: &mut Steps) {
        let gone = self.stray_ids.drain().map(|(key, _)| Write::ServerIdGone { key });
        steps.prepare.splice(0..0, gone);
    }

    /// What `SERVER_IDS` holds by this image.
    pub(super) fn server_ids(&self) -> HashMap<ServerId, u32> {
        let known = self.pools.values().flat_map(|pool| pool.server_ids.all(pool.id));
        known.chain(self.stray_ids.clone()).collect()
    }
}
