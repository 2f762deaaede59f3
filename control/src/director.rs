//! What the tables shall say, given the configuration, the checks' verdicts and the neighbours.
//!
//! Pure: events in, [`Desired`] out.

use std::{collections::HashMap, net::Ipv4Addr};

use lvs_ebpf_common::{Service, ServiceKey, Vip};

use crate::{
    config::model::{Check, Config, Protocol, RealServer, Scheduler, VirtualServer},
    dataplane::plan::{Desired, DesiredReal, DesiredService, NextHop},
};

pub struct Director {
    services: Vec<ServiceState>,
    vips: Vec<(Ipv4Addr, Vip)>,
    next_hops: HashMap<Ipv4Addr, NextHop>,
    /// Service, real and check by number of the check.
    checks: Vec<(usize, usize, usize)>,
}

pub struct ServiceState {
    pub config: VirtualServer,
    pub key: ServiceKey,
    pub reals: Vec<RealState>,
}

pub struct RealState {
    pub config: RealServer,
    /// One for each of the real's checks.
    pub checks: Vec<CheckState>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CheckState {
    pub up: bool,
    /// Why the last result was a failure.
    pub error: Option<String>,
    /// A result has come in since the start.
    pub ran: bool,
}

/// A real server's place in its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Up,
    Down,
    /// Weight 0: no new flows, those it has continue.
    Draining,
}

/// One check for the runner.
pub struct Target<'a> {
    pub id: usize,
    pub check: &'a Check,
    /// As its predecessor left it.
    pub up: bool,
}

impl Director {
    /// `was_down` tells of a real server that an earlier daemon had taken out of its pool: it stays out until
    /// a check succeeds. All others begin in the pool, as keepalived has it.
    pub fn new(
        config: &Config,
        vips: Vec<(Ipv4Addr, Vip)>,
        was_down: impl Fn(&ServiceKey, &RealServer) -> bool,
    ) -> Self {
        let mut checks = Vec::new();
        let mut services = Vec::new();
        for (s, service) in config.services.iter().enumerate() {
            let key = key(service);
            let mut reals = Vec::new();
            for (r, real) in service.reals.iter().enumerate() {
                let up = !was_down(&key, real);
                checks.extend((0..real.checks.len()).map(|c| (s, r, c)));
                let states = vec![CheckState { up, error: None, ran: false }; real.checks.len()];
                reals.push(RealState { config: real.clone(), checks: states });
            }
            services.push(ServiceState { config: service.clone(), key, reals });
        }
        Self { services, vips, next_hops: HashMap::new(), checks }
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

    /// The real server that a check belongs to, for the log.
    pub fn checked(&self, id: usize) -> Option<(&ServiceState, &RealState)> {
        let &(s, r, _) = self.checks.get(id)?;
        Some((&self.services[s], &self.services[s].reals[r]))
    }

    pub fn on_verdict(&mut self, id: usize, up: bool, error: Option<String>) {
        let Some(&(s, r, c)) = self.checks.get(id) else { return };
        self.services[s].reals[r].checks[c] = CheckState { up, error, ran: true };
    }

    /// Replaces what is known; a real server whose next hop is no longer known keeps the one it had.
    pub fn on_next_hops(&mut self, next_hops: HashMap<Ipv4Addr, NextHop>) {
        self.next_hops.extend(next_hops);
    }

    pub fn desired(&self) -> Desired {
        let services = self.services.iter().map(|service| DesiredService {
            key: service.key,
            hash: hash(&service.config),
            reals: service
                .reals
                .iter()
                .map(|real| DesiredReal {
                    address: real.config.address,
                    port: real.config.port,
                    weight: real.effective_weight(),
                    next_hop: self.next_hops.get(&real.config.address).copied(),
                })
                .collect(),
        });
        Desired { services: services.collect(), vips: self.vips.clone() }
    }
}

impl RealState {
    /// All checks succeed, or there are none.
    pub fn is_up(&self) -> bool {
        self.checks.iter().all(|check| check.up)
    }

    pub fn effective_weight(&self) -> u16 {
        if self.is_up() { self.config.weight } else { 0 }
    }

    pub fn standing(&self) -> Standing {
        match (self.is_up(), self.config.weight) {
            (true, 0) => Standing::Draining,
            (true, _) => Standing::Up,
            (false, _) if self.config.inhibit_on_failure => Standing::Draining,
            (false, _) => Standing::Down,
        }
    }
}

pub fn key(service: &VirtualServer) -> ServiceKey {
    ServiceKey {
        address: u32::from_ne_bytes(service.address.octets()),
        port: service.port.to_be(),
        protocol: match service.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        },
        _pad: 0,
    }
}

fn hash(service: &VirtualServer) -> u32 {
    match service.scheduler {
        Scheduler::Mh | Scheduler::Sh if service.hash_port => Service::HASH_SOURCE_PORT,
        Scheduler::Mh | Scheduler::Sh => Service::HASH_SOURCE,
        Scheduler::Dh => Service::HASH_DESTINATION,
        Scheduler::Rr
        | Scheduler::Wrr
        | Scheduler::Lc
        | Scheduler::Wlc
        | Scheduler::Lblc
        | Scheduler::Lblcr
        | Scheduler::Fo
        | Scheduler::Ovf
        | Scheduler::Sed
        | Scheduler::Nq
        | Scheduler::Twos => Service::HASH_CONNECTION,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::model::{CheckKind, CheckTiming, Forwarding};

    fn real(last: u8, checks: usize) -> RealServer {
        let second = Duration::from_secs(1);
        let timing = CheckTiming {
            delay_loop: second,
            connect_timeout: second,
            retry: 1,
            delay_before_retry: second,
            warmup: second,
        };
        let address = Ipv4Addr::new(10, 77, 0, last);
        let check = Check { kind: CheckKind::Tcp, address, port: 80, bind: None, timing };
        RealServer { address, port: 80, weight: 3, inhibit_on_failure: false, checks: vec![check; checks] }
    }

    fn director(reals: Vec<RealServer>) -> Director {
        let service = VirtualServer {
            address: Ipv4Addr::new(10, 77, 0, 100),
            port: 80,
            protocol: Protocol::Tcp,
            scheduler: Scheduler::Wlc,
            hash_port: false,
            forwarding: Forwarding::Direct,
            reals,
        };
        let config = Config { services: vec![service], ..Config::default() };
        Director::new(&config, Vec::new(), |_, _| false)
    }

    fn weights(director: &Director) -> Vec<u16> {
        director.desired().services[0].reals.iter().map(|real| real.weight).collect()
    }

    #[test]
    fn a_real_is_in_the_pool_only_while_all_its_checks_succeed() {
        let mut director = director(vec![real(1, 2), real(2, 0)]);
        assert_eq!(weights(&director), [3, 3], "in the pool from the start");
        director.on_verdict(0, false, Some("connection refused".into()));
        director.on_verdict(1, true, None);
        assert_eq!(weights(&director), [0, 3]);
        director.on_verdict(0, true, None);
        assert_eq!(weights(&director), [3, 3]);
    }

    #[test]
    fn a_real_that_was_out_before_a_restart_stays_out_until_a_check_succeeds() {
        let config = Config {
            services: vec![director(vec![real(1, 1), real(2, 1)]).services[0].config.clone()],
            ..Config::default()
        };
        let mut director = Director::new(&config, Vec::new(), |_, real| real.address.octets()[3] == 2);
        assert_eq!(weights(&director), [3, 0]);
        assert_eq!(director.targets().map(|target| target.up).collect::<Vec<_>>(), [true, false]);
        director.on_verdict(1, true, None);
        assert_eq!(weights(&director), [3, 3]);
    }

    #[test]
    fn a_next_hop_once_known_is_kept_when_the_kernel_forgets_it() {
        let mut director = director(vec![real(1, 0)]);
        let hop = NextHop { mac: [2; 6], source_mac: [4; 6], ifindex: 3 };
        director.on_next_hops([(Ipv4Addr::new(10, 77, 0, 1), hop)].into());
        director.on_next_hops(HashMap::new());
        assert_eq!(director.desired().services[0].reals[0].next_hop, Some(hop));
    }

    #[test]
    fn a_failed_real_drains_with_inhibit_on_failure_and_is_down_without() {
        let inhibited = RealServer { inhibit_on_failure: true, ..real(2, 1) };
        let mut director = director(vec![real(1, 1), inhibited]);
        director.on_verdict(0, false, None);
        director.on_verdict(1, false, None);
        let standings: Vec<_> = director.services[0].reals.iter().map(RealState::standing).collect();
        assert_eq!(standings, [Standing::Down, Standing::Draining]);
    }
}
