//! Does somebody else say that a virtual address of ours is his? Then `lvsd` is told.

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::XdpContext};
use lvs_ebpf_common::{Claim, Vip};
use zerocopy::transmute;

use crate::{
    maps::{CLAIMED, CLAIMS, LEASES},
    parse::Mac,
};

/// Of each instance, one claim is told in this time: others that are made meanwhile say the same.
const QUIET_NS: u64 = 1_000_000_000;

/// A frame says that `address`, which is `vip`, is at `mac`. Only while we hold the lease does that contradict us.
#[inline(always)]
pub fn heed(ctx: &XdpContext, address: [u8; 16], vip: &Vip, mac: Mac) {
    if mac.is(Mac::from(vip.mac)) || vip.ifindex != ctx.ingress_ifindex() as u32 {
        return;
    }
    let Some(lease) = LEASES.get_ptr(vip.lease) else { return };
    // SAFETY: an element of the map. `until` is written by lvsd at any time, with one aligned store.
    let until = unsafe { (&raw const (*lease).until).read_volatile() };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if until <= now || !is_due(vip.lease, now) {
        return;
    }
    if let Some(mut event) = CLAIMS.reserve::<Claim>(0) {
        event.write(Claim {
            address,
            lease: vip.lease,
            ifindex: vip.ifindex,
            mac: transmute!(mac),
            _pad: [0; 2],
        });
        event.submit(0);
    }
}

/// Two CPUs may both find it due: then there are two events.
#[inline(always)]
fn is_due(lease: u32, now: u64) -> bool {
    let Some(last) = CLAIMED.get_ptr_mut(lease) else { return false };
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
