//! Who looks at the trackers, and tells the VRRP thread what follows?

use std::{collections::HashSet, sync::Arc};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{Finding, Standing, Streak, judge, process};
use crate::{
    config::model::{Config, Track, TrackScript, Tracker, VrrpInstance},
    file_value::{Files, Follower},
    script::Ended,
    vrrp::driver,
};

/// All trackers of a configuration and what is known of them.
pub struct Watch {
    trackers: Vec<Tracker>,
    instances: Vec<VrrpInstance>,
    findings: Vec<Finding>,
    /// Names of the interfaces that are up and have a carrier.
    links: watch::Receiver<HashSet<String>>,
}

/// Scripts that run at once; others wait for their turn.
const RUNNING: usize = 128;
const RESULTS: usize = 64;

pub(super) struct News {
    pub tracker: usize,
    pub finding: Finding,
    pub cause: String,
}

impl Watch {
    /// `known` is what was found of the same tracker before.
    pub fn new(
        config: &Config,
        links: watch::Receiver<HashSet<String>>,
        known: impl Fn(&Tracker) -> Option<Finding>,
    ) -> Self {
        let first = |tracker| known(tracker).unwrap_or_else(|| first_finding(tracker));
        let mut watch = Self {
            trackers: config.trackers.clone(),
            instances: config.instances.clone(),
            findings: config.trackers.iter().map(first).collect(),
            links,
        };
        watch.look_at_links();
        watch
    }

    /// Of each instance, in the order of the configuration.
    pub fn standings(&self) -> impl Iterator<Item = Standing> {
        self.instances.iter().map(|instance| judge(instance.priority, &instance.tracks, &self.findings))
    }

    pub fn findings(&self) -> Vec<Finding> {
        self.findings.clone()
    }

    /// Runs until cancelled; `show` always holds the findings.
    pub async fn run(
        mut self,
        vrrp: driver::Handle,
        files: Files,
        show: watch::Sender<Vec<Finding>>,
        cancel: CancellationToken,
    ) {
        let (sender, mut results) = mpsc::channel(RESULTS);
        let slots = Arc::new(Semaphore::new(RUNNING));
        // Dropped with this future, and with them what runs.
        let mut watchers = JoinSet::new();
        for (index, tracker) in self.trackers.iter().enumerate().filter(|(index, _)| self.is_tracked(*index))
        {
            let sender = sender.clone();
            let known = self.findings.get(index).copied().unwrap_or_default();
            match tracker {
                Tracker::Script(script) => {
                    watchers.spawn(repeat(index, script.clone(), known, slots.clone(), sender));
                }
                Tracker::File(file) => {
                    watchers.spawn(follow(index, files.follow(&file.path), sender));
                }
                Tracker::Process(process) => {
                    watchers.spawn(process::follow(index, process.clone(), known, sender));
                }
                Tracker::Interface(_) => {}
            }
        }
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                Some(News { tracker, finding, cause }) = results.recv() => self.find(tracker, finding, &cause),
                Ok(()) = self.links.changed() => self.look_at_links(),
            }
            for (index, standing) in self.standings().enumerate() {
                vrrp.stand(index, standing);
            }
            show.send_replace(self.findings.clone());
        }
    }

    fn is_tracked(&self, tracker: usize) -> bool {
        let tracks = self.instances.iter().flat_map(|instance| &instance.tracks);
        tracks.into_iter().any(|track: &Track| track.tracker == tracker)
    }

    fn look_at_links(&mut self) {
        let links = self.links.borrow_and_update().clone();
        for index in 0..self.trackers.len() {
            if let Some(Tracker::Interface(name)) = self.trackers.get(index) {
                let finding = if links.contains(name) { Finding::Up } else { Finding::Down };
                self.find(index, finding, "link");
            }
        }
    }

    fn find(&mut self, index: usize, to: Finding, cause: &str) {
        let (Some(tracker), Some(known)) = (self.trackers.get(index), self.findings.get_mut(index)) else {
            return;
        };
        let from = std::mem::replace(known, to);
        if from != to {
            tracing::info!(tracker = tracker.name(), %from, %to, cause, "tracker changed");
        }
    }
}

fn first_finding(tracker: &Tracker) -> Finding {
    match tracker {
        Tracker::Script(script) if script.init_fail => Finding::Down,
        _ => Finding::Untried,
    }
}

async fn follow(tracker: usize, mut file: Follower, results: mpsc::Sender<News>) {
    loop {
        let finding = Finding::Number(file.next().await);
        if results.send(News { tracker, finding, cause: "file".to_owned() }).await.is_err() {
            return;
        }
    }
}

/// Runs a script again and again, never twice at once.
async fn repeat(
    tracker: usize,
    config: TrackScript,
    known: Finding,
    slots: Arc<Semaphore>,
    results: mpsc::Sender<News>,
) {
    let mut streak = Streak::new(config.rise, config.fall, known);
    let mut ticks = interval(config.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let Ok(slot) = slots.acquire().await else { return };
        let ended = config.script.run(&[], &[], config.timeout).await;
        drop(slot);
        let before = streak.finding();
        streak.on_result(ended.as_ref().is_ok_and(|ended| ended.success()));
        let finding = streak.finding();
        if finding != before {
            let cause = match ended {
                Ok(Ended::ByItself(status)) => status.to_string(),
                Ok(Ended::TimedOut) => format!("not done within {:?}", config.timeout),
                Err(error) => error.to_string(),
            };
            if results.send(News { tracker, finding, cause }).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::script::{Account, Script};

    async fn first_news(command: &str, timeout: Duration) -> News {
        let words = ["/bin/sh", "-c", command].map(str::to_owned);
        let config = TrackScript {
            name: "chk".to_owned(),
            script: Script::new(words.into(), Account::ROOT).unwrap(),
            interval: Duration::from_millis(50),
            timeout,
            rise: 1,
            fall: 1,
            init_fail: false,
        };
        let (sender, mut results) = mpsc::channel(1);
        let task = tokio::spawn(repeat(3, config, Finding::Untried, Arc::new(Semaphore::new(1)), sender));
        let news = results.recv().await.unwrap();
        task.abort();
        news
    }

    #[tokio::test]
    async fn whatever_is_not_a_success_in_time_is_a_failure_with_its_reason() {
        let long = Duration::from_secs(20);
        for (command, timeout, finding, cause) in [
            ("exit 0", long, Finding::Up, "exit status: 0"),
            ("exit 7", long, Finding::Down, "exit status: 7"),
            ("kill -9 $$", long, Finding::Down, "signal: 9 (SIGKILL)"),
            ("sleep 30", Duration::from_millis(200), Finding::Down, "not done within 200ms"),
        ] {
            let news = first_news(command, timeout).await;
            assert_eq!((news.tracker, news.finding, news.cause.as_str()), (3, finding, cause), "{command}");
        }
    }
}
