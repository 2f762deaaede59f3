//! What is tracked, and what it means to an instance.

mod file;
mod link;
mod process;

use std::{collections::HashMap, ops::RangeInclusive, time::Duration};

use super::{Item, Items, Reader, script::runnable, value, value::Wrong};
use crate::config::{
    diagnostic::{Class, Report, quote},
    keywords::{Block, nearest_of},
    lexer::Word,
    model::{Priority, Track, TrackScript, Tracker},
    source::Span,
};

/// What the file has to track so far.
#[derive(Default)]
pub struct Trackers {
    list: Vec<Tracker>,
    /// By the word that tracks it and its name; absent where the block cannot be used.
    named: HashMap<(&'static str, String), (Span, Option<Named>)>,
    interfaces: HashMap<String, usize>,
}

/// A tracker that is defined in a block of its own.
#[derive(Clone, Copy)]
struct Named {
    tracker: usize,
    weight: Weight,
    used: bool,
}

#[derive(Clone, Copy, Default)]
struct Weight {
    weight: i32,
    reverse: bool,
}

const WEIGHTS: RangeInclusive<i64> = -253..=253;
const DAY: Duration = Duration::from_secs(86_400);

impl Reader<'_> {
    /// A `vrrp_script` block.
    pub(super) fn track_script(&mut self, item: Item<'_>) {
        let items = self.items(Block::VrrpScript, item.body());
        let name = self.tracker_name(item);
        let account = match items.last("user") {
            Some(user) => self.account(user, &user.statement.arguments()),
            None => Some(self.script_account),
        };
        let command = self.program(&items, item, "script");
        let script = account.zip(command).and_then(|(account, (word, words))| {
            self.word("script", &word, |_| runnable(words.clone(), account))
        });
        let interval = self.one(&items, "interval", value::seconds(Duration::from_millis(10)..=DAY));
        let timeout = self.one(&items, "timeout", value::seconds(Duration::ZERO..=DAY));
        let weight =
            items.last("weight").map(|item| self.weight("weight", &item.statement.arguments(), WEIGHTS));
        let rise = self.one(&items, "rise", value::number(1..=1_000_000));
        let fall = self.one(&items, "fall", value::number(1..=1_000_000));
        let init_fail = self.flag(&items, "init_fail");
        let Some((name, span)) = name else { return };
        let interval = interval.unwrap_or(Duration::from_secs(1));
        let timeout = timeout.filter(|timeout| !timeout.is_zero()).unwrap_or(interval);
        let tracker = script.map(|script| {
            Tracker::Script(TrackScript {
                name: name.clone(),
                script,
                interval,
                timeout,
                rise: rise.unwrap_or(1),
                fall: fall.unwrap_or(1),
                init_fail,
            })
        });
        self.define(item, ("track_script", name, span), tracker, weight.unwrap_or_default());
    }

    /// The name of a block that defines a tracker.
    fn tracker_name(&mut self, item: Item<'_>) -> Option<(String, Span)> {
        let arguments = item.statement.arguments();
        let Some((name, extra)) = arguments.split_first() else {
            let message = format!("{} without a name", item.keyword.word);
            self.error(Class::Missing, item.statement.span(), message);
            return None;
        };
        self.extra(item, extra);
        self.word(item.keyword.word, name, value::text).map(|text| (text, name.span))
    }

    /// Without a tracker the name is known, and cannot be used.
    fn define(
        &mut self,
        item: Item<'_>,
        (kind, name, span): (&'static str, String, Span),
        tracker: Option<Tracker>,
        weight: Weight,
    ) {
        if let Some((first, _)) = self.trackers.named.get(&(kind, name.clone())) {
            let message = format!("a second {} {}", item.keyword.word, quote(&name));
            self.reports.push(Report::error(Class::Duplicate, span, message).first(*first));
            return;
        }
        let named = tracker.map(|tracker| {
            self.trackers.list.push(tracker);
            Named { tracker: self.trackers.list.len() - 1, weight, used: false }
        });
        self.trackers.named.insert((kind, name), (span, named));
    }

    /// `track_script` and its like of an instance.
    pub(super) fn tracks(&mut self, items: &Items<'_>, priority: Priority) -> Vec<Track> {
        let mut tracks: Vec<Track> = Vec::new();
        let mut seen = HashMap::new();
        for kind in ["track_script", "track_interface", "track_file", "track_process"] {
            let blocks: Vec<_> = items.all(kind).collect();
            for entry in blocks.iter().flat_map(|item| item.body()) {
                if entry.is_block() {
                    self.error(Class::Syntax, entry.word().span, "an entry takes no block");
                }
                let found = match kind {
                    "track_interface" => self.interface(&entry.word()),
                    kind => self.named(kind, &entry.word()),
                };
                let weights = match kind {
                    "track_file" => file::WEIGHTS,
                    "track_process" => process::WEIGHTS,
                    _ => WEIGHTS,
                };
                let own = (!entry.arguments().is_empty())
                    .then(|| self.track_weight(&entry.arguments(), weights.clone()));
                let Some(Named { tracker, weight, .. }) = found else { continue };
                let Weight { weight, reverse } = own.unwrap_or(weight);
                if !weights.contains(&weight.into()) {
                    let (least, most) = (weights.start(), weights.end());
                    let message = format!("{kind}: the weight {weight} is not in {least} to {most}");
                    self.error(Class::BadValue, entry.word().span, message);
                }
                if let Some(first) = seen.insert(tracker, entry.word().span) {
                    let message =
                        format!("{kind}: {} is named twice: the first counts", quote(entry.word().text));
                    let report = Report::warning(Class::Duplicate, entry.word().span, message);
                    self.reports.push(report.first(first));
                    continue;
                }
                if weight != 0 && priority.is_owner() {
                    let message = "a weight does not change priority 255, as in keepalived";
                    self.warn(Class::Trap, entry.word().span, message);
                }
                tracks.push(Track { tracker, weight, reverse });
            }
        }
        tracks
    }

    /// What a block before or behind has defined.
    fn named(&mut self, kind: &'static str, word: &Word) -> Option<Named> {
        if word.spoilt {
            return None;
        }
        if let Some((_, named)) = self.trackers.named.get_mut(&(kind, word.text.to_owned())) {
            let named = named.as_mut()?;
            named.used = true;
            return Some(*named);
        }
        let names = self.trackers.named.keys().filter(|(other, _)| *other == kind);
        let near = nearest_of(names.map(|(_, name)| name.as_str()), word.text);
        let suggestion = near.map_or(String::new(), |near| format!("; did you mean {}?", quote(near)));
        let block = defined_by(kind);
        let message = format!("{kind}: there is no {block} {}{suggestion}", quote(word.text));
        self.error(Class::BadValue, word.span, message);
        None
    }

    fn interface(&mut self, word: &Word) -> Option<Named> {
        let name = self.word("track_interface", word, value::interface)?;
        let Trackers { list, interfaces, .. } = &mut self.trackers;
        let tracker = *interfaces.entry(name.clone()).or_insert_with(|| {
            list.push(Tracker::Interface(name));
            list.len() - 1
        });
        Some(Named { tracker, weight: Weight::default(), used: true })
    }

    /// `weight NUMBER [reverse|noreverse]` behind a name.
    fn track_weight(&mut self, words: &[Word], range: RangeInclusive<i64>) -> Weight {
        match words {
            [word, rest @ ..] if word.text == "weight" => self.weight("weight", rest, range),
            [word, ..] => {
                let message = format!("{} is not read: only `weight` may follow", quote(word.text));
                self.error(Class::UnknownWord, word.span, message);
                Weight::default()
            }
            [] => Weight::default(),
        }
    }

    /// `NUMBER [reverse|noreverse]`.
    fn weight(&mut self, what: &str, words: &[Word], range: RangeInclusive<i64>) -> Weight {
        let number = |word: &str| {
            let number = value::integer(word)?;
            let outside = || Wrong::new(format!("{number} is not in {} to {}", range.start(), range.end()));
            i32::try_from(number).ok().filter(|_| range.contains(&number)).ok_or_else(outside)
        };
        let Some((first, rest)) = words.split_first() else { return Weight::default() };
        let weight = self.word(what, first, number).unwrap_or_default();
        let reverse = rest.first().and_then(|word| {
            self.word(what, word, value::choice(&[("reverse", true), ("noreverse", false)]))
        });
        if let Some(word) = rest.get(1) {
            self.error(Class::UnknownWord, word.span, format!("{} is not read", quote(word.text)));
        }
        Weight { weight, reverse: reverse.unwrap_or_default() }
    }

    /// Everything that the file has to track. What nobody does is not looked at.
    pub(super) fn used_trackers(&mut self) -> Vec<Tracker> {
        let unused = self.trackers.named.iter().filter(|(_, (_, named))| named.is_some_and(|it| !it.used));
        let mut unused: Vec<_> = unused
            .map(|((kind, name), (span, _))| {
                let nobody = if *kind == "track_file" { "nobody" } else { "no instance" };
                (*span, format!("{nobody} tracks {} {}", defined_by(kind), quote(name)))
            })
            .collect();
        unused.sort();
        for (span, message) in unused {
            self.warn(Class::Ignored, span, message);
        }
        std::mem::take(&mut self.trackers.list)
    }
}

/// The block that a tracker is defined in.
fn defined_by(kind: &str) -> &str {
    match kind {
        "track_script" => "vrrp_script",
        "track_process" => "vrrp_track_process",
        kind => kind,
    }
}
