//! What the tables shall say, given the configuration, the checks' verdicts and the neighbours.
//!
//! Pure: events in, [`Desired`] and [`Change`]s out.

mod course;
mod orders;
mod service;
mod told;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    time::Instant,
};

use lvs_ebpf_common::Vip;

use crate::{
    check::Target,
    config::model::{Check, Config, RealServer, SorryServer, VirtualServer},
    dataplane::plan::{Desired, DesiredService, Endpoint, NextHop},
};

pub use orders::{Order, OrderError, Orders};
pub use service::{CheckState, RealState, ServiceState, Standing};
pub use told::{News, Told};

pub struct Director {
    services: Vec<ServiceState>,
    vips: Vec<(IpAddr, Vip)>,
    next_hops: HashMap<IpAddr, NextHop>,
    /// By number of the check. Numbers are never used again.
    checks: BTreeMap<usize, Place>,
    next_check: usize,
    orders: Orders,
    /// Services of which the tables may say something else.
    touched: BTreeSet<usize>,
    /// Services that time may change.
    moving: BTreeSet<usize>,
}

/// Service, real and check.
type Place = (usize, usize, usize);

/// What a real server is known by from one configuration to the next.
type Server = (Endpoint, IpAddr, u16);

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
        vips: Vec<(IpAddr, Vip)>,
        mut orders: Orders,
        was_up: impl Fn(&Endpoint, &RealServer) -> Option<bool>,
    ) -> Self {
        let state = |service: &VirtualServer| ServiceState::new(service.clone(), &orders, &was_up);
        let services: Vec<_> = config.services.iter().map(state).collect();
        let ordered: HashSet<_> = services
            .iter()
            .flat_map(|service| {
                let reals = service.reals.iter().filter(|real| real.ordered.is_some());
                reals.map(|real| (service.name(), real.name()))
            })
            .collect();
        orders.retain(|service, real| ordered.contains(&(service.to_owned(), real.to_owned())));
        let checks: BTreeMap<_, _> = places(&services).into_iter().enumerate().collect();
        Self {
            next_check: checks.len(),
            checks,
            vips,
            next_hops: HashMap::new(),
            orders,
            touched: BTreeSet::new(),
            moving: (0..services.len()).collect(),
            services,
        }
    }

    /// The director of a new configuration. A check that is in both keeps its number and its state, a service its
    /// quorum. Checks that are new or changed begin where their real server was; it may be new too, then they begin
    /// as [`Director::new`] has it.
    pub fn succeed(&self, config: &Config, vips: Vec<(IpAddr, Vip)>) -> Self {
        let were_up: HashMap<_, _> = self
            .services
            .iter()
            .flat_map(|service| service.reals.iter().map(|real| (server(service, real), real.is_up())))
            .collect();
        let was_up =
            |key: &Endpoint, real: &RealServer| were_up.get(&(*key, real.address, real.port)).copied();
        let mut next = Self::new(config, vips, self.orders.clone(), was_up);
        next.next_hops.clone_from(&self.next_hops);
        next.next_check = self.next_check;
        next.checks.clear();
        let mut known: HashMap<Server, Vec<(usize, Place)>> = HashMap::new();
        for (&id, &place) in &self.checks {
            known.entry(self.server(place)).or_default().push((id, place));
        }
        for place in places(&next.services) {
            let left = known.get_mut(&next.server(place));
            let same = left.and_then(|left| {
                let at = left.iter().position(|(_, old)| self.check(*old) == next.check(place))?;
                Some(left.swap_remove(at))
            });
            let id = match same {
                Some((id, (old_s, old_r, old_c))) => {
                    let (s, r, c) = place;
                    let state = self.services[old_s].reals[old_r].checks[old_c].clone();
                    next.services[s].reals[r].checks[c] = state;
                    id
                }
                None => {
                    next.next_check += 1;
                    next.next_check - 1
                }
            };
            next.checks.insert(id, place);
        }
        let before: HashMap<_, _> = self.services.iter().map(|service| (service.key, service)).collect();
        for service in &mut next.services {
            if let Some(before) = before.get(&service.key) {
                service.succeed(before);
            }
        }
        next
    }

    fn server(&self, (s, r, _): Place) -> Server {
        let service = &self.services[s];
        server(service, &service.reals[r])
    }

    fn check(&self, (s, r, c): Place) -> &Check {
        &self.services[s].reals[r].config.checks[c]
    }

    /// All checks, for the runner.
    pub fn targets(&self) -> Vec<Target> {
        let target = |(&id, &place): (&usize, &Place)| {
            let (s, r, c) = place;
            let up = self.services[s].reals[r].checks[c].up;
            Target { id, check: self.check(place).clone(), up }
        };
        self.checks.iter().map(target).collect()
    }

    pub fn services(&self) -> &[ServiceState] {
        &self.services
    }

    /// The sorry server of a service, while it stands for the real servers.
    pub fn sorry(&self, service: &ServiceState) -> Option<SorryServer> {
        service.sorry(|address| self.next_hops.get(&address).copied()).cloned()
    }

    /// Whether a real server is this node itself.
    pub fn is_local(&self, real: IpAddr) -> bool {
        self.next_hops.get(&real).is_some_and(NextHop::is_local)
    }

    pub fn on_verdict(&mut self, id: usize, verdict: CheckState) -> Vec<Change> {
        let Some(&(s, r, c)) = self.checks.get(&id) else { return Vec::new() };
        let service = &mut self.services[s];
        let real = &mut service.reals[r];
        let (from, weight) = (real.standing(), real.effective_weight());
        real.checks[c] = verdict;
        let to = real.standing();
        let mut changes = Vec::new();
        if from != to {
            changes.push(Change::Real { service: s, real: r, from, to });
        }
        if from != to || weight != real.effective_weight() {
            self.touched.insert(s);
        }
        if service.settle_quorum() {
            changes.push(Change::Quorum { service: s, gained: service.has_quorum() });
        }
        changes
    }

    /// The service that a check is about.
    pub fn service_of(&self, id: usize) -> Option<usize> {
        self.checks.get(&id).map(|(s, _, _)| *s)
    }

    pub fn orders(&self) -> &Orders {
        &self.orders
    }

    /// Carries out what an operator wants, over what the configuration says.
    pub fn on_order(&mut self, order: &Order) -> Result<Vec<Change>, OrderError> {
        let (places, weight) = match order {
            Order::Weight { service, real, weight } => (vec![self.named(service, real)?], Some(*weight)),
            Order::Enable { service, real } => {
                let (s, r) = self.named(service, real)?;
                let real = &self.services[s].reals[r];
                if real.config.weight == 0 && real.ordered.is_none() {
                    return Err(OrderError::ConfiguredZero { real: real.name() });
                }
                (vec![(s, r)], None)
            }
            Order::Reset => {
                let of = |(s, service): (usize, &ServiceState)| {
                    let reals = service.reals.iter().enumerate();
                    reals.filter(|(_, real)| real.ordered.is_some()).map(|(r, _)| (s, r)).collect::<Vec<_>>()
                };
                (self.services.iter().enumerate().flat_map(of).collect(), None)
            }
        };
        let mut changes = Vec::new();
        let touched: BTreeSet<_> = places.iter().map(|(s, _)| *s).collect();
        for (s, r) in places {
            let service = &mut self.services[s];
            let name = service.name();
            let real = &mut service.reals[r];
            let from = real.standing();
            real.ordered = weight;
            self.orders.set(&name, &real.name(), weight);
            let to = real.standing();
            if from != to {
                changes.push(Change::Real { service: s, real: r, from, to });
            }
        }
        // One step: what lies between is no reason to lose the quorum.
        for s in touched {
            self.touched.insert(s);
            let service = &mut self.services[s];
            if service.settle_quorum() {
                changes.push(Change::Quorum { service: s, gained: service.has_quorum() });
            }
        }
        Ok(changes)
    }

    /// The service and the real server that an operator's words name.
    fn named(&self, service: &str, real: &str) -> Result<(usize, usize), OrderError> {
        let is_called = |it: &ServiceState| {
            let name = it.name();
            name == service || name.split_once(':').is_some_and(|(_, endpoint)| endpoint == service)
        };
        let found: Vec<_> = (0..self.services.len()).filter(|s| is_called(&self.services[*s])).collect();
        let names = |places: &[usize]| places.iter().map(|s| self.services[*s].name()).collect();
        let got = service.to_owned();
        let s = match found.as_slice() {
            [one] => *one,
            [] => {
                let known = names(&(0..self.services.len()).collect::<Vec<_>>());
                return Err(OrderError::NoService { got, known });
            }
            several => return Err(OrderError::Ambiguous { got, known: names(several) }),
        };
        let service = &self.services[s];
        let r = service.reals.iter().position(|it| it.name() == real).ok_or_else(|| OrderError::NoReal {
            service: service.name(),
            got: real.to_owned(),
            known: service.reals.iter().map(RealState::name).collect(),
        })?;
        Ok((s, r))
    }

    /// Replaces what is known; a real server whose next hop is no longer known keeps the one it had.
    pub fn on_next_hops(&mut self, mut next_hops: HashMap<IpAddr, NextHop>) {
        next_hops.retain(|address, hop| self.next_hops.get(address) != Some(hop));
        if next_hops.is_empty() {
            return;
        }
        let leads = |service: &ServiceState| {
            let mut addresses = service.config.destinations();
            addresses.any(|address| next_hops.contains_key(&address))
        };
        let services = self.services.iter().enumerate().filter(|(_, service)| leads(service));
        self.touched.extend(services.map(|(s, _)| s));
        self.next_hops.extend(next_hops);
    }

    /// What time changes, up to now.
    pub fn advance(&mut self, now: Instant) {
        for s in self.moving.union(&self.touched).copied().collect::<Vec<_>>() {
            let service = &mut self.services[s];
            if service.advance(now) {
                self.touched.insert(s);
            }
            if service.is_moving() {
                self.moving.insert(s);
            } else {
                self.moving.remove(&s);
            }
        }
    }

    /// What changed since the last call, or since all of it was asked for.
    pub fn take_touched(&mut self) -> Vec<DesiredService> {
        let touched = std::mem::take(&mut self.touched);
        touched.into_iter().map(|s| self.desired_service(&self.services[s])).collect()
    }

    /// All of it.
    pub fn take_desired(&mut self) -> Desired {
        self.touched.clear();
        self.desired()
    }

    fn desired(&self) -> Desired {
        let services = self.services.iter().map(|service| self.desired_service(service));
        Desired { services: services.collect(), vips: self.vips.clone() }
    }

    fn desired_service(&self, service: &ServiceState) -> DesiredService {
        service.desired(|address| self.next_hops.get(&address).copied())
    }
}

fn server(service: &ServiceState, real: &RealState) -> Server {
    (service.key, real.config.address, real.config.port)
}

fn places(services: &[ServiceState]) -> Vec<Place> {
    let of_service = |(s, service): (usize, &ServiceState)| {
        let reals = service.reals.iter().enumerate();
        reals.flat_map(|(r, real)| (0..real.checks.len()).map(move |c| (s, r, c))).collect::<Vec<_>>()
    };
    services.iter().enumerate().flat_map(of_service).collect()
}

#[cfg(test)]
mod tests;
