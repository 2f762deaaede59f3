//! What `$NAME` stands for.

use std::{env, ops::Range};

use super::{BLANKS, Expander, MAX_DEPTH, line::Line};
use crate::config::{
    diagnostic::{Class, Report, quote},
    source::Origin,
};

/// What a repetition stands at.
pub struct Local {
    pub name: String,
    pub value: Line,
}

impl Expander<'_> {
    /// The line with all references replaced: several lines where the last of them stands for several.
    pub fn replaced(&mut self, line: &Line) -> Vec<Line> {
        let mut done = Replaced::default();
        self.replace(line, None, 0, &mut done);
        done.lines.push(done.current);
        done.lines
    }

    fn replace(&mut self, line: &Line, within: Option<Origin>, depth: usize, done: &mut Replaced) {
        let used = within.and_then(|within| within.used);
        let mut from = 0;
        for (at, inside, end) in references(line.text(), 0) {
            // What a definition holds is not even looked at any more.
            if self.exhausted {
                return;
            }
            let Some(lines) = self.meaning(inside, line, at) else { continue };
            done.current.push_part(line, from..at, used);
            from = end;
            if !self.step(line) || done.bytes > self.room() {
                return self.stop(line, "definitions and repetitions grow without measure");
            }
            let place = used.or_else(|| line.place(at..end));
            if depth >= MAX_DEPTH {
                let message = format!("{} stands for itself, or is nested too deep", quote(inside));
                let report = Report::error(Class::Limit, self.text.end(), message);
                self.reports.push(report.at(place.unwrap_or_default()));
                continue;
            }
            let within = Some(Origin { used: place, ..Origin::default() });
            for (index, line) in lines.iter().enumerate() {
                if index > 0 {
                    done.lines.push(std::mem::take(&mut done.current));
                }
                done.bytes += line.text().len();
                self.replace(line, within, depth + 1, done);
            }
        }
        done.current.push_part(line, from..line.text().len(), used);
    }

    fn meaning(&mut self, inside: &str, line: &Line, at: usize) -> Option<Vec<Line>> {
        if let Some(local) = self.locals.iter().rev().find(|local| local.name == inside) {
            return Some(vec![local.value.clone()]);
        }
        if let Some(lines) = self.definitions.get(inside) {
            return Some(lines.clone());
        }
        let place = line.place(at..line.text().len())?;
        let mut words = inside.split(' ').filter(|word| !word.is_empty());
        let text = match (words.next()?, words.next(), words.next(), words.next()) {
            ("_HASH", None, ..) => "#".to_owned(),
            ("_BANG", None, ..) => "!".to_owned(),
            ("_INSTANCE", None, ..) => self.instance.clone(),
            ("_PWD", None, ..) => self.open.last()?.path.parent()?.to_string_lossy().into_owned(),
            ("_RANDOM", min, max, None) => {
                let bound = |word: Option<&str>, or: u32| word.map_or(Some(or), |word| word.parse().ok());
                let (min, max) = (bound(min, 0)?, bound(max, 32_767)?);
                (min <= max).then(|| self.random.u32(min..=max))?.to_string()
            }
            ("_ENV", Some(name), None, _) => match env::var(name) {
                Ok(value) => value,
                Err(_) => {
                    let message = format!("the environment has no {}: nothing is read here", quote(name));
                    let report = Report::warning(Class::Trap, self.text.end(), message);
                    self.reports.push(report.at(place));
                    String::new()
                }
            },
            _ => return None,
        };
        let origin = Origin { file: place.file, offset: place.start, used: None };
        Some(vec![Line::of(&text, origin)])
    }
}

#[derive(Default)]
struct Replaced {
    lines: Vec<Line>,
    current: Line,
    bytes: usize,
}

/// `$NAME=value`: the name, and where the value stands.
pub fn definition(line: &str) -> Option<(&str, Range<usize>)> {
    let (name, _) = line.trim_start_matches(BLANKS).strip_prefix('$')?.split_once('=')?;
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(is_name) {
        return None;
    }
    let start = line.find('=')? + 1;
    let value = line.get(start..)?;
    let start = line.len() - value.trim_start_matches(BLANKS).len();
    Some((name, start..line.trim_end_matches(BLANKS).len().max(start)))
}

/// What keepalived would look up, with where it begins and ends: `${NAME}` anywhere, `$NAME` where a blank, `,`, `)`
/// or nothing follows.
pub fn references(text: &str, from: usize) -> impl Iterator<Item = (usize, &str, usize)> {
    let found = text.get(from..).unwrap_or("").match_indices('$');
    found.filter_map(move |(at, _)| {
        let at = at + from;
        let rest = text.get(at..)?;
        if let Some(inside) = rest.strip_prefix("${") {
            let length = inside.find(|c: char| !is_name(c) && !" -".contains(c))?;
            let inside = inside.get(..length).filter(|_| inside[length..].starts_with('}'))?;
            return Some((at, inside, at + "${}".len() + length)).filter(|_| !inside.is_empty());
        }
        let name = rest.strip_prefix('$')?;
        let length = name.find(|c| !is_name(c)).unwrap_or(name.len());
        let ends = name.get(length..)?.chars().next().is_none_or(|c| BLANKS.contains(&c) || ",)".contains(c));
        let name = name.get(..length).filter(|name| ends && !name.is_empty())?;
        Some((at, name, at + "$".len() + length))
    })
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}
