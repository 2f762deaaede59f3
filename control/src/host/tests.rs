use super::{ways::next_hops, *};
use crate::config::model::{
    Authentication, Garp, Notify, OldChecksum, Preempt, Priority, Rules, Version, Vrid,
};
use crate::netlink::Address;

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100));
const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));

fn config(source: Option<IpAddr>) -> Config {
    let instance = VrrpInstance {
        name: "VI_1".into(),
        interface: "eth0".into(),
        heartbeats: Vec::new(),
        family: Family::V4,
        vrid: Vrid::new(51).unwrap(),
        priority: Priority::DEFAULT,
        version: Version::V2,
        advert_interval: Duration::from_secs(1),
        start_as_master: false,
        source,
        peers: Vec::new(),
        multicast: [224, 0, 0, 18].into(),
        unicast_ttl: 255,
        ttl_limits: Vec::new(),
        authentication: Authentication::None,
        signing: None,
        preempt: Preempt::Immediate,
        addresses: vec![VirtualAddress { prefix_len: 24, ..VirtualAddress::of(VIP) }],
        excluded: Vec::new(),
        garp: Garp::default(),
        rules: Rules::default(),
        accept: true,
        vmac: Vmac::default(),
        tagged: false,
        notify: Notify::default(),
        tracks: Vec::new(),
        routes: Vec::new(),
        routing_rules: Vec::new(),
        track_primary: true,
        down_timer_adverts: 3,
        checksum_of_message: false,
        old_checksum: OldChecksum::default(),
        needs_peers: false,
    };
    Config { instances: vec![instance], ..Config::default() }
}

fn snapshot(addresses: &[IpAddr], running: bool) -> Snapshot {
    let link = Link {
        ifindex: 3,
        name: "eth0".into(),
        mac: [2, 0, 0, 0, 0, 1],
        running,
        mtu: 1500,
        loopback: false,
        veth: false,
        router: false,
    };
    let address = |address: &IpAddr| Address { ifindex: 3, address: *address, prefix_len: 24, ours: false };
    let mut snapshot = Snapshot { links: vec![link], ..Snapshot::default() };
    snapshot.addresses.extend(addresses.iter().map(address));
    snapshot
}

fn located(snapshot: &Snapshot) -> LocalInstance {
    locate(&config(None), snapshot).pop().unwrap().unwrap()
}

fn lack(source: Option<IpAddr>, snapshot: &Snapshot) -> HostError {
    locate(&config(source), snapshot).pop().unwrap().unwrap_err()
}

#[test]
fn the_program_is_told_whose_addresses_are_in_tagged_networks() {
    for tagged in [false, true] {
        let mut config = config(None);
        config.instances[0].tagged = tagged;
        let instance = locate(&config, &snapshot(&[OWN], true)).pop().unwrap().unwrap();
        let told: Vec<_> = vips::vips(&[instance], &[7]).into_iter().map(|(_, vip)| vip.flags).collect();
        assert_eq!(told, [u8::from(tagged) * lvs_ebpf_common::Vip::TAGGED]);
    }
}

#[test]
fn a_virtual_address_left_by_a_killed_daemon_is_not_taken_for_the_source() {
    assert_eq!(located(&snapshot(&[VIP, OWN], true)).source, OWN);
}

#[test]
fn adverts_over_ipv6_come_from_the_link_local_address_that_is_not_virtual() {
    let [vip, global, own] = ["fe80::100", "2001:db8::1", "fe80::1"].map(|it| it.parse().unwrap());
    let mut config = config(None);
    let [instance] = config.instances.as_mut_slice() else { panic!("not one instance") };
    instance.family = Family::V6;
    instance.addresses = vec![VirtualAddress::of(vip)];
    let find = |there: &[IpAddr]| locate(&config, &snapshot(there, true)).pop().unwrap();
    assert_eq!(find(&[OWN, vip, global, own]).unwrap().source, own);
    let refused = find(&[OWN, vip, global]).unwrap_err().to_string();
    assert!(refused.contains("no IPv6 address"), "{refused}");
}

#[test]
fn what_the_host_lacks_is_said_by_name() {
    let no_interface = lack(None, &Snapshot::default()).to_string();
    assert!(no_interface.contains("\"eth0\""), "{no_interface}");
    let no_source = lack(None, &snapshot(&[VIP], true)).to_string();
    assert!(no_source.contains("no IPv4 address"), "{no_source}");
    let elsewhere = lack(Some(OWN), &snapshot(&[VIP], true)).to_string();
    assert!(elsewhere.contains("10.77.0.1 is not on eth0"), "{elsewhere}");
}

#[test]
fn masters_get_their_addresses_and_all_others_lose_them() {
    let instances = [located(&snapshot(&[OWN], true))];
    let (add, remove) = addresses::work(&instances, |_| true, &snapshot(&[OWN], true));
    assert_eq!((add.len(), remove.len()), (1, 0));
    let (add, remove) = addresses::work(&instances, |_| true, &snapshot(&[OWN, VIP], true));
    assert_eq!((add.len(), remove.len()), (0, 0));
    let (add, remove) = addresses::work(&instances, |_| false, &snapshot(&[OWN, VIP], true));
    assert_eq!((add.len(), remove.iter().map(|a| a.address).collect::<Vec<_>>()), (0, vec![VIP]));
}

#[test]
fn a_master_by_no_accept_has_no_addresses() {
    let mut config = config(None);
    config.instances[0].accept = false;
    let found = snapshot(&[OWN], true);
    let instances: Vec<_> = locate(&config, &found).into_iter().map(Result::unwrap).collect();
    let (add, remove) = addresses::work(&instances, |_| true, &snapshot(&[OWN, VIP], true));
    assert_eq!((add.len(), remove.len()), (0, 1));
}

#[test]
fn a_fault_names_what_is_missing() {
    let instance = &located(&snapshot(&[OWN], true));
    assert_eq!(fault(instance, &snapshot(&[OWN], true)), None);
    assert_eq!(fault(instance, &snapshot(&[OWN], false)), Some(FaultCause::LinkDown));
    assert_eq!(fault(instance, &snapshot(&[VIP], true)), Some(FaultCause::SourceMissing));
    assert_eq!(fault(instance, &Snapshot::default()), Some(FaultCause::InterfaceMissing));
    let careless = &LocalInstance { needs_link: false, ..instance.clone() };
    assert_eq!(fault(careless, &snapshot(&[OWN], false)), None, "dont_track_primary");
    assert_eq!(fault(careless, &Snapshot::default()), Some(FaultCause::InterfaceMissing));
}

#[test]
fn an_instance_without_a_place_waits_for_one_and_no_other_is_like_it() {
    let config = config(None);
    let [first, second] = [0, 1].map(|place| {
        let lacks = lack(None, &Snapshot::default()).fault();
        LocalInstance::nowhere(place, &config.instances[0], lacks)
    });
    assert_ne!(first.link.ifindex, second.link.ifindex);
    let there = snapshot(&[OWN], true);
    assert_eq!(fault(&first, &there), Some(FaultCause::InterfaceMissing));
    assert!(!located(&there).is_as(&first), "its coming is noticed");
    assert_eq!(lack(None, &snapshot(&[], true)).fault(), FaultCause::SourceMissing);
}

#[test]
fn a_link_with_a_delay_counts_as_it_was_until_then() {
    let at = |seconds| Monotonic::default() + Duration::from_secs(seconds);
    let (second, two) = (Duration::from_secs(1), Duration::from_secs(2));
    let mut links = HashMap::from([("eth0".to_owned(), Debounce::new(two, second, Finding::Up))]);
    let mut look = |running, now| {
        let mut seen = snapshot(&[OWN], running);
        let left = debounce(&mut links, &mut seen, at(now));
        (seen.links[0].running, left)
    };
    assert_eq!(look(false, 10), (true, Some(second)));
    assert_eq!(look(false, 11), (false, None));
    assert_eq!(look(true, 20), (false, Some(two)));
    assert_eq!(look(false, 21), (false, None));
    assert_eq!(look(true, 30), (false, Some(two)));
    assert_eq!(look(true, 32), (true, None));
}

#[test]
fn an_interface_that_came_back_as_another_is_noticed_and_a_link_that_went_down_is_not() {
    let before = &located(&snapshot(&[OWN], true));
    let now = |snapshot: Snapshot| located(&snapshot).is_as(before);
    assert!(now(snapshot(&[OWN], false)) && now(snapshot(&[OWN, VIP], true)));
    let mut other_mac = snapshot(&[OWN], true);
    other_mac.links[0].mac = [2, 0, 0, 0, 0, 7];
    assert!(!now(other_mac));
    assert!(!now(snapshot(&[[10, 77, 0, 3].into()], true)));
}

#[test]
fn reals_behind_a_faulty_instance_are_isolated_and_no_others() {
    let instances = [located(&snapshot(&[OWN], true))];
    let (near, far) = (IpAddr::from([10, 77, 0, 11]), IpAddr::from([10, 88, 0, 11]));
    let route = |ifindex, next_hop| Route { ifindex, next_hop, local: false, source: None, mtu: None };
    let routes = [(near, route(3, near)), (far, route(4, far))].into();
    assert_eq!(isolated(&instances, &[Some(Some(FaultCause::LinkDown))], &routes), [near].into());
    assert_eq!(isolated(&instances, &[Some(None)], &routes), HashSet::new());
}

#[test]
fn a_next_hop_needs_a_neighbour() {
    let real = IpAddr::from([10, 77, 0, 11]);
    let mut snapshot = snapshot(&[OWN], true);
    let route = Route { ifindex: 3, next_hop: real, local: false, source: None, mtu: None };
    assert!(next_hops(&config(None), &[(real, route)].into(), &snapshot).is_empty());
    snapshot.neighbours.insert((3, real), [2, 0, 0, 0, 0, 9]);
    let hops = next_hops(&config(None), &[(real, route)].into(), &snapshot);
    assert_eq!(hops[&real].mac, [2, 0, 0, 0, 0, 9]);
}

#[test]
fn a_real_server_on_this_node_needs_no_neighbour() {
    let route = Route { ifindex: 1, next_hop: OWN, local: true, source: None, mtu: None };
    let hops = next_hops(&config(None), &[(OWN, route)].into(), &snapshot(&[OWN], true));
    assert!(hops[&OWN].is_local());
}

#[test]
fn the_way_to_a_real_server_of_ipv6_comes_from_an_address_of_ipv6_that_is_not_of_the_link() {
    let v6 = |text: &str| text.parse::<IpAddr>().unwrap();
    let (real, own) = (v6("2001:db8::11"), v6("2001:db8::1"));
    let mut snapshot = snapshot(&[OWN, v6("fe80::1"), own], true);
    snapshot.neighbours.insert((3, real), [2, 0, 0, 0, 0, 9]);
    let route = Route { ifindex: 3, next_hop: real, local: false, source: None, mtu: None };
    let hop = next_hops(&config(None), &[(real, route)].into(), &snapshot)[&real];
    assert_eq!((hop.mac, hop.source), ([2, 0, 0, 0, 0, 9], Some(own)));
}

#[test]
fn a_tunnel_comes_from_an_address_of_its_own_and_knows_the_narrowest_mtu() {
    let real = IpAddr::from([10, 77, 0, 11]);
    let mut there = snapshot(&[VIP, OWN], true);
    there.neighbours.insert((3, real), [2, 0, 0, 0, 0, 9]);
    let hop = |source, mtu, snapshot: &Snapshot| {
        let route = Route { ifindex: 3, next_hop: real, local: false, source, mtu };
        let hop = next_hops(&config(None), &[(real, route)].into(), snapshot)[&real];
        (hop.source, hop.mtu)
    };
    let elsewhere = IpAddr::from([10, 88, 0, 1]);
    assert_eq!(hop(Some(elsewhere), None, &there), (Some(elsewhere), 1500));
    assert_eq!(hop(Some(VIP), Some(1400), &there), (Some(OWN), 1400));
    there.links[0].mtu = 65_536;
    assert_eq!(hop(None, None, &there), (Some(OWN), u16::MAX));
    let alone = Snapshot { addresses: snapshot(&[VIP], true).addresses, ..there };
    assert_eq!(hop(Some(VIP), Some(9000), &alone), (None, 9000));
}

#[test]
fn what_has_the_virtual_mac_depends_on_the_interface_and_the_words() {
    let mut there = snapshot(&[OWN], true);
    there.links.push(Link {
        ifindex: 4,
        name: "eth1".into(),
        mac: [2, 0, 0, 0, 0, 2],
        ..there.links[0].clone()
    });
    let mut config = config(None);
    let [instance] = config.instances.as_mut_slice() else { panic!("not one instance") };
    let other = VirtualAddress { device: Some("eth1".into()), ..VirtualAddress::of([10, 78, 0, 100].into()) };
    instance.addresses.push(other);
    let mut vips = |vmac: Vmac, words: [bool; 2]| {
        for (address, word) in config.instances[0].addresses.iter_mut().zip(words) {
            address.vmac = word;
        }
        config.instances[0].vmac = vmac;
        let local = locate(&config, &there).pop().unwrap().unwrap();
        let mut vips: Vec<_> =
            vips::vips(std::slice::from_ref(&local), &[7]).into_iter().map(|(key, vip)| (vip, key)).collect();
        vips.sort_by_key(|(vip, key)| (vip.ifindex, *key));
        assert!(vips.iter().all(|(vip, _)| vip.lease == 7));
        let mut macs: Vec<_> = virtual_macs::of(&[local]).into_iter().collect();
        macs.sort_unstable();
        assert_eq!(macs.len(), vips.len() - 2, "one more entry for each");
        assert_eq!(virtual_macs::of_vips(vips.iter().map(|(vip, _)| vip)), macs.iter().copied().collect());
        (macs, vips)
    };
    let mac = [0, 0, 0x5e, 0, 1, 51];
    let (here, elsewhere) =
        (Vmac { here: true, ..Vmac::default() }, Vmac { elsewhere: true, ..Vmac::default() });
    assert_eq!(vips(Vmac::default(), [false; 2]).0, []);
    assert_eq!(vips(here, [false; 2]).0, [(3, mac)]);
    assert_eq!(vips(elsewhere, [false; 2]).0, [(4, mac)]);
    assert_eq!(vips(Vmac::default(), [false, true]).0, [(4, mac)]);
    assert_eq!(vips(Vmac { elsewhere: true, ..here }, [false; 2]).0, [(3, mac), (4, mac)]);
    let (_, entries) = vips(here, [false; 2]);
    let vip = lvs_ebpf_common::Vip {
        lease: 7,
        ifindex: 3,
        mac: [2, 0, 0, 0, 0, 1],
        answers: mac,
        ..Default::default()
    };
    let key = lvs_ebpf_common::virtual_mac_key(3, 1, 51).into();
    assert_eq!(entries[..2], [(vip, VIP), (vip, key)]);
}

#[test]
fn with_no_accept_the_program_is_told_to_answer_no_pings() {
    let mut local = located(&snapshot(&[OWN], true));
    let mut flags = |accept| {
        local.accept = accept;
        vips::vips(std::slice::from_ref(&local), &[7])
            .into_iter()
            .map(|(_, vip)| vip.flags)
            .collect::<Vec<_>>()
    };
    assert_eq!((flags(true), flags(false)), (vec![0], vec![lvs_ebpf_common::Vip::NOT_ACCEPTED]));
}
