//! The maps as the XDP program would read them while a plan is carried out, write by write.

use super::*;

const HOP: NextHop = NextHop { mac: [2, 0, 0, 0, 0, 9], source_mac: [2, 0, 0, 0, 0, 1], ifindex: 3 };
const WEB: ServiceKey = ServiceKey { address: 0x6400_4d0a, port: 0x5000, protocol: 6, _pad: 0 };

fn real(last: u8, weight: u16) -> DesiredReal {
    DesiredReal { address: Ipv4Addr::new(10, 77, 0, last), port: 80, weight, next_hop: Some(HOP) }
}

fn web(reals: &[DesiredReal]) -> Desired {
    let service = DesiredService { key: WEB, hash: Service::HASH_CONNECTION, reals: reals.to_vec() };
    Desired { services: vec![service], vips: Vec::new() }
}

/// Kernel side: plain copies of the maps.
struct Maps {
    table: TableRef,
    slots: Vec<Service>,
    reals: Vec<Real>,
    rings: HashMap<u32, maps::RingChunk>,
    vips: HashMap<Ipv4Addr, Vip>,
}

impl Maps {
    fn new() -> Self {
        Self {
            table: TableRef::default(),
            slots: vec![Service::default(); 2 * maps::SERVICE_SLOTS as usize],
            reals: vec![Real::default(); maps::REAL_SLOTS as usize],
            rings: HashMap::new(),
            vips: HashMap::new(),
        }
    }

    fn tables(&self) -> Tables {
        Tables::read(
            self.table,
            self.slots.clone(),
            self.reals.clone(),
            |chunk| self.rings.get(&chunk).copied().unwrap_or_default(),
            self.vips.clone(),
        )
    }

    fn apply(&mut self, write: &Write) {
        match write {
            Write::Real { index, real } => self.reals[*index as usize] = *real,
            Write::Ring { chunk, slots } => {
                self.rings.insert(*chunk, *slots);
            }
            Write::Service { slot, service } => self.slots[*slot as usize] = *service,
            Write::ServiceRing { slot, ring } => self.slots[*slot as usize].ring = ring.pack(),
            Write::Table(table) => self.table = *table,
            Write::Vip { address, vip } => {
                self.vips.insert(*address, *vip);
            }
            Write::VipGone { address } => {
                self.vips.remove(address);
            }
            Write::Grace => {}
        }
    }

    /// What a packet with ring slot `slot` of `length` meets.
    fn forward(&self, key: &ServiceKey, hash: u32) -> Option<Real> {
        let live = half(self.table.half);
        let home = key.home(self.table.seed) as usize;
        let service = (0..maps::SERVICE_PROBES as usize)
            .map(|probe| self.slots[live.start + (home + probe) % maps::SERVICE_SLOTS as usize])
            .find(|service| service.key == *key)?;
        let ring = RingRef::unpack(service.ring);
        let slot = lvs_ebpf_common::flow::slot(hash, ring.length);
        let chunk = self.rings.get(&(ring.chunk + slot / maps::RING_CHUNK as u32))?;
        let index = u32::from(chunk[slot as usize % maps::RING_CHUNK]);
        assert!(index < service.reals_len, "a ring points outside its service's reals");
        (ring.length > 0).then(|| self.reals[(service.reals_base + index) as usize])
    }

    /// Every packet meets a usable real server.
    fn assert_no_hole(&self) {
        for hash in (0..=u32::MAX).step_by(40_000_003) {
            let real = self.forward(&WEB, hash).expect("an alive pool is never empty");
            assert_ne!(real.address, 0, "a ring led to a removed real server");
            assert_ne!(real.mac, [0; 6], "a ring led to a real server without next hop");
        }
    }
}

#[test]
fn no_packet_meets_a_hole_at_any_step_of_any_change() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    for write in tables.plan(&web(&[real(1, 1), real(2, 1)])).unwrap() {
        maps.apply(&write);
    }
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
        for write in tables.plan(&change).unwrap() {
            maps.apply(&write);
            maps.assert_no_hole();
        }
    }
}

#[test]
fn the_sorry_server_comes_in_and_goes_by_one_store() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    for write in tables.plan(&web(&[real(1, 1), real(2, 1), real(9, 0)])).unwrap() {
        maps.apply(&write);
    }
    let sorry = [real(1, 0), real(2, 0), real(9, 1)];
    let living = [real(1, 1), real(2, 1), real(9, 0)];
    for (reals, only_sorry) in [(sorry, true), (living, false)] {
        let writes = tables.plan(&web(&reals)).unwrap();
        let flips =
            writes.iter().filter(|write| matches!(write, Write::ServiceRing { .. } | Write::Table(_)));
        assert_eq!(flips.count(), 1, "{writes:?}");
        for write in writes {
            maps.apply(&write);
            maps.assert_no_hole();
        }
        for hash in (0..=u32::MAX).step_by(40_000_003) {
            let to_sorry = is(&maps.forward(&WEB, hash).unwrap(), Ipv4Addr::new(10, 77, 0, 9), 80);
            assert_eq!(to_sorry, only_sorry);
        }
    }
}

#[test]
fn a_plan_for_what_is_already_so_is_empty() {
    let mut tables = Maps::new().tables();
    let desired = web(&[real(1, 1), real(2, 3)]);
    assert!(!tables.plan(&desired).unwrap().is_empty());
    assert_eq!(tables.plan(&desired).unwrap(), []);
}

#[test]
fn a_restarted_daemon_finds_nothing_to_write_in_the_tables_it_left() {
    let mut maps = Maps::new();
    let desired = web(&[real(1, 1), real(2, 0), real(3, 2)]);
    for write in maps.tables().plan(&desired).unwrap() {
        maps.apply(&write);
    }
    let mut adopted = maps.tables();
    assert_eq!(adopted.plan(&desired).unwrap(), []);
    assert!(adopted.on_ring(&WEB, Ipv4Addr::new(10, 77, 0, 3), 80));
    assert!(!adopted.on_ring(&WEB, Ipv4Addr::new(10, 77, 0, 2), 80));
}

#[test]
fn a_check_that_fails_moves_only_the_flows_of_its_real() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let all: Vec<DesiredReal> = (1..=3).map(|last| real(last, 1)).collect();
    for write in tables.plan(&web(&all)).unwrap() {
        maps.apply(&write);
    }
    let hashes: Vec<u32> = (0..=u32::MAX).step_by(4_000_037).collect();
    let before: Vec<Real> = hashes.iter().map(|hash| maps.forward(&WEB, *hash).unwrap()).collect();
    let mut one_down = all.clone();
    one_down[1].weight = 0;
    for write in tables.plan(&web(&one_down)).unwrap() {
        maps.apply(&write);
    }
    let (mut kept, mut unaffected) = (0, 0);
    for (hash, old) in hashes.iter().zip(&before) {
        let new = maps.forward(&WEB, *hash).unwrap();
        assert!(!is(&new, Ipv4Addr::new(10, 77, 0, 2), 80), "the dead real still gets flows");
        if !is(old, Ipv4Addr::new(10, 77, 0, 2), 80) {
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
    for write in maps.tables().plan(&web(&[real(1, 1), unresolved])).unwrap() {
        maps.apply(&write);
    }
    maps.assert_no_hole();
}

#[test]
fn a_removed_service_leaves_nothing_behind() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let vip = Vip { lease: 1, ifindex: 3, mac: [2; 6], _pad: [0; 2] };
    let mut desired = web(&[real(1, 1)]);
    desired.vips.push((Ipv4Addr::new(10, 77, 0, 100), vip));
    for write in tables.plan(&desired).unwrap() {
        maps.apply(&write);
    }
    assert!(maps.forward(&WEB, 7).is_some());
    for write in tables.plan(&Desired::default()).unwrap() {
        maps.apply(&write);
    }
    assert_eq!(maps.forward(&WEB, 7), None);
    assert!(maps.reals.iter().all(|real| *real == Real::default()));
    assert!(maps.vips.is_empty());
    assert!(tables.chunks.used.is_empty() && tables.ranges.used.is_empty());
}

#[test]
fn a_thousand_services_are_all_found_within_the_probes() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let keys: Vec<ServiceKey> = (0..1000u32)
        .map(|i| ServiceKey { address: 0x0a00_0000 + i, port: 80, protocol: 6, _pad: 0 })
        .collect();
    let services =
        keys.iter().map(|key| DesiredService { key: *key, hash: 0, reals: vec![real(1, 1)] }).collect();
    for write in tables.plan(&Desired { services, vips: Vec::new() }).unwrap() {
        maps.apply(&write);
    }
    assert!(keys.iter().all(|key| maps.forward(key, 1).is_some()));
}

#[test]
fn tables_that_make_no_sense_are_written_anew() {
    let mut maps = Maps::new();
    let slot = WEB.home(0) as usize;
    maps.slots[slot] =
        Service { key: WEB, ring: u64::MAX, reals_base: u32::MAX, reals_len: 9, ..Default::default() };
    let mut tables = maps.tables();
    for write in tables.plan(&web(&[real(1, 1)])).unwrap() {
        maps.apply(&write);
    }
    maps.assert_no_hole();
}

#[test]
fn what_does_not_fit_is_an_error_and_changes_nothing() {
    let mut tables = Maps::new().tables();
    let desired = web(&[real(1, 1)]);
    tables.plan(&desired).unwrap();
    let many: Vec<DesiredReal> = (0..=maps::REALS_PER_SERVICE)
        .map(|i| DesiredReal {
            address: Ipv4Addr::from(0x0b00_0000 + i),
            port: 80,
            weight: 1,
            next_hop: Some(HOP),
        })
        .collect();
    let reals = many.len();
    assert_eq!(tables.plan(&web(&many)), Err(PlanError::ServiceTooLarge { reals }));
    assert_eq!(tables.plan(&desired).unwrap(), []);
}
