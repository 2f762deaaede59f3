//! What the tables shall say, given the configuration, the checks' verdicts and the neighbours.
//!
//! Pure: events in, [`Desired`] and [`Change`]s out.

mod service;

use std::{collections::HashMap, net::Ipv4Addr};

use lvs_ebpf_common::{ServiceKey, Vip};

use crate::{
    config::model::{Check, Config, RealServer, SorryServer},
    dataplane::plan::{Desired, NextHop},
};

pub use service::{CheckState, RealState, ServiceState, Standing};

pub struct Director {
    services: Vec<ServiceState>,
    vips: Vec<(Ipv4Addr, Vip)>,
    next_hops: HashMap<Ipv4Addr, NextHop>,
    /// Service, real and check by number of the check.
    checks: Vec<(usize, usize, usize)>,
}

/// One check for the runner.
pub struct Target<'a> {
    pub id: usize,
    pub check: &'a Check,
    /// As its predecessor left it.
    pub up: bool,
}

/// What an operator is told of; services and reals by their place in [`Director::services`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Real { service: usize, real: usize, from: Standing, to: Standing },
    Quorum { service: usize, gained: bool },
}

impl Director {
    /// `was_up` tells where an earlier daemon had left a real server: what was out of its pool stays out until
    /// a check succeeds. All others begin in the pool, as keepalived has it, but for those with `alpha`.
    pub fn new(
        config: &Config,
        vips: Vec<(Ipv4Addr, Vip)>,
        was_up: impl Fn(&ServiceKey, &RealServer) -> Option<bool>,
    ) -> Self {
        let services: Vec<_> =
            config.services.iter().map(|service| ServiceState::new(service.clone(), &was_up)).collect();
        let checks = services.iter().enumerate().flat_map(|(s, service)| {
            let reals = service.reals.iter().enumerate();
            reals.flat_map(move |(r, real)| (0..real.checks.len()).map(move |c| (s, r, c)))
        });
        Self { checks: checks.collect(), services, vips, next_hops: HashMap::new() }
    }

    pub fn targets(&self) -> impl Iterator<Item = Target<'_>> {
        self.checks.iter().enumerate().map(|(id, &(s, r, c))| {
            let real = &self.services[s].reals[r];
            Target { id, check: &real.config.checks[c], up: real.checks[c].up }
        })
    }

    pub fn services(&self) -> &[ServiceState] {
        &self.services
    }

    /// The sorry server of a service, while it stands for the real servers.
    pub fn sorry(&self, service: &ServiceState) -> Option<SorryServer> {
        service.sorry(|address| self.next_hops.get(&address).copied()).cloned()
    }

    pub fn on_verdict(&mut self, id: usize, up: bool, error: Option<String>) -> Vec<Change> {
        let Some(&(s, r, c)) = self.checks.get(id) else { return Vec::new() };
        let service = &mut self.services[s];
        let real = &mut service.reals[r];
        let from = real.standing();
        real.checks[c] = CheckState { up, error, ran: true };
        let to = real.standing();
        let mut changes = Vec::new();
        if from != to {
            changes.push(Change::Real { service: s, real: r, from, to });
        }
        if service.settle_quorum() {
            changes.push(Change::Quorum { service: s, gained: service.has_quorum() });
        }
        changes
    }

    /// Replaces what is known; a real server whose next hop is no longer known keeps the one it had.
    pub fn on_next_hops(&mut self, next_hops: HashMap<Ipv4Addr, NextHop>) {
        self.next_hops.extend(next_hops);
    }

    pub fn desired(&self) -> Desired {
        let next_hop = |address: Ipv4Addr| self.next_hops.get(&address).copied();
        let services = self.services.iter().map(|service| service.desired(next_hop));
        Desired { services: services.collect(), vips: self.vips.clone() }
    }
}

#[cfg(test)]
mod tests;
