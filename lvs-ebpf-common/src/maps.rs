//! Which maps exist, what they are called and how large they are.

/// Changes whenever a name, a size or a value layout changes. It is part of the directory in which
/// `lvsd` pins the maps, so that an upgraded daemon never adopts tables it would misread.
pub const LAYOUT: u32 = 1;

/// Name of the XDP program inside the object.
pub const PROGRAM: &str = "director";

/// Read-only global of the program, `u32`: 1 = frames leave the interface they came in on by bpf_redirect, not by
/// XDP_TX. A veth device rings its peer's bell after a redirect, but after XDP_TX only if the peer has an XDP
/// program too; without one the frame lies in the peer's ring until something else does.
pub const REDIRECT_BACK: &str = "REDIRECT_BACK";

/// Array of [`crate::TableRef`] words, one element: which half of [`SERVICES`] is live.
pub const TABLE: &str = "TABLE";
/// Array of [`crate::Service`]: two open-addressed tables of [`SERVICE_SLOTS`], one live.
pub const SERVICES: &str = "SERVICES";
/// Array of [`RingChunk`]: consistent-hash rings of all services, allocated in chunks.
pub const RINGS: &str = "RINGS";
/// Array of [`crate::Real`]: each service owns one contiguous range of it.
pub const REALS: &str = "REALS";
/// Per-CPU array of [`crate::Counter`], same index as [`REALS`].
pub const REAL_COUNTERS: &str = "REAL_COUNTERS";
/// Array of [`crate::Lease`].
pub const LEASES: &str = "LEASES";
/// Hash of address (network order `u32`) to [`crate::Vip`].
pub const VIPS: &str = "VIPS";
/// Per-CPU array of `u64`, indexed by [`crate::Outcome`].
pub const OUTCOMES: &str = "OUTCOMES";

/// Slots of one half of [`SERVICES`], a power of two. At most a third of them is ever used.
pub const SERVICE_SLOTS: u32 = 1 << 15;
/// A service is found in its home slot or in the one after it; userspace picks a seed for which that holds.
pub const SERVICE_PROBES: u32 = 2;
/// Ring slots that one element of [`RINGS`] holds: one cache line.
pub const RING_CHUNK: usize = 32;
/// Elements of [`RINGS`]: 4 Mi ring slots, 8 MiB.
pub const RING_CHUNKS: u32 = 1 << 17;
/// Elements of [`REALS`] and [`REAL_COUNTERS`].
pub const REAL_SLOTS: u32 = 1 << 16;
/// Reals that one service can address: a ring slot keeps 15 bits of index.
pub const REALS_PER_SERVICE: u32 = 1 << 15;
/// VRRP instances that one node can run.
pub const LEASE_SLOTS: u32 = 4096;
/// Virtual addresses that one node can answer for.
pub const VIP_SLOTS: u32 = 16384;

/// One element of [`RINGS`]: indexes into the owning service's range of [`REALS`].
pub type RingChunk = [u16; RING_CHUNK];
