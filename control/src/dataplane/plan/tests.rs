//! The maps as the XDP program would read them while a plan is carried out, write by write.

use lvs_ebpf_common::{
    Face, Turn,
    flow_table::{FlowKey, Phase},
};

use std::net::Ipv4Addr;

use super::*;
use crate::{
    config::model::Tunnel,
    dataplane::{flows::LiveFlow, maglev},
};

mod addresses;
mod flows;
mod reals;
mod room;
mod server_ids;

const HOP: NextHop =
    NextHop { mac: [2, 0, 0, 0, 0, 9], source_mac: [2, 0, 0, 0, 0, 1], ifindex: 3, source: None, mtu: 1500 };
const WEB: Endpoint = Endpoint { address: IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100)), port: 80, protocol: 6 };

const NOW: Duration = Duration::from_secs(1000);

fn real(last: u8, weight: u16) -> DesiredReal {
    DesiredReal {
        address: Ipv4Addr::new(10, 77, 0, last).into(),
        port: 80,
        weight,
        limit: None,
        forwarding: Forwarding::Direct,
        alive: true,
        resets: false,
        server_id: None,
        next_hop: Some(HOP),
    }
}

fn translated(key: Endpoint, port: u16) -> DesiredService {
    let real = DesiredReal { port, forwarding: Forwarding::Nat, ..real(1, 1) };
    DesiredService {
        key,
        hash: Service::HASH_CONNECTION,
        persistence: None,
        connection_ids: None,
        turns: None,
        one_packet: false,
        reals: vec![real],
    }
}

fn web(reals: &[DesiredReal]) -> Desired {
    let service = DesiredService {
        key: WEB,
        hash: Service::HASH_CONNECTION,
        persistence: None,
        connection_ids: None,
        turns: None,
        one_packet: false,
        reals: reals.to_vec(),
    };
    Desired { services: vec![service], vips: Vec::new() }
}

/// To plan for all there is, or for the services that change.
type Way = fn(&mut Tables, &Desired, &Maps, Duration) -> Result<Vec<Write>, PlanError>;

const WAYS: [Way; 2] = [
    |tables, desired, maps, now| tables.plan(desired, maps, now),
    |tables, desired, maps, now| tables.plan_services(&desired.services, maps, now),
];

/// Kernel side: plain copies of the maps.
struct Maps {
    room: Room,
    table: TableRef,
    slots: Vec<Service>,
    addresses: HashMap<u16, Address>,
    reals: Vec<Real>,
    rings: HashMap<u32, maps::RingChunk>,
    turns: HashMap<u16, Turn>,
    vips: HashMap<IpAddr, Vip>,
    replies: HashMap<ServiceKey, Reply>,
    server_ids: HashMap<ServerId, u32>,
    has_forwarded: bool,
    counts: HashMap<u32, u64>,
    interfaces: HashMap<u32, Interface>,
}

impl Source for Maps {
    fn room(&self) -> Room {
        self.room
    }

    fn address(&self, id: u16) -> Address {
        self.addresses.get(&id).copied().unwrap_or_default()
    }

    fn chunk(&self, chunk: u32) -> maps::RingChunk {
        self.rings.get(&chunk).copied().unwrap_or_default()
    }

    fn turns(&self, id: u16) -> RingRef {
        RingRef::unpack(self.turns.get(&id).copied().unwrap_or_default().sequence)
    }

    fn taken(&self, id: u16) -> u64 {
        self.turns.get(&id).copied().unwrap_or_default().taken
    }

    fn server_ids(&self) -> HashMap<ServerId, u32> {
        self.server_ids.clone()
    }

    fn interface(&self, slot: u32) -> Interface {
        self.interfaces.get(&slot).copied().unwrap_or_default()
    }

    fn has_forwarded(&self, _: std::ops::Range<u32>) -> bool {
        self.has_forwarded
    }
}

impl Seen for Maps {
    fn table(&self) -> TableRef {
        self.table
    }

    fn service(&self, slot: u32) -> Service {
        self.slots[slot as usize]
    }

    fn real(&self, index: u32) -> Real {
        self.reals[index as usize]
    }

    fn vips(&self) -> HashMap<IpAddr, Vip> {
        self.vips.clone()
    }

    fn replies(&self) -> HashMap<ServiceKey, Reply> {
        self.replies.clone()
    }
}

impl Maps {
    fn new() -> Self {
        Self::of(Room::LEAST)
    }

    fn of(room: Room) -> Self {
        Self {
            room,
            table: TableRef::default(),
            slots: vec![Service::default(); 2 * maps::SERVICE_SLOTS as usize],
            addresses: HashMap::new(),
            reals: vec![Real::default(); room.reals as usize],
            rings: HashMap::new(),
            turns: HashMap::new(),
            vips: HashMap::new(),
            replies: HashMap::new(),
            server_ids: HashMap::new(),
            has_forwarded: true,
            counts: HashMap::new(),
            interfaces: HashMap::new(),
        }
    }

    fn tables(&self) -> Tables {
        let (slots, reals) = (self.slots.clone(), self.reals.clone());
        Tables::read(self.table, slots, reals, self.vips.clone(), self.replies.clone(), self, NOW)
    }

    /// Carries out a whole plan.
    fn reach(&mut self, tables: &mut Tables, desired: &Desired) {
        for write in tables.plan(desired, self, NOW).unwrap() {
            self.apply(&write);
        }
    }

    fn apply(&mut self, write: &Write) {
        match write {
            Write::Real { index, real } => self.reals[*index as usize] = *real,
            Write::Count { index, from } => {
                let count = from.and_then(|from| self.counts.get(&from).copied()).unwrap_or_default();
                self.counts.insert(*index, count);
            }
            Write::Ring { chunk, slots } => {
                self.rings.insert(*chunk, *slots);
            }
            Write::Address { id, address } => {
                self.addresses.insert(*id, *address);
            }
            Write::Service { slot, service } => self.slots[*slot as usize] = *service,
            Write::ServiceRing { slot, ring } => self.slots[*slot as usize].ring = ring.pack(),
            Write::Turns { id, sequence } => self.turns.entry(*id).or_default().sequence = sequence.pack(),
            Write::Table(table) => self.table = *table,
            Write::Vip { address, vip } => {
                self.vips.insert(*address, *vip);
            }
            Write::VipGone { address } => {
                self.vips.remove(address);
            }
            Write::Interface { slot, interface } => {
                self.interfaces.insert(*slot, *interface);
            }
            Write::Reply { key, reply } => {
                self.replies.insert(*key, *reply);
            }
            Write::ReplyGone { key } => {
                self.replies.remove(key);
            }
            Write::ServerId { key, index } => {
                self.server_ids.insert(*key, *index);
            }
            Write::ServerIdGone { key } => {
                // The kernel says so too.
                assert!(self.server_ids.remove(key).is_some(), "{key:?} was not there");
            }
            Write::Forget { .. } | Write::Grace => {}
        }
    }

    fn service(&self, endpoint: &Endpoint) -> Option<Service> {
        let key = endpoint.packed();
        if key.family == ServiceKey::V4 && !self.table.addresses.may_have(key.address) {
            return None;
        }
        let live = table::half(self.table.half);
        key.homes(self.table.seed)
            .map(|slot| self.slots[live.start + slot as usize])
            .into_iter()
            .find(|service| service.key == key && self.address(service.id) == endpoint.address.into())
    }

    /// The entry for a hash in the ring of `length` slots at `chunk`.
    fn slot(&self, chunk: u32, hash: u32, length: u32) -> u16 {
        let slot = lvs_ebpf_common::flow::slot(hash, length);
        self.chunk(chunk + slot / maps::RING_CHUNK as u32)[slot as usize % maps::RING_CHUNK]
    }

    /// What a packet that opens a flow with `hash` meets.
    fn forward(&self, key: &Endpoint, hash: u32) -> Option<Real> {
        let service = self.service(key)?;
        let ring = RingRef::unpack(service.ring);
        let index = u32::from(self.slot(ring.chunk, hash, ring.length) & !maps::MOVED);
        assert!(index < service.reals_len, "a ring points outside its service's reals");
        Some(self.reals[(service.reals_base + index) as usize])
    }

    /// Every packet meets a usable real server.
    fn assert_no_hole(&self) {
        for hash in (0..=u32::MAX).step_by(40_000_003) {
            let real = self.forward(&WEB, hash).expect("an alive pool is never empty");
            assert_ne!(real.address, Address::default(), "a ring led to a removed real server");
            assert_ne!(real.mac, [0; 6], "a ring led to a real server without next hop");
        }
    }
}

#[test]
fn no_packet_meets_a_hole_at_any_step_of_any_change() {
    WAYS.into_iter().for_each(no_packet_meets_a_hole);
}

fn no_packet_meets_a_hole(plan: Way) {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    maps.reach(&mut tables, &web(&[real(1, 1), real(2, 1)]));
    maps.assert_no_hole();
    let changes = [
        web(&[real(1, 1), real(2, 0)]),
        web(&[real(1, 1), real(2, 1)]),
        web(&[real(1, 0), real(2, 5), real(3, 1)]),
        web(&[real(3, 1), real(4, 1)]),
        web(&(10..=60).map(|last| real(last, 1)).collect::<Vec<_>>()),
        web(&[real(60, 3)]),
        // A sorry server beside them, which comes in when the last real server goes out.
        web(&[real(60, 3), real(61, 1), real(99, 0)]),
        web(&[real(60, 0), real(61, 0), real(99, 1)]),
        web(&[real(60, 0), real(61, 1), real(99, 0)]),
    ];
    for change in changes {
        for write in plan(&mut tables, &change, &maps, NOW).unwrap() {
            maps.apply(&write);
            maps.assert_no_hole();
        }
    }
}

#[test]
fn what_something_else_changes_in_the_maps_is_put_back_and_nothing_else_is_written() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let mut desired = web(&[real(1, 1), real(2, 1)]);
    desired.services[0].turns = Some(Turns::RoundRobin);
    let nat = DesiredReal { forwarding: Forwarding::Nat, ..real(3, 1) };
    desired.services.push(DesiredService {
        key: Endpoint { port: 22, ..WEB },
        turns: None,
        reals: vec![nat],
        ..desired.services[0].clone()
    });
    desired.vips.push((Ipv4Addr::new(10, 77, 0, 100).into(), Vip::default()));
    maps.reach(&mut tables, &desired);
    assert_eq!(tables.repairs(&maps), []);

    let service = maps.service(&WEB).unwrap();
    let slot = maps.slots.iter().position(|it| *it == service).unwrap();
    let live = table::half(maps.table.half);
    let empty = live.into_iter().find(|slot| maps.slots[*slot] == Service::default()).unwrap();
    let ring = RingRef::unpack(service.ring).chunk;
    let [elsewhere, vip] = [200, 100].map(|last| IpAddr::from([10, 77, 0, last]));
    type Change<'a> = (&'a str, &'a dyn Fn(&mut Maps));
    let changes: [Change<'_>; 10] = [
        ("a real server", &|maps| maps.reals[service.reals_base as usize].mac = [9; 6]),
        ("a ring", &|maps| maps.rings.get_mut(&ring).unwrap()[3] = 7),
        ("a service", &|maps| maps.slots[slot] = Service::default()),
        ("a foreign service", &|maps| maps.slots[empty] = service),
        ("the half that counts", &|maps| maps.table = TableRef::default()),
        ("the turns", &|maps| maps.turns.clear()),
        ("an address", &|maps| maps.vips.retain(|address, _| *address != vip)),
        ("a foreign address", &|maps| maps.vips.extend([(elsewhere, Vip::default())])),
        ("an interface", &|maps| {
            maps.interfaces.insert(7, Interface { ifindex: 7, ..Interface::default() });
        }),
        ("whose answers are translated", &|maps| maps.replies.clear()),
    ];
    for (name, change) in changes {
        change(&mut maps);
        let repairs = tables.repairs(&maps);
        assert_eq!(repairs.len(), 1, "{name}: {repairs:?}");
        maps.apply(&repairs[0]);
        assert_eq!(tables.repairs(&maps), [], "{name}");
        maps.assert_no_hole();
    }
}

#[test]
fn the_sorry_server_comes_in_and_goes_by_one_store() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    maps.reach(&mut tables, &web(&[real(1, 1), real(2, 1), real(9, 0)]));
    let sorry = [real(1, 0), real(2, 0), real(9, 1)];
    let living = [real(1, 1), real(2, 1), real(9, 0)];
    for (reals, only_sorry) in [(sorry, true), (living, false)] {
        let writes = tables.plan(&web(&reals), &maps, NOW).unwrap();
        let flips =
            writes.iter().filter(|write| matches!(write, Write::ServiceRing { .. } | Write::Table(_)));
        assert_eq!(flips.count(), 1, "{writes:?}");
        for write in writes {
            maps.apply(&write);
            maps.assert_no_hole();
        }
        for hash in (0..=u32::MAX).step_by(40_000_003) {
            let to_sorry = is(&maps.forward(&WEB, hash).unwrap(), [10, 77, 0, 9].into(), 80);
            assert_eq!(to_sorry, only_sorry);
        }
    }
}

#[test]
fn a_plan_for_what_is_already_so_is_empty() {
    let maps = Maps::new();
    let mut tables = maps.tables();
    let desired = web(&[real(1, 1), real(2, 3)]);
    assert!(!tables.plan(&desired, &maps, NOW).unwrap().is_empty());
    assert_eq!(tables.plan(&desired, &maps, NOW).unwrap(), []);
}

#[test]
fn a_change_of_one_service_writes_nothing_of_another_and_as_a_whole_it_is_the_same() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let mut both = web(&[real(1, 1), real(2, 3)]);
    let other = Endpoint { port: 8080, ..WEB };
    both.services.push(DesiredService { key: other, ..both.services[0].clone() });
    maps.reach(&mut tables, &both);
    let before = (maps.service(&other), tables.pools[&other].range());
    both.services[0].reals[1].weight = 0;
    let writes = tables.plan_services(&both.services[..1], &maps, NOW).unwrap();
    assert!(writes.iter().any(|write| matches!(write, Write::ServiceRing { .. })));
    for write in writes {
        let touches = |index| before.1.contains(&index);
        assert!(!matches!(write, Write::Real { index, .. } if touches(index)), "{write:?}");
        maps.apply(&write);
    }
    assert_eq!(maps.service(&other), before.0);
    assert_eq!(tables.plan(&both, &maps, NOW).unwrap(), []);
}

#[test]
fn a_restarted_daemon_finds_nothing_to_write_in_the_tables_it_left() {
    let mut maps = Maps::new();
    let desired = web(&[real(1, 1), real(2, 0), real(3, 2)]);
    let mut tables = maps.tables();
    maps.reach(&mut tables, &desired);
    let mut adopted = maps.tables();
    assert_eq!(adopted.plan(&desired, &maps, NOW).unwrap(), []);
    let state = |last| adopted.state(&WEB, [10, 77, 0, last].into(), 80);
    assert_eq!(state(3), Some(Real::ALIVE));
    assert_eq!(state(2), Some(Real::DRAINING));
}

#[test]
fn a_check_that_fails_moves_only_the_flows_of_its_real() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let all: Vec<DesiredReal> = (1..=3).map(|last| real(last, 1)).collect();
    maps.reach(&mut tables, &web(&all));
    let hashes: Vec<u32> = (0..=u32::MAX).step_by(4_000_037).collect();
    let before: Vec<Real> = hashes.iter().map(|hash| maps.forward(&WEB, *hash).unwrap()).collect();
    let mut one_down = all.clone();
    one_down[1].weight = 0;
    maps.reach(&mut tables, &web(&one_down));
    let (mut kept, mut unaffected) = (0, 0);
    for (hash, old) in hashes.iter().zip(&before) {
        let new = maps.forward(&WEB, *hash).unwrap();
        assert!(!is(&new, [10, 77, 0, 2].into(), 80), "the dead real still gets flows");
        if !is(old, [10, 77, 0, 2].into(), 80) {
            unaffected += 1;
            kept += u32::from(new == *old);
        }
    }
    assert!(kept * 100 >= unaffected * 95, "{kept} of {unaffected} kept");
}

#[test]
fn a_real_without_next_hop_waits_beside_the_ring() {
    let mut maps = Maps::new();
    let unresolved = DesiredReal { next_hop: None, ..real(2, 1) };
    let mut tables = maps.tables();
    maps.reach(&mut tables, &web(&[real(1, 1), unresolved]));
    maps.assert_no_hole();
}

#[test]
fn a_removed_service_leaves_nothing_behind() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let vip = Vip { lease: 1, ifindex: 3, mac: [2; 6], answers: [2; 6], ..Vip::default() };
    let mut desired = web(&[real(1, 1)]);
    desired.vips.push(([10, 77, 0, 100].into(), vip));
    maps.reach(&mut tables, &desired);
    assert!(maps.forward(&WEB, 7).is_some());
    maps.reach(&mut tables, &Desired::default());
    assert_eq!(maps.forward(&WEB, 7), None);
    assert!(maps.reals.iter().all(|real| *real == Real::default()));
    assert!(maps.vips.is_empty());
    assert!(tables.chunks.is_empty() && tables.ranges.is_empty() && tables.ids.is_empty());
}
