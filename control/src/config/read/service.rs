//! What a virtual_server says.

use std::{
    collections::{BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use super::{
    Item, Items, Reader,
    check::Checked,
    quic::server_id,
    value,
    value::{Value, Wrong},
};
use crate::config::{
    diagnostic::{Class, Report},
    keywords::Block,
    model::{
        Family, Forwarding, Limit, Pace, Persistence, Protocol, Quorum, RealServer, Scheduler, SorryServer,
        Timeouts, VirtualServer,
    },
    room::push,
    source::Span,
};

/// What telling services apart takes of one, in a table that may have grown just now.
const KNOWN: usize = 4 * size_of::<((IpAddr, u16, Protocol), Span)>();

/// What telling real servers apart takes of one.
const NAMED: usize = size_of::<((IpAddr, u16), &Span)>() + size_of::<Span>();

const DAY: Duration = Duration::from_secs(86_400);

/// Where persistence is asked for and no time is said.
const DEFAULT_PERSISTENCE: Duration = Duration::from_secs(360);

/// The flow table's clock has 16 bits of one to two seconds.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(12 * 3600);

/// Settings of the checks that a block hands to the blocks in it.
#[derive(Clone, Default)]
pub(super) struct Inherited {
    pub delay_loop: Option<Duration>,
    pub connect_timeout: Option<Duration>,
    pub retry: Option<u32>,
    pub delay_before_retry: Option<Duration>,
    pub warmup: Option<Duration>,
    pub virtualhost: Option<String>,
    pub alpha: Option<bool>,
    pub check_vip: Option<bool>,
}

/// What a virtual_server hands to its real servers.
struct Outer {
    endpoint: Option<(IpAddr, u16)>,
    ha_suspend: bool,
    /// `ops`, as far as it has an effect.
    one_packet: bool,
    forwarding: Option<Forwarding>,
    weight: u16,
    inhibit_on_failure: bool,
    pace: Pace,
    inherited: Inherited,
}

impl Reader<'_> {
    /// One for each address of a group.
    pub fn services(&mut self, item: Item<'_>) -> Vec<VirtualServer> {
        let span = item.statement.span();
        let arguments = item.statement.arguments();
        let mut endpoints: VecDeque<_> = match arguments.as_slice() {
            [kind, name, extra @ ..] if kind.text == "group" => {
                self.extra(item, extra);
                self.group_endpoints(name).unwrap_or_default().into_iter().map(Some).collect()
            }
            _ => [self.service_endpoint(item)].into(),
        };
        // Without one, and once for all of them, it is read for its own mistakes.
        let first = endpoints.pop_front().flatten();
        let mut read: Vec<_> = self.service(item, first).into_iter().collect();
        for endpoint in endpoints {
            if self.room.is_full() {
                break;
            }
            self.room.repeat(item.statement.length());
            let told = self.reports.mark();
            read.extend(self.service(item, endpoint));
            self.reports.forget_since(told);
        }
        for service in &read {
            let (address, port) = (service.address, service.port);
            if let Some(first) = self.services.insert((address, port, service.protocol), span) {
                let message = format!("a second virtual_server {address} {port} of this protocol");
                self.reports.push(Report::error(Class::Duplicate, span, message).first(first));
            }
        }
        read
    }

    fn service(&mut self, item: Item<'_>, endpoint: Option<(IpAddr, u16)>) -> Option<VirtualServer> {
        let items = self.items(Block::VirtualServer, item.body());
        let protocol = self.protocol(&items, item);
        let scheduler = self.scheduler(&items);
        let hash_port = self.hash_port(&items, scheduler);
        let one_packet = self.one_packet(&items, protocol);
        let forwarding = self.forwarding(&items, item);
        let resets_dead = self.resets_dead(&items, protocol);
        let outer = Outer {
            endpoint,
            ha_suspend: self.flag(&items, "ha_suspend"),
            one_packet: one_packet && items.span("persistence_timeout").is_none(),
            forwarding,
            weight: self.one(&items, "weight", value::weight).unwrap_or(1),
            inhibit_on_failure: self.flag(&items, "inhibit_on_failure"),
            pace: self.pace(&items, Pace::default()),
            inherited: Inherited {
                alpha: Some(self.flag(&items, "alpha")),
                check_vip: self.switch(&items, "check_vip"),
                ..self.inherited(&items, &Inherited::default(), 1)
            },
        };
        let reals = self.reals(&items, item, &outer);
        if let (Some(span), Some(true)) = (items.span("check_vip"), outer.inherited.check_vip) {
            self.check_vip_with([endpoint.map(|(address, _)| address), None], span);
        }
        if let Some(span) = items.span("check_vip")
            && !reals.is_empty()
            && reals.iter().all(|real| real.forwarding == Forwarding::Nat)
        {
            self.check_vip_with_nat(span);
        }
        let connection_ids = self.connection_ids(&items, protocol, one_packet);
        let sorry = self.sorry(&items, &outer, &reals);
        let family = endpoint.map(|(address, _)| Family::of(address));
        let persistence = self.persistence(&items, family).or_else(|| {
            let is_needed = endpoint.is_some_and(|(_, port)| port == 0);
            is_needed.then(|| self.forced_persistence(item, family))
        });
        let quorum = self.quorum(&items, &reals);
        let notify = self.up_down(&items, ["quorum_up", "quorum_down"]);
        let omega = self.flag(&items, "omega");
        let ((address, port), protocol, forwarding) = (endpoint?, protocol?, forwarding?);
        if !self.fits(size_of::<VirtualServer>() + KNOWN, item.statement.word().span) {
            return None;
        }
        Some(VirtualServer {
            address,
            port,
            protocol,
            scheduler,
            one_packet: one_packet && persistence.is_none(),
            hash_port,
            forwarding,
            resets_dead,
            persistence,
            connection_ids,
            quorum,
            sorry,
            notify,
            omega,
            reals,
        })
    }

    fn service_endpoint(&mut self, item: Item<'_>) -> Option<(IpAddr, u16)> {
        let span = item.statement.span();
        match item.statement.arguments().as_slice() {
            [] => {
                self.error(Class::Missing, span, "virtual_server without an address and a port");
                None
            }
            [kind] if kind.text == "group" => {
                self.error(Class::Missing, span, "virtual_server group without a name");
                None
            }
            [kind, ..] if kind.text == "fwmark" => {
                let message = "fwmark: XDP sees packets before any firewall could have marked them";
                let report = Report::error(Class::Unsupported, span, message);
                self.reports.push(report.help("name the addresses in a virtual_server_group"));
                None
            }
            [address] => Some((self.word("virtual_server", address, server)?, 0)),
            [address, port, extra @ ..] => {
                self.extra(item, extra);
                let address = self.word("virtual_server", address, server);
                let port = self.word("virtual_server", port, value::service_port);
                Some((address?, port?))
            }
        }
    }

    fn protocol(&mut self, items: &Items<'_>, item: Item<'_>) -> Option<Protocol> {
        if items.lacks("protocol") {
            let message = "virtual_server without protocol: keepalived would take UDP";
            let report = Report::error(Class::SilentDefault, item.statement.span(), message);
            self.reports.push(report.help("write `protocol TCP` or `protocol UDP`"));
        }
        let choices = [("TCP", Some(Protocol::Tcp)), ("UDP", Some(Protocol::Udp)), ("SCTP", None)];
        self.one(items, "protocol", |word| {
            // keepalived takes either case here, unlike in lvs_method.
            value::choice(&choices)(&word.to_ascii_uppercase())?
                .ok_or_else(|| Wrong::unsupported("SCTP is not supported yet"))
        })
    }

    fn scheduler(&mut self, items: &Items<'_>) -> Scheduler {
        let read = self.one(items, "lvs_sched", value::choice(&Scheduler::WORDS));
        let scheduler = read.unwrap_or_default();
        if let (Scheduler::Lblc | Scheduler::Lblcr, Some(span)) = (scheduler, items.span("lvs_sched")) {
            let message = format!(
                "lvs_sched {} runs as wlc: a virtual server has one address, so there is nothing to tell caches by",
                scheduler.word()
            );
            self.warn(Class::Unsupported, span, message);
        }
        scheduler
    }

    /// `tcp N tcpfin N udp N`, any of them.
    pub fn timeouts(&mut self, items: &Items<'_>) -> Timeouts {
        let mut timeouts = Timeouts::default();
        let Some(item) = items.last("lvs_timeouts") else { return timeouts };
        if item.statement.arguments().is_empty() {
            self.error(Class::BadValue, item.statement.word().span, "lvs_timeouts needs a value");
        }
        for pair in item.statement.arguments().chunks(2) {
            let [name, rest @ ..] = pair else { continue };
            type Field = fn(&mut Timeouts) -> &mut Duration;
            let fields: [(&str, Field); 3] =
                [("tcp", |t| &mut t.tcp), ("tcpfin", |t| &mut t.tcp_fin), ("udp", |t| &mut t.udp)];
            let Some(field) = self.word("lvs_timeouts", name, value::choice(&fields)) else {
                return timeouts;
            };
            let [seconds] = rest else {
                self.error(Class::BadValue, name.span, format!("lvs_timeouts: {} needs a value", name.text));
                return timeouts;
            };
            let Some(time) = self.word("lvs_timeouts", seconds, timeout) else { continue };
            if time > LONGEST_TIMEOUT {
                let message = "more than 43200 seconds (12 hours): lvsd remembers a silent flow no longer";
                self.warn(Class::Unsupported, seconds.span, message);
            }
            // As ipvsadm has it, 0 leaves the default.
            if !time.is_zero() {
                *field(&mut timeouts) = time.min(LONGEST_TIMEOUT);
            }
        }
        timeouts
    }

    fn hash_port(&mut self, items: &Items<'_>, scheduler: Scheduler) -> bool {
        let by_source = matches!(scheduler, Scheduler::Mh | Scheduler::Sh);
        let mut hash_port = self.flag(items, "flag-2");
        if let (true, false, Some(span)) = (hash_port, by_source, items.span("flag-2")) {
            self.warn(Class::Conflict, span, "flag-2 has no effect without lvs_sched mh or sh");
        }
        for (word, needs, name) in [("mh-port", Scheduler::Mh, "mh"), ("sh-port", Scheduler::Sh, "sh")] {
            let (true, Some(span)) = (self.flag(items, word), items.span(word)) else { continue };
            if scheduler != needs {
                self.warn(Class::Conflict, span, format!("{word} has no effect without lvs_sched {name}"));
                continue;
            }
            hash_port = true;
            if items.span("lvs_sched").is_some_and(|sched| sched.start > span.start) {
                let message = format!("keepalived does not read {word} before lvs_sched; lvsd does");
                self.warn(Class::Trap, span, message);
            }
        }
        hash_port
    }

    /// What a service of all ports has at least: whoever uses several of them, as FTP does, is to stay together.
    fn forced_persistence(&mut self, item: Item<'_>, family: Option<Family>) -> Persistence {
        let seconds = DEFAULT_PERSISTENCE.as_secs();
        let message = format!(
            "virtual_server without a port: its clients are persistent for {seconds} s, as in keepalived"
        );
        let report = Report::warning(Class::SilentDefault, item.statement.span(), message);
        self.reports.push(report.help(format!("write `persistence_timeout {seconds}` if that is meant")));
        Persistence { timeout: DEFAULT_PERSISTENCE, prefix_len: family.unwrap_or(Family::V6).bits() }
    }

    fn one_packet(&mut self, items: &Items<'_>, protocol: Option<Protocol>) -> bool {
        let ops = self.flag(items, "ops");
        if let (true, Some(span)) = (ops, items.span("ops")) {
            if protocol == Some(Protocol::Tcp) {
                self.warn(Class::Conflict, span, "ops has no effect with TCP, as in keepalived");
            } else if items.span("persistence_timeout").is_some() {
                self.warn(
                    Class::Conflict,
                    span,
                    "ops has no effect with persistence: a client's packets go together",
                );
            }
        }
        ops && protocol == Some(Protocol::Udp)
    }

    fn resets_dead(&mut self, items: &Items<'_>, protocol: Option<Protocol>) -> bool {
        let choices = [("silence", false), ("reset", true)];
        let resets = self.one(items, "dead_connections", value::choice(&choices)).unwrap_or(false);
        if let (true, Some(Protocol::Udp), Some(span)) = (resets, protocol, items.span("dead_connections")) {
            self.warn(
                Class::Conflict,
                span,
                "dead_connections has no effect with UDP, which goes on elsewhere at once",
            );
        }
        resets
    }

    /// `family`: where it is known.
    fn persistence(&mut self, items: &Items<'_>, family: Option<Family>) -> Option<Persistence> {
        const MONTH: u32 = 31 * 86_400;
        let bits = family.unwrap_or(Family::V6).bits();
        let prefix_len = self.one(items, "persistence_granularity", granularity(bits));
        let seconds = |word: &str| value::number(1..=MONTH)(word);
        let timeout = match items.last("persistence_timeout") {
            None => prefix_len.map(|_| DEFAULT_PERSISTENCE),
            Some(item) if item.statement.arguments().is_empty() => Some(DEFAULT_PERSISTENCE),
            Some(_) => self
                .one(items, "persistence_timeout", seconds)
                .map(|seconds| Duration::from_secs(seconds.into())),
        }?;
        if timeout > LONGEST_TIMEOUT
            && let Some(span) = items.span("persistence_timeout")
        {
            let message = "more than 43200 seconds (12 hours): lvsd remembers a silent client no longer";
            self.warn(Class::Unsupported, span, message);
        }
        Some(Persistence { timeout: timeout.min(LONGEST_TIMEOUT), prefix_len: prefix_len.unwrap_or(bits) })
    }

    fn forwarding(&mut self, items: &Items<'_>, item: Item<'_>) -> Option<Forwarding> {
        if !items.lacks("lvs_method") {
            return self.method(items, "lvs_method");
        }
        let has_own =
            |real: Item<'_>| real.body().any(|it| ["lvs_method", "lb_kind"].contains(&it.word().text));
        if !items.all("real_server").all(has_own) {
            let message = "virtual_server without lvs_method: NAT, as in keepalived";
            let report = Report::warning(Class::SilentDefault, item.statement.span(), message);
            self.reports.push(report.help("write `lvs_method NAT` if that is meant"));
        }
        Some(Forwarding::Nat)
    }

    pub(super) fn inherited(&mut self, items: &Items<'_>, outer: &Inherited, least_retry: u32) -> Inherited {
        let above_zero = Duration::from_millis(1)..=DAY;
        let any = Duration::ZERO..=DAY;
        let retry = |word: &str| {
            let retry = value::number(0..=1_000_000)(word)?;
            let wrong =
                || Wrong::new("0 is only read in a checker, keepalived takes 1 here").class(Class::RetryZero);
            if retry >= least_retry {
                Ok(retry)
            } else {
                Err(wrong().help("write `retry 0` in each checker"))
            }
        };
        let outer = outer.clone();
        Inherited {
            delay_loop: self
                .one(items, "delay_loop", value::seconds(above_zero.clone()))
                .or(outer.delay_loop),
            connect_timeout: self
                .one(items, "connect_timeout", value::seconds(above_zero))
                .or(outer.connect_timeout),
            retry: self.one(items, "retry", retry).or(outer.retry),
            delay_before_retry: self
                .one(items, "delay_before_retry", value::seconds(any.clone()))
                .or(outer.delay_before_retry),
            warmup: self.one(items, "warmup", value::seconds(any)).or(outer.warmup),
            virtualhost: self.one(items, "virtualhost", value::text).or(outer.virtualhost),
            alpha: outer.alpha,
            check_vip: outer.check_vip,
        }
    }

    fn sorry(&mut self, items: &Items<'_>, outer: &Outer, reals: &[RealServer]) -> Option<SorryServer> {
        let forwarding = self.method(items, "sorry_server_lvs_method").or(outer.forwarding);
        let inhibit = self.flag(items, "sorry_server_inhibit");
        let Some(item) = items.last("sorry_server") else {
            let lonely = ["sorry_server_inhibit", "sorry_server_lvs_method"];
            if items.lacks("sorry_server")
                && let Some((word, span)) =
                    lonely.into_iter().find_map(|word| Some((word, items.span(word)?)))
            {
                self.warn(Class::Conflict, span, format!("{word} has no effect without sorry_server"));
            }
            return None;
        };
        let forwarding = forwarding?;
        let (address, port) = self.destination(item, outer.endpoint, Some(forwarding))?;
        let span = item.statement.span();
        if reals.iter().any(|real| (real.address, real.port) == (address, port)) {
            let message = format!("sorry_server {address} is a real_server of the same service");
            self.error(Class::Conflict, span, message);
            return None;
        }
        Some(SorryServer { address, port, forwarding, inhibit })
    }

    /// keepalived lowers what can never be reached, and so does lvsd; here it is said.
    fn quorum(&mut self, items: &Items<'_>, reals: &[RealServer]) -> Quorum {
        const MOST: u32 = 1 << 26; // As many real servers of weight 65535 as a service may have.
        let Quorum { mut weight, mut hysteresis } = Quorum::default();
        weight = self.one(items, "quorum", value::number(1..=MOST)).unwrap_or(weight);
        hysteresis = self.one(items, "hysteresis", value::number(0..=MOST)).unwrap_or(hysteresis);
        let total = reals.iter().fold(0, |sum: u32, real| sum.saturating_add(real.weight.into()));
        if let Some(span) = items.span("quorum")
            && weight > total
            && total > 0
        {
            let message = format!("quorum {weight} is read as {total}, the weight of all real servers");
            self.warn(Class::QuorumLowered, span, message);
            weight = total;
        }
        if let Some(span) = items.span("hysteresis") {
            if hysteresis >= weight {
                let most = weight - 1;
                self.warn(
                    Class::QuorumLowered,
                    span,
                    format!("hysteresis {hysteresis} is read as {most}, below quorum"),
                );
                hysteresis = most;
            }
            if hysteresis > 0 && weight + hysteresis > total {
                let message = format!(
                    "quorum + hysteresis is {}, the real servers weigh {total}: the quorum is never gained",
                    weight + hysteresis
                );
                self.warn(Class::QuorumLowered, span, message);
            }
        }
        Quorum { weight, hysteresis }
    }

    fn reals(&mut self, items: &Items<'_>, item: Item<'_>, outer: &Outer) -> Vec<RealServer> {
        let mut reals = Vec::new();
        let mut spans = Vec::new();
        for real in items.all("real_server") {
            let Some(read) = self.real(real, outer) else { continue };
            push(&mut reals, read);
            push(&mut spans, real.statement.span());
        }
        self.no_real_is_named_twice(&reals, &spans);
        if items.lacks("real_server") {
            self.error(Class::Missing, item.statement.span(), "virtual_server without a real_server");
        } else if !reals.is_empty() && reals.iter().all(|real| real.weight == 0) {
            let message = "every real_server has weight 0: the service takes no new connection";
            self.warn(Class::Trap, item.statement.span(), message);
        }
        reals
    }

    fn no_real_is_named_twice(&mut self, reals: &[RealServer], spans: &[Span]) {
        let mut named: Vec<_> = reals.iter().map(|real| (real.address, real.port)).zip(spans).collect();
        named.sort_unstable();
        for same in named.chunk_by(|(one, _), (next, _)| one == next) {
            let [((address, port), first), others @ ..] = same else { continue };
            for (_, again) in others {
                let message = format!("a second real_server {address} {port}");
                self.reports.push(Report::error(Class::Duplicate, **again, message).first(**first));
            }
        }
    }

    fn real(&mut self, item: Item<'_>, outer: &Outer) -> Option<RealServer> {
        let items = self.items(Block::RealServer, item.body());
        let forwarding = self.method(&items, "lvs_method").or(outer.forwarding);
        let endpoint = self.destination(item, outer.endpoint, forwarding);
        let weight = self.one(&items, "weight", value::weight).unwrap_or(outer.weight);
        let inhibit_on_failure =
            self.switch(&items, "inhibit_on_failure").unwrap_or(outer.inhibit_on_failure);
        let pace = self.pace(&items, outer.pace);
        if let (1, Some(span)) = (weight, items.span("slow_start")) {
            let message = "slow_start has no effect with weight 1, which has no steps";
            let report = Report::warning(Class::Conflict, span, message);
            self.reports.push(report.help("multiply the weights of all real servers by 10"));
        }
        let inherited = Inherited {
            alpha: self.switch(&items, "alpha").or(outer.inherited.alpha),
            check_vip: self.switch(&items, "check_vip").or(outer.inherited.check_vip),
            ..self.inherited(&items, &outer.inherited, 1)
        };
        // The checks are read even without an address, for their own mistakes.
        let (address, port) = endpoint.unwrap_or((Ipv4Addr::UNSPECIFIED.into(), 0));
        // Where all ports are served, the written one is for checks alone.
        let written = || item.statement.arguments().get(1).and_then(|port| port.text.parse().ok());
        let asked = if port == 0 { written().unwrap_or(0) } else { port };
        let vip = outer.endpoint.map(|(address, _)| address);
        if inherited.check_vip == Some(true) {
            // That of the service has been told of its own address.
            match items.span("check_vip") {
                Some(span) => self.check_vip_with([vip, Some(address)], span),
                None if vip.is_none_or(|vip| vip.is_ipv4()) => {
                    self.check_vip_with([None, Some(address)], item.statement.span());
                }
                None => {}
            }
        }
        let checked = Checked { address, port: asked, vip, forwarding, ha_suspend: outer.ha_suspend };
        let checks = self.checks(&items, &checked, &inherited);
        if let (Some(span), Some(Forwarding::Nat)) = (items.span("check_vip"), forwarding) {
            self.check_vip_with_nat(span);
        }
        endpoint?;
        let notify = self.up_down(&items, ["notify_up", "notify_down"]);
        let limit = self.limit(&items, outer.one_packet);
        if !self.fits(size_of::<RealServer>() + NAMED, item.statement.word().span) {
            return None;
        }
        Some(RealServer {
            address,
            port,
            forwarding: forwarding?,
            weight,
            inhibit_on_failure,
            limit,
            pace,
            server_id: self.one(&items, "quic_server_id", server_id),
            notify,
            checks,
        })
    }

    fn limit(&mut self, items: &Items<'_>, one_packet: bool) -> Option<Limit> {
        let upper = self.one(items, "uthreshold", value::number(0..=u32::MAX)).unwrap_or(0);
        let lower = self.one(items, "lthreshold", value::number(0..=u32::MAX)).unwrap_or(0);
        if let Some(span) =
            items.span("lthreshold").filter(|_| lower > upper && (upper > 0 || items.lacks("uthreshold")))
        {
            let message = format!("lthreshold {lower} is above uthreshold {upper}: IPVS refuses that");
            self.error(Class::Conflict, span, message);
        }
        if let (Some(span), true) = (items.span("uthreshold"), one_packet) {
            self.warn(
                Class::Conflict,
                span,
                "uthreshold has no effect with ops: nobody counts what is not remembered",
            );
        }
        // ip_vs_unbind_dest: without a lower threshold it is three quarters of the upper one.
        let lower = if lower == 0 { upper - upper / 4 } else { lower };
        (upper > 0).then_some(Limit { upper, lower })
    }

    fn pace(&mut self, items: &Items<'_>, outer: Pace) -> Pace {
        let slow_start = self.one(items, "slow_start", value::seconds(Duration::ZERO..=DAY));
        let drain_timeout = self.one(items, "drain_timeout", value::seconds(Duration::ZERO..=DAY));
        Pace {
            slow_start: slow_start.unwrap_or(outer.slow_start),
            drain_timeout: drain_timeout.or(outer.drain_timeout),
        }
    }

    /// DR and TUN leave the packet as it is: its port is the service's. With NAT it is where nothing is said. `forwarding`:
    /// None where it could not be read, which is an error already: port and family need not be another.
    fn destination(
        &mut self,
        item: Item<'_>,
        service: Option<(IpAddr, u16)>,
        forwarding: Option<Forwarding>,
    ) -> Option<(IpAddr, u16)> {
        let name = item.keyword.word;
        let arguments = item.statement.arguments();
        let (address, port) = match arguments.as_slice() {
            [] => {
                self.error(Class::Missing, item.statement.span(), format!("{name} without an address"));
                return None;
            }
            [address] => (address, None),
            [address, port, extra @ ..] => {
                self.extra(item, extra);
                (address, Some(port))
            }
        };
        let place = address.span;
        let address = self.word(name, address, server);
        if let (Some(address), Some((service, _)), Some(forwarding)) = (address, service, forwarding) {
            self.families_fit(name, (address, place), service, forwarding)?;
        }
        let service_port = service.map(|(_, port)| port);
        let any = |word: &str| value::number(0..=65535)(word);
        let written = port.and_then(|port| Some((self.word(name, port, any)?, port.span)));
        // As in IPVS, by NAT too.
        if service_port == Some(0) {
            return Some((address?, 0));
        }
        let is_this_node = address.is_some_and(|address| address.is_loopback());
        if let Some((written, _)) = written
            && written != 0
            && forwarding.is_none_or(|forwarding| forwarding == Forwarding::Nat)
            && !is_this_node
        {
            return Some((address?, u16::try_from(written).ok()?));
        }
        if let (Some((written, span)), Some(service)) = (written, service_port)
            && written != 0
            && written != u32::from(service)
        {
            let way = if is_this_node { "to this node itself" } else { "with DR and TUN" };
            let message = format!("port {written} is not used: {way} a packet keeps its port, {service}");
            let report = Report::warning(Class::PortIgnored, span, message);
            self.reports.push(report.help("checks go to the same port unless connect_port says otherwise"));
        }
        Some((address?, service_port?))
    }

    fn families_fit(
        &mut self,
        name: &str,
        (address, span): (IpAddr, Span),
        service: IpAddr,
        forwarding: Forwarding,
    ) -> Option<()> {
        let method = forwarding.word();
        let [own, wanted] = [address, service].map(Family::of);
        if own != wanted && !matches!(forwarding, Forwarding::Tunnel(_)) {
            let message =
                format!("{name}: {address} behind a service of {wanted}: {method} keeps the family");
            let report = Report::error(Class::MixedFamilies, span, message);
            self.reports
                .push(report.help("write `lvs_method TUN`: a tunnel leads from one family to the other"));
        } else if own == Family::V6 && forwarding == Forwarding::Nat {
            self.error(Class::Unsupported, span, format!("{name}: {method} is not supported for IPv6 yet"));
        } else {
            return Some(());
        }
        None
    }

    /// Without any vrrp_instance something else answers for the addresses.
    pub fn every_service_has_an_instance(&mut self, services: &[VirtualServer], spans: &[Span]) {
        if self.vips.is_empty() {
            return;
        }
        // Those of a group are one statement.
        let mut services = services.iter();
        for same in spans.chunk_by(|one, next| one == next) {
            let addresses = services.by_ref().take(same.len()).map(|service| service.address);
            let absent: BTreeSet<_> = addresses.filter(|it| !self.vips.contains_key(it)).collect();
            let Some(span) = same.first().filter(|_| !absent.is_empty()) else { continue };
            const NAMED: usize = 3;
            let mut names = absent.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
            if absent.len() > NAMED {
                names += &format!(" and {} more", absent.len() - NAMED);
            }
            let them = if absent.len() == 1 { "it" } else { "them" };
            let message = format!("no vrrp_instance has {names}: lvsd does not answer for {them}");
            self.warn(Class::Missing, *span, message);
        }
    }
}

fn timeout(word: &str) -> Value<Duration> {
    const MONTH: u32 = 31 * 86_400;
    value::number(0..=MONTH)(word).map(|seconds| Duration::from_secs(seconds.into()))
}

/// A netmask, or how many bits it has.
fn granularity(most: u8) -> impl Fn(&str) -> Value<u8> {
    move |word| {
        let Ok(mask) = word.parse::<Ipv4Addr>() else {
            return value::number(1..=most.into())(word).and_then(|bits| Ok(u8::try_from(bits)?));
        };
        let mask = u32::from(mask);
        if mask == 0 || mask.leading_ones() + mask.trailing_zeros() != 32 {
            let wrong = Wrong::new(format!("{word} is no netmask"));
            return Err(wrong.help("write one like 255.255.255.0, or 24"));
        }
        Ok(mask.leading_ones() as u8)
    }
}

/// A port that is glued to the address is the usual mistake.
pub(super) fn server(word: &str) -> Value<IpAddr> {
    match value::host(word) {
        Ok(IpAddr::V6(address)) if address.is_unicast_link_local() => {
            Err(Wrong::unsupported(format!("{address} is on every interface: not supported yet")))
        }
        Ok(address) => Ok(address),
        Err(wrong) => Err(match word.rsplit_once(':') {
            Some((address, port)) => match value::host(address.trim_matches(['[', ']'])) {
                Ok(address) => wrong.help(format!("write {address} {port}")),
                Err(_) => wrong,
            },
            None => wrong,
        }),
    }
}
