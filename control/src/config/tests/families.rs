//! IPv6 instances, and addresses that are moved without being advertised.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use super::*;

fn v6(text: &str) -> IpAddr {
    text.parse::<Ipv6Addr>().unwrap().into()
}

#[test]
fn ipv6_addresses_make_an_instance_of_ipv6_and_version_3() {
    let config = sound("ipv6");
    let [six, four, unicast] = config.instances.as_slice() else { panic!("{config:?}") };
    assert_eq!((six.family, six.version), (Family::V6, Version::V3));
    assert_eq!(six.advert_interval, Duration::from_millis(100));
    assert_eq!((four.family, four.version), (Family::V4, Version::V2));
    assert_eq!((unicast.family, unicast.peers.as_slice()), (Family::V6, &[v6("2001:db8::2")][..]));
    assert_eq!(unicast.source, Some(v6("2001:db8::1")));
    assert_eq!(six.multicast, v6("ff02::13"));
    assert_eq!(four.multicast, IpAddr::from([224, 0, 0, 19]));
}

#[test]
fn excluded_addresses_are_of_either_family() {
    let config = sound("ipv6");
    let [six, four, unicast] = config.instances.as_slice() else { panic!("{config:?}") };
    let addresses = |them: &[VirtualAddress]| them.iter().map(|it| it.address).collect::<Vec<_>>();
    assert_eq!(addresses(&six.addresses), [v6("fe80::100"), v6("2001:db8::100")]);
    assert_eq!(addresses(&six.excluded), [IpAddr::from([10, 0, 0, 100]), v6("2001:db8::101")]);
    assert_eq!(addresses(&four.excluded), [v6("2001:db8::102")]);
    assert_eq!((unicast.addresses.len(), unicast.excluded.len()), (0, 1));
}

#[test]
fn an_address_carries_its_flags() {
    let config = sound("ipv6");
    let address = &config.instances[0].addresses[1];
    let flags = AddressFlags {
        detect_duplicates: true,
        home: true,
        manage_temporary: true,
        no_prefix_route: true,
        auto_join: true,
    };
    assert_eq!((address.flags, address.preferred, address.prefix_len), (flags, Some(0), 64));
    assert_eq!(address.device.as_deref(), Some("eth1"));
    let plain = &config.instances[0].addresses[0];
    assert_eq!((plain.flags, plain.preferred), (AddressFlags::default(), None));
}

#[test]
fn a_whole_address_of_ipv6_is_no_source_unless_it_is_said_to_be() {
    let preferred = |address: &str| {
        let file = format!(
            "vrrp_instance V {{\ninterface a\nvirtual_router_id 1\nvirtual_ipaddress {{\n{address}\n}}\n}}\n"
        );
        text(&file).config.instances[0].addresses[0].preferred
    };
    assert_eq!(preferred("2001:db8::1"), Some(0));
    assert_eq!(preferred("2001:db8::1/128"), Some(0));
    assert_eq!(preferred("2001:db8::1/128 preferred_lft forever"), None);
    assert_eq!(preferred("2001:db8::1/64"), None);
    assert_eq!(preferred("10.0.0.1/32"), None);
}

#[test]
fn an_advert_over_ipv6_holds_as_many_addresses_as_a_packet_of_1500_bytes() {
    let errors = |count: u32, block: &str| {
        let addresses: String = (1..=count).map(|n| format!("2001:db8::{n:x}/64\n")).collect();
        let first = "virtual_ipaddress {\n2001:db8:1::1/64\n}\n";
        let first = if block == "virtual_ipaddress" { "" } else { first };
        let file = format!(
            "vrrp_instance V {{\ninterface a\nvirtual_router_id 1\n{first}{block} {{\n{addresses}}}\n}}\n"
        );
        text(&file).has_errors()
    };
    assert!(!errors(90, "virtual_ipaddress"));
    assert!(errors(91, "virtual_ipaddress"));
    assert!(!errors(300, "virtual_ipaddress_excluded"));
}

#[test]
fn services_and_groups_are_of_ipv6_too() {
    let config = sound("services6");
    let found: Vec<_> = config.services.iter().map(|service| (service.address, service.port)).collect();
    let wanted = [("100", 80), ("ff", 443), ("100", 443), ("101", 443), ("102", 0)];
    assert_eq!(found, wanted.map(|(last, port)| (v6(&format!("2001:db8::{last}")), port)));
    let web = &config.services[0];
    assert_eq!(web.persistence.map(|it| it.prefix_len), Some(64));
    assert_eq!(config.services[1].persistence.map(|it| it.prefix_len), Some(128));
    assert_eq!(
        web.destinations().collect::<Vec<_>>(),
        ["11", "12", "99"].map(|it| v6(&format!("2001:db8::{it}")))
    );
    assert_eq!((web.reals[1].checks[0].address, web.reals[0].checks[0].port), (v6("2001:db8::12"), 80));
}

#[test]
fn a_check_may_go_over_ipv6() {
    let config = sound("ipv6");
    let checks = &config.services[0].reals[0].checks;
    let [http, ping] = checks.as_slice() else { panic!("{checks:?}") };
    assert_eq!((http.address, http.source.address), (v6("2001:db8::11"), Some(v6("2001:db8::1"))));
    let CheckKind::Http(kind) = &http.kind else { panic!("{http:?}") };
    assert_eq!(kind.urls[0].host, "[2001:db8::11]:80");
    assert_eq!((ping.address, ping.source.interface.as_deref()), (v6("fe80::11"), Some("eth0")));
}
