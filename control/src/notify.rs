//! Who is told that an instance changed its state? Scripts and FIFOs, in order, and never so that VRRP waits.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, fchown},
    time::Duration,
};

use nix::{errno::Errno, fcntl::OFlag, sys::stat::Mode, unistd::mkfifo};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use self::lanes::{Job, Lanes};
use crate::{
    config::model::{Config, Notify},
    script::{Ended, Script},
    vrrp::State,
};

mod lanes;

/// One change of state.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    pub subject: Subject,
    pub from: State,
    /// INIT is a planned stop.
    pub to: State,
    pub priority: u8,
    pub cause: String,
    /// Scripts start when the host has acted on so many changes: a master's addresses are there then.
    pub change: u64,
}

/// Whose state changed, by its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Instance(usize),
    Group(usize),
}

/// Runs scripts, feeds FIFOs.
pub struct Notifier {
    /// Those of the instances, then those of the groups.
    lanes: Lanes<Run>,
    instances: Vec<Listener>,
    groups: Vec<Listener>,
    fifos: Vec<Fifo>,
    settled: watch::Receiver<u64>,
}

/// What runs for an instance or a group.
struct Listener {
    name: String,
    notify: Notify,
    /// Of a group: it is told after them.
    members: Vec<usize>,
}

/// One script with what it is told.
struct Run {
    script: Script,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
    change: u64,
}

/// A script that takes longer is ended.
const LIMIT: Duration = Duration::from_secs(60);
/// So long may scripts run on when the daemon ends, as in keepalived.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// So long a script waits for the host to act.
const SETTLING: Duration = Duration::from_secs(1);
/// Scripts running at once.
const RUNNING: usize = 32;
/// Scripts of one instance that wait for the one before.
const WAITING: usize = 32;

impl Notifier {
    /// Opens the FIFOs. `settled` counts the changes that the host has acted on.
    pub fn new(config: &Config, settled: watch::Receiver<u64>) -> Self {
        let listener = |name: &String, notify: &Notify, members: &[usize]| Listener {
            name: name.clone(),
            notify: notify.clone(),
            members: members.to_owned(),
        };
        let instances: Vec<_> =
            config.instances.iter().map(|it| listener(&it.name, &it.notify, &[])).collect();
        let groups: Vec<_> =
            config.groups.iter().map(|it| listener(&it.name, &it.notify, &it.members)).collect();
        let open = |fifo| match Fifo::open(fifo) {
            Ok(fifo) => Some(fifo),
            Err(error) => {
                tracing::error!(fifo = %fifo.path.display(), %error, "a FIFO is not told of state changes");
                None
            }
        };
        let fifos = config.global.fifos.iter().filter_map(open).collect();
        let lanes = Lanes::new(instances.len() + groups.len(), RUNNING, WAITING);
        Self { lanes, instances, groups, fifos, settled }
    }

    /// Until nobody sends notices any more and all scripts have ended. Cancelled, they have a second to end.
    pub async fn run(mut self, mut notices: mpsc::Receiver<Notice>, cancel: CancellationToken) {
        let mut running = JoinSet::new();
        let (mut end, mut closed) = (None, false);
        loop {
            while let Some((place, run)) = self.lanes.next() {
                let settled = self.settled.clone();
                running.spawn(async move {
                    run.run(settled).await;
                    place
                });
            }
            if closed && running.is_empty() {
                return;
            }
            tokio::select! {
                () = cancel.cancelled(), if end.is_none() => end = Some(Instant::now() + LAST_WORDS),
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => {
                    return tracing::warn!(scripts = running.len(), "notify scripts did not end in time");
                }
                notice = notices.recv(), if !closed => match notice {
                    Some(notice) => self.take(&notice),
                    None => closed = true,
                },
                // A run that panicked would be of no lane; none does.
                Some(Ok(place)) = running.join_next() => self.lanes.done(place),
            }
        }
    }

    fn take(&mut self, notice: &Notice) {
        let (kind, lane, listener) = match notice.subject {
            Subject::Instance(index) => ("INSTANCE", index, self.instances.get(index)),
            Subject::Group(index) => ("GROUP", self.instances.len() + index, self.groups.get(index)),
        };
        let Some(listener) = listener else { return };
        let after = self.lanes.ends(&listener.members);
        let arguments =
            [kind, &listener.name, word(notice.to), &notice.priority.to_string()].map(str::to_owned);
        let [kind, name, state, priority] = &arguments;
        for fifo in &mut self.fifos {
            fifo.tell(&format!("{kind} \"{name}\" {state} {priority}\n"));
        }
        let environment = vec![
            ("LVSD_TYPE", kind.clone()),
            ("LVSD_NAME", name.clone()),
            ("LVSD_FROM", notice.from.to_string()),
            ("LVSD_STATE", state.clone()),
            ("LVSD_PRIORITY", priority.clone()),
            ("LVSD_CAUSE", notice.cause.clone()),
        ];
        let Notify { master, backup, fault, stop, any } = &listener.notify;
        let of_state = match notice.to {
            State::Master => master,
            State::Backup => backup,
            State::Fault => fault,
            State::Init => stop,
        };
        let scripts = of_state.iter().map(|script| (script, Vec::new()));
        for (script, arguments) in scripts.chain(any.iter().map(|script| (script, arguments.to_vec()))) {
            let run = Run {
                script: script.clone(),
                arguments,
                environment: environment.clone(),
                change: notice.change,
            };
            let job = Job { last: notice.to == State::Init, after: after.clone(), work: run };
            if let Some(lost) = self.lanes.push(lane, job) {
                let script = lost.script.program.display();
                tracing::warn!(%name, %script, "a notify script is left out: too many wait");
            }
        }
    }
}

impl Run {
    async fn run(self, mut settled: watch::Receiver<u64>) {
        let Self { script, arguments, environment, change } = self;
        // A host task that is gone settles nothing any more.
        let _ = timeout(SETTLING, settled.wait_for(|seen| *seen >= change)).await;
        let program = script.program.display();
        match script.run(&arguments, &environment, LIMIT).await {
            Ok(Ended::ByItself(status)) if status.success() => {}
            Ok(Ended::ByItself(status)) => {
                tracing::warn!(script = %program, %status, "a notify script failed")
            }
            Ok(Ended::TimedOut) => {
                tracing::warn!(script = %program, limit = ?LIMIT, "a notify script was ended")
            }
            Err(error) => tracing::error!(script = %program, %error, "a notify script cannot be run"),
        }
    }
}

/// As keepalived names it.
fn word(to: State) -> &'static str {
    match to {
        State::Master => "MASTER",
        State::Backup => "BACKUP",
        State::Fault => "FAULT",
        State::Init => "STOP",
    }
}

/// A named pipe. Lines are lost while nobody reads and the pipe is full.
struct Fifo {
    file: File,
    name: String,
    full: bool,
}

impl Fifo {
    fn open(config: &crate::config::model::Fifo) -> io::Result<Self> {
        let path = &config.path;
        let made = match mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(error) => return Err(error.into()),
        };
        // For reading too: without a reader, opening to write would fail.
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags.bits()).open(path)?;
        if !file.metadata()?.file_type().is_fifo() {
            return Err(io::Error::other("it is no FIFO"));
        }
        if made {
            fchown(&file, Some(config.account.uid), Some(config.account.gid))?;
        }
        Ok(Self { file, name: path.display().to_string(), full: false })
    }

    fn tell(&mut self, line: &str) {
        let told = self.file.write(line.as_bytes()).is_ok_and(|length| length == line.len());
        if !told && !self.full {
            tracing::warn!(fifo = %self.name, "lines are lost: nobody reads");
        }
        self.full = !told;
    }
}

#[cfg(test)]
mod tests;
