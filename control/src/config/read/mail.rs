//! What is said of mails.

use std::time::Duration;

use lettre::Address;

use super::{Items, Reader, value, value::Wrong};
use crate::config::{
    diagnostic::{Class, quote},
    model::Mail,
};

/// What counts where `smtp_alert` is not said.
#[derive(Clone, Copy, Default)]
pub struct Alerts {
    pub vrrp: bool,
    pub services: bool,
    pub reals: bool,
}

const HOUR: Duration = Duration::from_secs(3600);

impl Reader<'_> {
    /// Of global_defs.
    pub(super) fn mail(&mut self, items: &Items<'_>) -> Option<Mail> {
        let all = self.switch(items, "smtp_alert");
        let vrrp = self.switch(items, "smtp_alert_vrrp").or(all);
        let checker = self.switch(items, "smtp_alert_checker").or(all);
        let mut to = Vec::new();
        for item in items.all("notification_email") {
            self.extra(item, &item.statement.arguments());
            for word in item.body().flat_map(|entry| entry.words()) {
                to.extend(self.word("notification_email", &word, address));
            }
        }
        let from = self.one(items, "notification_email_from", address);
        let relay = self.relay(items);
        let helo = self.one(items, "smtp_helo_name", value::text);
        let timeout = self.one(items, "smtp_connect_timeout", value::seconds(Duration::from_secs(1)..=HOUR));
        let faults = !self.flag(items, "no_email_faults");
        if let (Some(span), None) = (items.span("notification_email"), &relay) {
            self.warn(Class::Missing, span, "notification_email without smtp_server: no mail is sent");
        }
        let (relay, port) = relay.filter(|_| !to.is_empty())?;
        // keepalived's rule: of real servers mails are sent unless somebody says no.
        self.alerts = Alerts {
            vrrp: vrrp.unwrap_or_default(),
            services: checker.unwrap_or_default(),
            reals: checker.unwrap_or(true),
        };
        let from = from.or_else(own_address)?;
        Some(Mail {
            to,
            from,
            relay,
            port,
            helo,
            timeout: timeout.unwrap_or(Duration::from_secs(30)),
            faults,
        })
    }

    /// `smtp_server HOST [PORT]`.
    fn relay(&mut self, items: &Items<'_>) -> Option<(String, u16)> {
        let item = items.last("smtp_server")?;
        let arguments = item.statement.arguments();
        let [host, rest @ ..] = arguments.as_slice() else {
            self.error(Class::BadValue, item.statement.word().span, "smtp_server needs a value");
            return None;
        };
        let port = match rest {
            [] => 25,
            [port, extra @ ..] => {
                self.extra(item, extra);
                self.word("smtp_server", port, |word| Ok(u16::try_from(value::number(1..=65_535)(word)?)?))?
            }
        };
        Some((self.word("smtp_server", host, value::text)?, port))
    }
}

fn address(word: &str) -> value::Value<Address> {
    word.parse().map_err(|_| Wrong::new(format!("{} is no mail address", quote(word))))
}

fn own_address() -> Option<Address> {
    let host = nix::unistd::gethostname().ok()?.into_string().ok()?;
    Address::new("lvsd", host).or_else(|_| Address::new("lvsd", "localhost")).ok()
}
