//! Composition root of `lvsd run`: the only place that spawns, wires channels and orders start and stop.

use std::{
    collections::HashMap,
    fs,
    io::{Read as _, Seek as _, Write as _},
    net::Ipv4Addr,
    path::{Path, PathBuf},
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
    admin, check, config,
    dataplane::{Dataplane, Mode, lease::LeaseMap},
    director::Director,
    host::{self, Host, LocalInstance},
    netlink::Netlink,
    pool::Pool,
    vrrp,
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
    // Before Linux 5.11 maps count against it; the VRRP thread locks its memory in any case.
    raise(Resource::RLIMIT_MEMLOCK);
    raise(Resource::RLIMIT_NOFILE);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(direct(loaded.config, run_dir, mode));
    // Nothing that blocks may delay the end: leases are settled by now.
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(lock);
    done
}

async fn direct(config: config::model::Config, run_dir: &Path, mode: Mode) -> anyhow::Result<()> {
    let netlink = Netlink::open()?;
    let snapshot = netlink.snapshot().await?;
    let instances = host::locate(&config, &snapshot)?;
    let routes = host::routes(&config, &netlink).await;
    let interfaces = host::xdp_interfaces(&config, &instances, &routes, &snapshot);

    let mut dataplane = Dataplane::open(run_dir)?;
    let leases = dataplane.leases()?;
    let lease_indexes = leases.assign(&owners(&config, &instances))?;
    let mut director = Director::new(&config, host::vips(&instances, &lease_indexes), |key, real| {
        real.weight > 0
            && dataplane.knows(key, real.address, real.port)
            && !dataplane.on_ring(key, real.address, real.port)
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
        Ok(logger) => drop(tasks.spawn(log_events(AsyncFd::new(logger)?, cancel.clone()))),
        Err(error) => tracing::warn!(%error, "events of the XDP program are not logged"),
    }

    let (role_events, roles) = mpsc::channel(ROLE_EVENTS);
    let vrrp = vrrp::spawn(vrrp_instances(&config, &instances, &lease_indexes), leases, role_events)?;
    let board = vrrp.board().clone();

    let (verdict_sender, verdicts) = mpsc::channel(VERDICTS);
    let targets = director
        .targets()
        .map(|target| check::Target { id: target.id, check: target.check.clone(), up: target.up });
    let checks = check::Runner::spawn(targets.collect(), verdict_sender, cancel.clone());

    let (hop_sender, next_hops) = watch::channel(HashMap::new());
    let (question_sender, questions) = mpsc::channel(QUESTIONS);
    let listener = admin::listen(run_dir)?;
    tasks.spawn(admin::serve(listener, question_sender, cancel.clone()));

    let (role_sender, role_changes) = watch::channel(0);
    tasks.spawn(report_roles(config.instances.iter().map(|i| i.name.clone()).collect(), roles, role_sender));
    let pool = Pool { director, dataplane, config: config.clone(), board: board.clone() };
    let pool_cancel = CancellationToken::new();
    let pool = tokio::spawn(pool.run(verdicts, next_hops, questions, pool_cancel.clone()));
    let mut host = Host { netlink, config, instances, routes, vrrp, next_hops: hop_sender };
    let host_cancel = CancellationToken::new();
    let host = {
        let cancel = host_cancel.clone();
        tokio::spawn(async move {
            host.run(role_changes, cancel).await;
            host
        })
    };

    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let end = wait_for_signal().await?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    todo!()
}
