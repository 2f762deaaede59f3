//! Is a real server fit to serve? Checkers ask it, by keepalived's rules, on master and backup alike.

mod http;
mod machine;
mod runner;
mod tcp;

pub use http::HttpError;
pub use runner::{Runner, Target, Verdict};
pub use tcp::ConnectError;

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
