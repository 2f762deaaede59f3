//! Which virtual routes must be there, and how do they get there and away?

use super::{LocalInstance, Netlink, Snapshot};
use crate::{
    config::model::{Config, VirtualRoute},
    drift::{Drift, Drifts},
};

/// What was last done for each instance, and for the static ones.
#[derive(Default)]
pub struct Routes {
    present: Vec<Option<bool>>,
}

impl Routes {
    /// Adds what masters (by their place) need and removes what others had. With `again`, what somebody else has
    /// removed is put back.
    pub async fn settle(
        &mut self,
        config: &Config,
        instances: &[LocalInstance],
        is_master: impl Fn(usize) -> bool,
        (netlink, snapshot): (&Netlink, &Snapshot),
        again: bool,
        drifts: &Drifts,
    ) {
        let moving = config.instances.iter().zip(instances).enumerate();
        let moving = moving.map(|(i, (instance, local))| {
            (instance.routes.as_slice(), local.absent.is_none() && is_master(i))
        });
        let all: Vec<_> = moving.chain([(config.routes.as_slice(), true)]).collect();
        self.present.resize(all.len(), None);
        for ((routes, wanted), present) in all.into_iter().zip(&mut self.present) {
            let new = present.replace(wanted) != Some(wanted);
            for route in routes {
                match wanted {
                    true if new || (again && !route.no_track) => {
                        let added = add(route, netlink, snapshot).await;
                        if added && !new {
                            tracing::warn!(to = %route.to, "a virtual route was gone, it is put back");
                            drifts.count(Drift::Routes, 1);
                        }
                    }
                    false if new => remove(route, netlink, snapshot).await,
                    _ => {}
                }
            }
        }
    }
}

/// Every route of a configuration.
pub fn all(config: &Config) -> impl Iterator<Item = &VirtualRoute> {
    config.instances.iter().flat_map(|instance| &instance.routes).chain(&config.routes)
}

pub async fn remove(route: &VirtualRoute, netlink: &Netlink, snapshot: &Snapshot) {
    // Without its interface it is gone.
    let Some(device) = device(route, snapshot) else { return };
    if let Err(error) = netlink.remove_route(route, device).await {
        tracing::error!(%error, "virtual route is left");
    }
}

/// False: it was there, or cannot be.
async fn add(route: &VirtualRoute, netlink: &Netlink, snapshot: &Snapshot) -> bool {
    let Some(device) = device(route, snapshot) else {
        let interface = route.device.as_deref().unwrap_or_default();
        tracing::error!(to = %route.to, interface, "virtual route is missing: there is no such interface");
        return false;
    };
    netlink.add_route(route, device).await.unwrap_or_else(|error| {
        tracing::error!(%error, "virtual route is missing");
        false
    })
}

/// `None`: it names one that is not there.
fn device(route: &VirtualRoute, snapshot: &Snapshot) -> Option<Option<u32>> {
    match &route.device {
        None => Some(None),
        Some(name) => snapshot.link(name).map(|link| Some(link.ifindex)),
    }
}
