//! Who runs the probes? One task per checker, on a bounded number of sockets.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    io,
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit};
use tokio::{
    io::AsyncWriteExt as _,
    sync::{Semaphore, SemaphorePermit, mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{
    CheckError, TlsError, Weight, connect, dns, file, http,
    machine::{Change, Finding, Machine},
    misc, ping, smtp, tls, udp,
    vip::{Asker, VipError},
};
use crate::{
    config::model::{Check, CheckKind, HttpProtocol, Url},
    dataplane::plan::NextHop,
    file_value::Files,
};

/// All checkers of the configuration in force.
pub struct Runner {
    tasks: TaskTracker,
    running: HashMap<usize, CancellationToken>,
    sockets: Arc<Slots>,
    programs: Arc<Slots>,
    files: Files,
    verdicts: mpsc::Sender<Verdict>,
    here: Here,
    /// Open once a check has wanted it.
    asker: Arc<OnceLock<Asker>>,
    cancel: CancellationToken,
}

/// What checks have to know of this host.
#[derive(Clone)]
pub struct Here {
    /// While an address is among them its checks say nothing: it is this director that is cut off, and were its reals
    /// taken out for that, it would come back as a master without any.
    pub isolated: watch::Receiver<HashSet<IpAddr>>,
    pub next_hops: watch::Receiver<HashMap<IpAddr, NextHop>>,
    /// Which of the addresses that checks depend on it has.
    pub held: watch::Receiver<HashSet<IpAddr>>,
}

/// What to check; `id` names it in its verdicts.
#[derive(Clone, Debug)]
pub struct Target {
    pub id: usize,
    pub check: Check,
    /// Whether its real server is in the pool now.
    pub up: bool,
}

/// The first result of a check, then every change. A target without one is as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub id: usize,
    pub up: bool,
    /// What a program or a file last said of the weight.
    pub weight: Option<Weight>,
    /// Why it is down.
    pub error: Option<CheckError>,
}

impl Runner {
    /// `cancel` ends all checks and closes their sockets.
    ///
    /// A full channel delays the checks that have something to say, and no others.
    pub fn new(verdicts: mpsc::Sender<Verdict>, here: Here, files: Files, cancel: CancellationToken) -> Self {
        Self {
            tasks: TaskTracker::new(),
            running: HashMap::new(),
            sockets: Arc::new(Slots::new(descriptors_for_checks(), "LimitNOFILE allows")),
            programs: Arc::new(Slots::new(PROGRAMS, "programs may run at once")),
            files,
            verdicts,
            here,
            asker: Arc::default(),
            cancel,
        }
    }

    /// From now on these and no others are checked. One whose id is known goes on undisturbed.
    pub fn set(&mut self, targets: Vec<Target>) {
        let wanted: HashSet<usize> = targets.iter().map(|target| target.id).collect();
        self.running.retain(|id, cancel| {
            let stays = wanted.contains(id);
            if !stays {
                cancel.cancel();
            }
            stays
        });
        if targets.iter().any(|target| target.check.on_vip.is_some()) {
            self.open_asker();
        }
        for target in targets {
            if let Entry::Vacant(vacant) = self.running.entry(target.id) {
                let cancel = vacant.insert(self.cancel.child_token()).clone();
                let verdicts = self.verdicts.clone();
                if let CheckKind::File(check) = target.check.kind {
                    let file = self.files.follow(&check.path);
                    self.tasks.spawn(async move {
                        cancel.run_until_cancelled(file::follow(target.id, &check, file, &verdicts)).await
                    });
                    continue;
                }
                let slots = match target.check.kind {
                    CheckKind::Misc(_) => self.programs.clone(),
                    _ => self.sockets.clone(),
                };
                let (here, asker) = (self.here.clone(), self.asker.clone());
                self.tasks.spawn(async move {
                    cancel.run_until_cancelled(watch(target, &slots, &verdicts, here, &asker)).await
                });
            }
        }
    }

    fn open_asker(&self) {
        if self.asker.get().is_some() {
            return;
        }
        match Asker::open(self.here.next_hops.clone()) {
            // Whoever lost a race would close it again; there is no other.
            Ok(asker) => drop(self.asker.set(asker)),
            Err(error) => return warn!(%error, "virtual addresses cannot be asked: check_vip says nothing"),
        }
        let (asker, cancel) = (self.asker.clone(), self.cancel.clone());
        self.tasks.spawn(async move {
            let listen = async {
                if let Some(asker) = asker.get() {
                    let error = asker.listen().await;
                    warn!(%error, "answers from virtual addresses are not heard any more");
                }
            };
            cancel.run_until_cancelled(listen).await
        });
    }

    /// Returns when every task has ended: after the cancellation, or when nobody takes verdicts any more.
    pub async fn stopped(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Checks that an address was missing for do not all come with it.
const RESUMED_WITHIN: Duration = Duration::from_secs(1);

async fn watch(
    target: Target,
    slots: &Slots,
    verdicts: &mpsc::Sender<Verdict>,
    Here { mut isolated, mut held, .. }: Here,
    asker: &OnceLock<Asker>,
) {
    let Target { id, check, up } = target;
    let mut machine = Machine::new(&check, up, fastrand::u32(..), Instant::now().into_std());
    let mut hindrance = None;
    let prober = Prober::new(&check, asker);
    let (mut weight, mut told) = (None, None);
    loop {
        sleep_until(Instant::from_std(machine.due())).await;
        if let Some(address) = check.only_with
            && !held.borrow().contains(&address)
        {
            if held.wait_for(|held| held.contains(&address)).await.is_err() {
                return;
            }
            sleep(check.timing.delay_loop.min(RESUMED_WITHIN).mul_f64(fastrand::f64())).await;
        }
        let Some(slot) = slots.take().await else { return };
        let started = Instant::now();
        let cut_off = isolated.borrow_and_update().contains(&check.address);
        let result = if cut_off { Ok(None) } else { prober.probe(machine.url()).await };
        drop(slot);

        let (finding, error) = match result {
            _ if cut_off => (Finding::NotTried, None),
            // The link went or came while the probe was under way.
            Err(_) if isolated.has_changed().unwrap_or(false) => (Finding::NotTried, None),
            Ok(said) => {
                hindrance = None;
                weight = said.or(weight);
                (Finding::Success, None)
            }
            Err(error) if error.is_local() => {
                if hindrance.as_ref() != Some(&error) {
                    warn!(address = %check.address, port = check.port, cause = %error, "cannot check");
                }
                // The virtual address is asked after the real server's own has answered: that counts.
                let has_answered = matches!(error, CheckError::Vip(_));
                hindrance = Some(error);
                (if has_answered { Finding::Success } else { Finding::NotTried }, None)
            }
            Err(error) => {
                hindrance = None;
                if check.log_all_failures {
                    info!(check = check.kind.word(), address = %check.address, port = check.port, cause = %error, "check failed");
                }
                (Finding::Failure, Some(error))
            }
        };
        // keepalived's rule: between programs the pause counts from their start.
        let from = if matches!(check.kind, CheckKind::Misc(_)) { started } else { Instant::now() };
        let up = match machine.on_finding(finding, from.into_std()) {
            None if weight == told || !machine.is_up() => continue,
            None | Some(Change::Up) => true,
            Some(Change::Down) => false,
        };
        told = weight;
        if verdicts.send(Verdict { id, up, weight, error }).await.is_err() {
            return;
        }
    }
}

/// One check and what its probes share.
pub(super) struct Prober<'a> {
    check: &'a Check,
    asker: &'a OnceLock<Asker>,
    tls: Option<Result<TlsConnector, TlsError>>,
}

impl<'a> Prober<'a> {
    pub fn new(check: &'a Check, asker: &'a OnceLock<Asker>) -> Self {
        let tls = match &check.kind {
            CheckKind::Http(http) => http.tls.as_ref().map(tls::connector),
            _ => None,
        };
        Self { check, asker, tls }
    }

    /// `url` counts where the check has some. The weight is one that a program gives its real server.
    pub async fn probe(&self, url: usize) -> Result<Option<Weight>, CheckError> {
        let weight = self.probe_real(url).await?;
        if let Some(on_vip) = self.check.on_vip.as_deref() {
            let asker = self.asker.get().ok_or(VipError::NotSent(io::ErrorKind::Unsupported))?;
            asker.ask(self.check, *on_vip).await?;
        }
        Ok(weight)
    }

    async fn probe_real(&self, url: usize) -> Result<Option<Weight>, CheckError> {
        let check = self.check;
        let limit = check.timing.connect_timeout;
        match &check.kind {
            CheckKind::Tcp => drop(connect::tcp(check).await?),
            CheckKind::Http(http) => {
                let Some(url) = http.urls.get(url) else { return Ok(None) };
                self.get(url, http.protocol, limit).await?;
            }
            CheckKind::Smtp { helo } => smtp::greet(&mut connect::tcp(check).await?, helo, limit).await?,
            CheckKind::Dns(dns) => dns::ask(&connect::udp(check)?, dns, fastrand::u16(..), limit).await?,
            CheckKind::Udp(udp) => udp::ask(&connect::udp(check)?, udp, limit).await?,
            CheckKind::Ping => {
                let socket = connect::icmp(check, false).or_else(|_| connect::icmp(check, true))?;
                ping::ask(socket, fastrand::u64(..), limit).await?;
            }
            CheckKind::Misc(misc) => return Ok(misc::ask(misc).await?),
            // It tells of itself.
            CheckKind::File(_) => {}
        }
        Ok(None)
    }

    async fn get(&self, url: &Url, protocol: HttpProtocol, limit: Duration) -> Result<(), CheckError> {
        let mut stream = connect::tcp(self.check).await?;
        let Some(connector) = &self.tls else {
            return Ok(http::get(&mut stream, url, protocol, limit).await?);
        };
        let connector = connector.as_ref().map_err(Clone::clone)?;
        let mut stream = tls::handshake(connector, stream, url.server_name.clone(), limit).await?;
        http::get(&mut stream, url, protocol, limit).await?;
        // The last word of TLS; whether it is heard says nothing about the answer.
        let _ = timeout(limit, stream.shutdown()).await;
        Ok(())
    }
}

/// How many probes may be under way: each holds a descriptor, and the daemon needs some itself.
fn descriptors_for_checks() -> usize {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(soft / 2).unwrap_or(usize::MAX).clamp(16, 4096)
}

/// Each may be a whole interpreter.
const PROGRAMS: usize = 64;

struct Slots {
    count: usize,
    /// What sets the number, for the log.
    of: &'static str,
    free: Semaphore,
    warned: AtomicBool,
}

impl Slots {
    /// A wait that an operator would want to know of.
    const LATE: Duration = Duration::from_secs(1);

    fn new(count: usize, of: &'static str) -> Self {
        Self { count, of, free: Semaphore::new(count), warned: AtomicBool::new(false) }
    }

    async fn take(&self) -> Option<SemaphorePermit<'_>> {
        let asked = Instant::now();
        let slot = self.free.acquire().await.ok();
        if asked.elapsed() > Self::LATE && !self.warned.swap(true, Ordering::Relaxed) {
            warn!(limit = self.count, of = self.of, "checks run late: more are under way than may be");
        }
        slot
    }
}

#[cfg(test)]
mod tests;
