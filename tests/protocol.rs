//! Do the words that change how VRRP is spoken do what they say?

use std::{
    fs,
    io::{ErrorKind, Read as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{
    Capture, Director, Keepalived, Need, Node, PATIENCE, Scene, VIP, Vrrp, require, send, turns, wait_for,
    web_service,
};

use socket2::{Domain, Protocol, Socket, Type};

const INTERVAL: Duration = Duration::from_millis(100);

fn vrrp(priority: u8) -> Vrrp {
    Vrrp::v3(priority, INTERVAL)
}

fn service(scene: &Scene) -> String {
    web_service(&scene.reals.iter().map(|real| (real, 1)).collect::<Vec<_>>())
}

/// Whether the VIP answers one ping within half a second.
fn answers_a_ping(client: &Node) -> Result<bool> {
    const REQUEST: [u8; 8] = [8, 0, 0xf7, 0xf5, 0, 9, 0, 1];
    client.in_ns(|| {
        let mut socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.send_to(&REQUEST, &SocketAddr::from((*VIP.ip(), 0)).into())?;
        let mut answer = [0; 128];
        // What else comes in (unreachable ports) is none.
        while let Ok(length) = socket.read(&mut answer) {
            if length > 20 && answer[20] == 0 {
                return Ok(true);
            }
        }
        Ok(false)
    })
}

#[test]
fn with_no_accept_the_service_is_there_and_the_director_is_not() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let config = |lines| vrrp(150).text_with(lines) + &service(&scene);
    let lb1 = Director::start(&scene.lb1, &config(""))?;
    let has_address =
        || -> Result<bool> { Ok(scene.lb1.run("ip -4 address show dev eth0")?.contains("10.77.0.100")) };
    // A port without a service is the director's own, and its kernel says that nobody listens there.
    let other = SocketAddr::from((*VIP.ip(), 81));
    let is_refused = || -> Result<bool> {
        let connect = || Ok(TcpStream::connect_timeout(&other, Duration::from_millis(500)));
        Ok(scene.client.in_ns(connect)?.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
    };
    wait_for("a refused connection", PATIENCE, || Ok((has_address()? && is_refused()?).then_some(())))?;

    ensure!(answers_a_ping(&scene.client)?, "no answer to a ping");

    lb1.reload(&config("    no_accept"))?;
    wait_for("no address", PATIENCE, || Ok((!has_address()?).then_some(())))?;
    scene.wait_for_service(PATIENCE)?;
    ensure!(!is_refused()?, "the director answers");
    ensure!(!has_address()?, "the address has come back");
    ensure!(!answers_a_ping(&scene.client)?, "the director answers a ping");
    ensure!(lb1.status()?.outcomes.get("echo_not_accepted") > Some(&0), "it is not counted");
    assert_eq!(lb1.state()?, "MASTER");
    Ok(())
}

fn signed(key: char, anti_replay: &str) -> String {
    format!(
        "    auth_hmac {{\n        key 1 {}\n        active_key 1\n        anti_replay {anti_replay}\n    }}",
        key.to_string().repeat(32)
    )
}

/// It would yield to a dead master.
#[test]
fn a_director_that_was_reloaded_takes_no_old_advert_for_a_new_one() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let watch = Capture::start(&scene.watcher, "eth0")?;
    let text = |priority| vrrp(priority).text_with(&signed('k', "monotonic"));
    let mut lb1 = Director::start(&scene.lb1, &text(150))?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    let lb2 = Director::start(&scene.lb2, &text(100))?;
    lb2.wait_for_state("BACKUP", PATIENCE)?;
    thread::sleep(10 * INTERVAL);
    lb1.kill()?;
    lb2.wait_for_state("MASTER", PATIENCE)?;

    // Another VRRP thread.
    lb2.reload(
        &(text(100).replace("    virtual_ipaddress", "    garp_master_repeat 3\n    virtual_ipaddress")),
    )?;
    let adverts = watch.adverts();
    let old = adverts.iter().rfind(|it| it.source == scene.lb1.address()).context("no advert of lb1")?;
    send(&scene.watcher, &old.frame)?;
    wait_for("a refused replay", PATIENCE, || {
        let status = lb2.status()?;
        Ok(status.instances.iter().any(|it| it.rejected.get("replay") > Some(&0)).then_some(()))
    })?;
    assert_eq!(lb2.state()?, "MASTER");
    Ok(())
}

#[test]
fn directors_that_sign_follow_each_other_and_nobody_else() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let watch = Capture::start(&scene.watcher, "eth0")?;
    let mut lb1 = Director::start(&scene.lb1, &vrrp(150).text_with(&signed('k', "time")))?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    let lb2 = Director::start(&scene.lb2, &vrrp(100).text_with(&signed('k', "time")))?;
    thread::sleep(10 * INTERVAL);
    assert_eq!(lb2.state()?, "BACKUP");

    // With another key it would be the better master; it is heard by none, and hears none.
    let stranger = Director::start(&scene.client, &vrrp(200).text_with(&signed('x', "time")))?;
    for (director, kind) in [(&lb1, "integrity"), (&lb2, "integrity"), (&stranger, "integrity")] {
        wait_for("refused adverts", PATIENCE, || {
            let status = director.status()?;
            Ok(status.instances.iter().any(|it| it.rejected.get(kind) > Some(&0)).then_some(()))
        })?;
    }
    assert_eq!((lb1.state()?, lb2.state()?), ("MASTER".to_owned(), "BACKUP".to_owned()));

    lb1.stop()?;
    lb2.wait_for_state("MASTER", PATIENCE)?;
    lb1.start_again()?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    lb2.wait_for_state("BACKUP", PATIENCE)?;
    let adverts = watch.adverts();
    let pair = adverts.iter().filter(|it| it.priority > 0 && it.source != scene.client.address());
    assert_eq!(turns(pair.map(|it| it.source)), [&scene.lb1, &scene.lb2, &scene.lb1].map(Node::address));
    Ok(())
}

#[test]
fn a_delayed_start_is_told_by_init_and_strangers_by_the_log() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let delay = "global_defs {\n    vrrp_startup_delay 3\n    log_unknown_vrids\n}\n";
    let other = vrrp(100).text().replace("virtual_router_id 51", "virtual_router_id 77");
    let _other = Director::start(&scene.lb2, &other.replace("10.77.0.100/24", "10.77.0.101/24"))?;
    let watch = Capture::start(&scene.watcher, "eth0")?;
    let lb1 = Director::start(&scene.lb1, &(delay.to_owned() + &vrrp(150).text()))?;
    assert_eq!(lb1.state()?, "INIT");
    lb1.wait_for_state("MASTER", PATIENCE)?;
    let log = fs::read_to_string(lb1.process().log())?;
    let told = log.lines().filter(|line| line.contains("virtual router that is not configured"));
    assert_eq!(told.filter(|line| line.contains("77")).count(), 1, "{log}");
    ensure!(watch.adverts().iter().any(|it| it.source == scene.lb1.address()), "no advert");

    lb1.reload(&(delay.to_owned() + &vrrp(160).text()))?;
    assert_eq!(lb1.state()?, "MASTER", "a reload is no start");
    Ok(())
}

/// keepalived up to 1.3.6 computed the checksum of unicast adverts like that, and took no others.
#[test]
fn a_peer_with_the_old_checksum_and_another_interval_is_followed_and_leads_no_worse() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd, Need::Keepalived]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let watch = Capture::start(&scene.lb2, "eth0")?;
    let [one, two] = [&scene.lb1, &scene.lb2].map(Node::address);
    let old = Vrrp { unicast: Some([one, two]), ..Vrrp::v3(150, 2 * INTERVAL) };
    let ours = |priority| Vrrp { unicast: Some([two, one]), ..vrrp(priority) };
    let _old = Keepalived::start(&scene.lb1, &old.text_with("    old_unicast_checksum"))?;
    let is_master = |source| {
        let adverts = watch.adverts();
        let last: Vec<_> =
            adverts.iter().rev().take(5).filter(|it| it.source == source && it.priority > 0).collect();
        Ok((last.len() == 5).then_some(()))
    };
    wait_for("keepalived as master", PATIENCE, || is_master(one))?;
    let lb2 = Director::start(&scene.lb2, &ours(100).text())?;
    wait_for("its adverts to count", PATIENCE, || {
        let status = lb2.status()?;
        let counts = |counter| status.instances.iter().any(|it| it.counters.get(counter) > Some(&5));
        Ok((counts("old_checksum") && counts("interval_differs")).then_some(()))
    })?;
    assert_eq!(lb2.state()?, "BACKUP");
    let log = fs::read_to_string(lb2.process().log())?;
    for word in ["computes checksums as keepalived before 1.3.7 did", "advertises at another interval"] {
        assert_eq!(log.lines().filter(|line| line.contains(word)).count(), 1, "{word}: {log}");
    }

    lb2.reload(&ours(200).text())?;
    lb2.wait_for_state("MASTER", PATIENCE)?;
    wait_for("keepalived to yield", PATIENCE, || is_master(two))?;

    let nobody = ours(200)
        .text()
        .replace(&format!("{one}\n"), "\n")
        .replace("    unicast_peer", "    unicast_fault_no_peer\n    unicast_peer");
    lb2.reload(&nobody)?;
    lb2.wait_for_state("FAULT", PATIENCE)?;
    wait_for("keepalived as master again", PATIENCE, || is_master(one))?;
    Ok(())
}
