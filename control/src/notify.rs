//! Who is told that an instance or a pool changed? Scripts and FIFOs, in order, and never so that VRRP waits.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _, fchown},
    },
    time::Duration,
};

use nix::{errno::Errno, fcntl::OFlag, libc, sys::stat::Mode, unistd::mkfifo};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    lanes::{Job, Lanes},
    mail::{Letter, Mailer},
};
use crate::{
    config::model::{self, Config, Notify},
    script::{Ended, Script},
    vrrp::State,
};

mod lanes;
pub mod mail;
pub mod pools;

/// One change of state.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    pub subject: Subject,
    /// The state before.
    pub from: State,
    pub what: What,
    pub priority: u8,
    pub cause: String,
    /// Scripts start when the host has acted on so many changes: a master's addresses are there then.
    pub change: u64,
}

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// INIT is a planned stop.
    Became(State),
    /// A reload has changed nothing of it; for FIFOs.
    Stayed(State),
    /// It is master, and another host says that an address of its is its own.
    SplitBrain,
    /// A reload has removed the instance.
    Deleted,
    /// It is master and has heard a lower priority.
    LowerPriority,
    /// It has another priority in this state.
    Priority(State),
}

/// Whose state changed, by its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Instance(usize),
    Group(usize),
}

/// Tells of instances and groups.
pub struct Notifier {
    /// Its lanes are those of the instances, then those of the groups.
    speaker: Speaker,
    instances: Vec<Listener>,
    groups: Vec<Listener>,
}

/// Runs scripts, feeds FIFOs.
struct Speaker {
    lanes: Lanes<Run>,
    fifos: Vec<Fifo>,
    mailer: Mailer,
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
    pub fn new(config: &Config, settled: watch::Receiver<u64>, mailer: Mailer) -> Self {
        let listener = |name: &String, notify: &Notify, members: &[usize]| Listener {
            name: name.clone(),
            notify: notify.clone(),
            members: members.to_owned(),
        };
        let instances: Vec<_> =
            config.instances.iter().map(|it| listener(&it.name, &it.notify, &[])).collect();
        let groups: Vec<_> =
            config.groups.iter().map(|it| listener(&it.name, &it.notify, &it.members)).collect();
        let speaker = Speaker::new(instances.len() + groups.len(), &config.global.fifos, settled, mailer);
        Self { speaker, instances, groups }
    }

    /// Until nobody sends notices any more and all scripts have ended. Cancelled, they have a second to end.
    pub async fn run(self, notices: mpsc::Receiver<Notice>, cancel: CancellationToken) {
        let Self { speaker, instances, groups } = self;
        speaker.run(notices, cancel, |speaker, notice| speaker.take(&notice, &instances, &groups)).await;
    }
}

impl Speaker {
    fn new(lanes: usize, fifos: &[model::Fifo], settled: watch::Receiver<u64>, mailer: Mailer) -> Self {
        Self { lanes: Lanes::new(lanes, RUNNING, WAITING), fifos: open(fifos), mailer, settled }
    }

    async fn run<N>(
        mut self,
        mut notices: mpsc::Receiver<N>,
        cancel: CancellationToken,
        mut take: impl FnMut(&mut Self, N),
    ) {
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
                return self.end().await;
            }
            tokio::select! {
                () = cancel.cancelled(), if end.is_none() => end = Some(Instant::now() + LAST_WORDS),
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => {
                    tracing::warn!(scripts = running.len(), "notify scripts did not end in time");
                    return self.end().await;
                }
                notice = notices.recv(), if !closed => match notice {
                    Some(notice) => take(&mut self, notice),
                    None => closed = true,
                },
                // A run that panicked would be of no lane; none does.
                Some(Ok(place)) = running.join_next() => self.lanes.done(place),
            }
        }
    }

    fn take(&mut self, notice: &Notice, instances: &[Listener], groups: &[Listener]) {
        let (kind, lane, listener) = match notice.subject {
            Subject::Instance(index) => ("INSTANCE", index, instances.get(index)),
            Subject::Group(index) => ("GROUP", instances.len() + index, groups.get(index)),
        };
        let Some(listener) = listener else { return };
        let after = self.lanes.ends(&listener.members);
        let arguments =
            [kind, &listener.name, word(notice.what), &notice.priority.to_string()].map(str::to_owned);
        let [kind, name, state, priority] = &arguments;
        self.write(&format!("{kind} \"{name}\" {state} {priority}\n"));
        let environment = vec![
            ("LVSD_TYPE", kind.clone()),
            ("LVSD_NAME", name.clone()),
            ("LVSD_FROM", notice.from.to_string()),
            ("LVSD_STATE", state.clone()),
            ("LVSD_PRIORITY", priority.clone()),
            ("LVSD_CAUSE", notice.cause.clone()),
        ];
        // keepalived's rule: a stop is not mailed.
        let is_mailed = match notice.what {
            What::Became(state) => state != State::Init,
            What::SplitBrain => true,
            What::Stayed(_) | What::Deleted | What::LowerPriority | What::Priority(_) => false,
        };
        if listener.notify.mail && is_mailed {
            self.mailer.send(Letter {
                subject: format!("VRRP {} {name} is {state}", kind.to_lowercase()),
                text: format!("It was {}: {}.\n", notice.from, notice.cause),
                is_fault: notice.what == What::Became(State::Fault),
            });
        }
        let notify = &listener.notify;
        let (of_state, any) = match notice.what {
            What::Became(State::Master) => (&notify.master, &notify.any),
            What::Became(State::Backup) => (&notify.backup, &notify.any),
            What::Became(State::Fault) => (&notify.fault, &notify.any),
            What::Became(State::Init) => (&notify.stop, &notify.any),
            What::SplitBrain => (&None, &notify.any),
            What::Deleted => (&notify.deleted, &notify.any),
            What::LowerPriority => (&notify.master_rx_lower_pri, &None),
            What::Stayed(_) | What::Priority(_) => (&None, &None),
        };
        let scripts = of_state.iter().map(|script| (script, Vec::new()));
        for (script, arguments) in scripts.chain(any.iter().map(|script| (script, arguments.to_vec()))) {
            let run = Run {
                script: script.clone(),
                arguments,
                environment: environment.clone(),
                change: notice.change,
            };
            let job = Job { last: notice.what == What::Became(State::Init), after: after.clone(), work: run };
            self.start(name, lane, job);
        }
    }

    /// Readers of FIFOs may read what is left: nobody writes any more.
    async fn end(self) {
        let mut readers: JoinSet<()> = self.fifos.into_iter().map(Fifo::end).collect();
        let _ = timeout(LAST_WORDS, async { while readers.join_next().await.is_some() {} }).await;
    }

    fn write(&mut self, line: &str) {
        self.fifos.iter_mut().for_each(|fifo| fifo.tell(line));
    }

    fn start(&mut self, name: &str, lane: usize, job: Job<Run>) {
        if let Some(lost) = self.lanes.push(lane, job) {
            let script = lost.script.program.display();
            tracing::warn!(name, %script, "a notify script is left out: too many wait");
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

fn open(fifos: &[model::Fifo]) -> Vec<Fifo> {
    let open = |fifo| match Fifo::open(fifo) {
        Ok(fifo) => Some(fifo),
        Err(error) => {
            tracing::error!(fifo = %fifo.path.display(), %error, "a FIFO is not told of state changes");
            None
        }
    };
    fifos.iter().filter_map(open).collect()
}

/// As keepalived names it, where it knows it.
fn word(what: What) -> &'static str {
    match what {
        What::Became(State::Master) | What::Stayed(State::Master) => "MASTER",
        What::Became(State::Backup) | What::Stayed(State::Backup) => "BACKUP",
        What::Became(State::Fault) | What::Stayed(State::Fault) => "FAULT",
        What::Became(State::Init) | What::Stayed(State::Init) => "STOP",
        What::SplitBrain => "SPLIT_BRAIN",
        What::Deleted => "DELETED",
        What::LowerPriority => "MASTER_RX_LOWER_PRI",
        What::Priority(State::Master) => "MASTER_PRIORITY",
        What::Priority(_) => "BACKUP_PRIORITY",
    }
}

/// Bytes that wait in a pipe.
fn unread(pipe: &File) -> libc::c_int {
    let mut count = 0;
    // SAFETY: FIONREAD writes one c_int to a valid place.
    let result = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    if result == 0 { count } else { 0 }
}

/// As long as the FIFO is written to.
async fn read(script: Script, fifo: String) {
    let ended = script.run(&[fifo], &[], Duration::MAX).await;
    tracing::warn!(script = %script.program.display(), ?ended, "the reader of a FIFO has ended");
}

/// A named pipe. Lines are lost while nobody reads and the pipe is full.
struct Fifo {
    file: File,
    /// Dropped, this kills who reads.
    reader: JoinSet<()>,
    name: String,
    full: bool,
}

impl Fifo {
    fn open(config: &model::Fifo) -> io::Result<Self> {
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
        let name = path.display().to_string();
        let mut reader = JoinSet::new();
        if let Some(script) = config.reader.clone() {
            reader.spawn(read(script, name.clone()));
        }
        Ok(Self { file, reader, name, full: false })
    }

    /// What is in a pipe that nobody holds is lost: it stays open until the reader has it.
    async fn end(self) {
        let Self { file, mut reader, .. } = self;
        while !reader.is_empty() && unread(&file) > 0 && reader.try_join_next().is_none() {
            sleep(Duration::from_millis(10)).await;
        }
        drop(file);
        while reader.join_next().await.is_some() {}
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
