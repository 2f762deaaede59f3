//! What does a reload disturb? Nothing that is in the old and in the new configuration.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{
    Director, Load, Need, PACE, PATIENCE, Pair, Reloaded, Scene, Stamp, Tally, VIP, Vrrp, outage,
    reload_under_load, require, spread, turns, wait_for, web_service,
};

const SETTLED: Duration = Duration::from_millis(500);

fn fast(priority: u8) -> Vrrp {
    Vrrp::v3(priority, Duration::from_millis(100))
}

#[test]
fn a_real_server_leaves_and_weights_change_under_load_and_no_request_fails() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let pair = Pair::new(fast)?;
    let reals = &pair.scene.reals;
    let load = Load::start(&pair.scene.client, VIP, PACE)?;
    thread::sleep(SETTLED);

    let config = fast(150).text() + &web_service(&[(&reals[0], 3), (&reals[1], 1)]);
    pair.lb1.reload(&config)?;
    let reloaded = Stamp::now();
    thread::sleep(SETTLED * 4);
    pair.lb1.reload(&(fast(150).text() + &web_service(&[(&reals[0], 1), (&reals[1], 1), (&reals[2], 1)])))?;
    let again = Stamp::now();
    wait_for("an answer of rs3", PATIENCE, || {
        let requests = load.requests();
        let since = requests.iter().filter(|it| it.started > again);
        Ok(spread(since).contains_key("rs3").then_some(()))
    })?;

    let requests = load.finish()?;
    ensure!(requests.iter().all(|request| request.answer.is_ok()), "{:?}", outage(&requests, reloaded)?);
    let between = requests.iter().filter(|it| it.started > reloaded && it.started + SETTLED < again);
    let shares = spread(between);
    ensure!(!shares.contains_key("rs3"), "rs3 still gets requests: {shares:?}");
    ensure!(shares["rs1"] > shares["rs2"] * 2, "not by weight: {shares:?}");
    assert_eq!(pair.masters(), [pair.scene.lb1.address()], "nobody changed its role");
    Ok(())
}

#[test]
fn a_broken_configuration_is_refused_by_line_and_changes_nothing() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let pair = Pair::new(fast)?;
    let before = pair.lb1.status()?;
    let broken = fast(150).text().replace("virtual_router_id", "virtual_ruoter_id");
    let said = pair.lb1.reload(&broken).err().context("a broken configuration was accepted")?.to_string();
    ensure!(said.contains("lvsd.conf:7:5") && said.contains("did you mean"), "{said}");
    let after = pair.lb1.status()?;
    assert_eq!(after.instances[0].state, "MASTER");
    assert_eq!(after.services[0].reals.len(), before.services[0].reals.len());
    Ok(())
}

#[test]
fn a_plan_says_what_a_reload_would_do_and_does_nothing() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let pair = Pair::new(fast)?;
    let reals = &pair.scene.reals;
    let all: Vec<_> = reals.iter().map(|real| (real, 1)).collect();
    let before = pair.lb1.status()?;
    assert_eq!(pair.lb1.plan(&(fast(150).text() + &web_service(&all)))?, "a reload would change nothing\n");

    let next = fast(170).text() + &web_service(&[(&reals[0], 3), (&reals[1], 1)]);
    let service = format!("virtual_server {} 80 TCP", VIP.ip());
    let instance = &before.instances[0].name;
    let expected = format!(
        "~ {service} real_server {} 80\n    weight: 1 -> 3\n- {service} real_server {} 80\n~ vrrp_instance {instance}\n    priority: 150 -> 170\n",
        reals[0].node.address(),
        reals[2].node.address()
    );
    assert_eq!(pair.lb1.plan(&next)?, expected);
    let said = pair.lb1.plan(&next.replace("priority", "prioritty")).err().context("errors went by")?;
    ensure!(said.to_string().contains("did you mean \"priority\""), "{said}");
    let after = pair.lb1.status()?;
    assert_eq!(after.services[0].reals.len(), before.services[0].reals.len());
    assert_eq!(after.instances[0].priority, 150);

    pair.lb1.reload(&next)?;
    assert_eq!(pair.lb1.plan(&next)?, "a reload would change nothing\n");
    Ok(())
}

#[test]
fn a_master_whose_priority_changes_stays_master_without_a_break() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let pair = Pair::new(fast)?;
    let service = web_service(&pair.scene.reals.iter().map(|real| (real, 1)).collect::<Vec<_>>());
    let load = Load::start(&pair.scene.client, VIP, PACE)?;
    let reloaded = Stamp::now();
    pair.lb1.reload(&(fast(170).text() + &service))?;
    thread::sleep(SETTLED * 2);

    assert_eq!(outage(&load.finish()?, reloaded)?.failed, 0);
    // Two VRRP threads advertise until the old one has left.
    let adverts = pair.watch.adverts();
    ensure!(adverts.iter().all(|advert| [150, 170].contains(&advert.priority)), "it resigned");
    assert_eq!(adverts.last().map(|advert| advert.priority), Some(170));
    assert_eq!(pair.masters(), [pair.scene.lb1.address()]);
    assert_eq!(turns(pair.answers_since(reloaded)), [pair.scene.lb1.mac()]);
    Ok(())
}

#[test]
fn an_instance_that_is_taken_out_of_the_file_resigns_and_leaves_no_address() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let pair = Pair::new(fast)?;
    let service = web_service(&pair.scene.reals.iter().map(|real| (real, 1)).collect::<Vec<_>>());
    let address = || pair.scene.lb1.run("ip -4 address show dev eth0");
    wait_for("the VIP on lb1", PATIENCE, || Ok(address()?.contains(&VIP.ip().to_string()).then_some(())))?;

    pair.lb1.reload(&service)?;
    pair.lb2.wait_for_state("MASTER", PATIENCE)?;
    wait_for("lb1 without the VIP", PATIENCE, || {
        Ok((!address()?.contains(&VIP.ip().to_string())).then_some(()))
    })?;
    let adverts = pair.watch.adverts();
    ensure!(
        adverts.iter().any(|it| it.source == pair.scene.lb1.address() && it.priority == 0),
        "it did not resign"
    );
    pair.scene.wait_for_service(PATIENCE)
}

#[test]
fn an_address_that_a_master_loses_by_a_reload_does_not_come_back() -> Result<()> {
    const LOST: &str = "10.77.0.101";
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let pair = Pair::new(fast)?;
    let service = web_service(&pair.scene.reals.iter().map(|real| (real, 1)).collect::<Vec<_>>());
    let with = |address: &str| {
        let text = fast(150).text();
        text.replace("virtual_ipaddress {", &format!("virtual_ipaddress {{\n        {address}")) + &service
    };
    let is_there = || anyhow::Ok(pair.scene.lb1.run("ip -4 address show dev eth0")?.contains(LOST));
    // Nothing but the removal itself tells the daemon to look, and that at an uncertain time.
    for _ in 0..5 {
        pair.lb1.reload(&with(&format!("{LOST}/32")))?;
        wait_for("the second address", PATIENCE, || Ok(is_there()?.then_some(())))?;
        pair.lb1.reload(&with(""))?;
        for _ in 0..10 {
            ensure!(!is_there()?, "it is back");
            thread::sleep(SETTLED / 20);
        }
    }
    Ok(())
}

#[test]
fn a_member_of_a_sync_group_that_a_failed_reload_was_to_remove_is_master_with_the_others_again() -> Result<()>
{
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    // No driver of a bridge runs XDP.
    scene.lb1.run("ip link add br9 type bridge")?;
    scene.lb1.run("ip address add 10.79.0.1/24 dev br9")?;
    let first = fast(150).text();
    let another = |name: &str, interface: &str, network: u8| {
        format!(
            "vrrp_instance {name} {{\n    interface {interface}\n    virtual_router_id 52\n    advert_int 0.1\n    \
             virtual_ipaddress {{\n        10.{network}.0.101/24\n    }}\n}}\n"
        )
    };
    let group = "vrrp_sync_group G {\n    group {\n        VI_1\n        VI_2\n    }\n}\n";
    let both = format!("{first}{}{group}", another("VI_2", "eth0", 77));
    let lb1 = Director::start(&scene.lb1, &both)?;
    let together = || {
        wait_for("both masters", PATIENCE, || {
            let masters = lb1.status()?.instances.iter().filter(|it| it.state == "MASTER").count();
            Ok((masters == 2).then_some(()))
        })
    };
    together()?;

    let said =
        lb1.reload(&(first + &another("VI_9", "br9", 79))).err().context("it was accepted")?.to_string();
    ensure!(said.contains("br9"), "{said}");
    together()
}

/// `cargo xtask bench update` does it with a thousand services, in an optimised build.
#[test]
fn a_reload_of_ten_thousand_real_servers_at_5000_packets_a_second_loses_none() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let Reloaded { times, tally: Tally { sent, lost, doubled }, without_real } = reload_under_load(100, 3)?;
    println!("{sent} packets through reloads of {times:?}");
    assert_eq!((lost, doubled, without_real), (vec![], 0, 0));
    Ok(())
}
