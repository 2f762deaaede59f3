//! What the kernel knows of links, addresses and neighbours, and the few things we ask it to change.
//!
//! Level-triggered: a change message only says "look again", so a lost message costs a little time, never
//! the truth.

mod rules;

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _};
use nix::errno::Errno;
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{
            AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
            AddressScope, CacheInfo,
        },
        link::{AfSpecInet6, AfSpecUnspec, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
            RouteType,
        },
    },
    sys::SocketAddr,
};

use crate::config::model::{RouteKind, VirtualAddress, VirtualRoute};

/// Two sockets: a storm of messages must not take the room that an answer needs.
pub struct Netlink {
    handle: Handle,
    messages: Messages,
}

type Messages = futures_channel::mpsc::UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// The kernel answers at once; an answer that has not come by then was lost.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub links: Vec<Link>,
    pub addresses: Addresses,
    /// Usable entries only.
    pub neighbours: HashMap<(u32, IpAddr), [u8; 6]>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    /// All zero where the link has none (loopback, tunnels).
    pub mac: [u8; 6],
    /// Administratively up and with carrier.
    pub running: bool,
    pub mtu: u32,
    pub loopback: bool,
    pub veth: bool,
    /// It forwards IPv6.
    pub router: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Address {
    pub ifindex: u32,
    pub address: IpAddr,
    pub prefix_len: u8,
    /// lvsd, or keepalived, has put it there. Linux before 5.18 does not remember.
    pub ours: bool,
}

/// In the kernel's order, and found by their places: there may be thousands, and as many are looked for.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    all: Vec<Address>,
    places: HashSet<(u32, IpAddr)>,
}

impl Addresses {
    pub fn iter(&self) -> std::slice::Iter<'_, Address> {
        self.all.iter()
    }
}

impl Extend<Address> for Addresses {
    fn extend<T: IntoIterator<Item = Address>>(&mut self, addresses: T) {
        for address in addresses {
            self.places.insert((address.ifindex, address.address));
            self.all.push(address);
        }
    }
}

/// Where the kernel would send a packet for a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub ifindex: u32,
    /// The gateway, or the real server itself where it is on the link.
    pub next_hop: IpAddr,
    /// The real server is this node.
    pub local: bool,
    /// What the kernel would send from.
    pub source: Option<IpAddr>,
    /// Where the route or what was learned of the path says less than the interface.
    pub mtu: Option<u32>,
}

#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("cannot open a netlink socket: {0}")]
    Open(#[from] std::io::Error),
    #[error("cannot {what}: {source}")]
    Request { what: String, source: rtnetlink::Error },
    #[error("cannot {what}: the kernel does not answer")]
    NoAnswer { what: String },
}

impl Snapshot {
    /// Names of the interfaces that are up and have a carrier.
    pub fn running(&self) -> HashSet<String> {
        self.links.iter().filter(|link| link.running).map(|link| link.name.clone()).collect()
    }

    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    pub fn link_at(&self, ifindex: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.ifindex == ifindex)
    }

    pub fn has_address(&self, ifindex: u32, address: IpAddr) -> bool {
        self.addresses.places.contains(&(ifindex, address))
    }
}

impl Netlink {
    /// Opens the sockets and spawns their readers on the current runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle, messages: listen()? })
    }

    /// Returns when something changed since the last call, together with all that waited; true where links,
    /// addresses or routes changed, false where only neighbours did.
    pub async fn changed(&mut self) -> bool {
        let Some(first) = self.messages.next().await else {
            // The reader gave up. What was missed meanwhile, a look will show.
            match listen() {
                Ok(messages) => self.messages = messages,
                Err(error) => {
                    tracing::error!(%error, "changes of the host are noticed late");
                    tokio::time::sleep(PATIENCE).await;
                }
            }
            return true;
        };
        let mut topology = is_topology(&first.0);
        while let Ok(message) = self.messages.try_recv() {
            topology |= is_topology(&message.0);
        }
        topology
    }

    pub async fn snapshot(&self) -> Result<Snapshot, NetlinkError> {
        let dump = async {
            let mut snapshot = Snapshot::default();
            let mut links = self.handle.link().get().execute();
            while let Some(message) = links.try_next().await? {
                snapshot.links.extend(link(&message));
            }
            let mut addresses = self.handle.address().get().execute();
            while let Some(message) = addresses.try_next().await? {
                snapshot.addresses.extend(address(&message));
            }
            let mut neighbours = self.handle.neighbours().get().execute();
            while let Some(message) = neighbours.try_next().await? {
                snapshot.neighbours.extend(neighbour(&message));
            }
            Ok(snapshot)
        };
        ask("list links, addresses and neighbours", dump).await
    }

    /// `None` where the kernel has no route.
    pub async fn route(&self, to: IpAddr) -> Result<Option<Route>, NetlinkError> {
        let question = match to {
            IpAddr::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).build(),
            IpAddr::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, 128).build(),
        };
        let mut answers = self.handle.route().get(question).execute();
        // Without a route the answer is an error (ENETUNREACH), which is an answer.
        let answer = async { Ok(answers.try_next().await.ok().flatten()) };
        let Some(answer) = ask(&format!("ask for the route to {to}"), answer).await? else { return Ok(None) };
        let mut route = Route {
            ifindex: 0,
            next_hop: to,
            local: answer.header.kind == RouteType::Local,
            source: None,
            mtu: None,
        };
        for attribute in answer.attributes {
            match attribute {
                RouteAttribute::Oif(ifindex) => route.ifindex = ifindex,
                RouteAttribute::PrefSource(source) => route.source = host(&source),
                RouteAttribute::Metrics(metrics) => {
                    route.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                RouteAttribute::Gateway(gateway) => route.next_hop = host(&gateway).unwrap_or(to),
                _ => {}
            }
        }
        Ok((route.ifindex != 0).then_some(route))
    }

    /// Has the kernel resolve a neighbour, or confirm the one it knows, as if a packet were waiting for it
    /// (NTF_USE, rtnetlink(7)).
    pub async fn probe_neighbour(&self, ifindex: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let probe = self.handle.neighbours().add(ifindex, address);
        let probe = probe.flags(NeighbourFlags::Use).state(NeighbourState::None).replace();
        ask(&format!("resolve {address}"), probe.execute()).await
    }

    /// Has the interface let frames for one more MAC in, beside its own: `bridge fdb add MAC dev IF self`. That outlives
    /// this process, as forwarding does, which membership by a socket (packet(7)) would not.
    pub async fn admit_mac(&self, ifindex: u32, mac: [u8; 6]) -> Result<(), NetlinkError> {
        let add = self.handle.neighbours().add_bridge(ifindex, &mac);
        let add = add.state(NeighbourState::Permanent).flags(NeighbourFlags::Own);
        ask("let frames for a virtual MAC in", add.replace().execute()).await
    }

    /// False: it was not let in.
    pub async fn forget_mac(&self, ifindex: u32, mac: [u8; 6]) -> Result<bool, NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = ifindex;
        message.header.state = NeighbourState::Permanent;
        message.header.flags = NeighbourFlags::Own;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        let request = self.handle.neighbours().del(message);
        let answer = async { unless(request.execute().await, Errno::ENOENT) };
        ask("forget a virtual MAC", answer).await
    }

    /// False: there is such a route already.
    pub async fn add_route(&self, route: &VirtualRoute, ifindex: Option<u32>) -> Result<bool, NetlinkError> {
        let request = self.handle.route().add(route_message(route, ifindex));
        let answer = async { unless(request.execute().await, Errno::EEXIST) };
        ask(&format!("add the route to {}/{}", route.to, route.prefix_len), answer).await
    }

    /// False: there was none.
    pub async fn remove_route(
        &self,
        route: &VirtualRoute,
        ifindex: Option<u32>,
    ) -> Result<bool, NetlinkError> {
        let request = self.handle.route().del(route_message(route, ifindex));
        let answer = async { unless(request.execute().await, Errno::ESRCH) };
        ask(&format!("remove the route to {}/{}", route.to, route.prefix_len), answer).await
    }

    pub async fn add_address(&self, ifindex: u32, address: &VirtualAddress) -> Result<(), NetlinkError> {
        let mut add = self.handle.address().add(ifindex, address.address, address.prefix_len);
        let message = add.message_mut();
        // The crate fills in a broadcast address, which `ip address add` and keepalived do only on request.
        message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
        message.attributes.extend(address.broadcast.map(AddressAttribute::Broadcast));
        message.attributes.extend(address.label.clone().map(AddressAttribute::Label));
        message.header.scope = AddressScope::from(address.scope);
        message.attributes.push(AddressAttribute::Flags(flags(address)));
        message.attributes.push(AddressAttribute::Protocol(OURS));
        let lifetime = |preferred| {
            let mut lifetime = CacheInfo::default();
            (lifetime.ifa_preferred, lifetime.ifa_valid) = (preferred, u32::MAX);
            lifetime
        };
        message.attributes.extend(address.preferred.map(lifetime).map(AddressAttribute::CacheInfo));
        ask(&format!("add {}", address.address), add.replace().execute()).await
    }

    pub async fn remove_address(&self, address: &Address) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = match address.address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.header.index = address.ifindex;
        message.header.prefix_len = address.prefix_len;
        message.attributes.push(AddressAttribute::Local(address.address));
        ask(&format!("remove {}", address.address), self.handle.address().del(message).execute()).await
    }
}

fn route_message(route: &VirtualRoute, ifindex: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match route.to {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.destination_prefix_length = route.prefix_len;
    message.header.protocol = RouteProtocol::KeepAlived;
    message.header.scope = RouteScope::from(route.scope);
    message.header.kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Prohibit => RouteType::Prohibit,
    };
    if route.onlink {
        message.header.flags |= RouteFlags::Onlink;
    }
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    };
    let destination = (route.prefix_len > 0).then(|| RouteAttribute::Destination(address(route.to)));
    let mtu = route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    let attributes = [
        destination,
        route.gateway.map(|gateway| RouteAttribute::Gateway(address(gateway))),
        route.source.map(|source| RouteAttribute::PrefSource(address(source))),
        ifindex.map(RouteAttribute::Oif),
        route.metric.map(RouteAttribute::Priority),
        Some(RouteAttribute::Table(route.table)),
        mtu,
    ];
    message.attributes.extend(attributes.into_iter().flatten());
    message
}

/// Of addresses, as RTPROT_KEEPALIVED of routes and rules.
const OURS: AddressProtocol = AddressProtocol::Other(18);

/// True if it was done, false if there was nothing to do because of `already`.
fn unless(answer: Result<(), rtnetlink::Error>, already: Errno) -> Result<bool, rtnetlink::Error> {
    match answer {
        Ok(()) => Ok(true),
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -(already as i32) => Ok(false),
        Err(error) => Err(error),
    }
}

/// How long changes are collected before the kernel is asked again: bounds the work that a storm of neighbour
/// messages can cause.
pub const SETTLE: Duration = Duration::from_millis(5);

fn listen() -> Result<Messages, NetlinkError> {
    let (connection, _, messages) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Neigh,
    ])?;
    tokio::spawn(connection);
    Ok(messages)
}

async fn ask<T>(
    what: &str,
    request: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, NetlinkError> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(answer) => answer.map_err(|source| NetlinkError::Request { what: what.to_owned(), source }),
        Err(_) => Err(NetlinkError::NoAnswer { what: what.to_owned() }),
    }
}

fn is_topology(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    !matches!(
        message.payload,
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewNeighbour(_) | RouteNetlinkMessage::DelNeighbour(_)
        )
    )
}

fn link(message: &LinkMessage) -> Option<Link> {
    let mut link = Link {
        ifindex: message.header.index,
        name: String::new(),
        mac: [0; 6],
        running: message.header.flags.contains(LinkFlags::Up | LinkFlags::Running),
        mtu: 0,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        veth: false,
        router: false,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::LinkInfo(infos) => {
                link.veth = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
            }
            LinkAttribute::AfSpecUnspec(families) => link.router = families.iter().any(forwards_v6),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().unwrap_or_default(),
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

/// A virtual address is usable at once: that nobody else has it is the lease's work.
fn flags(address: &VirtualAddress) -> AddressFlags {
    let wanted = address.flags;
    [
        (address.address.is_ipv6() && !wanted.detect_duplicates, AddressFlags::Nodad),
        (wanted.home, AddressFlags::Homeaddress),
        (wanted.manage_temporary, AddressFlags::Managetempaddr),
        (wanted.no_prefix_route, AddressFlags::Noprefixroute),
        (wanted.auto_join, AddressFlags::Mcautojoin),
    ]
    .into_iter()
    .filter_map(|(is_set, flag)| is_set.then_some(flag))
    .collect()
}

fn forwards_v6(family: &AfSpecUnspec) -> bool {
    let AfSpecUnspec::Inet6(parts) = family else { return false };
    parts.iter().any(|part| matches!(part, AfSpecInet6::DevConf(settings) if settings.forwarding != 0))
}

/// Of a duplicate the kernel makes no use, so it is none.
fn address(message: &AddressMessage) -> Option<Address> {
    if message.header.flags.contains(AddressHeaderFlags::Dadfailed) {
        return None;
    }
    // IPv4's own address is the local one, beside that of a peer. IPv6 has only the other attribute without a peer.
    let own = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    };
    let any = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    };
    let mut attributes = message.attributes.iter();
    let address = attributes.clone().find_map(own).or_else(|| attributes.find_map(any))?;
    let ours = message.attributes.contains(&AddressAttribute::Protocol(OURS));
    Some(Address { ifindex: message.header.index, address, prefix_len: message.header.prefix_len, ours })
}

fn host(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), [u8; 6])> {
    let usable = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Noarp
            | NeighbourState::Permanent
    );
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    usable.then_some(((message.header.ifindex, address?), mac?))
}
