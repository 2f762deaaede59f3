//! A configuration together with what this host makes of it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
};

use lvs_ebpf_common::{LeaseOwner, Vip};
use nix::libc;

use crate::{
    config::{Config, model::Family},
    dataplane::plan::NextHop,
    host::{self, HostError, LocalInstance},
    netlink::{Netlink, Route},
    vrrp::driver,
};

#[derive(Clone)]
pub struct Site {
    pub config: Config,
    pub instances: Vec<LocalInstance>,
    pub routes: HashMap<Ipv4Addr, Route>,
    /// Where the XDP program belongs: name by index.
    pub interfaces: BTreeMap<u32, String>,
    pub next_hops: HashMap<Ipv4Addr, NextHop>,
    /// Names of the interfaces that are up and have a carrier.
    pub running: HashSet<String>,
    /// One of the interfaces is a veth device.
    pub has_veth: bool,
}

impl Site {
    /// Looks at the host, changes nothing.
    pub async fn survey(config: Config, netlink: &Netlink) -> Result<Self, HostError> {
        let snapshot = netlink.snapshot().await?;
        let instances = host::locate(&config, &snapshot)?;
        let routes = host::routes(&config, netlink).await?;
        for (real, route) in routes.iter().filter(|(real, route)| **real != route.next_hop) {
            tracing::warn!(%real, gateway = %route.next_hop, "direct routing does not lead through a gateway");
        }
        let interfaces = host::xdp_interfaces(&config, &instances, &routes, &snapshot);
        let next_hops = host::next_hops(&config, &routes, &snapshot);
        let is_veth = |ifindex: &u32| snapshot.link_at(*ifindex).is_some_and(|link| link.veth);
        let has_veth = interfaces.keys().any(is_veth);
        let running = snapshot.running();
        Ok(Self { config, instances, routes, interfaces, next_hops, running, has_veth })
    }

    pub fn owners(&self) -> Vec<LeaseOwner> {
        let located = self.config.instances.iter().zip(&self.instances);
        located
            .map(|(config, local)| LeaseOwner {
                ifindex: local.link.ifindex,
                vrid: config.vrid.get().into(),
                family: match config.family {
                    Family::V4 => libc::AF_INET as u16,
                    Family::V6 => libc::AF_INET6 as u16,
                },
            })
            .collect()
    }

    /// `leases` is each instance's element of the lease map.
    pub fn vips(&self, leases: &[u32]) -> Vec<(IpAddr, Vip)> {
        host::vips(&self.instances, leases)
    }

    pub fn vrrp(&self, leases: &[u32]) -> Vec<driver::Instance> {
        let located = self.config.instances.iter().zip(&self.instances).zip(leases);
        located
            .enumerate()
            .map(|(index, ((config, local), lease))| driver::Instance {
                name: config.name.clone(),
                interface: config.interface.clone(),
                ifindex: local.link.ifindex,
                source: local.source,
                vrid: config.vrid,
                priority: config.priority,
                version: config.version,
                advert_interval: config.advert_interval,
                start_as_master: config.start_as_master,
                peers: config.peers.clone(),
                authentication: config.authentication,
                signing: config.signing.clone(),
                preempt: config.preempt,
                addresses: local
                    .addresses
                    .iter()
                    .map(|a| driver::Address {
                        address: a.config.address,
                        ifindex: a.ifindex,
                        mac: a.mac,
                        router: a.router,
                    })
                    .collect(),
                garp: config.garp,
                down_timer_adverts: config.down_timer_adverts,
                checksum_of_message: config.checksum_of_message,
                lease: *lease,
                group: self.config.groups.iter().position(|group| group.members.contains(&index)),
            })
            .collect()
    }
}
