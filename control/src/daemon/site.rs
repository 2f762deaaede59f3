//! A configuration together with what this host makes of it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use lvs_ebpf_common::LeaseOwner;
use nix::libc;

use crate::{
    config::{
        Config,
        model::{Family, Forwarding, VirtualServer, VrrpInstance},
    },
    dataplane::plan::NextHop,
    host::{self, HostError, LocalInstance, ways},
    netlink::{Netlink, Route},
    vrrp::driver,
};

#[derive(Clone)]
pub struct Site {
    pub config: Config,
    pub instances: Vec<LocalInstance>,
    pub routes: HashMap<IpAddr, Route>,
    /// Where the XDP program belongs: name by index.
    pub interfaces: BTreeMap<u32, String>,
    pub next_hops: HashMap<IpAddr, NextHop>,
    /// Names of the interfaces that are up and have a carrier.
    pub running: HashSet<String>,
    /// One of the interfaces is a veth device.
    pub has_veth: bool,
}

impl Site {
    /// Looks at the host, changes nothing. `known` are routes that are followed already.
    pub async fn survey(
        config: Config,
        netlink: &Netlink,
        known: &HashMap<IpAddr, Route>,
    ) -> Result<Self, HostError> {
        let snapshot = netlink.snapshot().await?;
        let located = config.instances.iter().zip(host::locate(&config, &snapshot)).enumerate();
        let instances = located.map(|(place, (instance, local))| {
            local.unwrap_or_else(|lacks| {
                match config.global.dynamic_interfaces {
                    true => tracing::info!("{lacks}: it waits in FAULT"),
                    false => tracing::error!("{lacks}: it waits in FAULT"),
                }
                LocalInstance::nowhere(place, instance, lacks.fault())
            })
        });
        let instances: Vec<_> = instances.collect();
        let new = ways::destinations(&config).filter(|real| !known.contains_key(real));
        let asked = ways::routes(new, netlink).await?;
        asked.iter().filter(|(_, route)| route.is_none()).for_each(|(real, _)| ways::tell_routeless(*real));
        let mut routes: HashMap<_, _> =
            asked.into_iter().filter_map(|(real, route)| Some((real, route?))).collect();
        routes.extend(ways::destinations(&config).filter_map(|real| Some((real, *known.get(&real)?))));
        let by = |forwarding| {
            let ways = config.services.iter().flat_map(VirtualServer::ways);
            ways.filter(move |(_, way)| *way == forwarding).map(|(real, _)| real)
        };
        let direct: HashSet<_> = by(Forwarding::Direct).collect();
        for (real, route) in
            routes.iter().filter(|(real, route)| **real != route.next_hop && direct.contains(real))
        {
            tracing::warn!(%real, gateway = %route.next_hop, "direct routing does not lead through a gateway");
        }
        for (service, real) in
            config.services.iter().flat_map(|service| service.reals.iter().map(move |real| (service, real)))
        {
            let local = routes.get(&real.address).is_some_and(|route| route.local);
            if local && real.port != service.port {
                tracing::warn!(real = %real.address, port = service.port, "a real server on this node gets packets as they are, with their port");
            }
        }
        if by(Forwarding::Nat).any(|real| routes.contains_key(&real)) && !host::forwards_packets() {
            tracing::warn!("net.ipv4.ip_forward is 0: answers of real servers will not reach clients by NAT");
        }
        let of_vmac = instances.iter().flat_map(|local| &local.addresses).filter(|a| a.virtual_mac.is_some());
        let of_vmac: HashSet<&str> =
            of_vmac.filter_map(|a| Some(snapshot.link_at(a.ifindex)?.name.as_str())).collect();
        for interface in of_vmac.into_iter().filter(|name| !host::asks_in_its_own_name(name)) {
            tracing::warn!(
                interface,
                "arp_announce is below 2: the kernel's own questions may tell neighbours the interface's MAC, not the virtual one"
            );
        }
        let interfaces = host::xdp_interfaces(&config, &instances, &routes, &snapshot);
        let next_hops = ways::next_hops(&config, &routes, &snapshot);
        let is_veth = |ifindex: &u32| snapshot.link_at(*ifindex).is_some_and(|link| link.veth);
        let has_veth = interfaces.keys().any(is_veth);
        let running = snapshot.running();
        Ok(Self { config, instances, routes, interfaces, next_hops, running, has_veth })
    }

    /// An instance that has its place in `before` and would lose it by a change of the file.
    pub fn misplaced(&self, before: &Self) -> Option<&str> {
        if self.config.global.dynamic_interfaces {
            return None;
        }
        let mut absent =
            self.config.instances.iter().zip(&self.instances).filter(|(_, local)| local.absent.is_some());
        let was_there = |instance: &&VrrpInstance| {
            before.config.instances.iter().zip(&before.instances).any(|(config, local)| {
                let same = (&config.interface, config.source) == (&instance.interface, instance.source);
                config.name == instance.name && local.absent.is_none() && !same
            })
        };
        absent.find(|(instance, _)| was_there(instance)).map(|(instance, _)| instance.name.as_str())
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

    pub fn vrrp(&self, leases: &[u32]) -> Vec<driver::Instance> {
        let located = self.config.instances.iter().zip(&self.instances).zip(leases);
        located
            .enumerate()
            .map(|(index, ((config, local), lease))| driver::Instance {
                name: config.name.clone(),
                interface: config.interface.clone(),
                ifindex: local.link.ifindex,
                heartbeats: local.heartbeats.clone(),
                source: local.source,
                absent: local.absent,
                advert_mac: config.vmac.adverts.then(|| config.virtual_mac()),
                vrid: config.vrid,
                priority: config.priority,
                version: config.version,
                advert_interval: config.advert_interval,
                start_as_master: config.start_as_master,
                peers: config.peers.clone(),
                multicast: config.multicast,
                unicast_ttl: config.unicast_ttl,
                ttl_limits: config.ttl_limits.clone(),
                authentication: config.authentication,
                signing: config.signing.clone(),
                preempt: config.preempt,
                addresses: local
                    .addresses
                    .iter()
                    .enumerate()
                    .map(|(place, a)| driver::Address {
                        address: a.config.address,
                        advertised: place < config.addresses.len(),
                        ifindex: a.ifindex,
                        mac: a.virtual_mac.unwrap_or(a.mac),
                        router: a.router,
                    })
                    .collect(),
                garp: config.garp,
                announce_interval: match config.family {
                    Family::V4 => self.config.global.garp_interval,
                    Family::V6 => self.config.global.gna_interval,
                },
                rules: config.rules,
                down_timer_adverts: config.down_timer_adverts,
                checksum_of_message: config.checksum_of_message,
                old_checksum: config.old_checksum,
                lease: *lease,
                group: self.config.groups.iter().position(|group| group.members.contains(&index)),
            })
            .collect()
    }
}
