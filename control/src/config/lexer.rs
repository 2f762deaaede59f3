//! What the words and braces of the text are.
//!
//! keepalived reads line by line: a brace ends a statement, and so does the end of the line.

use std::borrow::Cow;

use super::{
    diagnostic::{Class, Report, Reports},
    expand::{BLANKS, references},
    keywords,
    source::Span,
};

#[derive(Clone, Debug, PartialEq)]
pub enum Token<'t> {
    /// The words of one statement.
    Line(Word<'t>, Vec<Word<'t>>),
    Open(Span),
    Close(Span),
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Word<'t> {
    pub text: &'t str,
    pub span: Span,
    /// Reported already: whoever needs the value goes without and says nothing.
    pub spoilt: bool,
    /// `text` has quotes in it, inside a word or around it, which [`Word::unquoted`] takes off.
    pub quoted_inside: bool,
}

impl<'t> Word<'t> {
    /// By the rule for commands and patterns: `"` and `'` may stand anywhere and are no part of the word.
    pub fn unquoted(&self) -> Cow<'t, str> {
        if !self.quoted_inside {
            return Cow::Borrowed(self.text);
        }
        let mut text = String::new();
        let mut open = None;
        for c in self.text.chars() {
            match c {
                '"' | '\'' if open.is_none() => open = Some(c),
                c if open == Some(c) => open = None,
                c => text.push(c),
            }
        }
        Cow::Owned(text)
    }
}

/// Of one statement: the members of a large list have lines of their own.
const MAX_WORDS: usize = 10_000;

/// Yields the tokens of a text.
pub struct Lexer<'t> {
    text: &'t str,
    /// Where reading goes on, and where the line ends that is being read.
    at: usize,
    end: usize,
    /// Of the statement being read.
    words: Vec<Word<'t>>,
}

impl<'t> Lexer<'t> {
    pub fn new(text: &'t str) -> Self {
        // Editors of other systems put a byte order mark first.
        let at = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        Self { text, at, end: line_end(text, at), words: Vec::new() }
    }

    pub fn next(&mut self, reports: &mut Reports) -> Option<Token<'t>> {
        loop {
            let rest = self.rest();
            self.at += rest.len() - rest.trim_start_matches(BLANKS).len();
            let rest = self.rest();
            let Some(c) = rest.chars().next() else {
                let statement = self.statement();
                if statement.is_some() {
                    return statement;
                }
                if self.end >= self.text.len() {
                    return None;
                }
                self.at = self.end + 1;
                self.end = line_end(self.text, self.at);
                continue;
            };
            match c {
                '{' if self.is_template(rest) => self.template(rest, reports),
                '{' | '}' => {
                    if let Some(statement) = self.statement() {
                        return Some(statement);
                    }
                    let span = self.advance(1);
                    self.warn_inside_a_word(span, reports);
                    return Some(if c == '{' { Token::Open(span) } else { Token::Close(span) });
                }
                _ if self.words.first().is_some_and(|word| keywords::has_command(word.text)) => {
                    self.command_word(rest, reports);
                }
                '"' => self.quoted(rest, reports),
                _ => self.bare(rest, reports),
            }
        }
    }

    fn rest(&self) -> &'t str {
        self.text.get(self.at..self.end).unwrap_or("")
    }

    fn advance(&mut self, length: usize) -> Span {
        let start = self.at;
        self.at += length;
        Span::new(start, self.at)
    }

    fn statement(&mut self) -> Option<Token<'t>> {
        let mut words = self.words.drain(..);
        let first = words.next()?;
        Some(Token::Line(first, words.collect()))
    }

    /// A brace with something on both sides: part of a value, more likely than not.
    fn warn_inside_a_word(&self, span: Span, reports: &mut Reports) {
        let joins = |c: char| !is_delimiter(c) && c != '\n';
        let before = self.text.get(..span.start as usize).and_then(|text| text.chars().next_back());
        if before.is_some_and(joins) && self.rest().chars().next().is_some_and(joins) {
            let message = "a brace in the middle of a word ends the line here";
            let report = Report::warning(Class::BraceInWord, span, message);
            reports.push(report.help("quote the word if the brace is part of it"));
        }
    }

    fn is_template(&self, rest: &str) -> bool {
        rest.starts_with("{{") && template(rest).is_some()
    }

    fn template(&mut self, rest: &'t str, reports: &mut Reports) {
        let span = self.advance(template(rest).unwrap_or(1));
        let report = Report::error(Class::Template, span, "a template that nobody filled in");
        reports.push(report.help("run the generator of this file, or write the value"));
        self.words.push(Word { text: "", span, spoilt: true, quoted_inside: false });
    }

    fn quoted(&mut self, rest: &'t str, reports: &mut Reports) {
        let inner = rest.strip_prefix('"').unwrap_or(rest);
        match inner.split_once('"') {
            Some((text, _)) => {
                let span = self.advance(text.len() + 2);
                self.word(text, span, false, reports);
            }
            None => self.unterminated(rest, reports),
        }
    }

    fn unterminated(&mut self, rest: &'t str, reports: &mut Reports) {
        let span = self.advance(rest.len());
        reports.push(Report::error(Class::Quote, span, "a quote without its end on this line"));
        self.words.push(Word { text: rest, span, spoilt: true, quoted_inside: false });
    }

    fn bare(&mut self, rest: &'t str, reports: &mut Reports) {
        let mut length = 0;
        while let Some(found) = rest.get(length..).and_then(|rest| rest.find(is_delimiter)) {
            length += found;
            // The braces of ${NAME} open no block, though nobody defined it.
            let reference = length.checked_sub(1).and_then(|at| rest.get(at..)).and_then(whole_reference);
            match reference {
                Some(end) => length += end - 1,
                None => {
                    let text = rest.get(..length).unwrap_or("");
                    let span = self.advance(length);
                    return self.word(text, span, false, reports);
                }
            }
        }
        let span = self.advance(rest.len());
        self.word(rest, span, false, reports);
    }

    /// Quotes of either kind protect blanks, anywhere in the word. Braces still count unless `"` protects them.
    fn command_word(&mut self, rest: &'t str, reports: &mut Reports) {
        let mut open = None;
        let mut length = rest.len();
        let mut quotes = 0;
        for (at, c) in rest.char_indices() {
            match c {
                '"' | '\'' if open.is_none() => {
                    open = Some(c);
                    quotes += 1;
                }
                c if open == Some(c) => open = None,
                '{' | '}' if open != Some('"') => {
                    length = at;
                    break;
                }
                c if open.is_none() && BLANKS.contains(&c) => {
                    length = at;
                    break;
                }
                _ => {}
            }
        }
        let text = rest.get(..length).unwrap_or("");
        if open.is_some() {
            return self.unterminated(text, reports);
        }
        let span = self.advance(length);
        let inside = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        match inside {
            Some(inside) if quotes == 1 => self.word(inside, span, false, reports),
            _ => self.word(text, span, quotes > 0, reports),
        }
    }

    fn word(&mut self, text: &'t str, span: Span, quoted_inside: bool, reports: &mut Reports) {
        if self.words.len() >= MAX_WORDS {
            let message = format!("more than {MAX_WORDS} words in one statement: the rest is not read");
            reports.push(Report::error(Class::Limit, span, message));
            self.at = self.end;
            return;
        }
        let spoilt = is_unreadable(text, span, reports);
        self.words.push(Word { text, span, spoilt, quoted_inside });
    }
}

fn line_end(text: &str, from: usize) -> usize {
    text.get(from..).and_then(|rest| rest.find('\n')).map_or(text.len(), |length| from + length)
}

fn is_delimiter(c: char) -> bool {
    matches!(c, '"' | '{' | '}') || BLANKS.contains(&c)
}

/// Within a bound: a line of nothing but braces must not be searched again for each of them.
fn template(rest: &str) -> Option<usize> {
    rest.as_bytes().windows(2).take(80).position(|pair| pair == b"}}").map(|found| found + 2)
}

/// The length of the `${NAME}` that the text begins with.
fn whole_reference(text: &str) -> Option<usize> {
    if !text.starts_with("${") {
        return None;
    }
    // As above: names are short.
    let near = text.get(..text.char_indices().nth(80).map_or(text.len(), |(end, _)| end))?;
    references(near, 0).next().filter(|(at, ..)| *at == 0).map(|(_, _, end)| end)
}

fn is_unreadable(text: &str, span: Span, reports: &mut Reports) -> bool {
    if text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return false;
    }
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
    reports.push(Report::error(Class::Bytes, span, message));
    true
}
