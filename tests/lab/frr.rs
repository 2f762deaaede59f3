//! A host that runs FRR's vrrpd, which puts virtual addresses on a macvlan with the virtual MAC.

use std::{fs, net::IpAddr, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::{Node, PATIENCE, Process, need::FRR, wait_for};

/// Dropped, both programs are killed.
pub struct Frr {
    vrrpd: Process,
    _zebra: Process,
}

impl Frr {
    /// VRRPv3, by multicast.
    pub fn start(node: &Node, vrid: u8, priority: u8, interval: Duration, address: IpAddr) -> Result<Self> {
        let (family, length, word) = match address {
            IpAddr::V4(_) => (1, 24, "ip"),
            IpAddr::V6(_) => (2, 64, "ipv6"),
        };
        node.run("ip link add vrrp0 link eth0 type macvlan mode bridge")?;
        if address.is_ipv6() {
            // Adverts come from the macvlan's own address, which must not be made of the virtual MAC.
            node.run("ip link set vrrp0 addrgenmode random")?;
        }
        node.run(&format!("ip link set vrrp0 address 00:00:5e:00:{family:02x}:{vrid:02x}"))?;
        node.run(&format!("ip address add {address}/{length} dev vrrp0"))?;
        node.run("ip link set vrrp0 up")?;
        let config = format!(
            "interface eth0\n vrrp {vrid} version 3\n vrrp {vrid} priority {priority}\n \
             vrrp {vrid} advertisement-interval {}\n vrrp {vrid} {word} {address}\n",
            interval.as_millis(),
        );
        let config = node.write_file("vrrpd.conf", &config)?;
        let empty = node.write_file("zebra.conf", "")?;
        // Both give up root where they can.
        fs::set_permissions(node.dir(), fs::Permissions::from_mode(0o777))?;
        let socket = node.dir().join("zserv.api");
        let start = |program: &str, config: &Path| {
            let mut command = node.command(Path::new(FRR).join(program));
            command.args(["--log", "stdout", "--log-level", "debug", "--vty_port", "0"]);
            command.arg("--vty_socket").arg(node.dir());
            command.arg("--socket").arg(&socket).arg("--config_file").arg(config);
            command.arg("--pid_file").arg(node.dir().join(format!("{program}.pid")));
            node.spawn(program, command)
        };
        let zebra = start("zebra", &empty)?;
        wait_for("zebra", PATIENCE, || Ok(socket.exists().then_some(())))?;
        Ok(Self { vrrpd: start("vrrpd", &config)?, _zebra: zebra })
    }

    /// Leaves the pool properly, with a last advert of priority 0.
    pub fn stop(&mut self) -> Result<()> {
        self.vrrpd.signal(Signal::SIGTERM)?;
        self.vrrpd.wait(PATIENCE)?;
        Ok(())
    }
}
