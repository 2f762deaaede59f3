//! Which way do packets go to the real servers? What the kernel says of routes and neighbours.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use futures_util::{StreamExt as _, stream};

use super::{HostError, virtual_addresses};
use crate::{
    config::{Config, model::VirtualServer},
    dataplane::plan::NextHop,
    netlink::{Netlink, Route, Snapshot},
};

/// Questions that the kernel has at a time.
pub const AT_ONCE: usize = 64;

/// The kernel's routes to real servers; `None` where there is none.
pub async fn routes(
    reals: impl IntoIterator<Item = IpAddr>,
    netlink: &Netlink,
) -> Result<HashMap<IpAddr, Option<Route>>, HostError> {
    let reals: HashSet<IpAddr> = reals.into_iter().collect();
    let mut routes = HashMap::with_capacity(reals.len());
    let ask = |real| async move { (real, netlink.route(real).await) };
    let mut answers = stream::iter(reals).map(ask).buffer_unordered(AT_ONCE);
    while let Some((real, route)) = answers.next().await {
        routes.insert(real, route?);
    }
    Ok(routes)
}

pub fn tell_routeless(real: IpAddr) {
    tracing::warn!(%real, "no route to a real server");
}

/// All that packets of the services may be sent to.
pub fn destinations(config: &Config) -> impl Iterator<Item = IpAddr> {
    config.services.iter().flat_map(VirtualServer::destinations)
}

/// Next hops of the real servers whose neighbour is known.
pub fn next_hops(
    config: &Config,
    routes: &HashMap<IpAddr, Route>,
    snapshot: &Snapshot,
) -> HashMap<IpAddr, NextHop> {
    let virtual_addresses = virtual_addresses(config);
    let resolve = |(real, route): (&IpAddr, &Route)| {
        if route.local {
            return Some((*real, NextHop::LOCAL));
        }
        let link = snapshot.link_at(route.ifindex)?;
        let mac = *snapshot.neighbours.get(&(route.ifindex, route.next_hop))?;
        // A real server has the virtual addresses as its own, and takes nothing that comes from there.
        let on_link = snapshot.addresses.iter().filter(|a| a.ifindex == route.ifindex).map(|a| a.address);
        let mut sources = route.source.into_iter().chain(on_link);
        let source =
            sources.find(|a| a.is_ipv4() == real.is_ipv4() && is_wide(*a) && !virtual_addresses.contains(a));
        let mtu = route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)).try_into().unwrap_or(u16::MAX);
        Some((*real, NextHop { mac, source_mac: link.mac, ifindex: route.ifindex, source, mtu }))
    };
    routes.iter().filter_map(resolve).collect()
}

/// Of use beyond its link.
fn is_wide(address: IpAddr) -> bool {
    !matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
