//! Which MACs beside their own do interfaces have to let in, and how are they told?

use std::collections::HashSet;

use lvs_ebpf_common::Vip;

use super::LocalInstance;
use crate::netlink::Netlink;

/// With the interface.
pub type Place = (u32, [u8; 6]);

pub fn of(instances: &[LocalInstance]) -> HashSet<Place> {
    let addresses = instances.iter().flat_map(|instance| &instance.addresses);
    addresses.filter_map(|address| Some((address.ifindex, address.virtual_mac?))).collect()
}

/// Those that tables speak of.
pub fn of_vips<'a>(vips: impl Iterator<Item = &'a Vip>) -> HashSet<Place> {
    vips.filter(|vip| vip.answers != vip.mac).map(|vip| (vip.ifindex, vip.answers)).collect()
}

/// A backup's interface lets them in too: what comes there in the moment of a change is not lost, and what a switch floods
/// the program does not take up.
pub async fn admit(netlink: &Netlink, places: &HashSet<Place>) {
    for (ifindex, mac) in places {
        if let Err(error) = netlink.admit_mac(*ifindex, *mac).await {
            tracing::error!(%error, "frames for a virtual MAC come in only if the interface is promiscuous");
        }
    }
}

pub async fn forget(netlink: &Netlink, places: impl Iterator<Item = &Place>) {
    for (ifindex, mac) in places {
        if let Err(error) = netlink.forget_mac(*ifindex, *mac).await {
            tracing::debug!(%error, "its interface is gone, or lets it in for somebody else");
        }
    }
}
