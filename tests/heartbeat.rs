//! Two ways between the directors: what does the loss of one cost, of both, and of the one that clients use?

use std::{
    fs,
    net::{IpAddr, Ipv6Addr},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{
    ArpProbe, Capture, Director, Mac, Need, Node, PACE, PATIENCE, Scene, Stamp, VIP, Vrrp, ask, require,
    turns, wait_for, wait_until_believed,
};

const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100);
/// The cable between the directors, beside the switches.
const BEAT: &str = "beat0";
/// From the healing of the network until everybody believes the winner: an advert, the loser's farewell, announcements,
/// and what a busy machine adds.
const ROUND: Duration = Duration::from_millis(700);

fn vrrp(priority: u8) -> Vrrp {
    Vrrp::v3(priority, Duration::from_millis(100))
}

fn beat() -> String {
    format!("heartbeat_interface {BEAT}\n")
}

/// Two switches with a trunk; lb1 and the client on one, lb2 and the watcher on the other.
struct Stage {
    lb1: Director,
    lb2: Director,
    watch: Capture,
    _probe: ArpProbe,
    scene: Scene,
}

impl Stage {
    fn new(vrrp: [Vrrp; 2]) -> Result<Self> {
        let stage = Self::start(Scene::new()?, *VIP.ip(), vrrp.map(|vrrp| vrrp.text_with(&beat())))?;
        ask(&stage.scene.client)?;
        ask(&stage.scene.watcher)?;
        stage.wait_for_belief(stage.scene.lb1.mac(), PATIENCE)?;
        Ok(stage)
    }

    /// `texts` are lb1's and lb2's.
    fn start(scene: Scene, vip: impl Into<IpAddr>, texts: [String; 2]) -> Result<Self> {
        scene.lab.second_switch(&[&scene.lb2, &scene.watcher])?;
        scene.lab.connect([&scene.lb1, &scene.lb2], BEAT)?;
        // The other way round than on the switch; adverts do not use them.
        scene.lb1.run(&format!("ip address add 192.168.9.2/24 dev {BEAT}"))?;
        scene.lb2.run(&format!("ip address add 192.168.9.1/24 dev {BEAT}"))?;
        let watch = Capture::start(&scene.watcher, "eth0")?;
        let probe = ArpProbe::start(&scene.watcher, vip, PACE)?;
        let [first, second] = texts;
        let lb1 = Director::start(&scene.lb1, &first)?;
        lb1.wait_for_state("MASTER", PATIENCE)?;
        let lb2 = Director::start(&scene.lb2, &second)?;
        lb2.wait_for_state("BACKUP", PATIENCE)?;
        let stage = Self { lb1, lb2, watch, _probe: probe, scene };
        stage.wait_for_ways(&stage.lb2, ["heard", "heard"])?;
        Ok(stage)
    }

    fn wait_for_ways(&self, director: &Director, states: [&str; 2]) -> Result<()> {
        wait_for(&format!("{states:?} on {}", director.node().name()), PATIENCE, || {
            let status = director.status()?;
            let ways = &status.instances.first().context("no instance")?.ways;
            let seen: Vec<_> = ways.iter().map(|way| (way.interface.as_str(), way.state.as_str())).collect();
            Ok((seen == [("eth0", states[0]), (BEAT, states[1])]).then_some(()))
        })
    }

    fn wait_for_belief(&self, mac: Mac, limit: Duration) -> Result<()> {
        let took = wait_until_believed(&[&self.scene.client, &self.scene.watcher], mac, limit)?;
        println!("all neighbours point at {mac} after {took:?}");
        Ok(())
    }

    fn cut_beat(&self) -> Result<()> {
        self.scene.lb1.run(&format!("ip link set {BEAT} down")).map(drop)
    }

    fn mend_beat(&self) -> Result<()> {
        self.scene.lb1.run(&format!("ip link set {BEAT} up")).map(drop)
    }

    fn cut_both_and_wait_for_two_masters(&self) -> Result<()> {
        self.scene.lab.cut()?;
        self.cut_beat()?;
        self.lb2.wait_for_state("MASTER", PATIENCE)?;
        wait_until_believed(&[&self.scene.watcher], self.scene.lb2.mac(), PATIENCE)?;
        ensure!(self.lb1.state()? == "MASTER");
        Ok(())
    }

    /// Longer than anybody waits who believes that there is no master.
    fn stay_calm(&self, states: [&str; 2]) -> Result<()> {
        thread::sleep(vrrp(100).lifetime() + vrrp(100).skew() + Duration::from_millis(300));
        assert_eq!([self.lb1.state()?, self.lb2.state()?], states);
        Ok(())
    }
}

#[test]
fn one_cut_way_moves_no_role_and_is_named_and_two_do() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let stage = Stage::new([vrrp(150), vrrp(100)])?;
    let (first, second) = (stage.scene.lb1.mac(), stage.scene.lb2.mac());
    let since = Stamp::now();
    let answers = |since: Stamp| -> Vec<Mac> {
        let answers = stage.watch.answers_for(*VIP.ip());
        answers.into_iter().filter(|(at, _)| *at > since).map(|(_, mac)| mac).collect()
    };

    stage.scene.lab.cut()?;
    stage.wait_for_ways(&stage.lb2, ["silent", "heard"])?;
    stage.stay_calm(["MASTER", "BACKUP"])?;
    let log = fs::read_to_string(stage.lb2.process().log())?;
    ensure!(log.contains("WARN") && log.contains("no adverts come over an interface"), "{log}");
    stage.scene.lab.mend()?;
    stage.wait_for_ways(&stage.lb2, ["heard", "heard"])?;

    stage.cut_beat()?;
    stage.wait_for_ways(&stage.lb1, ["up", "down"])?;
    stage.wait_for_ways(&stage.lb2, ["heard", "down"])?;
    stage.stay_calm(["MASTER", "BACKUP"])?;
    assert!(answers(since).iter().all(|mac| *mac == first), "a second one answered");
    stage.mend_beat()?;
    stage.wait_for_ways(&stage.lb2, ["heard", "heard"])?;

    // Healed in either order.
    stage.cut_both_and_wait_for_two_masters()?;
    let healing = Stamp::now();
    stage.scene.lab.mend()?;
    stage.lb2.wait_for_state("BACKUP", PATIENCE)?;
    stage.wait_for_belief(first, ROUND)?;
    stage.mend_beat()?;
    stage.stay_calm(["MASTER", "BACKUP"])?;
    assert_eq!(answers(healing + ROUND).iter().find(|mac| **mac == second), None);

    stage.cut_both_and_wait_for_two_masters()?;
    stage.mend_beat()?;
    stage.lb2.wait_for_state("BACKUP", PATIENCE)?;
    let healing = Stamp::now();
    stage.scene.lab.mend()?;
    stage.wait_for_belief(first, ROUND)?;
    stage.stay_calm(["MASTER", "BACKUP"])?;
    assert_eq!(answers(healing + ROUND).iter().find(|mac| **mac == second), None);
    Ok(())
}

/// Multicast, and unicast whose peers may be some routers away: copies never are.
#[test]
fn over_ipv6_one_cut_way_moves_no_role_and_two_do() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    for is_unicast in [false, true] {
        let scene = Scene::new()?;
        for node in [&scene.watcher, &scene.lb1, &scene.lb2] {
            node.enable_ipv6()?;
        }
        let text = |priority, own: &Node, peer: &Node| {
            let (own, peer) = (own.address_v6(), peer.address_v6());
            let unicast = format!("unicast_src_ip {own}\nunicast_peer {{\n{peer}\n}}\nunicast_ttl 10\n");
            let lines = beat() + if is_unicast { &unicast } else { "" };
            vrrp(priority).text_with(&lines).replace(&format!("{}/24", VIP.ip()), &format!("{VIP6}/64"))
        };
        let texts = [text(150, &scene.lb1, &scene.lb2), text(100, &scene.lb2, &scene.lb1)];
        let stage = Stage::start(scene, VIP6, texts)?;

        stage.scene.lab.cut()?;
        stage.wait_for_ways(&stage.lb2, ["silent", "heard"])?;
        stage.stay_calm(["MASTER", "BACKUP"])?;
        stage.scene.lab.mend()?;
        stage.wait_for_ways(&stage.lb2, ["heard", "heard"])?;
        stage.cut_beat()?;
        stage.wait_for_ways(&stage.lb2, ["heard", "down"])?;
        stage.stay_calm(["MASTER", "BACKUP"])?;
        let answers = stage.watch.answers_for(VIP6).into_iter().map(|(_, mac)| mac);
        assert_eq!(turns(answers), [stage.scene.lb1.mac()], "unicast: {is_unicast}");
        let rejected: u64 = stage.lb2.status()?.instances.iter().flat_map(|it| it.rejected.values()).sum();
        assert_eq!(rejected, 0, "copies were refused, unicast: {is_unicast}");

        stage.scene.lab.cut()?;
        stage.lb2.wait_for_state("MASTER", PATIENCE)?;
        stage.mend_beat()?;
        stage.lb2.wait_for_state("BACKUP", PATIENCE)?;
        stage.scene.lab.mend()?;
        stage.wait_for_ways(&stage.lb2, ["heard", "heard"])?;
        stage.stay_calm(["MASTER", "BACKUP"])?;
    }
    Ok(())
}

#[test]
fn two_of_equal_priority_agree_by_the_addresses_of_interface_whatever_way_they_meet() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let stage = Stage::new([vrrp(100), vrrp(100)])?;
    stage.cut_both_and_wait_for_two_masters()?;
    stage.mend_beat()?;
    stage.lb1.wait_for_state("BACKUP", PATIENCE)?;
    stage.stay_calm(["BACKUP", "MASTER"])?;
    stage.scene.lab.mend()?;
    stage.wait_for_belief(stage.scene.lb2.mac(), ROUND)?;
    stage.stay_calm(["BACKUP", "MASTER"])
}

#[test]
fn a_master_that_lost_the_clients_hands_over_by_the_heartbeat_without_being_waited_for() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let slow = |priority| Vrrp::v3(priority, Duration::from_secs(1));
    let stage = Stage::new([slow(150), slow(100)])?;
    let lost = Stamp::now();
    stage.scene.lab.unplug(&stage.scene.lb1)?;
    stage.lb2.wait_for_state("MASTER", PATIENCE)?;
    let took = lost.elapsed();
    println!(
        "taken over {took:?} after the loss of the cable; a silent master is waited for {:?}",
        slow(100).lifetime()
    );
    assert!(took < slow(100).lifetime() - Duration::from_millis(500), "{took:?}");
    assert_eq!(stage.lb1.state()?, "FAULT");
    Ok(())
}

#[test]
fn a_peer_that_knows_one_way_only_is_followed_and_succeeded() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut stage = Stage::new([vrrp(150), vrrp(100)])?;
    stage.lb1.reload(&vrrp(150).text())?;
    stage.wait_for_ways(&stage.lb2, ["heard", "silent"])?;
    stage.stay_calm(["MASTER", "BACKUP"])?;
    stage.lb1.stop()?;
    stage.lb2.wait_for_state("MASTER", PATIENCE)?;
    stage.lb1.start_again()?;
    stage.lb1.wait_for_state("MASTER", PATIENCE)?;
    stage.lb2.wait_for_state("BACKUP", PATIENCE)
}
