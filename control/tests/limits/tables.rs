//! What do large tables cost, to fill and to change?

use std::{
    collections::HashMap,
    env, fs,
    net::{IpAddr, Ipv4Addr},
    process, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use control::{
    config,
    dataplane::{
        Dataplane,
        plan::{NextHop, Room},
    },
    director::{CheckState, Director, Orders},
};
use nix::{
    libc,
    time::{ClockId, clock_gettime},
};
use serde_json::{Value, json};

use crate::peak::{TURN, used};

/// Services, and real servers of each.
const SITES: [(u32, u32); 5] = [(1, 1000), (1, 30_000), (1000, 100), (10_000, 10), (5000, 100)];
/// Real servers that go down and come back, one at a time.
const CHANGES: usize = 20;
const HOP: NextHop =
    NextHop { mac: [2, 0, 0, 0, 0, 9], source_mac: [2, 0, 0, 0, 0, 1], ifindex: 3, source: None, mtu: 1500 };

/// `cargo xtask bench update` makes a page of it. No assertion on time: it is the machine's.
#[test]
#[ignore = "a measurement, as root"]
fn what_changes_of_large_tables_cost() -> Result<()> {
    let _turn = TURN.lock();
    let file = env::var("UPDATE_FIGURES").expect("UPDATE_FIGURES: run `cargo xtask bench update`");
    let sites = SITES.iter().map(|(services, reals)| Ok(measure(*services, *reals)?.to_string()));
    let sites = sites.collect::<Result<Vec<_>>>()?;
    let graces = (0..CHANGES).map(|_| timed(grace).1).collect();
    let text = format!("{{\"grace\":{},\n\"sites\":[\n{}\n]}}\n", spread(graces), sites.join(",\n"));
    Ok(fs::write(file, text)?)
}

fn measure(services: u32, reals: u32) -> Result<Value> {
    let folder = env::temp_dir().join(format!("lvsd-tables-{}", process::id()));
    fs::create_dir_all(&folder)?;
    let path = folder.join("site.conf");
    fs::write(&path, site(services, reals))?;
    let (loaded, parse) = timed(|| config::load(&path, ""));
    let loaded = loaded?;
    ensure!(!loaded.has_errors(), "{}", loaded.render_text());
    let config = loaded.config;

    let room = Room::of(&config.services);
    let (mut dataplane, attempt) = Dataplane::open(&folder, false, room)?;
    attempt.succeed();
    let before = used();
    let hops: HashMap<IpAddr, NextHop> =
        config.services.iter().flat_map(|service| service.destinations()).map(|it| (it, HOP)).collect();
    let mut director = Director::new(&config, Vec::new(), Orders::default(), |_, _| None);
    director.on_next_hops(hops);
    director.advance(now());
    let (filled, fill) = timed(|| dataplane.apply(&director.take_desired()));
    filled?;
    let heap = used() - before;
    let (filled, again) = timed(|| dataplane.apply(&director.take_desired()));
    filled?;

    let targets: Vec<_> = director.targets().iter().map(|target| target.id).collect();
    let (mut changes, mut works) = (Vec::new(), Vec::new());
    for number in 0..CHANGES {
        let id = targets[targets.len() * number / CHANGES];
        for up in [false, true] {
            let before = worked();
            let (changed, time) = timed(|| {
                director.on_verdict(id, CheckState { up, weight: None, error: None, ran: true });
                director.advance(now());
                dataplane.apply_services(&director.take_touched())
            });
            changed?;
            works.push(worked() - before);
            changes.push(time);
        }
    }
    dataplane.close()?;
    fs::remove_dir_all(folder)?;
    let cpus = thread::available_parallelism()?.get() as u64;
    Ok(json!({
        "services": services,
        "reals": services * reals,
        "parse_ms": milliseconds(parse),
        "fill_ms": milliseconds(fill),
        "again_ms": milliseconds(again),
        "change_ms": spread(changes),
        "work_ms": spread(works),
        "heap_bytes": heap,
        // An element of RINGS, REALS and REAL_COUNTERS.
        "ring_bytes": u64::from(room.chunks) * 64,
        "real_bytes": u64::from(room.reals) * (32 + 16 * cpus),
    }))
}

/// Short enough for half a million real servers to find place in the largest file that is read.
fn site(services: u32, reals: u32) -> String {
    let mut text = String::new();
    for service in 0..services {
        let address = Ipv4Addr::from_bits(0x0a00_0001 + service);
        text += &format!("virtual_server {address} 80 {{\n    lvs_method DR\n    protocol TCP\n");
        for real in 0..reals {
            let address = Ipv4Addr::from_bits(0x0b00_0001 + service * reals + real);
            text += &format!(
                "    real_server {address} 80 {{\n        TCP_CHECK {{\n            connect_timeout 3\n        }}\n    }}\n"
            );
        }
        text += "}\n";
    }
    text
}

fn grace() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: membarrier reads no memory of ours.
    assert_eq!(unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) }, 0);
}

#[expect(clippy::disallowed_methods, reason = "a measurement")]
fn now() -> Instant {
    Instant::now()
}

/// By this thread, which does not work while it waits for a grace period.
fn worked() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = now();
    let done = work();
    (done, start.elapsed())
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Least, median and most.
fn spread(mut times: Vec<Duration>) -> Value {
    times.sort();
    let at = |place: usize| milliseconds(times[place]);
    json!({"min": at(0), "median": at(times.len() / 2), "max": at(times.len() - 1)})
}
