//! Which real server of a service gets a flow: one slot of the service's ring, by the flow's hash.

use lvs_ebpf_common::{
    Outcome, Real, RingRef, Service,
    flow::{self, Flow},
    maps::{REALS_PER_SERVICE, RING_CHUNK},
};

use crate::{
    maps::{REALS, RINGS},
    parse::{Ipv4, Ports},
};

/// The top bit of a ring slot says that the slot has moved, not whereto.
const INDEX: u16 = (REALS_PER_SERVICE - 1) as u16;

/// The real server and its place in `REALS`.
#[inline(always)]
pub fn pick(service: &Service, ip: &Ipv4, ports: Ports) -> Result<(u32, &'static Real), Outcome> {
    // SAFETY: a reference; lvsd flips the word with one aligned store, so one load sees place and length agree.
    let ring = RingRef::unpack(unsafe { (&raw const service.ring).read_volatile() });
    if ring.length == 0 {
        return Err(Outcome::NoReal);
    }
    let slot = flow::slot(hash(service, ip, ports), ring.length);
    let chunk = RINGS.get(ring.chunk + slot / RING_CHUNK as u32).ok_or(Outcome::BadTable)?;
    let entry = chunk.get(slot as usize % RING_CHUNK).ok_or(Outcome::BadTable)?;
    let index = u32::from(entry & INDEX);
    if index >= service.reals_len {
        return Err(Outcome::BadTable);
    }
    let index = service.reals_base.wrapping_add(index);
    Ok((index, REALS.get(index).ok_or(Outcome::BadTable)?))
}

#[inline(always)]
fn hash(service: &Service, ip: &Ipv4, ports: Ports) -> u32 {
    let flow = Flow {
        source: ip.header.source,
        destination: ip.header.destination,
        source_port: ports.source,
        destination_port: ports.destination,
    };
    match service.hash {
        Service::HASH_SOURCE => flow.by_source(false),
        Service::HASH_SOURCE_PORT => flow.by_source(true),
        Service::HASH_DESTINATION => flow.by_destination(),
        _ => flow.by_connection(),
    }
}
