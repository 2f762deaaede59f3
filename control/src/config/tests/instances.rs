//! What a vrrp_instance and what it tracks mean.

use super::*;

#[test]
fn an_instance_says_otherwise_than_global_defs() {
    let config = sound("rules");
    assert_eq!(config.global.garp_interval, Duration::from_millis(1));
    assert_eq!(config.global.gna_interval, Duration::from_micros(500));
    let [plain, own, strict, owner, far] = config.instances.as_slice() else { panic!("{config:?}") };
    let global = Rules { higher_prio_send_advert: true, skip_check_adv_addr: true, ..Rules::default() };
    assert_eq!((plain.rules, plain.accept), (global, true));
    let seconds = Duration::from_secs;
    let garp = |garp: Garp| (garp.repeat, garp.delay, garp.lower_prio_repeat, garp.lower_prio_delay);
    assert_eq!(garp(plain.garp), (1, seconds(0), 1, seconds(7)));
    let notify = |of: &VrrpInstance| {
        let Notify { says_deleted, deleted, master_rx_lower_pri, priority_changes, .. } = &of.notify;
        (*says_deleted, deleted.is_some(), master_rx_lower_pri.is_some(), *priority_changes)
    };
    assert_eq!(notify(plain), (false, false, false, true));
    assert_eq!(notify(own), (true, false, true, false));
    assert_eq!(notify(strict), (true, true, false, true));
    assert_eq!(own.rules, Rules { lower_prio_no_advert: true, ..Rules::default() });
    assert_eq!((garp(own.garp), own.accept), ((4, seconds(2), 0, seconds(1)), false));
    let strictly = Rules { lower_prio_no_advert: true, owner_ignore_adverts: true, strict: true, ..global };
    assert_eq!((strict.rules, strict.accept, strict.preempt), (strictly, false, Preempt::Immediate));
    let limit = |host, least, most| TtlLimit { peer: [10, 1, 0, host].into(), least, most };
    assert_eq!((far.unicast_ttl, &*far.ttl_limits), (64, &[limit(2, 60, 63), limit(4, 62, 255)][..]));
    let (delay, after_boot) = (config.global.startup_delay, config.global.delay_after_boot);
    assert_eq!((delay, after_boot), (Duration::from_millis(1_500), seconds(20)));
    assert!(config.global.log_unknown_vrids);
    assert_eq!((owner.rules, owner.accept), (Rules { owner_ignore_adverts: false, ..strictly }, true));
}

#[test]
fn keys_of_adverts_are_read_in_all_their_forms() {
    let signings: Vec<_> = sound("auth_hmac").instances.into_iter().filter_map(|it| it.signing).collect();
    let key = |id, secret: &[u8]| SigningKey { id, secret: Secret::new(secret.to_vec()) };
    let hex: Vec<_> = (0..32).collect();
    assert_eq!(
        signings,
        [
            Signing {
                keys: vec![key(1, &hex), key(2, b"this is another key of 32 bytes.")],
                active: 2,
                window: Some(Duration::from_secs(12)),
                mode: SigningMode::Permissive,
            },
            Signing {
                keys: vec![key(7, b"thisisakeyof40byteswithoutanyblanksinit.")],
                active: 7,
                window: None,
                mode: SigningMode::ReceiveOnly,
            },
        ]
    );
    assert!(!format!("{signings:?}").contains("32"), "no log shows a key");
}

#[test]
fn an_instance_is_read_with_all_its_words() {
    let config = sound("pair");
    let [web, dns] = config.instances.as_slice() else { panic!("{config:?}") };
    assert_eq!(config.global.router_id.as_deref(), Some("LB_1"));
    assert_eq!((web.priority.get(), web.preempt, web.start_as_master), (150, Preempt::Never, false));
    assert_eq!(web.authentication, Authentication::Pass(*b"s3cret!#"));
    let garp = Garp {
        repeat: 3,
        delay: Duration::from_secs(2),
        refresh: Duration::from_secs(60),
        refresh_repeat: 1,
        lower_prio_repeat: 3,
        lower_prio_delay: Duration::from_secs(2),
    };
    assert_eq!(web.garp, garp);
    let address =
        |address: [u8; 4], prefix_len| VirtualAddress { prefix_len, ..VirtualAddress::of(address.into()) };
    assert_eq!(
        web.addresses,
        [
            address([10, 0, 0, 100], 24),
            VirtualAddress {
                device: Some("eth0".to_owned()),
                label: Some("eth0:web".to_owned()),
                broadcast: Some(Ipv4Addr::new(10, 0, 0, 255)),
                ..address([10, 0, 0, 101], 24)
            },
            VirtualAddress {
                device: Some("eth1".to_owned()),
                broadcast: Some(Ipv4Addr::new(10, 0, 1, 127)),
                ..address([10, 0, 1, 100], 25)
            },
        ]
    );
    assert_eq!((dns.priority, dns.start_as_master), (Priority::OWNER, true));
    assert_eq!((dns.source, dns.peers.len()), (Some([10, 0, 0, 2].into()), 0));
}

#[test]
fn a_sync_group_has_its_members_and_gives_them_its_trackers() {
    let config = sound("sync_group");
    let groups: Vec<_> =
        config.groups.iter().map(|group| (group.name.as_str(), group.members.as_slice())).collect();
    assert_eq!(groups, [("VG", &[1, 0][..]), ("ALONE", &[2])]);
    let scripts = config.groups.iter().map(|it| (it.notify.any.is_some(), it.notify.master.is_some()));
    assert_eq!(scripts.collect::<Vec<_>>(), [(true, false), (false, true)]);
    let tracks: Vec<Vec<_>> = config
        .instances
        .iter()
        .map(|it| {
            let tracks = it.tracks.iter();
            tracks.map(|track| (config.trackers[track.tracker].name(), track.weight)).collect()
        })
        .collect();
    // A weight of its own counts only where the group says so.
    assert_eq!(tracks, [vec![("eth2", 0), ("eth1", -5)], vec![("eth1", -5)], vec![("chk", -20)]]);
}

#[test]
fn trackers_are_shared_and_weights_are_each_instances_own() {
    let config = sound("track");
    let names: Vec<_> = config.trackers.iter().map(|it| (it.word(), it.name())).collect();
    let expected = [
        ("track_script", "words"),
        ("track_script", "one"),
        ("track_script", "fatal"),
        ("track_file", "drain"),
        ("track_file", "load"),
        ("track_file", "spare"),
        ("track_file", "unused"),
        ("track_process", "proxy"),
        ("track_process", "worker"),
        ("track_interface", "eth1"),
        ("track_interface", "eth2"),
    ];
    assert_eq!(names, expected);
    let tracks = |instance: usize| -> Vec<_> {
        let tracks = config.instances.get(instance).unwrap().tracks.iter();
        tracks.map(|track| (track.tracker, track.weight, track.reverse)).collect()
    };
    let scripts = [(0, -20, true), (1, -7, false), (2, 0, false)];
    let others =
        [(9, 0, false), (10, 11, true), (3, 1, false), (4, -3, true), (7, 0, false), (8, -254, true)];
    assert_eq!(tracks(0), [&scripts[..], &others].concat());
    assert_eq!(tracks(1), [(0, -20, true), (10, 0, false)]);
    let files: Vec<_> = config
        .trackers
        .iter()
        .filter_map(|tracker| match tracker {
            Tracker::File(it) => Some((it.path.to_str().unwrap(), it.initial)),
            _ => None,
        })
        .collect();
    let initial = |value, overwrite| Some(Initial { value, overwrite });
    let expected = [
        ("/run/lvsd/drain", None),
        ("/run/lvsd/load", initial(7, true)),
        ("/run/lvsd/spare", initial(0, true)),
        ("/run/lvsd/unused", initial(-2, false)),
    ];
    assert_eq!(files, expected);
    let processes: Vec<_> = config
        .trackers
        .iter()
        .filter_map(|tracker| match tracker {
            Tracker::Process(it) => Some(it.clone()),
            _ => None,
        })
        .collect();
    let proxy = TrackProcess {
        name: "proxy".to_owned(),
        process: "haproxy".to_owned(),
        parameters: Some((Vec::new(), ParamMatch::Exact)),
        full_command: false,
        quorum: 1..=u32::MAX,
        fork_delay: Duration::ZERO,
        terminate_delay: Duration::ZERO,
    };
    let worker = TrackProcess {
        name: "worker".to_owned(),
        process: "/opt/my worker".to_owned(),
        parameters: Some((vec!["-f".to_owned(), "a b".to_owned()], ParamMatch::Initial)),
        full_command: true,
        quorum: 0..=0,
        fork_delay: Duration::from_millis(500),
        terminate_delay: Duration::from_secs(2),
    };
    assert_eq!(processes, [proxy, worker]);
    let checks = &config.services[0].reals[0].checks;
    let path = || "/run/lvsd/spare".into();
    let expected = [(0, false), (-5, true)]
        .map(|(weight, reverse)| CheckKind::File(FileCheck { path: path(), weight, reverse }));
    assert_eq!(checks.iter().map(|check| check.kind.clone()).collect::<Vec<_>>(), expected);
    let scripts: Vec<_> = config
        .trackers
        .iter()
        .filter_map(|tracker| match tracker {
            Tracker::Script(it) => Some((
                it.script.arguments.join("|"),
                it.interval.as_millis(),
                it.timeout.as_millis(),
                (it.rise, it.fall, it.init_fail),
            )),
            _ => None,
        })
        .collect();
    let expected = [
        ("-c|exit 0".to_owned(), 500, 500, (1, 1, false)),
        ("-c|exit 0".to_owned(), 3000, 2000, (4, 5, true)),
        (String::new(), 1000, 1000, (1, 1, false)),
    ];
    assert_eq!(scripts, expected);
}

#[test]
fn unicast_and_multicast_and_both_versions_live_on_one_interface() {
    let config = sound("unicast_v3");
    let [fast, old] = config.instances.as_slice() else { panic!("{config:?}") };
    assert_eq!((fast.version, fast.advert_interval), (Version::V3, Duration::from_millis(10)));
    assert_eq!((old.version, old.advert_interval), (Version::V2, Duration::from_secs(3)));
    assert_eq!(fast.preempt, Preempt::After(Duration::from_millis(5500)));
    assert_eq!(fast.source, Some([10, 0, 0, 1].into()));
    assert_eq!(fast.peers, [[10, 0, 0, 2], [10, 0, 0, 3]].map(IpAddr::from));
}

#[test]
fn state_master_without_priority_is_the_owner() {
    let loaded = text(
        "vrrp_instance V {\nstate MASTER\ninterface a\nvirtual_router_id 1\nvirtual_ipaddress {\n192.0.2.1/32\n}\n}\n",
    );
    let instance = loaded.config.instances.first().unwrap();
    assert!(instance.priority.is_owner() && instance.start_as_master);
}

#[test]
fn priority_255_without_a_state_is_master_at_once() {
    let instance = |state: &str| {
        let file =
            format!("vrrp_instance V {{\n{state}\npriority 255\ninterface a\nvirtual_router_id 1\n}}\n");
        text(&file).config.instances.first().unwrap().start_as_master
    };
    assert!(instance("") && instance("state MASTER") && !instance("state BACKUP"));
}

#[test]
fn routes_are_read_as_ip_route_reads_them() {
    let loaded = text(
        "vrrp_instance V {\ninterface a\nvirtual_router_id 1\nvirtual_ipaddress {\n192.0.2.1/32\n}\n\
         virtual_routes {\nsrc 10.0.0.1 to 10.1.0.0/16 gw 10.0.0.9 dev eth1 table 100 preference 7 mtu 1400 onlink\n\
         10.2.0.1 dev eth2 no_track\ndefault via 2001:db8::1\n}\n}\nstatic_routes {\nblackhole 10.3.0.0/16 scope 9\n}\n",
    );
    assert!(loaded.diagnostics.is_empty(), "{}", loaded.render_text());
    let plain = VirtualRoute {
        kind: RouteKind::Unicast,
        to: [10, 1, 0, 0].into(),
        prefix_len: 16,
        gateway: None,
        device: None,
        source: None,
        table: 254,
        metric: None,
        mtu: None,
        scope: 0,
        onlink: false,
        no_track: false,
    };
    let full = VirtualRoute {
        gateway: Some([10, 0, 0, 9].into()),
        device: Some("eth1".to_owned()),
        source: Some([10, 0, 0, 1].into()),
        table: 100,
        metric: Some(7),
        mtu: Some(1400),
        onlink: true,
        ..plain.clone()
    };
    let direct = VirtualRoute {
        to: [10, 2, 0, 1].into(),
        prefix_len: 32,
        device: Some("eth2".to_owned()),
        scope: 253,
        no_track: true,
        ..plain.clone()
    };
    let default = VirtualRoute {
        to: "::".parse().unwrap(),
        prefix_len: 0,
        gateway: Some("2001:db8::1".parse().unwrap()),
        ..plain.clone()
    };
    assert_eq!(loaded.config.instances[0].routes, [full, direct, default]);
    let hole = VirtualRoute { kind: RouteKind::Blackhole, to: [10, 3, 0, 0].into(), scope: 9, ..plain };
    assert_eq!(loaded.config.routes, [hole]);
}

#[test]
fn a_switch_is_told_of_a_virtual_mac_where_adverts_do_not_tell_it() {
    let read = |global: &str, lines: &str| {
        let text = format!(
            "global_defs {{\n{global}\n}}\nvrrp_instance V {{\ninterface a\nvirtual_router_id 51\nvirtual_ipaddress {{\n192.0.2.1/24\n}}\n{lines}\n}}\n"
        );
        let loaded = super::text(&text);
        assert!(loaded.diagnostics.is_empty(), "{}", loaded.render_text());
        loaded.config.instances[0].garp.refresh.as_secs()
    };
    let global = "vrrp_garp_extra_if 60";
    assert_eq!(read(global, ""), 0);
    assert_eq!(read(global, "use_vmac"), 0, "adverts tell it");
    assert_eq!(read(global, "use_vmac\nvmac_xmit_base"), 60);
    assert_eq!(read("vrrp_garp_extra_if all 60", ""), 60);
    assert_eq!(read(global, "virtual_ipaddress_excluded {\n192.0.2.2/24 dev b\n}"), 60);
    assert_eq!(read(global, "garp_extra_if all 30\ngarp_master_refresh 40"), 30);
    assert_eq!(read(global, "garp_extra_if all 0\ngarp_master_refresh 40"), 40);
}

#[test]
fn routing_rules_are_read_as_ip_rule_reads_them() {
    let loaded = text(
        "vrrp_instance V {\ninterface a\nvirtual_router_id 1\nvirtual_ipaddress {\n192.0.2.1/32\n}\n\
         virtual_rules {\nnot from 10.1.0.0/16 to 10.2.0.1 iif eth1 oif eth2 dsfield 0x10 fwmark 0x1/0xff table 100 \
         preference 7 ipproto tcp sport 1-9 dport 80 uidrange 0-99 suppress_prefixlength 0 no_track\n}\n}\n\
         static_rules {\nto 2001:db8::/32 blackhole pref 9\ninet6 goto 99 order 10\nl3mdev priority 11\n}\n",
    );
    assert!(loaded.diagnostics.is_empty(), "{}", loaded.render_text());
    let plain = VirtualRule {
        family: Family::V4,
        priority: 11,
        action: RuleAction::Table(0),
        inverted: false,
        from: None,
        to: None,
        in_device: None,
        out_device: None,
        tos: 0,
        mark: None,
        protocol: None,
        source_ports: None,
        destination_ports: None,
        users: None,
        l3mdev: true,
        suppress_prefix_length: None,
        no_track: false,
    };
    let full = VirtualRule {
        priority: 7,
        action: RuleAction::Table(100),
        inverted: true,
        from: Some(([10, 1, 0, 0].into(), 16)),
        to: Some(([10, 2, 0, 1].into(), 32)),
        in_device: Some("eth1".to_owned()),
        out_device: Some("eth2".to_owned()),
        tos: 16,
        mark: Some((1, 255)),
        protocol: Some(6),
        source_ports: Some(1..=9),
        destination_ports: Some(80..=80),
        users: Some(0..=99),
        l3mdev: false,
        suppress_prefix_length: Some(0),
        no_track: true,
        ..plain.clone()
    };
    assert_eq!(loaded.config.instances[0].routing_rules, [full]);
    let hole = VirtualRule {
        family: Family::V6,
        priority: 9,
        action: RuleAction::Blackhole,
        to: Some(("2001:db8::".parse().unwrap(), 32)),
        l3mdev: false,
        ..plain.clone()
    };
    let jump = VirtualRule { to: None, priority: 10, action: RuleAction::Goto(99), ..hole.clone() };
    assert_eq!(loaded.config.rules, [hole, jump, plain]);
}

#[test]
fn static_addresses_have_an_interface() {
    let read = |global: &str| {
        let text = format!(
            "global_defs {{\n{global}\n}}\nstatic_ipaddress {{\n192.0.2.9/24 dev eth1\n2001:db8::9/64\n}}\n"
        );
        let loaded = super::text(&text);
        assert!(loaded.diagnostics.is_empty(), "{}", loaded.render_text());
        let addresses = loaded.config.addresses.into_iter();
        addresses.map(|(interface, address)| (interface, address.address.to_string())).collect::<Vec<_>>()
    };
    let both = |usual: &str| [("eth1".into(), "192.0.2.9".into()), (usual.to_owned(), "2001:db8::9".into())];
    assert_eq!(read(""), both("eth0"));
    assert_eq!(read("default_interface ens3"), both("ens3"));
}

#[test]
fn a_virtual_mac_is_made_of_family_and_vrid() {
    let read = |lines: &str| {
        let text = format!(
            "vrrp_instance V {{\ninterface a\nvirtual_router_id 51\nvirtual_ipaddress {{\n192.0.2.1/24\n192.0.2.2/24 use_vmac\n}}\n{lines}\n}}\n"
        );
        let mut loaded = super::text(&text);
        assert!(loaded.diagnostics.is_empty(), "{}", loaded.render_text());
        loaded.config.instances.remove(0)
    };
    let vmac = |here, elsewhere, adverts| Vmac { here, elsewhere, adverts };
    assert_eq!(read("").vmac, Vmac::default());
    assert_eq!(read("use_vmac vrrp.51").vmac, vmac(true, false, true));
    assert_eq!(read("use_vmac vrrp.51 netlink_notify_msg group 3").vmac, vmac(true, false, true));
    assert_eq!(read("use_vmac\nvmac_xmit_base").vmac, vmac(true, false, false));
    assert_eq!(read("use_vmac_addr").vmac, vmac(false, true, false));
    let instance = read("");
    assert_eq!(instance.addresses.iter().map(|address| address.vmac).collect::<Vec<_>>(), [false, true]);
    assert_eq!(instance.virtual_mac(), [0, 0, 0x5e, 0, 1, 51]);
    let over_ipv6 = VrrpInstance { family: Family::V6, ..instance };
    assert_eq!(over_ipv6.virtual_mac(), [0, 0, 0x5e, 0, 2, 51]);
}

#[test]
fn a_link_counts_as_late_as_its_delays_say() {
    let loaded = text(
        "global_defs {\ndynamic_interfaces\n}\nvrrp_instance V {\ninterface a\nvirtual_router_id 1\n\
         dont_track_primary\nvirtual_ipaddress {\n192.0.2.1/32\n}\n}\n\
         interface_up_down_delays {\na 1.5\nb 0 0.000010\n}\n",
    );
    assert!(loaded.diagnostics.is_empty(), "{}", loaded.render_text());
    let delays = |interface: &str, down, up| LinkDelays {
        interface: interface.to_owned(),
        down: Duration::from_micros(down),
        up: Duration::from_micros(up),
    };
    assert_eq!(loaded.config.link_delays, [delays("a", 1_500_000, 1_500_000), delays("b", 0, 10)]);
    assert!(loaded.config.global.dynamic_interfaces && !loaded.config.instances[0].track_primary);
}

#[test]
fn an_instance_may_differ_from_the_global_timers() {
    let instances = "vrrp_instance A {\ninterface a\nvirtual_router_id 1\ndown_timer_adverts 7\nv3_checksum_as_v2 off\n}\n\
                     vrrp_instance B {\ninterface a\nvirtual_router_id 2\n}\n";
    let read = |global: &str| text(&format!("global_defs {{\n{global}\n}}\n{instances}"));
    let settings: Vec<_> = read("vrrp_down_timer_adverts 5\nv3_checksum_as_v2")
        .config
        .instances
        .iter()
        .map(|it| (it.down_timer_adverts, it.checksum_of_message))
        .collect();
    assert_eq!(settings, [(7, false), (5, true)]);
    assert_eq!(read("vrrp_down_timer_adverts 2").errors, 0);
    assert_eq!(read("vrrp_down_timer_adverts 1").errors, 1, "the lease would end where its renewal is due");
}

#[test]
fn an_advert_holds_255_addresses() {
    let errors = |count: u32| {
        let addresses: String =
            (1..=count).map(|n| format!("{}/8\n", Ipv4Addr::from_bits(0x0a00_0000 + n))).collect();
        let file = format!(
            "vrrp_instance V {{\ninterface a\nvirtual_router_id 1\nvirtual_ipaddress {{\n{addresses}}}\n}}\n"
        );
        text(&file).errors
    };
    assert_eq!((errors(255), errors(256)), (0, 1));
}

#[test]
fn a_long_password_is_cut_as_its_peers_cut_it() {
    let loaded = text(
        "vrrp_instance V {\ninterface a\nvirtual_router_id 1\nauthentication {\nauth_type PASS\n\
         auth_pass correcthorse\n}\nvirtual_ipaddress {\n192.0.2.1/32\n}\n}\n",
    );
    assert!(!loaded.has_errors());
    assert_eq!(loaded.config.instances.first().unwrap().authentication, Authentication::Pass(*b"correcth"));
}

#[test]
fn heartbeat_interfaces_are_others_than_interface_and_have_one_user_of_a_vrid() {
    let read = |lines: &str, vrid: u8| {
        let instance = |name: &str, interface: &str, vrid: u8, lines: &str| {
            format!(
                "vrrp_instance {name} {{\ninterface {interface}\nvirtual_router_id {vrid}\n{lines}\n\
                 virtual_ipaddress {{\n10.0.{vrid}.{}/24\n}}\n}}\n",
                name.len()
            )
        };
        let loaded = text(&(instance("A", "a", 1, lines) + &instance("BB", "b", vrid, "")));
        (loaded.config.instances[0].heartbeats.clone(), loaded.errors)
    };
    assert_eq!(read("heartbeat_interface b c", 2), (vec!["b".to_owned(), "c".to_owned()], 0));
    assert_eq!(read("heartbeat_interface b", 1).1, 1, "VRID 1 is taken on b");
    assert_eq!(read("heartbeat_interface c", 1).1, 0);
    for wrong in [
        "heartbeat_interface",
        "heartbeat_interface a",
        "heartbeat_interface c c",
        "heartbeat_interface c d/e",
    ] {
        assert_eq!(read(wrong, 2).1, 1, "{wrong}");
    }
    assert_eq!(read("heartbeat_interface i1 i2 i3 i4 i5 i6 i7 i8 i9", 2).1, 1);
    let ipv6 = "vrrp_instance A {\ninterface a\nvirtual_router_id 1\nheartbeat_interface b\n\
                virtual_ipaddress {\nfe80::1/64\n}\n}\n";
    let ipv6 = text(ipv6);
    assert_eq!((&ipv6.config.instances[0].heartbeats, ipv6.errors), (&vec!["b".to_owned()], 0));
}

#[test]
fn an_instance_without_peers_waits_for_them_where_it_says_so() {
    let read = |lines: &str| {
        text(&format!(
            "vrrp_instance V {{\ninterface a\nvirtual_router_id 51\nvirtual_ipaddress {{\n192.0.2.1/24\n}}\n{lines}\n}}\n"
        ))
    };
    for lines in ["unicast_src_ip 192.0.2.7", "unicast_peer {\n}"] {
        assert_eq!(read(lines).errors, 1, "{lines}");
        let waits = read(&format!("{lines}\nunicast_fault_no_peer"));
        assert_eq!((waits.errors, waits.diagnostics.len()), (0, 1), "{lines}");
        assert!(waits.config.instances[0].needs_peers);
    }
    assert_eq!(read("unicast_peer {\n192.0.2.8\n}\nunicast_fault_no_peer").diagnostics.len(), 0);

    let old = |lines: &str| read(lines).config.instances[0].old_checksum;
    assert_eq!(old(""), OldChecksum::FoundOut);
    assert_eq!(old("old_unicast_checksum"), OldChecksum::Always);
    assert_eq!(old("old_unicast_checksum never"), OldChecksum::Never);
    assert_eq!(read("old_unicast_checksum always").errors, 1);
}
