//! Which statement stands in which block.
//!
//! A lost brace must not make nonsense of all that follows, so the table of keywords guides two repairs: a word
//! that opens a block of the top level ends every block around it, and the first word of an inner block opens it.

use super::{
    diagnostic::{Class, Report, Reports, quote},
    keywords::{self, Block},
    lexer::{Lexer, Token, Word},
    source::Span,
};

/// keepalived's own blocks nest five deep.
const MAX_DEPTH: usize = 16;

#[derive(Clone, Debug, PartialEq)]
pub struct Statement<'t> {
    pub word: Word<'t>,
    pub arguments: Vec<Word<'t>>,
    /// What stands between the braces.
    pub body: Option<Vec<Statement<'t>>>,
}

impl Statement<'_> {
    /// All words of it.
    pub fn span(&self) -> Span {
        self.arguments.last().map_or(self.word.span, |last| self.word.span.to(last.span))
    }
}

/// The tree of a text, and what there is to say about its words and braces.
pub fn build<'t>(text: &'t str, reports: &mut Reports) -> Vec<Statement<'t>> {
    let room = 5 * text.len() + (1 << 20);
    let root = Frame { head: None, open: None, block: Some(Block::Top), statements: Vec::new() };
    let mut builder =
        Builder { reports, root, frames: Vec::new(), after_line: false, ignored: 0, owed: 0, room };
    let mut tokens = Tokens { lexer: Lexer::new(text), next: None };
    while let Some(token) = tokens.next(builder.reports) {
        builder.token(token, &mut tokens);
    }
    builder.finish()
}

/// One token ahead of the builder.
struct Tokens<'t> {
    lexer: Lexer<'t>,
    next: Option<Token<'t>>,
}

impl<'t> Tokens<'t> {
    fn next(&mut self, reports: &mut Reports) -> Option<Token<'t>> {
        self.next.take().or_else(|| self.lexer.next(reports))
    }

    fn peek(&mut self, reports: &mut Reports) -> Option<&Token<'t>> {
        if self.next.is_none() {
            self.next = self.lexer.next(reports);
        }
        self.next.as_ref()
    }
}

/// A block that is still open.
struct Frame<'t> {
    /// Whose block it is; absent for a brace that follows no word.
    head: Option<Statement<'t>>,
    open: Option<Span>,
    /// What may stand in it; absent where that is not known.
    block: Option<Block>,
    statements: Vec<Statement<'t>>,
}

struct Builder<'a, 't> {
    reports: &'a mut Reports,
    root: Frame<'t>,
    frames: Vec<Frame<'t>>,
    /// The last token was a statement: a brace now is its own.
    after_line: bool,
    /// Blocks opened beyond the depth, or closed by repair before their own brace came.
    ignored: usize,
    owed: usize,
    /// Bytes of memory that statements may still take: words of one letter would take many times the file's.
    room: usize,
}

impl<'t> Builder<'_, 't> {
    fn token(&mut self, token: Token<'t>, rest: &mut Tokens<'t>) {
        let was_line = std::mem::replace(&mut self.after_line, matches!(token, Token::Line(..)));
        match token {
            Token::Open(_) | Token::Line(..) if self.ignored > 0 => {
                self.ignored += usize::from(matches!(token, Token::Open(_)));
            }
            Token::Close(_) if self.ignored > 0 => self.ignored -= 1,
            Token::Line(word, arguments) => {
                let next = rest.peek(self.reports);
                self.line(word, arguments, next);
            }
            Token::Open(span) => self.open(span, was_line),
            Token::Close(span) => self.close(span),
        }
    }

    fn top(&mut self) -> &mut Frame<'t> {
        self.frames.last_mut().unwrap_or(&mut self.root)
    }

    fn line(&mut self, word: Word<'t>, arguments: Vec<Word<'t>>, next: Option<&Token<'t>>) {
        let size = size_of::<Statement>() + arguments.len() * size_of::<Word>();
        match self.room.checked_sub(size) {
            Some(room) => self.room = room,
            None => {
                if std::mem::replace(&mut self.room, 0) > 0 {
                    let message =
                        "more words than a configuration of this size can mean: the rest is not read";
                    self.reports.push(Report::error(Class::Limit, word.span, message));
                }
                return;
            }
        }
        let opens_here = matches!(next, Some(Token::Open(_)));
        if opens_here && !self.frames.is_empty() && keywords::only_at_top(word.text) {
            self.close_all_before(&word);
        }
        let outer = self.top().block;
        let inner =
            outer.and_then(|outer| keywords::find(outer, word.text)).and_then(|keyword| keyword.opens);
        let statement = Statement { word, arguments, body: None };
        let (Some(outer), Some(inner), false) = (outer, inner, opens_here) else {
            push(&mut self.top().statements, statement);
            return;
        };
        // A block without its `{`.
        let span = statement.span();
        let message = format!("{} needs a block: `{{` is missing", statement.word.text);
        self.reports.push(Report::error(Class::MissingBrace, span, message));
        let follows = matches!(next, Some(Token::Line(word, _)) if {
            let belongs = inner == Block::Entries || keywords::find(inner, word.text).is_some();
            belongs && keywords::find(outer, word.text).is_none()
        });
        if follows {
            self.frames.push(Frame {
                head: Some(statement),
                open: None,
                block: Some(inner),
                statements: Vec::new(),
            });
        } else {
            push(&mut self.top().statements, Statement { body: Some(Vec::new()), ..statement });
        }
    }

    fn close_all_before(&mut self, word: &Word<'t>) {
        if let Some(open) = self.frames.last().and_then(|frame| frame.open) {
            let message = format!("this block is still open where {} begins: `}}` is missing", word.text);
            self.reports.push(Report::error(Class::UnclosedBlock, open, message));
        }
        while !self.frames.is_empty() {
            self.owed += 1;
            self.end_block();
        }
    }

    fn open(&mut self, span: Span, was_line: bool) {
        if self.frames.len() >= MAX_DEPTH {
            let message = format!("blocks nest deeper than {MAX_DEPTH}: this one is not read");
            self.reports.push(Report::error(Class::Limit, span, message));
            self.ignored = 1;
            return;
        }
        let outer = self.top().block;
        let head = if was_line { self.top().statements.pop() } else { None };
        if head.is_none() {
            let message = "a `{` without a word before it";
            self.reports.push(Report::error(Class::ExtraBrace, span, message));
        }
        let block = head.as_ref().and_then(|head| keywords::find(outer?, head.word.text)?.opens);
        self.frames.push(Frame { head, open: Some(span), block, statements: Vec::new() });
    }

    fn close(&mut self, span: Span) {
        if !self.frames.is_empty() {
            self.end_block();
        } else if self.owed > 0 {
            self.owed -= 1;
        } else {
            let message = "a `}` too many: no block is open here";
            self.reports.push(Report::error(Class::ExtraBrace, span, message));
        }
    }

    fn end_block(&mut self) {
        let Some(mut frame) = self.frames.pop() else { return };
        frame.statements.shrink_to_fit();
        if let Some(head) = frame.head {
            push(&mut self.top().statements, Statement { body: Some(frame.statements), ..head });
        }
    }

    fn finish(mut self) -> Vec<Statement<'t>> {
        while let Some(frame) = self.frames.last() {
            if let Some(open) = frame.open {
                let name = frame
                    .head
                    .as_ref()
                    .map_or(String::new(), |head| format!(" of {}", quote(head.word.text)));
                let message = format!("the block{name} is never closed: `}}` is missing");
                self.reports.push(Report::error(Class::UnclosedBlock, open, message));
            }
            self.end_block();
        }
        self.root.statements
    }
}

/// A list that doubles could take twice what there is room for.
fn push<'t>(statements: &mut Vec<Statement<'t>>, statement: Statement<'t>) {
    if statements.len() == statements.capacity() {
        statements.reserve_exact(statements.len() / 4 + 4);
    }
    statements.push(statement);
}
