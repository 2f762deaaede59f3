//! What is wrong with a configuration, where, and what to write instead.

use std::fmt;

use serde::Serialize;

use super::source::{Files, Location, Place, Span, Text};

pub use super::codes::Class;

/// One finding, ready to print or to serialise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnostic {
    pub severity: Severity,
    pub code: Class,
    pub file: String,
    /// Both count from 1; the column counts characters.
    pub line: usize,
    pub column: usize,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Where the text comes from that a reference stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    #[serde(skip)]
    excerpt: Excerpt,
}

/// What stands in the place of a reference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Source {
    pub text: String,
    pub file: String,
    pub line: usize,
    pub column: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The node would not do what the file says: the file is not used.
    Error,
    /// The file is used; the message says as what.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { severity, code, file, line, column, message, help, source, excerpt } = self;
        writeln!(f, "{file}:{line}:{column}: {severity}[{}]: {message}", code.code())?;
        writeln!(f, "{line:>5} | {}", excerpt.text)?;
        writeln!(
            f,
            "      | {:indent$}{:^>carets$}",
            "",
            "^",
            indent = excerpt.indent,
            carets = excerpt.carets
        )?;
        if let Some(Source { text, file, line, column }) = source {
            writeln!(f, "   here: {} from {file}:{line}:{column}", quote(text))?;
        }
        match help {
            Some(help) => writeln!(f, "   help: {help}"),
            None => Ok(()),
        }
    }
}

/// A finding while its place is still an offset.
#[derive(Debug)]
pub struct Report {
    severity: Severity,
    class: Class,
    span: Span,
    /// Where it stands if it is not in the text: comments, includes and definitions have gone from there.
    place: Option<Place>,
    message: String,
    help: Option<String>,
    first: Option<Span>,
}

impl Report {
    pub fn error(class: Class, span: Span, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            class,
            span,
            place: None,
            message: message.into(),
            help: None,
            first: None,
        }
    }

    pub fn warning(class: Class, span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(class, span, message) }
    }

    pub fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// Points to a place in a file; the span says only before which text it is reported.
    pub fn at(self, place: Place) -> Self {
        Self { place: Some(place), ..self }
    }

    /// Names the line that said it first.
    pub fn first(self, span: Span) -> Self {
        Self { first: Some(span), ..self }
    }

    fn resolve(self, files: &Files, text: &Text) -> Diagnostic {
        let (place, source) = match self.place {
            Some(place) => (place, None),
            None => text.resolve(self.span),
        };
        let at = files.locate(place);
        let message = match self.first.map(|first| text.resolve(first).0) {
            None => self.message,
            Some(first) if first.file == place.file => {
                format!("{} (first on line {})", self.message, files.locate(first).line)
            }
            Some(first) => {
                let first = files.locate(first);
                format!("{} (first at {}:{})", self.message, printable_path(&first), first.line)
            }
        };
        let source = source.map(|own| {
            let at = files.locate(own);
            let text = text.as_str().get(self.span.start as usize..self.span.end as usize);
            Source {
                text: text.unwrap_or("").to_owned(),
                file: printable_path(&at),
                line: at.line,
                column: at.column,
            }
        });
        Diagnostic {
            severity: self.severity,
            code: self.class,
            file: printable_path(&at),
            line: at.line,
            column: at.column,
            message,
            help: self.help,
            source,
            excerpt: Excerpt::new(&at, files.slice(place).chars().count().max(1)),
        }
    }
}

/// Collects reports. Of each severity only the first [`Reports::KEPT`] are kept, all are counted.
#[derive(Debug, Default)]
pub struct Reports {
    kept: Vec<Report>,
    errors: usize,
    warnings: usize,
}

pub struct Diagnostics {
    pub list: Vec<Diagnostic>,
    pub omitted: usize,
    pub errors: usize,
}

impl Reports {
    const KEPT: usize = 100;

    pub fn push(&mut self, report: Report) {
        let count = match report.severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
        };
        *count += 1;
        if *count <= Self::KEPT {
            self.kept.push(report);
        }
    }

    /// For what is read again and has been told.
    pub fn mark(&self) -> (usize, usize, usize) {
        (self.kept.len(), self.errors, self.warnings)
    }

    pub fn forget_since(&mut self, (kept, errors, warnings): (usize, usize, usize)) {
        self.kept.truncate(kept);
        (self.errors, self.warnings) = (errors, warnings);
    }

    /// Another error would not be shown: no need to think of a suggestion.
    pub fn is_full(&self) -> bool {
        self.errors >= Self::KEPT
    }

    pub fn resolve(mut self, files: &Files, text: &Text) -> Diagnostics {
        self.kept.sort_by_key(|report| report.span.start);
        let omitted = (self.errors + self.warnings).saturating_sub(self.kept.len());
        let list = self.kept.into_iter().map(|report| report.resolve(files, text)).collect();
        Diagnostics { list, omitted, errors: self.errors }
    }
}

/// Part of the line, safe for a terminal, and where its carets stand.
#[derive(Clone, Debug, PartialEq)]
struct Excerpt {
    text: String,
    indent: usize,
    carets: usize,
}

impl Excerpt {
    const WIDTH: usize = 120;
    const BEFORE: usize = 60;
    const TAB: usize = 8;

    fn new(place: &Location<'_>, length: usize) -> Self {
        let at = place.column - 1;
        let skipped = if at > Self::WIDTH - Self::BEFORE { at - Self::BEFORE } else { 0 };
        let mut text = String::from(if skipped > 0 { "..." } else { "" });
        let mut width = text.len();
        let (mut indent, mut end) = (None, None);
        for (index, c) in place.text.chars().enumerate().skip(skipped).take(Self::WIDTH) {
            if index == at {
                indent = Some(width);
            }
            if index == at + length {
                end = Some(width);
            }
            match c {
                '\t' => {
                    let next = (width / Self::TAB + 1) * Self::TAB;
                    text.extend(std::iter::repeat_n(' ', next - width));
                    width = next;
                }
                c => {
                    text.push(if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
                    width += 1;
                }
            }
        }
        let indent = indent.unwrap_or(width);
        let carets = end.unwrap_or(width).saturating_sub(indent).max(1);
        Self { text, indent, carets }
    }
}

/// A word of the file for a message: in quotes, without control characters, not longer than a line.
pub fn quote(word: &str) -> String {
    const LONGEST: usize = 40;
    let mut quoted = String::new();
    for c in word.chars().take(LONGEST) {
        if c.is_control() { quoted.extend(c.escape_default()) } else { quoted.push(c) }
    }
    if word.chars().nth(LONGEST).is_some() {
        quoted.push_str("...");
    }
    format!("\"{quoted}\"")
}

fn printable_path(place: &Location<'_>) -> String {
    let path = place.path.display().to_string();
    path.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
