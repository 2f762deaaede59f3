//! Which virtual routes and rules must be there, and how do they get there and away?

use std::fmt;

use super::{LocalInstance, Netlink, Snapshot};
use crate::{
    config::model::{Config, VirtualRoute, VirtualRule},
    drift::{Drift, Drifts},
};

/// What goes with the addresses of an instance, or is there while the daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Item<'a> {
    Route(&'a VirtualRoute),
    Rule(&'a VirtualRule),
}

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
        let moving = config.instances.iter().zip(instances).enumerate().map(|(i, (instance, local))| {
            let items = items(&instance.routes, &instance.routing_rules);
            (items, local.absent.is_none() && is_master(i))
        });
        let all: Vec<_> = moving.chain([(items(&config.routes, &config.rules), true)]).collect();
        self.present.resize(all.len(), None);
        for ((items, wanted), present) in all.into_iter().zip(&mut self.present) {
            let new = present.replace(wanted) != Some(wanted);
            if wanted {
                // Rules last: none shall lead to a table that is empty yet.
                for item in items.iter().rev().filter(|item| new || (again && !item.no_track())) {
                    if item.add(netlink, snapshot).await && !new {
                        tracing::warn!(what = %item, "a virtual route or rule was gone, it is put back");
                        drifts.count(Drift::Routes, 1);
                    }
                }
            } else if new {
                for item in items {
                    item.remove(netlink, snapshot).await;
                }
            }
        }
    }
}

/// All of a configuration, in the order in which they may go.
pub fn all(config: &Config) -> impl Iterator<Item = Item<'_>> {
    let instances = config.instances.iter();
    let moving = instances.flat_map(|instance| items(&instance.routes, &instance.routing_rules));
    moving.chain(items(&config.routes, &config.rules))
}

fn items<'a>(routes: &'a [VirtualRoute], rules: &'a [VirtualRule]) -> Vec<Item<'a>> {
    // Routes may depend on those before them.
    rules.iter().map(Item::Rule).chain(routes.iter().rev().map(Item::Route)).collect()
}

impl Item<'_> {
    fn no_track(&self) -> bool {
        match self {
            Self::Route(route) => route.no_track,
            Self::Rule(rule) => rule.no_track,
        }
    }

    pub async fn remove(&self, netlink: &Netlink, snapshot: &Snapshot) {
        let removed = match self {
            // Without its interface it is gone.
            Self::Route(route) => match device(route, snapshot) {
                Some(device) => netlink.remove_route(route, device).await,
                None => return,
            },
            Self::Rule(rule) => netlink.remove_rule(rule).await,
        };
        if let Err(error) = removed {
            tracing::error!(%error, "a virtual route or rule is left");
        }
    }

    /// False: it was there, or cannot be.
    async fn add(&self, netlink: &Netlink, snapshot: &Snapshot) -> bool {
        let added = match self {
            Self::Route(route) => match device(route, snapshot) {
                Some(device) => netlink.add_route(route, device).await,
                None => {
                    let interface = route.device.as_deref().unwrap_or_default();
                    tracing::error!(to = %route.to, interface, "virtual route is missing: there is no such interface");
                    return false;
                }
            },
            Self::Rule(rule) => netlink.add_rule(rule).await,
        };
        added.unwrap_or_else(|error| {
            tracing::error!(%error, "a virtual route or rule is missing");
            false
        })
    }
}

impl fmt::Display for Item<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(route) => write!(f, "route to {}/{}", route.to, route.prefix_len),
            Self::Rule(rule) => write!(f, "rule of priority {}", rule.priority),
        }
    }
}

/// `None`: it names one that is not there.
fn device(route: &VirtualRoute, snapshot: &Snapshot) -> Option<Option<u32>> {
    match &route.device {
        None => Some(None),
        Some(name) => snapshot.link(name).map(|link| Some(link.ifindex)),
    }
}
