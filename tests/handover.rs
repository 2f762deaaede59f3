//! Does a planned move of the VIP lose a packet, and does it go where it shall?

use std::{net::SocketAddrV4, thread, time::Duration};

use anyhow::{Context as _, Result};
use lvs_tests::{
    Datagrams, Director, Need, Node, PATIENCE, Pair, RealServer, Scene, Stamp, Tally, VIP, Vrrp, require,
    turns, wait_for,
};

const UDP: SocketAddrV4 = SocketAddrV4::new(*VIP.ip(), 5001);
/// Packets a second.
const RATE: u32 = 5_000;
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
fn under_load() -> Result<(Pair, Datagrams)> {
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
    assert_eq!((lost, doubled), (vec![], 0));
    Ok(())
}

#[test]
fn a_handover_and_the_way_back_lose_no_packet() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let (pair, load) = under_load()?;
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
    let (mut pair, load) = under_load()?;
    pair.lb1.stop()?;
    pair.lb2.wait_for_state("MASTER", PATIENCE)?;
    thread::sleep(SETTLED);
    pair.lb1.start_again()?;
    pair.lb1.wait_for_state("MASTER", PATIENCE)?;
    thread::sleep(SETTLED);
    nothing_is_lost(load)
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
    let asked = Stamp::now();
    lb1.order(&["failover", "--to", &third.address().to_string()])?;
    println!("taken over after {:?}", asked.elapsed());
    assert_eq!(lb3.state()?, "MASTER");
    thread::sleep(SETTLED);
    assert_eq!((lb2.state()?, lb3.state()?), ("BACKUP".to_owned(), "MASTER".to_owned()));
    // Who is named and not there is not waited for.
    lb3.order(&["failover", "--to", "10.77.0.99"])?;
    wait_for("another master", PATIENCE, || Ok((lb2.state()? == "MASTER").then_some(())))
}
