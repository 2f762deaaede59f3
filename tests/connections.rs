//! Does a connection keep its real server through changes of the pool, and does a new one get the right one?

use std::{collections::BTreeMap, ops::Range, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{
    CHECK_TIME, Conversation, Director, Need, PATIENCE, Scene, VIP, Vrrp, get, require, scheduled_service,
    wait_for, web_service,
};

/// Two sets of client ports: fixed, so that every run has the same flows.
const EARLY: Range<u16> = 20_000..20_060;
const LATE: Range<u16> = 30_000..30_060;
/// Several looks of the daemon at its flows.
const A_WHILE: Duration = Duration::from_millis(2500);

#[test]
fn connections_survive_the_death_and_the_return_of_a_neighbour() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut site = Site::new(&[1, 1, 1])?;
    let early = site.real_of_each(EARLY)?;
    let mut talks = site.begin(EARLY)?;
    site.scene.reals.get_mut(1).context("no rs2")?.kill()?;
    site.wait_for_second("down")?;
    talks.retain(|port, _| early.get(port).is_some_and(|name| name != "rs2"));
    // Some of these are on the dead one's slots, which it gets back.
    let late = site.real_of_each(LATE)?;
    ensure!(late.values().all(|name| name != "rs2"));
    talks.append(&mut site.begin(LATE)?);
    // Half of them go on, the others are silent through both changes.
    go_on(&mut talks)?;

    site.scene.reals.get_mut(1).context("no rs2")?.start()?;
    site.wait_for_second("up")?;
    go_on(&mut talks)?;
    thread::sleep(A_WHILE);
    go_on(&mut talks)?;
    let again = site.real_of_each(31_000..31_060)?;
    ensure!(again.values().any(|name| name == "rs2"), "rs2 gets no new connection");

    ends_where_it_began(talks, early.into_iter().chain(late).collect())
}

#[test]
fn a_draining_real_server_keeps_its_connections_and_gets_no_new_one() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let site = Site::new(&[1, 1, 1])?;
    let names = site.real_of_each(EARLY)?;
    let mut talks = site.begin(EARLY)?;
    site.lb1.reload(&site.config(&[1, 0, 1]))?;
    site.wait_for_second("draining")?;
    thread::sleep(CHECK_TIME);
    go_on(&mut talks)?;
    let new = site.real_of_each(LATE)?;
    ensure!(new.values().all(|name| name != "rs2"), "{new:?}");
    // Out of the configuration, it lives on for those that it has.
    site.lb1.reload(&(vrrp() + &web_service(&[(&site.scene.reals[0], 1), (&site.scene.reals[2], 1)])))?;
    thread::sleep(A_WHILE);
    go_on(&mut talks)?;
    ends_where_it_began(talks, names)
}

#[test]
fn an_order_to_drain_holds_through_reload_and_restart_until_it_is_reset() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut site = Site::new(&[1, 1, 1])?;
    let names = site.real_of_each(EARLY)?;
    let mut talks = site.begin(EARLY)?;
    let real = format!("{}:80", site.scene.reals.get(1).context("no rs2")?.node.address());
    site.lb1.order(&["drain", &format!("tcp:{}", VIP), &real])?;
    site.wait_for_second("draining")?;
    site.lb1.reload(&site.config(&[1, 3, 1]))?;
    site.lb1.hand_over()?;
    site.lb1.start_again()?;
    site.lb1.wait_for_state("MASTER", PATIENCE)?;
    site.wait_for_second("draining")?;
    go_on(&mut talks)?;
    let new = site.real_of_each(LATE)?;
    ensure!(new.values().all(|name| name != "rs2"), "{new:?}");
    ends_where_it_began(talks, names)?;

    site.lb1.order(&["reset"])?;
    site.wait_for_second("up")?;
    let again = site.real_of_each(31_000..31_060)?;
    ensure!(again.values().any(|name| name == "rs2"), "rs2 gets no new connection");
    Ok(())
}

#[test]
fn what_a_drain_has_left_ends_with_its_timeout_and_nothing_else_does() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let site = Site::new(&[1, 1, 1])?;
    let names = site.real_of_each(EARLY)?;
    let mut talks = site.begin(EARLY)?;
    let config = site.config(&[1, 0, 1]).replace("lvs_method DR", "lvs_method DR\n    drain_timeout 3");
    site.lb1.reload(&config)?;
    site.wait_for_second("draining")?;
    talks.values_mut().try_for_each(Conversation::go_on)?;
    let on_second = |port: &u16| names.get(port).is_some_and(|name| name == "rs2");
    let (mut drained, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        talks.into_iter().partition(|(port, _)| on_second(port));
    ensure!(!drained.is_empty());
    wait_for("the end of the drained connections", PATIENCE, || {
        drained.retain(|_, talk| talk.go_on().is_ok());
        Ok(drained.is_empty().then_some(()))
    })?;
    ends_where_it_began(others, names)
}

#[test]
fn rr_gives_each_real_server_exactly_its_share() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let site = Site::by("rr", &[1, 9, 1])?;
    let spread = spread_of(site.real_of_each(20_000..20_300)?.into_values());
    assert_eq!(spread.into_values().collect::<Vec<_>>(), [100, 100, 100]);
    Ok(())
}

#[test]
fn wrr_gives_each_real_server_exactly_its_weights_share() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let site = Site::by("wrr", &[1, 2, 3])?;
    let spread = spread_of(site.real_of_each(20_000..20_300)?.into_values());
    assert_eq!(spread.into_values().collect::<Vec<_>>(), [50, 100, 150]);
    Ok(())
}

#[test]
fn wlc_gives_new_connections_to_whoever_has_fewest() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let site = Site::by("wlc", &[1, 0, 0])?;
    let held = site.begin(EARLY)?;
    site.lb1.reload(&site.scheduled("wlc", &[1, 1, 1]))?;
    site.wait_for_second("up")?;
    thread::sleep(A_WHILE);
    let talks = site.begin(LATE)?;
    let spread = spread_of(talks.into_values().map(Conversation::end).collect::<std::io::Result<Vec<_>>>()?);
    ensure!(!spread.contains_key("rs1"), "{} connections were there, and then: {spread:?}", held.len());
    let (rs2, rs3) = (spread.get("rs2").copied().unwrap_or(0), spread.get("rs3").copied().unwrap_or(0));
    // The ring gives each some, the others come by turns.
    ensure!(rs2.abs_diff(rs3) <= 16, "{spread:?}");
    Ok(())
}

#[test]
fn with_uthreshold_a_full_pool_refuses_new_connections_until_others_have_ended() -> Result<()> {
    const EACH: usize = 10;
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let service = scheduled(&scene, "rr", &[1, 1, 1]);
    let limited = service.replace("weight 1", &format!("weight 1\n        uthreshold {EACH}"));
    // What has ended counts for two seconds more.
    let site = Site::start(scene, &format!("global_defs {{\n    lvs_timeouts tcpfin 2\n}}\n{limited}"))?;
    let begin = |port: u16| site.scene.client.in_ns(|| Ok(Conversation::begin(VIP, port)?));
    let mut talks = (0..3 * EACH as u16).map(|number| begin(20_000 + number)).collect::<Result<Vec<_>>>()?;
    // The counts are a tenth of a second old: a few may come in beyond the limit.
    let mut ports = 21_000..21_100;
    let refused = wait_for("a refusal", PATIENCE, || {
        thread::sleep(Duration::from_millis(300));
        let begun = begin(ports.next().context("no port left")?);
        Ok(begun.map(|talk| talks.push(talk)).err())
    })?;
    println!("{} connections, then {refused:#}", talks.len());
    talks.iter_mut().try_for_each(Conversation::go_on)?;
    let spread = spread_of(talks.into_iter().map(Conversation::end).collect::<std::io::Result<Vec<_>>>()?);
    ensure!(spread.values().all(|count| (EACH..EACH + 5).contains(count)), "{spread:?}");
    wait_for("room", PATIENCE, || Ok(begin(ports.next().context("no port left")?).ok()))?.end()?;
    Ok(())
}

#[test]
fn a_persistent_client_keeps_its_real_server_while_turns_are_taken_and_it_drains() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let persistent =
        |config: String| config.replace("lvs_sched rr\n", "lvs_sched rr\n    persistence_timeout 50\n");
    let scene = Scene::new()?;
    let config = persistent(scheduled(&scene, "rr", &[1, 1, 1]));
    let site = Site::start(scene, &config)?;
    let before = spread_of(site.real_of_each(EARLY)?.into_values());
    let (name, _) = before.first_key_value().context("no answer")?;
    ensure!(before.len() == 1, "{before:?}");
    let weights = [1, 2, 3].map(|number| u16::from(*name != format!("rs{number}")));
    site.lb1.reload(&persistent(site.scheduled("rr", &weights)))?;
    let after = spread_of(site.real_of_each(LATE)?.into_values());
    ensure!(after.keys().eq([name]), "{name} drains, and its client went to {after:?}");
    // Another client of the same service has a turn of its own.
    let others = site.scene.watcher.in_ns(|| Ok(get(VIP, None)?))?;
    ensure!(others != *name, "{others} got a new client while it drains");
    Ok(())
}

/// One director, master, with three real servers.
struct Site {
    lb1: Director,
    scene: Scene,
}

impl Site {
    fn new(weights: &[u16; 3]) -> Result<Self> {
        let scene = Scene::new()?;
        let config = vrrp() + &web_service(&weighted(&scene, weights));
        Self::start_with_all(scene, &config, weights)
    }

    fn by(scheduler: &str, weights: &[u16; 3]) -> Result<Self> {
        let scene = Scene::new()?;
        let config = scheduled(&scene, scheduler, weights);
        Self::start_with_all(scene, &config, weights)
    }

    /// The director knows where all real servers are that get connections: before, their share is the others'.
    fn start_with_all(scene: Scene, config: &str, weights: &[u16; 3]) -> Result<Self> {
        let site = Self::start(scene, config)?;
        if weights.iter().all(|weight| *weight > 0) {
            site.scene.wait_for_all(PATIENCE)?;
        }
        Ok(site)
    }

    fn start(scene: Scene, config: &str) -> Result<Self> {
        let lb1 = Director::start(&scene.lb1, config)?;
        lb1.wait_for_state("MASTER", PATIENCE)?;
        scene.wait_for_service(PATIENCE)?;
        Ok(Self { lb1, scene })
    }

    fn config(&self, weights: &[u16; 3]) -> String {
        vrrp() + &web_service(&weighted(&self.scene, weights))
    }

    fn scheduled(&self, scheduler: &str, weights: &[u16; 3]) -> String {
        scheduled(&self.scene, scheduler, weights)
    }

    fn real_of_each(&self, ports: Range<u16>) -> Result<BTreeMap<u16, String>> {
        self.scene.client.in_ns(|| {
            ports
                .map(|port| Ok((port, get(VIP, Some(port)).with_context(|| format!("from port {port}"))?)))
                .collect()
        })
    }

    fn begin(&self, ports: Range<u16>) -> Result<BTreeMap<u16, Conversation>> {
        self.scene.client.in_ns(|| ports.map(|port| Ok((port, Conversation::begin(VIP, port)?))).collect())
    }

    fn wait_for_second(&self, state: &str) -> Result<()> {
        wait_for(&format!("rs2 {state}"), PATIENCE, || {
            let status = self.lb1.status()?;
            let real = status.services.first().and_then(|service| service.reals.get(1)).context("no rs2")?;
            Ok((real.state == state).then_some(()))
        })
    }
}

fn vrrp() -> String {
    Vrrp::v3(150, Duration::from_millis(100)).text()
}

fn weighted<'a>(scene: &'a Scene, weights: &[u16; 3]) -> Vec<(&'a lvs_tests::RealServer, u16)> {
    scene.reals.iter().zip(weights.iter().copied()).collect()
}

fn scheduled(scene: &Scene, scheduler: &str, weights: &[u16; 3]) -> String {
    vrrp() + &scheduled_service(scheduler, &weighted(scene, weights))
}

fn spread_of(names: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut spread = BTreeMap::new();
    names.into_iter().for_each(|name| *spread.entry(name).or_default() += 1);
    spread
}

/// Half of them; the others have been silent since they began.
fn go_on(talks: &mut BTreeMap<u16, Conversation>) -> Result<()> {
    for (port, talk) in talks.iter_mut().filter(|(port, _)| *port % 2 == 0) {
        talk.go_on().with_context(|| format!("the connection from port {port}"))?;
    }
    Ok(())
}

/// Maglev places a client port again where it was, so a request from it before told where the connection is.
fn ends_where_it_began(talks: BTreeMap<u16, Conversation>, began: BTreeMap<u16, String>) -> Result<()> {
    let count = talks.len();
    for (port, talk) in talks {
        let name = talk.end().with_context(|| format!("the connection from port {port}"))?;
        assert_eq!(Some(&name), began.get(&port), "port {port}");
    }
    println!("{count} connections have ended where they began");
    Ok(())
}
