//! Who of a service's real servers takes flows? keepalived's pool rules.
//!
//! A real server is up while all its checks succeed. While the living ones weigh too little for the quorum, the
//! sorry server stands for all of them. Without one, quorum is only told, and the living stay.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use lvs_ebpf_common::{
    Service,
    protocol::{TCP, UDP},
};

use super::{course::Course, orders::Orders};
use crate::{
    check::Weight,
    config::model::{Forwarding, Protocol, QuicServerId, RealServer, Scheduler, SorryServer, VirtualServer},
    dataplane::{
        plan::{DesiredReal, DesiredService, Endpoint, NextHop},
        turns::Turns,
    },
};

pub struct ServiceState {
    pub config: VirtualServer,
    pub key: Endpoint,
    pub reals: Vec<RealState>,
    has_quorum: bool,
}

pub struct RealState {
    pub config: RealServer,
    /// One for each of the real's checks.
    pub checks: Vec<CheckState>,
    /// The weight that an operator ordered: it holds over the configuration's and the checks'.
    pub ordered: Option<u16>,
    pub course: Course,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CheckState {
    pub up: bool,
    /// What the check last said of the weight.
    pub weight: Option<Weight>,
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

impl ServiceState {
    /// `was_up` is where an earlier daemon left a real server; `None`: it did not know it.
    pub fn new(
        config: VirtualServer,
        orders: &Orders,
        was_up: impl Fn(&Endpoint, &RealServer) -> Option<bool>,
    ) -> Self {
        let key = key(&config);
        let name = name(&config);
        let real = |real: &RealServer| {
            let ordered = orders.weight(&name, &real_name(real));
            RealState::new(real.clone(), ordered, was_up(&key, real))
        };
        let reals = config.reals.iter().map(real).collect();
        let mut service = Self { config, key, reals, has_quorum: false };
        service.settle_quorum();
        service
    }

    /// As operators call it.
    pub fn name(&self) -> String {
        name(&self.config)
    }

    pub fn protocol(&self) -> &'static str {
        protocol(&self.config)
    }

    pub fn has_quorum(&self) -> bool {
        self.has_quorum
    }

    /// Total weight of the real servers that are up: what the quorum asks for.
    pub fn weight(&self) -> u32 {
        self.reals.iter().map(|real| u32::from(real.effective_weight())).sum()
    }

    /// Counts again; true: the quorum was gained or lost.
    pub fn settle_quorum(&mut self) -> bool {
        let (sum, quorum) = (self.weight(), self.config.quorum);
        let had = self.has_quorum;
        self.has_quorum = match had {
            true => sum > 0 && sum >= quorum.weight.saturating_sub(quorum.hysteresis),
            false => sum >= quorum.weight.saturating_add(quorum.hysteresis),
        };
        self.has_quorum != had
    }

    /// Goes on where the same service of the configuration before was, as to its quorum and to what time changes.
    pub fn succeed(&mut self, before: &Self) {
        let courses: HashMap<_, _> = before.reals.iter().map(|real| (real.place(), real.course)).collect();
        for real in &mut self.reals {
            // A real server that is new to a service has been up nowhere yet.
            real.course = courses.get(&real.place()).copied().unwrap_or(Course::Down);
        }
        self.has_quorum = before.has_quorum;
        self.settle_quorum();
    }

    /// The sorry server, while it stands for the real servers. It does not while nobody knows where its frames
    /// would go: then a few living real servers are better than none.
    pub fn sorry(&self, next_hop: impl Fn(IpAddr) -> Option<NextHop>) -> Option<&SorryServer> {
        self.config
            .sorry
            .as_ref()
            .filter(|sorry| !self.has_quorum && way(sorry.forwarding, next_hop(sorry.address)).is_some())
    }

    /// What time changes, up to now. False: nothing that packets would meet.
    pub fn advance(&mut self, now: Instant) -> bool {
        let mut changed = false;
        for real in &mut self.reals {
            let weight = real.effective_weight();
            let was = (real.course.part_of(weight), real.course.is_over());
            real.course = real.course.advance(real.standing(), real.config.pace, now);
            changed |= was != (real.course.part_of(weight), real.course.is_over());
        }
        changed
    }

    /// Whether time may change something.
    pub fn is_moving(&self) -> bool {
        self.reals.iter().any(|real| real.course.is_moving(real.config.pace))
    }

    pub fn desired(&self, next_hop: impl Fn(IpAddr) -> Option<NextHop>) -> DesiredService {
        let sorry = self.sorry(&next_hop).is_some();
        let reals = self.reals.iter().map(|real| DesiredReal {
            address: real.config.address,
            port: real.config.port,
            weight: if sorry { 0 } else { real.course.part_of(real.effective_weight()) },
            // Nothing is counted of what is not remembered.
            limit: real.config.limit.filter(|_| !self.config.one_packet),
            alive: real.standing() != Standing::Down && !real.course.is_over(),
            // A drain was given its time; a check may succeed again in a moment.
            resets: self.config.resets_dead || real.course.is_over(),
            server_id: real.config.server_id.map(QuicServerId::padded),
            forwarding: real.config.forwarding,
            next_hop: way(real.config.forwarding, next_hop(real.config.address)),
        });
        let last = self.config.sorry.iter().map(|it| DesiredReal {
            address: it.address,
            port: it.port,
            weight: sorry.into(),
            limit: None,
            // keepalived's rule: without sorry_server_inhibit it leaves with its connections.
            alive: sorry || it.inhibit,
            resets: true,
            server_id: None,
            forwarding: it.forwarding,
            next_hop: way(it.forwarding, next_hop(it.address)),
        });
        DesiredService {
            key: self.key,
            hash: hash(&self.config),
            persistence: self.config.persistence,
            connection_ids: self.config.connection_ids,
            turns: turns(&self.config),
            one_packet: self.config.one_packet,
            reals: reals.chain(last).collect(),
        }
    }
}

impl RealState {
    fn new(config: RealServer, ordered: Option<u16>, was_up: Option<bool>) -> Self {
        let check =
            |alpha: bool| CheckState { up: was_up.unwrap_or(!alpha), weight: None, error: None, ran: false };
        let checks = config.checks.iter().map(|config| check(config.alpha)).collect();
        Self { config, checks, ordered, course: Course::New }
    }

    /// As operators call it.
    pub fn name(&self) -> String {
        real_name(&self.config)
    }

    fn place(&self) -> (IpAddr, u16) {
        (self.config.address, self.config.port)
    }

    /// All checks succeed, or there are none.
    pub fn is_up(&self) -> bool {
        self.checks.iter().all(|check| check.up)
    }

    pub fn effective_weight(&self) -> u16 {
        if self.is_up() { self.weight() } else { 0 }
    }

    /// keepalived's rule: each check that says a weight adds its difference to the configured one. An order stands
    /// above them.
    fn weight(&self) -> u16 {
        if let Some(ordered) = self.ordered {
            return ordered;
        }
        let configured = i64::from(self.config.weight);
        let said = self.checks.iter().filter_map(|check| check.weight);
        let change = |weight| match weight {
            Weight::To(weight) => i64::from(weight) - configured,
            Weight::By(change) => change,
        };
        let sum = said.map(change).fold(configured, i64::saturating_add);
        u16::try_from(sum.max(0)).unwrap_or(u16::MAX)
    }

    pub fn standing(&self) -> Standing {
        match (self.is_up(), self.weight()) {
            (true, 0) => Standing::Draining,
            (true, _) => Standing::Up,
            (false, _) if self.config.inhibit_on_failure => Standing::Draining,
            (false, _) => Standing::Down,
        }
    }
}

/// A tunnel also needs an address to come from.
fn way(forwarding: Forwarding, hop: Option<NextHop>) -> Option<NextHop> {
    hop.filter(|hop| forwarding == Forwarding::Direct || hop.source.is_some() || hop.is_local())
}

fn key(service: &VirtualServer) -> Endpoint {
    Endpoint {
        address: service.address,
        port: service.port,
        protocol: match service.protocol {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
        },
    }
}

fn name(service: &VirtualServer) -> String {
    format!("{}:{}", protocol(service), SocketAddr::new(service.address, service.port))
}

fn real_name(real: &RealServer) -> String {
    SocketAddr::new(real.address, real.port).to_string()
}

fn protocol(service: &VirtualServer) -> &'static str {
    match service.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

fn hash(service: &VirtualServer) -> u8 {
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

fn turns(service: &VirtualServer) -> Option<Turns> {
    match service.scheduler {
        // Nothing is counted of what is not remembered.
        Scheduler::Ovf if service.one_packet => Some(Turns::Failover),
        Scheduler::Lc
        | Scheduler::Wlc
        | Scheduler::Lblc
        | Scheduler::Lblcr
        | Scheduler::Sed
        | Scheduler::Nq
        | Scheduler::Twos
            if service.one_packet =>
        {
            None
        }
        Scheduler::Mh | Scheduler::Sh | Scheduler::Dh => {
            let limited = service.reals.iter().any(|real| real.limit.is_some());
            (limited && !service.one_packet).then_some(Turns::Hashed)
        }
        Scheduler::Rr => Some(Turns::RoundRobin),
        Scheduler::Wrr => Some(Turns::WeightedRoundRobin),
        Scheduler::Lc => Some(Turns::LeastConnections),
        // A virtual server has one address: nothing for lblc and lblcr to tell caches by.
        Scheduler::Wlc | Scheduler::Lblc | Scheduler::Lblcr => Some(Turns::WeightedLeastConnections),
        Scheduler::Sed => Some(Turns::ShortestExpectedDelay),
        Scheduler::Nq => Some(Turns::NeverQueue),
        Scheduler::Fo => Some(Turns::Failover),
        Scheduler::Ovf => Some(Turns::Overflow),
        Scheduler::Twos => Some(Turns::TwoChoices),
    }
}
