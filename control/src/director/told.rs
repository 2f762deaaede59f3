//! What of the pools has been told to scripts and FIFOs, and what is to be told next?

use std::collections::{HashMap, HashSet};

use super::{Server, ServiceState, server};
use crate::dataplane::plan::Endpoint;

/// One real server, or a service's quorum, came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    /// By its place among the services.
    pub service: usize,
    /// `None`: the quorum.
    pub real: Option<usize>,
    pub up: bool,
    /// The daemon stops.
    pub last: bool,
}

/// Who was up when it was looked at last. States are compared, so what a reload changes is told too.
#[derive(Default)]
pub struct Told {
    /// `None`: with alpha, and not tried yet.
    reals: HashMap<Server, Option<bool>>,
    quorums: HashMap<Endpoint, bool>,
}

impl Told {
    /// What changed, a service's real servers before its quorum. What is seen for the first time is not told, as in
    /// keepalived, unless it is a real server and `tell_new`.
    pub fn look(&mut self, services: &[ServiceState], tell_new: bool) -> Vec<News> {
        let reals =
            services.iter().flat_map(|service| service.reals.iter().map(|real| server(service, real)));
        let (reals, keys) = (reals.collect::<HashSet<_>>(), services.iter().map(|service| service.key));
        let keys: HashSet<_> = keys.collect();
        self.reals.retain(|name, _| reals.contains(name));
        self.quorums.retain(|key, _| keys.contains(key));
        self.look_at(services, 0..services.len(), tell_new)
    }

    /// The same of some of the services, of which all have been looked at.
    pub fn look_at(
        &mut self,
        services: &[ServiceState],
        some: impl IntoIterator<Item = usize>,
        tell_new: bool,
    ) -> Vec<News> {
        let mut news = Vec::new();
        for index in some {
            let Some(service) = services.get(index) else { continue };
            for (place, real) in service.reals.iter().enumerate() {
                let name = server(service, real);
                let known = self.reals.get(&name).copied();
                let untried = real.checks.iter().any(|check| !check.up && !check.ran);
                let up = if untried && !tell_new { known.flatten() } else { Some(real.is_up()) };
                self.reals.insert(name, up);
                if let Some(up) = up
                    && known.map_or(tell_new, |known| known != Some(up))
                {
                    news.push(News { service: index, real: Some(place), up, last: false });
                }
            }
            let up = service.has_quorum();
            if self.quorums.insert(service.key, up).is_some_and(|known| known != up) {
                news.push(News { service: index, real: None, up, last: false });
            }
        }
        news
    }

    /// What the daemon's stop takes down, where `omega` says that it is told.
    pub fn stop(services: &[ServiceState]) -> Vec<News> {
        let mut news = Vec::new();
        for (index, service) in services.iter().enumerate().filter(|(_, service)| service.config.omega) {
            let down = |real| News { service: index, real, up: false, last: true };
            let reals = service.reals.iter().enumerate().filter(|(_, real)| real.is_up());
            news.extend(reals.map(|(place, _)| down(Some(place))));
            news.extend(service.has_quorum().then(|| down(None)));
        }
        news
    }
}
