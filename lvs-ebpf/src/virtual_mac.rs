//! Who takes up a frame for a virtual router's MAC (`use_vmac`)? All else here, and the kernel, knows the interface's own.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lvs_ebpf_common::virtual_mac_key;

use crate::{
    maps::{TAKEN_UP, TO_KERNEL, VIPS6},
    packet::Packet,
    parse::Mac,
    veth, vip,
};

/// What virtual routers' MACs begin with (RFC 9568 7.3).
const PREFIX: u32 = u32::from_ne_bytes([0, 0, 0x5e, 0]);

/// Makes of a frame for a virtual router of ours one for the interface's own MAC.
#[inline(always)]
pub fn take_up(ctx: &XdpContext) {
    note(false);
    let frame = Packet::new(ctx);
    if frame.read(0) == Some(PREFIX)
        && let Some([family, vrid]) = frame.read::<[u8; 2]>(4)
    {
        admit(ctx, family, vrid);
    }
}

/// True if it is ours. While another is master such a frame comes here only because a switch floods what it has not
/// learned, and two would forward it. A function of its own, so that other frames do not pay for it.
#[inline(never)]
fn admit(ctx: &XdpContext, family: u8, vrid: u8) -> bool {
    let key = virtual_mac_key(ctx.ingress_ifindex() as u32, family, vrid);
    // SAFETY: as in `vip::find`.
    let Some(vip) = (unsafe { VIPS6.get(key) }) else { return false };
    if !vip::was_held(vip) {
        return false;
    }
    note(true);
    Packet::of_context(ctx).write(0, Mac::from(vip.mac)).is_some()
}

/// Gives the kernel a frame, by a detour if it was taken up on a veth device, which has judged by the other MAC whom it
/// is for.
#[inline(always)]
pub fn pass() -> u32 {
    if !veth::is_any() || TAKEN_UP.get(0) != Some(&1) {
        return xdp_action::XDP_PASS;
    }
    let (Ok(action) | Err(action)) = TO_KERNEL.redirect(0, xdp_action::XDP_PASS.into());
    action
}

/// In a map, because the verifier would walk the whole program twice for a variable.
#[inline(always)]
fn note(is_taken_up: bool) {
    if veth::is_any()
        && let Some(note) = TAKEN_UP.get_ptr_mut(0)
    {
        // SAFETY: an element of this CPU's own, which no other program writes meanwhile.
        unsafe { *note = is_taken_up.into() };
    }
}
