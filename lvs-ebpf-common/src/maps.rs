//! Which maps exist, what they are called and how large they are.

/// Changes whenever a name, a size or a value layout changes. It is part of the directory in which
/// `lvsd` pins the maps, so that an upgraded daemon never adopts tables it would misread.
pub const LAYOUT: u32 = 7;

/// Name of the XDP program inside the object.
pub const PROGRAM: &str = "director";

/// Read-only global of the program, `u32`: 1 = some interface is a veth device. Frames then leave the interface they came
/// in on by bpf_redirect, not by XDP_TX: a veth rings its peer's bell after a redirect, but after XDP_TX only if the peer
/// has an XDP program too; without one the frame lies in the peer's ring until something else does. And checksums
/// may be left to be computed.
pub const VETH: &str = "VETH";

/// Read-only global of the program, `u32`: jiffies are shifted right by this to make a tick of the flow table, one to
/// two seconds.
pub const TICK_SHIFT: &str = "TICK_SHIFT";

/// Array of [`crate::TableRef`] words, one element: which half of [`SERVICES`] is live.
pub const TABLE: &str = "TABLE";
/// Array of [`crate::Service`]: two open-addressed tables of [`SERVICE_SLOTS`], one live.
pub const SERVICES: &str = "SERVICES";
/// Array of [`RingChunk`]: consistent-hash rings of all services, allocated in chunks. A ring with a moved slot is
/// followed by one chunk whose first word is the length of the ring of old owners (0 = there is none), and that ring.
pub const RINGS: &str = "RINGS";
/// Array of [`crate::Real`]: each service owns one contiguous range of it.
pub const REALS: &str = "REALS";
/// Array of [`crate::Address`], indexed by [`crate::Service::id`]: the addresses of the services of IPv6.
pub const ADDRESSES: &str = "ADDRESSES";
/// Per-CPU array of [`crate::Counter`], same index as [`REALS`].
pub const REAL_COUNTERS: &str = "REAL_COUNTERS";
/// Array of [`crate::flow_table::FlowSet`].
pub const FLOWS: &str = "FLOWS";
/// Array of `u64`, one element: the tick at which a flow was last remembered or met.
pub const FLOW_CLOCK: &str = "FLOW_CLOCK";
/// Array of [`crate::Turn`], indexed by [`crate::Service::id`].
pub const TURNS: &str = "TURNS";
/// Array of [`crate::Lease`].
pub const LEASES: &str = "LEASES";
/// Hash of address (network order `u32`) to [`crate::Vip`].
pub const VIPS: &str = "VIPS";
/// Hash of IPv6 address (16 bytes) to [`crate::Vip`]; and of [`crate::virtual_mac_key`], for frames to that MAC.
pub const VIPS6: &str = "VIPS6";
/// Array of [`crate::Interface`].
pub const INTERFACES: &str = "INTERFACES";
/// CPU map of one element, the first CPU: by it veth devices give the kernel what has got another MAC. They judge whom a
/// frame is for before the program runs, and only one that is built anew is judged again.
pub const TO_KERNEL: &str = "TO_KERNEL";
/// Ring of [`crate::Claim`]. Each load of the program has its own.
pub const CLAIMS: &str = "CLAIMS";
/// Hash of [`crate::ServiceKey`], a real server's address and port, to [`crate::Reply`]: who is reached by address
/// translation.
pub const REPLIES: &str = "REPLIES";
/// LRU hash of [`crate::NatFlow`] to [`crate::Face`].
pub const NAT_FLOWS: &str = "NAT_FLOWS";
/// LRU hash of a client's address (network order `u32`) to [`crate::LastHop`].
pub const CLIENTS: &str = "CLIENTS";
/// Array of [`crate::Wanted`]: towards clients, for the kernel to find.
pub const WANTED: &str = "WANTED";
/// Hash of [`crate::ServerId`] to an index into its service's range of [`REALS`]: whose connections say in their
/// identifiers where they belong.
pub const SERVER_IDS: &str = "SERVER_IDS";
/// Per-CPU array of `u64`, indexed by [`crate::ById`].
pub const BY_ID: &str = "BY_ID";
/// Per-CPU array of `u64`, indexed by [`crate::Outcome`].
pub const OUTCOMES: &str = "OUTCOMES";

/// Slots of one half of [`SERVICES`], a power of two. A service is in one of the two that its key names, see
/// [`crate::ServiceKey::homes`]; that fails when nearly half of them are used.
pub const SERVICE_SLOTS: u32 = 1 << 15;
/// Ring slots that one element of [`RINGS`] holds: one cache line.
pub const RING_CHUNK: usize = 32;
/// Elements of [`RINGS`], or more, as the configuration needs: 4 Mi ring slots, 8 MiB.
pub const RING_CHUNKS: u32 = 1 << 17;
/// Ring slot: flows that began before this slot changed its owner may be on another real server.
pub const MOVED: u16 = 1 << 15;
/// Ring slot: nobody owns it, for no real server takes new flows.
pub const NOBODY: u16 = MOVED - 1;
/// Elements of [`TURNS`]: as many services as [`SERVICES`] can hold.
pub const SERVICE_IDS: u32 = SERVICE_SLOTS / 2;
/// Elements of [`REALS`], [`REAL_COUNTERS`], [`REPLIES`] and [`SERVER_IDS`], or more, as the configuration needs.
pub const REAL_SLOTS: u32 = 1 << 16;
/// Reals that one service can address: a ring slot keeps 15 bits of index, one of which is [`NOBODY`].
pub const REALS_PER_SERVICE: u32 = NOBODY as u32;
/// Flows that [`NAT_FLOWS`] keeps, 12 MiB: those of services that share a real server, and of UDP.
pub const NAT_FLOW_SLOTS: u32 = 1 << 17;
/// Clients whose last hop is kept, 5 MiB.
pub const CLIENT_SLOTS: u32 = 1 << 16;
/// Elements of [`WANTED`], a power of two.
pub const WANTED_SLOTS: u32 = 64;
/// VRRP instances that one node can run.
pub const LEASE_SLOTS: u32 = 4096;
/// Elements of [`INTERFACES`].
pub const INTERFACE_SLOTS: u32 = 256;
/// Virtual addresses of one family that one node can answer for.
pub const VIP_SLOTS: u32 = 16384;

/// One element of [`RINGS`]: indexes into the owning service's range of [`REALS`], with [`MOVED`].
pub type RingChunk = [u16; RING_CHUNK];
