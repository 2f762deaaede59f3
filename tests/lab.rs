//! Does the laboratory itself tell the truth? Proved with keepalived and nothing of this project.

use std::{
    collections::BTreeSet,
    env, fs,
    path::Path,
    process::{self, Command},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use lvs_tests::{
    ArpProbe, Capture, Keepalived, Lab, Load, Mac, Need, Node, PATIENCE, Scene, Stamp, VIP, Vrrp, outage,
    require, serve, spread, turns, wait_for,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const PACE: Duration = Duration::from_millis(3);
/// What a loaded machine may add to a timer.
const SLACK: Duration = Duration::from_millis(100);

fn namespaces_of(process: u32) -> Vec<String> {
    let prefix = format!("lvs-{process}-");
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

#[test]
fn a_lab_leaves_nothing_behind() -> Result<()> {
    if !require(&[Need::Lab]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let dir = scene.lab.dir().to_owned();
    // A daemon that the lab does not know of, and a mount as lvsd makes it.
    let mut command = scene.lb1.command("sh");
    command.args(["-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"]);
    let stray: u32 = String::from_utf8(command.output()?.stdout)?.trim().parse()?;
    let mount = scene.lb1.dir().join("bpf");
    fs::create_dir(&mount)?;
    nix::mount::mount(Some("bpf"), &mount, Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>)?;
    ensure!(namespaces_of(process::id()).len() == 8, "{:?}", namespaces_of(process::id()));

    drop(scene);

    assert_eq!(namespaces_of(process::id()), Vec::<String>::new());
    assert!(!dir.exists(), "{} is still there", dir.display());
    // A zombie that init has not reaped yet has no namespaces any more.
    assert!(fs::metadata(format!("/proc/{stray}/ns/net")).is_err(), "process {stray} still runs");
    Ok(())
}

#[test]
fn ctrl_c_removes_the_lab_before_the_program_ends() -> Result<()> {
    if !require(&[Need::Lab]) {
        return Ok(());
    }
    let mut child = Command::new(env::current_exe()?)
        .args(["--exact", "every_real_server_is_reached_and_says_its_name"])
        .stdout(process::Stdio::null())
        .stderr(process::Stdio::null())
        .spawn()?;
    // It may have to wait for the labs of other tests first.
    wait_for("the lab of the child", Duration::from_secs(300), || {
        Ok((namespaces_of(child.id()).len() > 3).then_some(()))
    })?;

    kill(Pid::from_raw(child.id().try_into()?), Signal::SIGINT)?;

    let status = wait_for("end of the child", Duration::from_secs(15), || Ok(child.try_wait()?))?;
    assert_eq!(status.code(), Some(130));
    assert_eq!(namespaces_of(child.id()), Vec::<String>::new());
    assert!(!Path::new(&format!("/run/lvs-lab/{}-0", child.id())).exists());
    Ok(())
}

#[test]
fn every_real_server_is_reached_and_says_its_name() -> Result<()> {
    if !require(&[Need::Lab]) {
        return Ok(());
    }
    let mut scene = Scene::new()?;
    for real in &mut scene.reals {
        let own = std::net::SocketAddrV4::new(real.node.address(), VIP.port());
        assert_eq!(scene.client.in_ns(|| Ok(lvs_tests::get(own, None)?))?, real.name());
        real.kill()?;
        let refused = scene.client.in_ns(|| Ok(lvs_tests::get(own, None)))?;
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    }
    Ok(())
}

/// Two hosts that serve HTTP themselves, with a client and a watcher.
struct Pair {
    client: Node,
    watcher: Node,
    hosts: [Node; 2],
    _servers: [lvs_tests::Process; 2],
    lab: Lab,
}

impl Pair {
    fn new() -> Result<Self> {
        let mut lab = Lab::new()?;
        let client = lab.host("client", [10, 77, 0, 9].into())?;
        let watcher = lab.host("watcher", [10, 77, 0, 8].into())?;
        let hosts = [lab.host("lb1", [10, 77, 0, 1].into())?, lab.host("lb2", [10, 77, 0, 2].into())?];
        let servers = [serve(&hosts[0])?, serve(&hosts[1])?];
        Ok(Self { client, watcher, hosts, _servers: servers, lab })
    }
}

/// keepalived on both hosts, the first with the higher priority and master already.
fn keepalived_pair(pair: &Pair, watch: &Capture, vrrp: impl Fn(u8) -> Vrrp) -> Result<[Keepalived; 2]> {
    let [first, second] = &pair.hosts;
    let master = Keepalived::start(first, &vrrp(150).text())?;
    // Started together, the other might be the first master.
    wait_for("an advert of lb1", Duration::from_secs(10), || {
        Ok(watch.adverts().iter().any(|advert| advert.source == first.address()).then_some(()))
    })?;
    Ok([master, Keepalived::start(second, &vrrp(100).text())?])
}

#[test]
fn the_outage_of_an_unplugged_keepalived_master_is_what_its_timers_say() -> Result<()> {
    if !require(&[Need::Lab, Need::Keepalived]) {
        return Ok(());
    }
    let pair = Pair::new()?;
    let watch = Capture::start(&pair.watcher, "eth0")?;
    let vrrp = |priority| Vrrp::v3(priority, Duration::from_millis(100));
    let _daemons = keepalived_pair(&pair, &watch, vrrp)?;
    let [first, second] = &pair.hosts;
    let load = Load::start(&pair.client, VIP, PACE)?;
    wait_for("an answer", PATIENCE, || Ok(load.requests().iter().any(|it| it.answer.is_ok()).then_some(())))?;

    let unplugged = Stamp::now();
    pair.lab.unplug(first)?;
    wait_for("lb2", PATIENCE, || Ok(spread(&load.requests()).contains_key("lb2").then_some(())))?;
    thread::sleep(Duration::from_millis(500));

    let requests = load.finish()?;
    let outage = outage(&requests, unplugged)?;
    println!("an unplugged keepalived master, adverts each 100 ms: {:?} without service", outage.length);
    let down = vrrp(100).lifetime() + vrrp(100).skew();
    ensure!(outage.length <= down + SLACK, "{outage:?}");
    // The last advert is at most one interval old.
    ensure!(outage.length >= down - vrrp(100).advert_interval - SLACK, "{outage:?}");
    assert_eq!(spread(&requests).into_keys().collect::<Vec<_>>(), ["lb1", "lb2"]);
    assert_eq!(
        turns(watch.adverts().iter().map(|advert| advert.source)),
        [first.address(), second.address()]
    );
    let announced = watch
        .arps()
        .iter()
        .any(|arp| arp.is_gratuitous() && arp.sender == (second.mac(), *VIP.ip()) && arp.at > unplugged);
    assert!(announced, "no gratuitous ARP of lb2");
    Ok(())
}

/// The fault that the lease is there to prevent is seen where it exists: else its absence would prove nothing.
#[test]
fn a_keepalived_master_killed_at_once_goes_on_answering_arp() -> Result<()> {
    if !require(&[Need::Lab, Need::Keepalived]) {
        return Ok(());
    }
    let pair = Pair::new()?;
    let watch = Capture::start(&pair.watcher, "eth0")?;
    let [mut first, _second] =
        keepalived_pair(&pair, &watch, |priority| Vrrp::v3(priority, Duration::from_millis(100)))?;
    let _probe = ArpProbe::start(&pair.watcher, *VIP.ip(), Duration::from_millis(5))?;
    let answers = || watch.answers_for(*VIP.ip());
    wait_for("an answer", PATIENCE, || Ok((!answers().is_empty()).then_some(())))?;
    let before: BTreeSet<Mac> = answers().into_iter().map(|(_, mac)| mac).collect();
    assert_eq!(before, BTreeSet::from([pair.hosts[0].mac()]));

    first.kill()?;
    let killed = Stamp::now();
    // Long after the other one has taken over.
    wait_for("answers of both", PATIENCE, || {
        let late = answers().into_iter().filter(|(at, _)| at.since(killed) > Duration::from_millis(600));
        let macs: BTreeSet<Mac> = late.map(|(_, mac)| mac).collect();
        Ok((macs == pair.hosts.iter().map(Node::mac).collect()).then_some(()))
    })
}
