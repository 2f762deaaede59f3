//! What a track_file says, and a FILE_CHECK of one.

use std::{ops::RangeInclusive, path::PathBuf};

use super::{
    super::{Item, Items, Reader, value, value::Wrong},
    Weight,
};
use crate::{
    config::{
        diagnostic::{Class, quote},
        keywords::Block,
        model::{FileCheck, TrackFile, Tracker},
    },
    file_value::Initial,
};

/// What an instance may multiply the number by.
pub const WEIGHTS: RangeInclusive<i64> = -254..=254;
/// A real server has more weights than an instance has priorities.
const ALL_WEIGHTS: RangeInclusive<i64> = -(i32::MAX as i64)..=i32::MAX as i64;

impl Reader<'_> {
    /// A `track_file` block.
    pub(in super::super) fn track_file(&mut self, item: Item<'_>) {
        let items = self.items(Block::TrackFile, item.body());
        let name = self.tracker_name(item);
        let path = self.required(&items, item, "file", |path| match PathBuf::from(path) {
            path if path.is_absolute() && path.file_name().is_some() => Ok(path),
            _ => Err(Wrong::new(format!("{} is no absolute path of a file", quote(path)))),
        });
        let weight = items
            .last("weight")
            .map(|item| self.weight(item.keyword.word, &item.statement.arguments(), ALL_WEIGHTS));
        let initial = self.init_file(&items);
        let Some((name, span)) = name else { return };
        let tracker = path.map(|path| Tracker::File(TrackFile { name: name.clone(), path, initial }));
        let weight = weight.unwrap_or(Weight { weight: 1, reverse: false });
        self.define(item, ("track_file", name, span), tracker, weight);
    }

    /// `init_file [NUMBER] [overwrite]`.
    fn init_file(&mut self, items: &Items<'_>) -> Option<Initial> {
        let item = items.last("init_file")?;
        let arguments = item.statement.arguments();
        let mut words = arguments.as_slice();
        let mut initial = Initial { value: 0, overwrite: false };
        if let [number, rest @ ..] = words
            && number.text != "overwrite"
        {
            initial.value =
                self.word("init_file", number, |word| Ok(i32::try_from(value::integer(word)?)?))?;
            words = rest;
        }
        if let [word, rest @ ..] = words {
            self.word("init_file", word, value::choice(&[("overwrite", ())]))?;
            initial.overwrite = true;
            words = rest;
        }
        self.extra(item, words);
        Some(initial)
    }

    /// A FILE_CHECK.
    pub(in super::super) fn file_check(&mut self, items: &Items<'_>, block: Item<'_>) -> Option<FileCheck> {
        let own = items
            .last("weight")
            .map(|item| self.weight(item.keyword.word, &item.statement.arguments(), ALL_WEIGHTS));
        if items.lacks("track_file") {
            self.error(Class::Missing, block.statement.span(), "FILE_CHECK without track_file");
        }
        let item = items.last("track_file")?;
        let arguments = item.statement.arguments();
        let [name, extra @ ..] = arguments.as_slice() else {
            self.error(Class::BadValue, item.statement.word().span, "track_file needs a value");
            return None;
        };
        self.extra(item, extra);
        let named = self.named("track_file", name)?;
        let Weight { weight, reverse } = own.unwrap_or(named.weight);
        match self.trackers.list.get(named.tracker) {
            Some(Tracker::File(file)) => Some(FileCheck { path: file.path.clone(), weight, reverse }),
            _ => None,
        }
    }
}
