//! Do `lvsd` and keepalived make one pair? Judged by what they send, not by what they say of themselves.

use std::{
    net::{IpAddr, Ipv4Addr},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{
    Advert, ArpProbe, Capture, Director, Keepalived, Need, Node, Scene, Stamp, VIP, Vrrp, require, turns,
    wait_for, web_service,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// What keepalived may take to remove or to add its address, in which both answer ARP or none does.
const HANDOVER: Duration = Duration::from_millis(100);

fn v2_with_password(priority: u8) -> Vrrp {
    Vrrp { password: Some("secret12"), ..Vrrp::v2(priority) }
}

fn v2_with_ah(priority: u8) -> Vrrp {
    Vrrp { ah: true, ..v2_with_password(priority) }
}

/// lb1 has priority 150.
fn v2_with_ah_by_unicast(priority: u8) -> Vrrp {
    let [lb1, lb2] = [1, 2].map(|host| Ipv4Addr::new(10, 77, 0, host));
    Vrrp { unicast: Some(if priority == 150 { [lb1, lb2] } else { [lb2, lb1] }), ..v2_with_ah(priority) }
}

fn v3(priority: u8) -> Vrrp {
    Vrrp::v3(priority, Duration::from_millis(100))
}

#[test]
fn keepalived_follows_lvsd_and_yields_to_it_v2_with_password() -> Result<()> {
    lvsd_first(v2_with_password)
}

#[test]
fn keepalived_follows_lvsd_and_yields_to_it_v3() -> Result<()> {
    lvsd_first(v3)
}

#[test]
fn lvsd_follows_keepalived_and_yields_to_it_v2_with_password() -> Result<()> {
    keepalived_first(v2_with_password)
}

#[test]
fn lvsd_follows_keepalived_and_yields_to_it_v3() -> Result<()> {
    keepalived_first(v3)
}

#[test]
fn keepalived_follows_lvsd_and_yields_to_it_v2_with_ah() -> Result<()> {
    lvsd_first(v2_with_ah)
}

#[test]
fn keepalived_follows_lvsd_and_yields_to_it_v2_with_ah_by_unicast() -> Result<()> {
    lvsd_first(v2_with_ah_by_unicast)
}

#[test]
fn lvsd_follows_keepalived_and_yields_to_it_v2_with_ah() -> Result<()> {
    keepalived_first(v2_with_ah)
}

#[test]
fn lvsd_follows_keepalived_and_yields_to_it_v2_with_ah_by_unicast() -> Result<()> {
    keepalived_first(v2_with_ah_by_unicast)
}

fn lvsd_first(vrrp: fn(u8) -> Vrrp) -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd, Need::Keepalived]) {
        return Ok(());
    }
    let stage = Stage::new()?;
    let mut lvsd = Director::start(&stage.scene.lb1, &(vrrp(150).text() + &stage.service()))?;
    stage.wait_for_masters(1)?;
    let _keepalived = Keepalived::start(&stage.scene.lb2, &vrrp(100).text())?;
    stage.stay_calm(vrrp)?;
    lvsd.stop()?;
    stage.wait_for_masters(2)?;
    stage.stay_calm(vrrp)?;
    lvsd.start_again()?;
    stage.wait_for_masters(3)?;
    stage.stay_calm(vrrp)?;
    assert_eq!(lvsd.state()?, "MASTER");
    stage.judge(vrrp)
}

fn keepalived_first(vrrp: fn(u8) -> Vrrp) -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd, Need::Keepalived]) {
        return Ok(());
    }
    let stage = Stage::new()?;
    let mut keepalived = Keepalived::start(&stage.scene.lb1, &vrrp(150).text())?;
    stage.wait_for_masters(1)?;
    let lvsd = Director::start(&stage.scene.lb2, &(vrrp(100).text() + &stage.service()))?;
    stage.stay_calm(vrrp)?;
    assert_eq!(lvsd.state()?, "BACKUP");
    keepalived.stop()?;
    stage.wait_for_masters(2)?;
    stage.stay_calm(vrrp)?;
    assert_eq!(lvsd.state()?, "MASTER");
    let _keepalived = Keepalived::start(&stage.scene.lb1, &vrrp(150).text())?;
    stage.wait_for_masters(3)?;
    stage.stay_calm(vrrp)?;
    assert_eq!(lvsd.state()?, "BACKUP");
    stage.judge(vrrp)
}

/// Where lb1 is to be master, then lb2 because lb1 stops, then lb1 because it is back with its priority.
struct Stage {
    watch: Capture,
    /// At lb1, where unicast adverts pass too.
    adverts: Capture,
    _probe: ArpProbe,
    scene: Scene,
}

impl Stage {
    fn new() -> Result<Self> {
        let scene = Scene::new()?;
        let watch = Capture::start(&scene.watcher, "eth0")?;
        let probe = ArpProbe::start(&scene.watcher, *VIP.ip(), Duration::from_millis(5))?;
        let adverts = Capture::start(&scene.lb1, "eth0")?;
        Ok(Self { watch, adverts, _probe: probe, scene })
    }

    fn service(&self) -> String {
        web_service(&self.scene.reals.iter().map(|real| (real, 1)).collect::<Vec<_>>())
    }

    fn masters(&self) -> Vec<IpAddr> {
        let adverts = self.adverts.adverts();
        turns(adverts.iter().filter(|advert| advert.priority > 0).map(|advert| advert.source))
    }

    fn wait_for_masters(&self, count: usize) -> Result<()> {
        wait_for(&format!("{count} masters one after the other"), PATIENCE, || {
            Ok((self.masters().len() >= count).then_some(()))
        })
    }

    /// Longer than anybody waits who believes that there is no master.
    fn stay_calm(&self, vrrp: fn(u8) -> Vrrp) -> Result<()> {
        let before = self.masters();
        thread::sleep(vrrp(100).lifetime() + vrrp(100).skew() + HANDOVER);
        ensure!(self.masters() == before, "masters were {before:?}, then {:?}", self.masters());
        Ok(())
    }

    fn judge(&self, vrrp: fn(u8) -> Vrrp) -> Result<()> {
        let (lb1, lb2) = (&self.scene.lb1, &self.scene.lb2);
        assert_eq!(self.masters(), [lb1, lb2, lb1].map(Node::address));
        let adverts = self.adverts.adverts();
        let first = find(&adverts, |_| true).context("no advert at all")?;
        let resigned = find(&adverts, |advert| advert.source == lb1.address() && advert.priority == 0)
            .context("no advert of priority 0")?;
        let taken = find(&adverts, |advert| advert.source == lb2.address()).context("no advert of lb2")?;
        let (waited, skew) = (taken.since(resigned), vrrp(100).skew());
        println!("took over {waited:?} after priority 0, skew {skew:?}");
        ensure!(waited <= skew + HANDOVER, "took over {waited:?} after priority 0, skew {skew:?}");
        let returned = find(&adverts, |advert| advert.source == lb1.address() && advert.at > taken)
            .context("lb1 did not return")?;

        // Between the handovers one alone answers, and its MAC is in every neighbour's table.
        for (from, to, master) in
            [(first, resigned, lb1), (taken, returned, lb2), (returned, Stamp::now(), lb1)]
        {
            let answers = self.watch.answers_for(*VIP.ip());
            let undisputed = answers.iter().filter(|(at, _)| *at > from + HANDOVER && *at + HANDOVER < to);
            assert_eq!(turns(undisputed.map(|(_, mac)| *mac)), [master.mac()], "{}", master.name());
            let announced = self.watch.arps().iter().any(|arp| {
                arp.is_gratuitous()
                    && arp.sender == (master.mac(), *VIP.ip())
                    && arp.at >= from
                    && arp.at <= to
            });
            ensure!(announced, "{} did not announce itself", master.name());
        }
        Ok(())
    }
}

fn find(adverts: &[Advert], what: impl Fn(&Advert) -> bool) -> Option<Stamp> {
    adverts.iter().find(|advert| what(advert)).map(|advert| advert.at)
}
