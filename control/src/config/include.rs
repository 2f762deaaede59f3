//! Which tokens a file has once every `include` in it is replaced by the files it names.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use super::{
    diagnostic::{Class, Report, Reports, quote},
    lexer::{Token, Word, lex},
    source::{FileId, Files, ReadError, Span, is_executable, read},
};

const MAX_DEPTH: usize = 16;
const MAX_FILES: usize = 256;
const MAX_BYTES: usize = 4 << 20;

/// Lexes `text`, the content of `path`, and all it includes.
pub fn flatten(path: &Path, text: String, files: &mut Files, reports: &mut Reports) -> Vec<Token> {
    let mut includer =
        Includer { files, reports, defined: HashSet::new(), tokens: Vec::new(), open: Vec::new() };
    includer.file(path.to_owned(), text);
    includer.tokens
}

struct Includer<'a> {
    files: &'a mut Files,
    reports: &'a mut Reports,
    defined: HashSet<String>,
    tokens: Vec<Token>,
    /// The chain of files being read, the innermost last.
    open: Vec<PathBuf>,
}

impl Includer<'_> {
    fn file(&mut self, path: PathBuf, text: String) {
        let canonical = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
        let Some(id) = self.files.add(path, text) else { return };
        self.open.push(canonical);
        for token in lex(id, self.files.text(id), &mut self.defined, self.reports) {
            let Token::Line(words) = &token else {
                self.tokens.push(token);
                continue;
            };
            match words.first().map(|word| (word.text.as_str(), word.span)) {
                Some(("include", _)) => self.include(id, words),
                Some((word @ ("includer" | "includem" | "includew" | "includeb" | "includea"), span)) => {
                    let message = format!("{word} is not supported yet");
                    let report = Report::error(Class::Unsupported, span, message).help("write `include`");
                    self.reports.push(report);
                }
                _ => self.tokens.push(token),
            }
        }
        self.open.pop();
    }

    fn include(&mut self, from: FileId, words: &[Word]) {
        let (pattern, span) = match words {
            [_, name] if name.spoilt => return,
            [_, name] => (&name.text, name.span),
            [word, ..] => {
                let message = "include takes the name of one file";
                let report = Report::error(Class::BadValue, word.span, message);
                return self.reports.push(report.help("quote a name that has blanks"));
            }
            [] => return,
        };
        if pattern.contains("**") || pattern.contains(['{', '}']) {
            let message = "`**` and braces in an include are not supported yet";
            return self.reports.push(Report::error(Class::Unsupported, span, message));
        }
        // Relative to the file that says it, not to where lvsd was started.
        let near = self.files.path(from).parent().unwrap_or(Path::new("")).join(pattern);
        if !pattern.contains(['*', '?', '[']) {
            return self.include_file(near, span, true);
        }
        for path in self.matches(&near, span) {
            self.include_file(path, span, false);
        }
    }

    fn matches(&mut self, pattern: &Path, span: Span) -> Vec<PathBuf> {
        let options = glob::MatchOptions {
            case_sensitive: true,
            require_literal_separator: true,
            require_literal_leading_dot: true,
        };
        match glob::glob_with(&pattern.to_string_lossy(), options) {
            Err(bad) => {
                let message = format!("no pattern for files: {}", bad.msg);
                self.reports.push(Report::error(Class::BadValue, span, message));
                Vec::new()
            }
            Ok(found) => {
                let found: Vec<_> = found.flatten().take(MAX_FILES + 1).collect();
                if found.is_empty() {
                    self.reports.push(Report::warning(Class::Include, span, "no file has such a name"));
                }
                found
            }
        }
    }

    fn include_file(&mut self, path: PathBuf, span: Span, named: bool) {
        let refused = |what: &str| {
            let message = format!("{}: {what}", quote(&path.to_string_lossy()));
            Report::error(Class::Include, span, message)
        };
        let loops = fs::canonicalize(&path).is_ok_and(|path| self.open.contains(&path));
        if loops {
            return self.reports.push(refused("this file includes itself"));
        }
        if self.open.len() >= MAX_DEPTH {
            return self.reports.push(refused(&format!("includes are nested deeper than {MAX_DEPTH}")));
        }
        if self.files.len() >= MAX_FILES {
            return self.reports.push(refused(&format!("more than {MAX_FILES} files")));
        }
        match is_executable(&path)
            .and_then(|executable| if executable { Ok(None) } else { read(&path).map(Some) })
        {
            Ok(Some(text)) if self.files.bytes() + text.len() > MAX_BYTES => {
                self.reports.push(refused(&format!("more than {MAX_BYTES} bytes in all")));
            }
            Ok(Some(text)) => self.file(path, text),
            Ok(None) => {
                let message = format!("{} is executable: not read", quote(&path.to_string_lossy()));
                self.reports.push(Report::warning(Class::Include, span, message));
            }
            // A pattern takes what fits it; keepalived passes over directories as well.
            Err(ReadError::NotRegular) if !named => {}
            Err(cause) => self.reports.push(refused(&cause.to_string())),
        }
    }
}
