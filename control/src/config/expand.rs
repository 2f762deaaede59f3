//! What text a configuration is, once every `include`, `$NAME`, `@ID` and `~SEQ` in it is replaced by what it stands for.
//!
//! keepalived's order, line by line: comments go, `@ID` decides whether the line counts, `$NAME=value` defines, `include`
//! reads, `~SEQ` repeats, references are replaced, and what came of it may begin again with any but the first.

mod definitions;
mod include;
mod line;
mod repeat;

pub use definitions::{definition, references};

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use self::{definitions::Local, include::Checks, line::Line};
use super::{
    diagnostic::{Class, Report, Reports, quote},
    source::{FileId, Files, Origin, Place, Span, Text},
};

pub const BLANKS: [char; 5] = [' ', '\t', '\r', '\x0b', '\x0c'];

/// Of definitions in definitions, and of lines that come of lines.
const MAX_DEPTH: usize = 16;
const MAX_DEFINITIONS: usize = 4096;

/// Reads `text`, the content of `path`, and all it includes.
pub fn expand(path: &Path, text: String, config_id: &str, files: &mut Files, reports: &mut Reports) -> Text {
    let mut expander = Expander {
        config_id,
        files,
        reports,
        text: Text::default(),
        definitions: HashMap::new(),
        locals: Vec::new(),
        open: Vec::new(),
        checks: Checks::default(),
        instance: String::new(),
        random: fastrand::Rng::new(),
        steps: 0,
        exhausted: false,
    };
    expander.file(path.to_owned(), text);
    expander.text
}

struct Expander<'a> {
    config_id: &'a str,
    files: &'a mut Files,
    reports: &'a mut Reports,
    /// What is done so far.
    text: Text,
    definitions: HashMap<String, Vec<Line>>,
    /// Of the repetitions around, the innermost last.
    locals: Vec<Local>,
    /// The chain of files being read, the innermost last.
    open: Vec<Open>,
    checks: Checks,
    /// `${_INSTANCE}`.
    instance: String,
    random: fastrand::Rng,
    /// Replacements and repetitions so far.
    steps: usize,
    exhausted: bool,
}

struct Open {
    file: FileId,
    /// Without links.
    path: PathBuf,
}

impl Expander<'_> {
    fn file(&mut self, path: PathBuf, text: String) {
        let canonical = std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
        let length = text.len();
        // The last line may have no end.
        self.text.reserve(length + 1);
        let Some(file) = self.files.add(path, text) else { return };
        self.open.push(Open { file, path: canonical });
        let mut at = 0;
        while at < length {
            at = self.statement(file, at);
        }
        self.open.pop();
    }

    /// Reads the line that begins at `at`, and what belongs to it. Returns where the next one begins.
    fn statement(&mut self, file: FileId, at: usize) -> usize {
        let (line, next) = raw_line(self.files, file, at);
        let special = |byte| matches!(byte, b'$' | b'@' | b'~' | b'\\');
        let origin = Origin { file, offset: offset(at), used: None };
        if !line.bytes().any(special) && !first_word(line).is_some_and(is_directive) {
            let (code, comment) = line.split_at_checked(comment_start(line)).unwrap_or((line, ""));
            self.text.push(code, origin);
            self.text.pad(comment.len());
            self.text.end_line();
            if let Some(report) = comment_in_a_word(code, comment) {
                let place = Place::new(file, at + code.len(), 1);
                self.reports.push(report(self.text.end()).at(place));
            }
            return next;
        }
        let mut line = self.without_comment(file, at);
        if line.text().trim_start_matches(BLANKS).starts_with('@') {
            match self.chosen(&line) {
                Some(rest) => line = rest,
                None => return next,
            }
        }
        match definition(line.text()) {
            Some((name, value)) => {
                let (name, value) = (name.to_owned(), line.slice(value));
                self.define(name, value, file, next)
            }
            None => {
                self.logical(&line, 0);
                next
            }
        }
    }

    /// The line without its comment, `\#` and `\!` as what they stand for.
    fn without_comment(&mut self, file: FileId, at: usize) -> Line {
        let (raw, _) = raw_line(self.files, file, at);
        let end = comment_start(raw);
        let mut line = Line::default();
        let mut from = 0;
        for index in escapes(raw.get(..end).unwrap_or("")) {
            let origin = Origin { file, offset: offset(at + from), used: None };
            line.push(raw.get(from..index).unwrap_or(""), origin);
            from = index + 1;
        }
        let origin = Origin { file, offset: offset(at + from), used: None };
        let kept = raw.get(from..end).unwrap_or("");
        line.push(kept, origin);
        if let Some(report) = comment_in_a_word(kept, raw.get(end..).unwrap_or("")) {
            self.reports.push(report(self.text.end()).at(Place::new(file, at + end, 1)));
        }
        line
    }

    /// What is left of `@ID line`, if it is for this configuration.
    fn chosen(&self, line: &Line) -> Option<Line> {
        let text = line.text();
        let start = text.find('@')? + 1;
        let rest = text.get(start..)?;
        let (unless, id) = match rest.strip_prefix('^') {
            Some(id) => (true, id),
            None => (false, rest),
        };
        let length = id.find(BLANKS)?;
        let same = !self.config_id.is_empty() && id.get(..length)? == self.config_id;
        let rest = text.len() - id.len() + length;
        (same != unless).then(|| line.slice(rest..text.len()))
    }

    /// A definition and the lines that continue it. Returns where the next line begins.
    fn define(&mut self, name: String, value: Line, file: FileId, mut next: usize) -> usize {
        let place = value.place(0..value.text().len());
        let mut lines = vec![value];
        while let Some(last) = lines.last_mut().filter(|last| last.text().ends_with('\\')) {
            last.truncate(last.text().len() - 1);
            // Lines without anything but a comment are not counted, as in keepalived.
            while next < self.files.text(file).len() {
                let line = self.without_comment(file, next);
                (_, next) = raw_line(self.files, file, next);
                if !line.text().trim_matches(BLANKS).is_empty() {
                    lines.push(line.trimmed_end());
                    break;
                }
            }
        }
        if self.definitions.len() < MAX_DEFINITIONS || self.definitions.contains_key(&name) {
            self.definitions.insert(name, lines);
        } else if !self.exhausted {
            self.exhausted = true;
            let message = format!("more than {MAX_DEFINITIONS} definitions");
            self.reports
                .push(Report::error(Class::Limit, self.text.end(), message).at(place.unwrap_or_default()));
        }
        next
    }

    /// A line without comments, as it stands or as it came of another.
    fn logical(&mut self, line: &Line, depth: usize) {
        let start = line.text().len() - line.text().trim_start_matches(BLANKS).len();
        let text = line.text().get(start..).unwrap_or("");
        if depth > MAX_DEPTH {
            return self.stop(line, "lines come of lines without an end");
        }
        if text.starts_with("~SEQ") || text.starts_with("~LST") {
            return self.repeat(&line.slice(start..line.text().len()), depth);
        }
        match first_word(text) {
            Some(word) if include::WORDS.contains(&word) => {
                for line in self.replaced(line) {
                    self.include(&line);
                }
                return;
            }
            Some("include_check") => self.checks.set(text),
            Some("instance") => self.instance = argument(text).to_owned(),
            Some("random_seed") => {
                if let Ok(seed) = argument(text).parse() {
                    self.random = fastrand::Rng::with_seed(seed);
                }
            }
            _ => {}
        }
        if !text.contains('$') {
            return self.finished(line);
        }
        for line in self.replaced(line) {
            let text = line.text().trim_start_matches(BLANKS);
            let again = text.starts_with("~SEQ") || text.starts_with("~LST") || text.starts_with('@');
            let again = again || first_word(text).is_some_and(is_directive);
            match again.then(|| if text.starts_with('@') { self.chosen(&line) } else { Some(line.clone()) }) {
                Some(Some(line)) => self.logical(&line, depth + 1),
                Some(None) => {}
                None => self.finished(&line),
            }
        }
    }

    fn finished(&mut self, line: &Line) {
        if self.text.as_str().len() + line.text().len() > self.room() {
            return self.stop(line, "the lines that come of definitions and repetitions are too many");
        }
        for (at, name, end) in references(line.text(), 0) {
            let message = format!("{} is defined nowhere above: read as it stands", quote(name));
            let mut report = Report::warning(Class::Trap, self.text.end(), message);
            let rest = line.text().get(end..).unwrap_or("").trim_start_matches(BLANKS);
            if rest.starts_with('=') && line.text().trim_start_matches(BLANKS).starts_with('$') {
                report = report.help("a definition has no blank before its `=`");
            }
            self.reports.push(report.at(line.place(at..end).unwrap_or_default()));
        }
        for (text, origin) in line.pieces() {
            self.text.push(text, origin);
        }
        self.text.end_line();
    }

    /// Twice what was written, and enough for a small file.
    fn room(&self) -> usize {
        (4 << 20) + 2 * self.files.bytes()
    }

    /// One more replacement or repetition.
    fn step(&mut self, line: &Line) -> bool {
        self.steps += 1;
        let most = (1 << 15) + self.files.bytes() / 12;
        if self.steps > most {
            self.stop(line, "definitions and repetitions grow without measure");
        }
        self.steps <= most
    }

    /// Says so once: what follows is left out.
    fn stop(&mut self, line: &Line, why: &str) {
        if !std::mem::replace(&mut self.exhausted, true) {
            let report = Report::error(Class::Limit, self.text.end(), why);
            self.reports.push(report.at(line.place(0..line.text().len()).unwrap_or_default()));
        }
    }
}

/// The line at `at` without its end, and where the next one begins.
fn raw_line(files: &Files, file: FileId, at: usize) -> (&str, usize) {
    let rest = files.text(file).get(at..).unwrap_or("");
    let (line, next) = match rest.split_once('\n') {
        Some((line, _)) => (line, at + line.len() + 1),
        None => (rest, at + rest.len()),
    };
    (line.trim_end_matches('\r'), next)
}

/// What there is to say of a comment that begins where it hardly should.
fn comment_in_a_word(code: &str, comment: &str) -> Option<impl FnOnce(Span) -> Report> {
    let mark = comment.chars().next()?;
    let word = code.rsplit(BLANKS).next().unwrap_or("");
    if word.is_empty() || word.ends_with(['{', '}', '"']) {
        return None;
    }
    let message = format!("a comment starts inside this word: it is read as {}", quote(word));
    let help = format!("quote the word, or put a blank before the `{mark}`");
    Some(move |span| Report::warning(Class::CommentInWord, span, message).help(help))
}

/// Where the comment of a line begins, or its end.
pub fn comment_start(line: &str) -> usize {
    let mut quoted = false;
    let mut escaped = false;
    for (index, byte) in line.bytes().enumerate() {
        match byte {
            b'#' | b'!' if !quoted && !std::mem::take(&mut escaped) => return index,
            b'"' => quoted = !quoted,
            _ => {}
        }
        escaped = byte == b'\\' && !quoted && !escaped;
    }
    line.len()
}

/// Backslashes that make no comment of what follows.
fn escapes(code: &str) -> impl Iterator<Item = usize> {
    let mut quoted = false;
    let mut bytes = code.bytes().enumerate().peekable();
    std::iter::from_fn(move || {
        while let Some((index, byte)) = bytes.next() {
            match byte {
                b'"' => quoted = !quoted,
                b'\\' if !quoted && bytes.next_if(|(_, next)| matches!(next, b'#' | b'!')).is_some() => {
                    return Some(index);
                }
                _ => {}
            }
        }
        None
    })
}

/// Files are bounded far below 4 GiB (source::MAX_BYTES).
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

pub fn first_word(line: &str) -> Option<&str> {
    // Editors of other systems put a byte order mark first.
    let line = line.trim_start_matches('\u{feff}').trim_start_matches(BLANKS);
    line.split(BLANKS).next().filter(|word| !word.is_empty())
}

fn argument(line: &str) -> &str {
    line.trim_start_matches(BLANKS).split_once(BLANKS).map_or("", |(_, rest)| rest.trim_matches(BLANKS))
}

pub fn is_directive(word: &str) -> bool {
    include::WORDS.contains(&word) || ["include_check", "instance", "random_seed"].contains(&word)
}
