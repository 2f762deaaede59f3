//! One generation of VRRP: its thread, what watches trackers for it, and what speaks for it.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{Voices, site::Site};
use crate::{
    clock,
    config::{
        Config,
        model::{Mail, TrackFile, Tracker},
    },
    dataplane::lease::LeaseMap,
    file_value::{self, Files},
    notify::{Notice, Notifier, Subject, What, mail::Mailer},
    pool::Vrrp,
    vrrp::{State, driver, report::Reporter, track::watch::Watch},
};

pub struct Election {
    pub vrrp: Vrrp,
    /// The thread.
    pub ended: JoinHandle<io::Result<()>>,
    /// To the one that runs scripts and feeds FIFOs, as long as it is there.
    notices: mpsc::WeakSender<Notice>,
    _watching: DropGuard,
}

/// What outlives a generation.
#[derive(Clone)]
pub struct Surroundings {
    pub leases: LeaseMap,
    pub files: Files,
    pub mailer: Mailer,
    /// This node's name, and by whom mails are sent and to whom.
    pub mail_settings: watch::Sender<(String, Option<Mail>)>,
    /// Counts changes of state.
    pub roles: watch::Sender<u64>,
    pub voices: Voices,
    pub tasks: TaskTracker,
    /// Nothing is to be done any more, except what is under way.
    pub cancel: CancellationToken,
    /// Scripts end at once.
    pub silence: CancellationToken,
}

/// For tracked files to be initialised.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many events and notices may wait, for each instance.
const WAITING: usize = 16;

impl Election {
    /// `leases` are the instances' places in the lease map. What `before` knows of trackers, and what it told of
    /// states, holds on.
    pub async fn hold(
        site: &Site,
        leases: &[u32],
        before: Option<&Self>,
        around: &Surroundings,
    ) -> anyhow::Result<Self> {
        let Surroundings { roles, voices, tasks, .. } = around;
        let config = Arc::new(site.config.clone());
        let instances = site.vrrp(leases);
        let known = before.map(|before| &before.vrrp);
        let room = WAITING * instances.len().max(1);
        initialise(&config, known.map(|known| &*known.config)).await;

        let trackers = Watch::new(&config, voices.running.subscribe(), |tracker| {
            let before = known?;
            let index = before.config.trackers.iter().position(|other| other == tracker)?;
            before.findings.borrow().get(index).copied()
        });
        let handed_over = |name: &str| {
            let before = known?;
            let index = before.instances.iter().position(|it| it.name == name)?;
            before.handle.board().view(index).map(|view| view.handed_over)
        };
        let numbers = |instance: &driver::Instance| {
            let before = known?;
            let index = before.instances.iter().position(|it| it.is_same_router(instance))?;
            before.handle.numbers(index)
        };
        let starts = trackers.standings().zip(&instances).map(|(standing, it)| driver::Start {
            standing,
            handed_over: handed_over(&it.name).unwrap_or(false),
            numbers: numbers(it).unwrap_or_default(),
        });
        let starts: Vec<_> = starts.collect();
        let (event_sender, events) = mpsc::channel(room);
        let global = &config.global;
        let options = driver::Options {
            // A reload is no start.
            startup_delay: match before {
                None => global.startup_delay.max(global.delay_after_boot.saturating_sub(clock::since_boot())),
                Some(_) => Duration::ZERO,
            },
            log_unknown_vrids: global.log_unknown_vrids,
        };
        let (handle, thread) =
            driver::spawn(instances.clone(), &starts, options, around.leases.clone(), event_sender)?;
        let ended = tokio::task::spawn_blocking(move || thread.join());

        let (notices, told) = mpsc::channel(room);
        let notifier = Notifier::new(&config, voices.settled.subscribe(), around.mailer.clone());
        let (cancel, silence) = (around.cancel.clone(), around.silence.clone());
        tasks.spawn(async move { silence.run_until_cancelled(notifier.run(told, cancel)).await });
        let states = known.map(states).unwrap_or_default();
        let weak = notices.downgrade();
        tasks.spawn(Reporter::new(&config, &states, notices, roles.clone()).run(events, handle.clone()));

        let (show, findings) = watch::channel(trackers.findings());
        let watching = around.cancel.child_token();
        tasks.spawn(trackers.run(handle.clone(), around.files.clone(), show, watching.clone()));
        let running = voices.running.subscribe();
        let vrrp = Vrrp { handle, instances: instances.into(), config, findings, running };
        Ok(Self { vrrp, ended, notices: weak, _watching: watching.drop_guard() })
    }

    /// Has FIFOs told again what did not change, where the file wants that of a reload. `told` are the states before.
    pub fn tell_again(&self, told: &HashMap<String, State>) {
        let Some(notices) = self.notices.upgrade() else { return };
        let state = |index: usize| {
            let state = told.get(&self.vrrp.instances.get(index)?.name).copied();
            state.filter(|state| *state != State::Init)
        };
        let priority = |index| self.vrrp.handle.board().view(index).map_or(0, |view| view.priority);
        let tell = |subject, state, priority| {
            let what = What::Stayed(state);
            let notice =
                Notice { subject, from: state, what, priority, cause: "reloaded".to_owned(), change: 0 };
            if notices.try_send(notice).is_err() {
                tracing::warn!("FIFOs are not told all states again: too much waits");
            }
        };
        for (index, _) in self.vrrp.instances.iter().enumerate() {
            // What is new tells itself.
            if let Some(state) = state(index) {
                tell(Subject::Instance(index), state, priority(index));
            }
        }
        for (index, group) in self.vrrp.config.groups.iter().enumerate() {
            let mut states = group.members.iter().map(|member| state(*member));
            if let Some(Some(first)) = states.next()
                && states.all(|state| state == Some(first))
            {
                tell(Subject::Group(index), first, 0);
            }
        }
    }

    /// By the names of the instances.
    pub fn states(&self) -> HashMap<String, State> {
        states(&self.vrrp)
    }

    /// Nothing that concerns it would be different.
    pub fn is_of(&self, site: &Site, leases: &[u32]) -> bool {
        let vrrp = |config: &Config| {
            let Config { global, trackers, instances, groups, .. } = config.clone();
            (global.fifos, trackers, instances, groups)
        };
        site.vrrp(leases) == *self.vrrp.instances && vrrp(&site.config) == vrrp(&self.vrrp.config)
    }
}

/// Tracked files that no configuration had before are made if they shall be.
async fn initialise(config: &Config, before: Option<&Config>) {
    let is_new = |tracker: &&Tracker| !before.is_some_and(|before| before.trackers.contains(tracker));
    let files: Vec<_> = config
        .trackers
        .iter()
        .filter(is_new)
        .filter_map(|tracker| match tracker {
            Tracker::File(TrackFile { path, initial, .. }) => Some((path.clone(), (*initial)?)),
            _ => None,
        })
        .collect();
    // They may lie on a server that does not answer: then they are written when it does.
    let written = tokio::task::spawn_blocking(move || {
        files.iter().for_each(|(path, it)| file_value::initialise(path, *it))
    });
    if timeout(PATIENCE, written).await.is_err() {
        tracing::warn!(patience = ?PATIENCE, "tracked files cannot be initialised yet: their server does not answer");
    }
}

/// By the names of the instances.
fn states(vrrp: &Vrrp) -> HashMap<String, State> {
    let state = |index| vrrp.handle.board().view(index).map_or(State::Init, |view| view.state);
    vrrp.instances.iter().enumerate().map(|(index, it)| (it.name.clone(), state(index))).collect()
}
