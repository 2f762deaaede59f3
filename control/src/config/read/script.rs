//! What the words say that name a program to run.

use std::collections::VecDeque;

use super::{Item, Reader, value, value::Wrong};
use crate::{
    config::{diagnostic::Class, lexer::Word},
    script::{self, Account},
};

impl Reader<'_> {
    /// `USER [GROUP]`, also written `USER:GROUP` or `USER :GROUP`.
    pub(super) fn account(&mut self, item: Item<'_>, words: &[Word]) -> Option<Account> {
        let word = item.keyword.word;
        let (user, rest) = match words {
            [] => {
                self.error(Class::BadValue, item.statement.word.span, format!("{word} needs a value"));
                return None;
            }
            [user, rest @ ..] => (user, rest),
        };
        let find = |user: &str, group: Option<&str>| Ok(Account::find(user, group)?);
        match (user.text.split_once(':'), rest) {
            (Some((name, group)), rest) => {
                self.extra(item, rest);
                self.word(word, user, |_| find(name, Some(group)))
            }
            (None, []) => self.word(word, user, |name| find(name, None)),
            (None, [group, rest @ ..]) => {
                self.extra(item, rest);
                self.word(word, user, |name| find(name, None))?;
                self.word(word, group, |group| find(&user.text, Some(group.trim_start_matches(':'))))
            }
        }
    }
}

/// The file's own quotes are `"`: what begins with `'` was meant to be more than this word.
pub(super) fn words_of(command: &str) -> value::Value<VecDeque<String>> {
    if command.starts_with('\'') {
        return Err(Wrong::new("single quotes are part of the value here").help("put the command into \""));
    }
    Ok(script::words(command)?)
}
