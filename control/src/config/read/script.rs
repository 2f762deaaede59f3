//! What the words say that name a program to run.

use std::{collections::VecDeque, path::PathBuf, time::Duration};

use super::{Item, Items, Reader, value, value::Wrong};
use crate::{
    config::{
        diagnostic::{Class, quote},
        lexer::Word,
        model::{Fifo, Notify, Once, UpDown},
    },
    script::{self, Account, Script},
};

impl Reader<'_> {
    pub(super) fn notify(&mut self, items: &Items<'_>) -> Notify {
        let says_deleted = items.last("notify_deleted").is_some();
        let deleted = items.last("notify_deleted").is_some_and(|item| !item.statement.arguments().is_empty());
        Notify {
            master: self.command_of(items, "notify_master"),
            backup: self.command_of(items, "notify_backup"),
            fault: self.command_of(items, "notify_fault"),
            stop: self.command_of(items, "notify_stop"),
            any: self.command_of(items, "notify"),
            says_deleted,
            deleted: if deleted { self.command_of(items, "notify_deleted") } else { None },
            master_rx_lower_pri: self.command_of(items, "notify_master_rx_lower_pri"),
            priority_changes: self.switch(items, "notify_priority_changes").unwrap_or(false),
            mail: self.switch(items, "smtp_alert").unwrap_or(self.alerts.vrrp),
        }
    }

    pub(super) fn up_down(&mut self, items: &Items<'_>, [up, down]: [&'static str; 2]) -> UpDown {
        let alerts = if up == "notify_up" { self.alerts.reals } else { self.alerts.services };
        let mail = self.switch(items, "smtp_alert").unwrap_or(alerts);
        UpDown {
            up: self.command_of(items, up).map(Box::new),
            down: self.command_of(items, down).map(Box::new),
            mail,
        }
    }

    /// `WORD COMMAND [USER [GROUP]]`: a command with arguments is one word in `"`.
    fn command_of(&mut self, items: &Items<'_>, word: &'static str) -> Option<Script> {
        let item = items.last(word)?;
        let (command, user) = self.first(item)?;
        let account = if user.is_empty() { self.script_account } else { self.account(item, &user)? };
        self.word(word, &command, |_| runnable(words_of(&command)?, account))
    }

    /// `WORD COMMAND [USER [GROUP]]`, and how long it may take.
    pub(super) fn once(
        &mut self,
        items: &Items<'_>,
        word: &'static str,
        timeout_word: &'static str,
    ) -> Option<Once> {
        const DEFAULT: Duration = Duration::from_secs(10);
        let script = self.command_of(items, word);
        let timeout = self.one(items, timeout_word, value::number(1..=1000));
        if let (Some(span), None) = (items.span(timeout_word), items.last(word)) {
            self.warn(Class::Conflict, span, format!("{timeout_word} has no effect without {word}"));
        }
        let timeout = timeout.map_or(DEFAULT, |seconds| Duration::from_secs(seconds.into()));
        Some(Once { script: script?, timeout })
    }

    /// `WORD NAME [USER [GROUP]]`, and `READER COMMAND [USER [GROUP]]`.
    pub(super) fn fifo(
        &mut self,
        items: &Items<'_>,
        word: &'static str,
        reader: &'static str,
    ) -> Option<Fifo> {
        let script = self.command_of(items, reader);
        if let (Some(span), None) = (items.span(reader), items.last(word)) {
            self.warn(Class::Missing, span, format!("{reader} without {word}: it is not run"));
        }
        let item = items.last(word)?;
        let (path, user) = self.first(item)?;
        let account = if user.is_empty() { self.script_account } else { self.account(item, &user)? };
        let path = self.word(word, &path, |path| match path {
            path if path.starts_with('/') => Ok(PathBuf::from(path)),
            path => Err(Wrong::new(format!("{} does not begin with `/`", quote(path)))),
        })?;
        Some(Fifo { path, account, reader: script })
    }

    /// `USER [GROUP]`, also written `USER:GROUP` or `USER :GROUP`.
    pub(super) fn account(&mut self, item: Item<'_>, words: &[Word]) -> Option<Account> {
        let word = item.keyword.word;
        let (user, rest) = match words {
            [] => {
                self.error(Class::BadValue, item.statement.word().span, format!("{word} needs a value"));
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
                self.word(word, group, |group| find(user.text, Some(group.trim_start_matches(':'))))
            }
        }
    }

    /// The command of a block that says elsewhere who runs it: one word in `"`, to be split, or several that are not.
    pub(super) fn program<'t>(
        &mut self,
        items: &Items<'t>,
        block: Item<'_>,
        word: &'static str,
    ) -> Option<(Word<'t>, VecDeque<String>)> {
        if items.lacks(word) {
            self.error(
                Class::Missing,
                block.statement.span(),
                format!("{} without {word}", block.keyword.word),
            );
        }
        let item = items.last(word)?;
        let (first, rest) = self.first(item)?;
        let words = self.word(word, &first, |_| words_of(&first))?;
        let all = || item.statement.words().skip(1).map(|word| word.unquoted().into_owned()).collect();
        Some((first, if rest.is_empty() { words } else { all() }))
    }

    fn first<'t>(&mut self, item: Item<'t>) -> Option<(Word<'t>, Vec<Word<'t>>)> {
        let mut words = item.statement.words().skip(1);
        let first = words.next();
        if first.is_none() {
            let message = format!("{} needs a value", item.keyword.word);
            self.error(Class::BadValue, item.statement.word().span, message);
        }
        Some((first?, words.collect()))
    }
}

pub(super) fn runnable(words: VecDeque<String>, account: Account) -> value::Value<Script> {
    Script::new(words, account).map_err(|error| Wrong::new(error.to_string()).class(Class::UnusableScript))
}

/// One word in quotes is a command with its arguments, which may have quotes of their own.
fn words_of(command: &Word<'_>) -> value::Value<VecDeque<String>> {
    Ok(script::words(&command.unquoted())?)
}
