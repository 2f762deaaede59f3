//! What a line of virtual_rules or static_rules says, in the words of `ip rule`.

use std::{collections::HashSet, net::IpAddr, ops::RangeInclusive};

use super::{Items, Reader, route, value, value::Wrong};
use crate::config::{
    diagnostic::{Class, Report, quote},
    lexer::Word,
    model::{Family, RuleAction, VirtualRule},
    room::push,
    tree::Statement,
};

/// RT_TABLE_MAIN.
const MAIN: u32 = 254;
/// keepalived's: rules without a priority get this one and those below, in the order of the file.
const FIRST_PRIORITY: u32 = 16_384;

const WITHOUT_VALUE: [&str; 11] = [
    "not",
    "inet",
    "inet6",
    "nop",
    "blackhole",
    "unreachable",
    "prohibit",
    "unicast",
    "l3mdev",
    "no_track",
    "type",
];
const WITH_VALUE: [&str; 24] = [
    "from",
    "to",
    "iif",
    "dev",
    "oif",
    "tos",
    "dsfield",
    "fwmark",
    "table",
    "lookup",
    "goto",
    "priority",
    "preference",
    "pref",
    "order",
    "ipproto",
    "ip_proto",
    "sport",
    "dport",
    "uidrange",
    "suppress_prefixlength",
    "suppress_prefixlen",
    "sup_prefixlength",
    "sup_pl",
];

/// Of a rule and of knowing it again, in a table that may have grown just now.
const SIZE: usize = 4 * size_of::<VirtualRule>();

impl Reader<'_> {
    /// Of all blocks of that word. `family`: where a rule does not say.
    pub(super) fn routing_rules(
        &mut self,
        items: &Items<'_>,
        word: &'static str,
        family: Family,
    ) -> Vec<VirtualRule> {
        let mut rules = Vec::new();
        let mut seen = HashSet::new();
        for item in items.all(word) {
            self.extra(item, &item.statement.arguments());
            for entry in item.body() {
                let Some(rule) = self.routing_rule(word, entry, family) else { continue };
                if !self.fits(SIZE, entry.word().span) {
                    return rules;
                }
                if !seen.insert(rule.clone()) {
                    self.warn(Class::Duplicate, entry.word().span, format!("{word}: a rule is named twice"));
                } else {
                    push(&mut rules, rule);
                }
            }
        }
        rules
    }

    fn routing_rule(&mut self, block: &str, entry: Statement<'_>, family: Family) -> Option<VirtualRule> {
        if entry.is_block() {
            self.error(Class::Syntax, entry.word().span, "a rule takes no block");
        }
        let line: Vec<Word<'_>> = entry.words().collect();
        let mut rule = VirtualRule {
            family,
            priority: 0,
            action: RuleAction::Table(MAIN),
            inverted: false,
            from: None,
            to: None,
            in_device: None,
            out_device: None,
            tos: 0,
            mark: None,
            protocol: None,
            source_ports: None,
            destination_ports: None,
            users: None,
            l3mdev: false,
            suppress_prefix_length: None,
            no_track: false,
        };
        let (mut said_family, mut priority, mut action) = (None, None, None);
        let mut seen = Vec::new();
        let mut words = line.as_slice();
        while let [word, rest @ ..] = words {
            let what = canonical(word.text);
            if seen.contains(&what) {
                self.error(Class::Duplicate, word.span, format!("{block}: {what} is said twice"));
                return None;
            }
            seen.push(what);
            if WITHOUT_VALUE.contains(&word.text) {
                match word.text {
                    "not" => rule.inverted = true,
                    "inet" => said_family = Some(Family::V4),
                    "inet6" => said_family = Some(Family::V6),
                    "l3mdev" => rule.l3mdev = true,
                    "no_track" => rule.no_track = true,
                    // What follows says which.
                    "type" | "unicast" => {}
                    "nop" => action = Some(RuleAction::Nothing),
                    "blackhole" => action = Some(RuleAction::Blackhole),
                    "unreachable" => action = Some(RuleAction::Unreachable),
                    _ => action = Some(RuleAction::Prohibit),
                }
                words = rest;
                continue;
            }
            if !WITH_VALUE.contains(&word.text) {
                let message = format!("{block}: {} is not supported in a rule", quote(word.text));
                self.error(Class::Unsupported, word.span, message);
                return None;
            }
            let [value, rest @ ..] = rest else {
                self.error(Class::BadValue, word.span, format!("{} needs a value", word.text));
                return None;
            };
            match what {
                "from" => rule.from = self.word(what, value, route::prefix_or_all)?,
                "to" => rule.to = self.word(what, value, route::prefix_or_all)?,
                "iif" => rule.in_device = Some(self.word(what, value, value::interface)?),
                "oif" => rule.out_device = Some(self.word(what, value, value::interface)?),
                "tos" => rule.tos = self.word(what, value, tos)?,
                "fwmark" => rule.mark = Some(self.word(what, value, mark)?),
                "table" if word.text == "goto" => {
                    action = Some(RuleAction::Goto(self.word("goto", value, number)?));
                }
                "table" => action = Some(RuleAction::Table(self.word(what, value, route::table)?)),
                "priority" => priority = Some(self.word(what, value, value::number(1..=32_765))?),
                "ipproto" => rule.protocol = Some(self.word(what, value, protocol)?),
                "sport" => rule.source_ports = Some(self.word(what, value, range)?),
                "dport" => rule.destination_ports = Some(self.word(what, value, range)?),
                "uidrange" => rule.users = Some(self.word(what, value, range)?),
                _ => rule.suppress_prefix_length = Some(self.word(what, value, value::number(0..=128))?),
            }
            words = rest;
        }
        self.finish_rule(block, entry, rule, (said_family, priority, action))
    }

    fn finish_rule(
        &mut self,
        block: &str,
        entry: Statement<'_>,
        mut rule: VirtualRule,
        (family, priority, action): (Option<Family>, Option<u32>, Option<RuleAction>),
    ) -> Option<VirtualRule> {
        let span = entry.word().span;
        let of = |prefix: &Option<(IpAddr, u8)>| prefix.map(|(address, _)| Family::of(address));
        let families: Vec<Family> = [family, of(&rule.from), of(&rule.to)].into_iter().flatten().collect();
        if let [first, rest @ ..] = families.as_slice() {
            rule.family = *first;
            if rest.iter().any(|other| other != first) {
                self.error(
                    Class::Conflict,
                    span,
                    format!("{block}: a rule of {first} and of another family"),
                );
                return None;
            }
        }
        match action {
            Some(_) if rule.l3mdev => {
                self.error(Class::Conflict, span, format!("{block}: l3mdev finds the table itself"));
                return None;
            }
            Some(action) => rule.action = action,
            // The kernel wants it so.
            None if rule.l3mdev => rule.action = RuleAction::Table(0),
            None => {
                self.error(Class::Missing, span, format!("{block}: a rule without a table"));
                return None;
            }
        }
        rule.priority = priority.unwrap_or_else(|| {
            let priority = FIRST_PRIORITY.saturating_sub(self.bare_rules);
            self.bare_rules += 1;
            let message = format!("{block}: a rule without a priority gets {priority}, as in keepalived");
            let report = Report::warning(Class::Trap, span, message);
            self.reports.push(report.help("write `priority N`"));
            priority
        });
        if let RuleAction::Goto(target) = rule.action
            && target <= rule.priority
        {
            let message = format!("{block}: goto {target} does not lead on from {}", rule.priority);
            self.error(Class::BadValue, span, message);
            return None;
        }
        Some(rule)
    }
}

/// One name for each thing that may be said once.
fn canonical(word: &str) -> &str {
    match word {
        "dev" => "iif",
        "dsfield" => "tos",
        // They all say what becomes of a packet.
        "lookup" | "goto" | "nop" | "blackhole" | "unreachable" | "prohibit" => "table",
        "preference" | "pref" | "order" => "priority",
        "ip_proto" => "ipproto",
        "suppress_prefixlen" | "sup_prefixlength" | "sup_pl" => "suppress_prefixlength",
        "inet6" => "inet",
        other => other,
    }
}

fn number(word: &str) -> value::Value<u32> {
    value::number(0..=u32::MAX)(word)
}

fn hex_or_decimal(word: &str) -> value::Value<u32> {
    match word.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16)
            .map_err(|_| Wrong::new(format!("{} is no hexadecimal number of 32 bits", quote(word)))),
        None => number(word),
    }
}

/// `VALUE[/MASK]`
fn mark(word: &str) -> value::Value<(u32, u32)> {
    let (value, mask) = word.split_once('/').map_or((word, None), |(value, mask)| (value, Some(mask)));
    Ok((hex_or_decimal(value)?, mask.map_or(Ok(u32::MAX), hex_or_decimal)?))
}

fn tos(word: &str) -> value::Value<u8> {
    u8::try_from(hex_or_decimal(word)?)
        .ok()
        .filter(|tos| tos & 0x3 == 0)
        .ok_or_else(|| Wrong::new(format!("{} is no type of service", quote(word))))
}

fn protocol(word: &str) -> value::Value<u8> {
    match word {
        "icmp" => Ok(1),
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "ipv6-icmp" => Ok(58),
        "sctp" => Ok(132),
        number => Ok(u8::try_from(value::number(1..=255)(number)?)?),
    }
}

/// `N` or `N-M`
fn range<T: TryFrom<u32> + PartialOrd>(word: &str) -> value::Value<RangeInclusive<T>> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let of = |word: &str| {
        T::try_from(number(word)?).map_err(|_| Wrong::new(format!("{} is too large", quote(word))))
    };
    let (first, last) = (of(first)?, of(last)?);
    if first > last {
        return Err(Wrong::new(format!("{} ends before it begins", quote(word))));
    }
    Ok(first..=last)
}
