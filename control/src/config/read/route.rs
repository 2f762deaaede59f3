//! What a line of virtual_routes or static_routes says, in the words of `ip route`.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Items, Reader, value, value::Wrong};
use crate::config::{
    diagnostic::{Class, Report, quote},
    lexer::Word,
    model::{RouteKind, VirtualRoute},
    room::push,
    tree::Statement,
};

const KINDS: [(&str, RouteKind); 4] = [
    ("unicast", RouteKind::Unicast),
    ("blackhole", RouteKind::Blackhole),
    ("unreachable", RouteKind::Unreachable),
    ("prohibit", RouteKind::Prohibit),
];
/// RT_TABLE_MAIN.
const MAIN: u32 = 254;
/// RT_SCOPE_LINK, RT_SCOPE_UNIVERSE.
const LINK: u8 = 253;
const UNIVERSE: u8 = 0;

/// What the kernel tells routes apart by: destination, length of its prefix, table, metric.
pub type Key = (IpAddr, u8, u32, u32);

/// Of a route and of knowing it again, in two tables that may have grown just now.
const SIZE: usize = size_of::<VirtualRoute>() + 6 * size_of::<(Key, usize)>();

impl Reader<'_> {
    /// Of all blocks of that word.
    pub(super) fn routes(&mut self, items: &Items<'_>, word: &'static str) -> Vec<VirtualRoute> {
        let mut routes: Vec<VirtualRoute> = Vec::new();
        let mut own: HashMap<Key, usize> = HashMap::new();
        for item in items.all(word) {
            self.extra(item, &item.statement.arguments());
            for entry in item.body() {
                let Some(route) = self.route(word, entry) else { continue };
                let span = entry.word().span;
                if !self.fits(SIZE, span) {
                    return routes;
                }
                let before = own.get(&key(&route)).and_then(|index| routes.get(*index));
                if before.is_some_and(|before| *before == route) {
                    self.warn(Class::Duplicate, span, format!("{word}: a route is named twice"));
                    continue;
                }
                let here = before.is_some();
                if let Some(first) = self.routes.get(&key(&route)).copied() {
                    let what = format!("{word}: {}/{} in table {}", route.to, route.prefix_len, route.table);
                    self.reports.push(if here {
                        let message = format!("{what} has a route of this metric already");
                        let report = Report::error(Class::Duplicate, span, message).first(first);
                        report.help("the kernel takes one: write another metric")
                    } else {
                        let message = format!("{what}: another block has the same, and there is only one");
                        let report = Report::warning(Class::Duplicate, span, message).first(first);
                        report.help("it goes with whoever leaves first, and comes back within ten seconds")
                    });
                }
                self.routes.entry(key(&route)).or_insert(span);
                own.entry(key(&route)).or_insert(routes.len());
                push(&mut routes, route);
            }
        }
        routes
    }

    fn route(&mut self, block: &str, entry: Statement<'_>) -> Option<VirtualRoute> {
        if entry.is_block() {
            self.error(Class::Syntax, entry.word().span, "a route takes no block");
        }
        let line: Vec<Word<'_>> = entry.words().collect();
        let mut route = VirtualRoute {
            kind: RouteKind::Unicast,
            to: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            prefix_len: 0,
            gateway: None,
            device: None,
            source: None,
            table: MAIN,
            metric: None,
            mtu: None,
            scope: UNIVERSE,
            onlink: false,
            no_track: false,
        };
        let (mut to, mut scope) = (None, None);
        let mut seen = Vec::new();
        let mut words = line.as_slice();
        while let [word, rest @ ..] = words {
            let what = canonical(word.text);
            if seen.contains(&what) {
                self.error(Class::Duplicate, word.span, format!("{block}: {what} is said twice"));
                return None;
            }
            seen.push(what);
            if let Some((_, kind)) = KINDS.iter().find(|(name, _)| *name == word.text) {
                (route.kind, words) = (*kind, rest);
                continue;
            }
            let has_value = ["src", "to", "via", "gw", "dev", "oif", "table", "scope", "metric", "mtu"]
                .contains(&word.text)
                || ["priority", "preference"].contains(&word.text);
            if !has_value {
                match word.text {
                    "onlink" => route.onlink = true,
                    "no_track" => route.no_track = true,
                    text if to.is_none() && is_prefix(text) => {
                        to = Some(self.word(block, word, prefix)?);
                    }
                    text => {
                        let message = format!("{block}: {} is not supported in a route", quote(text));
                        self.error(Class::Unsupported, word.span, message);
                        return None;
                    }
                }
                words = rest;
                continue;
            }
            let [argument, rest @ ..] = rest else {
                self.error(Class::BadValue, word.span, format!("{} needs a value", word.text));
                return None;
            };
            let what = word.text;
            match what {
                "to" => to = Some(self.word(what, argument, prefix)?),
                "src" => route.source = Some(self.word(what, argument, address)?),
                "via" | "gw" => route.gateway = Some(self.word(what, argument, address)?),
                "dev" | "oif" => route.device = Some(self.word(what, argument, value::interface)?),
                "table" => route.table = self.word(what, argument, table)?,
                "scope" => scope = Some(self.word(what, argument, super::address::scope)?),
                "mtu" => route.mtu = Some(self.word(what, argument, value::number(68..=65_535))?),
                _ => route.metric = Some(self.word(what, argument, value::number(0..=u32::MAX))?),
            }
            words = rest;
        }
        let Some((to, length)) = to else {
            self.error(Class::Missing, entry.word().span, format!("{block}: a route to nowhere"));
            return None;
        };
        (route.to, route.prefix_len) = (to, length);
        if to.is_unspecified() && route.gateway.is_some_and(|gateway| gateway.is_ipv6()) {
            route.to = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        }
        let others = route.gateway.iter().chain(&route.source);
        if let Some(other) = others.into_iter().find(|other| other.is_ipv4() != route.to.is_ipv4()) {
            let message = format!("{block}: {other} is not of the family of {}", route.to);
            self.error(Class::Conflict, entry.word().span, message);
            return None;
        }
        let leads_on = route.gateway.is_some() || (route.device.is_some() && route.to.is_ipv4());
        if route.kind != RouteKind::Unicast && leads_on {
            let message = format!("{block}: a route that leads nowhere has neither via nor dev");
            self.error(Class::Conflict, entry.word().span, message);
            return None;
        }
        if route.kind == RouteKind::Unicast && route.gateway.is_none() && route.device.is_none() {
            self.error(Class::Missing, entry.word().span, format!("{block}: a route without via and dev"));
            return None;
        }
        // As `ip route` has it.
        let direct = route.kind == RouteKind::Unicast && route.gateway.is_none() && route.to.is_ipv4();
        route.scope = scope.unwrap_or(if direct { LINK } else { UNIVERSE });
        Some(route)
    }
}

fn key(route: &VirtualRoute) -> Key {
    // The kernel's defaults.
    let metric = match route.to {
        IpAddr::V4(_) => route.metric.unwrap_or(0),
        IpAddr::V6(_) => route.metric.filter(|metric| *metric != 0).unwrap_or(1024),
    };
    (route.to, route.prefix_len, route.table, metric)
}

/// One name for each thing that may be said once.
fn canonical(word: &str) -> &str {
    match word {
        "gw" => "via",
        "oif" => "dev",
        "priority" | "preference" => "metric",
        "blackhole" | "unreachable" | "prohibit" => "unicast",
        word if is_prefix(word) => "to",
        word => word,
    }
}

fn is_prefix(word: &str) -> bool {
    word == "default" || word.split('/').next().is_some_and(|address| address.parse::<IpAddr>().is_ok())
}

/// None: whatever it is.
pub(super) fn prefix_or_all(word: &str) -> value::Value<Option<(IpAddr, u8)>> {
    match word {
        "all" | "any" | "default" => Ok(None),
        word => prefix(word).map(Some),
    }
}

fn prefix(word: &str) -> value::Value<(IpAddr, u8)> {
    if word == "default" {
        return Ok((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));
    }
    let (text, length) = word.split_once('/').map_or((word, None), |(text, length)| (text, Some(length)));
    let address: IpAddr = text.parse().map_err(|_| Wrong::new(format!("{} is no address", quote(word))))?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let length = length.map(value::number(0..=bits)).transpose()?.unwrap_or(bits);
    let host_bits = match address {
        IpAddr::V4(address) => address.to_bits().checked_shl(length).unwrap_or(0) != 0,
        IpAddr::V6(address) => address.to_bits().checked_shl(length).unwrap_or(0) != 0,
    };
    if host_bits {
        return Err(Wrong::new(format!("{} has bits behind its prefix", quote(word))));
    }
    Ok((address, u8::try_from(length)?))
}

fn address(word: &str) -> value::Value<IpAddr> {
    word.parse().map_err(|_| Wrong::new(format!("{} is no address", quote(word))))
}

/// By number, or one of those that every system has.
pub(super) fn table(word: &str) -> value::Value<u32> {
    match word {
        "main" => Ok(MAIN),
        "local" => Ok(255),
        "default" => Ok(253),
        number => value::number(1..=u32::MAX)(number)
            .map_err(|wrong| wrong.help("write the number of the table, as in rt_tables")),
    }
}
