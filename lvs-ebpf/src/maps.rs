//! The maps themselves. Their names are those of `lvs_ebpf_common::maps`: the packet tests look each up.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, CpuMap, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use lvs_ebpf_common::{
    Address, ById, Counter, Face, Interface, LastHop, Lease, NatFlow, Outcome, Real, Reply, ServerId,
    Service, ServiceKey, Turn, Vip, Wanted,
    flow_table::{FlowSet, SETS},
    maps::{
        CLIENT_SLOTS, INTERFACE_SLOTS, LEASE_SLOTS, NAT_FLOW_SLOTS, REAL_SLOTS, RING_CHUNKS, RingChunk,
        SERVICE_IDS, SERVICE_SLOTS, VIP_SLOTS, WANTED_SLOTS,
    },
};

use crate::fragment::{self, FirstFragment, FragmentKey, FragmentKey6};

#[map]
pub static TABLE: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static SERVICES: Array<Service> = Array::with_max_entries(2 * SERVICE_SLOTS, BPF_F_MMAPABLE);
#[map]
pub static RINGS: Array<RingChunk> = Array::with_max_entries(RING_CHUNKS, BPF_F_MMAPABLE);
#[map]
pub static REALS: Array<Real> = Array::with_max_entries(REAL_SLOTS, BPF_F_MMAPABLE);
#[map]
pub static ADDRESSES: Array<Address> = Array::with_max_entries(SERVICE_IDS, BPF_F_MMAPABLE);
#[map]
pub static REAL_COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(REAL_SLOTS, 0);
#[map]
pub static FLOWS: Array<FlowSet> = Array::with_max_entries(SETS, BPF_F_MMAPABLE);
#[map]
pub static FLOW_CLOCK: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static TURNS: Array<Turn> = Array::with_max_entries(SERVICE_IDS, BPF_F_MMAPABLE);
#[map]
pub static LEASES: Array<Lease> = Array::with_max_entries(LEASE_SLOTS, BPF_F_MMAPABLE);
#[map]
pub static VIPS: HashMap<u32, Vip> = HashMap::with_max_entries(VIP_SLOTS, 0);
#[map]
pub static VIPS6: HashMap<[u8; 16], Vip> = HashMap::with_max_entries(VIP_SLOTS, 0);
#[map]
pub static INTERFACES: Array<Interface> = Array::with_max_entries(INTERFACE_SLOTS, BPF_F_MMAPABLE);
#[map]
pub static TO_KERNEL: CpuMap = CpuMap::with_max_entries(1, 0);
/// Whether this CPU's frame came for a virtual MAC; of no use to userspace.
#[map]
pub static TAKEN_UP: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static REPLIES: HashMap<ServiceKey, Reply> = HashMap::with_max_entries(REAL_SLOTS, 0);
#[map]
pub static NAT_FLOWS: LruHashMap<NatFlow, Face> = LruHashMap::with_max_entries(NAT_FLOW_SLOTS, 0);
#[map]
pub static CLIENTS: LruHashMap<u32, LastHop> = LruHashMap::with_max_entries(CLIENT_SLOTS, 0);
#[map]
pub static WANTED: Array<Wanted> = Array::with_max_entries(WANTED_SLOTS, BPF_F_MMAPABLE);
/// Takes memory for what is in it alone: few have any.
#[map]
pub static SERVER_IDS: HashMap<ServerId, u32> = HashMap::with_max_entries(REAL_SLOTS, BPF_F_NO_PREALLOC);
#[map]
pub static BY_ID: PerCpuArray<u64> = PerCpuArray::with_max_entries(ById::COUNT, 0);
#[map]
pub static OUTCOMES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Outcome::COUNT, 0);
/// Full, it loses claims: whoever makes them will make more.
#[map]
pub static CLAIMS: RingBuf = RingBuf::with_byte_size(1 << 14, 0);
/// When a claim was last told, for each lease; of no use to userspace.
#[map]
pub static CLAIMED: Array<u64> = Array::with_max_entries(LEASE_SLOTS, 0);
/// Of no use to userspace, and too short-lived to outlast the program.
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FirstFragment> =
    LruHashMap::with_max_entries(fragment::SLOTS, 0);
#[map]
pub static FRAGMENTS6: LruHashMap<FragmentKey6, FirstFragment> =
    LruHashMap::with_max_entries(fragment::SLOTS, 0);
/// When each kind of event was last logged; of no use to userspace.
#[map]
pub static LOGGED: Array<u64> = Array::with_max_entries(crate::event::KINDS, 0);
