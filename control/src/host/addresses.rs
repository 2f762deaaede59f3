//! Which virtual addresses must be on the host, which must not, and how they are taken away for certain.

use std::{collections::HashSet, net::IpAddr};

use super::{HostError, LocalAddress, LocalInstance};
use crate::{
    config::model::{Config, Family, VirtualAddress},
    netlink::{Address, Netlink, Snapshot},
};

/// An address on an interface.
pub type Place = (u32, IpAddr);

/// All virtual addresses of the instances but those that are a source address: an owner (priority 255) that is
/// not master must not lose its interface's own address.
pub fn places(instances: &[LocalInstance]) -> Vec<Place> {
    let own: HashSet<IpAddr> = instances.iter().map(|instance| instance.source).collect();
    let all = instances.iter().flat_map(|instance| &instance.addresses);
    all.map(|a| (a.ifindex, a.config.address)).filter(|(_, address)| !own.contains(address)).collect()
}

/// What to add and to remove so that masters, and only they, have their addresses.
pub fn work<'a>(
    instances: &'a [LocalInstance],
    is_master: impl Fn(usize) -> bool,
    snapshot: &Snapshot,
) -> (Vec<&'a LocalAddress>, Vec<Address>) {
    let (mut add, mut unwanted) = (Vec::new(), Vec::new());
    for (i, instance) in instances.iter().enumerate() {
        if is_master(i) && instance.accept {
            let missing = |a: &&LocalAddress| !snapshot.has_address(a.ifindex, a.config.address);
            add.extend(instance.addresses.iter().filter(missing));
        } else {
            unwanted.extend(places(std::slice::from_ref(instance)));
        }
    }
    (add, present(snapshot, &unwanted))
}

/// Static addresses that are missing, with the indexes of their interfaces.
pub fn missing<'a>(config: &'a Config, snapshot: &Snapshot) -> Vec<(u32, &'a VirtualAddress)> {
    let located = config.addresses.iter().filter_map(|(interface, address)| {
        let link = snapshot.link(interface)?;
        Some((link.ifindex, address))
    });
    located.filter(|(ifindex, address)| !snapshot.has_address(*ifindex, address.address)).collect()
}

/// Takes the static addresses of `before` away that `next` lacks. What the host had before it stays: it may be the way to it.
pub async fn withdraw_static(netlink: &Netlink, before: &Config, next: &Config, snapshot: &Snapshot) {
    for address in no_longer(before, next, snapshot) {
        if let Err(error) = netlink.remove_address(address).await {
            tracing::error!(%error, "static address is left");
        }
    }
}

fn no_longer<'a>(before: &Config, next: &Config, snapshot: &'a Snapshot) -> Vec<&'a Address> {
    let names = |config: &Config, it: &Address| {
        let is_it = |(interface, address): &(String, VirtualAddress)| {
            address.address == it.address
                && snapshot.link(interface).is_some_and(|link| link.ifindex == it.ifindex)
        };
        config.addresses.iter().any(is_it)
    };
    let gone = |it: &&Address| it.ours && names(before, it) && !names(next, it);
    snapshot.addresses.iter().filter(gone).collect()
}

/// Removes addresses and makes sure that they are gone: whoever calls is about to stop keeping the kernel from
/// answering for them.
pub async fn withdraw(netlink: &Netlink, gone: &[Place]) -> Result<(), HostError> {
    remove_all(netlink, |snapshot| present(snapshot, gone)).await
}

/// The same of what another daemon has left, which no configuration tells an interface's own address from.
pub async fn withdraw_left(netlink: &Netlink, left: &[Place]) -> Result<(), HostError> {
    remove_all(netlink, |snapshot| not_alone(snapshot, present(snapshot, left))).await
}

async fn remove_all(netlink: &Netlink, of: impl Fn(&Snapshot) -> Vec<Address>) -> Result<(), HostError> {
    const ATTEMPTS: usize = 3;
    let mut left = of(&netlink.snapshot().await?);
    for _ in 0..ATTEMPTS {
        for address in &left {
            if let Err(error) = netlink.remove_address(address).await {
                tracing::warn!(%error, "virtual address could not be removed");
            }
        }
        left = of(&netlink.snapshot().await?);
        if left.is_empty() {
            return Ok(());
        }
    }
    let addresses = left.iter().map(|a| a.address.to_string()).collect::<Vec<_>>().join(", ");
    Err(HostError::AddressesLeft { addresses })
}

/// Those of `places` that are on the host.
fn present(snapshot: &Snapshot, places: &[Place]) -> Vec<Address> {
    let places: HashSet<&Place> = places.iter().collect();
    let wanted = |a: &&Address| places.contains(&(a.ifindex, a.address));
    snapshot.addresses.iter().filter(wanted).cloned().collect()
}

/// But for one that is all its interface has of its family.
fn not_alone(snapshot: &Snapshot, mut addresses: Vec<Address>) -> Vec<Address> {
    let beside =
        |a: &Address, b: &Address| b.ifindex == a.ifindex && Family::of(b.address) == Family::of(a.address);
    addresses.retain(|a| snapshot.addresses.iter().any(|b| beside(a, b) && b != a));
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(addresses: &[(u32, [u8; 4])]) -> Snapshot {
        let address = |(ifindex, ip): &(u32, [u8; 4])| Address {
            ifindex: *ifindex,
            address: IpAddr::from(*ip),
            prefix_len: 24,
            ours: false,
        };
        let mut snapshot = Snapshot::default();
        snapshot.addresses.extend(addresses.iter().map(address));
        snapshot
    }

    #[test]
    fn of_what_another_daemon_left_an_interface_never_loses_its_only_address() {
        let vip = [10, 77, 0, 100];
        let left = |there: &[(u32, [u8; 4])]| {
            let snapshot = snapshot(there);
            not_alone(&snapshot, present(&snapshot, &[(3, vip.into())])).len()
        };
        assert_eq!(left(&[(3, vip), (3, [10, 77, 0, 1])]), 1);
        assert_eq!(left(&[(3, vip), (4, [10, 77, 0, 1])]), 0);
        assert_eq!(left(&[(4, vip), (4, [10, 77, 0, 1])]), 0, "another interface's");
    }

    #[test]
    fn a_virtual_address_that_is_its_interfaces_only_one_is_taken_away_too() {
        let vip = [10, 77, 0, 100];
        assert_eq!(present(&snapshot(&[(3, vip), (4, [10, 77, 0, 1])]), &[(3, vip.into())]).len(), 1);
    }
}
