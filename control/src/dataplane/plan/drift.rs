//! Which elements of the maps are not as they were written?

use std::{collections::HashMap, net::IpAddr};

use lvs_ebpf_common::{Real, Reply, RingRef, Service, ServiceKey, TableRef, Vip, maps};

use super::{Source, Tables, Write, table};
use crate::dataplane::ring;

/// All that is in the maps, as it is found.
pub trait Seen: Source {
    fn table(&self) -> TableRef;
    fn service(&self, slot: u32) -> Service;
    fn real(&self, index: u32) -> Real;
    fn vips(&self) -> HashMap<IpAddr, Vip>;
    fn replies(&self) -> HashMap<ServiceKey, Reply>;
}

impl Tables {
    /// What brings the maps back to what this image says. What no packet looks at is not looked at here either.
    pub fn repairs(&self, seen: &impl Seen) -> Vec<Write> {
        let mut writes = Vec::new();
        let chunk = |writes: &mut Vec<Write>, chunk: u32, slots: maps::RingChunk| {
            if seen.chunk(chunk) != slots {
                writes.push(Write::Ring { chunk, slots });
            }
        };
        for (key, pool) in &self.pools {
            let address = key.address.into();
            if seen.address(pool.id) != address {
                writes.push(Write::Address { id: pool.id, address });
            }
            for index in pool.range() {
                match self.reals.get(index as usize) {
                    Some(real) if *real != seen.real(index) => {
                        writes.push(Write::Real { index, real: *real });
                    }
                    _ => {}
                }
            }
            for (place, slots) in (pool.chunk..).zip(pool.ring.chunks()) {
                chunk(&mut writes, place, slots);
            }
            if let Some(turns) = &pool.turns {
                for (place, slots) in (turns.chunk..).zip(turns.sequence.chunks(maps::RING_CHUNK)) {
                    chunk(&mut writes, place, ring::chunk(slots));
                }
                let sequence = RingRef { chunk: turns.chunk, length: turns.sequence.len() as u32 };
                if seen.turns(pool.id) != sequence {
                    writes.push(Write::Turns { id: pool.id, sequence });
                }
            }
        }
        for slot in table::half(self.table.half) {
            match self.slots.get(slot) {
                Some(service) if *service != seen.service(slot as u32) => {
                    writes.push(Write::Service { slot: slot as u32, service: *service });
                }
                _ => {}
            }
        }
        for (slot, interface) in (0..).zip(&self.interfaces) {
            if seen.interface(slot) != *interface {
                writes.push(Write::Interface { slot, interface: *interface });
            }
        }
        let found = seen.vips();
        let differs = |(address, vip): &(&IpAddr, &Vip)| found.get(*address) != Some(*vip);
        writes.extend(
            self.vips
                .iter()
                .filter(differs)
                .map(|(address, vip)| Write::Vip { address: *address, vip: *vip }),
        );
        let foreign = found.keys().filter(|address| !self.vips.contains_key(*address));
        writes.extend(foreign.map(|address| Write::VipGone { address: *address }));
        let found = seen.replies();
        let differs = |(key, reply): &(&ServiceKey, &Reply)| found.get(*key) != Some(*reply);
        writes.extend(
            self.replies.iter().filter(differs).map(|(key, reply)| Write::Reply { key: *key, reply: *reply }),
        );
        let foreign = found.keys().filter(|key| !self.replies.contains_key(*key));
        writes.extend(foreign.map(|key| Write::ReplyGone { key: *key }));
        let (wanted, found) = (self.server_ids(), seen.server_ids());
        let differs = |(key, index): &(&_, &u32)| found.get(*key) != Some(*index);
        writes.extend(
            wanted.iter().filter(differs).map(|(key, index)| Write::ServerId { key: *key, index: *index }),
        );
        let foreign = found.keys().filter(|key| !wanted.contains_key(*key));
        writes.extend(foreign.map(|key| Write::ServerIdGone { key: *key }));
        // Last, as with every change: what it leads to is right by then.
        if seen.table() != self.table {
            writes.push(Write::Table(self.table));
        }
        writes
    }
}
