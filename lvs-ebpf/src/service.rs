//! Which virtual server a packet is for.

use lvs_ebpf_common::{Service, ServiceKey, TableRef, maps::SERVICE_SLOTS};

use crate::{
    ipv6::Address,
    maps::{ADDRESSES, SERVICES, TABLE},
};

/// The one with that very port stands before the one with all ports.
#[inline(always)]
pub fn find(address: u32, port: u16, protocol: u8) -> Option<&'static Service> {
    search(ServiceKey { address, port, protocol, family: ServiceKey::V4 }, |_| true)
}

/// The key has the address folded, so several services may have the same.
#[inline(always)]
pub fn find6(address: Address, port: u16, protocol: u8) -> Option<&'static Service> {
    let key = ServiceKey { address: address.fold(), port, protocol, family: ServiceKey::V6 };
    search(key, |service| ADDRESSES.get(service.id.into()).is_some_and(|whole| whole.is(address)))
}

#[inline(always)]
fn search(key: ServiceKey, is_it: impl Fn(&Service) -> bool) -> Option<&'static Service> {
    let table = table()?;
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

/// Some service has all ports of its address.
#[inline(always)]
pub fn any_has_all_ports() -> bool {
    table().is_some_and(|table| table.has_all_ports)
}

/// Some real server is reached by address translation.
#[inline(always)]
pub fn any_translates() -> bool {
    table().is_some_and(|table| table.translates)
}

#[inline(always)]
fn table() -> Option<TableRef> {
    let table = TABLE.get_ptr(0)?;
    // SAFETY: an element of the map; lvsd flips it with one aligned store, so one load sees half and seed agree.
    Some(TableRef::unpack(unsafe { table.read_volatile() }))
}

/// A key as one comparison.
#[inline(always)]
fn word(key: ServiceKey) -> u64 {
    zerocopy::transmute!(key)
}
