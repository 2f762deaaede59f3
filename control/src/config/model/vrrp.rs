//! VRRP instances, what they track and what they say.

use lvs_ebpf_common::virtual_mac;

use super::*;

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
    pub vmac: Vmac,
    /// `vlan_tagged`: frames with VLAN tags are for the addresses too.
    pub tagged: bool,
    pub notify: Notify,
    pub tracks: Vec<Track>,
    /// `virtual_routes`.
    pub routes: Vec<VirtualRoute>,
    /// `virtual_rules`.
    pub routing_rules: Vec<VirtualRule>,
    /// Without `dont_track_primary`: the link of its own interface has to be up.
    pub track_primary: bool,
    /// So many adverts have to be missing before a master is down, 2..=100.
    pub down_timer_adverts: u32,
    /// `v3_checksum_as_v2`: as RFC 9568 has it, without a pseudo header.
    pub checksum_of_message: bool,
    pub old_checksum: OldChecksum,
    /// `unicast_fault_no_peer`: never by multicast.
    pub needs_peers: bool,
}

/// `old_unicast_checksum`: whether adverts to peers have the checksum of keepalived before 1.3.7.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OldChecksum {
    /// Once a peer's have.
    #[default]
    FoundOut,
    Always,
    Never,
}

impl VrrpInstance {
    /// All that moves.
    pub fn virtual_addresses(&self) -> impl Iterator<Item = &VirtualAddress> {
        self.addresses.iter().chain(&self.excluded)
    }

    pub fn virtual_mac(&self) -> [u8; 6] {
        virtual_mac(self.family == Family::V6, self.vrid.get())
    }

    /// The interfaces that adverts leave and come by, its own first.
    pub fn ways(&self) -> impl Iterator<Item = &str> {
        [&self.interface].into_iter().chain(&self.heartbeats).map(String::as_str)
    }
}

/// What has the virtual router's MAC (RFC 9568 7.3), not that of its interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vmac {
    /// `use_vmac`: addresses on the instance's interface.
    pub here: bool,
    /// `use_vmac_addr`: addresses on others.
    pub elsewhere: bool,
    /// Multicast adverts: with `use_vmac`, without `vmac_xmit_base`.
    pub adverts: bool,
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
    /// `use_vmac`: its MAC is the virtual router's, whatever the instance says.
    pub vmac: bool,
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
            vmac: false,
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
