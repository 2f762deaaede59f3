//! The control socket: what `lvsd status` and its kin ask and how the daemon answers.
//!
//! One request per connection: a line of JSON ([`Command`]), answered by one JSON document.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use self::status::Status;
use crate::{director::Order, pool::Succession};

pub mod status;

/// Longest request that is read.
const REQUEST_BYTES: u64 = 4096;
/// A client that is slower than this is hung up on.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients served at once; others wait in the listen queue.
const CLIENTS: usize = 16;
/// Longest answer that `ask` reads: far above the status of the largest configuration.
const ANSWER_BYTES: u64 = 1 << 30;

/// What a client sends: `{"command":"status"}`, for instance.
#[derive(Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
enum Command {
    Status,
    Reload,
    Order(Order),
}

/// A request to the task that owns the state.
pub enum Request {
    Status(oneshot::Sender<Status>),
    /// An error says why it was not carried out.
    Order(Order, oneshot::Sender<Result<(), String>>),
    /// A new configuration takes over.
    Succeed(Box<Succession>),
}

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("cannot listen on {}: {source}", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("no lvsd answers on {}: {source}", path.display())]
    NotRunning { path: PathBuf, source: io::Error },
    #[error("lvsd closed {} without an answer", path.display())]
    NoAnswer { path: PathBuf },
    #[error("{0}")]
    Refused(String),
    #[error("lvsd answered what this version does not understand: {0}")]
    Answer(#[from] serde_json::Error),
}

/// A client that wants the configuration read again, and to know how that went.
pub type Reload = oneshot::Sender<Result<(), String>>;

pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("lvsd.sock")
}

/// Binds the socket. The caller holds the run directory's lock, so a socket that is there is a dead daemon's.
pub fn listen(run_dir: &Path, group: Option<u32>) -> Result<UnixListener, AdminError> {
    let path = socket_path(run_dir);
    let bind = || {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        admit(run_dir, group)?;
        Ok(listener)
    };
    bind().map_err(|source| AdminError::Listen { path: path.clone(), source })
}

/// Opens the socket to root and to the members of one group, or to root alone.
pub fn admit(run_dir: &Path, group: Option<u32>) -> io::Result<()> {
    let path = socket_path(run_dir);
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    // Never the old group with the new mode.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    chown(&path, Some(0), Some(group.unwrap_or(0)))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))
}

/// Serves clients until cancelled.
pub async fn serve(
    listener: UnixListener,
    requests: mpsc::Sender<Request>,
    reloads: mpsc::Sender<Reload>,
    cancel: CancellationToken,
) {
    let places = std::sync::Arc::new(Semaphore::new(CLIENTS));
    let mut clients = tokio::task::JoinSet::new();
    loop {
        let client = async {
            let place = places.clone().acquire_owned().await.ok()?;
            Some((listener.accept().await, place))
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            Some((accepted, place)) = client => match accepted {
                Ok((stream, _)) => {
                    let (requests, reloads) = (requests.clone(), reloads.clone());
                    clients.spawn(async move {
                        // A client that hangs up or says nothing is its own loss.
                        let _ = timeout(PATIENCE, answer(stream, requests, reloads)).await;
                        drop(place);
                    });
                }
                // Out of file descriptors, for instance: not a reason to spin.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = clients.join_next() => {}
        }
    }
}

async fn answer(
    mut stream: UnixStream,
    requests: mpsc::Sender<Request>,
    reloads: mpsc::Sender<Reload>,
) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    BufReader::new(read.take(REQUEST_BYTES)).read_line(&mut line).await?;
    let reply = match serde_json::from_str(&line) {
        Ok(Command::Status) => {
            let (question, status) = oneshot::channel();
            let asked = requests.send(Request::Status(question)).await.is_ok();
            match status.await {
                Ok(status) if asked => serde_json::to_vec(&status)?,
                _ => return Ok(()),
            }
        }
        Ok(Command::Reload) => {
            let (asker, outcome) = oneshot::channel();
            let asked = reloads.send(asker).await.is_ok();
            match outcome.await {
                Ok(outcome) if asked => serde_json::to_vec(&Done::from(outcome))?,
                _ => return Ok(()),
            }
        }
        Ok(Command::Order(order)) => {
            let (asker, outcome) = oneshot::channel();
            let asked = requests.send(Request::Order(order, asker)).await.is_ok();
            match outcome.await {
                Ok(outcome) if asked => serde_json::to_vec(&Done::from(outcome))?,
                _ => return Ok(()),
            }
        }
        Err(error) => {
            let error = format!("not a request: {error}; the simplest one is {{\"command\":\"status\"}}");
            serde_json::to_vec(&Done { error: Some(error) })?
        }
    };
    write.write_all(&reply).await?;
    write.write_all(b"\n").await
}

#[derive(Serialize, Deserialize)]
struct Done {
    error: Option<String>,
}

impl From<Result<(), String>> for Done {
    fn from(outcome: Result<(), String>) -> Self {
        Self { error: outcome.err() }
    }
}

/// Asks a running daemon for its status.
pub async fn status(run_dir: &Path) -> Result<Status, AdminError> {
    Ok(serde_json::from_slice(&ask(run_dir, &Command::Status).await?)?)
}

/// Has a running daemon read its configuration again.
pub async fn reload(run_dir: &Path) -> Result<(), AdminError> {
    have_done(run_dir, &Command::Reload).await
}

/// Gives a running daemon an order.
pub async fn order(run_dir: &Path, order: Order) -> Result<(), AdminError> {
    have_done(run_dir, &Command::Order(order)).await
}

async fn have_done(run_dir: &Path, command: &Command) -> Result<(), AdminError> {
    let done: Done = serde_json::from_slice(&ask(run_dir, command).await?)?;
    done.error.map_or(Ok(()), |error| Err(AdminError::Refused(error)))
}

async fn ask(run_dir: &Path, command: &Command) -> Result<Vec<u8>, AdminError> {
    let path = socket_path(run_dir);
    let mut request = serde_json::to_vec(command)?;
    request.push(b'\n');
    let talk = async {
        let mut stream = UnixStream::connect(&path).await?;
        stream.write_all(&request).await?;
        let mut reply = Vec::new();
        stream.take(ANSWER_BYTES).read_to_end(&mut reply).await?;
        Ok(reply)
    };
    match timeout(PATIENCE, talk).await {
        Ok(Ok(reply)) if !reply.is_empty() => Ok(reply),
        Ok(Err(source)) => Err(AdminError::NotRunning { path, source }),
        Ok(Ok(_)) | Err(_) => Err(AdminError::NoAnswer { path }),
    }
}
