//! What does the XDP program have to know of virtual addresses?

use std::{collections::HashMap, net::IpAddr};

use lvs_ebpf_common::{Vip, virtual_mac_key};

use super::{LocalAddress, LocalInstance};

/// `leases` is each instance's element. Of a virtual router's MAC too, under its key.
pub fn vips(instances: &[LocalInstance], leases: &[u32]) -> Vec<(IpAddr, Vip)> {
    let located = instances.iter().zip(leases);
    let entries = located.flat_map(|(instance, lease)| {
        let flag = |holds: bool, flag| if holds { flag } else { 0 };
        let flags = flag(!instance.accept, Vip::NOT_ACCEPTED) | flag(instance.tagged, Vip::TAGGED);
        instance.addresses.iter().flat_map(move |address| entries(address, *lease, flags))
    });
    entries.collect::<HashMap<_, _>>().into_iter().collect()
}

fn entries(address: &LocalAddress, lease: u32, flags: u8) -> impl Iterator<Item = (IpAddr, Vip)> {
    let vip = Vip {
        lease,
        ifindex: address.ifindex,
        mac: address.mac,
        answers: address.virtual_mac.unwrap_or(address.mac),
        flags: if address.router { flags | Vip::ROUTER } else { flags },
        ..Vip::default()
    };
    let key = |[.., family, vrid]: [u8; 6]| virtual_mac_key(address.ifindex, family, vrid).into();
    [(address.config.address, vip)].into_iter().chain(address.virtual_mac.map(|mac| (key(mac), vip)))
}
