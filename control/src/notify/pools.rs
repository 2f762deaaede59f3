//! Who is told that a real server, or a service's quorum, came or went?

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Job, Letter, Mailer, Run, Speaker, open};
use crate::{
    config::model::{Fifo, UpDown},
    director::{News, ServiceState},
    script::Script,
};

pub enum Notice {
    /// These FIFOs from now on.
    Fifos(Vec<Fifo>),
    Change(Box<Change>),
}

/// As keepalived says it, and which script is to be run.
#[derive(Debug, PartialEq)]
pub struct Change {
    kind: &'static str,
    /// `[ADDRESS]:PROTOCOL:PORT`
    real: Option<String>,
    service: String,
    up: bool,
    last: bool,
    script: Option<Script>,
    mail: bool,
}

/// Scripts of one real server, or of one quorum, share a lane and so keep their order. A few share theirs by chance.
const LANES: usize = 4096;

/// Until nobody sends notices any more and all scripts have ended. Cancelled, they have a second to end.
pub async fn run(
    notices: mpsc::Receiver<Notice>,
    settled: watch::Receiver<u64>,
    mailer: Mailer,
    cancel: CancellationToken,
) {
    let speaker = Speaker::new(LANES, &[], settled, mailer);
    let take = |speaker: &mut Speaker, notice| match notice {
        Notice::Fifos(fifos) => speaker.fifos = open(&fifos),
        Notice::Change(change) => speaker.tell(*change),
    };
    speaker.run(notices, cancel, take).await;
}

impl Change {
    /// None where `news` is of nobody here.
    pub fn new(services: &[ServiceState], news: News) -> Option<Self> {
        let service = services.get(news.service)?;
        let config = &service.config;
        let protocol = service.protocol();
        let real = match news.real {
            Some(place) => Some(&service.reals.get(place)?.config),
            None => None,
        };
        let UpDown { up, down, mail } = real.map_or(&config.notify, |real| &real.notify);
        Some(Self {
            kind: if real.is_some() { "RS" } else { "VS" },
            real: real.map(|real| format!("[{}]:{protocol}:{}", real.address, real.port)),
            service: format!("[{}]:{protocol}:{}", config.address, config.port),
            up: news.up,
            last: news.last,
            script: if news.up { up } else { down }.as_deref().cloned(),
            mail: *mail,
        })
    }

    fn state(&self) -> &'static str {
        if self.up { "UP" } else { "DOWN" }
    }

    fn words(&self) -> Vec<&str> {
        let real = self.real.as_deref();
        [self.kind].into_iter().chain(real).chain([self.service.as_str(), self.state()]).collect()
    }
}

impl Speaker {
    fn tell(&mut self, change: Change) {
        self.write(&(change.words().join(" ") + "\n"));
        if change.mail {
            let state = change.state();
            let subject = match &change.real {
                Some(real) => format!("real server {real} of {} is {state}", change.service),
                None => format!("quorum of virtual server {} is {state}", change.service),
            };
            self.mailer.send(Letter { text: format!("{subject}.\n"), subject, is_fault: false });
        }
        let Some(script) = change.script.clone() else { return };
        let name = change.real.as_ref().unwrap_or(&change.service);
        let environment = vec![
            ("LVSD_TYPE", change.kind.to_owned()),
            ("LVSD_NAME", name.clone()),
            ("LVSD_SERVICE", change.service.clone()),
            ("LVSD_STATE", change.state().to_owned()),
        ];
        let work = Run { script, arguments: Vec::new(), environment, change: 0 };
        let job = Job { last: change.last, after: Vec::new(), work };
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one((&change.real, &change.service));
        self.start(name, hash as usize % LANES, job);
    }
}
