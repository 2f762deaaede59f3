//! What the words and braces of one file are.
//!
//! keepalived reads line by line: a comment starts at an unquoted `!` or `#` wherever it stands, a brace ends a
//! statement, and so does the end of the line.

use std::collections::HashSet;

use super::{
    diagnostic::{Class, Report, Reports, quote},
    source::{FileId, Span},
};

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// The words of one statement, at least one.
    Line(Vec<Word>),
    Open(Span),
    Close(Span),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Word {
    pub text: String,
    pub span: Span,
    /// Reported already: whoever needs the value goes without and says nothing.
    pub spoilt: bool,
}

const BLANKS: [char; 5] = [' ', '\t', '\r', '\x0b', '\x0c'];

/// Splits a file. `defined` are the names of the `$NAME=value` lines so far, over all files.
pub fn lex(file: FileId, text: &str, defined: &mut HashSet<String>, reports: &mut Reports) -> Vec<Token> {
    let mut lexer = Lexer { file, defined, reports, tokens: Vec::new(), words: Vec::new() };
    let mut start = 0;
    let mut in_definition = false;
    for (number, full) in text.split_inclusive('\n').enumerate() {
        let line = full.trim_end_matches(['\n', '\r']);
        // Editors of other systems put a byte order mark first.
        let line = if number == 0 { line.trim_start_matches('\u{feff}') } else { line };
        let end = start + full.trim_end_matches(['\n', '\r']).len();
        start += full.len();
        if in_definition || lexer.is_definition(end, line) {
            in_definition = line.ends_with('\\');
        } else {
            lexer.line(end, line);
        }
    }
    lexer.tokens
}

struct Lexer<'a> {
    file: FileId,
    defined: &'a mut HashSet<String>,
    reports: &'a mut Reports,
    tokens: Vec<Token>,
    /// Of the statement being read.
    words: Vec<Word>,
}

impl Lexer<'_> {
    /// `$NAME=value`.
    fn is_definition(&mut self, end: usize, line: &str) -> bool {
        let line = line.trim_start_matches(BLANKS);
        let Some((name, _)) = line.strip_prefix('$').and_then(|rest| rest.split_once('=')) else {
            return false;
        };
        if name.is_empty() || !name.chars().all(is_name) {
            return false;
        }
        let span = self.span(end - line.len(), name.len() + 1);
        self.reports.push(unsupported(span, "definitions ($NAME=value) are"));
        self.defined.insert(name.to_owned());
        true
    }

    /// `end` is the offset of the end of `line` in the file.
    fn line(&mut self, end: usize, line: &str) {
        let mut rest = line.trim_start_matches(BLANKS);
        if rest.starts_with("~SEQ") || rest.starts_with("~LST") {
            let span = self.span(end - rest.len(), 4);
            self.reports
                .push(unsupported(span, "repeated lines (~SEQ, ~LST) are").help("write the lines out"));
            return;
        }
        let conditional = rest.starts_with('@');
        while let Some(c) = rest.chars().next() {
            let at = end - rest.len();
            match c {
                '!' | '#' => break,
                '{' if self.braces_count() => rest = self.open(at, rest),
                '}' if self.braces_count() => {
                    self.end_statement();
                    self.tokens.push(Token::Close(self.span(at, 1)));
                    rest = rest.strip_prefix('}').unwrap_or("");
                }
                '"' => rest = self.quoted(at, rest),
                _ => rest = self.bare(at, rest),
            }
            rest = rest.trim_start_matches(BLANKS);
        }
        if conditional && let Some(word) = self.words.first_mut().filter(|word| !word.spoilt) {
            word.spoilt = true;
            self.reports.push(unsupported(word.span, "conditional lines (@ID) are"));
        }
        self.end_statement();
    }

    /// keepalived looks for `include` before it looks for braces, which may be part of the name.
    fn braces_count(&self) -> bool {
        self.words.first().is_none_or(|word| word.text != "include")
    }

    fn open<'l>(&mut self, at: usize, rest: &'l str) -> &'l str {
        // Within a bound: a line of nothing but braces must not be searched again for each of them.
        let mut near = rest.as_bytes().windows(2).take(80);
        if rest.starts_with("{{")
            && let Some(length) = near.position(|pair| pair == b"}}").map(|found| found + 2)
        {
            let span = self.span(at, length);
            let report = Report::error(Class::Syntax, span, "a template that nobody filled in");
            self.reports.push(report.help("run the generator of this file, or write the value"));
            self.words.push(Word { text: String::new(), span, spoilt: true });
            return rest.get(length..).unwrap_or("");
        }
        self.end_statement();
        self.tokens.push(Token::Open(self.span(at, 1)));
        rest.strip_prefix('{').unwrap_or("")
    }

    fn quoted<'l>(&mut self, at: usize, rest: &'l str) -> &'l str {
        let inner = rest.strip_prefix('"').unwrap_or(rest);
        match inner.split_once('"') {
            Some((text, after)) => {
                self.word(text.to_owned(), self.span(at, text.len() + 2));
                after
            }
            None => {
                let span = self.span(at, rest.len());
                let report = Report::error(Class::Syntax, span, "a quote without its end on this line");
                self.reports.push(report);
                self.words.push(Word { text: inner.to_owned(), span, spoilt: true });
                ""
            }
        }
    }

    fn bare<'l>(&mut self, at: usize, rest: &'l str) -> &'l str {
        let mut text = String::new();
        let mut escaped = false;
        let mut reference_end = 0;
        let mut length = rest.len();
        for (index, c) in rest.char_indices() {
            let after = rest.get(index..).unwrap_or("");
            if escaped || index < reference_end {
                escaped = false;
                text.push(c);
                continue;
            }
            match c {
                '\\' if after.starts_with("\\#") || after.starts_with("\\!") => escaped = true,
                '$' => {
                    // The braces of ${NAME} open no block.
                    reference_end =
                        index + braced_reference(after).map_or(0, |name| name.len() + "${}".len());
                    text.push(c);
                }
                '{' | '}' if !self.braces_count() => text.push(c),
                '"' | '{' | '}' => {
                    length = index;
                    break;
                }
                '!' | '#' => {
                    let comment = self.span(at + index, 1);
                    let message =
                        format!("a comment starts inside this word: it is read as {}", quote(&text));
                    let help = format!("quote the word, or put a blank before the `{c}`");
                    self.reports.push(Report::warning(Class::Trap, comment, message).help(help));
                    self.word(text, self.span(at, index));
                    return "";
                }
                c if BLANKS.contains(&c) => {
                    length = index;
                    break;
                }
                c => text.push(c),
            }
        }
        self.word(text, self.span(at, length));
        rest.get(length..).unwrap_or("")
    }

    fn word(&mut self, text: String, span: Span) {
        let spoilt = self.is_unreadable(&text, span) || self.needs_substitution(&text, span);
        self.words.push(Word { text, span, spoilt });
    }

    fn is_unreadable(&mut self, text: &str, span: Span) -> bool {
        let invisible = |c: char| c.is_control() || c == '\u{200b}' || c == '\u{feff}';
        let Some(odd) = text.chars().find(|&c| {
            c == char::REPLACEMENT_CHARACTER
                || (invisible(c) && c != '\t')
                || (c.is_whitespace() && !c.is_ascii())
        }) else {
            return false;
        };
        let message = match odd {
            char::REPLACEMENT_CHARACTER => "bytes that are not UTF-8".to_owned(),
            odd => format!("the invisible character U+{:04X} inside a word", u32::from(odd)),
        };
        self.reports.push(Report::error(Class::Syntax, span, message));
        true
    }

    fn needs_substitution(&mut self, text: &str, span: Span) -> bool {
        for name in references(text) {
            if self.defined.contains(name) {
                return true; // The definition is reported.
            }
            if ["_PWD", "_INSTANCE", "_RANDOM", "_ENV", "_HASH", "_BANG"].contains(&name) {
                self.reports.push(unsupported(span, &format!("${{{name}}} is")));
                return true;
            }
            let message = format!("{} is defined nowhere above: read as it stands", quote(name));
            self.reports.push(Report::warning(Class::Trap, span, message));
        }
        false
    }

    fn end_statement(&mut self) {
        if !self.words.is_empty() {
            self.tokens.push(Token::Line(std::mem::take(&mut self.words)));
        }
    }

    /// Files are bounded far below 4 GiB (source::MAX_FILE_BYTES).
    fn span(&self, start: usize, length: usize) -> Span {
        let offset = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Span { file: self.file, start: offset(start), end: offset(start + length) }
    }
}

fn unsupported(span: Span, what: &str) -> Report {
    Report::error(Class::Unsupported, span, format!("{what} not supported yet"))
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The inside of the `${NAME}` that `text` starts with.
fn braced_reference(text: &str) -> Option<&str> {
    let inside = text.strip_prefix("${")?;
    let length = inside.find(|c: char| !is_name(c) && c != ' ')?;
    inside.get(length..)?.starts_with('}').then(|| inside.get(..length))?
}

/// The names keepalived would look up: `${NAME}` anywhere, `$NAME` where a blank, `,`, `)` or nothing follows.
fn references(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices('$').filter_map(|(at, _)| {
        let rest = text.get(at..)?;
        if let Some(inside) = braced_reference(rest) {
            return inside.split(' ').next();
        }
        let name = rest.strip_prefix('$')?;
        let length = name.find(|c| !is_name(c)).unwrap_or(name.len());
        let ends = name.get(length..)?.chars().next().is_none_or(|c| BLANKS.contains(&c) || ",)".contains(c));
        name.get(..length).filter(|name| ends && !name.is_empty())
    })
}
