//! What a vrrp_sync_group says.

use super::{Item, Items, Reader, value};
use crate::config::{
    diagnostic::{Class, Report, quote},
    keywords::{Block, nearest_of},
    model::{Priority, SyncGroup, VrrpInstance},
};

impl Reader<'_> {
    /// Gives the members the trackers of their group.
    pub(super) fn group(&mut self, item: Item<'_>, instances: &mut [VrrpInstance]) -> Option<SyncGroup> {
        let items = self.items(Block::SyncGroup, item.body());
        let name = self.group_name(item);
        let notify = self.notify(&items);
        let weights = self.flag(&items, "sync_group_tracking_weight");
        let members = self.members(&items, item, instances);
        let tracks = self.tracks(&items, Priority::DEFAULT);
        for index in &members {
            let Some(instance) = instances.get_mut(*index) else { continue };
            let all = instance.tracks.len();
            instance.tracks.retain(|track| weights || track.weight == 0);
            if instance.tracks.len() < all {
                let span = items.span("group").unwrap_or(item.statement.span());
                let message = format!("weights that {} itself gives have no effect", quote(&instance.name));
                let report = Report::warning(Class::WeightInGroup, span, message);
                self.reports.push(report.help("track in the group, or write sync_group_tracking_weight"));
            }
            let own: Vec<_> = instance.tracks.iter().map(|track| track.tracker).collect();
            instance.tracks.extend(tracks.iter().filter(|track| !own.contains(&track.tracker)));
        }
        Some(SyncGroup { name: name?, members, notify })
    }

    fn group_name(&mut self, item: Item<'_>) -> Option<String> {
        let arguments = item.statement.arguments();
        let Some((word, extra)) = arguments.split_first() else {
            self.error(Class::Missing, item.statement.span(), "vrrp_sync_group without a name");
            return None;
        };
        self.extra(item, extra);
        let name = self.word("vrrp_sync_group", word, value::text)?;
        // Instances cannot be called so: a blank is no part of a name.
        if let Some(first) = self.names.insert(format!("group {name}"), word.span) {
            let message = format!("a second vrrp_sync_group {}", quote(&name));
            self.reports.push(Report::error(Class::Duplicate, word.span, message).first(first));
        }
        Some(name)
    }

    fn members(&mut self, items: &Items<'_>, item: Item<'_>, instances: &[VrrpInstance]) -> Vec<usize> {
        let mut members = Vec::new();
        let group = items.last("group");
        if group.is_none_or(|group| group.body().is_empty()) && !items.misspelt.contains(&"group") {
            self.error(Class::Missing, item.statement.span(), "vrrp_sync_group without members");
        }
        // keepalived reads several names a line too.
        for word in group.into_iter().flat_map(|group| group.body()).flat_map(|entry| entry.words()) {
            if word.spoilt {
                continue;
            }
            let Some(index) = instances.iter().position(|instance| instance.name == word.text) else {
                let near = nearest_of(instances.iter().map(|instance| instance.name.as_str()), word.text);
                let suggestion =
                    near.map_or(String::new(), |near| format!("; did you mean {}?", quote(near)));
                let message = format!("group: there is no vrrp_instance {}{suggestion}", quote(word.text));
                self.error(Class::BadValue, word.span, message);
                continue;
            };
            if let Some(first) = self.members.insert(word.text.to_owned(), word.span) {
                let message = format!("{} is in a sync group already", quote(word.text));
                self.reports.push(Report::error(Class::Duplicate, word.span, message).first(first));
                continue;
            }
            members.push(index);
        }
        if members.len() == 1 && group.is_some_and(|group| group.body().count() == 1) {
            self.warn(Class::Trap, item.statement.span(), "a sync group of one moves as it would without");
        }
        members
    }
}
