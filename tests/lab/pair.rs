//! Two directors at work, and somebody who watches that never more than one answers.

use std::{net::IpAddr, time::Duration};

use anyhow::Result;

use crate::{ArpProbe, Capture, Director, Mac, RealServer, Scene, Stamp, VIP, Vrrp, masters, web_service};

/// Between two requests of a load, and between two questions for the VIP.
pub const PACE: Duration = Duration::from_millis(2);
/// Longer than anything takes that does not fail.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Two directors, the first one master and the second backup, with a watcher that asks for the VIP every few milliseconds.
pub struct Pair {
    pub lb1: Director,
    pub lb2: Director,
    pub watch: Capture,
    _probe: ArpProbe,
    pub scene: Scene,
}

impl Pair {
    pub fn new(vrrp: impl Fn(u8) -> Vrrp) -> Result<Self> {
        let service =
            |reals: &[RealServer]| web_service(&reals.iter().map(|real| (real, 1)).collect::<Vec<_>>());
        Self::with_service(|priority| vrrp(priority).text(), service)
    }

    /// `vrrp` is the text of a priority.
    pub fn with_service(
        vrrp: impl Fn(u8) -> String,
        service: impl FnOnce(&[RealServer]) -> String,
    ) -> Result<Self> {
        let scene = Scene::new()?;
        let service = service(&scene.reals);
        let watch = Capture::start(&scene.watcher, "eth0")?;
        let probe = ArpProbe::start(&scene.watcher, *VIP.ip(), PACE)?;
        let lb1 = Director::start(&scene.lb1, &(vrrp(150) + &service))?;
        lb1.wait_for_state("MASTER", PATIENCE)?;
        let lb2 = Director::start(&scene.lb2, &(vrrp(100) + &service))?;
        lb2.wait_for_state("BACKUP", PATIENCE)?;
        scene.wait_for_service(PATIENCE)?;
        Ok(Self { lb1, lb2, watch, _probe: probe, scene })
    }

    /// Who was master, in order, by the adverts on the wire; a resignation is none.
    pub fn masters(&self) -> Vec<IpAddr> {
        masters(&self.watch.adverts())
    }

    pub fn answers_since(&self, from: Stamp) -> Vec<Mac> {
        let answers = self.watch.answers_for(*VIP.ip());
        answers.into_iter().filter(|(at, _)| *at >= from).map(|(_, mac)| mac).collect()
    }
}
