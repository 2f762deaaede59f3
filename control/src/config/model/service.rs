//! Virtual servers and their real servers.

use std::fmt;

use lvs_ebpf_common::{ConnectionIds, ServerId};

use super::*;

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
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    pub scheduler: Scheduler,
    /// `ops`: each packet is placed by itself. Only with UDP and without persistence.
    pub one_packet: bool,
    /// `mh-port`, `sh-port`: the source port takes part in the hash.
    pub hash_port: bool,
    /// Of the real servers that do not have their own.
    pub forwarding: Forwarding,
    /// `dead_connections reset`: what is left of a dead real server's connections is reset.
    pub resets_dead: bool,
    pub persistence: Option<Persistence>,
    /// `quic_config_id`, and how long the real servers' IDs are.
    pub connection_ids: Option<ConnectionIds>,
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
    pub fn destinations(&self) -> impl Iterator<Item = IpAddr> {
        self.ways().map(|(address, _)| address)
    }

    /// The same, and how they get there.
    pub fn ways(&self) -> impl Iterator<Item = (IpAddr, Forwarding)> {
        let sorry = self.sorry.iter().map(|sorry| (sorry.address, sorry.forwarding));
        self.reals.iter().map(|real| (real.address, real.forwarding)).chain(sorry)
    }
}

/// `persistence_timeout`, `persistence_granularity`: a client's connections all go to one real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// After so long a silence it is a new client.
    pub timeout: Duration,
    /// Clients whose addresses begin with the same bits are one: 1 to 32, or to 128 over IPv6.
    pub prefix_len: u8,
}

/// What a real server writes into the connection IDs that it makes: 1 to 8 octets.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuicServerId {
    octets: [u8; 8],
    length: u8,
}

impl QuicServerId {
    /// None of too many octets, and of none.
    pub fn new(octets: &[u8]) -> Option<Self> {
        let length =
            u8::try_from(octets.len()).ok().filter(|length| (1..=ServerId::LONGEST).contains(length))?;
        let mut padded = [0; 8];
        padded.iter_mut().zip(octets).for_each(|(to, from)| *to = *from);
        Some(Self { octets: padded, length })
    }

    /// In octets.
    pub fn length(self) -> u8 {
        self.length
    }

    /// As [`ServerId::octets`] has it.
    pub fn padded(self) -> [u8; 8] {
        self.octets
    }
}

impl fmt::Display for QuicServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.octets.iter().take(self.length.into()).try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for QuicServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
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
    pub address: IpAddr,
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

/// `uthreshold`, `lthreshold`: how many connections a real server may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// With so many it gets no new ones.
    pub upper: u32,
    /// Until it has less than so many.
    pub lower: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RealServer {
    pub address: IpAddr,
    pub port: u16,
    pub forwarding: Forwarding,
    /// 0 = quiesced: no new flows.
    pub weight: u16,
    /// `inhibit_on_failure`: a failed server gets weight 0 instead of leaving.
    pub inhibit_on_failure: bool,
    pub limit: Option<Limit>,
    /// `slow_start`, `drain_timeout`.
    pub pace: Pace,
    /// `quic_server_id`.
    pub server_id: Option<QuicServerId>,
    /// `notify_up`, `notify_down`.
    pub notify: UpDown,
    /// All must succeed; none = always up.
    pub checks: Vec<Check>,
}
