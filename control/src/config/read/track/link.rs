//! How long a link has to be up or down until it counts.

use std::{collections::HashMap, time::Duration};

use super::super::{Items, Reader, value};
use crate::config::{
    diagnostic::{Class, Report, quote},
    model::{LinkDelays, VrrpInstance},
};

const MOST: Duration = Duration::from_secs(255);

impl Reader<'_> {
    /// `interface_up_down_delays { IF DOWN [UP] }`.
    pub(in super::super) fn link_delays(
        &mut self,
        top: &Items<'_>,
        instances: &[VrrpInstance],
    ) -> Vec<LinkDelays> {
        let mut seen = HashMap::new();
        let mut list = Vec::new();
        let Some(item) = top.last("interface_up_down_delays") else { return list };
        self.extra(item, &item.statement.arguments());
        for entry in item.body() {
            if entry.is_block() {
                self.error(Class::Syntax, entry.word().span, "an entry takes no block");
            }
            let interface = self.word("interface_up_down_delays", &entry.word(), value::interface);
            let seconds = value::seconds(Duration::ZERO..=MOST);
            let arguments = entry.arguments();
            let (down, up) = match arguments.as_slice() {
                [] => {
                    self.error(Class::Missing, entry.word().span, "an interface without a delay");
                    continue;
                }
                [down] => (self.word("delay", down, &seconds), None),
                [down, up, rest @ ..] => {
                    self.extra(item, rest);
                    (self.word("delay", down, &seconds), self.word("delay", up, &seconds))
                }
            };
            let (Some(interface), Some(down)) = (interface, down) else { continue };
            if let Some(first) = seen.insert(interface.clone(), entry.word().span) {
                let message = format!("{} is named twice", quote(&interface));
                self.reports.push(Report::error(Class::Duplicate, entry.word().span, message).first(first));
                continue;
            }
            // Else a backup takes over before this node knows that it is cut off.
            let is_late = |it: &&VrrpInstance| {
                it.interface == interface && down >= it.advert_interval * (it.down_timer_adverts - 1)
            };
            if let Some(instance) = instances.iter().find(is_late) {
                let message = format!(
                    "a peer of {} takes over before a down delay of {} s has passed",
                    quote(&instance.name),
                    down.as_secs_f64()
                );
                self.warn(Class::Trap, entry.word().span, message);
            }
            list.push(LinkDelays { interface, down, up: up.unwrap_or(down) });
        }
        list
    }
}
