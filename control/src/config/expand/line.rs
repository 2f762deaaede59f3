//! A line while it is put together, and where each part of it comes from.

use std::ops::Range;

use crate::config::source::{Origin, Place};

#[derive(Clone, Debug, Default)]
pub struct Line {
    text: String,
    /// Where a part begins, in order.
    marks: Vec<(usize, Origin)>,
}

impl Line {
    pub fn of(text: &str, origin: Origin) -> Self {
        let mut line = Self::default();
        line.push(text, origin);
        line
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn push(&mut self, text: &str, origin: Origin) {
        if !text.is_empty() {
            self.marks.push((self.text.len(), origin));
            self.text.push_str(text);
        }
    }

    /// As `push`, of a part of another line; what has no reference of its own stands in the place of `used`.
    pub fn push_part(&mut self, line: &Self, part: Range<usize>, used: Option<Place>) {
        for (text, origin) in line.parts(part) {
            self.push(text, Origin { used: origin.used.or(used), ..origin });
        }
    }

    pub fn slice(&self, part: Range<usize>) -> Self {
        let mut slice = Self::default();
        slice.push_part(self, part, None);
        slice
    }

    pub fn truncate(&mut self, length: usize) {
        self.text.truncate(length);
        self.marks.retain(|(at, _)| *at < length);
    }

    pub fn trimmed_end(mut self) -> Self {
        self.truncate(self.text.trim_end().len());
        self
    }

    pub fn pieces(&self) -> impl Iterator<Item = (&str, Origin)> {
        self.parts(0..self.text.len())
    }

    /// Where to point at for a part of the line.
    pub fn place(&self, part: Range<usize>) -> Option<Place> {
        let (text, origin) = self.parts(part).next()?;
        let own = Place::new(origin.file, origin.offset as usize, text.len());
        Some(origin.used.unwrap_or(own))
    }

    fn parts(&self, part: Range<usize>) -> impl Iterator<Item = (&str, Origin)> {
        let first = self.marks.partition_point(|(at, _)| *at <= part.start).saturating_sub(1);
        self.marks.iter().enumerate().skip(first).map_while(move |(index, (at, origin))| {
            let next = self.marks.get(index + 1).map_or(self.text.len(), |(next, _)| *next);
            let (from, to) = (part.start.max(*at), part.end.min(next));
            let text = self.text.get(from..to).filter(|text| !text.is_empty())?;
            Some((text, origin.behind(from - at)))
        })
    }
}
