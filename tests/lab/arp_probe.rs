//! Asks who has an address, by ARP or by neighbour solicitation, again and again. A [`Capture`](crate::Capture) on the same host hears who answers.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::Ordering,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use etherparse::{ArpEthIpv4Packet, ArpOperation, PacketBuilder};
use nix::libc;

use crate::{Mac, Node, background::Background, capture::packet_socket};

/// Asks until it is dropped. The questions carry the asking host's address, so use a host whose neighbour
/// table nothing depends on: the answers refresh it.
pub struct ArpProbe {
    _thread: Background,
}

impl ArpProbe {
    pub fn start(node: &Node, address: impl Into<IpAddr>, every: Duration) -> Result<Self> {
        let socket = node.in_ns(|| packet_socket("eth0", 0))?;
        let question = match address.into() {
            IpAddr::V4(address) => who_has(node, address)?,
            IpAddr::V6(address) => solicitation(node, address)?,
        };
        let thread = Background::start("the ARP probe", move |stop| {
            while !stop.load(Ordering::Relaxed) {
                match (&socket).write_all(&question) {
                    // The switch had no room for it. There are more.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                    sent => sent.context("asking")?,
                }
                thread::sleep(every);
            }
            Ok(())
        });
        Ok(Self { _thread: thread })
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

/// To the address's group, as RFC 4291 2.7.1 has it.
fn solicitation(node: &Node, address: Ipv6Addr) -> Result<Vec<u8>> {
    let [.., a, b, c] = address.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let builder = PacketBuilder::ethernet2(node.mac().0, [0x33, 0x33, 0xff, a, b, c])
        .ipv6(node.link_local().octets(), group.octets(), 255)
        .icmpv6_raw(135, 0, [0; 4]);
    let body = [&address.octets()[..], &[1, 1], &node.mac().0].concat();
    let mut frame = Vec::with_capacity(builder.size(body.len()));
    builder.write(&mut frame, &body).context("a neighbour solicitation")?;
    Ok(frame)
}
