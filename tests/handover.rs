//! Does a planned move of the VIP lose a packet, and does it go where it shall?

use std::{
    net::{IpAddr, SocketAddrV4},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lvs_tests::{
    Advert, Capture, Datagrams, Director, Need, Node, PATIENCE, Pair, RealServer, Scene, Tally, VIP, Vrrp,
    require, turns, wait_for,
};

const UDP: SocketAddrV4 = SocketAddrV4::new(*VIP.ip(), 5001);
/// Packets a second.
const RATE: u32 = 5_000;
/// What a busy machine may add to a timer: less than the two intervals that a silent master would be waited for longer.
const SLACK: Duration = Duration::from_millis(150);
/// Addresses that are announced before the VIP, and the pause between two of them.
const OTHERS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(5);
/// Longer than announcements, and what follows them, are under way.
const SETTLED: Duration = Duration::from_millis(1500);

fn vrrp(priority: u8) -> Vrrp {
    Vrrp::v3(priority, Duration::from_millis(100))
}

fn udp_service(reals: &[RealServer]) -> String {
    let reals: String = reals
        .iter()
        .map(|real| format!("    real_server {} {} {{\n    }}\n", real.node.address(), UDP.port()))
        .collect();
    format!(
        "virtual_server {} {} {{\n    lvs_sched mh\n    mh-port\n    lvs_method DR\n    protocol UDP\n{reals}}}\n",
        UDP.ip(),
        UDP.port()
    )
}

/// A pair with a UDP service beside the usual one, and packets under way.
fn under_load(vrrp: impl Fn(u8) -> String) -> Result<(Pair, Datagrams)> {
    let web = |reals: &[RealServer]| {
        lvs_tests::web_service(&reals.iter().map(|real| (real, 1)).collect::<Vec<_>>()) + &udp_service(reals)
    };
    let pair = Pair::with_service(vrrp, web)?;
    pair.lb2.wait_for_state("BACKUP", PATIENCE)?;
    let load = Datagrams::start(&pair.scene.client, &pair.scene.reals, UDP, RATE)?;
    thread::sleep(SETTLED);
    Ok((pair, load))
}

fn nothing_is_lost(load: Datagrams) -> Result<()> {
    let Tally { sent, lost, doubled } = load.finish()?;
    println!("{sent} packets sent at {RATE}/s, {} lost, {doubled} doubled", lost.len());
    let first = lost.first();
    assert!(lost.is_empty() && doubled == 0, "{} lost, the first {first:?}, {doubled} doubled", lost.len());
    Ok(())
}

/// From the master's farewell to the first advert of its successor, which does not wait for it to be silent.
fn invited(adverts: &[Advert], master: IpAddr, successor: IpAddr) -> Result<Duration> {
    let farewell = adverts.iter().find(|it| it.source == master && it.priority == 0);
    let farewell = farewell.with_context(|| format!("no farewell of {master}"))?.at;
    let next = adverts.iter().find(|it| it.source == successor && it.priority > 0 && it.at > farewell);
    Ok(next.with_context(|| format!("no advert of {successor}"))?.at.since(farewell))
}

#[test]
fn a_handover_and_the_way_back_lose_no_packet() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let (pair, load) = under_load(|priority| vrrp(priority).text())?;
    let (first, second) = (pair.scene.lb1.address(), pair.scene.lb2.address());

    assert_eq!(pair.lb1.order(&["failover"])?, "VI_1: handed over\n");
    assert_eq!((pair.lb1.state()?, pair.lb2.state()?), ("BACKUP".to_owned(), "MASTER".to_owned()));
    thread::sleep(SETTLED);
    assert_eq!(pair.masters(), [first, second], "it does not preempt");
    assert_eq!(pair.lb1.order(&["failover"])?, "VI_1: was not master, stays so\n");

    assert_eq!(pair.lb1.order(&["failback"])?, "VI_1: takes part again\n");
    pair.lb1.wait_for_state("MASTER", PATIENCE)?;
    pair.lb2.wait_for_state("BACKUP", PATIENCE)?;
    thread::sleep(SETTLED);
    nothing_is_lost(load)?;
    assert_eq!(pair.masters(), [first, second, first]);
    let after = invited(&pair.watch.adverts(), first.into(), second.into())?;
    println!("the invited one is master after {after:?}");
    assert!(after < vrrp(100).skew() + SLACK, "{after:?}");
    let answers = pair.watch.answers_for(*VIP.ip());
    let [first, second] = [&pair.scene.lb1, &pair.scene.lb2].map(Node::mac);
    assert_eq!(turns(answers.into_iter().map(|(_, mac)| mac)), [first, second, first]);
    Ok(())
}

#[test]
fn a_planned_stop_and_the_start_after_it_lose_no_packet() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    // The VIP is announced behind all others, long after the new master was heard. Until then packets for it still come to
    // the old one.
    let others: String = (1..=OTHERS).map(|last| format!("10.77.1.{last}/32\n        ")).collect();
    let vip = format!("{}/24", VIP.ip());
    let (mut pair, load) = under_load(|priority| {
        let text = vrrp(priority).text().replace(&vip, &(others.clone() + &vip));
        text.replace(
            "global_defs {",
            &format!("global_defs {{\n    vrrp_garp_interval {}", PAUSE.as_secs_f64()),
        )
    })?;
    pair.lb1.stop()?;
    pair.lb2.wait_for_state("MASTER", PATIENCE)?;
    thread::sleep(SETTLED);
    pair.lb1.start_again()?;
    pair.lb1.wait_for_state("MASTER", PATIENCE)?;
    thread::sleep(SETTLED);
    nothing_is_lost(load)?;
    let (first, second) = (pair.scene.lb1.address(), pair.scene.lb2.address());
    invited(&pair.watch.adverts(), first.into(), second.into())?;
    let arps = pair.watch.arps();
    let mut announced = arps.iter().filter(|arp| arp.is_gratuitous() && arp.sender.0 == pair.scene.lb2.mac());
    let (one, vip) = (announced.next(), announced.find(|arp| arp.sender.1 == *VIP.ip()));
    let (one, vip) = (one.context("no announcement")?, vip.context("the VIP was not announced")?);
    let late = vip.at.since(one.at);
    assert!(late > PAUSE * OTHERS / 2, "the VIP was announced {late:?} after the first address");
    Ok(())
}

#[test]
fn what_was_handed_over_stays_so_through_a_reload_and_not_through_a_restart() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut pair = Pair::new(vrrp)?;
    let handed_over = |director: &Director| -> Result<(bool, u8)> {
        let status = director.status()?;
        let instance = status.instances.first().context("no instance")?;
        Ok((instance.handed_over, instance.priority))
    };
    pair.lb2.wait_for_state("BACKUP", PATIENCE)?;
    assert_eq!(handed_over(&pair.lb1)?, (false, 150));
    pair.lb1.order(&["failover", "VI_1"])?;
    assert_eq!(handed_over(&pair.lb1)?, (true, 1));
    // Another priority makes another VRRP thread.
    pair.lb1.reload(&vrrp(160).text())?;
    assert_eq!(handed_over(&pair.lb1)?, (true, 1));
    thread::sleep(SETTLED);
    assert_eq!(pair.lb1.state()?, "BACKUP");

    // Whoever handed over is still better than nobody, and yields to whoever comes.
    pair.lb2.kill()?;
    pair.lb1.wait_for_state("MASTER", PATIENCE)?;
    assert_eq!(handed_over(&pair.lb1)?, (true, 1));
    pair.lb2.start_again()?;
    pair.lb1.wait_for_state("BACKUP", PATIENCE)?;

    pair.lb1.stop()?;
    pair.lb1.start_again()?;
    pair.lb1.wait_for_state("MASTER", PATIENCE)?;
    assert_eq!(handed_over(&pair.lb1)?, (false, 160));
    Ok(())
}

#[test]
fn where_nobody_takes_over_the_operator_is_told_and_the_master_goes_on() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let lb1 = Director::start(&scene.lb1, &vrrp(150).text())?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    let refused = lb1.order(&["failover"]).unwrap_err();
    assert!(format!("{refused:#}").contains("VI_1: nobody took over"), "{refused:#}");
    lb1.wait_for_state("MASTER", PATIENCE)?;
    let refused = lb1.order(&["failover", "VI_2"]).unwrap_err();
    assert!(format!("{refused:#}").contains("no vrrp_instance"), "{refused:#}");
    Ok(())
}

/// Three directors: without a name the better of the two backups would take over.
#[test]
fn the_named_peer_takes_over_though_another_backup_is_better() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut scene = Scene::new()?;
    let third = scene.lab.host("lb3", std::net::Ipv4Addr::new(10, 77, 0, 3))?;
    let calm = |priority| Vrrp { preempt: false, ..vrrp(priority) }.text();
    let lb1 = Director::start(&scene.lb1, &calm(150))?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    let lb2 = Director::start(&scene.lb2, &calm(140))?;
    let lb3 = Director::start(&third, &calm(100))?;
    for backup in [&lb2, &lb3] {
        backup.wait_for_state("BACKUP", PATIENCE)?;
    }
    // The farewell is for it alone: a switch shows it to nobody else.
    let watch = Capture::start(&third, "eth0")?;
    lb1.order(&["failover", "--to", &third.address().to_string()])?;
    assert_eq!(lb3.state()?, "MASTER");
    let after = invited(&watch.adverts(), scene.lb1.address().into(), third.address().into())?;
    println!("the named one is master after {after:?}");
    assert!(after < vrrp(100).skew() + SLACK, "{after:?}");
    thread::sleep(SETTLED);
    assert_eq!((lb2.state()?, lb3.state()?), ("BACKUP".to_owned(), "MASTER".to_owned()));
    // Who is named and not there is not waited for.
    lb3.order(&["failover", "--to", "10.77.0.99"])?;
    wait_for("another master", PATIENCE, || Ok((lb2.state()? == "MASTER").then_some(())))
}
