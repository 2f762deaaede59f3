//! Whom do hosts believe to have the VIP?

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use anyhow::Result;

use crate::{Mac, Node, Stamp, VIP, wait_for};

/// Whom a host believes to have the VIP.
pub fn believes(node: &Node) -> Result<Option<String>> {
    let table = node.run(&format!("ip neigh show {} dev eth0", VIP.ip()))?;
    let mut words = table.split_whitespace().skip_while(|word| *word != "lladdr");
    Ok(words.nth(1).map(str::to_owned))
}

/// A packet to the VIP makes its sender ask for it.
pub fn ask(node: &Node) -> Result<()> {
    let send = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"?", VIP);
    node.in_ns(|| Ok(send().map(drop)?))
}

/// How long it took until all believe `mac` to have the VIP.
pub fn wait_until_believed(nodes: &[&Node], mac: Mac, limit: Duration) -> Result<Duration> {
    let start = Stamp::now();
    for node in nodes {
        wait_for(&format!("{} to believe {mac}", node.name()), limit, || {
            Ok((believes(node)? == Some(mac.to_string())).then_some(()))
        })?;
    }
    Ok(start.elapsed())
}
