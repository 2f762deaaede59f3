//! How services, virtual addresses and interfaces are told apart, and answers by NAT.

use super::*;

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
