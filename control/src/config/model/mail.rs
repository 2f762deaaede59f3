//! Whom to write to, and by which relay.

use std::time::Duration;

use lettre::Address;

/// What global_defs say of mails.
#[derive(Clone, Debug, PartialEq)]
pub struct Mail {
    /// `notification_email`.
    pub to: Vec<Address>,
    /// `notification_email_from`.
    pub from: Address,
    /// `smtp_server`.
    pub relay: String,
    pub port: u16,
    /// `smtp_helo_name`; the hostname where absent.
    pub helo: Option<String>,
    /// `smtp_connect_timeout`.
    pub timeout: Duration,
    /// Not with `no_email_faults`.
    pub faults: bool,
}
