//! What the statements of a file mean: the tree becomes the model.

mod address;
mod check;
mod group;
mod instance;
mod mail;
mod method;
mod quic;
mod route;
mod routing_rule;
mod rules;
mod script;
mod server_group;
mod service;
mod signing;
mod track;
mod value;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio_rustls::rustls::pki_types::CertificateDer;

use super::{
    diagnostic::{Class, Report, Reports, quote},
    keywords::{self, Block, Keyword, Status},
    lexer::Word,
    model::{CheckSource, CheckTiming, Config, Family, Fifo, Global, Identity, Pattern, Protocol, Version},
    room::{Room, push},
    source::Span,
    tree::{Statement, Statements, Tree},
};
use crate::{script::Account, vrrp::packet};
use mail::Alerts;
use rules::{GarpDefaults, RuleDefaults};
use track::Trackers;
use value::{Value, Wrong};

/// Reads the whole tree. What cannot be read is reported and left out.
pub fn config<'t>(tree: &'t Tree<'t>, room: &mut Room, reports: &mut Reports) -> Config {
    let mut reader = Reader {
        reports,
        room,
        names: HashMap::new(),
        vrids: HashMap::new(),
        vips: HashMap::new(),
        log_all_failures: false,
        patterns: HashMap::new(),
        roots: None,
        identity: None,
        server_groups: HashMap::new(),
        services: HashMap::new(),
        sources: HashSet::new(),
        timings: HashSet::new(),
        script_account: Account::ROOT,
        alerts: Alerts::default(),
        trackers: Trackers::default(),
        members: HashMap::new(),
        routes: HashMap::new(),
        bare_rules: 0,
    };
    let top = reader.items(Block::Top, tree.statements());
    let (global, defaults) = reader.global(&top);
    reader.certificates(&top);
    for item in top.all("vrrp_script") {
        reader.track_script(item);
    }
    for item in top.all("track_file") {
        reader.track_file(item);
    }
    for item in top.all("vrrp_track_process") {
        reader.track_process(item);
    }
    let mut instances: Vec<_> =
        top.all("vrrp_instance").filter_map(|item| reader.instance(item, &defaults)).collect();
    let link_delays = reader.link_delays(&top, &instances);
    let groups = top.all("vrrp_sync_group");
    let groups = groups.filter_map(|item| reader.group(item, &mut instances)).collect();
    for item in top.all("virtual_server_group") {
        reader.server_group(item);
    }
    let (mut services, mut spans) = (Vec::new(), Vec::new());
    for item in top.all("virtual_server") {
        for service in reader.services(item) {
            push(&mut services, service);
            push(&mut spans, item.statement.span());
        }
    }
    reader.every_service_has_an_instance(&services, &spans);
    let trackers = reader.used_trackers();
    let addresses = reader.static_addresses(&top, &defaults.interface);
    Config {
        global,
        trackers,
        instances,
        groups,
        link_delays,
        routes: reader.routes(&top, "static_routes"),
        rules: reader.routing_rules(&top, "static_rules", Family::V4),
        addresses,
        services,
    }
}

/// What global_defs say to every instance.
struct Defaults {
    version: Version,
    groups: Groups,
    garp: GarpDefaults,
    rules: RuleDefaults,
    notify_priority_changes: bool,
    down_timer_adverts: u32,
    checksum_of_message: bool,
    /// Of static addresses that name none.
    interface: String,
}

/// Where multicast adverts go.
struct Groups {
    v4: IpAddr,
    v6: IpAddr,
}

impl Groups {
    fn of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

struct Reader<'a> {
    reports: &'a mut Reports,
    /// What the model may still take.
    room: &'a mut Room,
    /// Where each thing that may exist only once was first named.
    names: HashMap<String, Span>,
    vrids: HashMap<(String, u8, Family), Span>,
    vips: HashMap<IpAddr, Span>,
    /// `checker_log_all_failures`.
    log_all_failures: bool,
    /// By their text.
    patterns: HashMap<String, Pattern>,
    /// The `ca` of SSL_GETs.
    roots: Option<Arc<Vec<CertificateDer<'static>>>>,
    identity: Option<Arc<Identity>>,
    /// None: it has errors.
    server_groups: HashMap<String, (Option<server_group::Endpoints>, Span)>,
    services: HashMap<(IpAddr, u16, Protocol), Span>,
    /// What checks have in common.
    sources: HashSet<Arc<CheckSource>>,
    timings: HashSet<Arc<CheckTiming>>,
    /// As whom scripts run that do not say it themselves.
    script_account: Account,
    alerts: Alerts,
    trackers: Trackers,
    /// Of sync groups: where each instance was first named.
    members: HashMap<String, Span>,
    /// What the kernel tells routes apart by.
    routes: HashMap<route::Key, Span>,
    /// Routing rules without a priority.
    bare_rules: u32,
}

/// A statement whose word is supported where it stands.
#[derive(Clone, Copy)]
struct Item<'a> {
    keyword: &'static Keyword,
    statement: Statement<'a>,
}

/// The supported statements of one block.
struct Items<'a> {
    list: Vec<Item<'a>>,
    /// Words that were probably meant by unknown ones: it would be noise to call them absent.
    misspelt: Vec<&'static str>,
}

impl<'a> Items<'a> {
    fn all(&self, word: &'static str) -> impl Iterator<Item = Item<'a>> {
        self.list.iter().copied().filter(move |item| item.keyword.canonical == word)
    }

    fn lacks(&self, word: &'static str) -> bool {
        !self.misspelt.contains(&word) && self.last(word).is_none()
    }

    /// The last one: keepalived lets it win.
    fn last(&self, word: &'static str) -> Option<Item<'a>> {
        self.all(word).last()
    }

    fn span(&self, word: &'static str) -> Option<Span> {
        self.last(word).map(|item| item.statement.span())
    }
}

impl<'a> Item<'a> {
    fn body(&self) -> Statements<'a> {
        self.statement.body()
    }
}

impl Reader<'_> {
    /// False where there is no room for what takes so many bytes.
    fn fits(&mut self, bytes: usize, at: Span) -> bool {
        self.room.take(bytes, at, self.reports)
    }

    fn error(&mut self, class: Class, span: Span, message: impl Into<String>) {
        self.reports.push(Report::error(class, span, message));
    }

    fn warn(&mut self, class: Class, span: Span, message: impl Into<String>) {
        self.reports.push(Report::warning(class, span, message));
    }

    /// Sorts the statements of a block: supported ones are returned, for all others it says what they are.
    fn items<'t>(&mut self, block: Block, statements: impl IntoIterator<Item = Statement<'t>>) -> Items<'t> {
        let mut items = Items { list: Vec::new(), misspelt: Vec::new() };
        let mut seen: HashMap<&'static str, Statement<'_>> = HashMap::new();
        for statement in statements {
            let word = statement.word();
            if word.spoilt {
                continue;
            }
            let Some(keyword) = keywords::find(block, word.text) else {
                items.misspelt.extend(self.unknown(block, &word));
                continue;
            };
            match keyword.status {
                Status::NotYet(effect) => {
                    let colon = if effect.is_empty() { "" } else { ": " };
                    let message = format!("{} is not supported yet{colon}{effect}", keyword.word);
                    self.warn(Class::Unsupported, word.span, message);
                    continue;
                }
                Status::Ignored(reason) => {
                    let dead = reason == keywords::DEAD;
                    let class = if dead { Class::DeadWord } else { Class::Ignored };
                    self.warn(class, word.span, format!("{} has no effect: {reason}", keyword.word));
                    continue;
                }
                Status::Deprecated(by) => {
                    self.warn(
                        Class::Deprecated,
                        word.span,
                        format!("{} is the old name of {by}", keyword.word),
                    );
                }
                Status::Supported => {}
            }
            match (keyword.opens, statement.is_block()) {
                (None, true) => {
                    self.error(Class::Syntax, word.span, format!("{} takes no block", keyword.word));
                    continue;
                }
                (Some(_), false) => continue, // Reported when the tree was built.
                _ => {}
            }
            if !keyword.repeats
                && let Some(first) = seen.insert(keyword.canonical, statement)
            {
                self.duplicate(&first, &statement);
            }
            push(&mut items.list, Item { keyword, statement });
        }
        items
    }

    /// Returns the word of this block that was probably meant.
    fn unknown(&mut self, block: Block, word: &Word) -> Option<&'static str> {
        if self.reports.is_full() {
            self.error(Class::UnknownWord, word.span, "unknown word");
            return None;
        }
        if let Some(homes) = keywords::homes(word.text) {
            let message = format!("`{}` belongs {homes}, not {}", word.text, block.place());
            self.error(Class::MisplacedWord, word.span, message);
            return None;
        }
        let near = keywords::nearest(block, word.text);
        let suggestion = match near {
            Some(near) => format!("; did you mean {}?", quote(near.word)),
            None => match keywords::nearest_anywhere(word.text) {
                Some(near) => format!("; {} would be known {}", quote(near.word), near.block.place()),
                None => String::new(),
            },
        };
        let message = format!("unknown word {} {}{suggestion}", quote(word.text), block.place());
        self.error(Class::UnknownWord, word.span, message);
        near.map(|near| near.canonical)
    }

    fn duplicate(&mut self, first: &Statement, again: &Statement) {
        let [texts, others] = [first, again].map(|it| it.words().skip(1).map(|word| word.text));
        let same = !first.is_block() && !again.is_block() && texts.eq(others);
        let word = again.word().text;
        let report = if same {
            Report::warning(Class::Duplicate, again.span(), format!("{word} is said twice"))
        } else {
            let message = format!("{word} is said twice, and not the same");
            Report::error(Class::Duplicate, again.span(), message)
                .help("keepalived takes the last one without a word")
        };
        self.reports.push(report.first(first.word().span));
    }

    /// Reads one word; a wrong one is reported.
    fn word<T>(&mut self, what: &str, word: &Word, read: impl Fn(&str) -> Value<T>) -> Option<T> {
        if word.spoilt {
            return None;
        }
        match read(&word.unquoted()) {
            Ok(value) => Some(value),
            Err(Wrong { class, message, help }) => {
                let report = Report::error(class, word.span, format!("{what}: {message}"));
                self.reports.push(match help {
                    Some(help) => report.help(help),
                    None => report,
                });
                None
            }
        }
    }

    /// The value of a word that takes exactly one. `None`: not said, or said wrongly and reported.
    fn one<T>(
        &mut self,
        items: &Items<'_>,
        word: &'static str,
        read: impl Fn(&str) -> Value<T>,
    ) -> Option<T> {
        let item = items.last(word)?;
        let arguments = item.statement.arguments();
        let (argument, extra) = match arguments.as_slice() {
            [] => {
                let message = format!("{} needs a value", item.keyword.word);
                self.error(Class::BadValue, item.statement.word().span, message);
                return None;
            }
            [argument, extra @ ..] => (argument, extra),
        };
        self.extra(item, extra);
        self.word(item.keyword.word, argument, read)
    }

    /// As [`Reader::one`], for a word without which the block means nothing.
    fn required<T>(
        &mut self,
        items: &Items<'_>,
        block: Item<'_>,
        word: &'static str,
        read: impl Fn(&str) -> Value<T>,
    ) -> Option<T> {
        if items.lacks(word) {
            let message = format!("{} without {word}", block.keyword.word);
            self.error(Class::Missing, block.statement.span(), message);
        }
        self.one(items, word, read)
    }

    /// A word that means yes by being there.
    fn flag(&mut self, items: &Items<'_>, word: &'static str) -> bool {
        let Some(item) = items.last(word) else { return false };
        if let [value, ..] = item.statement.arguments().as_slice() {
            let message = format!("{word} takes no value: keepalived reads this as on, whatever it is");
            self.error(Class::BadValue, value.span, message);
        }
        true
    }

    /// A word that alone means yes, or takes on/off.
    fn switch(&mut self, items: &Items<'_>, word: &'static str) -> Option<bool> {
        match items.last(word)?.statement.arguments().as_slice() {
            [] => Some(true),
            _ => self.one(items, word, value::boolean),
        }
    }

    /// Words after the last one that has a meaning.
    fn extra(&mut self, item: Item<'_>, words: &[Word]) {
        let Some(word) = words.iter().find(|word| !word.spoilt) else { return };
        if keywords::find(item.keyword.block, word.text).is_some() {
            let message = format!(
                "`{}` needs a line of its own: it is read as part of {}",
                word.text, item.keyword.word
            );
            self.error(Class::Syntax, word.span, message);
        } else {
            let message = format!("{} is not read: {} ends before it", quote(word.text), item.keyword.word);
            self.warn(Class::ExtraWord, word.span, message);
        }
    }

    fn global(&mut self, top: &Items<'_>) -> (Global, Defaults) {
        let items = self.items(Block::GlobalDefs, top.all("global_defs").flat_map(|item| item.body()));
        for item in top.all("global_defs") {
            self.extra(item, &item.statement.arguments());
        }
        let router_id = self.one(&items, "router_id", value::text);
        self.directives(top, &items);
        self.log_all_failures = self.switch(&items, "checker_log_all_failures").unwrap_or(false);
        let version = self.one(&items, "vrrp_version", version).unwrap_or_default();
        let mut group =
            |word, family| self.one(&items, word, value::group(family)).unwrap_or(packet::group(family));
        let groups =
            Groups { v4: group("vrrp_mcast_group4", Family::V4), v6: group("vrrp_mcast_group6", Family::V6) };
        let words = [
            "vrrp_garp_master_delay",
            "vrrp_garp_master_repeat",
            "vrrp_garp_master_refresh",
            "vrrp_garp_master_refresh_repeat",
        ];
        let garp = self.garp_defaults(&items, words);
        let rules = self.rule_defaults(&items);
        let first = top.all("vrrp_instance").next().map(|item| item.statement.word().span);
        let is_late = |span: &Span| first.is_some_and(|first| first < *span);
        if let Some(late) = words.into_iter().find_map(|word| items.span(word).filter(is_late)) {
            let message = "keepalived does not apply this to the instances above; lvsd does";
            self.warn(Class::Trap, late, message);
        }
        let notify_priority_changes = self.switch(&items, "vrrp_notify_priority_changes").unwrap_or_default();
        let timeouts = self.timeouts(&items);
        let seconds = |most| value::seconds(Duration::ZERO..=Duration::from_secs(most));
        let garp_interval = self.one(&items, "vrrp_garp_interval", seconds(1)).unwrap_or_default();
        let startup_delay = self.one(&items, "vrrp_startup_delay", seconds(3600)).unwrap_or_default();
        let delay_after_boot = self.one(&items, "vrrp_delay_after_boot", seconds(3600)).unwrap_or_default();
        let gna_interval = self.one(&items, "vrrp_gna_interval", seconds(1)).unwrap_or_default();
        let down_timer_adverts = self.one(&items, "vrrp_down_timer_adverts", down_timer_adverts).unwrap_or(3);
        let checksum_of_message = self.switch(&items, "v3_checksum_as_v2").unwrap_or_default();
        // The default here, and the only way.
        self.flag(&items, "enable_script_security");
        let account = match items.last("script_user") {
            Some(item) => self.account(item, &item.statement.arguments()),
            None => None,
        };
        self.script_account = account.unwrap_or_else(Account::default_for_scripts);
        let common = self.fifo(&items, "notify_fifo", "notify_fifo_script");
        let own = self.fifo(&items, "vrrp_notify_fifo", "vrrp_notify_fifo_script");
        let fifos = common.iter().cloned().chain(own).collect();
        let own = self.fifo(&items, "lvs_notify_fifo", "lvs_notify_fifo_script");
        // One reader is enough for both who write.
        let common = common.map(|fifo| Fifo { reader: None, ..fifo });
        let lvs_fifos = common.into_iter().chain(own).collect();
        let startup = self.once(&items, "startup_script", "startup_script_timeout");
        let shutdown = self.once(&items, "shutdown_script", "shutdown_script_timeout");
        let rs_init_notifies = self.flag(&items, "rs_init_notifies");
        let mail = self.mail(&items);
        let dynamic_interfaces = self.dynamic_interfaces(&items);
        let interface = self.one(&items, "default_interface", value::interface);
        let admin_group = self.one(&items, "admin_group", |group| Ok(crate::script::group(group)?));
        (
            Global {
                router_id,
                timeouts,
                garp_interval,
                gna_interval,
                startup_delay,
                delay_after_boot,
                log_unknown_vrids: self.flag(&items, "log_unknown_vrids"),
                fifos,
                fifo_states_on_reload: self.flag(&items, "fifo_write_vrrp_states_on_reload"),
                lvs_fifos,
                mail,
                dynamic_interfaces,
                rs_init_notifies,
                startup,
                shutdown,
                admin_group,
            },
            Defaults {
                version,
                groups,
                garp,
                rules,
                notify_priority_changes,
                down_timer_adverts,
                checksum_of_message,
                interface: interface.unwrap_or_else(|| "eth0".to_owned()),
            },
        )
    }

    /// Words that have done their work when the tree is read: here only their values are looked at.
    fn directives(&mut self, top: &Items<'_>, items: &Items<'_>) {
        self.one(top, "instance", value::text);
        self.one(items, "random_seed", value::number(0..=u32::MAX));
        let kinds = ["readable", "match", "wildcard_match", "brace_match"].map(|kind| (kind, ()));
        for word in items.all("include_check").flat_map(|item| item.statement.arguments()) {
            let kind = |word: &str| value::choice(&kinds)(word.trim_start_matches(['+', '-']));
            self.word("include_check", &word, kind);
        }
    }

    /// Which interface it is that comes back makes no difference here.
    fn dynamic_interfaces(&mut self, items: &Items<'_>) -> bool {
        let Some(item) = items.last("dynamic_interfaces") else { return false };
        if let [word, extra @ ..] = item.statement.arguments().as_slice() {
            self.word("dynamic_interfaces", word, value::choice(&[("allow_if_changes", ())]));
            self.extra(item, extra);
        }
        true
    }
}

/// With one, a lease would end where its renewal is due.
fn down_timer_adverts(word: &str) -> Value<u32> {
    match value::number(1..=100)(word)? {
        1 => {
            Err(Wrong::unsupported("1 is not supported: a lease needs two adverts").help("write at least 2"))
        }
        adverts => Ok(adverts),
    }
}

fn version(word: &str) -> Value<Version> {
    value::choice(&[("2", Version::V2), ("3", Version::V3)])(word)
}
