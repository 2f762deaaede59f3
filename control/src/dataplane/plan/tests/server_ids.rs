//! Who is found by a server ID while services change: never one that is not there.

use super::*;

const IDS: ConnectionIds = ConnectionIds { config: 0, length: 1 };
const QUIC: Endpoint = Endpoint { port: 443, protocol: 17, ..WEB };

/// With an ID of one octet.
fn named(last: u8, id: u8) -> DesiredReal {
    DesiredReal { server_id: Some([id, 0, 0, 0, 0, 0, 0, 0]), ..real(last, 1) }
}

fn quic(reals: &[DesiredReal]) -> Desired {
    let web = web(reals);
    let service = DesiredService { key: QUIC, connection_ids: Some(IDS), ..web.services[0].clone() };
    Desired { services: vec![service], ..web }
}

/// Address of the real server that a packet with this ID meets.
fn met(maps: &Maps, id: u8) -> Option<IpAddr> {
    let service = maps.service(&QUIC).filter(|service| service.connection_ids == IDS.pack())?;
    let key = ServerId { octets: [id, 0, 0, 0, 0, 0, 0, 0], service: service.id.into() };
    let index = maps.server_ids.get(&key).filter(|index| **index < service.reals_len)?;
    let real = maps.reals[(service.reals_base + index) as usize];
    assert_ne!(real.address, Address::default(), "an ID leads to nobody");
    Some(real.address.into())
}

fn address(last: u8) -> Option<IpAddr> {
    Some(Ipv4Addr::new(10, 77, 0, last).into())
}

#[test]
fn an_id_leads_to_its_real_server_at_every_step_of_any_change_of_others() {
    for plan in WAYS {
        let mut maps = Maps::new();
        let mut tables = maps.tables();
        maps.reach(&mut tables, &quic(&[named(1, 7), named(2, 8)]));
        let many: Vec<_> = (1..=40).map(|last| named(last, last + 6)).collect();
        let changes = [
            quic(&[named(1, 7), named(2, 9)]),
            quic(&[named(3, 8), named(1, 7)]),
            // A larger range of real servers.
            quic(&many),
            quic(&[named(1, 7)]),
        ];
        for change in changes {
            for write in plan(&mut tables, &change, &maps, NOW).unwrap() {
                maps.apply(&write);
                assert_eq!(met(&maps, 7), address(1));
            }
            let ids = change.services[0].reals.iter().map(|real| (real.server_id.unwrap()[0], real.address));
            ids.for_each(|(id, address)| assert_eq!(met(&maps, id), Some(address)));
            assert_eq!(tables.repairs(&maps), []);
            assert_eq!(maps.tables().plan(&change, &maps, NOW).unwrap(), [], "by a restarted daemon");
        }
    }
}

#[test]
fn connections_of_a_removed_real_server_find_it_until_its_last_flow_has_ended() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    maps.reach(&mut tables, &quic(&[named(1, 7), named(2, 8), named(3, 9)]));
    // One of the IDs is another's at once.
    let next = quic(&[named(1, 7), named(4, 9)]);
    maps.reach(&mut tables, &next);
    assert_eq!([7, 8, 9].map(|id| met(&maps, id)), [address(1), address(2), address(4)]);

    let index = tables.real_index(&QUIC, address(2).unwrap(), 80).unwrap();
    let service = maps.service(&QUIC).unwrap();
    let flow = LiveFlow {
        key: FlowKey { source: 1, source_port: 2, service: service.id },
        real: (index - service.reals_base) as u16,
        phase: Phase::Established,
        idle: Duration::ZERO,
    };
    let long_after = NOW + Duration::from_secs(100_000);
    let timeouts = crate::config::model::Timeouts::default();
    for (flows, expected) in [(vec![flow], address(2)), (vec![], None)] {
        let mut survey = tables.survey(timeouts);
        flows.iter().for_each(|flow| assert!(survey.meet(flow)));
        let found = survey.finish();
        for write in tables.settle(&found, timeouts, &maps, long_after) {
            maps.apply(&write);
            met(&maps, 8);
        }
        assert_eq!(met(&maps, 8), expected);
    }
    assert_eq!([7, 9].map(|id| met(&maps, id)), [address(1), address(4)]);
    assert_eq!(tables.repairs(&maps), []);
}

#[test]
fn a_service_that_goes_or_forgets_the_word_leaves_no_id_behind() {
    let ids = quic(&[named(1, 7), named(2, 8)]);
    let mut without = ids.clone();
    without.services[0].connection_ids = None;
    without.services[0].reals.iter_mut().for_each(|real| real.server_id = None);
    for next in [without, web(&[real(1, 1)])] {
        let mut maps = Maps::new();
        let mut tables = maps.tables();
        maps.reach(&mut tables, &ids);
        assert_eq!(maps.server_ids.len(), 2);
        maps.reach(&mut tables, &next);
        assert_eq!(maps.server_ids, HashMap::new());
        maps.reach(&mut tables, &ids);
        assert_eq!(met(&maps, 8), address(2));
    }
}

#[test]
fn quic_services_remember_their_flows_by_whatever_scheduler() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    maps.reach(&mut tables, &quic(&[named(1, 7)]));
    assert_eq!(maps.service(&QUIC).unwrap().takes_turns, Service::REMEMBERED);
}

#[test]
fn ids_that_something_else_changed_are_put_back_and_those_of_nobody_go() {
    let mut maps = Maps::new();
    let mut tables = maps.tables();
    let desired = quic(&[named(1, 7), named(2, 8)]);
    maps.reach(&mut tables, &desired);
    let right = maps.server_ids.clone();
    let foreign = ServerId { octets: [9; 8], service: 4711 };
    maps.server_ids.retain(|_, index| *index == 0);
    maps.server_ids.values_mut().for_each(|index| *index = 1);
    maps.server_ids.insert(foreign, 0);
    let repairs = tables.repairs(&maps);
    assert_eq!(repairs.len(), 3, "{repairs:?}");
    repairs.iter().for_each(|write| maps.apply(write));
    assert_eq!(maps.server_ids, right);
    // As a daemon that was killed in the middle of a change leaves it.
    maps.server_ids.insert(foreign, 0);
    let mut tables = maps.tables();
    assert_eq!(tables.repairs(&maps), []);
    maps.reach(&mut tables, &desired);
    assert_eq!(maps.server_ids, right);
}
