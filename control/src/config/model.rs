//! What a configuration means once it has been read: valid by construction, no text left to interpret.

mod check;
mod mail;
mod route;

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher as _},
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use crate::{
    file_value::Initial,
    script::{Account, Script},
};

pub use check::*;
pub use mail::*;
pub use route::*;

/// Everything that one file (with its includes) says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    pub global: Global,
    pub trackers: Vec<Tracker>,
    pub instances: Vec<VrrpInstance>,
    pub groups: Vec<SyncGroup>,
    pub link_delays: Vec<LinkDelays>,
    /// `static_routes`: there while the daemon is.
    pub routes: Vec<VirtualRoute>,
    pub services: Vec<VirtualServer>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Global {
    /// Name of this node, logged at the start and in the status; the hostname where absent.
    pub router_id: Option<String>,
    pub timeouts: Timeouts,
    /// `vrrp_garp_interval` and `vrrp_gna_interval`: between two announcements on one interface.
    pub garp_interval: Duration,
    pub gna_interval: Duration,
    /// `vrrp_startup_delay` and `vrrp_delay_after_boot`: until when no instance takes part.
    pub startup_delay: Duration,
    pub delay_after_boot: Duration,
    pub log_unknown_vrids: bool,
    /// `notify_fifo` and `vrrp_notify_fifo`.
    pub fifos: Vec<Fifo>,
    /// `notify_fifo` and `lvs_notify_fifo`.
    pub lvs_fifos: Vec<Fifo>,
    pub mail: Option<Mail>,
    /// Interfaces may come after the start and go: nothing to complain of.
    pub dynamic_interfaces: bool,
    /// Where a real server stands at the start is told too.
    pub rs_init_notifies: bool,
    /// Whose members may use the control socket, by its number; root alone where absent.
    pub admin_group: Option<u32>,
}

/// `lvs_timeouts`: how long a silent flow is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub tcp: Duration,
    /// `tcpfin`: after a FIN or RST.
    pub tcp_fin: Duration,
    pub udp: Duration,
}

impl Default for Timeouts {
    /// The kernel's for IPVS.
    fn default() -> Self {
        let [tcp, tcp_fin, udp] = [900, 120, 300].map(Duration::from_secs);
        Self { tcp, tcp_fin, udp }
    }
}

/// A named pipe that is told of state changes, and whose it is if it has to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Fifo {
    pub path: PathBuf,
    pub account: Account,
    /// Runs as long as lvsd does, with the path as its last argument.
    pub reader: Option<Script>,
}

/// What runs when the state changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notify {
    pub master: Option<Script>,
    pub backup: Option<Script>,
    pub fault: Option<Script>,
    pub stop: Option<Script>,
    /// After the one of the state, with arguments that say what happened.
    pub any: Option<Script>,
    /// `notify_deleted`: an instance that the file has lost is DELETED, not in FAULT; and what runs then.
    pub says_deleted: bool,
    pub deleted: Option<Script>,
    /// When a master hears a lower priority.
    pub master_rx_lower_pri: Option<Script>,
    /// FIFOs are told of priorities too.
    pub priority_changes: bool,
    /// `smtp_alert`: somebody is mailed too.
    pub mail: bool,
}

/// What runs when a real server, or a service's quorum, comes or goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UpDown {
    // Boxed: few of many real servers have any.
    pub up: Option<Box<Script>>,
    pub down: Option<Box<Script>>,
    /// `smtp_alert`: somebody is mailed too.
    pub mail: bool,
}

/// VRRP virtual router identifier, 1..=255 (RFC 9568 5.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vrid(u8);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VridError {
    #[error("{got} is not in 1 to 255")]
    OutOfRange { got: i64 },
}

impl Vrid {
    pub fn new(got: i64) -> Result<Self, VridError> {
        match u8::try_from(got) {
            Ok(0) | Err(_) => Err(VridError::OutOfRange { got }),
            Ok(vrid) => Ok(Self(vrid)),
        }
    }
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// Configured VRRP priority, 1..=255; 255 = owner of the addresses (RFC 9568 5.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Priority(u8);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PriorityError {
    #[error("{got} is below 1 (0 means \"I resign\" on the wire)")]
    TooSmall { got: i64 },
    #[error("{got} is above 255")]
    TooLarge { got: i64 },
}

impl Priority {
    pub const OWNER: Self = Self(255);
    pub const DEFAULT: Self = Self(100);
    /// Everybody else goes first.
    pub const LAST: Self = Self(1);

    pub fn new(got: i64) -> Result<Self, PriorityError> {
        match u8::try_from(got) {
            Ok(0) => Err(PriorityError::TooSmall { got }),
            Ok(priority) => Ok(Self(priority)),
            Err(_) if got < 0 => Err(PriorityError::TooSmall { got }),
            Err(_) => Err(PriorityError::TooLarge { got }),
        }
    }
    pub const fn get(self) -> u8 {
        self.0
    }
    /// What comes of weights (keepalived: an owner is not made by them).
    pub fn clamped(sum: i64) -> Self {
        Self(sum.clamp(1, 254) as u8)
    }
    pub fn is_owner(self) -> bool {
        self == Self::OWNER
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Version {
    #[default]
    V2,
    V3,
}

/// The two Internet protocols. An instance speaks one of them (RFC 9568 1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Bits of an address.
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct VrrpInstance {
    pub name: String,
    pub interface: String,
    /// `heartbeat_interface`: adverts leave and count there too.
    pub heartbeats: Vec<String>,
    /// Of its adverts, and so of `source`, `peers`, `multicast` and `addresses`.
    pub family: Family,
    pub vrid: Vrid,
    pub priority: Priority,
    pub version: Version,
    /// v2: whole seconds 1..=255; v3: 10 ms..=40.95 s in steps of 10 ms.
    pub advert_interval: Duration,
    /// `state MASTER` (with priority 255 the node is master at once).
    pub start_as_master: bool,
    /// `unicast_src_ip` or `mcast_src_ip`; the interface's primary address where absent.
    pub source: Option<IpAddr>,
    /// `unicast_peer`; empty = multicast.
    pub peers: Vec<IpAddr>,
    /// Where multicast adverts go.
    pub multicast: IpAddr,
    /// Of what is sent to them.
    pub unicast_ttl: u8,
    pub ttl_limits: Vec<TtlLimit>,
    pub authentication: Authentication,
    pub signing: Option<Signing>,
    pub preempt: Preempt,
    /// `virtual_ipaddress`, in the order of the file: the order of the advert.
    pub addresses: Vec<VirtualAddress>,
    /// `virtual_ipaddress_excluded`: moved like the others but not in the advert, of either family.
    pub excluded: Vec<VirtualAddress>,
    pub garp: Garp,
    pub rules: Rules,
    /// The node itself takes packets for the addresses; only XDP where it does not.
    pub accept: bool,
    pub notify: Notify,
    pub tracks: Vec<Track>,
    /// `virtual_routes`.
    pub routes: Vec<VirtualRoute>,
    /// Without `dont_track_primary`: the link of its own interface has to be up.
    pub track_primary: bool,
    /// So many adverts have to be missing before a master is down, 2..=100.
    pub down_timer_adverts: u32,
    /// `v3_checksum_as_v2`: as RFC 9568 has it, without a pseudo header.
    pub checksum_of_message: bool,
}

impl VrrpInstance {
    /// All that moves.
    pub fn virtual_addresses(&self) -> impl Iterator<Item = &VirtualAddress> {
        self.addresses.iter().chain(&self.excluded)
    }

    /// The interfaces that adverts leave and come by, its own first.
    pub fn ways(&self) -> impl Iterator<Item = &str> {
        [&self.interface].into_iter().chain(&self.heartbeats).map(String::as_str)
    }
}

/// `vrrp_sync_group`. Its trackers are in the instances.
#[derive(Clone, Debug, PartialEq)]
pub struct SyncGroup {
    pub name: String,
    /// Indexes into [`Config::instances`]; an instance is in at most one group.
    pub members: Vec<usize>,
    pub notify: Notify,
}

/// A line of `interface_up_down_delays`: how long a link has to be down, or up, until it counts.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkDelays {
    pub interface: String,
    pub down: Duration,
    pub up: Duration,
}

/// Something outside of VRRP that instances depend on.
#[derive(Clone, Debug, PartialEq)]
pub enum Tracker {
    Script(TrackScript),
    /// An interface that has to be up, by its name.
    Interface(String),
    File(TrackFile),
    Process(TrackProcess),
}

impl Tracker {
    pub fn name(&self) -> &str {
        match self {
            Self::Script(script) => &script.name,
            Self::Interface(name) => name,
            Self::File(file) => &file.name,
            Self::Process(process) => &process.name,
        }
    }

    /// The word of the file that names it in an instance.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Script(_) => "track_script",
            Self::Interface(_) => "track_interface",
            Self::File(_) => "track_file",
            Self::Process(_) => "track_process",
        }
    }
}

/// `vrrp_script`.
#[derive(Clone, Debug, PartialEq)]
pub struct TrackScript {
    pub name: String,
    pub script: Script,
    pub interval: Duration,
    pub timeout: Duration,
    pub rise: u32,
    pub fall: u32,
    pub init_fail: bool,
}

/// `track_file`.
#[derive(Clone, Debug, PartialEq)]
pub struct TrackFile {
    pub name: String,
    pub path: PathBuf,
    /// `init_file`.
    pub initial: Option<Initial>,
}

/// `vrrp_track_process`.
#[derive(Clone, Debug, PartialEq)]
pub struct TrackProcess {
    pub name: String,
    /// What it is called; with `full_command` its first word.
    pub process: String,
    /// None: whatever they are.
    pub parameters: Option<(Vec<String>, ParamMatch)>,
    pub full_command: bool,
    /// How many have to run.
    pub quorum: RangeInclusive<u32>,
    pub fork_delay: Duration,
    pub terminate_delay: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamMatch {
    Exact,
    /// More may follow.
    Partial,
    /// The last one may go on.
    Initial,
}

/// What a tracker means to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Track {
    /// Index into [`Config::trackers`].
    pub tracker: usize,
    /// Zero: the instance is in FAULT while it is down. Above: added while it is up. Below: while it is down.
    /// The number of a file is multiplied by it; with zero, 0 is up.
    pub weight: i32,
    /// Up and down for zero, the sign for other weights, are the other way round.
    pub reverse: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub enum Authentication {
    #[default]
    None,
    /// Zero padded, VRRPv2 only (RFC 2338 5.3.6).
    Pass([u8; 8]),
    /// The key of an IPsec authentication header, zero padded, VRRPv2 only (RFC 2338 5.3.6.3).
    Ah([u8; 8]),
}

/// `auth_hmac`: every advert is signed (draft-cassen-vrrp-auth-hmac).
#[derive(Clone, Debug, PartialEq)]
pub struct Signing {
    pub keys: Vec<SigningKey>,
    /// The one that signs; all of them verify.
    pub active: u8,
    /// How far the clocks of sender and receiver may be apart; none with `anti_replay monotonic`.
    pub window: Option<Duration>,
    pub mode: SigningMode,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SigningKey {
    pub id: u8,
    pub secret: Secret,
}

/// What no log shows.
#[derive(Clone, PartialEq)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Two of them can be told apart, mostly, but not read.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{:04x}", fingerprint(&self.0) & 0xffff)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SigningMode {
    /// What is not signed is refused.
    #[default]
    Enforce,
    /// What is not signed counts too; what is signed must be signed well.
    Permissive,
    /// The same, and what is sent is not signed.
    ReceiveOnly,
}

/// As [`Secret`].
impl fmt::Debug for Authentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Pass(password) => write!(f, "PASS #{:04x}", fingerprint(password) & 0xffff),
            Self::Ah(key) => write!(f, "AH #{:04x}", fingerprint(key) & 0xffff),
        }
    }
}

fn fingerprint(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Preempt {
    #[default]
    Immediate,
    /// `preempt_delay`: how long a lower-priority master is tolerated first.
    After(Duration),
    /// `nopreempt`.
    Never,
}

#[derive(Clone, Debug, PartialEq)]
pub struct VirtualAddress {
    pub address: IpAddr,
    pub prefix_len: u8,
    /// `dev`; the instance's interface where absent.
    pub device: Option<String>,
    pub label: Option<String>,
    pub broadcast: Option<Ipv4Addr>,
    /// `scope`, as the kernel numbers it (0 = global).
    pub scope: u8,
    /// `preferred_lft`: for how many seconds the kernel may choose it as a source; for ever where absent.
    pub preferred: Option<u32>,
    pub flags: AddressFlags,
}

impl VirtualAddress {
    /// Without any further word.
    pub const fn of(address: IpAddr) -> Self {
        Self {
            address,
            prefix_len: Family::of(address).bits(),
            device: None,
            label: None,
            broadcast: None,
            scope: 0,
            preferred: None,
            flags: AddressFlags {
                detect_duplicates: false,
                home: false,
                manage_temporary: false,
                no_prefix_route: false,
                auto_join: false,
            },
        }
    }
}

/// What `ip address` has words for too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressFlags {
    /// `-nodad`: the kernel asks first whether another node has it, and uses it a second later.
    pub detect_duplicates: bool,
    pub home: bool,
    /// `mngtmpaddr`
    pub manage_temporary: bool,
    pub no_prefix_route: bool,
    pub auto_join: bool,
}

/// How an instance departs from the usual way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// As master it does not answer an advert of lower priority.
    pub lower_prio_no_advert: bool,
    /// As master it answers an advert of higher priority before it yields.
    pub higher_prio_send_advert: bool,
    /// With priority 255 it listens to nobody.
    pub owner_ignore_adverts: bool,
    /// The addresses in an advert are not compared while the sender stays the same.
    pub skip_check_adv_addr: bool,
    /// `strict_mode`.
    pub strict: bool,
}

/// `min_ttl` and `max_ttl` of a unicast_peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlLimit {
    pub peer: IpAddr,
    pub least: u8,
    pub most: u8,
}

/// Gratuitous ARP schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Garp {
    /// Frames of one burst, per address.
    pub repeat: u32,
    /// Second burst after becoming master; zero = none.
    pub delay: Duration,
    /// Period of the refresh while master; zero = none.
    pub refresh: Duration,
    pub refresh_repeat: u32,
    /// The same after an advert of lower priority; none where the first is zero.
    pub lower_prio_repeat: u32,
    pub lower_prio_delay: Duration,
}

impl Default for Garp {
    fn default() -> Self {
        let delay = Duration::from_secs(5);
        Self {
            repeat: 5,
            delay,
            refresh: Duration::ZERO,
            refresh_repeat: 1,
            lower_prio_repeat: 5,
            lower_prio_delay: delay,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// The scheduler by the word in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Scheduler {
    Rr,
    Wrr,
    Lc,
    #[default]
    Wlc,
    Lblc,
    Lblcr,
    Sh,
    Mh,
    Dh,
    Fo,
    Ovf,
    Sed,
    Nq,
    Twos,
}

impl Scheduler {
    pub const WORDS: [(&'static str, Self); 14] = [
        ("mh", Self::Mh),
        ("sh", Self::Sh),
        ("dh", Self::Dh),
        ("rr", Self::Rr),
        ("wrr", Self::Wrr),
        ("lc", Self::Lc),
        ("wlc", Self::Wlc),
        ("lblc", Self::Lblc),
        ("lblcr", Self::Lblcr),
        ("fo", Self::Fo),
        ("ovf", Self::Ovf),
        ("sed", Self::Sed),
        ("nq", Self::Nq),
        ("twos", Self::Twos),
    ];

    /// As `lvs_sched` has it.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, scheduler)| *scheduler == self).map_or("?", |(word, _)| word)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// `DR`: only the MAC is rewritten; the real server has the VIP on lo.
    Direct,
    /// `NAT`: address and port become the real server's, whose answers come back through the director.
    Nat,
    /// `TUN`: inside another packet, which the real server takes off. It has the VIP on lo too.
    Tunnel(Tunnel),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    Ipip,
    Gue { port: u16 },
    Gre,
}

impl Forwarding {
    /// As `lvs_method` has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Direct => "DR",
            Self::Nat => "NAT",
            Self::Tunnel(_) => "TUN",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct VirtualServer {
    pub address: Ipv4Addr,
    pub port: u16,
    pub protocol: Protocol,
    pub scheduler: Scheduler,
    /// `mh-port`, `sh-port`: the source port takes part in the hash.
    pub hash_port: bool,
    /// Of the real servers that do not have their own.
    pub forwarding: Forwarding,
    pub persistence: Option<Persistence>,
    pub quorum: Quorum,
    /// Takes the place of all real servers while there is no quorum.
    pub sorry: Option<SorryServer>,
    /// `quorum_up`, `quorum_down`.
    pub notify: UpDown,
    /// The scripts of what is up say that it goes down when the daemon stops.
    pub omega: bool,
    pub reals: Vec<RealServer>,
}

impl VirtualServer {
    /// All that its packets may be sent to.
    pub fn destinations(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.ways().map(|(address, _)| address)
    }

    /// Whether a real server, or the sorry server, gets its packets that way.
    pub fn reaches(&self, address: Ipv4Addr, forwarding: Forwarding) -> bool {
        self.ways().any(|way| way == (address, forwarding))
    }

    fn ways(&self) -> impl Iterator<Item = (Ipv4Addr, Forwarding)> {
        let sorry = self.sorry.iter().map(|sorry| (sorry.address, sorry.forwarding));
        self.reals.iter().map(|real| (real.address, real.forwarding)).chain(sorry)
    }
}

/// `persistence_timeout`, `persistence_granularity`: a client's connections all go to one real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// After so long a silence it is a new client.
    pub timeout: Duration,
    /// Clients whose addresses begin with the same bits are one: 1 to 32.
    pub prefix_len: u8,
}

/// Weight of living real servers that a service needs: lost below `weight - hysteresis`, gained again at
/// `weight + hysteresis`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    pub weight: u32,
    pub hysteresis: u32,
}

impl Default for Quorum {
    fn default() -> Self {
        Self { weight: 1, hysteresis: 0 }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct SorryServer {
    pub address: Ipv4Addr,
    pub port: u16,
    pub forwarding: Forwarding,
    /// `sorry_server_inhibit`: the connections it has may end there.
    pub inhibit: bool,
}

/// How slowly a real server comes and goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// `slow_start`: how long its weight takes to rise; zero = has it at once.
    pub slow_start: Duration,
    /// `drain_timeout`: how long connections may last while it drains; `None` = as long as they like.
    pub drain_timeout: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RealServer {
    pub address: Ipv4Addr,
    pub port: u16,
    pub forwarding: Forwarding,
    /// 0 = quiesced: no new flows.
    pub weight: u16,
    /// `inhibit_on_failure`: a failed server gets weight 0 instead of leaving.
    pub inhibit_on_failure: bool,
    /// `slow_start`, `drain_timeout`.
    pub pace: Pace,
    /// `notify_up`, `notify_down`.
    pub notify: UpDown,
    /// All must succeed; none = always up.
    pub checks: Vec<Check>,
}
