//! Composition root of `lvsd run`: the only place that spawns, wires channels and orders start and stop.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{Read as _, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use aya_log::EbpfLogger;
use lvs_ebpf_common::LeaseOwner;
use nix::{
    fcntl::{Flock, FlockArg},
    libc,
    sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit},
    unistd::geteuid,
};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin, check,
    config::{self, Config, model::VrrpInstance},
    dataplane::{Dataplane, Mode},
    director::Director,
    host::{self, Host, LocalInstance},
    netlink::Netlink,
    pool::Pool,
    vrrp::driver::{self, EventKind},
};

/// How many role changes may wait for the host task; it looks at the state itself, so none is lost beyond.
const ROLE_EVENTS: usize = 256;
const VERDICTS: usize = 1024;
const QUESTIONS: usize = 16;
/// After a planned stop the old master forwards on until another announced itself, but no longer than this.
const LINGER: Duration = Duration::from_secs(5);

/// Runs a director until a signal ends it.
pub fn run(config: &Path, run_dir: &Path, mode: Mode) -> anyhow::Result<()> {
    ensure!(geteuid().is_root(), "must be started by root: it loads BPF programs and opens raw sockets");
    kernel_is_recent()?;
    let loaded = config::load(config)?;
    eprint!("{}", loaded.render_text());
    if loaded.has_errors() {
        bail!("{} has errors, nothing was started", config.display());
    }
    let lock = lock(run_dir)?;
    raise_limits();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(direct(loaded.config, run_dir, mode));
    // Nothing that blocks may delay the end: leases are settled by now.
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(lock);
    done
}

async fn direct(config: Config, run_dir: &Path, mode: Mode) -> anyhow::Result<()> {
    let netlink = Netlink::open()?;
    let snapshot = netlink.snapshot().await?;
    let instances = host::locate(&config, &snapshot)?;
    let routes = host::routes(&config, &netlink).await;
    let interfaces = host::xdp_interfaces(&config, &instances, &routes, &snapshot);

    let is_veth = |ifindex: &u32| snapshot.link_at(*ifindex).is_some_and(|link| link.veth);
    let mut dataplane = Dataplane::open(run_dir, interfaces.keys().any(is_veth))?;
    let leases = dataplane.leases()?;
    let lease_indexes = leases.assign(&owners(&config, &instances))?;
    let mut director = Director::new(&config, host::vips(&instances, &lease_indexes), |key, real| {
        let known = real.weight > 0 && dataplane.knows(key, real.address, real.port);
        known.then(|| dataplane.on_ring(key, real.address, real.port))
    });
    director.on_next_hops(host::next_hops(&routes, &snapshot));
    // Tables first: the program never meets a packet that it has no answer for.
    dataplane.apply(&director.desired())?;
    for (ifindex, name) in &interfaces {
        dataplane.attach(name, *ifindex, mode)?;
        tracing::info!(interface = %name, "XDP attached");
    }
    dataplane.forget_unused();

    let tasks = TaskTracker::new();
    let cancel = CancellationToken::new();
    match EbpfLogger::init(dataplane.ebpf_mut()) {
        Ok(logger) => {
            // SAFETY: the logger owns its descriptor and closes it when it is dropped, inside the AsyncFd.
            let logger = unsafe { AsyncFd::register(logger)? };
            tasks.spawn(log_events(logger, cancel.clone()));
        }
        Err(error) => tracing::warn!(%error, "events of the XDP program are not logged"),
    }

    let (role_events, roles) = mpsc::channel(ROLE_EVENTS);
    let local = vrrp_instances(&config, &instances, &lease_indexes);
    let (vrrp, vrrp_thread) = driver::spawn(local, leases, role_events)?;
    let mut vrrp_ended = tokio::task::spawn_blocking(move || vrrp_thread.join());

    let (verdict_sender, verdicts) = mpsc::channel(VERDICTS);
    let targets = director.targets().map(|target| check::Target {
        id: target.id,
        check: target.check.clone(),
        up: target.up,
    });
    let (isolated_sender, isolated) = watch::channel(HashSet::new());
    let checks = check::Runner::spawn(targets.collect(), verdict_sender, isolated, cancel.clone());

    let (hop_sender, next_hops) = watch::channel(HashMap::new());
    let (question_sender, questions) = mpsc::channel(QUESTIONS);
    let listener = admin::listen(run_dir)?;
    tasks.spawn(admin::serve(listener, question_sender, cancel.clone()));

    let (role_sender, role_changes) = watch::channel(0);
    tasks.spawn(report_vrrp(config.instances.iter().map(|i| i.name.clone()).collect(), roles, role_sender));
    let pool = Pool { director, dataplane, config: config.clone(), vrrp: vrrp.clone() };
    let pool_cancel = CancellationToken::new();
    let pool = tokio::spawn(pool.run(verdicts, next_hops, questions, pool_cancel.clone()));
    let mut host = Host {
        netlink,
        config,
        instances,
        routes,
        vrrp: vrrp.clone(),
        next_hops: hop_sender,
        isolated: isolated_sender,
    };
    let host_cancel = CancellationToken::new();
    let host = {
        let cancel = host_cancel.clone();
        tokio::spawn(async move {
            host.run(role_changes, cancel).await;
            host
        })
    };

    notify_systemd(sd_notify::NotifyState::Ready);
    let end = tokio::select! {
        end = wait_for_signal() => end?,
        ended = &mut vrrp_ended => {
            ended??;
            bail!("the VRRP thread ended by itself");
        }
    };
    notify_systemd(sd_notify::NotifyState::Stopping);
    match end {
        End::Stop => {
            tracing::info!("stopping: resigning, forwarding until another master is heard");
            vrrp.stop(LINGER);
        }
        End::Leave => {
            tracing::info!("leaving: forwarding and leases stay for the next start");
            vrrp.leave();
        }
    }
    // The host task still runs: it removes the addresses while the VRRP thread lingers.
    vrrp_ended.await??;
    host_cancel.cancel();
    let host = host.await?;
    if end == End::Stop {
        host.settle_finally().await;
    }
    cancel.cancel();
    checks.stopped().await;
    pool_cancel.cancel();
    let dataplane = pool.await?;
    drop(host);
    drop(vrrp);
    tasks.close();
    tasks.wait().await;
    let _ = fs::remove_file(admin::socket_path(run_dir));
    if end == End::Stop {
        dataplane.close()?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// SIGTERM, SIGINT: resign and remove everything.
    Stop,
    /// SIGUSR2: end without a word, for a restart within the lease.
    Leave,
}

async fn wait_for_signal() -> anyhow::Result<End> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut leave = signal(SignalKind::user_defined2())?;
    let mut reload = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(End::Stop),
            _ = interrupt.recv() => return Ok(End::Stop),
            _ = leave.recv() => return Ok(End::Leave),
            _ = reload.recv() => tracing::warn!(
                "reload is not supported yet: send SIGUSR2 and start again, which keeps role and connections"
            ),
        }
    }
}

fn notify_systemd(state: sd_notify::NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd was not told");
    }
}

/// Logs what the VRRP thread tells and wakes the host task when a role changed.
async fn report_vrrp(
    names: Vec<String>,
    mut events: mpsc::Receiver<driver::Event>,
    changed: watch::Sender<u64>,
) {
    while let Some(driver::Event { instance, kind }) = events.recv().await {
        let instance = names.get(instance).map_or("?", String::as_str);
        match kind {
            EventKind::Transition { from, to, cause } => {
                tracing::info!(instance, %from, %to, %cause, "VRRP state changed");
                changed.send_modify(|count| *count = count.wrapping_add(1));
            }
            EventKind::AddressesUp | EventKind::AddressesDown => {
                changed.send_modify(|count| *count = count.wrapping_add(1));
            }
            EventKind::Rejected { from, rejection } => {
                tracing::warn!(instance, %from, cause = %rejection, "adverts are refused");
            }
            EventKind::AddressesDiffer { from } => {
                tracing::warn!(instance, %from, "a peer advertises other virtual addresses");
            }
            EventKind::OwnAddress { from } => {
                tracing::warn!(instance, %from, "adverts come from our own address");
            }
            EventKind::SendFailed { destination, error } => {
                tracing::warn!(instance, %destination, %error, "an advert could not be sent");
            }
        }
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

fn owners(config: &Config, instances: &[LocalInstance]) -> Vec<LeaseOwner> {
    let owner = |(config, local): (&VrrpInstance, &LocalInstance)| LeaseOwner {
        ifindex: local.link.ifindex,
        vrid: config.vrid.get().into(),
        family: libc::AF_INET as u16,
    };
    config.instances.iter().zip(instances).map(owner).collect()
}

fn vrrp_instances(config: &Config, local: &[LocalInstance], leases: &[u32]) -> Vec<driver::Instance> {
    let resolved = config.instances.iter().zip(local).zip(leases);
    resolved
        .map(|((instance, local), lease)| driver::Instance {
            name: instance.name.clone(),
            interface: instance.interface.clone(),
            ifindex: local.link.ifindex,
            source: local.source,
            vrid: instance.vrid,
            priority: instance.priority,
            version: instance.version,
            advert_interval: instance.advert_interval,
            start_as_master: instance.start_as_master,
            peers: instance.peers.clone(),
            authentication: instance.authentication,
            preempt: instance.preempt,
            addresses: local
                .addresses
                .iter()
                .map(|a| driver::Address { address: a.config.address, ifindex: a.ifindex, mac: a.mac })
                .collect(),
            garp: instance.garp,
            lease: *lease,
        })
        .collect()
}

/// Takes the run directory for this process.
pub fn lock(run_dir: &Path) -> anyhow::Result<Flock<fs::File>> {
    fs::create_dir_all(run_dir).with_context(|| format!("cannot create {}", run_dir.display()))?;
    let path = run_dir.join("lvsd.pid");
    let open = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = open.with_context(|| format!("cannot open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut file) => {
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())?;
            Ok(file)
        }
        Err((mut file, _)) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid)?;
            bail!("another lvsd (pid {}) runs in {}", pid.trim(), run_dir.display())
        }
    }
}

/// bpf_link for XDP came with Linux 5.9; 5.10 is the first long-term kernel with it.
fn kernel_is_recent() -> anyhow::Result<()> {
    let name = nix::sys::utsname::uname().context("cannot ask for the kernel's version")?;
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    ensure!(version >= (5, 10), "Linux 5.10 or later is needed, this is {release}");
    Ok(())
}

/// More descriptors for checks. More locked memory for BPF maps before Linux 5.11 and for the VRRP thread; where
/// that is not allowed, whoever needs it says so.
fn raise_limits() {
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let _ = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
}
