//! `~SEQ` and `~LST`: how often a line is said, and with which values.

use super::{BLANKS, Expander, definitions::Local, line::Line};
use crate::config::{
    diagnostic::{Class, Report, quote},
    source::Origin,
};

/// Names, and rounds of values for them.
struct Repetition {
    names: Vec<String>,
    rounds: Box<dyn Iterator<Item = Vec<String>>>,
}

impl Expander<'_> {
    /// `line` begins with the `~`.
    pub fn repeat(&mut self, line: &Line, depth: usize) {
        let text = line.text();
        let place = line.place(0..text.len()).unwrap_or_default();
        let Some((head, end)) = head(text) else {
            let report =
                Report::error(Class::Syntax, self.text.end(), "~SEQ and ~LST take their values in ( )");
            return self.reports.push(report.at(place));
        };
        let [parameters] = self.replaced(&line.slice(head.clone())).try_into().unwrap_or_default();
        let kind = text.get(..head.start).unwrap_or("");
        let read = match kind {
            "~SEQ(" => sequence(parameters.text(), |value| value.to_string()),
            "~SEQx(" => sequence(parameters.text(), |value| format!("{value:x}")),
            "~LST(" => list(parameters.text()),
            _ => Err(format!("{} is neither ~SEQ, ~SEQx nor ~LST", quote(kind.trim_end_matches('(')))),
        };
        let Repetition { names, rounds } = match read {
            Ok(repetition) => repetition,
            Err(why) => {
                let report = Report::error(Class::BadValue, self.text.end(), why);
                return self.reports.push(report.at(place));
            }
        };
        let rest = line.slice(end..text.len());
        let outer = self.locals.len();
        for values in rounds {
            if self.exhausted || !self.step(line) {
                break;
            }
            let origin = Origin { file: place.file, offset: place.start, used: None };
            let locals = names.iter().cloned().zip(values);
            self.locals.extend(locals.map(|(name, value)| Local { name, value: Line::of(&value, origin) }));
            self.logical(&rest, depth + 1);
            self.locals.truncate(outer);
        }
    }
}

/// Where the values stand, and where the line goes on.
fn head(text: &str) -> Option<(std::ops::Range<usize>, usize)> {
    let open = text.find('(')?;
    // A reference with parameters may have a `)` in it, nothing else may.
    let close = open + text.get(open..)?.find(')')?;
    Some((open + 1..close, close + 1))
}

/// `NAME, [START, [STEP,]] END`.
fn sequence(parameters: &str, shown: impl Fn(i64) -> String + 'static) -> Result<Repetition, String> {
    const MOST: i64 = 65_536;
    let mut words = parameters.split(',').map(|word| word.trim_matches(BLANKS));
    let name = name(words.next().unwrap_or(""))?;
    let numbers = words.map(number).collect::<Result<Vec<_>, _>>()?;
    let (start, step, end) = match numbers[..] {
        [end] if end < 0 => (-1, -1, end),
        [end] => (1, 1, end),
        [start, end] if end < start => (start, -1, end),
        [start, end] => (start, 1, end),
        [start, step, end] => (start, step, end),
        _ => return Err("~SEQ takes NAME, [START, [STEP,]] END".to_owned()),
    };
    let distance = end - start;
    if step == 0 || (distance != 0 && (distance < 0) != (step < 0)) {
        return Err(format!("~SEQ never gets from {start} to {end} in steps of {step}"));
    }
    let count = distance / step + 1;
    if count > MOST {
        return Err(format!("~SEQ repeats {count} times, which is more than {MOST}"));
    }
    let rounds = (0..count).map(move |round| vec![shown(start + round * step)]);
    Ok(Repetition { names: vec![name], rounds: Box::new(rounds) })
}

/// As strtol reads it with base 0.
fn number(word: &str) -> Result<i64, String> {
    let wrong = || format!("~SEQ: {} is not a whole number", quote(word));
    let (sign, digits) = word.strip_prefix('-').map_or((1, word), |digits| (-1, digits));
    let value = match (digits.strip_prefix("0x"), digits.strip_prefix('0')) {
        (Some(hex), _) => u32::from_str_radix(hex, 16),
        (None, Some(octal)) if !octal.is_empty() => u32::from_str_radix(octal, 8),
        _ => digits.parse(),
    };
    Ok(sign * i64::from(value.map_err(|_| wrong())?))
}

/// `NAME, A, B, ..` or `{NAME, ..}, {A, ..}, ..`.
fn list(parameters: &str) -> Result<Repetition, String> {
    let mut rounds = Vec::new();
    let mut rest = parameters.trim_matches(BLANKS);
    while !rest.is_empty() {
        let (words, after) = match rest.strip_prefix('{').map(|inner| inner.split_once('}')) {
            Some(Some((inner, after))) => {
                (inner.split(',').map(|word| word.trim_matches(BLANKS).to_owned()).collect(), after)
            }
            Some(None) => return Err("~LST: a `{` without its `}`".to_owned()),
            None => {
                let length = rest.find(',').unwrap_or(rest.len());
                let (word, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
                (vec![word.trim_matches(BLANKS).to_owned()], after)
            }
        };
        rounds.push(words);
        let after = after.trim_start_matches(BLANKS);
        rest = match after.strip_prefix(',') {
            Some(rest) => rest.trim_start_matches(BLANKS),
            None if after.is_empty() => "",
            None => return Err(format!("~LST: {} where a `,` should be", quote(after))),
        };
    }
    if rounds.len() < 2 {
        return Err("~LST takes NAME and values".to_owned());
    }
    let names = rounds.remove(0).iter().map(|word| name(word)).collect::<Result<Vec<_>, _>>()?;
    if let Some(round) = rounds.iter().find(|round| round.len() != names.len()) {
        return Err(format!("~LST: {} values for {} names", round.len(), names.len()));
    }
    Ok(Repetition { names, rounds: Box::new(rounds.into_iter()) })
}

fn name(word: &str) -> Result<String, String> {
    let word = word.trim_matches(BLANKS);
    if !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        Ok(word.to_owned())
    } else {
        Err(format!("{} is no name for what is repeated", quote(word)))
    }
}
