//! Which virtual server a packet is for.

use lvs_ebpf_common::{Service, ServiceKey, TableRef, maps::SERVICE_SLOTS};

use crate::maps::{SERVICES, TABLE};

/// The one with that very port stands before the one with all ports.
#[inline(always)]
pub fn find(address: u32, port: u16, protocol: u8) -> Option<&'static Service> {
    let key = ServiceKey { address, port, protocol, _pad: 0 };
    let table = table()?;
    match look_up(table, key) {
        None if table.has_all_ports => look_up(table, ServiceKey { port: 0, ..key }),
        found => found,
    }
}

#[inline(always)]
fn look_up(table: TableRef, key: ServiceKey) -> Option<&'static Service> {
    for slot in key.homes(table.seed) {
        // The live half is not written to, its rings' words apart.
        let service = SERVICES.get(table.half * SERVICE_SLOTS + slot)?;
        if word(service.key) == word(key) {
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
