//! How is the daemon told to end, or to read its configuration again?

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// SIGTERM, SIGINT: resign and remove everything.
    Stop,
    /// SIGUSR2: end without a word, for a restart within the lease.
    Leave,
}

/// Those that come while the daemon starts are acted on when it has.
pub struct Signals {
    pub ends: Ends,
    pub hangup: Signal,
}

pub struct Ends {
    terminate: Signal,
    interrupt: Signal,
    leave: Signal,
}

impl Signals {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            ends: Ends {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
                leave: signal(SignalKind::user_defined2())?,
            },
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

impl Ends {
    pub async fn next(&mut self) -> End {
        tokio::select! {
            _ = self.terminate.recv() => End::Stop,
            _ = self.interrupt.recv() => End::Stop,
            _ = self.leave.recv() => End::Leave,
        }
    }
}
