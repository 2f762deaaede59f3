//! Entry of the XDP program: runs the pipeline, counts what became of the packet, tells the kernel.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod bpf {
    use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
    use lvs_ebpf::{maps::OUTCOMES, pipeline, veth, virtual_mac};
    use lvs_ebpf_common::Outcome;

    #[xdp]
    pub fn director(ctx: XdpContext) -> u32 {
        virtual_mac::take_up(&ctx);
        // The usual ones by themselves, so that their counters and actions are constants.
        match pipeline::run(&ctx) {
            Ok(Outcome::Forwarded) => conclude(&ctx, Outcome::Forwarded),
            Err(Outcome::NotOurs) => conclude(&ctx, Outcome::NotOurs),
            Ok(outcome) | Err(outcome) => conclude(&ctx, outcome),
        }
    }

    #[inline(always)]
    fn conclude(ctx: &XdpContext, outcome: Outcome) -> u32 {
        if let Some(counter) = OUTCOMES.get_ptr_mut(outcome as u32) {
            // SAFETY: an element of this CPU's own counters, which no other program writes meanwhile.
            unsafe { *counter += 1 };
        }
        match action(ctx, outcome) {
            xdp_action::XDP_PASS => virtual_mac::pass(),
            action => action,
        }
    }

    /// Without `_`, so that a new outcome does not compile until someone has decided its fate.
    #[inline(always)]
    fn action(ctx: &XdpContext, outcome: Outcome) -> u32 {
        match outcome {
            Outcome::Forwarded
            | Outcome::ArpAnswered
            | Outcome::SolicitationAnswered
            | Outcome::EchoAnswered
            | Outcome::NatReply
            | Outcome::ConnectionReset
            | Outcome::TimeExceeded
            | Outcome::FragmentationNeeded => veth::send_back(ctx),
            Outcome::Redirected | Outcome::NatReplyRedirected => xdp_action::XDP_REDIRECT,
            Outcome::Local
            | Outcome::NotOurs
            | Outcome::OtherHost
            | Outcome::TruncatedHeader
            | Outcome::BadIpHeader
            | Outcome::StrayFragment
            | Outcome::NotForwarding => xdp_action::XDP_PASS,
            Outcome::ArpWithoutLease
            | Outcome::SolicitedWithoutLease
            | Outcome::EchoWithoutLease
            | Outcome::EchoNotAccepted
            | Outcome::TruncatedTcp
            | Outcome::BadTcpOffset
            | Outcome::TruncatedUdp
            | Outcome::BadUdpLength
            | Outcome::ExtensionHeaders
            | Outcome::Fragment
            | Outcome::NoReal
            | Outcome::DeadReal
            | Outcome::NoNeighbour
            | Outcome::TooBig
            | Outcome::NoRoute
            | Outcome::UnknownNatFlow
            | Outcome::TtlEnded
            | Outcome::NoHeadroom
            | Outcome::BadTable => xdp_action::XDP_DROP,
        }
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

/// On the host there is nothing to run: the program lives in the kernel, embedded in `lvsd`.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
