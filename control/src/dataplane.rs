//! Owner of the BPF objects: loads and attaches the program, and carries table changes into its maps.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::atomic::Ordering,
    thread,
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{CpuMap, HashMap as BpfHash, Map, MapData, MapError, PerCpuArray, RingBuf},
    programs::{ProgramError, Xdp},
};
use lvs_ebpf_common::{
    Address, ById, Counter, Interface, Outcome, Real, Reply, RingRef, ServerId, Service, ServiceKey,
    TableRef, Turn, Vip, Wanted, maps,
};
use nix::libc;

use self::{
    attach::Attachment,
    flows::{Flows, Tick},
    lease::LeaseMap,
    mapped::Mapped,
    pins::{Pins, PinsError},
    plan::{Desired, DesiredService, Endpoint, PlanError, Room, Seen, Source, Tables, Write},
};
use crate::{
    clock::monotonic,
    config::model::Timeouts,
    drift::{Drift, Drifts},
};

mod attach;
mod attempt;
#[cfg(test)]
mod distribution;
mod flows;
pub mod lease;
mod maglev;
mod mapped;
mod pins;
pub mod plan;
mod ring;
pub mod turns;

pub use attempt::Attempt;
pub use pins::PINNED;

/// The compiled XDP program.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/director"));

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the network stack, after the driver: any interface, several times slower.
    Generic,
    /// Native, else generic with a warning.
    Auto,
}

#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    #[error(transparent)]
    Pins(#[from] PinsError),
    #[error(
        "the kernel refused the XDP program (Linux 5.10 or later with CONFIG_BPF_SYSCALL is needed): {0}"
    )]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the XDP object lacks {0}")]
    Incomplete(&'static str),
    #[error("cannot map {map} into memory: {source}")]
    Mapping { map: &'static str, source: io::Error },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("cannot change the addresses that the XDP program knows: {0}")]
    Addresses(#[from] MapError),
    #[error("another XDP program is attached to {interface}; `ip link show {interface}` names it")]
    Busy { interface: String },
    #[error("the driver of {interface} refused XDP in {mode} mode: {reason}")]
    Refused { interface: String, mode: &'static str, reason: String },
}

pub struct Dataplane {
    ebpf: Ebpf,
    pins: Pins,
    tables: Tables,
    maps: Maps,
    flows: Flows,
    /// When the flow table was last looked at.
    looked: Duration,
    outcomes: PerCpuArray<MapData, u64>,
    by_id: PerCpuArray<MapData, u64>,
    leases: MapData,
    wanted: Mapped<Wanted>,
    /// By interface.
    links: HashMap<u32, Attachment>,
    /// Numbers of the maps that are pinned.
    pinned: Vec<(&'static str, u32)>,
}

/// What [`Tables`] is an image of.
struct Maps {
    table: Mapped<u64>,
    services: Mapped<Service>,
    addresses: Mapped<Address>,
    rings: Mapped<maps::RingChunk>,
    reals: Mapped<Real>,
    turns: Mapped<Turn>,
    vips: Vips,
    interfaces: Mapped<Interface>,
    replies: BpfHash<MapData, ServiceKey, Reply>,
    server_ids: BpfHash<MapData, ServerId, u32>,
    real_counters: PerCpuArray<MapData, Counter>,
}

/// `VIPS` and `VIPS6`.
struct Vips {
    v4: BpfHash<MapData, u32, Vip>,
    v6: BpfHash<MapData, [u8; 16], Vip>,
}

/// So many may wait for the first CPU; more are dropped.
const FRAMES_TO_KERNEL: u32 = 2048;

/// How often the flow table is looked at while it is in use; it takes some milliseconds.
const LOOK: Duration = Duration::from_secs(1);

impl Dataplane {
    /// Loads the program. Maps that an earlier daemon left pinned below `run_dir` are taken over as they are, if its program is
    /// still attached anywhere: others serve nobody. `veth`: one of the interfaces is such a device. `room`: how large new maps
    /// are to be.
    pub fn open(run_dir: &Path, veth: bool, room: Room) -> Result<(Self, Attempt), DataplaneError> {
        let pins = Pins::mount(run_dir)?;
        let adopts = !pins.all_links().is_empty();
        let attempt = Attempt::new((!adopts).then_some(run_dir));
        if !adopts {
            pins.forget_maps()?;
        }
        let veth = u32::from(veth);
        let tick = Tick::of_this_kernel();
        let mut loader = EbpfLoader::new();
        loader.override_global(maps::VETH, &veth, true);
        loader.override_global(maps::TICK_SHIFT, &tick.shift, true);
        for name in [maps::REALS, maps::REAL_COUNTERS, maps::REPLIES, maps::SERVER_IDS] {
            loader.map_max_entries(name, room.reals);
        }
        loader.map_max_entries(maps::RINGS, room.chunks);
        for (name, path) in pins.map_pins() {
            loader.map_pin_path(name, path);
        }
        let mut ebpf = loader.load(OBJECT).map_err(load_error)?;
        let pinned = pins.map_ids();
        load(xdp(&mut ebpf)?).map_err(load_error)?;

        let maps = Maps {
            table: mapped(&mut ebpf, maps::TABLE)?,
            services: mapped(&mut ebpf, maps::SERVICES)?,
            addresses: mapped(&mut ebpf, maps::ADDRESSES)?,
            rings: mapped(&mut ebpf, maps::RINGS)?,
            reals: mapped(&mut ebpf, maps::REALS)?,
            turns: mapped(&mut ebpf, maps::TURNS)?,
            vips: Vips {
                v4: BpfHash::try_from(take(&mut ebpf, maps::VIPS)?).map_err(load_error)?,
                v6: BpfHash::try_from(take(&mut ebpf, maps::VIPS6)?).map_err(load_error)?,
            },
            interfaces: mapped(&mut ebpf, maps::INTERFACES)?,
            replies: BpfHash::try_from(take(&mut ebpf, maps::REPLIES)?).map_err(load_error)?,
            server_ids: BpfHash::try_from(take(&mut ebpf, maps::SERVER_IDS)?).map_err(load_error)?,
            real_counters: PerCpuArray::try_from(take(&mut ebpf, maps::REAL_COUNTERS)?)
                .map_err(load_error)?,
        };
        if veth != 0 {
            let mut kernel = CpuMap::try_from(take(&mut ebpf, maps::TO_KERNEL)?).map_err(load_error)?;
            if let Err(error) = kernel.set(0, FRAMES_TO_KERNEL, None, 0) {
                tracing::warn!(%error, "with use_vmac, services of this host itself get no packets");
            }
        }
        let now = monotonic();
        let (sets, clock) = (take_array(&mut ebpf, maps::FLOWS)?, take_array(&mut ebpf, maps::FLOW_CLOCK)?);
        let flows = Flows::map(sets.fd(), clock.fd(), tick, now)
            .map_err(|source| DataplaneError::Mapping { map: maps::FLOWS, source })?;
        let outcomes = PerCpuArray::try_from(take(&mut ebpf, maps::OUTCOMES)?).map_err(load_error)?;
        let by_id = PerCpuArray::try_from(take(&mut ebpf, maps::BY_ID)?).map_err(load_error)?;
        let leases = take_array(&mut ebpf, maps::LEASES)?;
        let wanted = mapped(&mut ebpf, maps::WANTED)?;
        let tables = maps.read(now);
        let dataplane = Self {
            ebpf,
            pins,
            tables,
            maps,
            flows,
            looked: now,
            outcomes,
            by_id,
            leases,
            wanted,
            links: HashMap::new(),
            pinned,
        };
        Ok((dataplane, attempt))
    }

    pub fn leases(&self) -> Result<LeaseMap, DataplaneError> {
        LeaseMap::map(self.leases.fd())
            .map_err(|source| DataplaneError::Mapping { map: maps::LEASES, source })
    }

    /// What the program tells of hosts that claim virtual addresses. To be taken once.
    pub fn claims(&mut self) -> Result<RingBuf<MapData>, DataplaneError> {
        RingBuf::try_from(take(&mut self.ebpf, maps::CLAIMS)?).map_err(load_error)
    }

    /// For aya-log, which reads the program's log ring.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Brings the tables to `desired`. Blocks for a grace period where something is taken away. Where there is no room for all
    /// that comes beside all that goes, it comes afterwards.
    pub fn apply(&mut self, desired: &Desired) -> Result<(), DataplaneError> {
        let mut planned = self.tables.plan(desired, &self.maps, monotonic());
        if matches!(planned, Err(PlanError::NoRoomForRing { .. } | PlanError::NoRoomForReals { .. })) {
            let departures = self.tables.plan_departures(desired, &self.maps, monotonic())?;
            self.carry_out(departures)?;
            self.apply_services(&desired.services)?;
            planned = self.tables.plan(desired, &self.maps, monotonic());
        }
        self.carry_out(planned?)
    }

    /// The same where these services are not as they were and all else is. Where there is no room for all new rings beside
    /// the old ones, they change in turn.
    pub fn apply_services(&mut self, services: &[DesiredService]) -> Result<(), DataplaneError> {
        match self.tables.plan_services(services, &self.maps, monotonic()) {
            Err(PlanError::NoRoomForRing { .. }) if services.len() > 1 => {
                let (some, others) = services.split_at(services.len() / 2);
                self.apply_services(some)?;
                self.apply_services(others)
            }
            planned => self.carry_out(planned?),
        }
    }

    /// Whether the flow table is to be looked at. To be asked a few times a second.
    pub fn is_due(&self) -> bool {
        let waited = monotonic().saturating_sub(self.looked);
        self.tables.uses_flow_table() && waited >= LOOK || self.tables.has_taken_turns(&self.maps)
    }

    /// Looks at the flow table and brings the tables to what the flows tell.
    pub fn settle(&mut self, timeouts: Timeouts) -> Result<(), DataplaneError> {
        let now = monotonic();
        self.looked = now;
        let mut survey = self.tables.survey(timeouts);
        self.flows.sweep(now, |flow| survey.meet(flow));
        let found = survey.finish();
        let writes = self.tables.settle(&found, timeouts, &self.maps, now);
        self.carry_out(writes)
    }

    /// Puts back what something else has changed of the tables, of where the program is attached, and of what is pinned.
    /// To be called every few seconds.
    pub fn mend(&mut self, drifts: &Drifts) -> Result<(), DataplaneError> {
        let writes = self.tables.repairs(&self.maps);
        if !writes.is_empty() {
            tracing::warn!(
                elements = writes.len(),
                "something else has changed the tables, they are put back"
            );
            drifts.count(Drift::Tables, writes.len());
            self.carry_out(writes)?;
        }
        let restored = self.pins.restore(&self.pinned)?;
        if restored > 0 {
            tracing::warn!(maps = restored, "tables were not pinned any more, they are again");
            drifts.count(Drift::Pins, restored);
        }
        self.mend_attachments(drifts)
    }

    fn carry_out(&mut self, writes: Vec<Write>) -> Result<(), DataplaneError> {
        for write in writes {
            let done = match &write {
                Write::Forget { ids } => {
                    self.flows.forget(ids);
                    Ok(())
                }
                Write::Grace => {
                    wait_for_every_cpu();
                    Ok(())
                }
                write => self.maps.write(write),
            };
            if let Err(error) = done {
                // The image is ahead of the maps now: look at them again, so that the next plan mends it.
                self.tables = self.maps.read(monotonic());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Neighbours that packets wait for, since the last call: interface and address.
    pub fn take_wanted(&mut self) -> Vec<(u32, IpAddr)> {
        let taken = (0..maps::WANTED_SLOTS).map(|slot| self.wanted.word(slot, 0).swap(0, Ordering::Relaxed));
        taken
            .filter(|word| *word != 0)
            .map(|word| {
                let Wanted { address, ifindex } = zerocopy::transmute!(word);
                (ifindex, Ipv4Addr::from(address.to_ne_bytes()).into())
            })
            .collect()
    }

    /// As [`Tables::was_up`], by the tables as they were found.
    pub fn was_up(&self, key: &Endpoint, address: IpAddr, port: u16, inhibits: bool) -> Option<bool> {
        self.tables.was_up(key, address, port, inhibits)
    }

    /// What a real server was sent, over all CPUs.
    pub fn counter(&self, key: &Endpoint, address: IpAddr, port: u16) -> Counter {
        let values =
            self.tables.real_index(key, address, port).and_then(|i| self.maps.real_counters.get(&i, 0).ok());
        values.iter().flat_map(|values| values.iter()).fold(Counter::default(), |sum, cpu| Counter {
            packets: sum.packets + cpu.packets,
            bytes: sum.bytes + cpu.bytes,
        })
    }

    /// Packets by fate, over all CPUs.
    pub fn outcomes(&self) -> Vec<(Outcome, u64)> {
        Outcome::ALL.iter().map(|outcome| (*outcome, sum(&self.outcomes, *outcome as u32))).collect()
    }

    /// What was made of server IDs in QUIC packets, over all CPUs.
    pub fn by_id(&self) -> Vec<(ById, u64)> {
        ById::ALL.iter().map(|what| (*what, sum(&self.by_id, *what as u32))).collect()
    }

    /// Detaches everywhere and removes all that was pinned.
    pub fn close(self) -> Result<(), DataplaneError> {
        let Self { pins, links, ebpf, .. } = self;
        drop(links);
        pins.remove()?;
        drop(ebpf);
        Ok(())
    }
}

/// The virtual addresses in the tables that a killed daemon left below `run_dir`.
pub fn left_vips(run_dir: &Path) -> Vec<(IpAddr, Vip)> {
    // Paths of pins lead through its descriptor: it has to live as long.
    let Some(pins) = Pins::existing(run_dir) else { return Vec::new() };
    let map = |wanted| {
        let (_, path) = pins.map_pins().find(|(name, _)| *name == wanted)?;
        MapData::from_pin(path).ok().map(Map::HashMap)
    };
    let v4 = map(maps::VIPS).and_then(|map| BpfHash::try_from(map).ok());
    let v6 = map(maps::VIPS6).and_then(|map| BpfHash::try_from(map).ok());
    let (Some(v4), Some(v6)) = (v4, v6) else { return Vec::new() };
    Vips { v4, v6 }.all().collect()
}

/// Removes what a killed daemon left below `run_dir`. False where there is nothing.
pub fn unload(run_dir: &Path) -> Result<bool, DataplaneError> {
    match Pins::existing(run_dir) {
        Some(pins) => pins.remove().map(|()| true).map_err(Into::into),
        None => Ok(false),
    }
}

fn sum(counters: &PerCpuArray<MapData, u64>, index: u32) -> u64 {
    counters.get(&index, 0).map_or(0, |values| values.iter().sum())
}

const RING_WORD: usize = std::mem::offset_of!(Service, ring) / 8;
const SEQUENCE_WORD: usize = std::mem::offset_of!(Turn, sequence) / 8;

/// The verifier gives up with EAGAIN where a signal is pending, which says nothing of the program.
pub fn load(program: &mut Xdp) -> Result<(), ProgramError> {
    const TRIES: usize = 5;
    for _ in 1..TRIES {
        match program.load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {
            }
            done => return done,
        }
    }
    program.load()
}

fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp, DataplaneError> {
    ebpf.program_mut(maps::PROGRAM)
        .and_then(|program| program.try_into().ok())
        .ok_or(DataplaneError::Incomplete(maps::PROGRAM))
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, DataplaneError> {
    ebpf.take_map(name).ok_or(DataplaneError::Incomplete(name))
}

fn take_array(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, DataplaneError> {
    match take(ebpf, name)? {
        Map::Array(data) => Ok(data),
        _ => Err(DataplaneError::Incomplete(name)),
    }
}

fn mapped<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<Mapped<T>, DataplaneError>
where
    T: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable,
{
    let map = take_array(ebpf, name)?;
    // One that was left pinned may have another size than a new one would.
    let len = map.info().map_err(load_error)?.max_entries();
    Mapped::map(map.fd(), len).map_err(|source| DataplaneError::Mapping { map: name, source })
}

fn load_error(error: impl std::error::Error + Send + Sync + 'static) -> DataplaneError {
    DataplaneError::Load(Box::new(error))
}

impl Maps {
    fn read(&self, now: Duration) -> Tables {
        Tables::read(
            TableRef::unpack(self.table.read(0)),
            self.services.read_all(),
            self.reals.read_all(),
            self.vips.all().collect(),
            self.replies.iter().flatten().collect(),
            self,
            now,
        )
    }

    fn write(&mut self, write: &Write) -> Result<(), DataplaneError> {
        match write {
            Write::Real { index, real } => self.reals.write(*index, real),
            Write::Count { index, from } => self.count(*index, *from)?,
            Write::Ring { chunk, slots } => self.rings.write(*chunk, slots),
            Write::Address { id, address } => self.addresses.write((*id).into(), address),
            Write::Service { slot, service } => self.services.write(*slot, service),
            Write::ServiceRing { slot, ring } => {
                self.services.word(*slot, RING_WORD).store(ring.pack(), Ordering::Release);
            }
            Write::Turns { id, sequence } => {
                self.turns.word((*id).into(), SEQUENCE_WORD).store(sequence.pack(), Ordering::Release);
            }
            Write::Table(table) => self.table.word(0, 0).store(table.pack(), Ordering::Release),
            Write::Vip { address, vip } => self.vips.insert(*address, vip)?,
            Write::VipGone { address } => gone(self.vips.remove(*address))?,
            Write::Interface { slot, interface } => self.interfaces.write(*slot, interface),
            Write::Reply { key, reply } => self.replies.insert(key, reply, 0)?,
            Write::ReplyGone { key } => gone(self.replies.remove(key))?,
            Write::ServerId { key, index } => self.server_ids.insert(key, index, 0)?,
            Write::ServerIdGone { key } => gone(self.server_ids.remove(key))?,
            // Not of these maps.
            Write::Forget { .. } | Write::Grace => {}
        }
        Ok(())
    }
}

impl Maps {
    fn count(&mut self, index: u32, from: Option<u32>) -> Result<(), MapError> {
        let before = self.real_counters.get(&index, 0)?;
        let counters = match from {
            Some(from) => self.real_counters.get(&from, 0)?.to_vec(),
            None => vec![Counter::default(); before.len()],
        };
        if **before != *counters {
            self.real_counters.set(index, counters.try_into()?, 0)?;
        }
        Ok(())
    }
}

impl Vips {
    fn all(&self) -> impl Iterator<Item = (IpAddr, Vip)> {
        let v4 = self
            .v4
            .iter()
            .flatten()
            .map(|(address, vip)| (Ipv4Addr::from(address.to_ne_bytes()).into(), vip));
        v4.chain(self.v6.iter().flatten().map(|(address, vip)| (address.into(), vip)))
    }

    fn insert(&mut self, address: IpAddr, vip: &Vip) -> Result<(), MapError> {
        match address {
            IpAddr::V4(address) => self.v4.insert(u32::from_ne_bytes(address.octets()), vip, 0),
            IpAddr::V6(address) => self.v6.insert(address.octets(), vip, 0),
        }
    }

    fn remove(&mut self, address: IpAddr) -> Result<(), MapError> {
        match address {
            IpAddr::V4(address) => self.v4.remove(&u32::from_ne_bytes(address.octets())),
            IpAddr::V6(address) => self.v6.remove(&address.octets()),
        }
    }
}

impl Source for Maps {
    fn room(&self) -> Room {
        Room { reals: self.reals.len(), chunks: self.rings.len() }
    }

    fn address(&self, id: u16) -> Address {
        self.addresses.read(id.into())
    }

    fn chunk(&self, chunk: u32) -> maps::RingChunk {
        self.rings.read(chunk)
    }

    fn turns(&self, id: u16) -> RingRef {
        RingRef::unpack(self.turns.read(id.into()).sequence)
    }

    fn taken(&self, id: u16) -> u64 {
        self.turns.read(id.into()).taken
    }

    fn server_ids(&self) -> HashMap<ServerId, u32> {
        self.server_ids.iter().flatten().collect()
    }

    fn interface(&self, slot: u32) -> Interface {
        self.interfaces.read(slot)
    }

    fn has_forwarded(&self, reals: std::ops::Range<u32>) -> bool {
        let counters = reals.filter_map(|index| self.real_counters.get(&index, 0).ok());
        counters.flat_map(|cpus| cpus.iter().copied().collect::<Vec<_>>()).any(|counter| counter.packets > 0)
    }
}

impl Seen for Maps {
    fn table(&self) -> TableRef {
        TableRef::unpack(self.table.read(0))
    }

    fn service(&self, slot: u32) -> Service {
        self.services.read(slot)
    }

    fn real(&self, index: u32) -> Real {
        self.reals.read(index)
    }

    fn vips(&self) -> HashMap<IpAddr, Vip> {
        self.vips.all().collect()
    }

    fn replies(&self) -> HashMap<ServiceKey, Reply> {
        self.replies.iter().flatten().collect()
    }
}

/// Something else may have removed it first.
fn gone(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Returns when every CPU has left code that may have read what was unpublished before the call:
/// MEMBARRIER_CMD_GLOBAL waits for an RCU grace period (membarrier(2)), and XDP programs run inside one.
fn wait_for_every_cpu() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: membarrier reads no memory of ours.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if done != 0 {
        // Refused with nohz_full CPUs. No packet takes this long.
        thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

    #[test]
    fn what_something_else_has_removed_is_gone_and_other_errors_are_errors() {
        for (kind, is_gone) in [(io::ErrorKind::NotFound, true), (io::ErrorKind::PermissionDenied, false)] {
            let error = SyscallError { call: "bpf_map_delete_elem", io_error: kind.into() };
            assert_eq!(gone(Err(error.into())).is_ok(), is_gone, "{kind}");
        }
    }
}
