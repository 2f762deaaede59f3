//! Who says that a virtual address of ours is his? From the XDP program's ring to the VRRP thread.

use std::net::Ipv6Addr;

use aya::maps::{MapData, RingBuf};
use lvs_ebpf_common::Claim;
use tokio::{io::unix::AsyncFd, sync::watch};
use tokio_util::sync::CancellationToken;
use zerocopy::FromBytes as _;

use crate::{pool::Vrrp, vrrp::driver::Word};

/// Until cancelled. `vrrp` is the thread of now.
pub async fn run(ring: RingBuf<MapData>, vrrp: watch::Receiver<Vrrp>, cancel: CancellationToken) {
    // SAFETY: the ring owns its descriptor and closes it when it is dropped, inside the AsyncFd.
    let mut ring = match unsafe { AsyncFd::register(ring) } {
        Ok(ring) => ring,
        Err(error) => return tracing::warn!(%error, "claims of virtual addresses are not noticed"),
    };
    loop {
        let mut ready = tokio::select! {
            () = cancel.cancelled() => return,
            ready = ring.readable_mut() => match ready {
                Ok(ready) => ready,
                Err(error) => return tracing::warn!(%error, "claims of virtual addresses are not noticed any more"),
            },
        };
        while let Some(event) = ready.get_inner_mut().next() {
            if let Ok(claim) = Claim::read_from_bytes(&event) {
                pass_on(&claim, &vrrp.borrow());
            }
        }
        ready.clear_ready();
    }
}

fn pass_on(claim: &Claim, vrrp: &Vrrp) {
    let Some(instance) = vrrp.instances.iter().position(|instance| instance.lease == claim.lease) else {
        return;
    };
    let address = Ipv6Addr::from(claim.address).to_canonical();
    // A thread that has too much to read: whoever claims the address will do it again.
    let _ = vrrp.handle.say(Word::Claimed { instance, address, mac: claim.mac });
}
