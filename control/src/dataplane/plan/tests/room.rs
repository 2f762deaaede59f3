//! What many services and real servers need, and what becomes of more than there is room for.

use super::*;

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
