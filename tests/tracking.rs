//! Do scripts learn what VRRP does, and does VRRP do what scripts say?

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use lvs_tests::{
    Advert, Capture, Director, Keepalived, Need, Node, PATIENCE, Scene, Stamp, VIP, Vrrp, masters, pause,
    require, turns, wait_for,
};

fn fast(priority: u8) -> Vrrp {
    Vrrp::v3(priority, Duration::from_millis(100))
}

#[test]
fn notify_scripts_are_told_of_every_change_in_order_when_the_address_is_there() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let log = scene.lb1.dir().join("notified");
    // Whichever script is slow, the next waits for it.
    let say = format!("sleep 0.1; echo \"$* from $LVSD_FROM: $LVSD_CAUSE\" >> {}", log.display());
    let notify = scene.lb1.script("notify.sh", &say)?;
    let has_vip = format!("ip -4 address show dev eth0 | grep -c '{}/' >> {}", VIP.ip(), log.display());
    let count = scene.lb1.script("count.sh", &has_vip)?;
    let fifo = scene.lb1.dir().join("fifo");
    let lines = format!(
        "notify_master {count}\nnotify_backup {count}\nnotify_fault {count}\nnotify_stop {count}\n\
         notify \"{notify} 'a word'\"\n",
        count = count.display(),
        notify = notify.display(),
    );
    let globals = format!("global_defs {{\nvrrp_notify_fifo {}\n}}\n", fifo.display());
    let mut lb1 = Director::start(&scene.lb1, &(globals + &fast(150).text_with(&lines)))?;
    let said = |count| wait_for_lines(&log, count);
    said(4)?;
    // Held open, or what is written while nobody reads would go with the daemon.
    let reader = fs::OpenOptions::new().read(true).write(true).open(&fifo)?;
    scene.lab.unplug(&scene.lb1)?;
    said(6)?;
    scene.lab.plug_in(&scene.lb1)?;
    said(10)?;
    lb1.stop()?;
    let expected = "\
0\na word INSTANCE VI_1 BACKUP 150 from INIT: started\n\
1\na word INSTANCE VI_1 MASTER 150 from BACKUP: the master is silent\n\
0\na word INSTANCE VI_1 FAULT 150 from MASTER: link down\n\
0\na word INSTANCE VI_1 BACKUP 150 from FAULT: recovered\n\
1\na word INSTANCE VI_1 MASTER 150 from BACKUP: the master is silent\n\
0\na word INSTANCE VI_1 STOP 150 from MASTER: stopped\n";
    assert_eq!(said(12)?, expected);
    let lines: String = ["BACKUP", "MASTER", "FAULT", "BACKUP", "MASTER", "STOP"]
        .map(|state| format!("INSTANCE \"VI_1\" {state} 150\n"))
        .concat();
    assert_eq!(read(reader, lines.len())?, lines);
    Ok(())
}

#[test]
fn a_reload_tells_fifos_all_states_again_where_the_file_says_so() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let fifo = scene.lb1.dir().join("fifo");
    let globals = |more: &str| format!("global_defs {{\nvrrp_notify_fifo {}\n{more}\n}}\n", fifo.display());
    let again = globals("fifo_write_vrrp_states_on_reload");
    let mut lb1 = Director::start(&scene.lb1, &(again.clone() + &fast(150).text()))?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    let mut reader = fs::OpenOptions::new().read(true).write(true).open(&fifo)?;
    let mut says = |lines: &[&str]| {
        let lines: String = lines.iter().map(|line| format!("INSTANCE \"VI_1\" {line}\n")).collect();
        assert_eq!(read(&mut reader, lines.len())?, lines);
        anyhow::Ok(())
    };
    says(&["BACKUP 150", "MASTER 150"])?;
    lb1.reload(&(again.clone() + &fast(150).text()))?;
    says(&["MASTER 150"])?;
    // By another thread than before.
    lb1.reload(&(again + &fast(160).text()))?;
    says(&["MASTER 160"])?;
    lb1.reload(&(globals("") + &fast(160).text()))?;
    lb1.stop()?;
    says(&["STOP 160"])
}

#[test]
fn a_failing_script_hands_the_role_over_and_a_working_one_takes_it_back() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let stage = Stage::new()?;
    let check = Check::new(&stage.scene.lb1)?;
    check.succeed()?;
    let lb1 = Director::start(&stage.scene.lb1, &(check.block("weight 0") + &fast(150).text_with(TRACKED)))?;
    let lb2 = Director::start(&stage.scene.lb2, &fast(100).text())?;
    stage.wait_for_masters(1)?;
    check.fail()?;
    lb1.wait_for_state("FAULT", PATIENCE)?;
    lb2.wait_for_state("MASTER", PATIENCE)?;
    let status = lb1.status()?;
    let trackers = status.instances.iter().flat_map(|instance| &instance.trackers);
    let shown: Vec<_> = trackers.map(|tracker| (tracker.name.as_str(), tracker.state.as_str())).collect();
    assert_eq!(shown, [("chk", "down")]);
    wait_for_log(&lb1, "track_script chk")?;
    check.succeed()?;
    stage.wait_for_masters(3)?;
    stage.judge(|advert| advert.priority != 0, &[150, 100, 150])
}

#[test]
fn an_instance_waits_for_the_first_result_of_its_script() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let stage = Stage::new()?;
    let check = Check::new(&stage.scene.lb1)?;
    let lb1 = Director::start(&stage.scene.lb1, &(check.block("weight 0") + &fast(255).text_with(TRACKED)))?;
    lb1.wait_for_state("FAULT", PATIENCE)?;
    check.succeed()?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    wait_for_log(&lb1, "from=INIT to=FAULT")
}

#[test]
fn keepalived_takes_over_from_lvsd_whose_script_fails_and_gives_back() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd, Need::Keepalived]) {
        return Ok(());
    }
    let stage = Stage::new()?;
    let check = Check::new(&stage.scene.lb1)?;
    check.succeed()?;
    let lvsd =
        Director::start(&stage.scene.lb1, &(check.block("weight -60") + &fast(150).text_with(TRACKED)))?;
    stage.wait_for_masters(1)?;
    let _keepalived = Keepalived::start(&stage.scene.lb2, &fast(100).text())?;
    pause(Duration::from_secs(1));
    check.fail()?;
    stage.wait_for_masters(2)?;
    wait_for("the priority of a failing script", PATIENCE, || {
        let status = lvsd.status()?;
        Ok((status.instances.iter().all(|it| it.priority == 90 && it.state == "BACKUP")).then_some(()))
    })?;
    check.succeed()?;
    stage.wait_for_masters(3)?;
    stage.judge(|advert| advert.priority != 0, &[150, 90, 100, 150])
}

#[test]
fn lvsd_takes_over_from_keepalived_whose_script_fails_and_gives_back() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd, Need::Keepalived]) {
        return Ok(());
    }
    let stage = Stage::new()?;
    let check = Check::new(&stage.scene.lb1)?;
    check.succeed()?;
    // keepalived adds a positive weight when its script has succeeded for the first time.
    let keepalived = check.block("weight 50") + &fast(100).text_with(TRACKED);
    let _keepalived = Keepalived::start(&stage.scene.lb1, &keepalived)?;
    stage.wait_for_masters(1)?;
    let lvsd = Director::start(&stage.scene.lb2, &fast(120).text())?;
    lvsd.wait_for_state("BACKUP", PATIENCE)?;
    pause(Duration::from_secs(1));
    assert_eq!(lvsd.state()?, "BACKUP");
    check.fail()?;
    lvsd.wait_for_state("MASTER", PATIENCE)?;
    check.succeed()?;
    stage.wait_for_masters(3)?;
    stage.judge(|advert| advert.priority > 100, &[150, 120, 150])
}

#[test]
fn a_number_in_a_file_moves_the_role_to_keepalived_and_back_and_far_below_it_is_a_fault() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd, Need::Keepalived]) {
        return Ok(());
    }
    let stage = Stage::new()?;
    let file = stage.scene.lb1.dir().join("number");
    let block = format!("track_file number {{\nfile {}\ninit_file -10\n}}\n", file.display());
    let text = block + &fast(150).text_with("track_file {\nnumber weight 2\n}\n");
    let lvsd = Director::start(&stage.scene.lb1, &text)?;
    stage.wait_for_masters(1)?;
    let _keepalived = Keepalived::start(&stage.scene.lb2, &fast(100).text())?;
    let is = |priority, state| {
        wait_for(&format!("{state} with priority {priority}"), PATIENCE, || {
            let status = lvsd.status()?;
            Ok((status.instances.iter().all(|it| it.priority == priority && it.state == state)).then_some(()))
        })
    };
    is(130, "MASTER")?;
    fs::write(&file, "-20\n")?;
    is(110, "MASTER")?;
    let replace = |text| {
        fs::write(file.with_extension("new"), text)?;
        fs::rename(file.with_extension("new"), &file)
    };
    replace("-50")?;
    is(50, "BACKUP")?;
    stage.wait_for_masters(2)?;
    fs::remove_file(&file)?;
    is(150, "MASTER")?;
    fs::write(&file, "-127")?;
    is(150, "FAULT")?;
    // The cause names the file.
    wait_for_log(&lvsd, "track_file number")?;
    fs::write(&file, "many")?;
    stage.wait_for_masters(5)?;
    let status = lvsd.status()?;
    let trackers = status.instances.iter().flat_map(|instance| &instance.trackers);
    assert_eq!(trackers.map(|tracker| tracker.state.as_str()).collect::<Vec<_>>(), ["0"]);
    Ok(())
}

#[test]
fn a_process_that_ends_costs_the_role_at_once_and_one_that_starts_brings_it_back() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let stage = Stage::new()?;
    // No other process has these parameters.
    let seconds = format!("{}.5", 1_000_000 + std::process::id());
    let worker = || -> Result<_> {
        let mut command = stage.scene.lb1.command("sleep");
        command.arg(&seconds);
        stage.scene.lb1.spawn("worker", command)
    };
    let mut running = worker()?;
    let block = format!("vrrp_track_process worker {{\nprocess sleep {seconds}\n}}\n");
    let text = block + &fast(150).text_with("track_process {\nworker\n}\n");
    let lb1 = Director::start(&stage.scene.lb1, &text)?;
    stage.wait_for_masters(1)?;
    let lb2 = Director::start(&stage.scene.lb2, &fast(100).text())?;
    lb2.wait_for_state("BACKUP", PATIENCE)?;
    let killed = Stamp::now();
    running.kill()?;
    stage.wait_for_masters(2)?;
    let adverts = stage.watch.adverts();
    let resigned = adverts.iter().find(|advert| advert.at > killed && advert.priority == 0);
    let after = resigned.context("no resignation")?.at.since(killed);
    println!("resigned {after:?} after the process had ended");
    lb1.wait_for_state("FAULT", PATIENCE)?;
    let _running = worker()?;
    stage.wait_for_masters(3)?;
    stage.judge(|advert| advert.priority != 0, &[150, 100, 150])
}

#[test]
fn an_instance_without_an_interface_waits_for_it_while_the_others_work() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let stage = Stage::new()?;
    let lb1 = &stage.scene.lb1;
    let other = |interface: &str| {
        format!(
            "vrrp_instance VI_2 {{\ninterface {interface}\nvirtual_router_id 52\nversion 3\nadvert_int 0.1\n\
             virtual_ipaddress {{\n10.78.0.100/24\n}}\n}}\n"
        )
    };
    let director = Director::start(lb1, &(fast(150).text() + &other("eth1")))?;
    let are = |states: [&str; 2]| {
        wait_for(&format!("{states:?}"), PATIENCE, || {
            let status = director.status()?;
            Ok(status.instances.iter().map(|it| it.state.as_str()).eq(states).then_some(()))
        })
    };
    are(["MASTER", "FAULT"])?;
    let add = || {
        lb1.run("ip link add eth1 type veth peer name eth1p")?;
        lb1.run("ip link set eth1p up")?;
        lb1.run("ip link set eth1 up")?;
        // Before it has an address there is nothing to send adverts from.
        are(["MASTER", "FAULT"])?;
        lb1.run("ip address add 10.78.0.1/24 dev eth1")?;
        are(["MASTER", "MASTER"])
    };
    add()?;
    let refused = director.reload(&(fast(150).text() + &other("eth9"))).unwrap_err();
    assert!(refused.to_string().contains("VI_2 would lose its place"), "{refused:#}");
    lb1.run("ip link delete eth1")?;
    are(["MASTER", "FAULT"])?;
    // A reload for another reason is none for a complaint.
    director.reload(&(fast(150).text_with("garp_master_repeat 3") + &other("eth1")))?;
    are(["MASTER", "FAULT"])?;
    add()?;
    stage.judge(|_| true, &[150])
}

#[test]
fn routes_move_with_the_role_and_are_put_back_unless_nobody_shall_care() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let routes = "virtual_routes {\nsrc 10.77.0.100 to 10.97.0.0/24 via 10.77.0.9 dev eth0 metric 5\n\
                  blackhole 10.98.0.0/24 table 100\n10.99.0.0/24 gw 10.77.0.9 mtu 1400 no_track\n}\n";
    let fixed = "static_routes {\nunreachable 10.96.0.0/24\n}\n";
    // One that a killed daemon may have left.
    scene.lb1.run("ip route add blackhole 10.98.0.0/24 table 100 proto keepalived")?;
    let file = scene.lb1.dir().join("number");
    fs::write(&file, "-254")?;
    let tracked = format!("track_file number {{\nfile {}\n}}\n", file.display());
    let text = tracked + &fast(150).text_with(&format!("{routes}track_file {{\nnumber\n}}\n")) + fixed;
    let mut lb1 = Director::start(&scene.lb1, &text)?;
    let list = || -> Result<Vec<String>> {
        let text = scene.lb1.run("ip -4 route show table all proto keepalived")?;
        let mut routes: Vec<_> =
            text.lines().filter_map(|line| line.split_whitespace().find(|word| word.contains('/'))).collect();
        routes.sort_unstable();
        Ok(routes.into_iter().map(str::to_owned).collect())
    };
    let are = |expected: &[&str]| {
        wait_for(&format!("the routes {expected:?}"), PATIENCE, || Ok((list()? == expected).then_some(())))
    };
    lb1.wait_for_state("FAULT", PATIENCE)?;
    are(&["10.96.0.0/24"])?;
    fs::write(&file, "0")?;
    let all = ["10.96.0.0/24", "10.97.0.0/24", "10.98.0.0/24", "10.99.0.0/24"];
    are(&all)?;
    let shown = scene.lb1.run("ip -4 route show table all proto keepalived")?;
    for words in ["src 10.77.0.100 metric 5", "table 100", "mtu 1400"] {
        assert!(shown.contains(words), "{words} is missing in {shown}");
    }
    scene.lb1.run("ip route delete 10.99.0.0/24")?;
    scene.lb1.run("ip route delete 10.97.0.0/24")?;
    are(&all[..3])?;
    wait_for_log(&lb1, "a virtual route or rule was gone, it is put back")?;
    fs::write(&file, "-254")?;
    are(&all[..1])?;
    lb1.reload(&text.replace("unreachable 10.96.0.0/24", "prohibit 10.95.0.0/24"))?;
    are(&["10.95.0.0/24"])?;
    lb1.stop()?;
    are(&[])
}

#[test]
fn routing_rules_move_with_the_role_and_static_ones_and_addresses_are_there_while_the_daemon_is() -> Result<()>
{
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let file = scene.lb1.dir().join("number");
    fs::write(&file, "-254")?;
    let moving = "virtual_rules {\nfrom 10.77.0.100 fwmark 0x7/0xff iif eth0 table 100 priority 300\nto 10.98.0.0/16 \
                  prohibit priority 301 no_track\n}\ntrack_file {\nnumber\n}\n";
    let fixed = "static_rules {\nnot from 10.77.0.0/16 ipproto tcp dport 80-81 lookup 100 pref 400\n}\n\
                 static_ipaddress {\n10.78.0.1/24\n10.77.0.1/24 dev eth0\n10.78.0.2/32 dev lo\n}\n";
    let text =
        format!("track_file number {{\nfile {}\n}}\n", file.display()) + &fast(150).text_with(moving) + fixed;
    let mut lb1 = Director::start(&scene.lb1, &text)?;
    let rules = || -> Result<Vec<String>> {
        let shown = scene.lb1.run("ip -4 rule show")?;
        let ours = shown.lines().filter(|line| line.contains("proto keepalived"));
        Ok(ours.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect())
    };
    let [from, prohibit, fixed] = [
        "300: from 10.77.0.100 fwmark 0x7/0xff iif eth0 lookup 100 proto keepalived",
        "301: from all to 10.98.0.0/16 prohibit proto keepalived",
        "400: not from 10.77.0.0/16 ipproto tcp dport 80-81 lookup 100 proto keepalived",
    ];
    let are = |expected: &[&str]| {
        wait_for(&format!("the rules {expected:?}"), PATIENCE, || {
            let rules = rules()?;
            // The last words may stand in another order.
            Ok((rules.len() == expected.len()
                && rules.iter().zip(expected).all(|(rule, expected)| {
                    expected.split(' ').all(|word| rule.split(' ').any(|it| it == word))
                }))
            .then_some(()))
        })
        .with_context(|| format!("there are {:?}", rules()))
    };
    let has = |address: &str| -> Result<bool> {
        Ok(scene.lb1.run("ip -4 -oneline address show")?.contains(&format!(" {address}/")))
    };
    lb1.wait_for_state("FAULT", PATIENCE)?;
    are(&[fixed])?;
    wait_for("static addresses", PATIENCE, || Ok((has("10.78.0.1")? && has("10.78.0.2")?).then_some(())))?;
    fs::write(&file, "0")?;
    are(&[from, prohibit, fixed])?;
    scene.lb1.run("ip rule delete priority 300")?;
    scene.lb1.run("ip rule delete priority 301")?;
    scene.lb1.run("ip address delete 10.78.0.1/24 dev eth0")?;
    are(&[from, fixed])?;
    wait_for("the static address again", PATIENCE, || Ok(has("10.78.0.1")?.then_some(())))?;
    fs::write(&file, "-254")?;
    are(&[fixed])?;
    lb1.reload(
        &text.replace("lookup 100 pref 400", "lookup 101 pref 400").replace("10.78.0.2/32 dev lo\n", ""),
    )?;
    are(&[&fixed.replace("lookup 100", "lookup 101")])?;
    assert!(!has("10.78.0.2")?, "the reload has left it");
    lb1.stop()?;
    are(&[])?;
    assert!(!has("10.78.0.1")?, "the stop has left it");
    assert!(has("10.77.0.1")?, "it was the host's own before");
    Ok(())
}

#[test]
fn a_link_that_is_back_before_its_delay_costs_no_role() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let stage = Stage::new()?;
    let text = fast(150).text_with("down_timer_adverts 50") + "interface_up_down_delays {\neth0 2 0\n}\n";
    let lb1 = Director::start(&stage.scene.lb1, &text)?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    stage.scene.lab.unplug(&stage.scene.lb1)?;
    pause(Duration::from_millis(500));
    stage.scene.lab.plug_in(&stage.scene.lb1)?;
    pause(Duration::from_secs(3));
    let log = fs::read_to_string(lb1.process().log())?;
    assert!(!log.contains("link down"), "{log}");
    let down = Stamp::now();
    stage.scene.lab.unplug(&stage.scene.lb1)?;
    lb1.wait_for_state("FAULT", PATIENCE)?;
    assert!(down.elapsed() >= Duration::from_secs(2), "{:?}", down.elapsed());
    Ok(())
}

#[test]
fn a_sync_group_moves_together_when_one_members_link_goes_down() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let stage = Stage::new()?;
    let (lb1, lb2) = (&stage.scene.lb1, &stage.scene.lb2);
    // A second network, whose switch is the watcher.
    let switch = &stage.scene.watcher;
    switch.run("ip link add br1 type bridge forward_delay 0 mcast_snooping 0")?;
    switch.run("ip link set br1 up")?;
    for (host, port, address) in [(lb1, "p1", "10.78.0.1/24"), (lb2, "p2", "10.78.0.2/24")] {
        host.run(&format!("ip link add eth1 type veth peer name {port} netns {}", switch.namespace()))?;
        switch.run(&format!("ip link set {port} master br1 up"))?;
        host.run(&format!("ip address add {address} dev eth1"))?;
        host.run("ip link set eth1 up")?;
    }
    let log = lb1.dir().join("notified");
    let script = lb1.script("notify.sh", &format!("echo $1 $2 $3 >> {}", log.display()))?;
    let text = |priority, notify: &str| {
        fast(priority).text_with(notify)
            + &format!(
                "vrrp_instance VI_2 {{\ninterface eth1\nvirtual_router_id 52\npriority {priority}\nversion 3\n\
                 advert_int 0.1\nvirtual_ipaddress {{\n10.78.0.100/24\n}}\n}}\n\
                 vrrp_sync_group VG {{\ngroup {{\nVI_1\nVI_2\n}}\n{notify}\n}}\n"
            )
    };
    let lb1 = Director::start(lb1, &text(150, &format!("notify {}", script.display())))?;
    wait_for_states(&lb1, "MASTER")?;
    let lb2 = Director::start(lb2, &text(100, ""))?;
    wait_for_states(&lb2, "BACKUP")?;
    switch.run("ip link set p1 down")?;
    wait_for_states(&lb1, "FAULT")?;
    wait_for_states(&lb2, "MASTER")?;
    switch.run("ip link set p1 up")?;
    wait_for_states(&lb1, "MASTER")?;
    wait_for_states(&lb2, "BACKUP")?;
    // On the network whose links were up all the time.
    stage.judge(|_| true, &[150, 0, 100, 150])?;
    let said = wait_for_lines(&log, 10)?;
    let mut expected = String::new();
    for state in ["BACKUP", "MASTER", "FAULT", "BACKUP", "MASTER"] {
        expected += &format!("INSTANCE VI_1 {state}\nGROUP VG {state}\n");
    }
    assert_eq!(said, expected);
    Ok(())
}

#[test]
fn a_reload_keeps_what_scripts_have_found_and_tells_nobody_again() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let stage = Stage::new()?;
    let lb1 = &stage.scene.lb1;
    let check = Check::new(lb1)?;
    let log = lb1.dir().join("notified");
    let notify = lb1.script("notify.sh", &format!("echo $3 $4 >> {}", log.display()))?;
    let text = |more: &str| {
        let lines = format!("{TRACKED}notify {}\n{more}\n", notify.display());
        // The script fails long before this instance becomes MASTER.
        check.block("weight -60") + &Vrrp::v3(150, Duration::from_millis(500)).text_with(&lines)
    };
    let lb1 = Director::start(lb1, &text(""))?;
    let is_low = || Ok(lb1.status()?.instances.iter().all(|it| it.priority == 90).then_some(()));
    wait_for("the priority of a failing script", PATIENCE, is_low)?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    wait_for_lines(&log, 2)?;

    let reloaded = Stamp::now();
    lb1.reload(&text("garp_master_repeat 3"))?;
    pause(Duration::from_secs(1));
    let adverts = stage.watch.adverts();
    let since = adverts.iter().filter(|advert| advert.at > reloaded).map(|advert| advert.priority);
    assert_eq!(turns(since), [90]);
    check.succeed()?;
    wait_for("the priority of a working script", PATIENCE, || {
        Ok(lb1.status()?.instances.iter().all(|it| it.priority == 150).then_some(()))
    })?;
    assert_eq!(fs::read_to_string(&log)?, "BACKUP 150\nMASTER 90\n");
    Ok(())
}

/// All instances.
fn wait_for_states(director: &Director, state: &str) -> Result<()> {
    wait_for(&format!("{state} on {}", director.node().name()), PATIENCE, || {
        Ok(director.status()?.instances.iter().all(|instance| instance.state == state).then_some(()))
    })
}

/// Lines of an instance that tracks [`Check::block`].
const TRACKED: &str = "track_script {\nchk\n}\n";

/// A vrrp_script that the test lets succeed or fail.
struct Check {
    script: PathBuf,
    flag: PathBuf,
}

impl Check {
    /// It fails at first.
    fn new(node: &Node) -> Result<Self> {
        let flag = node.dir().join("works");
        let script = node.script("check.sh", &format!("test -e {}", flag.display()))?;
        Ok(Self { script, flag })
    }

    fn block(&self, weight: &str) -> String {
        let script = self.script.display();
        // Debian's keepalived would run it as keepalived_script or not at all.
        format!("vrrp_script chk {{\nscript {script}\ninterval 0.1\n{weight}\nuser root\n}}\n")
    }

    fn succeed(&self) -> Result<()> {
        Ok(fs::write(&self.flag, "")?)
    }

    fn fail(&self) -> Result<()> {
        Ok(fs::remove_file(&self.flag)?)
    }
}

/// Two directors, and what they advertise.
struct Stage {
    watch: Capture,
    scene: Scene,
}

impl Stage {
    fn new() -> Result<Self> {
        let scene = Scene::new()?;
        let watch = Capture::start(&scene.watcher, "eth0")?;
        Ok(Self { watch, scene })
    }

    fn wait_for_masters(&self, count: usize) -> Result<()> {
        wait_for(&format!("{count} masters one after the other"), PATIENCE, || {
            let masters = masters(&self.watch.adverts());
            Ok((masters.len() >= count).then_some(()))
        })
    }

    /// The priorities that were advertised, one after the other.
    fn judge(&self, counts: impl Fn(&Advert) -> bool, priorities: &[u8]) -> Result<()> {
        let advertised = wait_for(&format!("{} priorities", priorities.len()), PATIENCE, || {
            let adverts = self.watch.adverts();
            let all = turns(adverts.iter().filter(|advert| counts(advert)).map(|advert| advert.priority));
            Ok((all.len() >= priorities.len()).then_some(all))
        })?;
        assert_eq!(advertised, priorities);
        Ok(())
    }
}

fn wait_for_lines(path: &Path, count: usize) -> Result<String> {
    wait_for(&format!("{count} lines in {}", path.display()), PATIENCE, || {
        // Not there before the first line.
        let text = fs::read_to_string(path).unwrap_or_default();
        Ok((text.lines().count() >= count).then_some(text))
    })
}

/// What is logged is told by another thread than the one that acts.
fn wait_for_log(director: &Director, text: &str) -> Result<()> {
    wait_for(&format!("{text} in the log"), PATIENCE, || {
        Ok(fs::read_to_string(director.process().log())?.contains(text).then_some(()))
    })
}

/// So many bytes of a FIFO in which they already are.
fn read(mut fifo: impl std::io::Read, length: usize) -> Result<String> {
    let mut bytes = vec![0; length];
    fifo.read_exact(&mut bytes)?;
    Ok(String::from_utf8(bytes)?)
}
