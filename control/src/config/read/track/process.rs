//! What a vrrp_track_process says.

use std::{ops::RangeInclusive, time::Duration};

use super::super::{Item, Items, Reader, value};
use crate::config::{
    diagnostic::Class,
    keywords::Block,
    model::{ParamMatch, TrackProcess, Tracker},
};

pub const WEIGHTS: RangeInclusive<i64> = -254..=254;
const HOUR: Duration = Duration::from_secs(3600);

impl Reader<'_> {
    pub(in super::super) fn track_process(&mut self, item: Item<'_>) {
        let items = self.items(Block::TrackProcess, item.body());
        let name = self.tracker_name(item);
        let command = self.process(&items, item);
        let param_match = self.one(
            &items,
            "param_match",
            value::choice(&[("initial", ParamMatch::Initial), ("partial", ParamMatch::Partial)]),
        );
        let weight =
            items.last("weight").map(|item| self.weight("weight", &item.statement.arguments(), WEIGHTS));
        let quorum = self.quorum_of_processes(&items);
        let delay = self.one(&items, "delay", value::seconds(Duration::ZERO..=HOUR)).unwrap_or_default();
        let fork_delay = self.one(&items, "fork_delay", value::seconds(Duration::ZERO..=HOUR));
        let terminate_delay = self.one(&items, "terminate_delay", value::seconds(Duration::ZERO..=HOUR));
        let full_command = self.flag(&items, "full_command");
        let Some((name, span)) = name else { return };
        let tracker = command.map(|(process, parameters)| {
            // keepalived's rule: param_match alone wants a process without parameters.
            let how = param_match.filter(|_| !parameters.is_empty()).unwrap_or(ParamMatch::Exact);
            let any = parameters.is_empty() && param_match.is_none();
            let parameters = (!any).then_some((parameters, how));
            Tracker::Process(TrackProcess {
                name: name.clone(),
                process,
                parameters,
                full_command,
                quorum,
                fork_delay: fork_delay.unwrap_or(delay),
                terminate_delay: terminate_delay.unwrap_or(delay),
            })
        });
        self.define(item, ("track_process", name, span), tracker, weight.unwrap_or_default());
    }

    /// `process NAME [PARAMETER..]`.
    fn process(&mut self, items: &Items<'_>, block: Item<'_>) -> Option<(String, Vec<String>)> {
        if items.lacks("process") {
            self.error(Class::Missing, block.statement.span(), "vrrp_track_process without process");
        }
        let item = items.last("process")?;
        let arguments = item.statement.arguments();
        let [process, parameters @ ..] = arguments.as_slice() else {
            self.error(Class::BadValue, item.statement.word().span, "process needs a value");
            return None;
        };
        let process = self.word("process", process, |word| match word {
            "" => Err(value::Wrong::new("an empty value")),
            word => Ok(word.to_owned()),
        })?;
        Some((process, parameters.iter().map(|word| word.text.to_owned()).collect()))
    }

    fn quorum_of_processes(&mut self, items: &Items<'_>) -> RangeInclusive<u32> {
        let least = self.one(items, "quorum", value::number(1..=65_535));
        let most = self.one(items, "quorum_max", value::number(0..=65_535));
        match (least, most) {
            (Some(least), Some(most)) if most < least => {
                let span = items.span("quorum_max").or(items.span("quorum"));
                if let Some(span) = span {
                    self.error(Class::Conflict, span, format!("quorum_max {most} is below quorum {least}"));
                }
                least..=least
            }
            (least, most) => {
                let most = most.unwrap_or(u32::MAX);
                // None at all may be what is wanted.
                least.unwrap_or(1.min(most))..=most
            }
        }
    }
}
