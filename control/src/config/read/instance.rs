//! What a vrrp_instance says.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use super::{
    Defaults, Item, Items, Reader, address::Addresses, down_timer_adverts, value, value::Wrong, version,
};
use crate::config::{
    diagnostic::{Class, Report, quote},
    keywords::{Block, nearest_of},
    lexer::Word,
    model::{
        Authentication, Family, OldChecksum, Preempt, Priority, TtlLimit, Version, VirtualAddress, Vrid,
        VrrpInstance,
    },
    tree::Statement,
};

impl Reader<'_> {
    pub fn instance(&mut self, item: Item<'_>, defaults: &Defaults) -> Option<VrrpInstance> {
        let items = self.items(Block::VrrpInstance, item.body());
        let name = self.name(item);
        let interface = self.required(&items, item, "interface", value::interface);
        let vrid =
            self.required(&items, item, "virtual_router_id", |word| Ok(Vrid::new(value::integer(word)?)?));
        let family = self.family(&items);
        let version = self.version(&items, family, defaults);
        let start_as_master =
            self.one(&items, "state", value::choice(&[("MASTER", true), ("BACKUP", false)]));
        let priority = self.priority(&items, start_as_master);
        let advert_interval = self.advert_interval(&items, version);
        let authentication = self.authentication(&items, version);
        let signing = self.signing(&items, advert_interval);
        let authentication = if signing.is_some() { Authentication::None } else { authentication };
        let preempt = self.preempt(&items, item, start_as_master == Some(true), priority);
        let source = self.source(&items, family);
        let needs_peers = self.flag(&items, "unicast_fault_no_peer");
        let (peers, ttl_limits) = self.peers(&items, source, family);
        let unicast_ttl = self.one(&items, "unicast_ttl", octet).unwrap_or(255);
        let multicast = self.one(&items, "mcast_dst_ip", value::group(family));
        let multicast = multicast.unwrap_or(defaults.groups.of(family));
        let Addresses { advertised, excluded } = self.addresses(&items, item, family, version);
        let rules = self.rules(&items, &defaults.rules);
        let accept = self.accept(&items, priority, rules);
        let vmac = self.vmac(&items);
        let tagged = self.flag(&items, "vlan_tagged");
        let is_elsewhere = |address: &VirtualAddress| address.device.is_some() && address.device != interface;
        let elsewhere = advertised.iter().chain(&excluded).any(is_elsewhere);
        let garp = self.instance_garp(&items, &defaults.garp, vmac, elsewhere);
        let mut notify = self.notify(&items);
        if items.last("notify_priority_changes").is_none() {
            notify.priority_changes = defaults.notify_priority_changes;
        }
        let tracks = self.tracks(&items, priority);
        let routes = self.routes(&items, "virtual_routes");
        let routing_rules = self.routing_rules(&items, "virtual_rules", family);
        let track_primary = !self.flag(&items, "dont_track_primary");
        let down_timer_adverts =
            self.one(&items, "down_timer_adverts", down_timer_adverts).unwrap_or(defaults.down_timer_adverts);
        let checksum_of_message =
            self.switch(&items, "v3_checksum_as_v2").unwrap_or(defaults.checksum_of_message);
        let old_checksum = self.old_checksum(&items);
        let heartbeats = self.heartbeats(&items, interface.as_deref());
        let (name, interface, vrid) = (name?, interface?, vrid?);
        let span = items.span("virtual_router_id").unwrap_or(item.statement.span());
        for interface in heartbeats.iter().chain([&interface]) {
            if let Some(first) = self.vrids.insert((interface.clone(), vrid.get(), family), span) {
                let message = format!("virtual_router_id {} is taken on {interface}", vrid.get());
                self.reports.push(Report::error(Class::Duplicate, span, message).first(first));
            }
        }
        let instance = VrrpInstance {
            name,
            interface,
            heartbeats,
            family,
            vrid,
            priority,
            version,
            advert_interval,
            start_as_master: start_as_master.unwrap_or(priority.is_owner()),
            source,
            peers,
            multicast,
            unicast_ttl,
            ttl_limits,
            authentication,
            signing,
            preempt: if rules.strict && preempt != Preempt::Never { Preempt::Immediate } else { preempt },
            addresses: advertised,
            excluded,
            garp,
            rules,
            accept,
            vmac,
            tagged,
            notify,
            tracks,
            routes,
            routing_rules,
            track_primary,
            down_timer_adverts,
            checksum_of_message,
            old_checksum,
            needs_peers,
        };
        self.strictly(&items, &instance);
        self.fits(2 * size_of::<VrrpInstance>(), span).then_some(instance)
    }

    fn name(&mut self, item: Item<'_>) -> Option<String> {
        let arguments = item.statement.arguments();
        let [word, extra @ ..] = arguments.as_slice() else {
            self.error(Class::Missing, item.statement.span(), "vrrp_instance without a name");
            return None;
        };
        self.extra(item, extra);
        let name = self.word("vrrp_instance", word, value::text)?;
        if let Some(first) = self.names.insert(name.clone(), word.span) {
            let message = format!("a second vrrp_instance {}: keepalived leaves it out", quote(&name));
            self.reports.push(Report::error(Class::Duplicate, word.span, message).first(first));
        }
        Some(name)
    }

    /// Version 2 knows no IPv6 (RFC 3768), so a default of 2 is not meant for it.
    fn version(&mut self, items: &Items<'_>, family: Family, defaults: &Defaults) -> Version {
        let version = self.one(items, "version", version);
        if let (Some(Version::V2), Family::V6, Some(span)) = (version, family, items.span("version")) {
            self.error(Class::Conflict, span, "VRRP version 2 has no IPv6: write `version 3`");
        }
        match family {
            Family::V4 => version.unwrap_or(defaults.version),
            Family::V6 => Version::V3,
        }
    }

    fn old_checksum(&mut self, items: &Items<'_>) -> OldChecksum {
        match items.last("old_unicast_checksum").map(|item| item.statement.arguments().len()) {
            None => OldChecksum::FoundOut,
            Some(0) => OldChecksum::Always,
            Some(_) => {
                let never = value::choice(&[("never", OldChecksum::Never)]);
                self.one(items, "old_unicast_checksum", never).unwrap_or_default()
            }
        }
    }

    fn heartbeats(&mut self, items: &Items<'_>, interface: Option<&str>) -> Vec<String> {
        const MOST: usize = 8;
        let Some(item) = items.last("heartbeat_interface") else { return Vec::new() };
        let mut heartbeats: Vec<String> = Vec::new();
        for word in &item.statement.arguments() {
            let Some(name) = self.word("heartbeat_interface", word, value::interface) else { continue };
            if Some(name.as_str()) == interface || heartbeats.contains(&name) {
                let message =
                    format!("heartbeat_interface: {name} carries the adverts of this instance already");
                self.error(Class::Duplicate, word.span, message);
            } else {
                heartbeats.push(name);
            }
        }
        if !(1..=MOST).contains(&item.statement.arguments().len()) {
            let message = format!("heartbeat_interface needs the names of 1 to {MOST} interfaces");
            self.error(Class::BadValue, item.statement.word().span, message);
        }
        heartbeats
    }

    fn priority(&mut self, items: &Items<'_>, master: Option<bool>) -> Priority {
        let read = |word: &str| Ok(Priority::new(value::integer(word)?)?);
        match (self.one(items, "priority", read), items.span("priority"), items.span("state")) {
            (Some(priority), ..) => priority,
            (None, None, Some(state)) if master == Some(true) => {
                let message = "state MASTER without priority means priority 255: the owner of the addresses";
                let report = Report::warning(Class::OwnerByDefault, state, message);
                self.reports.push(report.help("write a priority; 255 if it is meant"));
                Priority::OWNER
            }
            _ => Priority::DEFAULT,
        }
    }

    fn advert_interval(&mut self, items: &Items<'_>, version: Version) -> Duration {
        let (least, most, step) = match version {
            Version::V2 => (Duration::from_secs(1), Duration::from_secs(255), Duration::from_secs(1)),
            Version::V3 => {
                (Duration::from_millis(10), Duration::from_millis(40_950), Duration::from_millis(10))
            }
        };
        let read = |word: &str| {
            let time = value::seconds(Duration::ZERO..=Duration::from_secs(86_400))(word)
                .map_err(|wrong| wrong.class(Class::AdvertInterval))?;
            if time.as_micros().is_multiple_of(step.as_micros()) && (least..=most).contains(&time) {
                return Ok(time);
            }
            let wrong = match version {
                Version::V2 => {
                    Wrong::new(format!("VRRP version 2 counts whole seconds, 1 to 255, not {word}"))
                        .help("write `version 3` on every node to go below a second")
                }
                Version::V3 => Wrong::new(format!("VRRP version 3 counts 0.01 to 40.95 by 0.01, not {word}")),
            };
            Err(wrong.class(Class::AdvertInterval))
        };
        self.one(items, "advert_int", read).unwrap_or(Duration::from_secs(1))
    }

    fn authentication(&mut self, items: &Items<'_>, version: Version) -> Authentication {
        let Some(item) = items.last("authentication") else { return Authentication::None };
        self.extra(item, &item.statement.arguments());
        let inner = self.items(Block::Authentication, item.body());
        let is_ah = self.required(&inner, item, "auth_type", value::choice(&[("PASS", false), ("AH", true)]));
        let Some(password) = self.required(&inner, item, "auth_pass", |word| Ok(word.to_owned())) else {
            return Authentication::None;
        };
        let span = item.statement.word().span;
        if version == Version::V3 {
            let message = "VRRP version 3 has no authentication: adverts go without";
            self.warn(Class::CutPassword, span, message);
            return Authentication::None;
        }
        let mut pass = [0; 8];
        pass.iter_mut().zip(password.bytes()).for_each(|(to, from)| *to = from);
        if password.len() > pass.len() {
            let message = format!("auth_pass has {} bytes: the first 8 are used", password.len());
            self.warn(Class::CutPassword, inner.span("auth_pass").unwrap_or(span), message);
        }
        if password.is_empty() {
            self.error(Class::BadValue, inner.span("auth_pass").unwrap_or(span), "auth_pass: an empty value");
        }
        match is_ah {
            Some(true) => Authentication::Ah(pass),
            Some(false) => Authentication::Pass(pass),
            None => Authentication::None,
        }
    }

    fn preempt(&mut self, items: &Items<'_>, item: Item<'_>, master: bool, priority: Priority) -> Preempt {
        let never = self.flag(items, "nopreempt");
        let always = self.flag(items, "preempt");
        let seconds = value::seconds(Duration::ZERO..=Duration::from_secs(1000));
        let delay = self.one(items, "preempt_delay", seconds).unwrap_or_default();
        if let (true, true, Some(span)) = (never, always, items.span("preempt")) {
            let report = Report::error(Class::Conflict, span, "preempt contradicts nopreempt");
            self.reports.push(match items.span("nopreempt") {
                Some(first) => report.first(first),
                None => report,
            });
        }
        let setting = match (never, delay) {
            (true, _) => Preempt::Never,
            (false, Duration::ZERO) => Preempt::Immediate,
            (false, delay) => Preempt::After(delay),
        };
        let word = if never { "nopreempt" } else { "preempt_delay" };
        let cause = match (master, priority.is_owner() && never) {
            (true, _) => "state MASTER",
            (false, true) => "priority 255",
            (false, false) => "",
        };
        if !cause.is_empty() && setting != Preempt::Immediate {
            let span = items.span(word).unwrap_or(item.statement.span());
            let message = format!("{word} has no effect with {cause}, as in keepalived");
            let report = Report::warning(Class::PreemptIgnored, span, message);
            self.reports.push(report.help("write `state BACKUP` and a priority below 255 on every node"));
            return Preempt::Immediate;
        }
        if let (true, true, Some(span)) = (never, delay > Duration::ZERO, items.span("preempt_delay")) {
            self.warn(Class::Conflict, span, "preempt_delay has no effect with nopreempt");
        }
        setting
    }

    /// keepalived has one source address, whichever word sets it.
    fn source(&mut self, items: &Items<'_>, family: Family) -> Option<IpAddr> {
        let unicast = self.one(items, "unicast_src_ip", value::host_of(family));
        let multicast = self.one(items, "mcast_src_ip", value::host_of(family));
        let is_said = items.last("unicast_peer").or(items.last("unicast_fault_no_peer")).is_some();
        if let (Some(span), false) = (items.span("unicast_src_ip"), is_said) {
            let message = "unicast_src_ip without unicast_peer: adverts go to the multicast group";
            let report = Report::error(Class::MulticastAnyway, span, message);
            self.reports
                .push(report.help("write unicast_peer { ADDRESS }, or mcast_src_ip if multicast is meant"));
        }
        if let (Some(one), Some(other), Some(span)) = (unicast, multicast, items.span("mcast_src_ip"))
            && one != other
        {
            self.error(
                Class::Conflict,
                span,
                format!("mcast_src_ip {other} contradicts unicast_src_ip {one}"),
            );
        }
        unicast.or(multicast)
    }

    fn peers(
        &mut self,
        items: &Items<'_>,
        source: Option<IpAddr>,
        family: Family,
    ) -> (Vec<IpAddr>, Vec<TtlLimit>) {
        let mut peers = HashMap::new();
        let (mut order, mut limits) = (Vec::new(), Vec::new());
        let blocks: Vec<_> = items.all("unicast_peer").collect();
        for item in &blocks {
            self.extra(*item, &item.statement.arguments());
        }
        let entries: Vec<_> = blocks.iter().flat_map(|item| item.body()).collect();
        match (blocks.first(), items.span("unicast_fault_no_peer")) {
            _ if !entries.is_empty() => {}
            (_, Some(span)) => self.warn(Class::Missing, span, "no unicast_peer: the instance is in FAULT"),
            (Some(item), None) => {
                self.error(Class::Missing, item.statement.span(), "unicast_peer without an address");
            }
            (None, None) => {}
        }
        let alone = entries.len() == 1;
        for entry in entries {
            let address = self.word("unicast_peer", &entry.word(), value::host_of(family));
            let Some(address) = address else { continue };
            self.address_has_no_block(entry);
            let [least, most] = self.ttl_limit(&entry.arguments());
            if least.is_some() || most.is_some() {
                let (least, most) = (least.unwrap_or(0), most.unwrap_or(255));
                limits.push(TtlLimit { peer: address, least, most });
                if least > most {
                    let message = format!("min_ttl {least} is above max_ttl {most}");
                    self.error(Class::BadValue, entry.word().span, message);
                }
            }
            if source == Some(address) {
                let message = format!("unicast_peer: {address} is this node itself: not a peer");
                match alone {
                    true => self.error(Class::Conflict, entry.word().span, message),
                    // One list for all nodes is usual.
                    false => self.warn(Class::Conflict, entry.word().span, message),
                }
            } else if let Some(first) = peers.insert(address, entry.word().span) {
                let message = format!("unicast_peer: {address} is named twice");
                self.reports.push(Report::warning(Class::Duplicate, entry.word().span, message).first(first));
            } else {
                order.push(address);
            }
        }
        (order, limits)
    }

    /// `[min_ttl N] [max_ttl N]`.
    fn ttl_limit(&mut self, mut words: &[Word]) -> [Option<u8>; 2] {
        let mut limit = [None; 2];
        while let [word, rest @ ..] = words {
            let (limit, name) = match word.text {
                "min_ttl" => (&mut limit[0], "min_ttl"),
                "max_ttl" => (&mut limit[1], "max_ttl"),
                _ => {
                    self.one_entry_a_line(word, &["min_ttl", "max_ttl"]);
                    break;
                }
            };
            let [value, rest @ ..] = rest else {
                self.error(Class::BadValue, word.span, format!("{name} needs a value"));
                break;
            };
            *limit = self.word(name, value, octet);
            words = rest;
        }
        limit
    }

    pub fn address_has_no_block(&mut self, entry: Statement<'_>) {
        if entry.is_block() {
            self.error(Class::Syntax, entry.word().span, "an address takes no block");
        }
    }

    pub fn one_entry_a_line(&mut self, word: &Word, options: &[&'static str]) {
        if word.spoilt {
            return;
        }
        let report = if word.text.contains(['.', ':']) {
            let message = format!("{} needs a line of its own", quote(word.text));
            Report::error(Class::Syntax, word.span, message)
        } else {
            let near = nearest_of(options.iter().copied(), word.text);
            let suggestion = near.map_or(String::new(), |near| format!("; did you mean {}?", quote(near)));
            let message = format!("unknown word {} after an address{suggestion}", quote(word.text));
            Report::error(Class::UnknownWord, word.span, message)
        };
        self.reports.push(report);
    }
}

fn octet(word: &str) -> value::Value<u8> {
    value::number(0..=255)(word).and_then(|number| Ok(u8::try_from(number)?))
}
