//! Which statement stands in which block.
//!
//! A lost brace must not make nonsense of all that follows, so the table of keywords guides two repairs: a word
//! that opens a block of the top level ends every block around it, and the first word of an inner block opens it.

use super::{
    diagnostic::{Class, Report, Reports, quote},
    keywords::{self, Block},
    lexer::{Lexer, Token, Word},
    room::{Room, push},
    source::Span,
};

/// keepalived's own blocks nest five deep.
const MAX_DEPTH: usize = 16;

/// The statements of a text. Small: it is many times what is left of it.
#[derive(Debug)]
pub struct Tree<'t> {
    text: &'t str,
    words: Vec<Place>,
    /// Behind each statement stand those of its block.
    nodes: Vec<Node>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    /// The first of its words.
    first: u32,
    words: u16,
    is_block: bool,
    /// The first node behind its block.
    end: u32,
}

/// A word in 8 bytes: its length and its form share four.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: u32,
    length: u32,
}

/// One of them.
#[derive(Clone, Copy)]
pub struct Statement<'t> {
    tree: &'t Tree<'t>,
    node: Node,
    at: u32,
}

/// Those of one block, in their order.
#[derive(Clone, Copy)]
pub struct Statements<'t> {
    tree: &'t Tree<'t>,
    at: u32,
    end: u32,
}

impl<'t> Tree<'t> {
    /// Those that stand in no block.
    pub fn statements(&'t self) -> Statements<'t> {
        Statements { tree: self, at: 0, end: index(self.nodes.len()) }
    }

    fn words(&self, node: Node) -> impl Iterator<Item = Word<'t>> {
        let first = node.first as usize;
        let places = self.words.get(first..first + usize::from(node.words)).unwrap_or_default();
        let text = self.text;
        places.iter().map(|place| place.word(text))
    }
}

impl<'t> Statement<'t> {
    pub fn word(&self) -> Word<'t> {
        self.words().next().unwrap_or_default()
    }

    pub fn arguments(&self) -> Vec<Word<'t>> {
        self.words().skip(1).collect()
    }

    /// The first one too.
    pub fn words(&self) -> impl Iterator<Item = Word<'t>> + use<'t> {
        self.tree.words(self.node)
    }

    pub fn is_block(&self) -> bool {
        self.node.is_block
    }

    /// What stands between the braces.
    pub fn body(&self) -> Statements<'t> {
        Statements { tree: self.tree, at: self.at + 1, end: self.node.end }
    }

    /// How much text it is with all that stands in it.
    pub fn length(&self) -> usize {
        let ends = |node: &Node| self.tree.words(*node).last().map_or(0, |word| word.span.end);
        let last = self.node.end.checked_sub(1).and_then(|last| self.tree.nodes.get(last as usize));
        last.map_or(0, ends).saturating_sub(self.span().start) as usize
    }

    /// All words of it.
    pub fn span(&self) -> Span {
        let mut spans = self.words().map(|word| word.span);
        let first = spans.next().unwrap_or_default();
        spans.last().map_or(first, |last| first.to(last))
    }
}

impl Statements<'_> {
    pub fn is_empty(&self) -> bool {
        self.at >= self.end
    }
}

impl<'t> Iterator for Statements<'t> {
    type Item = Statement<'t>;

    fn next(&mut self) -> Option<Statement<'t>> {
        let at = self.at;
        let node = *self.tree.nodes.get(at as usize).filter(|_| at < self.end)?;
        self.at = node.end;
        Some(Statement { tree: self.tree, node, at })
    }
}

impl Place {
    const PLAIN: u32 = 0;
    const IN_QUOTES: u32 = 1;
    const QUOTED_INSIDE: u32 = 2;
    const SPOILT: u32 = 3;

    fn of(word: &Word<'_>) -> Self {
        let Span { start, end } = word.span;
        let length = end.saturating_sub(start);
        let form = match word {
            Word { spoilt: true, .. } => Self::SPOILT,
            Word { quoted_inside: true, .. } => Self::QUOTED_INSIDE,
            Word { text, .. } if text.len() < length as usize => Self::IN_QUOTES,
            _ => Self::PLAIN,
        };
        // Texts are bounded far below 1 GiB, see `Span::new`.
        Self { start, length: length << 2 | form }
    }

    fn word<'t>(&self, text: &'t str) -> Word<'t> {
        let form = self.length & 3;
        let span = Span { start: self.start, end: self.start + (self.length >> 2) };
        let quotes = usize::from(form == Self::IN_QUOTES);
        let inside = span.start as usize + quotes..(span.end as usize).saturating_sub(quotes);
        Word {
            text: text.get(inside).unwrap_or(""),
            span,
            spoilt: form == Self::SPOILT,
            quoted_inside: form == Self::QUOTED_INSIDE,
        }
    }
}

/// The tree of a text, and what there is to say about its words and braces. What it takes comes off the `room`.
pub fn build<'t>(text: &'t str, room: &mut Room, reports: &mut Reports) -> Tree<'t> {
    let tree = Tree { text, words: Vec::new(), nodes: Vec::new() };
    let mut builder = Builder {
        reports,
        tree,
        frames: Vec::new(),
        after_line: false,
        ignored: 0,
        owed: 0,
        room,
        is_full: false,
    };
    let mut tokens = Tokens { lexer: Lexer::new(text), next: None };
    while let Some(token) = tokens.next(builder.reports)
        && !builder.is_full
    {
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
struct Frame {
    /// Whose block it is; absent for a brace that follows no word.
    head: Option<u32>,
    open: Option<Span>,
    /// What may stand in it; absent where that is not known.
    block: Option<Block>,
    /// How many nodes and words there were before its own.
    before: (usize, usize),
}

struct Builder<'a, 't> {
    reports: &'a mut Reports,
    tree: Tree<'t>,
    frames: Vec<Frame>,
    /// The last token was a statement: a brace now is its own.
    after_line: bool,
    /// Blocks opened beyond the depth, or closed by repair before their own brace came.
    ignored: usize,
    owed: usize,
    room: &'a mut Room,
    is_full: bool,
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
                self.line(word, &arguments, next);
            }
            Token::Open(span) => self.open(span, was_line),
            Token::Close(span) => self.close(span),
        }
    }

    /// What may stand where the next statement will.
    fn block(&self) -> Option<Block> {
        self.frames.last().map_or(Some(Block::Top), |frame| frame.block)
    }

    fn line(&mut self, word: Word<'t>, arguments: &[Word<'t>], next: Option<&Token<'t>>) {
        let size = size_of::<Node>() + (1 + arguments.len()) * size_of::<Place>();
        if !self.room.take(size, word.span, self.reports) {
            self.is_full = true;
            return;
        }
        let opens_here = matches!(next, Some(Token::Open(_)));
        if opens_here && !self.frames.is_empty() && keywords::only_at_top(word.text) {
            self.close_all_before(&word);
        }
        let outer = self.block();
        let inner =
            outer.and_then(|outer| keywords::find(outer, word.text)).and_then(|keyword| keyword.opens);
        let before = (self.tree.nodes.len(), self.tree.words.len());
        self.append(&word, arguments);
        let (Some(outer), Some(inner), false) = (outer, inner, opens_here) else { return };
        // A block without its `{`.
        let span = arguments.last().map_or(word.span, |last| word.span.to(last.span));
        let message = format!("{} needs a block: `{{` is missing", word.text);
        self.reports.push(Report::error(Class::MissingBrace, span, message));
        self.make_block(index(before.0));
        let follows = matches!(next, Some(Token::Line(word, _)) if {
            let belongs = inner == Block::Entries || keywords::find(inner, word.text).is_some();
            belongs && keywords::find(outer, word.text).is_none()
        });
        if follows {
            self.frames.push(Frame { head: Some(index(before.0)), open: None, block: Some(inner), before });
        }
    }

    fn append(&mut self, word: &Word<'t>, arguments: &[Word<'t>]) {
        let Tree { words, nodes, .. } = &mut self.tree;
        let first = index(words.len());
        for word in std::iter::once(word).chain(arguments) {
            push(words, Place::of(word));
        }
        let end = index(nodes.len() + 1);
        // The lexer's bound is far below it.
        let count = u16::try_from(1 + arguments.len()).unwrap_or(u16::MAX);
        push(nodes, Node { first, words: count, is_block: false, end });
    }

    fn make_block(&mut self, head: u32) {
        if let Some(node) = self.tree.nodes.get_mut(head as usize) {
            node.is_block = true;
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
        let before = (self.tree.nodes.len(), self.tree.words.len());
        let head = before.0.checked_sub(1).filter(|_| was_line).map(index);
        match head {
            Some(head) => self.make_block(head),
            None => {
                let message = "a `{` without a word before it";
                self.reports.push(Report::error(Class::ExtraBrace, span, message));
            }
        }
        let block = head
            .and_then(|head| self.statement(head))
            .and_then(|head| keywords::find(self.block()?, head.text)?.opens);
        self.frames.push(Frame { head, open: Some(span), block, before });
    }

    /// The first word of it.
    fn statement(&self, at: u32) -> Option<Word<'t>> {
        let node = self.tree.nodes.get(at as usize)?;
        self.tree.words(*node).next()
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
        let Some(frame) = self.frames.pop() else { return };
        let Tree { nodes, words, .. } = &mut self.tree;
        let end = index(nodes.len());
        match frame.head {
            Some(head) => {
                if let Some(node) = nodes.get_mut(head as usize) {
                    node.end = end;
                }
            }
            // Nobody knows what it is about.
            None => {
                nodes.truncate(frame.before.0);
                words.truncate(frame.before.1);
            }
        }
    }

    fn finish(mut self) -> Tree<'t> {
        while let Some(frame) = self.frames.last() {
            if let Some(open) = frame.open.filter(|_| !self.is_full) {
                let name = frame.head.and_then(|head| self.statement(head));
                let name = name.map_or(String::new(), |word| format!(" of {}", quote(word.text)));
                let message = format!("the block{name} is never closed: `}}` is missing");
                self.reports.push(Report::error(Class::UnclosedBlock, open, message));
            }
            self.end_block();
        }
        self.tree
    }
}

/// Of nodes and words there are fewer than bytes of text.
fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
