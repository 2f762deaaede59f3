//! The control socket: what `lvsd status` and its kin ask and how the daemon answers.
//!
//! One request per connection: a line of JSON ([`Command`]), answered by one JSON document.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::Arc,
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
use crate::{
    config::outline::Outline,
    dataplane::{DataplaneError, Mode},
    director::Order,
    pool::Succession,
};

pub mod status;

/// Longest request that is read.
const REQUEST_BYTES: u64 = 4096;
/// A client that is slower than this is hung up on.
const PATIENCE: Duration = Duration::from_secs(5);
/// What waits for another director takes longer: some of the longest intervals (40.95 s, in v2 255 s).
const HANDOVER_PATIENCE: Duration = Duration::from_secs(1100);
/// Half a million real servers are read and written in seconds, by a machine with nothing else to do.
const RELOAD_PATIENCE: Duration = Duration::from_secs(120);
/// Clients served at once, of root and of all others each: nobody can lock root out. One too many is hung up on.
const CLIENTS: usize = 16;
/// Longest answer that `ask` reads: far above the status of the largest configuration.
const ANSWER_BYTES: u64 = 1 << 30;

/// What a client sends: `{"command":"status"}`, for instance.
#[derive(Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
enum Command {
    Status,
    Reload,
    Outline,
    Order(Order),
    Failover(Handover),
    Failback(Handover),
}

/// Which instances are handed over or take part again.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Handover {
    /// Or a sync group; all where absent.
    pub instance: Option<String>,
    /// Who is to be master.
    pub to: Option<IpAddr>,
}

/// A request to the task that owns the state.
pub enum Request {
    Status(oneshot::Sender<Status>),
    /// An error says why it was not carried out.
    Order(Order, oneshot::Sender<Result<(), String>>),
    /// The XDP program on these interfaces, by index, where it is not yet.
    Attach(BTreeMap<u32, String>, Mode, oneshot::Sender<Result<(), DataplaneError>>),
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

/// What a client wants of the daemon as a whole.
pub struct Call {
    pub what: What,
    /// Is told how that went, in words.
    pub asker: oneshot::Sender<Result<String, String>>,
}

pub enum What {
    /// The configuration read again.
    Reload,
    /// What it is, as JSON.
    Outline,
    HandOver(Handover),
    TakePart(Handover),
}

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
    calls: mpsc::Sender<Call>,
    cancel: CancellationToken,
) {
    let [of_root, of_others] = [(); 2].map(|()| Arc::new(Semaphore::new(CLIENTS)));
    let mut clients = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let is_root = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0);
                    let places = if is_root { &of_root } else { &of_others };
                    let Ok(place) = places.clone().try_acquire_owned() else {
                        tracing::warn!(is_root, "too many clients of the control socket");
                        continue;
                    };
                    let (requests, calls) = (requests.clone(), calls.clone());
                    clients.spawn(async move {
                        // A client that hangs up or says nothing is its own loss.
                        let _ = answer(stream, requests, calls).await;
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
    calls: mpsc::Sender<Call>,
) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    timeout(PATIENCE, BufReader::new(read.take(REQUEST_BYTES)).read_line(&mut line)).await??;
    let command = serde_json::from_str(&line);
    let patience = match &command {
        Ok(Command::Failover(_)) => HANDOVER_PATIENCE,
        Ok(Command::Reload) => RELOAD_PATIENCE,
        _ => PATIENCE,
    };
    let Some(reply) = timeout(patience, reply(command, requests, calls)).await?? else { return Ok(()) };
    let written = async {
        write.write_all(&reply).await?;
        write.write_all(b"\n").await
    };
    timeout(PATIENCE, written).await?
}

/// Nothing where the daemon is about to end.
async fn reply(
    command: serde_json::Result<Command>,
    requests: mpsc::Sender<Request>,
    calls: mpsc::Sender<Call>,
) -> io::Result<Option<Vec<u8>>> {
    let what = match command {
        Ok(Command::Status) => {
            let (question, status) = oneshot::channel();
            let asked = requests.send(Request::Status(question)).await.is_ok();
            return match status.await {
                Ok(status) if asked => Ok(Some(serde_json::to_vec(&status)?)),
                _ => Ok(None),
            };
        }
        Ok(Command::Order(order)) => {
            let (asker, outcome) = oneshot::channel();
            let asked = requests.send(Request::Order(order, asker)).await.is_ok();
            return match outcome.await {
                Ok(outcome) if asked => {
                    Ok(Some(serde_json::to_vec(&Done::from(outcome.map(|()| String::new())))?))
                }
                _ => Ok(None),
            };
        }
        Ok(Command::Reload) => What::Reload,
        Ok(Command::Outline) => What::Outline,
        Ok(Command::Failover(handover)) => What::HandOver(handover),
        Ok(Command::Failback(handover)) => What::TakePart(handover),
        Err(error) => {
            let error = format!("not a request: {error}; the simplest one is {{\"command\":\"status\"}}");
            return Ok(Some(serde_json::to_vec(&Done::from(Err(error)))?));
        }
    };
    let (asker, outcome) = oneshot::channel();
    let asked = calls.send(Call { what, asker }).await.is_ok();
    match outcome.await {
        Ok(outcome) if asked => Ok(Some(serde_json::to_vec(&Done::from(outcome))?)),
        _ => Ok(None),
    }
}

#[derive(Serialize, Deserialize)]
struct Done {
    #[serde(default)]
    said: String,
    error: Option<String>,
}

impl From<Result<String, String>> for Done {
    fn from(outcome: Result<String, String>) -> Self {
        match outcome {
            Ok(said) => Self { said, error: None },
            Err(error) => Self { said: String::new(), error: Some(error) },
        }
    }
}

/// Asks a running daemon for its status.
pub async fn status(run_dir: &Path) -> Result<Status, AdminError> {
    Ok(serde_json::from_slice(&ask(run_dir, &Command::Status, PATIENCE).await?)?)
}

/// Asks a running daemon what it is configured as.
pub async fn outline(run_dir: &Path) -> Result<Outline, AdminError> {
    Ok(serde_json::from_str(&have_done(run_dir, &Command::Outline, PATIENCE).await?)?)
}

/// Has a running daemon read its configuration again.
pub async fn reload(run_dir: &Path) -> Result<(), AdminError> {
    have_done(run_dir, &Command::Reload, RELOAD_PATIENCE).await.map(drop)
}

/// Gives a running daemon an order.
pub async fn order(run_dir: &Path, order: Order) -> Result<(), AdminError> {
    have_done(run_dir, &Command::Order(order), PATIENCE).await.map(drop)
}

/// Has instances of a running daemon handed over. Says how that went.
pub async fn hand_over(run_dir: &Path, handover: Handover) -> Result<String, AdminError> {
    have_done(run_dir, &Command::Failover(handover), HANDOVER_PATIENCE).await
}

/// Takes that back.
pub async fn take_part(run_dir: &Path, instance: Option<String>) -> Result<String, AdminError> {
    have_done(run_dir, &Command::Failback(Handover { instance, to: None }), PATIENCE).await
}

async fn have_done(run_dir: &Path, command: &Command, patience: Duration) -> Result<String, AdminError> {
    let done: Done = serde_json::from_slice(&ask(run_dir, command, patience).await?)?;
    done.error.map_or(Ok(done.said), |error| Err(AdminError::Refused(error)))
}

async fn ask(run_dir: &Path, command: &Command, patience: Duration) -> Result<Vec<u8>, AdminError> {
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
    match timeout(patience, talk).await {
        Ok(Ok(reply)) if !reply.is_empty() => Ok(reply),
        Ok(Err(source)) => Err(AdminError::NotRunning { path, source }),
        Ok(Ok(_)) | Err(_) => Err(AdminError::NoAnswer { path }),
    }
}
