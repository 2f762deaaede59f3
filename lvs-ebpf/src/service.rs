//! Which virtual server a packet is for.

use lvs_ebpf_common::{Address, Service, ServiceKey, TableRef, maps::SERVICE_SLOTS};

use crate::maps::{ADDRESSES, SERVICES, TABLE};

/// The one with that very port stands before the one with all ports.
#[inline(always)]
pub fn find(table: Table, address: u32, port: u16, protocol: u8) -> Option<&'static Service> {
    search(table, ServiceKey { address, port, protocol, family: ServiceKey::V4 }, |_| true)
}

/// The key has the address folded, so several services may have the same.
#[inline(always)]
pub fn find6(table: Table, address: Address, port: u16, protocol: u8) -> Option<&'static Service> {
    let key = ServiceKey { address: address.fold(), port, protocol, family: ServiceKey::V6 };
    search(table, key, |service| ADDRESSES.get(service.id.into()).is_some_and(|whole| whole.is(address)))
}

#[inline(always)]
fn search(table: Table, key: ServiceKey, is_it: impl Fn(&Service) -> bool) -> Option<&'static Service> {
    let table = table.get();
    match look_up(table, key, &is_it) {
        None if table.has_all_ports => look_up(table, ServiceKey { port: 0, ..key }, &is_it),
        found => found,
    }
}

#[inline(always)]
fn look_up(table: TableRef, key: ServiceKey, is_it: impl Fn(&Service) -> bool) -> Option<&'static Service> {
    for slot in key.homes(table.seed) {
        // The live half is not written to, its rings' words apart.
        let service = SERVICES.get(table.half * SERVICE_SLOTS + slot)?;
        if word(service.key) == word(key) && is_it(service) {
            return Some(service);
        }
    }
    None
}

/// Which table is live, and what is to be known of it. Packed: else the compiler takes it apart before anybody asks.
#[derive(Clone, Copy)]
pub struct Table(u64);

impl Table {
    #[inline(always)]
    pub fn live() -> Self {
        // SAFETY: an element of the map; lvsd flips it with one aligned store, so one load sees half and seed agree.
        Self(TABLE.get_ptr(0).map_or(0, |table| unsafe { table.read_volatile() }))
    }

    #[inline(always)]
    pub fn get(self) -> TableRef {
        TableRef::unpack(self.0)
    }
}

/// A key as one comparison.
#[inline(always)]
fn word(key: ServiceKey) -> u64 {
    zerocopy::transmute!(key)
}
