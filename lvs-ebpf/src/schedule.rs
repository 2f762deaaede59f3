//! Which real server of a service gets a packet: the owner of a slot of the service's ring, chosen by the flow's hash,
//! unless the flow table has to be asked.

use lvs_ebpf_common::{
    Outcome, Real, RingRef, Service,
    flow::{self, Flow},
    flow_table::FlowKey,
    maps::{self, MOVED, RING_CHUNK},
};

use crate::{
    flow_table::{self, Packet},
    maps::{REALS, RINGS},
    quic,
};

const NOBODY: u32 = maps::NOBODY as u32;

/// The real server of one of the service's flows, and its place in `REALS`. `Err(ConnectionReset)` asks the caller for a
/// reset. `named`: whom the packet itself names by its place in the service, or [`quic::NONE`].
#[inline(always)]
pub fn pick(
    service: &Service,
    flow: Flow,
    packet: impl FnOnce() -> Packet,
    named: u16,
) -> Result<(u32, &'static Real), Outcome> {
    // SAFETY: a reference; lvsd flips the word with one aligned store, so one load sees place and length agree.
    let ring = RingRef::unpack(unsafe { (&raw const service.ring).read_volatile() });
    if ring.length == 0 {
        return Err(Outcome::NoReal);
    }
    let hash = flow.hash(service.hash);
    let slot = owner(ring.chunk, hash, ring.length).ok_or(Outcome::BadTable)?;
    let index: u32 = if slot & MOVED == 0 && service.takes_turns == Service::NO_TURNS {
        slot.into()
    } else {
        let key = FlowKey { source: flow.source, source_port: flow.source_port, service: service.id };
        let place = match named {
            quic::NONE => u64::from(slot) << 32,
            named => u64::from(named) << 32 | flow_table::NAMED,
        };
        let place = place | u64::from(hash);
        flow_table::owner(service, ring.pack(), place, key.pack(), packet())
    };
    if index >= service.reals_len {
        return Err(match index {
            NOBODY => Outcome::NoReal,
            flow_table::LOST => Outcome::DeadReal,
            flow_table::LOST_AND_RESET => Outcome::ConnectionReset,
            _ => Outcome::BadTable,
        });
    }
    let index = service.reals_base.wrapping_add(index);
    Ok((index, REALS.get(index).ok_or(Outcome::BadTable)?))
}

/// The slot of a hash on the ring of `length` slots that begins at `chunk`.
#[inline(always)]
pub fn owner(chunk: u32, hash: u32, length: u32) -> Option<u16> {
    let slot = flow::slot(hash, length);
    RINGS.get(chunk.wrapping_add(slot / RING_CHUNK as u32))?.get(slot as usize % RING_CHUNK).copied()
}
