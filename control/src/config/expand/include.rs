//! Which files an `include` names.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{BLANKS, Expander, first_word, line::Line};
use crate::config::{
    diagnostic::{Class, Report, quote},
    source::{MAX_BYTES, Place, ReadError, is_executable, read},
};

const MAX_DEPTH: usize = 16;
const MAX_FILES: usize = 256;

/// The plain one and those that want more than it.
pub const WORDS: [&str; 6] = ["include", "includer", "includem", "includew", "includeb", "includea"];

/// What must not be missing. A file that cannot be read is an error anyhow.
#[derive(Clone, Copy, Default)]
pub struct Checks {
    /// Names without `*`, `?`, `[`.
    names: bool,
    /// Names with them.
    patterns: bool,
    /// Each of the names that `{a,b}` makes.
    alternatives: bool,
}

impl Checks {
    /// `include_check [[+|-]NAME..]`: all where nothing is named.
    pub fn set(&mut self, statement: &str) {
        let mut words = statement.split(BLANKS).filter(|word| !word.is_empty()).skip(1).peekable();
        match words.peek() {
            None => *self = Self { names: true, patterns: true, alternatives: true },
            Some(word) if !word.starts_with(['+', '-']) => *self = Self::default(),
            Some(_) => {}
        }
        for word in words {
            let on = !word.starts_with('-');
            match word.trim_start_matches(['+', '-']) {
                "match" => self.names = on,
                "wildcard_match" => self.patterns = on,
                "brace_match" => self.alternatives = on,
                _ => {} // `readable` always; others are the reader's business.
            }
        }
    }

    fn of(self, word: &str) -> Self {
        let all = word == "includea";
        Self {
            names: self.names || all || word == "includem",
            patterns: self.patterns || all || word == "includew",
            alternatives: self.alternatives || all || word == "includeb",
        }
    }
}

impl Expander<'_> {
    pub fn include(&mut self, line: &Line) {
        let text = line.text();
        let Some(word) = first_word(text) else { return };
        let after = text.find(word).map_or(text.len(), |at| at + word.len());
        let name = text.get(after..).unwrap_or("").trim_matches(BLANKS);
        let at = text.len() - text.get(after..).unwrap_or("").trim_start_matches(BLANKS).len();
        let place = line.place(at..at + name.len()).or_else(|| line.place(0..text.len())).unwrap_or_default();
        let bare = name.strip_prefix('"').and_then(|name| name.strip_suffix('"'));
        let name = match bare {
            Some(name) if !name.contains('"') && !name.is_empty() => name,
            None if !name.contains(BLANKS) && !name.contains('"') && !name.is_empty() => name,
            _ => {
                let message = format!("{word} takes the name of one file");
                let report = Report::error(Class::BadValue, self.text.end(), message);
                return self.reports.push(report.help("quote a name that has blanks").at(place));
            }
        };
        let checks = self.checks.of(word);
        let Some(alternatives) = alternatives(name) else {
            let message = format!("the braces of {} make more than {MAX_FILES} names", quote(name));
            let report = Report::error(Class::Limit, self.text.end(), message);
            return self.reports.push(report.at(place));
        };
        let mut found = false;
        let several = alternatives.len() > 1;
        for alternative in &alternatives {
            let here = self.include_alternative(alternative, place, checks, several);
            found |= here;
            if !here && several && checks.alternatives {
                self.missing(place, alternative, true);
            }
        }
        if !found && several && !checks.alternatives {
            self.missing(place, name, checks.names || checks.patterns);
        }
    }

    /// Whether there is such a file.
    fn include_alternative(&mut self, name: &str, place: Place, checks: Checks, quiet: bool) -> bool {
        // Relative to the file that says it, not to where lvsd was started.
        let here = self.open.last().map_or(Path::new(""), |open| self.files.path(open.file));
        let near = here.parent().unwrap_or(Path::new("")).join(name);
        if !name.contains(['*', '?', '[']) {
            let there = fs::symlink_metadata(&near)
                .map_or_else(|error| error.kind() != io::ErrorKind::NotFound, |_| true);
            if there {
                self.include_file(near, place, true);
            } else if !quiet {
                self.missing(place, name, checks.names);
            }
            return there;
        }
        if name.contains("**") {
            let report = Report::error(Class::BadValue, self.text.end(), "`**` means no more than `*` here");
            self.reports.push(report.help("write one `*` for each folder").at(place));
            return true;
        }
        let options = glob::MatchOptions {
            case_sensitive: true,
            require_literal_separator: true,
            require_literal_leading_dot: true,
        };
        let found: Vec<_> = match glob::glob_with(&near.to_string_lossy(), options) {
            Ok(found) => found.flatten().take(MAX_FILES + 1).collect(),
            Err(bad) => {
                let message = format!("no pattern for files: {}", bad.msg);
                self.reports.push(Report::error(Class::BadValue, self.text.end(), message).at(place));
                return true;
            }
        };
        if found.is_empty() && !quiet {
            self.missing(place, name, checks.patterns);
        }
        let any = !found.is_empty();
        for path in found {
            self.include_file(path, place, false);
        }
        any
    }

    fn missing(&mut self, place: Place, name: &str, wanted: bool) {
        let report = match wanted {
            true => Report::error(
                Class::Include,
                self.text.end(),
                format!("no file has the name {}, and one was asked for", quote(name)),
            ),
            false => Report::warning(
                Class::Include,
                self.text.end(),
                format!("no file has the name {}", quote(name)),
            )
            .help("as in keepalived nothing is read; `includea` insists"),
        };
        self.reports.push(report.at(place));
    }

    fn include_file(&mut self, path: PathBuf, place: Place, named: bool) {
        let end = self.text.end();
        let refused = |class, what: &str| {
            let message = format!("{}: {what}", quote(&path.to_string_lossy()));
            Report::error(class, end, message).at(place)
        };
        let loops = fs::canonicalize(&path).is_ok_and(|path| self.open.iter().any(|open| open.path == path));
        if loops {
            return self.reports.push(refused(Class::Include, "this file includes itself"));
        }
        if self.open.len() >= MAX_DEPTH {
            let message = format!("includes are nested deeper than {MAX_DEPTH}");
            return self.reports.push(refused(Class::Limit, &message));
        }
        if self.files.len() >= MAX_FILES {
            return self.reports.push(refused(Class::Limit, &format!("more than {MAX_FILES} files")));
        }
        match is_executable(&path)
            .and_then(|executable| if executable { Ok(None) } else { read(&path).map(Some) })
        {
            Ok(Some(text)) if self.files.bytes() + text.len() > MAX_BYTES => {
                self.reports.push(refused(Class::Limit, &format!("more than {MAX_BYTES} bytes in all")));
            }
            Ok(Some(text)) => self.file(path, text),
            Ok(None) => {
                let message = format!("{} is executable: not read", quote(&path.to_string_lossy()));
                self.reports.push(Report::warning(Class::Include, end, message).at(place));
            }
            // A pattern takes what fits it; keepalived passes over directories as well.
            Err(ReadError::NotRegular) if !named => {}
            Err(cause) => self.reports.push(refused(Class::Include, &cause.to_string())),
        }
    }
}

/// The names that `{a,b}` makes, the innermost braces first. `None`: too many.
fn alternatives(name: &str) -> Option<Vec<String>> {
    let mut open = vec![name.to_owned()];
    let mut done = Vec::new();
    while let Some(name) = open.pop() {
        let braces = name.find('}').and_then(|close| Some((name.get(..close)?.rfind('{')?, close)));
        let Some((from, to)) = braces else {
            done.push(name);
            continue;
        };
        let (before, after) = (name.get(..from)?, name.get(to + 1..)?);
        let inside = name.get(from + 1..to)?.split(',').rev();
        open.extend(inside.map(|word| format!("{before}{word}{after}")));
        if open.len() + done.len() > MAX_FILES {
            return None;
        }
    }
    Some(done)
}
