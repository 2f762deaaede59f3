//! Entry of the XDP program: runs the pipeline, counts what became of the packet, tells the kernel.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod bpf {
    use aya_ebpf::{Global, bindings::xdp_action, helpers::bpf_redirect, macros::xdp, programs::XdpContext};
    use lvs_ebpf::{maps::OUTCOMES, pipeline};
    use lvs_ebpf_common::Outcome;

    /// `lvs_ebpf_common::maps::REDIRECT_BACK`; a constant for the verifier, so the other way costs nothing.
    #[unsafe(no_mangle)]
    static REDIRECT_BACK: Global<u32> = Global::new(0);

    #[xdp]
    pub fn director(ctx: XdpContext) -> u32 {
        let (Ok(outcome) | Err(outcome)) = pipeline::run(&ctx);
        if let Some(counter) = OUTCOMES.get_ptr_mut(outcome as u32) {
            // SAFETY: an element of this CPU's own counters, which no other program writes meanwhile.
            unsafe { *counter += 1 };
        }
        action(&ctx, outcome)
    }

    /// Without `_`, so that a new outcome does not compile until someone has decided its fate.
    #[inline(always)]
    fn action(ctx: &XdpContext, outcome: Outcome) -> u32 {
        match outcome {
            Outcome::Forwarded
            | Outcome::ArpAnswered
            | Outcome::SolicitationAnswered
            | Outcome::EchoAnswered
            | Outcome::FragmentationNeeded => send_back(ctx),
            Outcome::Redirected => xdp_action::XDP_REDIRECT,
            Outcome::NotOurs | Outcome::OtherHost | Outcome::TruncatedHeader | Outcome::BadIpHeader => {
                xdp_action::XDP_PASS
            }
            Outcome::ArpWithoutLease
            | Outcome::SolicitedWithoutLease
            | Outcome::EchoWithoutLease
            | Outcome::TruncatedTcp
            | Outcome::BadTcpOffset
            | Outcome::TruncatedUdp
            | Outcome::BadUdpLength
            | Outcome::ExtensionHeaders
            | Outcome::Fragment
            | Outcome::NoReal
            | Outcome::NoNeighbour
            | Outcome::TunnelTooBig
            | Outcome::NoHeadroom
            | Outcome::BadTable => xdp_action::XDP_DROP,
        }
    }

    /// Out of the interface it came in on.
    #[inline(always)]
    fn send_back(ctx: &XdpContext) -> u32 {
        if REDIRECT_BACK.load() == 0 {
            return xdp_action::XDP_TX;
        }
        // SAFETY: a helper on plain integers. With flags 0 it cannot fail.
        unsafe { bpf_redirect(ctx.ingress_ifindex() as u32, 0) as u32 }
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
