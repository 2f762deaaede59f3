//! Where a packet of a QUIC connection goes that says by its connection ID which real server it belongs to, whatever address
//! its client has by now.
//!
//! All that is looked at holds for every version of QUIC (RFC 8999). So a client's first packets, whose connection ID is
//! the client's own invention, are told from others by that ID alone, as the draft has it: one that happens to be like a real server's
//! leads there, which serves it as well as any.
//!
//! | the connection ID | the packet goes |
//! |---|---|
//! | names a real server that is alive or drains | there, and the flow table follows |
//! | names a dead one, or nobody | as all others, by address and port |

use lvs_ebpf_common::{ById, ConnectionIds, ServerId, Service, quic::is_long};

use crate::{
    flow_table,
    ip::Ip,
    maps::{BY_ID, SERVER_IDS},
    parse::UDP_HEADER,
};

/// Nobody.
pub const NONE: u16 = u16::MAX;

/// Whom a whole UDP packet, or the first piece of one, names: an index into the service's real servers, or [`NONE`].
#[inline(always)]
pub fn named(service: &Service, ip: &impl Ip) -> u16 {
    if service.connection_ids == 0 {
        return NONE;
    }
    read(service, ip).unwrap_or(NONE)
}

#[inline(always)]
fn read(service: &Service, ip: &impl Ip) -> Option<u16> {
    // No packet is shorter that a QUIC server could not take for noise: it has as many octets of integrity check alone (RFC 9001 5.3).
    let start: [u64; 2] = ip.payload().read(UDP_HEADER)?;
    let length: u16 = ip.payload().read(4)?;
    // Of a fragment the length is that of the whole.
    let len = usize::from(u16::from_be(length)).min(ip.payload_len()).checked_sub(UDP_HEADER)?;
    if len < size_of_val(&start) {
        return None;
    }
    Some(owner(service, start[0], start[1], len))
}

/// A function of its own: a rare one.
#[inline(never)]
fn owner(service: &Service, head: u64, tail: u64, len: usize) -> u16 {
    let start = [head, tail];
    let id = ConnectionIds::unpack(service.connection_ids).and_then(|ids| ids.server_id(start, len));
    let known = id.and_then(|octets| {
        let key = ServerId { octets, service: service.id.into() };
        // SAFETY: any integer is a value, and the copy does not outlive the element's memory.
        unsafe { SERVER_IDS.get(key) }.copied()
    });
    match known {
        Some(index) if flow_table::keeps_flows(service, index) => {
            count(ById::Led);
            return index as u16;
        }
        Some(_) => count(ById::Dead),
        None if !is_long(start) => count(ById::Unknown),
        None => {}
    }
    NONE
}

#[inline(always)]
fn count(what: ById) {
    if let Some(counter) = BY_ID.get_ptr_mut(what as u32) {
        // SAFETY: an element of this CPU's own counters, which no other program writes meanwhile.
        unsafe { *counter += 1 };
    }
}
