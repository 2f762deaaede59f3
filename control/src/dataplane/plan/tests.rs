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

mod flows;
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
fn who_drained_was_up_unless_that_is_what_it_does_when_it_fails() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let failed = |last| DesiredReal { alive: false, ..real(last, 0) };
    maps.reach(
        &mut tables,
        &web(&[real(1, 1), real(2, 0), failed(3), DesiredReal { resets: true, ..failed(4) }, real(5, 1)]),
    );
    // The last one leaves the file.
    let desired = web(&[real(1, 1), real(2, 0), failed(3), DesiredReal { resets: true, ..failed(4) }]);
    maps.reach(&mut tables, &desired);
    let adopted = maps.tables();
    for (inhibits, drained) in [(false, true), (true, false)] {
        let was_up = |last| adopted.was_up(&WEB, [10, 77, 0, last].into(), 80, inhibits);
        let left = inhibits.then_some(false);
        let known = [Some(true), Some(drained), Some(false), Some(false), left, None];
        assert_eq!([1, 2, 3, 4, 5, 6].map(was_up), known, "{inhibits}");
    }
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
fn interfaces_of_virtual_addresses_are_known_by_their_macs_unless_two_share_an_element() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let with = |interfaces: &[(u32, u8)]| {
        let vips = interfaces.iter().zip(1..).map(|(&(ifindex, mac), last)| {
            ([10, 77, 0, last].into(), Vip { ifindex, mac: [mac; 6], ..Vip::default() })
        });
        Desired { vips: vips.collect(), ..Desired::default() }
    };
    let slots = maps::INTERFACE_SLOTS;
    for (interfaces, known) in [
        (&[(3, 7), (3, 7), (4, 8)][..], &[(3, 7), (4, 8)][..]),
        (&[(3, 9), (5, 1)], &[(3, 9), (5, 1)]),
        (&[(3, 9), (3 + slots, 2), (5, 1)], &[(5, 1)]),
        (&[(3, 9), (3 + slots, 2), (3 + 2 * slots, 2)], &[]),
    ] {
        maps.reach(&mut tables, &with(interfaces));
        let mut found: Vec<_> = maps.interfaces.values().filter(|it| it.ifindex != 0).collect();
        found.sort_by_key(|it| it.ifindex);
        let found: Vec<_> = found.iter().map(|it| (it.ifindex, it.mac[0])).collect();
        assert_eq!(found, known);
        assert_eq!(maps.tables().plan(&with(interfaces), &maps, NOW).unwrap(), [], "by a restarted daemon");
    }
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

#[test]
fn ten_thousand_services_are_all_found() {
    let mut maps = Maps::of(Room { reals: 10_000 * 8, chunks: 10_000 * 32 });
    let mut tables = maps.tables();
    let keys: Vec<Endpoint> = (0..10_000u32)
        .map(|i| Endpoint { address: Ipv4Addr::from_bits(0x0a00_0000 + i).into(), port: 80, protocol: 6 })
        .collect();
    let services = keys
        .iter()
        .map(|key| DesiredService {
            key: *key,
            hash: 0,
            persistence: None,
            connection_ids: None,
            turns: None,
            one_packet: false,
            reals: vec![real(1, 1)],
        })
        .collect();
    maps.reach(&mut tables, &Desired { services, vips: Vec::new() });
    assert!(keys.iter().all(|key| maps.forward(key, 1).is_some()));
}

/// Of two IPv6 addresses for which the same 32 bits stand.
fn alike() -> [IpAddr; 2] {
    let mut known = HashMap::new();
    for number in 0..=u128::from(u32::MAX) {
        let address = IpAddr::from(std::net::Ipv6Addr::from_bits(0x2001_0db8 << 96 | number));
        if let Some(other) = known.insert(Address::from(address).fold(), address) {
            return [other, address];
        }
    }
    panic!("all differ");
}

#[test]
fn services_of_ipv6_are_told_apart_by_their_whole_address_and_survive_a_restart() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let keys = alike().map(|address| Endpoint { address, ..WEB });
    assert_eq!(keys[0].packed(), keys[1].packed());
    let six = |last: u8| {
        let address = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 1, last.into()]);
        DesiredReal { address, ..real(last, 1) }
    };
    let service = |key, real| DesiredService { key, ..web(&[real]).services[0].clone() };
    let both = vec![service(keys[0], six(1)), service(keys[1], six(2))];
    let desired = Desired { services: both, vips: Vec::new() };
    maps.reach(&mut tables, &desired);
    for (key, last) in keys.iter().zip([1, 2]) {
        assert!(is(&maps.forward(key, 7).unwrap(), six(last).address, 80), "{last}");
    }
    let mut adopted = maps.tables();
    assert_eq!(adopted.plan(&desired, &maps, NOW).unwrap(), []);
    assert_eq!(adopted.state(&keys[1], six(2).address, 80), Some(Real::ALIVE));
    // The ring of one flips, and of no other.
    let mut changed = desired.clone();
    changed.services[1].reals[0] = six(3);
    maps.reach(&mut adopted, &changed);
    assert!(is(&maps.forward(&keys[1], 7).unwrap(), six(3).address, 80));
    assert!(is(&maps.forward(&keys[0], 7).unwrap(), six(1).address, 80));
    // The number of one that went is another's.
    let other = Endpoint { address: IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9]), ..WEB };
    let desired = Desired { services: vec![service(other, six(1)), desired.services[1].clone()], ..desired };
    maps.reach(&mut adopted, &desired);
    assert_eq!(maps.forward(&keys[0], 7), None);
    assert!(is(&maps.forward(&other, 7).unwrap(), six(1).address, 80));
    assert!(is(&maps.forward(&keys[1], 7).unwrap(), six(2).address, 80));
}

#[test]
fn where_all_new_rings_find_no_room_beside_the_old_ones_each_in_turn_does() {
    // Rings of 32 chunks; one that has moved has its old owners behind it, 65 in all.
    let mut maps = Maps::of(Room { chunks: 4 * 32 + 3 * 65, ..Room::LEAST });
    let mut tables = maps.tables();
    let one = web(&[real(1, 1), real(2, 1)]).services.remove(0);
    let key = |port: u16| Endpoint { port, ..WEB };
    let services = (80..84).map(|port| DesiredService { key: key(port), ..one.clone() });
    let mut all = Desired { services: services.collect(), vips: Vec::new() };
    maps.reach(&mut tables, &all);
    all.services.iter_mut().for_each(|service| service.reals[0].weight = 5);
    for plan in WAYS {
        assert_eq!(plan(&mut tables, &all, &maps, NOW), Err(PlanError::NoRoomForRing { length: 1021 }));
    }
    for service in all.services.chunks(1) {
        tables.plan_services(service, &maps, NOW).unwrap().iter().for_each(|write| maps.apply(write));
    }
    assert_eq!(tables.plan(&all, &maps, NOW).unwrap(), []);
}

#[test]
fn what_finds_no_room_beside_a_service_that_goes_finds_it_when_that_one_has_gone() {
    let desired = |port| {
        let mut desired = web(&[real(1, 1)]);
        desired.services[0].key.port = port;
        desired
    };
    let ring = chunks(maglev::length(1));
    for room in [Room { chunks: ring, ..Room::LEAST }, Room { reals: 8, ..Room::LEAST }] {
        let mut maps = Maps::of(room);
        let mut tables = maps.tables();
        maps.reach(&mut tables, &desired(80));
        assert!(tables.plan(&desired(81), &maps, NOW).is_err(), "{room:?}");
        let departures = tables.plan_departures(&desired(81), &maps, NOW).unwrap();
        departures.iter().for_each(|write| maps.apply(write));
        maps.reach(&mut tables, &desired(81));
        assert!(maps.service(&Endpoint { port: 81, ..WEB }).is_some(), "{room:?}");
    }
}

#[test]
fn thirty_thousand_reals_in_one_service_all_take_flows() {
    let mut maps = Maps::of(Room { reals: 1 << 16, chunks: 1 << 18 });
    let mut tables = maps.tables();
    let reals =
        (0..30_000).map(|i| DesiredReal { address: Ipv4Addr::from(0x0b00_0000 + i).into(), ..real(1, 1) });
    maps.reach(&mut tables, &web(&reals.collect::<Vec<_>>()));
    let ring = RingRef::unpack(maps.service(&WEB).unwrap().ring);
    let chunks = ring.chunk..ring.chunk + chunks(ring.length);
    let slots = chunks.flat_map(|chunk| maps.chunk(chunk)).take(ring.length as usize);
    let mut shares = vec![0; 30_000];
    slots.for_each(|index| shares[usize::from(index)] += 1);
    assert!(shares.iter().all(|share| (139..=140).contains(share)), "4,194,301 slots");
}

#[test]
fn tables_that_make_no_sense_are_written_anew_and_take_no_space() {
    for ring in [u64::MAX, RingRef { chunk: 0, length: 1 }.pack()] {
        let mut maps = Maps::new();
        let slot = WEB.packed().homes(0)[0] as usize;
        let (key, reals_base) = (WEB.packed(), u32::MAX);
        maps.slots[slot] = Service { key, ring, reals_base, reals_len: 9, ..Default::default() };
        maps.addresses.insert(0, WEB.address.into());
        let mut tables = maps.tables();
        assert!(tables.chunks.is_empty() && tables.ranges.is_empty() && tables.ids.is_empty());
        maps.reach(&mut tables, &web(&[real(1, 1)]));
        maps.assert_no_hole();
    }
}

#[test]
fn what_does_not_fit_is_an_error_and_changes_nothing() {
    let maps = Maps::new();
    let mut tables = maps.tables();
    let desired = web(&[real(1, 1)]);
    tables.plan(&desired, &maps, NOW).unwrap();
    let many: Vec<DesiredReal> = (0..=maps::REALS_PER_SERVICE)
        .map(|i| DesiredReal {
            address: Ipv4Addr::from(0x0b00_0000 + i).into(),
            port: 80,
            weight: 1,
            limit: None,
            forwarding: Forwarding::Direct,
            alive: true,
            resets: false,
            server_id: None,
            next_hop: Some(HOP),
        })
        .collect();
    // The one that is there drains.
    let reals = many.len() + 1;
    // What comes before it finds room, and gives it back.
    let other = DesiredService { key: Endpoint { port: 8080, ..WEB }, ..desired.services[0].clone() };
    let too_many = Desired { services: [vec![other], web(&many).services].concat(), vips: Vec::new() };
    for plan in WAYS {
        let error = plan(&mut tables, &too_many, &maps, NOW).unwrap_err();
        assert_eq!(error, PlanError::ServiceTooLarge { reals });
        assert_eq!(tables.plan(&desired, &maps, NOW).unwrap(), []);
    }
    tables.plan(&Desired::default(), &maps, NOW).unwrap();
    assert!(tables.chunks.is_empty() && tables.ranges.is_empty() && tables.ids.is_empty());
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

#[test]
fn answers_are_the_services_that_has_the_real_server_to_itself_and_of_several_nobodys() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let other = Endpoint { port: 8080, ..WEB };
    let answer = |port: u16| ServiceKey { address: 0x0100_4d0a, port: port.to_be(), ..WEB.packed() };
    let method = |maps: &Maps, key| maps.forward(key, 7).unwrap().method;
    let mut reach = |maps: &mut Maps, services| {
        let desired = Desired { services, vips: Vec::new() };
        maps.reach(&mut tables, &desired);
        assert_eq!(tables.plan(&desired, maps, NOW).unwrap(), []);
        assert_eq!(maps.tables().plan(&desired, maps, NOW).unwrap(), [], "by a restarted daemon");
    };
    reach(&mut maps, vec![translated(WEB, 8080)]);
    assert_eq!(
        maps.replies[&answer(8080)].face,
        Face { address: WEB.packed().address, port: WEB.packed().port, _pad: 0 }
    );
    assert!(maps.table.translates);

    reach(&mut maps, vec![translated(WEB, 8080), translated(other, 8080)]);
    assert_eq!(maps.replies[&answer(8080)].face, Face::default());
    assert_eq!((method(&maps, &WEB), method(&maps, &other)), (Real::NAT_SHARED, Real::NAT_SHARED));

    // The other one's flows to it live on.
    reach(&mut maps, vec![translated(WEB, 8080), translated(other, 8081)]);
    assert_eq!((maps.replies.len(), method(&maps, &WEB)), (2, Real::NAT_SHARED));

    reach(&mut maps, vec![translated(WEB, 8080)]);
    assert_eq!(method(&maps, &WEB), Real::NAT);
    reach(&mut maps, Vec::new());
    assert!(maps.replies.is_empty() && !maps.table.translates);
}

#[test]
fn addresses_of_services_and_virtual_ones_are_told_from_others_unless_answers_are_translated() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let vip = Ipv4Addr::new(10, 0, 0, 9);
    let word = |address: Ipv4Addr| u32::from_ne_bytes(address.octets());
    let web_address = AddressFilter::default().with(WEB.packed().address);
    let desired = |services, vips| Desired { services, vips };
    maps.reach(&mut tables, &web(&[real(1, 1)]));
    assert_eq!(maps.table.addresses, web_address);
    let both = desired(web(&[real(1, 1)]).services, vec![(vip.into(), Vip::default())]);
    maps.reach(&mut tables, &both);
    assert_eq!(maps.table.addresses, web_address.with(word(vip)));
    assert_eq!(maps.tables().plan(&both, &maps, NOW).unwrap(), [], "by a restarted daemon");
    maps.reach(&mut tables, &desired(vec![translated(WEB, 8080)], Vec::new()));
    assert_eq!(maps.table.addresses, AddressFilter::ALL);
    maps.reach(&mut tables, &desired(Vec::new(), Vec::new()));
    assert_eq!(maps.table.addresses, AddressFilter::default());
}

#[test]
fn that_some_service_has_all_ports_is_published_with_it() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let all = Endpoint { port: 0, ..WEB };
    let mut reach = |maps: &mut Maps, services| {
        let desired = Desired { services, vips: Vec::new() };
        maps.reach(&mut tables, &desired);
        assert_eq!(maps.tables().plan(&desired, maps, NOW).unwrap(), [], "by a restarted daemon");
    };
    reach(&mut maps, vec![translated(WEB, 8080)]);
    assert!(!maps.table.has_all_ports);
    reach(&mut maps, vec![translated(WEB, 8080), translated(all, 0)]);
    assert!(maps.table.has_all_ports);
    // What a real server sends from whatever port may be its own.
    let answer = |port: u16| ServiceKey { address: 0x0100_4d0a, port: port.to_be(), ..WEB.packed() };
    assert_eq!(maps.replies[&answer(0)].face, Face::default());
    assert_eq!(maps.forward(&all, 7).unwrap().method, Real::NAT_SHARED);
    assert_eq!(maps.replies[&answer(8080)].face.port, WEB.packed().port);
    reach(&mut maps, vec![translated(WEB, 8080)]);
    assert!(!maps.table.has_all_ports);
}

#[test]
fn a_persistent_service_remembers_all_its_clients_and_no_longer_doubts_none() {
    use crate::config::model::{Persistence, Timeouts};
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let persistence = |timeout| Some(Persistence { timeout: Duration::from_secs(timeout), prefix_len: 24 });
    let with = |persistence| {
        let mut desired = web(&[real(1, 1), real(2, 1)]);
        desired.services[0].persistence = persistence;
        desired
    };
    maps.reach(&mut tables, &with(persistence(50)));
    let service = maps.service(&WEB).unwrap();
    assert_eq!((service.persistence, service.takes_turns), (25, Service::REMEMBERED));
    assert!(tables.uses_flow_table());
    assert_eq!(maps.tables().plan(&with(persistence(50)), &maps, NOW).unwrap(), []);

    // A silent client lives as long as its connections may, and as long as it is to persist.
    let key = FlowKey { source: 0x0000_000a, source_port: 0, service: service.id };
    let lives = |tables: &Tables, idle| {
        let flow = LiveFlow { key, real: 0, phase: Phase::Closing, idle: Duration::from_secs(idle) };
        tables.survey(Timeouts::default()).meet(&flow)
    };
    assert_eq!([899, 900].map(|idle| lives(&tables, idle)), [true, false]);
    maps.reach(&mut tables, &with(persistence(5000)));
    assert_eq!([4999, 5000].map(|idle| lives(&tables, idle)), [true, false]);

    // Without persistence those who are elsewhere than the ring says are asked for.
    maps.reach(&mut tables, &with(None));
    let ring = RingRef::unpack(maps.service(&WEB).unwrap().ring);
    assert_ne!(maps.slot(ring.chunk, 0, ring.length) & maps::MOVED, 0);
}

#[test]
fn a_real_server_that_left_answers_until_its_flows_have_ended() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let mut service = translated(WEB, 8080);
    service.reals.push(DesiredReal { port: 8080, forwarding: Forwarding::Nat, ..real(2, 1) });
    let both = Desired { services: vec![service.clone()], vips: Vec::new() };
    maps.reach(&mut tables, &both);
    service.reals.pop();
    maps.reach(&mut tables, &Desired { services: vec![service], vips: Vec::new() });
    assert_eq!(maps.replies.len(), 2);
    let timeouts = crate::config::model::Timeouts::default();
    let found = tables.survey(timeouts).finish();
    let writes = tables.settle(&found, timeouts, &maps, NOW + timeouts.tcp);
    // A packet that has just read the old owners may still be on its way.
    let at = |is: fn(&Write) -> bool| writes.iter().position(is).unwrap();
    let grace = at(|write| *write == Write::Grace);
    assert!(at(|write| matches!(write, Write::Ring { .. })) < grace);
    assert!(grace < at(|write| matches!(write, Write::Real { real, .. } if *real == Real::default())));
    writes.iter().for_each(|write| maps.apply(write));
    assert_eq!(maps.replies.len(), 1);
}

#[test]
fn what_a_real_server_was_sent_moves_with_it_and_is_nobody_elses_when_it_has_gone() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let reals: Vec<_> = (1..=9).map(|last| real(last, 1)).collect();
    let index = |tables: &Tables, last| tables.real_index(&WEB, [10, 77, 0, last].into(), 80).unwrap();
    maps.reach(&mut tables, &web(&reals[..8]));
    let before = tables.pools[&WEB].range();
    maps.counts.extend((1..=8).map(|last| (index(&tables, last), last.into())));
    maps.reach(&mut tables, &web(&reals));
    assert_ne!(tables.pools[&WEB].range(), before);
    assert!((1..=8).all(|last| maps.counts[&index(&tables, last)] == u64::from(last)));
    assert!(before.into_iter().all(|index| maps.counts[&index] == 0));

    let second = index(&tables, 2);
    maps.reach(&mut tables, &web(&[&reals[..1], &reals[2..]].concat()));
    let timeouts = crate::config::model::Timeouts::default();
    let found = tables.survey(timeouts).finish();
    let writes = tables.settle(&found, timeouts, &maps, NOW + timeouts.tcp);
    writes.iter().for_each(|write| maps.apply(write));
    maps.reach(&mut tables, &web(&[&reals[..1], &reals[2..], &[real(20, 1)]].concat()));
    assert_eq!((index(&tables, 20), maps.counts[&second]), (second, 0));
    maps.reach(&mut tables, &Desired::default());
    assert!(maps.counts.values().all(|count| *count == 0));
}

#[test]
fn what_is_placed_packet_by_packet_has_no_past_and_uses_no_flow_table() {
    let mut maps = Maps::new();
    maps.has_forwarded = true;
    let mut tables = maps.tables();
    let with = |turns, one_packet, second| {
        let mut desired = web(&[real(1, 1), real(2, second)]);
        (desired.services[0].turns, desired.services[0].one_packet) = (turns, one_packet);
        desired
    };
    let moved = |maps: &Maps| {
        let ring = RingRef::unpack(maps.service(&WEB).unwrap().ring);
        (0..ring.length).any(|slot| maps.chunk(ring.chunk + slot / 32)[slot as usize % 32] & maps::MOVED != 0)
    };
    maps.reach(&mut tables, &with(None, false, 1));
    maps.reach(&mut tables, &with(None, false, 0));
    assert!(moved(&maps) && tables.uses_flow_table());
    maps.reach(&mut tables, &with(None, true, 0));
    assert!(!moved(&maps) && !tables.uses_flow_table());
    maps.reach(&mut tables, &with(None, true, 1));
    assert!(!moved(&maps));
    let rr = Some(Turns::RoundRobin);
    maps.reach(&mut tables, &with(rr, true, 1));
    let service = maps.service(&WEB).unwrap();
    assert_eq!((service.takes_turns, maps.turns(service.id).length), (Service::EVERY_PACKET, 2));
    assert!(!tables.uses_flow_table());
    assert_eq!(maps.tables().plan(&with(rr, true, 1), &maps, NOW).unwrap(), [], "by a restarted daemon");
    maps.reach(&mut tables, &with(rr, false, 1));
    assert!(tables.uses_flow_table());
}

#[test]
fn a_real_server_on_this_node_is_local_and_those_beside_it_know() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let with = |first: Option<NextHop>| {
        let nat = DesiredReal { forwarding: Forwarding::Nat, next_hop: first, ..real(1, 1) };
        web(&[nat, real(2, 1)])
    };
    let methods = |maps: &Maps, tables: &Tables| -> Vec<u8> {
        let index = |last| tables.real_index(&WEB, [10, 77, 0, last].into(), 80).unwrap() as usize;
        [1, 2].map(|last| maps.reals[index(last)].method).to_vec()
    };
    maps.reach(&mut tables, &with(Some(NextHop::LOCAL)));
    assert_eq!(methods(&maps, &tables), [Real::LOCAL, Real::DIRECT_BESIDE_LOCAL]);
    assert!(maps.replies.is_empty(), "what is here is not translated");
    assert_eq!(
        maps.tables().plan(&with(Some(NextHop::LOCAL)), &maps, NOW).unwrap(),
        [],
        "by a restarted daemon"
    );
    // What a backup has in its flow table may be the local one's by the master's choice.
    let mut one_is_dead = with(Some(NextHop::LOCAL));
    one_is_dead.services[0].reals[1] = DesiredReal { alive: false, resets: true, ..real(2, 1) };
    maps.reach(&mut tables, &one_is_dead);
    assert_eq!(tables.state(&WEB, [10, 77, 0, 2].into(), 80), Some(Real::DEAD_BESIDE_LOCAL));
    maps.reach(&mut tables, &with(Some(NextHop { source: Some(Ipv4Addr::LOCALHOST.into()), ..HOP })));
    assert_eq!(methods(&maps, &tables), [Real::NAT, Real::DIRECT]);
}

#[test]
fn a_real_server_is_told_apart_by_how_its_packets_travel() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let own = IpAddr::from([10, 77, 0, 1]);
    let by = |forwarding| {
        let hop = NextHop { source: Some(own), mtu: 1400, ..HOP };
        DesiredReal { forwarding, next_hop: Some(hop), ..real(1, 1) }
    };
    let gue = Forwarding::Tunnel(Tunnel::Gue { port: 6080 });
    for (forwarding, method, port) in [
        (Forwarding::Tunnel(Tunnel::Ipip), Real::IPIP, 0),
        (gue, Real::GUE, 6080_u16),
        (Forwarding::Tunnel(Tunnel::Gre), Real::GRE, 0),
        (Forwarding::Nat, Real::NAT, 0),
        (Forwarding::Direct, Real::DIRECT, 0),
    ] {
        for write in tables.plan(&web(&[by(forwarding)]), &maps, NOW).unwrap() {
            maps.apply(&write);
        }
        let index = tables.real_index(&WEB, [10, 77, 0, 1].into(), 80).unwrap();
        let Real { method: got, source, mtu, tunnel_port, .. } = maps.reals[index as usize];
        assert_eq!((got, source, mtu, tunnel_port), (method, own.into(), 1400, port.to_be()));
    }
}
