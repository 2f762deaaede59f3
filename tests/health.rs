//! What do clients notice when a real server dies and returns?

use std::{collections::BTreeMap, fs, io::Read as _, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use lvs_tests::{
    CHECK_TIME, Director, Load, Need, PATIENCE, Scene, Stamp, VIP, Vrrp, get, outage, pause, require,
    service_with, spread, wait_for, web_service,
};

/// On top of the check's own time: the check itself and the requests under way, on a busy machine.
const SLACK: Duration = Duration::from_secs(1);
const PORTS: std::ops::Range<u16> = 20_000..20_600;

#[test]
fn after_its_checks_time_a_dead_real_server_fails_no_request() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut site = Site::new()?;
    let load = Load::start(&site.scene.client, VIP, Duration::from_millis(3))?;
    pause(Duration::from_millis(500));

    let killed = Stamp::now();
    site.kill_second()?;
    site.wait_for_second("down")?;
    let found = Stamp::now();
    pause(Duration::from_secs(2));

    let requests = load.finish()?;
    let outage = outage(&requests, killed)?;
    println!("no request failed any more {:?} after the death, {} did before", outage.length, outage.failed);
    ensure!(outage.failed > 0, "the real server was not in use");
    ensure!(outage.length <= CHECK_TIME + SLACK, "{outage:?}");
    let after = || requests.iter().filter(|request| request.started > found);
    ensure!(after().all(|request| request.answer.is_ok()), "{outage:?}");
    assert_eq!(spread(after()).into_keys().collect::<Vec<_>>(), ["rs1", "rs3"]);
    Ok(())
}

#[test]
fn scripts_and_fifos_are_told_who_comes_and_goes_and_with_omega_of_the_stop() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut scene = Scene::new()?;
    let log = scene.lb1.dir().join("notified");
    let say =
        scene.lb1.script("say.sh", &format!("echo \"$* $LVSD_NAME $LVSD_STATE\" >> {}", log.display()))?;
    let line = |word: &str| format!("{word} \"{} {word}\"\n", say.display());
    let fifo = scene.lb1.dir().join("fifo");
    let real = scene.reals.first().context("no rs1")?;
    let service = service_with(&(line("quorum_up") + &line("quorum_down") + "omega\n"), &[(real, 1)])
        .replace("weight 1\n", &format!("weight 1\n{}{}", line("notify_up"), line("notify_down")));
    let once = scene.lb1.dir().join("once");
    let at = |word: &str| format!("{word}_script \"/bin/sh -c 'echo {word} >> {}'\"\n", once.display());
    let config = format!("global_defs {{\nlvs_notify_fifo {}\n", fifo.display())
        + &at("startup")
        + &at("shutdown")
        + "}\n"
        + &Vrrp::v3(150, Duration::from_millis(100)).text()
        + &service;
    let mut lb1 = Director::start(&scene.lb1, &config)?;
    assert_eq!(fs::read_to_string(&once)?, "startup\n");
    // Whoever may have a lease to keep is not held up.
    lb1.hand_over()?;
    lb1.start_again()?;
    assert_eq!(fs::read_to_string(&once)?, "startup\n");
    let said = |count: usize| {
        wait_for(&format!("{count} scripts"), PATIENCE, || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            // Scripts of different real servers and services have no order.
            lines.sort();
            Ok((lines.len() >= count).then_some(lines))
        })
    };
    let mut reader = fs::OpenOptions::new().read(true).write(true).open(&fifo)?;
    scene.wait_for_service(PATIENCE)?;
    let (rs, vs) = (format!("[{}]:tcp:80", real.node.address()), format!("[{}]:tcp:80", VIP.ip()));
    let down = [format!("notify_down {rs} DOWN"), format!("quorum_down {vs} DOWN")];
    let up = [format!("notify_up {rs} UP"), format!("quorum_up {vs} UP")];
    scene.reals.first_mut().context("no rs1")?.kill()?;
    assert_eq!(said(2)?, down);
    scene.reals.first_mut().context("no rs1")?.start()?;
    let both: Vec<_> = down.iter().zip(&up).flat_map(|(down, up)| [down, up]).cloned().collect();
    assert_eq!(said(4)?, both);
    lb1.stop()?;
    assert_eq!(fs::read_to_string(&once)?, "startup\nshutdown\n");
    let [first, second] = down.clone();
    assert_eq!(said(6)?, [first.clone(), first, up[0].clone(), second.clone(), second, up[1].clone()]);
    let expected: String =
        ["DOWN", "UP", "DOWN"].map(|state| format!("RS {rs} {vs} {state}\nVS {vs} {state}\n")).concat();
    let mut bytes = vec![0; expected.len()];
    reader.read_exact(&mut bytes)?;
    assert_eq!(String::from_utf8(bytes)?, expected);
    Ok(())
}

#[test]
fn connections_of_other_real_servers_keep_theirs() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut site = Site::new()?;
    let before = site.real_of_each_port()?;

    site.kill_second()?;
    site.wait_for_second("down")?;
    let without = site.real_of_each_port()?;
    site.scene.reals.get_mut(1).context("no rs2")?.start()?;
    site.wait_for_second("up")?;
    let again = site.real_of_each_port()?;

    ensure!(without.values().all(|name| name != "rs2"), "rs2 still answers");
    let unaffected = || before.iter().filter(|(_, name)| *name != "rs2");
    let kept = |later: &BTreeMap<u16, String>| {
        unaffected().filter(|(port, name)| later.get(port) == Some(name)).count()
    };
    let total = unaffected().count();
    println!(
        "of {total} client ports on other real servers {} kept theirs through the death, {} through the return",
        kept(&without),
        kept(&again)
    );
    ensure!(kept(&without) * 100 >= total * 95, "{} of {total}", kept(&without));
    ensure!(kept(&again) * 100 >= total * 95, "{} of {total}", kept(&again));
    ensure!(again.values().any(|name| name == "rs2"), "rs2 is not asked again");
    Ok(())
}

#[test]
fn no_packet_is_without_a_real_server_while_the_sorry_server_comes_and_goes() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut scene = Scene::new()?;
    let [first, second, sorry] = scene.reals.as_slice() else { bail!("not three real servers") };
    let sorry = format!("    sorry_server {} 80\n", sorry.node.address());
    let service = service_with(&sorry, &[(first, 1), (second, 1)]);
    let lb1 = Director::start(&scene.lb1, &(Vrrp::v3(150, Duration::from_millis(100)).text() + &service))?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    scene.wait_for_service(PATIENCE)?;
    // Before the first neighbours were known there was nobody.
    let without_real = || Ok::<_, anyhow::Error>(lb1.status()?.outcomes.get("no_real").copied());
    let before = without_real()?;
    let load = Load::start(&scene.client, VIP, Duration::from_millis(3))?;

    for index in [0, 1] {
        scene.reals.get_mut(index).context("no such real server")?.kill()?;
    }
    for index in [0, 1] {
        wait_for_real(&lb1, index, "down")?;
    }
    let alone = Stamp::now();
    pause(Duration::from_secs(1));
    let back = Stamp::now();
    for index in [0, 1] {
        scene.reals.get_mut(index).context("no such real server")?.start()?;
    }
    for index in [0, 1] {
        wait_for_real(&lb1, index, "up")?;
    }
    let returned = Stamp::now();
    pause(Duration::from_millis(500));

    let requests = load.finish()?;
    let of = |from: Stamp, to: Option<Stamp>| {
        spread(requests.iter().filter(|it| it.started > from && to.is_none_or(|to| it.started < to)))
            .into_keys()
            .collect::<Vec<_>>()
    };
    assert_eq!(of(alone, Some(back)), ["rs3"]);
    assert_eq!(of(returned, None), ["rs1", "rs2"]);
    assert_eq!(without_real()?, before);
    Ok(())
}

#[test]
fn a_backup_knows_of_a_dead_real_server_as_well() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut site = Site::new()?;
    let backup = Director::start(&site.scene.lb2, &site.config(100))?;
    backup.wait_for_state("BACKUP", PATIENCE)?;
    site.kill_second()?;
    wait_for_real(&backup, 1, "down")
}

#[test]
fn with_ha_suspend_a_backup_asks_nobody_and_finds_the_dead_once_it_is_master() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut scene = Scene::new()?;
    let config = |priority| {
        let reals: Vec<_> = scene.reals.iter().map(|real| (real, 1)).collect();
        Vrrp::v3(priority, Duration::from_millis(100)).text() + &service_with("    ha_suspend\n", &reals)
    };
    let (first, second) = (config(150), config(100));
    let mut lb1 = Director::start(&scene.lb1, &first)?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    let lb2 = Director::start(&scene.lb2, &second)?;
    lb2.wait_for_state("BACKUP", PATIENCE)?;
    scene.reals.get_mut(1).context("no rs2")?.kill()?;
    wait_for_real(&lb1, 1, "down")?;
    // Time for the backup to find the same.
    pause(CHECK_TIME * 3);
    let status = lb2.status()?;
    let service = status.services.first().context("no service")?;
    let mut checks = service.reals.iter().flat_map(|real| &real.checks);
    ensure!(service.suspended && checks.all(|check| check.state == "unchecked"), "{service:?}");
    ensure!(service.reals.iter().all(|real| real.state == "up"), "{service:?}");

    lb1.stop()?;
    lb2.wait_for_state("MASTER", PATIENCE)?;
    wait_for_real(&lb2, 1, "down")?;
    let status = lb2.status()?;
    ensure!(status.services.iter().all(|service| !service.suspended));
    Ok(())
}

/// One director, master, with three real servers of equal weight.
struct Site {
    lb1: Director,
    scene: Scene,
}

impl Site {
    fn new() -> Result<Self> {
        let scene = Scene::new()?;
        let lb1 = Director::start(&scene.lb1, &config(&scene, 150))?;
        lb1.wait_for_state("MASTER", PATIENCE)?;
        scene.wait_for_service(PATIENCE)?;
        Ok(Self { lb1, scene })
    }

    fn config(&self, priority: u8) -> String {
        config(&self.scene, priority)
    }

    fn kill_second(&mut self) -> Result<()> {
        self.scene.reals.get_mut(1).context("no rs2")?.kill()
    }

    fn wait_for_second(&self, state: &str) -> Result<()> {
        wait_for_real(&self.lb1, 1, state)
    }

    fn real_of_each_port(&self) -> Result<BTreeMap<u16, String>> {
        self.scene.client.in_ns(|| {
            PORTS
                .map(|port| Ok((port, get(VIP, Some(port)).with_context(|| format!("from port {port}"))?)))
                .collect()
        })
    }
}

fn config(scene: &Scene, priority: u8) -> String {
    let pool: Vec<_> = scene.reals.iter().map(|real| (real, 1)).collect();
    Vrrp::v3(priority, Duration::from_millis(100)).text() + &web_service(&pool)
}

fn wait_for_real(director: &Director, index: usize, state: &str) -> Result<()> {
    wait_for(&format!("real server {index} {state}"), PATIENCE, || {
        let status = director.status()?;
        let service = status.services.first().context("no service")?;
        let real = service.reals.get(index).context("no such real server")?;
        Ok((real.state == state).then_some(()))
    })
}
