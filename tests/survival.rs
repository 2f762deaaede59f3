//! Do established connections outlive the director that they go by, whatever its end, and its return?

use std::{collections::BTreeSet, ops::Range, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{
    Conversation, Need, PATIENCE, Pair, RealServer, Scene, VIP, Vrrp, require, scheduled_service, wait_for,
    web_service,
};

/// Several looks of the daemon at its flows.
const A_WHILE: Duration = Duration::from_millis(700);

#[test]
fn connections_by_mh_survive_every_end_of_their_director() -> Result<()> {
    survive(web_service, [1, 1, 1], &["rs1", "rs2", "rs3"])
}

#[test]
fn connections_by_wlc_survive_every_end_of_their_director() -> Result<()> {
    survive(|reals| scheduled_service("wlc", reals), [1, 1, 2], &["rs1", "rs2", "rs3"])
}

#[test]
fn connections_by_fo_survive_every_end_of_their_director() -> Result<()> {
    survive(|reals| scheduled_service("fo", reals), [1, 9, 5], &["rs2"])
}

fn survive(
    service: impl FnOnce(&[(&RealServer, u16)]) -> String,
    weights: [u16; 3],
    expected: &[&str],
) -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut pair = Pair::with_service(
        |priority| Vrrp::v3(priority, Duration::from_millis(100)).text(),
        |reals| service(&reals.iter().zip(weights).collect::<Vec<_>>()),
    )?;
    let mut talks = Talks::default();
    talks.begin(&pair.scene, 20_000..20_040)?;

    pair.lb1.hand_over()?;
    pair.lb1.start_again()?;
    pair.lb1.wait_for_state("MASTER", PATIENCE)?;
    talks.go_on("the restart by SIGUSR2")?;

    pair.lb1.kill()?;
    talks.go_by_the_second(&pair, "kill -9", 21_000..21_020)?;
    pair.lb1.start_again()?;
    talks.go_by_the_first(&pair, "its restart")?;

    pair.scene.lab.unplug(&pair.scene.lb1)?;
    talks.go_by_the_second(&pair, "the loss of its host", 22_000..22_020)?;
    // It has found all real servers dead.
    thread::sleep(Duration::from_secs(2));
    pair.scene.lab.plug_in(&pair.scene.lb1)?;
    talks.go_by_the_first(&pair, "the return of its host")?;

    pair.lb1.stop()?;
    talks.go_by_the_second(&pair, "SIGTERM", 23_000..23_020)?;
    pair.lb1.start_again()?;
    talks.go_by_the_first(&pair, "its new start")?;

    let served = talks.end()?;
    assert!(served.iter().eq(expected), "served by {served:?}");
    Ok(())
}

/// Connections with their client ports.
#[derive(Default)]
struct Talks(Vec<(u16, Conversation)>);

impl Talks {
    fn begin(&mut self, scene: &Scene, ports: Range<u16>) -> Result<()> {
        scene.client.in_ns(|| {
            for port in ports {
                let talk = Conversation::begin(VIP, port).with_context(|| format!("from port {port}"))?;
                self.0.push((port, talk));
            }
            Ok(())
        })
    }

    fn go_by_the_second(&mut self, pair: &Pair, cause: &str, new: Range<u16>) -> Result<()> {
        pair.lb2.wait_for_state("MASTER", PATIENCE)?;
        self.go_on(cause)?;
        self.begin(&pair.scene, new)
    }

    fn go_by_the_first(&mut self, pair: &Pair, cause: &str) -> Result<()> {
        pair.lb1.wait_for_state("MASTER", PATIENCE)?;
        pair.lb2.wait_for_state("BACKUP", PATIENCE)?;
        wait_for("lb1's real servers", PATIENCE, || {
            let status = pair.lb1.status()?;
            let mut reals = status.services.iter().flat_map(|service| &service.reals);
            Ok(reals.all(|real| real.state == "up").then_some(()))
        })?;
        self.go_on(cause)
    }

    /// Half of them; the others are silent from their beginning to their end.
    fn go_on(&mut self, cause: &str) -> Result<()> {
        for (port, talk) in self.0.iter_mut().filter(|(port, _)| port % 2 == 0) {
            talk.go_on().with_context(|| format!("the connection from port {port} after {cause}"))?;
        }
        thread::sleep(A_WHILE);
        Ok(())
    }

    /// Each real server answers only connections that it has known from their beginning. Returns the names of all.
    fn end(self) -> Result<BTreeSet<String>> {
        let count = self.0.len();
        let (mut names, mut lost) = (BTreeSet::new(), Vec::new());
        for (port, talk) in self.0 {
            match talk.end() {
                Ok(name) => drop(names.insert(name)),
                Err(error) => lost.push((port, error)),
            }
        }
        ensure!(lost.is_empty(), "{} of {count} were lost: {lost:?}", lost.len());
        println!("{count} connections have survived");
        Ok(names)
    }
}
