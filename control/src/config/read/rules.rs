//! What an instance, and global_defs for all, say of how VRRP is spoken.

use std::time::Duration;

use super::{Items, Reader, value};
use crate::config::{
    diagnostic::{Class, Report, quote},
    model::{Garp, Priority, Rules, SigningMode, Vmac, VrrpInstance},
};

/// What global_defs say.
#[derive(Default)]
pub struct RuleDefaults {
    strict: Option<bool>,
    lower_prio_no_advert: Option<bool>,
    higher_prio_send_advert: Option<bool>,
    owner_ignore_adverts: Option<bool>,
    skip_check_adv_addr: Option<bool>,
}

/// What global_defs say of announcements.
pub struct GarpDefaults {
    pub garp: Garp,
    lower_delay: Option<Duration>,
    lower_repeat: Option<u32>,
    extra: Option<Extra>,
}

/// `garp_extra_if`: how often a switch is told of a virtual MAC where adverts do not tell it.
#[derive(Clone, Copy)]
struct Extra {
    everywhere: bool,
    every: Duration,
}

impl Reader<'_> {
    pub(super) fn rule_defaults(&mut self, items: &Items<'_>) -> RuleDefaults {
        // The default here, and the only way.
        self.flag(items, "vrrp_check_unicast_src");
        RuleDefaults {
            strict: self.switch(items, "vrrp_strict"),
            lower_prio_no_advert: self.switch(items, "vrrp_lower_prio_no_advert"),
            higher_prio_send_advert: self.switch(items, "vrrp_higher_prio_send_advert"),
            owner_ignore_adverts: self.switch(items, "vrrp_owner_ignore_adverts"),
            skip_check_adv_addr: self.switch(items, "vrrp_skip_check_adv_addr"),
        }
    }

    pub(super) fn rules(&mut self, items: &Items<'_>, defaults: &RuleDefaults) -> Rules {
        self.flag(items, "check_unicast_src");
        let strict = self.switch(items, "strict_mode").or(defaults.strict).unwrap_or(false);
        let mut read =
            |word, outer: Option<bool>, default| self.switch(items, word).or(outer).unwrap_or(default);
        Rules {
            lower_prio_no_advert: read("lower_prio_no_advert", defaults.lower_prio_no_advert, strict),
            higher_prio_send_advert: read("higher_prio_send_advert", defaults.higher_prio_send_advert, false),
            owner_ignore_adverts: read("owner_ignore_adverts", defaults.owner_ignore_adverts, strict),
            skip_check_adv_addr: read("skip_check_adv_addr", defaults.skip_check_adv_addr, false),
            strict,
        }
    }

    /// RFC 9568 has none of this.
    pub(super) fn strictly(&mut self, items: &Items<'_>, instance: &VrrpInstance) {
        if !instance.rules.strict {
            return;
        }
        for word in ["authentication", "unicast_peer"] {
            if let Some(span) = items.span(word) {
                let message = format!("{word} is not allowed in strict mode");
                let report = Report::error(Class::Conflict, span, message);
                self.reports.push(report.help("write `strict_mode off`, or leave it out"));
            }
        }
        if let (Some(signing), Some(span)) = (&instance.signing, items.span("auth_hmac"))
            && signing.mode != SigningMode::Enforce
        {
            self.error(Class::Conflict, span, "strict mode needs `mode enforce` in auth_hmac");
        }
        if instance.addresses.is_empty()
            && let Some(span) = items.span("virtual_router_id")
        {
            self.error(Class::Conflict, span, "strict mode needs a virtual_ipaddress");
        }
        if let Some(span) = items.span("preempt_delay") {
            self.warn(Class::Conflict, span, "preempt_delay has no effect in strict mode");
        }
    }

    /// Whether the node itself takes packets for the addresses.
    pub(super) fn accept(&mut self, items: &Items<'_>, priority: Priority, rules: Rules) -> bool {
        let (yes, no) = (self.flag(items, "accept"), self.flag(items, "no_accept"));
        if let (true, true, Some(span)) = (yes, no, items.span("no_accept")) {
            self.error(Class::Conflict, span, "no_accept contradicts accept");
        }
        priority.is_owner() || yes || !(no || rules.strict)
    }

    /// `use_vmac [NAME] ..`: NAME is that of an interface which keepalived makes.
    pub(super) fn vmac(&mut self, items: &Items<'_>) -> Vmac {
        let elsewhere = self.flag(items, "use_vmac_addr");
        let by_base = self.flag(items, "vmac_xmit_base");
        let here = items.last("use_vmac");
        if let (None, Some(span)) = (here, items.span("vmac_xmit_base")) {
            self.warn(Class::Ignored, span, "vmac_xmit_base has no effect without use_vmac");
        }
        let arguments = here.map(|item| item.statement.arguments()).unwrap_or_default();
        let mut words = arguments.as_slice();
        if let [name, rest @ ..] = words
            && !name.text.contains(':')
            && !["netlink_notify_msg", "group"].contains(&name.text)
        {
            self.word("use_vmac", name, value::interface);
            words = rest;
        }
        while let [word, rest @ ..] = words {
            words = match (word.text, rest) {
                ("netlink_notify_msg", rest) => rest,
                ("group", [_, rest @ ..]) => rest,
                _ => {
                    let message = format!("use_vmac {}: the MAC is that of RFC 9568", quote(word.text));
                    self.error(Class::Unsupported, word.span, message);
                    break;
                }
            };
        }
        Vmac { here: here.is_some(), elsewhere, adverts: here.is_some() && !by_base }
    }

    pub(super) fn garp_defaults(&mut self, items: &Items<'_>, words: [&'static str; 4]) -> GarpDefaults {
        let usual = match self.switch(items, "vrrp_min_garp") {
            Some(true) => Garp { repeat: 1, delay: Duration::ZERO, ..Garp::default() },
            _ => Garp::default(),
        };
        GarpDefaults {
            garp: self.garp(items, words, usual),
            lower_delay: self.one(items, "vrrp_garp_lower_prio_delay", whole_seconds),
            lower_repeat: self.one(items, "vrrp_garp_lower_prio_repeat", value::number(0..=1000)),
            extra: self.extra_garp(items, "vrrp_garp_extra_if"),
        }
    }

    /// `[all] SECONDS`
    fn extra_garp(&mut self, items: &Items<'_>, word: &'static str) -> Option<Extra> {
        let item = items.last(word)?;
        let arguments = item.statement.arguments();
        let (everywhere, words) = match arguments.as_slice() {
            [all, words @ ..] if all.text == "all" => (true, words),
            words => (false, words),
        };
        let [seconds, extra @ ..] = words else {
            self.error(
                Class::BadValue,
                item.statement.word().span,
                format!("{word} needs a number of seconds"),
            );
            return None;
        };
        self.extra(item, extra);
        let every = self.word(word, seconds, whole_seconds)?;
        Some(Extra { everywhere, every })
    }

    /// `vmac`, `elsewhere`: whether adverts come from a virtual MAC, and addresses are on other interfaces.
    pub(super) fn instance_garp(
        &mut self,
        items: &Items<'_>,
        outer: &GarpDefaults,
        vmac: Vmac,
        elsewhere: bool,
    ) -> Garp {
        let words =
            ["garp_master_delay", "garp_master_repeat", "garp_master_refresh", "garp_master_refresh_repeat"];
        let garp = self.garp(items, words, outer.garp);
        let delay = self.one(items, "garp_lower_prio_delay", whole_seconds).or(outer.lower_delay);
        let repeat =
            self.one(items, "garp_lower_prio_repeat", value::number(0..=1000)).or(outer.lower_repeat);
        let extra = self.extra_garp(items, "garp_extra_if").or(outer.extra);
        let untold = (vmac.here && !vmac.adverts) || elsewhere;
        let extra = extra.filter(|extra| extra.everywhere || untold).map(|extra| extra.every);
        let refreshes = [extra, Some(garp.refresh)].into_iter().flatten();
        Garp {
            refresh: refreshes.filter(|refresh| !refresh.is_zero()).min().unwrap_or_default(),
            lower_prio_delay: delay.unwrap_or(garp.delay),
            lower_prio_repeat: repeat.unwrap_or(garp.repeat),
            ..garp
        }
    }

    /// `words`: delay, repeat, refresh, refresh_repeat.
    fn garp(&mut self, items: &Items<'_>, words: [&'static str; 4], outer: Garp) -> Garp {
        let [delay, repeat, refresh, refresh_repeat] = words;
        Garp {
            delay: self.one(items, delay, whole_seconds).unwrap_or(outer.delay),
            repeat: self.one(items, repeat, value::number(1..=1000)).unwrap_or(outer.repeat),
            refresh: self.one(items, refresh, whole_seconds).unwrap_or(outer.refresh),
            refresh_repeat: self
                .one(items, refresh_repeat, value::number(1..=1000))
                .unwrap_or(outer.refresh_repeat),
            ..outer
        }
    }
}

fn whole_seconds(word: &str) -> value::Value<Duration> {
    value::number(0..=86_400)(word).map(|seconds| Duration::from_secs(seconds.into()))
}
