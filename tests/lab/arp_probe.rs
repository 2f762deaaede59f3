//! Asks who has an address, again and again. A [`Capture`](crate::Capture) on the same host hears who answers.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use etherparse::{ArpEthIpv4Packet, ArpOperation, PacketBuilder};

use crate::{
    Mac, Node,
    capture::{packet_socket, send_frame},
    realtime,
};

/// Asks until it is dropped. The questions carry the asking host's address, so use a host whose neighbour
/// table nothing depends on: the answers refresh it.
pub struct ArpProbe {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ArpProbe {
    pub fn start(node: &Node, address: Ipv4Addr, every: Duration) -> Result<Self> {
        let socket = node.in_ns(|| packet_socket("eth0", 0))?;
        let question = who_has(node, address)?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                realtime::enter();
                while !stop.load(Ordering::Relaxed) {
                    if let Err(error) = send_frame(&socket, &question) {
                        eprintln!("the ARP probe ended: {error:#}");
                        return;
                    }
                    thread::sleep(every);
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for ArpProbe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It told its error itself.
            let _ = thread.join();
        }
    }
}

fn who_has(node: &Node, address: Ipv4Addr) -> Result<Vec<u8>> {
    let question = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: node.mac().0,
        sender_ipv4: node.address().octets(),
        target_mac: [0; 6],
        target_ipv4: address.octets(),
    };
    let builder = PacketBuilder::ethernet2(node.mac().0, Mac::BROADCAST.0).arp(question.into());
    let mut frame = Vec::with_capacity(builder.size());
    builder.write(&mut frame).context("an ARP request")?;
    Ok(frame)
}
