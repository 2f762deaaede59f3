//! Is a real server fit to serve? Checkers ask it, by keepalived's rules, on master and backup alike.

mod connect;
mod http;
mod machine;
mod runner;

pub use connect::ConnectError;
pub use http::HttpError;
pub use runner::{Runner, Target, Verdict};

/// Why a check failed, in the words `lvsd status` shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Http(#[from] HttpError),
}

#[cfg(test)]
mod testing;
