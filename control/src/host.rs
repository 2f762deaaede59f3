//! What the configuration means on this host: interfaces, source addresses, next hops; and the task that keeps
//! the host and the daemon in agreement.

pub mod addresses;
pub mod routes;
pub mod vips;
pub mod virtual_macs;
pub mod ways;

use addresses::Place;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;

use crate::{
    config::model::{Config, Family, VirtualAddress, Vmac, VrrpInstance},
    dataplane::plan::NextHop,
    drift::{Drift, Drifts},
    netlink::{Address, Link, Netlink, NetlinkError, Route, SETTLE, Snapshot},
    vrrp::{
        FaultCause, Monotonic, State, driver,
        track::{Debounce, Finding},
    },
};

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("vrrp_instance {instance}: there is no interface {interface:?} (there are: {there})")]
    NoSuchInterface { instance: String, interface: String, there: String },
    #[error("vrrp_instance {instance}: {interface} has no MAC address, so nobody can be told of it by ARP")]
    NoMac { instance: String, interface: String },
    #[error(
        "vrrp_instance {instance}: {interface} has no {family} address to send adverts from (with IPv6: no link-local one)"
    )]
    NoSource { instance: String, interface: String, family: Family },
    #[error("vrrp_instance {instance} has no unicast_peer, and unicast_fault_no_peer")]
    NoPeer { instance: String },
    #[error("vrrp_instance {instance}: the source address {source_address} is not on {interface}")]
    SourceNotHere { instance: String, interface: String, source_address: IpAddr },
    #[error("{addresses} could not be removed from its interface")]
    AddressesLeft { addresses: String },
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// A VRRP instance with this host's names for things.
#[derive(Clone, Debug)]
pub struct LocalInstance {
    pub link: Link,
    /// Its heartbeat interfaces, by index; those that are there.
    pub heartbeats: Vec<Option<u32>>,
    pub source: IpAddr,
    /// While master the host has the addresses. XDP answers for them and forwards with and without.
    pub accept: bool,
    /// Its addresses are in networks with VLAN tags too.
    pub tagged: bool,
    /// The advertised ones, then the excluded ones.
    pub addresses: Vec<LocalAddress>,
    /// The link of its own interface may be down: not with `dont_track_primary`.
    needs_link: bool,
    /// Why it has no place on this host yet.
    pub absent: Option<FaultCause>,
}

#[derive(Clone, Debug)]
pub struct LocalAddress {
    pub config: VirtualAddress,
    pub ifindex: u32,
    /// Of the interface.
    pub mac: [u8; 6],
    /// Of the virtual router, if that is the address's.
    pub virtual_mac: Option<[u8; 6]>,
    /// The interface forwards IPv6, which neighbours are told.
    pub router: bool,
}

impl LocalInstance {
    /// One that waits in FAULT for what it lacks.
    pub fn nowhere(place: usize, instance: &VrrpInstance, lacks: FaultCause) -> Self {
        // No interface has such a number, which is negative for the kernel.
        let ifindex = u32::MAX - u32::try_from(place).unwrap_or_default();
        let source = match instance.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        };
        let link = Link { ifindex, name: instance.interface.clone(), ..Link::default() };
        Self {
            link,
            heartbeats: Vec::new(),
            source,
            accept: true,
            tagged: false,
            addresses: Vec::new(),
            needs_link: true,
            absent: Some(lacks),
        }
    }

    /// Whether sockets, announcements and tables made for `other` are right for this one.
    fn is_as(&self, other: &Self) -> bool {
        let place = |local: &Self| {
            let addresses: Vec<_> = local.addresses.iter().map(|a| (a.ifindex, a.mac, a.router)).collect();
            (local.link.ifindex, local.link.mac, local.source, local.heartbeats.clone(), addresses)
        };
        place(self) == place(other)
    }
}

impl HostError {
    /// What an instance lacks.
    pub fn fault(&self) -> FaultCause {
        match self {
            Self::NoSource { .. } | Self::SourceNotHere { .. } => FaultCause::SourceMissing,
            Self::NoPeer { .. } => FaultCause::NoPeer,
            _ => FaultCause::InterfaceMissing,
        }
    }
}

/// Finds every instance's interface and source address.
pub fn locate(config: &Config, snapshot: &Snapshot) -> Vec<Result<LocalInstance, HostError>> {
    let sources = sources(config, snapshot);
    config.instances.iter().map(|instance| locate_one(instance, &sources, snapshot)).collect()
}

/// What adverts come from on each interface: its first address that is not a virtual one, which a killed daemon may have
/// left behind.
fn sources(config: &Config, snapshot: &Snapshot) -> HashMap<(u32, Family), IpAddr> {
    let virtual_addresses = virtual_addresses(config);
    let mut sources = HashMap::new();
    for Address { ifindex, address, .. } in snapshot.addresses.iter() {
        if can_be_source(*address) && !virtual_addresses.contains(address) {
            sources.entry((*ifindex, Family::of(*address))).or_insert(*address);
        }
    }
    sources
}

fn virtual_addresses(config: &Config) -> HashSet<IpAddr> {
    config.instances.iter().flat_map(VrrpInstance::virtual_addresses).map(|a| a.address).collect()
}

fn locate_one(
    instance: &VrrpInstance,
    sources: &HashMap<(u32, Family), IpAddr>,
    snapshot: &Snapshot,
) -> Result<LocalInstance, HostError> {
    let find = |interface: &str| {
        let link = snapshot.link(interface).ok_or_else(|| HostError::NoSuchInterface {
            instance: instance.name.clone(),
            interface: interface.to_owned(),
            there: snapshot.links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        if link.mac == [0; 6] {
            return Err(HostError::NoMac {
                instance: instance.name.clone(),
                interface: interface.to_owned(),
            });
        }
        Ok(link)
    };
    if instance.needs_peers && instance.peers.is_empty() {
        return Err(HostError::NoPeer { instance: instance.name.clone() });
    }
    let link = find(&instance.interface)?.clone();
    let interface = || instance.interface.clone();
    let source = match instance.source {
        Some(address) if snapshot.has_address(link.ifindex, address) => address,
        Some(source_address) => {
            return Err(HostError::SourceNotHere {
                instance: instance.name.clone(),
                interface: interface(),
                source_address,
            });
        }
        None => *sources.get(&(link.ifindex, instance.family)).ok_or_else(|| HostError::NoSource {
            instance: instance.name.clone(),
            interface: interface(),
            family: instance.family,
        })?,
    };
    let addresses = instance
        .virtual_addresses()
        .map(|address| {
            let device = find(address.device.as_deref().unwrap_or(&instance.interface))?;
            let Vmac { here, elsewhere, .. } = instance.vmac;
            let has_vmac = address.vmac || if device.ifindex == link.ifindex { here } else { elsewhere };
            Ok(LocalAddress {
                config: address.clone(),
                ifindex: device.ifindex,
                mac: device.mac,
                virtual_mac: has_vmac.then(|| instance.virtual_mac()),
                router: device.router && address.address.is_ipv6(),
            })
        })
        .collect::<Result<_, HostError>>()?;
    // One that is not there costs no role; it is found when it comes.
    let heartbeats = instance.heartbeats.iter().map(|name| Some(snapshot.link(name)?.ifindex)).collect();
    Ok(LocalInstance {
        link,
        heartbeats,
        source,
        accept: instance.accept,
        tagged: instance.tagged,
        addresses,
        needs_link: instance.track_primary,
        absent: None,
    })
}

/// RFC 9568 5.1.2.1: over IPv6 adverts come from a link-local address.
fn can_be_source(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Where packets for the virtual addresses can come in or go out: name by index.
pub fn xdp_interfaces(
    config: &Config,
    instances: &[LocalInstance],
    routes: &HashMap<IpAddr, Route>,
    snapshot: &Snapshot,
) -> BTreeMap<u32, String> {
    let vrrp = instances.iter().map(|instance| instance.link.ifindex);
    let devices = instances.iter().flat_map(|instance| instance.addresses.iter().map(|a| a.ifindex));
    let services: HashSet<IpAddr> = config.services.iter().map(|service| service.address).collect();
    let owned = snapshot.addresses.iter().filter(|a| services.contains(&a.address)).map(|a| a.ifindex);
    let egress = routes.values().map(|route| route.ifindex);
    vrrp.chain(devices)
        .chain(owned)
        .chain(egress)
        .filter_map(|ifindex| snapshot.link_at(ifindex))
        .filter(|link| !link.loopback && link.mac != [0; 6])
        .map(|link| (link.ifindex, link.name.clone()))
        .collect()
}

/// Whether the kernel routes between interfaces, which answers by NAT depend on.
pub fn forwards_packets() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|value| value.trim() != "0")
}

/// Whether the kernel asks for neighbours from an address that does not move.
pub fn asks_in_its_own_name(interface: &str) -> bool {
    let setting = |name: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/arp_announce");
        std::fs::read_to_string(path).ok().and_then(|value| value.trim().parse().ok()).unwrap_or(2)
    };
    let most: u8 = setting("all").max(setting(interface));
    most >= 2
}

/// Why an instance cannot take part, as the host is now.
fn fault(instance: &LocalInstance, snapshot: &Snapshot) -> Option<FaultCause> {
    if instance.absent.is_some() {
        return instance.absent;
    }
    let own = instance.link.ifindex;
    // keepalived tracks the interface and those that addresses are put on with `dev`.
    let interfaces = instance.addresses.iter().map(|address| address.ifindex).chain([own]);
    let links = interfaces.map(|ifindex| match snapshot.link_at(ifindex) {
        None => Some(FaultCause::InterfaceMissing),
        Some(link) if !link.running && (ifindex != own || instance.needs_link) => Some(FaultCause::LinkDown),
        Some(_) => None,
    });
    let source = || (!snapshot.has_address(own, instance.source)).then_some(FaultCause::SourceMissing);
    links.flatten().next().or_else(source)
}

/// Real servers that cannot be reached because of us, as opposed to because of them.
fn isolated(
    instances: &[LocalInstance],
    faults: &[Option<Option<FaultCause>>],
    routes: &HashMap<IpAddr, Route>,
) -> HashSet<IpAddr> {
    let cut: HashSet<u32> = instances
        .iter()
        .zip(faults)
        .filter(|(_, fault)| fault.flatten().is_some())
        .map(|(instance, _)| instance.link.ifindex)
        .collect();
    routes.iter().filter(|(_, route)| cut.contains(&route.ifindex)).map(|(real, _)| *real).collect()
}

/// Makes of what is seen what counts; returns when the next change may.
fn debounce(
    links: &mut HashMap<String, Debounce>,
    snapshot: &mut Snapshot,
    now: Monotonic,
) -> Option<Duration> {
    for link in &mut snapshot.links {
        if let Some(debounce) = links.get_mut(&link.name) {
            link.running = debounce.on_look(link.running, now) == Finding::Up;
        }
    }
    links.values().filter_map(|debounce| debounce.left(now)).min()
}

fn send_if_new<T: PartialEq>(channel: &watch::Sender<T>, value: T) {
    channel.send_if_modified(|known| {
        let modified = *known != value;
        *known = value;
        modified
    });
}

/// Keeps the host's addresses, the instances' faults and the next hops as they should be.
pub struct Host {
    pub netlink: Netlink,
    pub config: Config,
    pub instances: Vec<LocalInstance>,
    /// Of the real servers, for the next reload too, which asks only for those that are new.
    pub routes: watch::Sender<HashMap<IpAddr, Route>>,
    pub vrrp: driver::Handle,
    pub virtual_routes: routes::Routes,
    pub next_hops: watch::Sender<HashMap<IpAddr, NextHop>>,
    /// How many changes of role have been acted on.
    pub settled: watch::Sender<u64>,
    /// Names of the interfaces that are up and have a carrier.
    pub running: watch::Sender<HashSet<String>>,
    /// Real servers behind an interface whose instance is in FAULT.
    pub isolated: watch::Sender<HashSet<IpAddr>>,
    pub drifts: Drifts,
    /// Virtual addresses of masters that were seen in their place.
    pub placed: HashSet<Place>,
    /// Which of the addresses that checks depend on this host has.
    pub held: watch::Sender<HashSet<IpAddr>>,
    /// Neighbours that the XDP program has packets for, by interface.
    pub wanted: watch::Receiver<Vec<(u32, IpAddr)>>,
    /// Counts how often an interface came back as another, or with another MAC or source address: all that was
    /// made for the old one has to be made anew.
    pub moved: watch::Sender<u64>,
}

/// How often neighbours that are not known yet are asked for.
const UNRESOLVED: Duration = Duration::from_secs(1);
/// Every so many of these also the known ones are confirmed, so that a real server that moved to another MAC
/// is noticed even without checks.
const CONFIRM_EVERY: u32 = 10;
/// Routes that are asked for again with each of these, in turn, though no message told of a change.
const ROUTES_A_TICK: usize = 500;
/// Routes that are asked for before the host is looked at again, some milliseconds.
const ROUTES_A_LOOK: usize = 2000;

impl Host {
    /// Runs until cancelled. `roles` wakes it whenever an instance changed its state.
    pub async fn run(&mut self, mut roles: watch::Receiver<u64>, cancel: CancellationToken) {
        let mut tick = time::interval(UNRESOLVED);
        tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut ticks = 0u32;
        // Unknown: what an earlier task reported may be over.
        let mut faults = vec![None; self.instances.len()];
        let mut links = self.debounced_links();
        // Until a link's change may count.
        let mut patience = None;
        let mut down = HashSet::new();
        let reals: Vec<IpAddr> =
            ways::destinations(&self.config).collect::<BTreeSet<_>>().into_iter().collect();
        let mut in_turn = reals.iter().copied().cycle();
        // How many routes are in doubt; what changed while a reload was under way has been told to nobody. They go on in turn
        // when more changes, so that none waits for ever.
        let mut doubted = reals.len();
        // Those are told of once.
        let is_routeless = |real: &IpAddr| !self.routes.borrow().contains_key(real);
        let mut routeless: HashSet<IpAddr> = reals.iter().copied().filter(is_routeless).collect();
        loop {
            let mut topology = false;
            let mut probe = false;
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = self.netlink.changed() => {
                    topology = changed;
                    if changed {
                        doubted = reals.len();
                    }
                }
                Ok(()) = roles.changed() => {}
                () = time::sleep(patience.unwrap_or_default()), if patience.is_some() => {}
                Ok(()) = self.wanted.changed() => self.ask_for_wanted().await,
                () = std::future::ready(()), if doubted > 0 => {}
                _ = tick.tick() => {
                    probe = true;
                    ticks = ticks.wrapping_add(1);
                    // Also what no message told of is noticed some time.
                    topology = ticks.is_multiple_of(CONFIRM_EVERY);
                    if doubted == 0 {
                        doubted = reals.len().min(ROUTES_A_TICK);
                    }
                }
            }
            let roles_seen = *roles.borrow_and_update();
            let mut snapshot = match self.look().await {
                Ok(snapshot) => snapshot,
                Err(error) => {
                    tracing::error!(%error, "cannot look at the host, opening netlink anew");
                    match Netlink::open() {
                        Ok(netlink) => self.netlink = netlink,
                        Err(error) => tracing::error!(%error, "no netlink"),
                    }
                    time::sleep(UNRESOLVED).await;
                    continue;
                }
            };
            patience = debounce(&mut links, &mut snapshot, driver::clock());
            let running = snapshot.running();
            self.report_heartbeats(&running, &mut down);
            send_if_new(&self.running, running);
            self.report_faults(&snapshot, &mut faults);
            let isolated = isolated(&self.instances, &faults, &self.routes.borrow());
            send_if_new(&self.isolated, isolated);
            send_if_new(&self.held, self.held(&snapshot));
            self.settle_addresses(&snapshot).await;
            self.settle_routes(&snapshot, topology).await;
            self.settled.send_replace(roles_seen);
            // Roles do not wait for it: it does not depend on them.
            if topology || ticks <= 1 {
                virtual_macs::admit(&self.netlink, &virtual_macs::of(&self.instances)).await;
            }
            let located = locate(&self.config, &snapshot);
            let mut places = located.iter().zip(&self.instances);
            // One that has lost its place keeps what was made for it, in FAULT.
            if places.any(|(now, then)| now.as_ref().is_ok_and(|now| !now.is_as(then))) {
                // Told again with every look until it is done.
                self.moved.send_modify(|count| *count = count.wrapping_add(1));
            }
            // A route that went with its link is kept in mind: it says whom the link led to.
            let asked: Vec<IpAddr> = in_turn.by_ref().take(doubted.min(ROUTES_A_LOOK)).collect();
            doubted -= asked.len();
            match ways::routes(asked, &self.netlink).await {
                Ok(found) => {
                    for (real, route) in &found {
                        match route {
                            Some(_) => drop(routeless.remove(real)),
                            None if routeless.insert(*real) => ways::tell_routeless(*real),
                            None => {}
                        }
                    }
                    let found: Vec<_> =
                        found.into_iter().filter_map(|(real, route)| Some((real, route?))).collect();
                    self.routes.send_if_modified(|known| {
                        let has_news = found.iter().any(|(real, route)| known.get(real) != Some(route));
                        known.extend(found);
                        has_news
                    });
                }
                Err(error) => tracing::error!(%error, "routes are not followed"),
            }
            if probe {
                self.probe(&snapshot, ticks.is_multiple_of(CONFIRM_EVERY)).await;
            }
            let hops = ways::next_hops(&self.config, &self.routes.borrow(), &snapshot);
            send_if_new(&self.next_hops, hops);
            time::sleep(SETTLE).await;
        }
    }

    /// A list that was cut short by a change in its midst must not cost a role: what seems to be absent is looked
    /// for once more.
    async fn look(&self) -> Result<Snapshot, NetlinkError> {
        let snapshot = self.netlink.snapshot().await?;
        let is_absent = |instance: &LocalInstance| {
            matches!(
                fault(instance, &snapshot),
                Some(FaultCause::InterfaceMissing | FaultCause::SourceMissing)
            )
        };
        if self.instances.iter().any(is_absent) { self.netlink.snapshot().await } else { Ok(snapshot) }
    }

    /// Links whose changes count later. Where they stood is known from the task before this one.
    fn debounced_links(&self) -> HashMap<String, Debounce> {
        let running = self.running.borrow();
        let debounced = self.config.link_delays.iter().map(|delays| {
            let finding = if running.contains(&delays.interface) { Finding::Up } else { Finding::Down };
            (delays.interface.clone(), Debounce::new(delays.up, delays.down, finding))
        });
        debounced.collect()
    }

    /// A heartbeat interface without a link costs no role. A fault of the instance's own one tells itself.
    fn report_heartbeats(&self, running: &HashSet<String>, down: &mut HashSet<String>) {
        for interface in self.config.instances.iter().flat_map(|instance| &instance.heartbeats) {
            if running.contains(interface) {
                if down.remove(interface) {
                    tracing::info!(interface, "a heartbeat interface is up again");
                }
            } else if down.insert(interface.clone()) {
                tracing::warn!(interface, "a heartbeat interface is down");
            }
        }
    }

    fn report_faults(&self, snapshot: &Snapshot, known: &mut [Option<Option<FaultCause>>]) {
        for (i, (instance, known)) in self.instances.iter().zip(known).enumerate() {
            let now = fault(instance, snapshot);
            if *known != Some(now) {
                *known = Some(now);
                self.vrrp.fault(i, now);
            }
        }
    }

    fn is_master(&self, instance: usize) -> bool {
        self.vrrp.board().view(instance).is_some_and(|view| view.state == State::Master)
    }

    /// With `no_accept` a master has an address without showing it.
    fn held(&self, snapshot: &Snapshot) -> HashSet<IpAddr> {
        let reals = self.config.services.iter().flat_map(|service| &service.reals);
        let wanted: HashSet<IpAddr> =
            reals.flat_map(|real| &real.checks).filter_map(|it| it.only_with).collect();
        let masters = self.instances.iter().enumerate().filter(|(i, _)| self.is_master(*i));
        let virtual_ones =
            masters.flat_map(|(_, instance)| instance.addresses.iter().map(|a| a.config.address));
        let here: HashSet<IpAddr> =
            snapshot.addresses.iter().map(|a| a.address).chain(virtual_ones).collect();
        wanted.into_iter().filter(|address| here.contains(address)).collect()
    }

    async fn settle_addresses(&mut self, snapshot: &Snapshot) {
        for (ifindex, address) in addresses::missing(&self.config, snapshot) {
            if let Err(error) = self.netlink.add_address(ifindex, address).await {
                tracing::error!(%error, "static address is missing");
            }
        }
        let (add, remove) = addresses::work(&self.instances, |i| self.is_master(i), snapshot);
        let masters = self.instances.iter().enumerate().filter(|(i, _)| self.is_master(*i));
        let due: HashSet<Place> = masters
            .flat_map(|(_, instance)| &instance.addresses)
            .map(|a| (a.ifindex, a.config.address))
            .collect();
        self.placed.retain(|place| due.contains(place));
        self.placed
            .extend(due.into_iter().filter(|(ifindex, address)| snapshot.has_address(*ifindex, *address)));
        let place = |a: &LocalAddress| (a.ifindex, a.config.address);
        let mut gone: HashSet<Place> =
            add.iter().map(|a| place(a)).filter(|a| self.placed.contains(a)).collect();
        // A list that was cut short by a change in its midst is no reason to cry.
        if !gone.is_empty()
            && let Ok(again) = self.netlink.snapshot().await
        {
            gone.retain(|(ifindex, address)| !again.has_address(*ifindex, *address));
        }
        for address in add {
            let gone = gone.contains(&place(address));
            match self.netlink.add_address(address.ifindex, &address.config).await {
                Ok(()) if gone => {
                    tracing::warn!(address = %address.config.address, "a virtual address was gone, it is put back");
                    self.drifts.count(Drift::Addresses, 1);
                }
                Ok(()) => {}
                Err(error) => tracing::error!(%error, "virtual address is missing"),
            }
        }
        for address in remove {
            if let Err(error) = self.netlink.remove_address(&address).await {
                tracing::error!(%error, "virtual address is left");
            }
        }
    }

    /// After the addresses: routes may come from them.
    async fn settle_routes(&mut self, snapshot: &Snapshot, again: bool) {
        let Self { virtual_routes, config, instances, vrrp, netlink, drifts, .. } = self;
        let is_master = |i: usize| vrrp.board().view(i).is_some_and(|view| view.state == State::Master);
        virtual_routes.settle(config, instances, is_master, (netlink, snapshot), again, drifts).await;
    }

    async fn ask_for_wanted(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        for (ifindex, address) in wanted {
            self.ask_for(ifindex, address).await;
        }
    }

    async fn ask_for(&self, ifindex: u32, address: IpAddr) {
        if let Err(error) = self.netlink.probe_neighbour(ifindex, address).await {
            tracing::debug!(%error, "cannot ask for a neighbour");
        }
    }

    async fn probe(&self, snapshot: &Snapshot, all: bool) {
        let hops: HashSet<(u32, IpAddr)> = {
            let routes = self.routes.borrow();
            let hops = routes.values().filter(|route| !route.local);
            let hops = hops.map(|route| (route.ifindex, route.next_hop));
            hops.filter(|hop| all || !snapshot.neighbours.contains_key(hop)).collect()
        };
        // Thousands at once, and roles wait for it.
        let asked = hops.into_iter().map(|(ifindex, next_hop)| self.ask_for(ifindex, next_hop));
        stream::iter(asked).buffer_unordered(ways::AT_ONCE).collect::<()>().await;
    }
}

#[cfg(test)]
mod tests;
