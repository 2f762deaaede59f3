//! Is an address virtual, and may this node answer for it now?

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::XdpContext};
use lvs_ebpf_common::{Address, Outcome, Vip};

use crate::{
    event,
    maps::{LEASES, VIPS, VIPS6},
};

#[inline(always)]
pub fn find(address: u32) -> Option<&'static Vip> {
    // SAFETY: any integers make a Vip, and the map's memory stays. Should lvsd remove the address and add another in this
    // very moment, one query is judged by the other's lease. No copy, which the stack has no room for.
    unsafe { VIPS.get(address) }
}

#[inline(always)]
pub fn find_v6(address: Address) -> Option<&'static Vip> {
    // SAFETY: as in `find`.
    unsafe { VIPS6.get(address.octets()) }
}

/// Fails with `refusal` unless the lease of `vip`, found for `address`, lasts beyond this moment.
#[inline(always)]
pub fn check_lease(ctx: &XdpContext, address: u32, vip: &Vip, refusal: Outcome) -> Result<(), Outcome> {
    check(vip, refusal, |now, until| event::lease_lapsed(ctx, address, now, until))
}

/// As [`check_lease`].
#[inline(always)]
pub fn check_lease_v6(
    ctx: &XdpContext,
    address: Address,
    vip: &Vip,
    refusal: Outcome,
) -> Result<(), Outcome> {
    check(vip, refusal, |now, until| event::lease_lapsed_v6(ctx, &address.octets(), now, until))
}

/// Whether this node is master, or was until a moment ago and may still be sent packets.
#[inline(always)]
pub fn was_held(vip: &Vip) -> bool {
    /// Longer than anybody takes to take over, and than a switch takes to forget where it sent them.
    const AFTER: u64 = 60_000_000_000;
    let Some(lease) = LEASES.get_ptr(vip.lease) else { return false };
    // SAFETY: as in `lease`.
    let held = unsafe { (&raw const (*lease).held).read_volatile() };
    // SAFETY: a helper without arguments.
    held != 0 && unsafe { bpf_ktime_get_ns() } < held.saturating_add(AFTER)
}

/// Until when the lease of `vip` lasts, and the time.
#[inline(always)]
pub fn lease(vip: &Vip) -> Option<(u64, u64)> {
    let lease = LEASES.get_ptr(vip.lease)?;
    // SAFETY: an element of the map. `until` is written by lvsd at any time, with one aligned store.
    let until = unsafe { (&raw const (*lease).until).read_volatile() };
    // SAFETY: a helper without arguments.
    Some((until, unsafe { bpf_ktime_get_ns() }))
}

#[inline(always)]
fn check(vip: &Vip, refusal: Outcome, lapsed: impl FnOnce(u64, u64)) -> Result<(), Outcome> {
    let (until, now) = lease(vip).ok_or(Outcome::BadTable)?;
    if until > now {
        return Ok(());
    }
    // Resigned is as it should be. Lapsed means that lvsd died, froze or lost its heartbeat.
    if until != 0 {
        lapsed(now, until);
    }
    Err(refusal)
}
