//! What MISC_CHECK says.

use std::time::Duration;

use super::super::{Item, Items, Reader, script::runnable, value};
use crate::config::model::MiscCheck;

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
            Some(user) => self.account(user, &user.statement.arguments()),
            None => Some(self.script_account),
        };
        let timeout = self.one(items, "misc_timeout", value::seconds(Duration::from_millis(1)..=HOUR));
        let dynamic = self.flag(items, "misc_dynamic");
        let (word, words) = self.program(items, block, "misc_path")?;
        let account = account?;
        let script = self.word("misc_path", &word, |_| runnable(words.clone(), account))?;
        Some(MiscCheck { script, timeout: timeout.unwrap_or(patience), dynamic })
    }
}
