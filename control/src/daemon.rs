//! Composition root of `lvsd run`: the only place that spawns, wires channels and orders start, reload and stop.

mod claims;
mod election;
mod handover;
mod precondition;
mod signals;
mod site;

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use aya_log::EbpfLogger;
use lvs_ebpf_common::LeaseOwner;
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{self, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    election::{Election, Surroundings},
    signals::{End, Signals},
    site::Site,
};
use crate::{
    admin::{self, Call, Handover, Request, What},
    check::{self, Here},
    config::{
        self, Config,
        model::{Mail, Once},
        outline::Outline,
    },
    dataplane::{
        self, Dataplane, Mode,
        plan::{NextHop, Room},
    },
    director::{Director, Orders, Told},
    drift::Drifts,
    file_value::Files,
    host::{
        Host,
        addresses::{self, Place},
        routes::{self, Routes},
        vips::vips,
        virtual_macs,
    },
    netlink::{Netlink, Route},
    notify::{
        mail::{self, Mailer},
        pools,
    },
    pool::{Pool, Succession, Vrrp, router_id},
    script::Ended,
    vrrp::State,
};

pub use precondition::lock;

const VERDICTS: usize = 1024;
const REQUESTS: usize = 16;
/// More than the real servers of a large site, which may all go at once.
const NOTICES: usize = 16_384;
/// After a planned stop the old master forwards on until another announced itself, but no longer than this.
const LINGER: Duration = Duration::from_secs(5);

/// An interface that cannot be followed yet (it has no address, for instance) is looked at again after this.
const FOLLOW_AGAIN: Duration = Duration::from_secs(1);
/// Longer than the host task's requests to the kernel may take between two looks at its cancellation.
const HOST_PATIENCE: Duration = Duration::from_secs(10);

/// Runs a director until a signal ends it.
pub fn run(file: &File, run_dir: &Path, mode: Mode) -> anyhow::Result<()> {
    precondition::is_root()?;
    precondition::kernel_is_recent()?;
    let config = read(file)?;
    let lock = lock(run_dir)?;
    precondition::raise_limits();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(async {
        // Who goes on where another daemon was killed or made room may have a lease to keep.
        let mut signals = Signals::new()?;
        if dataplane::left_vips(run_dir).is_empty() {
            tokio::select! {
                () = run_once("startup_script", config.global.startup.as_ref()) => {}
                _ = signals.ends.next() => return Ok(()),
            }
        }
        let mut daemon = Daemon::start(config, run_dir, mode).await?;
        notify_systemd(sd_notify::NotifyState::Ready);
        let end = daemon.serve(file, &mut signals).await?;
        notify_systemd(sd_notify::NotifyState::Stopping);
        let shutdown = daemon.site.config.global.shutdown.clone().filter(|_| end == End::Stop);
        let ended = daemon.end(end).await;
        run_once("shutdown_script", shutdown.as_ref()).await;
        ended
    });
    // Nothing that blocks may delay the end: leases are settled by now.
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(lock);
    done
}

/// What a director is configured by.
#[derive(Clone, Debug)]
pub struct File {
    pub path: PathBuf,
    /// Whose `@ID` lines count.
    pub config_id: String,
}

fn read(file: &File) -> anyhow::Result<Config> {
    let loaded = config::load(&file.path, &file.config_id)?;
    let said = loaded.render_text();
    ensure!(!loaded.has_errors(), "{} has errors, nothing was changed\n{said}", file.path.display());
    eprint!("{said}");
    Ok(loaded.config)
}

/// All that runs, and how to reach it.
struct Daemon {
    run_dir: PathBuf,
    mode: Mode,
    /// The program was loaded for veth devices.
    veth: bool,
    site: Site,
    around: Surroundings,
    election: Election,
    /// To the pool, which shows it.
    vrrp_changed: watch::Sender<Vrrp>,
    checks: check::Runner,
    pool: JoinHandle<Dataplane>,
    requests: mpsc::Sender<Request>,
    calls: mpsc::Receiver<Call>,
    pool_cancel: CancellationToken,
    host: JoinHandle<Host>,
    host_cancel: CancellationToken,
    moved: watch::Receiver<u64>,
}

impl Daemon {
    async fn start(config: Config, run_dir: &Path, mode: Mode) -> anyhow::Result<Self> {
        let netlink = Netlink::open()?;
        let site = Site::survey(config, &netlink, &HashMap::new()).await?;
        let listener = admin::listen(run_dir, site.config.global.admin_group)?;
        let before = dataplane::left_vips(run_dir);
        let (mut dataplane, attempt) =
            Dataplane::open(run_dir, site.has_veth, Room::of(&site.config.services))?;
        let leases = dataplane.leases()?;
        let indexes = leases.assign(&site.owners())?;
        let orders_path = Orders::path(run_dir);
        let orders = Orders::load(&orders_path);
        let mut director =
            Director::new(&site.config, vips(&site.instances, &indexes), orders, |key, real| {
                dataplane.was_up(key, real.address, real.port, real.inhibit_on_failure)
            });
        director.on_next_hops(site.next_hops.clone());
        // An address that the file has lost since may be on its interface still, and the tables will not keep the
        // kernel from answering for it any more.
        let places = before.iter().map(|(address, vip)| (vip.ifindex, *address)).collect();
        addresses::withdraw_left(&netlink, &without(places, &site)).await?;
        let macs = virtual_macs::of_vips(before.iter().map(|(_, vip)| vip));
        virtual_macs::forget(&netlink, macs.difference(&virtual_macs::of(&site.instances))).await;
        // Tables first: the program never meets a packet that it has no answer for.
        dataplane.apply(&director.take_desired())?;
        dataplane.attach_all(&site.interfaces, mode)?;
        dataplane.forget_unused(&site.interfaces);

        let tasks = TaskTracker::new();
        let cancel = CancellationToken::new();
        match EbpfLogger::init(dataplane.ebpf_mut()) {
            Ok(logger) => {
                // SAFETY: the logger owns its descriptor and closes it when it is dropped, inside the AsyncFd.
                match unsafe { AsyncFd::register(logger) } {
                    Ok(logger) => drop(tasks.spawn(log_events(logger, cancel.clone()))),
                    Err(error) => tracing::warn!(%error, "events of the XDP program are not logged"),
                }
            }
            Err(error) => tracing::warn!(%error, "events of the XDP program are not logged"),
        }

        let (roles, role_changes) = watch::channel(0);
        let (hop_sender, next_hops) = watch::channel(HashMap::new());
        let (moved_sender, moved) = watch::channel(0);
        let voices = Voices {
            routes: watch::Sender::default(),
            next_hops: hop_sender,
            isolated: watch::Sender::default(),
            held: watch::Sender::default(),
            drifts: Drifts::default(),
            moved: moved_sender,
            settled: watch::Sender::new(0),
            running: watch::Sender::new(site.running.clone()),
            wanted: watch::Sender::default(),
        };
        let silence = CancellationToken::new();
        let files = Files::open();
        tasks.spawn(files.clone().run(cancel.clone()));
        let (mailer, letters) = Mailer::new();
        let (mail_settings, settings) = watch::channel(mail_settings(&site.config));
        let mails = mail::run(settings, letters, cancel.clone());
        let quiet = silence.clone();
        tasks.spawn(async move { quiet.run_until_cancelled(mails).await });
        let around = Surroundings {
            mailer,
            mail_settings,
            leases,
            files: files.clone(),
            roles,
            voices,
            tasks,
            cancel,
            silence,
        };
        let election = Election::hold(&site, &indexes, None, &around).await?;

        let (verdict_sender, verdicts) = mpsc::channel(VERDICTS);
        let here = Here {
            isolated: around.voices.isolated.subscribe(),
            next_hops: around.voices.next_hops.subscribe(),
            held: around.voices.held.subscribe(),
        };
        let mut checks = check::Runner::new(verdict_sender, here, files, around.cancel.clone());
        checks.set(director.targets());

        let (requests, request_receiver) = mpsc::channel(REQUESTS);
        let (call_sender, calls) = mpsc::channel(REQUESTS);
        around.tasks.spawn(admin::serve(listener, requests.clone(), call_sender, around.cancel.clone()));

        let (vrrp_changed, vrrp_receiver) = watch::channel(election.vrrp.clone());
        around.tasks.spawn(claims::run(dataplane.claims()?, vrrp_receiver.clone(), around.cancel.clone()));
        let (voice, told) = mpsc::channel(NOTICES);
        let notifier =
            pools::run(told, around.voices.settled.subscribe(), around.mailer.clone(), around.cancel.clone());
        let silence = around.silence.clone();
        around.tasks.spawn(async move { silence.run_until_cancelled(notifier).await });
        attempt.succeed();
        let pool = Pool {
            director,
            dataplane,
            global: site.config.global.clone(),
            voice,
            told: Told::default(),
            vrrp: vrrp_receiver,
            wanted: around.voices.wanted.clone(),
            held: around.voices.held.subscribe(),
            drifts: around.voices.drifts.clone(),
            lagging: None,
            orders_path,
        };
        let pool_cancel = CancellationToken::new();
        let pool = tokio::spawn(pool.run(verdicts, next_hops, request_receiver, pool_cancel.clone()));
        let (host, host_cancel) =
            spawn_host(netlink, &site, &election.vrrp, around.voices.clone(), role_changes);
        Ok(Self {
            run_dir: run_dir.to_owned(),
            mode,
            veth: site.has_veth,
            site,
            around,
            election,
            vrrp_changed,
            checks,
            pool,
            requests,
            calls,
            pool_cancel,
            host,
            host_cancel,
            moved,
        })
    }

    /// Serves until a signal says how to end.
    async fn serve(&mut self, file: &File, signals: &mut Signals) -> anyhow::Result<End> {
        let mut follow = Instant::now();
        loop {
            let moved = &mut self.moved;
            let is_to_follow = async {
                time::sleep_until(follow).await;
                moved.changed().await
            };
            tokio::select! {
                end = signals.ends.next() => return Ok(end),
                _ = signals.hangup.recv() => drop(self.reload_and_log(file).await),
                // Whoever asked may have hung up.
                Some(Call { what, asker }) = self.calls.recv() => match what {
                    What::Reload => {
                        let outcome = self.reload_and_log(file).await;
                        let _ = asker.send(outcome.map(|()| String::new()));
                    }
                    What::Outline => {
                        let config = self.site.config.clone();
                        // A large one takes a while.
                        tokio::task::spawn_blocking(move || {
                            let outline = serde_json::to_string(&Outline::of(&config));
                            let _ = asker.send(outline.map_err(|error| error.to_string()));
                        });
                    }
                    What::HandOver(handover) => self.hand_over(handover, asker),
                    What::TakePart(handover) => {
                        let instances = handover::instances(&self.site.config, handover.instance.as_deref());
                        let vrrp = &self.election.vrrp;
                        let _ = asker.send(instances.and_then(|which| handover::take_part(vrrp, which)));
                    }
                },
                Ok(()) = is_to_follow => {
                    tracing::warn!("an interface is another now, or has another MAC or source address");
                    if let Err(error) = self.adopt(self.site.config.clone(), &HashMap::new()).await {
                        tracing::error!(error = %format_args!("{error:#}"), "cannot follow the interface yet");
                        follow = Instant::now() + FOLLOW_AGAIN;
                    }
                }
                ended = &mut self.election.ended => {
                    ended??;
                    bail!("the VRRP thread ended by itself");
                }
            }
        }
    }

    /// Others may take seconds to take over: whoever asked waits, the daemon does not.
    fn hand_over(&self, handover: Handover, asker: oneshot::Sender<Result<String, String>>) {
        let instances = handover::instances(&self.site.config, handover.instance.as_deref());
        let (vrrp, cancel) = (self.election.vrrp.clone(), self.around.cancel.clone());
        self.around.tasks.spawn(async move {
            let handed_over = async { handover::hand_over(vrrp, instances?, handover.to).await };
            if let Some(outcome) = cancel.run_until_cancelled(handed_over).await {
                let _ = asker.send(outcome);
            }
        });
    }

    async fn reload_and_log(&mut self, file: &File) -> Result<(), String> {
        notify_systemd(sd_notify::NotifyState::Reloading);
        let outcome = self.reload(file).await.map_err(|error| format!("{error:#}"));
        match &outcome {
            Ok(()) => tracing::info!(config = %file.path.display(), "reloaded"),
            Err(error) => tracing::error!(%error, "reload failed, the old configuration stays in force"),
        }
        notify_systemd(sd_notify::NotifyState::Ready);
        outcome
    }

    async fn reload(&mut self, file: &File) -> anyhow::Result<()> {
        let file = file.clone();
        let config = tokio::task::spawn_blocking(move || read(&file)).await??;
        let known = self.around.voices.routes.borrow().clone();
        let told = self.election.states();
        self.adopt(config, &known).await?;
        if self.site.config.global.fifo_states_on_reload {
            self.election.tell_again(&told);
        }
        Ok(())
    }

    /// Puts a configuration, on the host as it is now, in the place of the one in force. What is in both goes on
    /// undisturbed: roles and leases, checks, flows. An error before the tables are written leaves the old one in
    /// force; instances that were to go have then resigned and come back as backups. `known` are routes to real servers.
    async fn adopt(&mut self, config: Config, known: &HashMap<IpAddr, Route>) -> anyhow::Result<()> {
        let netlink = Netlink::open()?;
        let site = Site::survey(config, &netlink, known).await?;
        ensure!(
            self.veth || !site.has_veth,
            "the program was loaded for interfaces without veth devices: restart lvsd (SIGUSR2, then start)"
        );

        if let Some(instance) = site.misplaced(&self.site) {
            bail!("vrrp_instance {instance} would lose its place on this host (see the log)");
        }

        // What may be refused comes before what others hear of.
        let (attached, outcome) = oneshot::channel();
        self.requests.send(Request::Attach(site.interfaces.clone(), self.mode, attached)).await?;
        outcome.await.context("the pool is gone")??;

        // Leases of both, until the old instances are gone.
        let (old, new) = (self.site.owners(), site.owners());
        let both: Vec<_> =
            new.iter().chain(old.iter().filter(|owner| !new.contains(owner))).copied().collect();
        let indexes = self.around.leases.assign(&both)?;
        let indexes = &indexes[..new.len()];
        let successor = if self.election.is_of(&site, indexes) {
            None
        } else {
            // It adopts the leases that are held. For a moment both threads say the same.
            Some(Election::hold(&site, indexes, Some(&self.election), &self.around).await?)
        };

        // Who goes says so while the tables still keep the kernel from answering for its addresses.
        let removed = self.resign_removed(&old, &new).await;
        // The host task knows only the old site: it would put back what a master is to lose.
        self.end_host().await;
        let gone = without(addresses::places(&self.site.instances), &site);
        let withdrawn = addresses::withdraw(&netlink, &gone).await;
        let succeeded = match withdrawn {
            Ok(()) => self.succeed(&site, indexes).await,
            Err(error) => Err(error.into()),
        };
        let targets = match succeeded {
            Ok(targets) => targets,
            Err(error) => {
                if let Some(election) = successor {
                    election.vrrp.handle.leave();
                }
                for index in removed {
                    self.election.vrrp.handle.remove(index, false);
                }
                self.start_host(netlink);
                return Err(error);
            }
        };
        self.checks.set(targets);

        if let Some(election) = successor {
            self.election.vrrp.handle.leave();
            let before = std::mem::replace(&mut self.election, election);
            self.vrrp_changed.send_replace(self.election.vrrp.clone());
            if let Err(error) = before.ended.await.map_err(io::Error::from).flatten() {
                tracing::warn!(%error, "the VRRP thread before this one had failed");
            }
        }
        if let Err(error) = self.around.leases.assign(&new) {
            tracing::error!(%error, "leases of instances that are gone keep their place");
        }
        if let Err(error) = admin::admit(&self.run_dir, site.config.global.admin_group) {
            tracing::error!(%error, "who may use the control socket could not be changed");
        }

        let macs = virtual_macs::of(&self.site.instances);
        virtual_macs::forget(&netlink, macs.difference(&virtual_macs::of(&site.instances))).await;
        match netlink.snapshot().await {
            Ok(snapshot) => {
                let kept: HashSet<_> = routes::all(&site.config).collect();
                for item in routes::all(&self.site.config).filter(|item| !kept.contains(item)) {
                    item.remove(&netlink, &snapshot).await;
                }
                addresses::withdraw_static(&netlink, &self.site.config, &site.config, &snapshot).await;
            }
            Err(error) => tracing::error!(%error, "routes that the file has lost may be left"),
        }
        // What was told of the old site is done.
        self.moved.mark_unchanged();
        self.around.mail_settings.send_replace(mail_settings(&site.config));
        self.around.voices.routes.send_replace(site.routes.clone());
        self.site = site;
        self.start_host(netlink);
        Ok(())
    }

    /// Has the pool carry out the part that concerns the tables.
    async fn succeed(&self, site: &Site, indexes: &[u32]) -> anyhow::Result<Vec<check::Target>> {
        let (done, targets) = oneshot::channel();
        let succession = Succession {
            config: site.config.clone(),
            vips: vips(&site.instances, indexes),
            next_hops: site.next_hops.clone(),
            interfaces: site.interfaces.clone(),
            done,
        };
        self.requests.send(Request::Succeed(Box::new(succession))).await?;
        Ok(targets.await.context("the pool is gone")??)
    }

    fn start_host(&mut self, netlink: Netlink) {
        let (voices, roles) = (self.around.voices.clone(), self.around.roles.subscribe());
        (self.host, self.host_cancel) = spawn_host(netlink, &self.site, &self.election.vrrp, voices, roles);
    }

    /// The host task looks at its cancellation between two requests, each of which has a deadline.
    async fn end_host(&mut self) {
        self.host_cancel.cancel();
        if time::timeout(HOST_PATIENCE, &mut self.host).await.is_err() {
            tracing::error!("the host task does not end, going on without");
            self.host.abort();
        }
    }

    /// Instances that the new configuration lacks tell their peers before they go.
    /// Their indexes.
    async fn resign_removed(&self, old: &[LeaseOwner], new: &[LeaseOwner]) -> Vec<usize> {
        let removed: Vec<usize> = (0..old.len()).filter(|i| !new.contains(&old[*i])).collect();
        for index in &removed {
            self.election.vrrp.handle.remove(*index, true);
        }
        let resigned = || {
            let state = |index: &usize| self.election.vrrp.handle.board().view(*index).map(|view| view.state);
            removed.iter().all(|index| state(index) == Some(State::Fault))
        };
        // A thread that does nothing else takes no time; should it hang, its leases lapse.
        for _ in 0..100 {
            if resigned() {
                break;
            }
            time::sleep(Duration::from_millis(1)).await;
        }
        removed
    }

    async fn end(mut self, end: End) -> anyhow::Result<()> {
        match end {
            End::Stop => {
                tracing::info!("stopping: resigning, forwarding until another master is heard");
                self.election.vrrp.handle.stop(LINGER);
            }
            End::Leave => {
                tracing::info!("leaving: forwarding and leases stay for the next start");
                self.election.vrrp.handle.leave();
                // The successor says again what is; waiting for scripts would cost the lease.
                self.around.silence.cancel();
            }
        }
        // The host task still runs: it removes the addresses while the VRRP thread lingers.
        (&mut self.election.ended).await??;
        self.end_host().await;
        let withdrawn = match end {
            End::Stop => withdraw_all(&self.site).await,
            End::Leave => Ok(()),
        };
        self.around.voices.settled.send_replace(u64::MAX);
        self.around.cancel.cancel();
        self.checks.stopped().await;
        self.pool_cancel.cancel();
        let dataplane = self.pool.await?;
        self.around.tasks.close();
        self.around.tasks.wait().await;
        let _ = fs::remove_file(admin::socket_path(&self.run_dir));
        if end == End::Stop {
            // As with all else that was told to this daemon, a stop is the end of it.
            let _ = fs::remove_file(Orders::path(&self.run_dir));
        }
        // Without the program the kernel would answer for an address that is left.
        withdrawn.context("the XDP program stays attached to keep ARP silent; see `lvsd unload`")?;
        if end == End::Stop {
            dataplane.close()?;
        }
        Ok(())
    }
}

/// keepalived's rule: that it fails is told, and no more.
async fn run_once(word: &str, once: Option<&Once>) {
    let Some(Once { script, timeout }) = once else { return };
    match script.run(&[], &[], *timeout).await {
        Ok(Ended::ByItself(status)) if status.success() => {}
        Ok(Ended::ByItself(status)) => tracing::warn!(%status, "{word} failed"),
        Ok(Ended::TimedOut) => tracing::warn!(limit = ?timeout, "{word} took too long and was ended"),
        Err(error) => tracing::error!(%error, "{word} cannot be run"),
    }
}

fn mail_settings(config: &Config) -> (String, Option<Mail>) {
    (router_id(&config.global), config.global.mail.clone())
}

async fn withdraw_all(site: &Site) -> anyhow::Result<()> {
    // The host task's own may be the reason why something is left.
    let netlink = Netlink::open()?;
    virtual_macs::forget(&netlink, virtual_macs::of(&site.instances).iter()).await;
    let withdrawn = addresses::withdraw(&netlink, &addresses::places(&site.instances)).await;
    let snapshot = netlink.snapshot().await?;
    for item in routes::all(&site.config) {
        item.remove(&netlink, &snapshot).await;
    }
    addresses::withdraw_static(&netlink, &site.config, &Config::default(), &snapshot).await;
    Ok(withdrawn?)
}

/// Those addresses that a site does not have where they are.
fn without(places: Vec<Place>, site: &Site) -> Vec<Place> {
    let kept: HashSet<Place> = addresses::places(&site.instances).into_iter().collect();
    let own: HashSet<IpAddr> = site.instances.iter().map(|instance| instance.source).collect();
    places.into_iter().filter(|place| !kept.contains(place) && !own.contains(&place.1)).collect()
}

/// What the host task tells the others, and is told; it outlives the task.
#[derive(Clone)]
struct Voices {
    routes: watch::Sender<HashMap<IpAddr, Route>>,
    next_hops: watch::Sender<HashMap<IpAddr, NextHop>>,
    isolated: watch::Sender<HashSet<IpAddr>>,
    held: watch::Sender<HashSet<IpAddr>>,
    drifts: Drifts,
    moved: watch::Sender<u64>,
    settled: watch::Sender<u64>,
    running: watch::Sender<HashSet<String>>,
    wanted: watch::Sender<Vec<(u32, IpAddr)>>,
}

fn spawn_host(
    netlink: Netlink,
    site: &Site,
    vrrp: &Vrrp,
    Voices { routes, next_hops, isolated, held, drifts, moved, settled, running, wanted }: Voices,
    roles: watch::Receiver<u64>,
) -> (JoinHandle<Host>, CancellationToken) {
    let mut host = Host {
        netlink,
        config: site.config.clone(),
        instances: site.instances.clone(),
        routes,
        vrrp: vrrp.handle.clone(),
        virtual_routes: Routes::default(),
        next_hops,
        isolated,
        held,
        drifts,
        placed: HashSet::new(),
        moved,
        settled,
        running,
        wanted: wanted.subscribe(),
    };
    let cancel = CancellationToken::new();
    let until = cancel.clone();
    let task = tokio::spawn(async move {
        host.run(roles, until).await;
        host
    });
    (task, cancel)
}

fn notify_systemd(state: sd_notify::NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd was not told");
    }
}

async fn log_events(mut logger: AsyncFd<EbpfLogger<&'static dyn log::Log>>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            ready = logger.readable_mut() => match ready {
                Ok(mut ready) => {
                    ready.get_inner_mut().flush();
                    ready.clear_ready();
                }
                Err(error) => return tracing::warn!(%error, "events of the XDP program are lost"),
            }
        }
    }
}
