//! The task that owns the director's state and the BPF tables: verdicts and next hops in, table changes out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use lvs_ebpf_common::Vip;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{Request, status},
    check::{Target, Verdict},
    config::model::{Config, Forwarding, Global, SorryServer, Track, VrrpInstance},
    dataplane::{Dataplane, DataplaneError, plan::NextHop},
    director::{Change, CheckState, Director, News, Order, RealState, ServiceState, Standing, Told},
    drift::Drifts,
    notify::pools::{self, Notice},
    vrrp::{
        State,
        board::{Counter, View},
        driver,
        packet::Rejection,
        report::mac_text,
        track::Finding,
    },
};

/// How old the loads are at most that new flows are spread by.
const LOOK: Duration = Duration::from_millis(100);
/// How long a change that something else made stands at most.
const MEND: Duration = Duration::from_secs(5);

/// How long a change that failed is waited with.
const RETRY: Duration = Duration::from_secs(1);

pub struct Pool {
    pub director: Director,
    pub dataplane: Dataplane,
    pub global: Global,
    /// To scripts and FIFOs.
    pub voice: mpsc::Sender<Notice>,
    pub told: Told,
    pub vrrp: watch::Receiver<Vrrp>,
    /// To the host task: what the kernel shall resolve.
    pub wanted: watch::Sender<Vec<(u32, IpAddr)>>,
    /// Which of the addresses that checks depend on this host has.
    pub held: watch::Receiver<HashSet<IpAddr>>,
    pub drifts: Drifts,
    /// The tables lag behind what they shall say, since a change failed, at last then. They are read anew after that, and only
    /// a whole plan knows again what they do not say: how long clients persist, and who is leaving.
    pub lagging: Option<Instant>,
    /// Where orders lie for the next daemon.
    pub orders_path: PathBuf,
}

/// The VRRP thread and what it runs.
#[derive(Clone)]
pub struct Vrrp {
    pub handle: driver::Handle,
    pub instances: Arc<[driver::Instance]>,
    /// Where they come from, one for one, with their trackers.
    pub config: Arc<Config>,
    /// Of the trackers.
    pub findings: watch::Receiver<Vec<Finding>>,
    /// Names of the interfaces that are up and have a carrier.
    pub running: watch::Receiver<HashSet<String>>,
}

impl Vrrp {
    /// Of an instance that has more than one.
    fn ways(&self, config: &VrrpInstance, view: &View) -> Vec<status::Way> {
        if config.heartbeats.is_empty() {
            return Vec::new();
        }
        let running = self.running.borrow();
        let ways = config.ways().enumerate().map(|(way, interface)| {
            let state = match view.state {
                _ if !running.contains(interface) => "down",
                State::Backup if view.silent >> way & 1 == 1 => "silent",
                State::Backup => "heard",
                State::Master | State::Fault | State::Init => "up",
            };
            status::Way { interface: interface.to_owned(), state: state.to_owned() }
        });
        ways.collect()
    }

    fn tracker(&self, track: &Track) -> Option<status::Tracker> {
        let tracker = self.config.trackers.get(track.tracker)?;
        let finding = self.findings.borrow().get(track.tracker).copied().unwrap_or_default();
        Some(status::Tracker {
            kind: tracker.word().to_owned(),
            name: tracker.name().to_owned(),
            weight: track.weight,
            reverse: track.reverse,
            state: finding.to_string(),
        })
    }
}

/// A configuration that takes the place of the one in force.
pub struct Succession {
    pub config: Config,
    pub vips: Vec<(IpAddr, Vip)>,
    pub next_hops: HashMap<IpAddr, NextHop>,
    pub interfaces: BTreeMap<u32, String>,
    /// What is to be checked from now on; an error means that the old one stays.
    pub done: oneshot::Sender<Result<Vec<Target>, DataplaneError>>,
}

impl Pool {
    /// Runs until cancelled and gives the tables back.
    pub async fn run(
        mut self,
        mut verdicts: mpsc::Receiver<Verdict>,
        mut next_hops: watch::Receiver<HashMap<IpAddr, NextHop>>,
        mut requests: mpsc::Receiver<Request>,
        cancel: CancellationToken,
    ) -> Dataplane {
        tracing::info!(router_id = router_id(&self.global), "the director runs");
        self.say(Notice::Fifos(self.global.lvs_fifos.clone()));
        self.tell_news(self.global.rs_init_notifies);
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut mends = tokio::time::interval(MEND);
        mends.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => {
                    self.tell_all(Told::stop(self.director.services()));
                    return self.dataplane;
                }
                now = looks.tick() => {
                    if self.lagging.is_none_or(|since| now - since >= RETRY) {
                        self.apply();
                    }
                    self.settle();
                    let wanted = self.dataplane.take_wanted();
                    if !wanted.is_empty() {
                        self.wanted.send_replace(wanted);
                    }
                }
                _ = mends.tick() => self.mend(),
                Some(verdict) = verdicts.recv() => {
                    let mut heard = BTreeSet::new();
                    let mut next = Some(verdict);
                    // A rack that dies together leaves the ring together.
                    while let Some(verdict) = next {
                        heard.extend(self.director.service_of(verdict.id));
                        self.on_verdict(verdict);
                        next = verdicts.try_recv().ok();
                    }
                    self.apply();
                    let news = self.told.look_at(self.director.services(), heard, false);
                    self.tell_all(news);
                }
                Ok(()) = next_hops.changed() => {
                    let known = next_hops.borrow_and_update().clone();
                    self.director.on_next_hops(known);
                    self.apply();
                }
                // Whoever asked may have hung up.
                Some(request) = requests.recv() => match request {
                    Request::Status(asker) => drop(asker.send(self.status())),
                    Request::Order(order, asker) => drop(asker.send(self.on_order(&order))),
                    Request::Attach(interfaces, mode, asker) => {
                        let dataplane = &mut self.dataplane;
                        drop(asker.send(tokio::task::block_in_place(|| dataplane.attach_all(&interfaces, mode))));
                    }
                    Request::Succeed(succession) => {
                        let outcome = self.succeed(&succession);
                        drop(succession.done.send(outcome));
                    }
                },
            }
        }
    }

    fn on_verdict(&mut self, verdict: Verdict) {
        let Verdict { id, up, weight, error } = verdict;
        let error = error.map(|error| error.to_string());
        let cause = error.clone();
        for change in self.director.on_verdict(id, CheckState { up, weight, error, ran: true }) {
            self.tell(change, cause.as_deref().unwrap_or("check succeeded"));
        }
    }

    fn on_order(&mut self, order: &Order) -> Result<(), String> {
        let changes = self.director.on_order(order).map_err(|error| error.to_string())?;
        tracing::info!(?order, "an operator's order");
        for change in changes {
            self.tell(change, "an operator's order");
        }
        self.apply();
        self.tell_news(false);
        self.save_orders().map_err(|error| format!("done, but a restart would not know of it: {error}"))
    }

    fn save_orders(&self) -> io::Result<()> {
        self.director.orders().save(&self.orders_path)
    }

    fn tell(&self, change: Change, cause: &str) {
        let service = |index: usize| &self.director.services()[index];
        match change {
            Change::Real { service: s, real, from, to } => {
                let (service, real) = (service(s), &service(s).reals[real]);
                tracing::info!(
                    service = %service.name(),
                    real = %real.name(),
                    from = word(from),
                    to = word(to),
                    cause,
                    "real server changed"
                );
            }
            Change::Quorum { service: s, gained } => {
                let service = service(s);
                tracing::info!(
                    service = %service.name(),
                    to = if gained { "quorum" } else { "no quorum" },
                    weight = service.weight(),
                    sorry_server = self.director.sorry(service).is_some(),
                    cause,
                    "quorum changed"
                );
            }
        }
    }

    fn tell_news(&mut self, tell_new: bool) {
        let news = self.told.look(self.director.services(), tell_new);
        self.tell_all(news);
    }

    fn tell_all(&self, news: Vec<News>) {
        let services = self.director.services();
        for change in news.into_iter().filter_map(|news| pools::Change::new(services, news)) {
            self.say(Notice::Change(Box::new(change)));
        }
    }

    fn say(&self, notice: Notice) {
        if let Err(error) = self.voice.try_send(notice) {
            tracing::error!(%error, "nobody is notified: changes come too fast");
        }
    }

    /// Brings the tables to what they shall say, if they do not.
    fn apply(&mut self) {
        let now = Instant::now();
        self.director.advance(now.into_std());
        let Self { director, dataplane, .. } = self;
        let touched = director.take_touched();
        if touched.is_empty() && self.lagging.is_none() {
            return;
        }
        // A grace period blocks for some milliseconds.
        let applied = tokio::task::block_in_place(|| match self.lagging {
            None => dataplane.apply_services(&touched),
            Some(_) => dataplane.apply(&director.take_desired()),
        });
        self.lagging = match applied {
            Ok(()) => None,
            Err(error) => {
                if self.lagging.is_none() {
                    tracing::error!(%error, "the tables could not be changed, trying on");
                }
                Some(now)
            }
        };
    }

    fn succeed(&mut self, succession: &Succession) -> Result<Vec<Target>, DataplaneError> {
        let mut director = self.director.succeed(&succession.config, succession.vips.clone());
        director.on_next_hops(succession.next_hops.clone());
        director.advance(Instant::now().into_std());
        let (dataplane, interfaces) = (&mut self.dataplane, &succession.interfaces);
        let applied = tokio::task::block_in_place(|| {
            dataplane.apply(&director.take_desired())?;
            dataplane.forget_unused(interfaces);
            Ok::<_, DataplaneError>(())
        });
        if let Err(error) = applied {
            // What was done until then is to be undone.
            self.lagging = Some(Instant::now());
            return Err(error);
        }
        (self.director, self.lagging) = (director, None);
        if let Err(error) = self.save_orders() {
            tracing::error!(%error, "a restart would not know of the orders in force");
        }
        if self.global.lvs_fifos != succession.config.global.lvs_fifos {
            self.say(Notice::Fifos(succession.config.global.lvs_fifos.clone()));
        }
        self.tell_news(false);
        self.global = succession.config.global.clone();
        Ok(self.director.targets())
    }

    fn settle(&mut self) {
        if !self.dataplane.is_due() {
            return;
        }
        let (dataplane, timeouts) = (&mut self.dataplane, self.global.timeouts);
        if let Err(error) = tokio::task::block_in_place(|| dataplane.settle(timeouts)) {
            tracing::error!(%error, "what the flows tell could not be written, trying on");
            self.lagging = Some(Instant::now());
        }
    }

    fn mend(&mut self) {
        let (dataplane, drifts) = (&mut self.dataplane, &self.drifts);
        if let Err(error) = tokio::task::block_in_place(|| dataplane.mend(drifts)) {
            tracing::error!(%error, "what something else changed could not be put back, trying on");
            self.lagging = Some(Instant::now());
        }
    }

    fn status(&self) -> status::Status {
        let now = driver::clock();
        let vrrp = self.vrrp.borrow().clone();
        let instances = vrrp.instances.iter().zip(&vrrp.config.instances).enumerate();
        let instances = instances.map(|(i, (instance, config))| {
            let view = vrrp.handle.board().view(i).unwrap_or_default();
            status::Instance {
                name: instance.name.clone(),
                state: view.state.to_string(),
                priority: view.priority,
                handed_over: view.handed_over,
                vrid: instance.vrid.get(),
                interface: instance.interface.clone(),
                vips: instance.addresses.iter().map(|a| a.address.to_string()).collect(),
                ways: vrrp.ways(config, &view),
                trackers: config.tracks.iter().filter_map(|track| vrrp.tracker(track)).collect(),
                claim: view.claim.map(|(mac, at)| status::Claim {
                    mac: mac_text(mac),
                    seconds_ago: now.nanos().saturating_sub(at.nanos()) / 1_000_000_000,
                }),
                counters: named(Counter::ALL.map(|(_, name)| name), view.counters),
                rejected: named(Rejection::KINDS, view.rejected),
                lease_remaining_ms: view.lease.nanos().saturating_sub(now.nanos()) / 1_000_000,
            }
        });
        let outcomes = self.dataplane.outcomes();
        status::Status {
            router_id: router_id(&self.global),
            strays: vrrp.handle.board().strays(),
            instances: instances.collect(),
            services: self.director.services().iter().map(|service| self.service(service)).collect(),
            drifts: self.drifts.named(),
            quic: self.dataplane.by_id().into_iter().map(|(what, n)| (what.name().to_owned(), n)).collect(),
            outcomes: outcomes.into_iter().map(|(outcome, n)| (outcome.name().to_owned(), n)).collect(),
        }
    }

    fn service(&self, service: &ServiceState) -> status::Service {
        status::Service {
            address: service.config.address.to_string(),
            port: service.config.port,
            protocol: service.protocol().to_owned(),
            scheduler: service.config.scheduler.word().to_owned(),
            forwarding: service.config.forwarding.word().to_owned(),
            quic_config_id: service.config.connection_ids.map(|ids| ids.config),
            quorum: status::Quorum {
                up: service.has_quorum(),
                weight: service.weight(),
                required: service.config.quorum.weight,
                hysteresis: service.config.quorum.hysteresis,
            },
            suspended: self.is_suspended(service),
            sorry_server: service.config.sorry.as_ref().map(|sorry| self.sorry(service, sorry)),
            reals: service.reals.iter().map(|real| self.real(service, real)).collect(),
        }
    }

    fn is_suspended(&self, service: &ServiceState) -> bool {
        let mut checks = service.reals.iter().flat_map(|real| &real.config.checks);
        checks.any(|check| check.only_with.is_some_and(|address| !self.held.borrow().contains(&address)))
    }

    fn sorry(&self, service: &ServiceState, sorry: &SorryServer) -> status::SorryServer {
        let counter = self.dataplane.counter(&service.key, sorry.address, sorry.port);
        let standing = match self.director.sorry(service) {
            Some(_) => Standing::Up,
            None if sorry.inhibit => Standing::Draining,
            None => Standing::Down,
        };
        status::SorryServer {
            address: sorry.address.to_string(),
            port: sorry.port,
            forwarding: self.way(sorry.address, sorry.forwarding),
            state: word(standing).to_owned(),
            packets: counter.packets,
            bytes: counter.bytes,
        }
    }

    /// How a real server gets its packets.
    fn way(&self, real: IpAddr, forwarding: Forwarding) -> String {
        if self.director.is_local(real) { "local".to_owned() } else { forwarding.word().to_owned() }
    }

    fn real(&self, service: &ServiceState, real: &RealState) -> status::Real {
        let counter = self.dataplane.counter(&service.key, real.config.address, real.config.port);
        let checks = real.config.checks.iter().zip(&real.checks).map(|(config, state)| status::Check {
            kind: config.kind.word().to_owned(),
            state: match (state.ran, state.up) {
                (false, true) => "unchecked".to_owned(),
                (_, true) => "up".to_owned(),
                (_, false) => "down".to_owned(),
            },
            error: state.error.clone(),
        });
        status::Real {
            address: real.config.address.to_string(),
            port: real.config.port,
            forwarding: self.way(real.config.address, real.config.forwarding),
            weight: real.config.weight,
            ordered_weight: real.ordered,
            effective_weight: real.course.part_of(real.effective_weight()),
            state: word(real.standing()).to_owned(),
            quic_server_id: real.config.server_id.map(|id| id.to_string()),
            packets: counter.packets,
            bytes: counter.bytes,
            checks: checks.collect(),
        }
    }
}

fn named<const N: usize>(names: [&str; N], counts: [u64; N]) -> BTreeMap<String, u64> {
    names.map(str::to_owned).into_iter().zip(counts).collect()
}

/// Name of this node: what the file says, else the hostname.
pub fn router_id(global: &Global) -> String {
    let host = || nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    global.router_id.clone().unwrap_or_else(host)
}

fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::Up => "up",
        Standing::Down => "down",
        Standing::Draining => "draining",
    }
}
