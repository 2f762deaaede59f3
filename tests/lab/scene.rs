//! The usual line-up: a client, a watcher, two directors and three real servers on one switch.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::Result;

use crate::{Lab, Node, PATIENCE, Process, get, wait_for};

/// The lab's network is 10.77.0.0/24.
pub const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 100), 80);

const fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, last)
}

pub struct Scene {
    pub client: Node,
    /// Listens and asks questions that must not change what the client knows.
    pub watcher: Node,
    pub lb1: Node,
    pub lb2: Node,
    pub reals: Vec<RealServer>,
    /// Last, so that it is removed when all processes in it have ended.
    pub lab: Lab,
}

/// A host that serves its own name over HTTP, at its own address and at the VIP.
pub struct RealServer {
    pub node: Node,
    process: Option<Process>,
}

impl Scene {
    pub fn new() -> Result<Self> {
        let mut lab = Lab::new()?;
        let client = lab.host("client", address(9))?;
        let watcher = lab.host("watcher", address(8))?;
        let lb1 = lab.host("lb1", address(1))?;
        let lb2 = lab.host("lb2", address(2))?;
        let mut reals = Vec::new();
        for number in 1..=3 {
            reals.push(RealServer::new(lab.host(&format!("rs{number}"), address(10 + number))?)?);
        }
        Ok(Self { client, watcher, lb1, lb2, reals, lab })
    }

    /// Asks the VIP once a few milliseconds until it answers.
    pub fn wait_for_service(&self, limit: Duration) -> Result<()> {
        self.client.in_ns(|| wait_for("an answer from the VIP", limit, || Ok(get(VIP, None).ok().map(drop))))
    }

    /// The same until each real server has answered: before, the director need not know where they all are.
    pub fn wait_for_all(&self, limit: Duration) -> Result<()> {
        self.client.in_ns(|| {
            let mut known = BTreeSet::new();
            wait_for("an answer of each real server", limit, || {
                known.extend(get(VIP, None).ok());
                Ok((known.len() == self.reals.len()).then_some(()))
            })
        })
    }
}

impl RealServer {
    pub fn new(node: Node) -> Result<Self> {
        // What direct routing asks of a real server: to own the VIP and not to tell anybody.
        node.sysctl("ipv4.conf.all.arp_ignore", "1")?;
        node.sysctl("ipv4.conf.all.arp_announce", "2")?;
        node.run(&format!("ip address add {}/32 dev lo", VIP.ip()))?;
        let mut real = Self { node, process: None };
        real.start()?;
        Ok(real)
    }

    pub fn name(&self) -> &str {
        self.node.name()
    }

    pub fn start(&mut self) -> Result<()> {
        self.process = Some(serve(&self.node)?);
        Ok(())
    }

    /// A TUN device at the end of its tunnel (ipip, gue or gre), where the kernel finds what was inside.
    pub fn end_tunnel(&self, method: &str) -> Result<Process> {
        let node = &self.node;
        node.run("ip tuntap add dev tunnel0 mode tun")?;
        node.run("ip link set tunnel0 up")?;
        // What comes out of the tunnel is from clients that are to be answered by another interface.
        for interfaces in ["all", "tunnel0"] {
            node.sysctl(&format!("ipv4.conf.{interfaces}.rp_filter"), "0")?;
        }
        let mut command = node.lab_program("lab-tunnel");
        command.args([method, &GUE_PORT.to_string(), "tunnel0"]);
        node.spawn("tunnel", command)
    }

    /// Kills the HTTP server; the host lives on and refuses connections.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }
}

/// Where GUE tunnels end.
pub const GUE_PORT: u16 = 6080;

/// An HTTP server on `node` that says the node's name at all its addresses. It listens already.
pub fn serve(node: &Node) -> Result<Process> {
    serve_at(node, VIP.port())
}

/// The same at another port.
pub fn serve_at(node: &Node, port: u16) -> Result<Process> {
    let mut command = node.lab_program("lab-http");
    command.args([node.name(), &format!("0.0.0.0:{port}")]);
    let process = node.spawn(&format!("http-{port}"), command)?;
    let own = SocketAddrV4::new(node.address(), port);
    node.in_ns(|| wait_for("the HTTP server", PATIENCE, || Ok(get(own, None).ok().map(drop))))?;
    Ok(process)
}
