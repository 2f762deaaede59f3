//! Which statement stands in which block.
//!
//! A lost brace must not make nonsense of all that follows, so the table of keywords guides two repairs: a word
//! that opens a block of the top level ends every block around it, and the first word of an inner block opens it.

use std::{iter::Peekable, vec};

use super::{
    diagnostic::{Class, Report, Reports, quote},
    keywords::{self, Block},
    lexer::{Token, Word},
    source::Span,
};

/// keepalived's own blocks nest five deep.
const MAX_DEPTH: usize = 16;

#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    pub word: Word,
    pub arguments: Vec<Word>,
    /// What stands between the braces.
    pub body: Option<Vec<Statement>>,
}

impl Statement {
    /// All words of it.
    pub fn span(&self) -> Span {
        self.arguments.last().map_or(self.word.span, |last| self.word.span.to(last.span))
    }
}

pub fn build(tokens: Vec<Token>, reports: &mut Reports) -> Vec<Statement> {
    let root = Frame { head: None, open: None, block: Some(Block::Top), statements: Vec::new() };
    let mut builder = Builder { reports, root, frames: Vec::new(), after_line: false, ignored: 0, owed: 0 };
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        builder.token(token, &mut tokens);
    }
    builder.finish()
}

/// A block that is still open.
struct Frame {
    /// Whose block it is; absent for a brace that follows no word.
    head: Option<Statement>,
    open: Option<Span>,
    /// What may stand in it; absent where that is not known.
    block: Option<Block>,
    statements: Vec<Statement>,
}

struct Builder<'a> {
    reports: &'a mut Reports,
    root: Frame,
    frames: Vec<Frame>,
    /// The last token was a statement: a brace now is its own.
    after_line: bool,
    /// Blocks opened beyond the depth, or closed by repair before their own brace came.
    ignored: usize,
    owed: usize,
}

impl Builder<'_> {
    fn token(&mut self, token: Token, rest: &mut Peekable<vec::IntoIter<Token>>) {
        let was_line = std::mem::replace(&mut self.after_line, matches!(token, Token::Line(_)));
        match token {
            Token::Open(_) | Token::Line(_) if self.ignored > 0 => {
                self.ignored += usize::from(matches!(token, Token::Open(_)));
            }
            Token::Close(_) if self.ignored > 0 => self.ignored -= 1,
            Token::Line(words) => self.line(words, rest.peek()),
            Token::Open(span) => self.open(span, was_line),
            Token::Close(span) => self.close(span),
        }
    }

    fn top(&mut self) -> &mut Frame {
        self.frames.last_mut().unwrap_or(&mut self.root)
    }

    fn line(&mut self, words: Vec<Word>, next: Option<&Token>) {
        let mut words = words.into_iter();
        let Some(word) = words.next() else { return };
        let opens_here = matches!(next, Some(Token::Open(_)));
        if opens_here && !self.frames.is_empty() && keywords::only_at_top(&word.text) {
            self.close_all_before(&word);
        }
        let outer = self.top().block;
        let inner =
            outer.and_then(|outer| keywords::find(outer, &word.text)).and_then(|keyword| keyword.opens);
        let statement = Statement { word, arguments: words.collect(), body: None };
        let (Some(outer), Some(inner), false) = (outer, inner, opens_here) else {
            self.top().statements.push(statement);
            return;
        };
        // A block without its `{`.
        let span = statement.span();
        let message = format!("{} needs a block: `{{` is missing", statement.word.text);
        self.reports.push(Report::error(Class::Syntax, span, message));
        let follows = matches!(next, Some(Token::Line(words)) if words.first().is_some_and(|word| {
            let belongs = inner == Block::Entries || keywords::find(inner, &word.text).is_some();
            belongs && keywords::find(outer, &word.text).is_none()
        }));
        if follows {
            self.frames.push(Frame {
                head: Some(statement),
                open: None,
                block: Some(inner),
                statements: Vec::new(),
            });
        } else {
            self.top().statements.push(Statement { body: Some(Vec::new()), ..statement });
        }
    }

    fn close_all_before(&mut self, word: &Word) {
        if let Some(open) = self.frames.last().and_then(|frame| frame.open) {
            let message = format!("this block is still open where {} begins: `}}` is missing", word.text);
            self.reports.push(Report::error(Class::Syntax, open, message));
        }
        while !self.frames.is_empty() {
            self.owed += 1;
            self.end_block();
        }
    }

    fn open(&mut self, span: Span, was_line: bool) {
        if self.frames.len() >= MAX_DEPTH {
            let message = format!("blocks nest deeper than {MAX_DEPTH}: this one is not read");
            self.reports.push(Report::error(Class::Syntax, span, message));
            self.ignored = 1;
            return;
        }
        let outer = self.top().block;
        let head = if was_line { self.top().statements.pop() } else { None };
        if head.is_none() {
            let message = "a `{` without a word before it";
            self.reports.push(Report::error(Class::Syntax, span, message));
        }
        let block = head.as_ref().and_then(|head| keywords::find(outer?, &head.word.text)?.opens);
        self.frames.push(Frame { head, open: Some(span), block, statements: Vec::new() });
    }

    fn close(&mut self, span: Span) {
        if !self.frames.is_empty() {
            self.end_block();
        } else if self.owed > 0 {
            self.owed -= 1;
        } else {
            let message = "a `}` too many: no block is open here";
            self.reports.push(Report::error(Class::Syntax, span, message));
        }
    }

    fn end_block(&mut self) {
        let Some(frame) = self.frames.pop() else { return };
        if let Some(head) = frame.head {
            self.top().statements.push(Statement { body: Some(frame.statements), ..head });
        }
    }

    fn finish(mut self) -> Vec<Statement> {
        while let Some(frame) = self.frames.last() {
            if let Some(open) = frame.open {
                let name = frame
                    .head
                    .as_ref()
                    .map_or(String::new(), |head| format!(" of {}", quote(&head.word.text)));
                let message = format!("the block{name} is never closed: `}}` is missing");
                self.reports.push(Report::error(Class::Syntax, open, message));
            }
            self.end_block();
        }
        self.root.statements
    }
}
