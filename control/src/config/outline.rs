//! What a configuration consists of, piece by piece, so that two can be compared: `lvsd plan`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::model::{Config, Protocol, Track, VirtualServer, VrrpInstance};

/// The pieces of a configuration by name, each with all its settings as text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outline(BTreeMap<String, String>);

/// What would become of one piece.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    Added { name: String },
    Removed { name: String },
    Changed { name: String, settings: Vec<Setting> },
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    pub name: String,
    pub before: String,
    pub after: String,
}

impl Outline {
    pub fn of(config: &Config) -> Self {
        // All of it, so that nothing that is added here can be forgotten below.
        let Config { global, trackers, instances, groups, link_delays, routes, rules, addresses, services } =
            config;
        let mut pieces = BTreeMap::from([("global_defs".to_owned(), format!("{global:?}"))]);
        let names = |tracks: &[Track]| -> Vec<String> {
            let name = |track: &Track| {
                let tracker = trackers.get(track.tracker);
                let name = tracker.map_or("?", |tracker| tracker.name());
                format!("{name} weight {}{}", track.weight, if track.reverse { " reverse" } else { "" })
            };
            tracks.iter().map(name).collect()
        };
        for tracker in trackers {
            pieces.insert(format!("{} {}", tracker.word(), tracker.name()), format!("{tracker:?}"));
        }
        for instance in instances {
            // Trackers by name: their numbers change with any of them.
            let tracks = names(&instance.tracks);
            let rest = VrrpInstance { tracks: Vec::new(), ..instance.clone() };
            let piece = format!("{rest:?}");
            let piece = piece.replacen("tracks: []", &format!("tracks: {tracks:?}"), 1);
            pieces.insert(format!("vrrp_instance {}", instance.name), piece);
        }
        for group in groups {
            let members = group.members.iter().filter_map(|index| instances.get(*index));
            let members: Vec<_> = members.map(|instance| &instance.name).collect();
            let piece = format!("Group {{ members: {members:?}, notify: {:?} }}", group.notify);
            pieces.insert(format!("vrrp_sync_group {}", group.name), piece);
        }
        for delays in link_delays {
            pieces.insert(format!("interface_up_down_delays {}", delays.interface), format!("{delays:?}"));
        }
        for route in routes {
            let (table, metric) = (route.table, route.metric.unwrap_or(0));
            let name =
                format!("static_routes {}/{} table {table} metric {metric}", route.to, route.prefix_len);
            pieces.insert(name, format!("{route:?}"));
        }
        for rule in rules {
            let family = rule.family;
            // Of one priority there may be several.
            let number = rules.iter().take_while(|other| *other != rule);
            let number =
                number.filter(|other| (other.family, other.priority) == (family, rule.priority)).count();
            let name = format!("static_rules {family} priority {} number {}", rule.priority, number + 1);
            pieces.insert(name, format!("{rule:?}"));
        }
        for (interface, address) in addresses {
            pieces.insert(
                format!("static_ipaddress {} dev {interface}", address.address),
                format!("{address:?}"),
            );
        }
        for service in services {
            let name = name_of(service);
            for real in &service.reals {
                pieces.insert(
                    format!("{name} real_server {} {}", real.address, real.port),
                    format!("{real:?}"),
                );
            }
            let rest = VirtualServer { reals: Vec::new(), ..service.clone() };
            pieces.insert(name, format!("{rest:?}"));
        }
        Self(pieces)
    }

    /// What a reload from `self` to `next` would do.
    pub fn changes(&self, next: &Self) -> Vec<Change> {
        let names: BTreeSet<_> = self.0.keys().chain(next.0.keys()).collect();
        let change = |name: &String| match (self.0.get(name), next.0.get(name)) {
            (Some(before), Some(after)) if before == after => None,
            (Some(before), Some(after)) => {
                Some(Change::Changed { name: name.clone(), settings: settings(before, after) })
            }
            (Some(_), None) => Some(Change::Removed { name: name.clone() }),
            (None, _) => Some(Change::Added { name: name.clone() }),
        };
        names.into_iter().filter_map(change).collect()
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { name } => writeln!(f, "+ {name}"),
            Self::Removed { name } => writeln!(f, "- {name}"),
            Self::Changed { name, settings } => {
                writeln!(f, "~ {name}")?;
                for Setting { name, before, after } in settings {
                    writeln!(f, "    {name}: {before} -> {after}")?;
                }
                Ok(())
            }
        }
    }
}

fn name_of(service: &VirtualServer) -> String {
    let protocol = match service.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    };
    format!("virtual_server {} {} {protocol}", service.address, service.port)
}

/// The settings in which two texts of one type differ.
fn settings(before: &str, after: &str) -> Vec<Setting> {
    let (before, after) = (leaves(before), leaves(after));
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let said = |leaves: &BTreeMap<String, String>, name: &String| match leaves.get(name) {
        Some(value) => value.clone(),
        None => "none".to_owned(),
    };
    let both = names.into_iter().map(|name| (name, said(&before, name), said(&after, name)));
    both.filter(|(_, before, after)| before != after)
        .map(|(name, before, after)| Setting { name: name.clone(), before, after })
        .collect()
}

/// The single values of a text that `derive(Debug)` wrote, each by the way to it: `checks.0.timing.delay_loop`.
fn leaves(text: &str) -> BTreeMap<String, String> {
    let mut leaves = BTreeMap::new();
    // Models nest a few levels; what comes over the socket may not.
    collect(text, String::new(), 32, &mut leaves);
    leaves
}

fn collect(text: &str, path: String, depth: usize, leaves: &mut BTreeMap<String, String>) {
    let text = text.trim();
    let inside = |open: char, close: char| {
        let (name, rest) = text.split_once(open)?;
        let plain = name.trim_end().chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        Some((name, rest.strip_suffix(close)?)).filter(|_| plain)
    };
    let found = inside('{', '}').or_else(|| inside('[', ']')).or_else(|| inside('(', ')'));
    let Some((name, inner)) = found.filter(|_| depth > 0) else {
        leaves.insert(path, text.trim_matches('"').to_owned());
        return;
    };
    let parts = parts(inner);
    // `Some(..)`, `Priority(..)`: what is in it is what counts.
    if let ([only], true) = (parts.as_slice(), text.ends_with(')') && !name.is_empty()) {
        return collect(only, path, depth - 1, leaves);
    }
    for (index, part) in parts.into_iter().enumerate() {
        let (step, value) = match part.split_once(": ") {
            Some((field, value)) if field.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') => {
                (field.to_owned(), value)
            }
            _ => (index.to_string(), part),
        };
        let path = if path.is_empty() { step } else { format!("{path}.{step}") };
        collect(value, path, depth - 1, leaves);
    }
}

/// What stands between the commas that are in no quotes and no brackets.
fn parts(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut quoted, mut escaped, mut start) = (0_usize, false, false, 0);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '{' | '[' | '(' if !quoted => depth += 1,
            '}' | ']' | ')' if !quoted => depth = depth.saturating_sub(1),
            ',' if !quoted && depth == 0 => {
                parts.push(text.get(start..at).unwrap_or("").trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text.get(start..).unwrap_or("").trim());
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::interpret;

    fn outline(file: &str) -> Outline {
        let loaded = interpret(Path::new("lvsd.conf"), file.to_owned(), "");
        assert!(!loaded.has_errors(), "{}", loaded.render_text());
        Outline::of(&loaded.config)
    }

    fn changes(before: &str, after: &str) -> String {
        outline(before).changes(&outline(after)).iter().map(ToString::to_string).collect()
    }

    fn file(priority: &str, reals: &str) -> String {
        format!(
            "vrrp_instance V {{\ninterface eth0\nvirtual_router_id 1\npriority {priority}\nvirtual_ipaddress {{\n192.0.2.1/24\n}}\n}}\n\
             virtual_server 192.0.2.1 80 {{\nlvs_method DR\nprotocol TCP\n{reals}}}\n"
        )
    }

    #[test]
    fn the_same_configuration_changes_nothing() {
        let one = file("100", "real_server 192.0.2.2 80 {\n}\n");
        assert_eq!(changes(&one, &one.replace("\n}", "\n\n  # said\n}")), "");
    }

    #[test]
    fn each_change_is_named_with_its_piece() {
        let before = file(
            "100",
            "real_server 192.0.2.2 80 {\nTCP_CHECK {\nretry 2\n}\n}\nreal_server 192.0.2.3 80 {\n}\n",
        );
        let after = file(
            "150",
            "real_server 192.0.2.2 80 {\nweight 3\nTCP_CHECK {\nretry 4\n}\n}\nreal_server 192.0.2.4 80 {\n}\n",
        );
        assert_eq!(
            changes(&before, &after),
            "~ virtual_server 192.0.2.1 80 TCP real_server 192.0.2.2 80\n    \
                 checks.0.timing.retry: 2 -> 4\n    weight: 1 -> 3\n\
             - virtual_server 192.0.2.1 80 TCP real_server 192.0.2.3 80\n\
             + virtual_server 192.0.2.1 80 TCP real_server 192.0.2.4 80\n\
             ~ vrrp_instance V\n    priority: 100 -> 150\n"
        );
    }

    #[test]
    fn a_tracker_more_leaves_instances_alone_that_do_not_track_it() {
        let script = |name: &str| format!("vrrp_script {name} {{\nscript /bin/true\n}}\n");
        let instance = |name: &str, vrid: u8, script: &str| {
            format!(
                "vrrp_instance {name} {{\ninterface eth0\nvirtual_router_id {vrid}\npriority 100\n\
                 track_script {{\n{script}\n}}\nvirtual_ipaddress {{\n192.0.2.{vrid}/24\n}}\n}}\n"
            )
        };
        let before = format!("{}{}", script("b"), instance("V", 1, "b"));
        let after =
            format!("{}{}{}{}", script("a"), script("b"), instance("V", 1, "b"), instance("W", 2, "a"));
        assert_eq!(changes(&before, &after), "+ track_script a\n+ vrrp_instance W\n");
    }

    #[test]
    fn another_password_is_a_change_that_tells_neither() {
        let with = |password: &str| {
            let authentication =
                format!("authentication {{\nauth_type PASS\nauth_pass {password}\n}}\ninterface");
            file("100", "real_server 192.0.2.2 80 {\n}\n").replacen("interface", &authentication, 1)
        };
        let said = changes(&with("hemlig"), &with("secret"));
        assert!(
            said.contains("authentication: PASS #") && !said.contains("secret") && !said.contains("104"),
            "{said}"
        );
    }

    #[test]
    fn what_no_model_wrote_is_compared_all_the_same() {
        let deep = "(".repeat(10_000);
        for text in ["", "(", "}{", "a: b: c", "\"\\\"", &deep, "[\"a, b\", (c)]"] {
            leaves(text);
        }
    }
}
