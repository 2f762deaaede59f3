//! Which rare events the operator reads about in the log, and how often.

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::XdpContext};
use aya_log_ebpf::warn;

use crate::maps::LOGGED;

/// Elements of `LOGGED`, one per kind.
pub const KINDS: u32 = 2;
const LEASE_LAPSED: u32 = 0;
const NO_NEIGHBOUR: u32 = 1;

/// Of each kind, the log gets one event in this time: enough to be seen, whatever the flood.
const QUIET_NS: u64 = 1_000_000_000;

/// A query for a virtual address was refused, because nobody has renewed its lease since `until`.
#[inline(never)]
pub fn lease_lapsed(ctx: &XdpContext, address: u32, now: u64, until: u64) {
    if is_due(LEASE_LAPSED, now) {
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
    if is_due(LEASE_LAPSED, now) {
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
    if is_due(NO_NEIGHBOUR, unsafe { bpf_ktime_get_ns() }) {
        warn!(ctx, "real server has no resolved neighbour real={:i}", u32::from_be(address));
    }
}

/// Two CPUs may both find it due: then there are two lines.
#[inline(always)]
fn is_due(kind: u32, now: u64) -> bool {
    let Some(last) = LOGGED.get_ptr_mut(kind) else {
        return false;
    };
    // SAFETY: an element of the map, aligned; other CPUs may store too, a word at a time.
    unsafe {
        if now.wrapping_sub(last.read_volatile()) < QUIET_NS {
            return false;
        }
        last.write_volatile(now);
    }
    true
}
