//! Which rare events the operator reads about in the log, and how often.

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::XdpContext};
use aya_log_ebpf::warn;
use lvs_ebpf_common::Real;

use crate::maps::LOGGED;

/// Elements of `LOGGED`, one per kind.
pub const KINDS: u32 = 2;
const LEASE_LAPSED: u32 = 0;
const NO_NEIGHBOUR: u32 = 1;

/// Of each kind, userspace gets one event in this time: enough to be seen, whatever the flood.
const QUIET_NS: u64 = 1_000_000_000;

/// A query for a virtual address was refused, because nobody has renewed its lease since `until`.
#[inline(never)]
pub fn lease_lapsed(ctx: &XdpContext, address: u32, now: u64, until: u64) {
    if is_due(LOGGED.get_ptr_mut(LEASE_LAPSED), now) {
        let ago = now.wrapping_sub(until) / 1_000_000;
        warn!(
            ctx,
            "query for a virtual address under a lapsed lease address={:i} lapsed_ms={}",
            u32::from_be(address),
            ago
        );
    }
}

/// As [`lease_lapsed`].
#[inline(never)]
pub fn lease_lapsed_v6(ctx: &XdpContext, address: &[u8; 16], now: u64, until: u64) {
    if is_due(LOGGED.get_ptr_mut(LEASE_LAPSED), now) {
        let ago = now.wrapping_sub(until) / 1_000_000;
        warn!(
            ctx,
            "query for a virtual address under a lapsed lease address={:i} lapsed_ms={}", *address, ago
        );
    }
}

/// A real server was to get a packet, but its MAC is not known.
#[inline(never)]
pub fn no_neighbour(ctx: &XdpContext, address: u32) {
    // SAFETY: a helper without arguments.
    if is_due(LOGGED.get_ptr_mut(NO_NEIGHBOUR), unsafe { bpf_ktime_get_ns() }) {
        warn!(ctx, "real server has no resolved neighbour real={:i}", u32::from_be(address));
    }
}

/// As [`no_neighbour`].
#[inline(never)]
pub fn no_neighbour_v6(ctx: &XdpContext, real: &Real) {
    // SAFETY: as above.
    if is_due(LOGGED.get_ptr_mut(NO_NEIGHBOUR), unsafe { bpf_ktime_get_ns() }) {
        warn!(ctx, "real server has no resolved neighbour real={:i}", real.address.octets());
    }
}

/// `last`: the element of a map that keeps when the last one was. Two CPUs may both find it due: then there are two.
#[inline(always)]
pub fn is_due(last: Option<*mut u64>, now: u64) -> bool {
    let Some(last) = last else { return false };
    // SAFETY: an element of the map, aligned; other CPUs may store too, a word at a time.
    unsafe {
        let last_at = last.read_volatile();
        if last_at != 0 && now.wrapping_sub(last_at) < QUIET_NS {
            return false;
        }
        last.write_volatile(now);
    }
    true
}
