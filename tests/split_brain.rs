//! Two masters: who notices, who wins, and whom do the neighbours believe afterwards?

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result};
use lvs_tests::{
    Director, Need, PATIENCE, Scene, VIP, Vrrp, ask, believes, require, wait_for, wait_until_believed,
};

const INTERVAL: Duration = Duration::from_millis(100);
/// From the first word of the winner until everybody believes it: the loser's farewell, the pause between two bursts of
/// announcements, and what a busy machine adds.
const ROUND: Duration = Duration::from_millis(400);

fn vrrp(priority: u8) -> Vrrp {
    Vrrp::v3(priority, INTERVAL)
}

#[test]
fn when_the_network_heals_every_neighbour_points_at_the_winner_within_one_round() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    scene.lab.second_switch(&[&scene.lb2, &scene.watcher])?;
    let lb1 = Director::start(&scene.lb1, &vrrp(150).text())?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    let lb2 = Director::start(&scene.lb2, &vrrp(100).text())?;
    let neighbours = [&scene.client, &scene.watcher];
    for node in neighbours {
        ask(node)?;
    }
    wait_until_believed(&neighbours, scene.lb1.mac(), PATIENCE)?;
    lb2.wait_for_state("BACKUP", PATIENCE)?;

    for round in 1..=3 {
        scene.lab.cut()?;
        lb2.wait_for_state("MASTER", PATIENCE)?;
        wait_until_believed(&[&scene.watcher], scene.lb2.mac(), PATIENCE)?;
        assert_eq!(lb1.state()?, "MASTER");
        assert_eq!(believes(&scene.client)?, Some(scene.lb1.mac().to_string()));

        scene.lab.mend()?;
        lb2.wait_for_state("BACKUP", PATIENCE)?;
        let took = wait_until_believed(&neighbours, scene.lb1.mac(), ROUND)?;
        println!("round {round}: all neighbours point at the winner {took:?} after the loser has yielded");
        thread::sleep(Duration::from_millis(500));
        assert_eq!((lb1.state()?, lb2.state()?), ("MASTER".to_owned(), "BACKUP".to_owned()));
    }
    Ok(())
}

#[test]
fn another_claimant_is_logged_counted_shown_and_told_and_answered_by_announcements() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let fifo = scene.lb1.dir().join("fifo");
    let said = scene.lb1.dir().join("said");
    let notify = scene.lb1.script("notify.sh", &format!("echo \"$* $LVSD_CAUSE\" >> {}", said.display()))?;
    let globals = format!("global_defs {{\nvrrp_notify_fifo {}\n}}\n", fifo.display());
    let lines = format!("notify {}\n", notify.display());
    let lb1 = Director::start(&scene.lb1, &(globals + &vrrp(150).text_with(&lines)))?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    ask(&scene.client)?;
    wait_until_believed(&[&scene.client], scene.lb1.mac(), PATIENCE)?;
    let claim =
        || Ok::<_, anyhow::Error>(lb1.status()?.instances.first().context("no instance")?.claim.clone());
    assert!(claim()?.is_none());

    // The same address under another VRID: two masters who ignore each other's adverts.
    let stranger = vrrp(100).text().replace("virtual_router_id 51", "virtual_router_id 52");
    let lb2 = Director::start(&scene.lb2, &stranger)?;
    lb2.wait_for_state("MASTER", PATIENCE)?;
    wait_for("a claim in the status", PATIENCE, || {
        Ok(claim()?.filter(|it| it.mac == scene.lb2.mac().to_string()))
    })?;
    let cause = format!("{} is claimed by {}", VIP.ip(), scene.lb2.mac());
    wait_for("the notify script", PATIENCE, || {
        let said = fs::read_to_string(&said).unwrap_or_default();
        Ok(said.contains(&format!("INSTANCE VI_1 SPLIT_BRAIN 150 {cause}")).then_some(()))
    })?;
    let log = fs::read_to_string(lb1.process().log())?;
    assert!(log.contains("ERROR") && log.contains("split brain"), "{log}");
    let status = lb1.status()?;
    let instance = status.instances.first().context("no instance")?;
    assert!(instance.counters.get("claims") > Some(&0), "{instance:?}");
    assert_eq!(instance.state, "MASTER");

    // Once that one is silent, the last word is ours: its kernel, or who copied the address, may have said more.
    drop(lb2);
    wait_until_believed(&[&scene.client], scene.lb1.mac(), PATIENCE)?;
    Ok(())
}

#[test]
fn a_preemption_is_no_split_brain() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let lb2 = Director::start(&scene.lb2, &vrrp(100).text())?;
    lb2.wait_for_state("MASTER", PATIENCE)?;
    let mut lb1 = Director::start(&scene.lb1, &vrrp(150).text())?;
    for _ in 0..3 {
        lb1.wait_for_state("MASTER", PATIENCE)?;
        lb2.wait_for_state("BACKUP", PATIENCE)?;
        lb1.stop()?;
        lb2.wait_for_state("MASTER", PATIENCE)?;
        lb1.start_again()?;
    }
    lb1.wait_for_state("MASTER", PATIENCE)?;
    lb2.wait_for_state("BACKUP", PATIENCE)?;
    for director in [&lb1, &lb2] {
        let status = director.status()?;
        let instance = status.instances.first().context("no instance")?;
        assert_eq!(instance.counters.get("claims"), Some(&0), "{instance:?}");
    }
    Ok(())
}
