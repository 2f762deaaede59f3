//! What MISC_CHECK says.

use std::{collections::VecDeque, time::Duration};

use super::super::{Item, Items, Reader, script::words_of, value};
use crate::{
    config::{diagnostic::Class, lexer::Word, model::MiscCheck},
    script::{Account, Script},
};

impl Reader<'_> {
    /// `patience` is what holds where there is no misc_timeout.
    pub(super) fn misc(
        &mut self,
        items: &Items<'_>,
        block: Item<'_>,
        patience: Duration,
    ) -> Option<MiscCheck> {
        const HOUR: Duration = Duration::from_secs(3600);
        let account = match items.last("user") {
            Some(user) => self.account(user, &user.statement.arguments),
            None => Some(Account::default_for_scripts()),
        };
        let timeout = self.one(items, "misc_timeout", value::seconds(Duration::from_millis(1)..=HOUR));
        let dynamic = self.flag(items, "misc_dynamic");
        let (word, words) = self.program(items, block)?;
        let account = account?;
        let script = self.word("misc_path", word, |_| Ok(Script::new(words.clone(), account)?))?;
        Some(MiscCheck { script, timeout: timeout.unwrap_or(patience), dynamic })
    }

    /// One word in `"`, to be split, or several that are not.
    fn program<'t>(&mut self, items: &Items<'t>, block: Item<'_>) -> Option<(&'t Word, VecDeque<String>)> {
        if items.lacks("misc_path") {
            self.error(Class::Missing, block.statement.span(), "MISC_CHECK without misc_path");
        }
        let item = items.last("misc_path")?;
        let Some((word, rest)) = item.statement.arguments.split_first() else {
            self.error(Class::BadValue, item.statement.word.span, "misc_path needs a value");
            return None;
        };
        let words = self.word("misc_path", word, words_of)?;
        let all = || item.statement.arguments.iter().map(|word| word.text.clone()).collect();
        Some((word, if rest.is_empty() { words } else { all() }))
    }
}
