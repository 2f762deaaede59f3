//! How much memory may a text take?
//!
//! Words of one letter, or checks that leave all to defaults, mean many times their length. What the tree and the model take
//! is counted before it is taken, so that a file takes ten times its size at most.

use super::{
    diagnostic::{Class, Report, Reports},
    source::{MAX_BYTES, Span},
};

/// Bytes that may still be taken.
#[derive(Debug)]
pub struct Room {
    left: usize,
    is_full: bool,
    /// What is read, in bytes of text.
    text: usize,
}

impl Room {
    /// The text itself is there twice: as it is written and as it is read.
    const TIMES: usize = 7;
    /// For small files.
    const AT_LEAST: usize = 1 << 20;

    pub fn of(length: usize) -> Self {
        Self { left: Self::TIMES * length + Self::AT_LEAST, is_full: false, text: length }
    }

    /// For text that is read once more, as far as all together is no more than a file may be.
    pub fn repeat(&mut self, length: usize) {
        let text = (self.text + length).min(self.text.max(MAX_BYTES));
        self.left += Self::TIMES * (text - self.text);
        self.text = text;
    }

    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// How much is read, with repetitions.
    pub fn text(&self) -> usize {
        self.text
    }

    /// False where so much is not left, which it says once; then nothing is any more.
    pub fn take(&mut self, bytes: usize, at: Span, reports: &mut Reports) -> bool {
        match self.left.checked_sub(bytes).filter(|_| !self.is_full) {
            Some(left) => self.left = left,
            None => {
                if !std::mem::replace(&mut self.is_full, true) {
                    let message = "more than a configuration of this size can mean: the rest is not read";
                    reports.push(Report::error(Class::Limit, at, message));
                }
            }
        }
        !self.is_full
    }
}

/// Appends. A list that doubled could take twice what there is room for.
pub fn push<T>(list: &mut Vec<T>, item: T) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len() / 4 + 1);
    }
    list.push(item);
}
