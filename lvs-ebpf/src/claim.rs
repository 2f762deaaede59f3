//! Does somebody else say that a virtual address of ours is his? Then `lvsd` is told.

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::{Claim, Vip};
use zerocopy::transmute;

use crate::{
    event,
    maps::{CLAIMED, CLAIMS},
    parse::Mac,
    vip::lease,
};

/// A frame says that `address`, which is `vip`, is at `mac`. Only while we hold the lease does that contradict us.
#[inline(always)]
pub fn heed(ctx: &XdpContext, address: [u8; 16], vip: &Vip, mac: Mac) {
    // Of two masters with one virtual MAC only their adverts tell.
    let is_ours = mac.is(vip.mac.into()) || mac.is(vip.answers.into());
    if is_ours || vip.ifindex != ctx.ingress_ifindex() as u32 {
        return;
    }
    let Some((until, now)) = lease(vip) else { return };
    // Of each instance one claim is told in a while: others that are made meanwhile say the same.
    if until <= now || !event::is_due(CLAIMED.get_ptr_mut(vip.lease), now) {
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
