//! Is a real server fit to serve? Checkers ask it, by keepalived's rules, on master and backup alike.

mod connect;
mod dns;
mod file;
mod http;
mod machine;
mod misc;
mod ping;
mod runner;
mod smtp;
mod tls;
mod udp;
mod vip;

use std::time::Duration;

pub use connect::ConnectError;
pub use dns::DnsError;
pub use file::FileError;
pub use http::HttpError;
pub use misc::MiscError;
pub use ping::PingError;
pub use runner::{Here, Runner, Target, Verdict};
pub use smtp::SmtpError;
pub use tls::TlsError;
pub use udp::UdpError;
pub use vip::VipError;

/// Why a check failed, in the words `lvsd status` shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error(transparent)]
    Smtp(#[from] SmtpError),
    #[error(transparent)]
    Dns(#[from] DnsError),
    #[error(transparent)]
    Udp(#[from] UdpError),
    #[error(transparent)]
    Ping(#[from] PingError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Misc(#[from] MiscError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Vip(#[from] VipError),
}

/// What a check makes of the weight of its real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// In the place of the configured one.
    To(u16),
    By(i64),
}

impl CheckError {
    /// This host could not even try: no verdict on the real server.
    fn is_local(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_local(),
            Self::Tls(error) => matches!(error, TlsError::Setup(_)),
            Self::Misc(error) => matches!(error, MiscError::NotRun(_)),
            Self::Vip(error) => error.is_local(),
            Self::Http(_) | Self::Smtp(_) | Self::Dns(_) | Self::Udp(_) | Self::Ping(_) | Self::File(_) => {
                false
            }
        }
    }
}

/// A dialogue may last so many times `connect_timeout`, and no less than that: keepalived sets no bound, so that a
/// server sending a byte now and then holds its check for ever.
struct Whole {
    times: u32,
    least: Duration,
}

const WHOLE: Whole = Whole { times: 10, least: Duration::from_secs(10) };

impl Whole {
    fn of(&self, limit: Duration) -> Duration {
        limit.saturating_mul(self.times).max(self.least)
    }
}

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod testing;
