//! The real XDP program, loaded but attached to nothing: tables are written by hand, and the kernel runs it on
//! frames by BPF_PROG_TEST_RUN.

use std::net::{Ipv4Addr, Ipv6Addr};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, MapData, PerCpuArray, RingBuf},
    programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp},
};
use control::dataplane::OBJECT;
use lvs_ebpf_common::{
    Address, AddressFilter, ById, Claim, Counter, Interface, Lease, Outcome, Real, Reply, RingRef, ServerId,
    Service, ServiceKey, TableRef, Turn, Vip, Wanted,
    flow_table::FlowSet,
    maps::{self, RING_CHUNK, RingChunk, SERVICE_SLOTS},
};
use zerocopy::FromBytes as _;

/// The interface that frames come in on, unless a context says otherwise: lo, which every namespace has.
pub const INGRESS: u32 = 1;

pub const SEED: u16 = 7;
/// No address is told to be somebody else's before the tables were looked at.
pub const TABLE: TableRef =
    TableRef { seed: SEED, half: 0, translates: false, has_all_ports: false, addresses: AddressFilter::ALL };
pub const LEASE: u32 = 3;

/// What XDP programs return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Drop,
    Pass,
    Tx,
    Redirect,
}

/// What became of one frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    pub outcome: Outcome,
    pub action: Action,
    pub frame: Vec<u8>,
}

pub struct Director {
    ebpf: Ebpf,
    /// Bytes of metadata before each frame: what the headroom is short of.
    metadata: usize,
}

/// The kernel gives a frame 256 bytes of headroom, 40 of which it needs itself.
pub const HEADROOM: usize = 216;

impl Director {
    /// None, and said so, where BPF is not allowed.
    pub fn load() -> Option<Self> {
        Self::load_with(u8::MAX, 0)
    }

    /// The program as it is for veth devices.
    pub fn load_for_veth() -> Option<Self> {
        Self::load_with(u8::MAX, 1)
    }

    pub fn load_with_log_level(level: u8) -> Option<Self> {
        Self::load_with(level, 0)
    }

    fn load_with(level: u8, veth: u32) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            lvs_tests::skip("loading an XDP program needs root");
            return None;
        }
        let mut loader = EbpfLoader::new();
        loader.override_global("AYA_LOG_LEVEL", &level, true).override_global(maps::VETH, &veth, true);
        let ebpf = loader.load(OBJECT).unwrap();
        let mut director = Self { ebpf, metadata: 0 };
        control::dataplane::load(director.program_mut()).unwrap();
        director.table(TABLE);
        Some(director)
    }

    pub fn table(&mut self, table: TableRef) {
        self.array(maps::TABLE).set(0, table.pack(), 0).unwrap();
    }

    /// Puts a service into the live half (0 after loading), in one of its two homes.
    pub fn service_at(&mut self, half: u32, home: usize, service: Service) {
        self.service_in(half * SERVICE_SLOTS + service.key.homes(SEED)[home], service);
    }

    pub fn service_in(&mut self, slot: u32, service: Service) {
        self.array(maps::SERVICES).set(slot, service, 0).unwrap();
    }

    pub fn service(&mut self, service: Service) {
        self.service_at(0, 0, service);
    }

    /// Writes a ring from `chunk` on.
    pub fn ring(&mut self, chunk: u32, slots: &[u16]) -> RingRef {
        let mut rings = self.array::<RingChunk>(maps::RINGS);
        for (part, chunk) in slots.chunks(RING_CHUNK).zip(chunk..) {
            let mut padded = [u16::MAX; RING_CHUNK];
            padded[..part.len()].copy_from_slice(part);
            rings.set(chunk, padded, 0).unwrap();
        }
        RingRef { chunk, length: slots.len() as u32 }
    }

    pub fn real(&mut self, index: u32, real: Real) {
        self.array(maps::REALS).set(index, real, 0).unwrap();
    }

    /// The whole address of a service.
    pub fn address6(&mut self, id: u16, address: Ipv6Addr) {
        self.array(maps::ADDRESSES).set(id.into(), Address::from(address.octets()), 0).unwrap();
    }

    pub fn turn(&mut self, id: u16, turn: Turn) {
        self.array(maps::TURNS).set(id.into(), turn, 0).unwrap();
    }

    pub fn flow_sets(&self) -> Vec<FlowSet> {
        let map = Array::<_, FlowSet>::try_from(self.ebpf.map(maps::FLOWS).unwrap()).unwrap();
        map.iter().map(Result::unwrap).collect()
    }

    pub fn interface(&mut self, ifindex: u32, mac: [u8; 6]) {
        let interface = Interface { ifindex, mac, ..Interface::default() };
        self.array(maps::INTERFACES).set(Interface::slot(ifindex), interface, 0).unwrap();
    }

    pub fn vip(&mut self, address: Ipv4Addr, vip: Vip) {
        let map = self.ebpf.map_mut(maps::VIPS).unwrap();
        HashMap::<_, u32, Vip>::try_from(map).unwrap().insert(be(address), vip, 0).unwrap();
    }

    pub fn vip6(&mut self, address: Ipv6Addr, vip: Vip) {
        let map = self.ebpf.map_mut(maps::VIPS6).unwrap();
        HashMap::<_, [u8; 16], Vip>::try_from(map).unwrap().insert(address.octets(), vip, 0).unwrap();
    }

    pub fn reply(&mut self, key: ServiceKey, reply: Reply) {
        let map = self.ebpf.map_mut(maps::REPLIES).unwrap();
        HashMap::<_, ServiceKey, Reply>::try_from(map).unwrap().insert(key, reply, 0).unwrap();
    }

    pub fn server_id(&mut self, id: ServerId, index: u32) {
        let map = self.ebpf.map_mut(maps::SERVER_IDS).unwrap();
        HashMap::<_, ServerId, u32>::try_from(map).unwrap().insert(id, index, 0).unwrap();
    }

    /// In the order of [`ById::ALL`].
    pub fn by_id(&self) -> Vec<u64> {
        let map = PerCpuArray::<_, u64>::try_from(self.ebpf.map(maps::BY_ID).unwrap()).unwrap();
        (0..ById::COUNT).map(|index| map.get(&index, 0).unwrap().iter().sum()).collect()
    }

    /// What the kernel is to ask for.
    pub fn wanted(&self) -> Vec<Wanted> {
        let map = Array::<_, Wanted>::try_from(self.ebpf.map(maps::WANTED).unwrap()).unwrap();
        map.iter().map(Result::unwrap).filter(|wanted| *wanted != Wanted::default()).collect()
    }

    pub fn lease(&mut self, until: u64) {
        self.leased(until, until);
    }

    /// `held`: until when it was, before this node resigned.
    pub fn leased(&mut self, until: u64, held: u64) {
        self.array(maps::LEASES).set(LEASE, Lease { until, held, ..Lease::default() }, 0).unwrap();
    }

    /// Whether the kernel lets [`Director::headroom`] work: Linux 5.15.
    pub fn has_headroom(&self) -> bool {
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&64u32.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(&[0; 64]),
            ctx_in: Some(&context),
            repeat: 1,
            ..TestRunOptions::default()
        };
        self.program().test_run(options).is_ok()
    }

    /// Leaves `room` bytes before each frame that a program may take.
    pub fn headroom(&mut self, room: usize) {
        self.metadata = HEADROOM - room;
    }

    fn array<T: Pod>(&mut self, name: &str) -> Array<&mut MapData, T> {
        self.ebpf.map_mut(name).unwrap().try_into().unwrap()
    }

    pub fn counter(&self, index: u32) -> Counter {
        let map = PerCpuArray::<_, Counter>::try_from(self.ebpf.map(maps::REAL_COUNTERS).unwrap()).unwrap();
        map.get(&index, 0).unwrap().iter().fold(Counter::default(), |sum, cpu| Counter {
            packets: sum.packets + cpu.packets,
            bytes: sum.bytes + cpu.bytes,
        })
    }

    pub fn outcomes(&self) -> Vec<u64> {
        let map = PerCpuArray::<_, u64>::try_from(self.ebpf.map(maps::OUTCOMES).unwrap()).unwrap();
        (0..Outcome::COUNT).map(|index| map.get(&index, 0).unwrap().iter().sum()).collect()
    }

    /// Log records waiting to be read.
    pub fn take_log(&mut self) -> usize {
        let mut ring = RingBuf::try_from(self.ebpf.map_mut("AYA_LOGS").unwrap()).unwrap();
        std::iter::from_fn(|| ring.next().map(drop)).count()
    }

    /// Claims of virtual addresses waiting to be read.
    pub fn take_claims(&mut self) -> Vec<Claim> {
        let mut ring = RingBuf::try_from(self.ebpf.map_mut(maps::CLAIMS).unwrap()).unwrap();
        std::iter::from_fn(|| ring.next().map(|event| Claim::read_from_bytes(&event).unwrap())).collect()
    }

    /// Runs the program on one frame and finds the one counter that moved.
    pub fn run(&self, frame: &[u8]) -> Verdict {
        let before = self.outcomes();
        let (action, frame) = self.run_uncounted(frame);
        let after = self.outcomes();
        let moved: Vec<_> =
            Outcome::ALL.iter().filter(|o| before[**o as usize] != after[**o as usize]).collect();
        let [outcome] = moved[..] else { panic!("counted as {moved:?}") };
        assert_eq!(after[*outcome as usize], before[*outcome as usize] + 1);
        Verdict { outcome: *outcome, action, frame }
    }

    pub fn run_uncounted(&self, frame: &[u8]) -> (Action, Vec<u8>) {
        self.repeat(frame, 1)
    }

    /// All within a moment; each run gets the frame as the one before left it.
    pub fn repeat(&self, frame: &[u8], times: u32) -> (Action, Vec<u8>) {
        let input = [&vec![0; self.metadata], frame].concat();
        // struct xdp_md: data, data_end, data_meta, then zeros: lo and its first queue.
        let context = [self.metadata as u32, input.len() as u32, 0, 0, 0, 0].map(u32::to_ne_bytes).concat();
        let mut out = vec![0; input.len() + 256];
        let result = self
            .program()
            .test_run(TestRunOptions {
                data_in: Some(&input),
                ctx_in: (self.metadata > 0).then_some(&context),
                data_out: Some(&mut out),
                repeat: times,
                ..TestRunOptions::default()
            })
            .unwrap();
        out.truncate(result.data_size_out as usize);
        out.drain(..self.metadata);
        let action = match result.return_value {
            1 => Action::Drop,
            2 => Action::Pass,
            3 => Action::Tx,
            4 => Action::Redirect,
            other => panic!("XDP action {other}"),
        };
        (action, out)
    }

    /// For a tail call.
    pub fn fd(&self) -> &ProgramFd {
        self.program().fd().unwrap()
    }

    pub fn program_mut(&mut self) -> &mut Xdp {
        self.ebpf.program_mut(maps::PROGRAM).unwrap().try_into().unwrap()
    }

    fn program(&self) -> &Xdp {
        self.ebpf.program(maps::PROGRAM).unwrap().try_into().unwrap()
    }
}

/// An address as it stands in a packet.
pub fn be(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// The same as an element of `REALS` has it.
pub fn v4(address: Ipv4Addr) -> Address {
    std::net::IpAddr::from(address).into()
}

pub fn key(address: Ipv4Addr, port: u16, protocol: u8) -> ServiceKey {
    ServiceKey { address: be(address), port: port.to_be(), protocol, family: ServiceKey::V4 }
}
