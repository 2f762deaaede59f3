//! What is said about whole files. `BLESS=1 cargo test -p control config` writes the expectations anew.

use std::{
    collections::{HashMap, HashSet},
    env, fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

mod checks;
mod families;
mod hostile;
mod instances;
mod language;
mod mistakes;
mod words;

use super::{
    keywords::{self, Block, Keyword, Status},
    model::*,
    *,
};
use crate::file_value::Initial;

fn files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
    files.sort();
    files
}

/// Whether `said` is what stands in the file.
fn is_as_pinned(path: &Path, said: &str) -> bool {
    if env::var_os("BLESS").is_some() {
        fs::write(path, said).unwrap();
    }
    let same = fs::read_to_string(path).is_ok_and(|expected| expected == said);
    if !same {
        println!("{} differs from\n{said}", path.display());
    }
    same
}

fn text(text: &str) -> Loaded {
    interpret(Path::new("lvsd.conf"), text.to_owned(), "node1")
}

fn sound(name: &str) -> Config {
    let loaded = load(Path::new(&format!("tests/config/sound/{name}.conf")), "node1").unwrap();
    assert!(!loaded.has_errors(), "{}", loaded.render_text());
    loaded.config
}

#[test]
fn each_broken_file_is_answered_as_pinned() {
    let files = files("tests/config/broken");
    assert!(files.len() >= 20);
    let mut wrong = files.iter().filter(|path| {
        let said = load(path, "node1").unwrap().render_text();
        !is_as_pinned(&path.with_extension("txt"), &said)
    });
    assert_eq!(wrong.next(), None);
}

#[test]
fn each_sound_file_is_read_without_an_error() {
    for path in files("tests/config/sound") {
        let loaded = load(&path, "node1").unwrap();
        assert!(!loaded.has_errors(), "{}", loaded.render_text());
        assert!(is_as_pinned(&path.with_extension("txt"), &loaded.render_text()), "{}", path.display());
    }
}

#[test]
fn a_file_means_the_same_when_it_is_formatted() {
    for path in files("tests/config/sound") {
        let (text, formatted) = format(&path).unwrap();
        let read = |text: String| interpret(&path, text, "node1").config;
        assert_eq!(read(formatted), read(text), "{}", path.display());
    }
}

#[test]
fn timeouts_are_the_kernels_where_nothing_is_said() {
    let Timeouts { tcp, tcp_fin, udp } = sound("schedulers").global.timeouts;
    assert_eq!([tcp, tcp_fin, udp].map(|time| time.as_secs()), [3600, 120, 60]);
    let mut capped = text("global_defs {\n lvs_timeouts tcp 0 tcpfin 86400\n}").config.global.timeouts;
    assert_eq!((capped.tcp.as_secs(), capped.tcp_fin.as_secs()), (900, 43_200));
    capped.tcp_fin = Timeouts::default().tcp_fin;
    assert_eq!(capped, Timeouts::default());
}

#[test]
fn persistence_is_as_in_keepalived_for_half_a_day_at_most() {
    let persistence = |port| {
        let service = sound("persistence").services.into_iter().find(|service| service.port == port);
        service.unwrap().persistence.map(|it| (it.timeout.as_secs(), it.prefix_len))
    };
    let expected = [Some((360, 32)), Some((50, 20)), Some((360, 24)), Some((43_200, 32))];
    assert_eq!([82, 83, 84, 85].map(persistence), expected);
}

fn last_byte(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    }
}

#[test]
fn without_a_port_a_service_has_all_of_them_and_persistent_clients() {
    let config = sound("all_ports");
    let found: Vec<_> =
        config.services.iter().map(|service| (last_byte(service.address), service.port)).collect();
    assert_eq!(found, [(100, 0), (100, 80), (100, 0), (101, 0), (102, 0)]);
    let seconds = |service: &VirtualServer| service.persistence.map(|it| it.timeout.as_secs());
    let persistence: Vec<_> = config.services.iter().map(seconds).collect();
    assert_eq!(persistence, [Some(360), None, Some(50), Some(360), Some(360)]);
    let [all, _, udp, ..] = config.services.as_slice() else { panic!("{config:?}") };
    assert!(all.reals.iter().chain(&udp.reals).all(|real| real.port == 0), "a packet keeps its port");
    let asked: Vec<_> = all.reals.iter().filter_map(|real| Some(real.checks.first()?.port)).collect();
    assert_eq!(asked, [21, 22]);
}

#[test]
fn an_instances_addresses_are_in_tagged_networks_where_that_is_said() {
    for (line, expected) in [("", false), ("vlan_tagged", true)] {
        let instance =
            format!("interface eth0\nvirtual_router_id 51\n{line}\nvirtual_ipaddress {{\n10.0.0.100/24\n}}");
        let loaded = text(&format!("vrrp_instance V {{\n{instance}\n}}\n"));
        assert_eq!(
            loaded.config.instances.first().map(|it| it.tagged),
            Some(expected),
            "{}",
            loaded.render_text()
        );
    }
}

#[test]
fn ops_counts_with_udp_and_without_persistence() {
    let read = |lines: &str, protocol: &str| {
        let service = format!("protocol {protocol}\nlvs_method DR\n{lines}\nreal_server 10.0.0.1 80 {{\n}}");
        let loaded = text(&format!("virtual_server 10.0.0.100 80 {{\n{service}\n}}\n"));
        (loaded.config.services.first().map(|service| service.one_packet), loaded.diagnostics.len())
    };
    assert_eq!(read("lvs_sched rr\nops", "UDP"), (Some(true), 0));
    assert_eq!(read("lvs_sched rr", "UDP"), (Some(false), 0));
    assert_eq!(read("lvs_sched rr\nops", "TCP"), (Some(false), 1));
    assert_eq!(read("lvs_sched rr\nops\npersistence_timeout 50", "UDP"), (Some(false), 1));
}

#[test]
fn limits_of_connections_are_as_ipvs_has_them() {
    let read = |lines: &str, more: &str| {
        let service = format!("protocol UDP\nlvs_method DR\n{more}\nreal_server 10.0.0.1 80 {{\n{lines}\n}}");
        let loaded = text(&format!("virtual_server 10.0.0.100 80 {{\n{service}\n}}\n"));
        let limit = loaded.config.services.first().and_then(|service| service.reals.first()?.limit);
        (limit.map(|limit| (limit.upper, limit.lower)), loaded.diagnostics.len())
    };
    assert_eq!(read("uthreshold 100\nlthreshold 50", ""), (Some((100, 50)), 0));
    // Below three quarters: of 5 at most 3.
    assert_eq!(read("uthreshold 100", ""), (Some((100, 75)), 0));
    assert_eq!(read("uthreshold 5", ""), (Some((5, 4)), 0));
    assert_eq!(read("uthreshold 0", ""), (None, 0));
    assert_eq!(read("uthreshold 1\nlthreshold 2", "").1, 1);
    assert_eq!(read("lthreshold 2", "").1, 1);
    assert_eq!(read("uthreshold 2", "lvs_sched rr\nops").1, 1, "nothing is counted");
}

#[test]
fn the_flags_of_mh_and_sh_have_names_and_numbers() {
    let read = |lines: &str| {
        let service = format!("protocol TCP\nlvs_method DR\n{lines}\nreal_server 10.0.0.1 80 {{\n}}");
        let loaded = text(&format!("virtual_server 10.0.0.100 80 {{\n{service}\n}}\n"));
        (loaded.config.services.first().map(|service| service.hash_port), loaded.diagnostics.len())
    };
    for line in
        ["lvs_sched mh\nmh-port", "lvs_sched sh\nsh-port", "flag-2\nlvs_sched mh", "lvs_sched sh\nflag-2"]
    {
        assert_eq!(read(line), (Some(true), 0), "{line}");
    }
    assert_eq!(read("lvs_sched mh"), (Some(false), 0));
    for line in ["lvs_sched wlc\nflag-2", "lvs_sched mh\nflag-1\nmh-port", "lvs_sched mh\nflag-3\nflag-2"] {
        assert_eq!(read(line).1, 1, "{line}");
    }
}

#[test]
fn connections_of_dead_real_servers_are_reset_where_that_is_said() {
    let read = |line: &str, protocol: &str| {
        let service = format!("protocol {protocol}\nlvs_method DR\n{line}\nreal_server 10.0.0.1 80 {{\n}}");
        let loaded = text(&format!("virtual_server 10.0.0.100 80 {{\n{service}\n}}\n"));
        (loaded.config.services.first().map(|service| service.resets_dead), loaded.diagnostics.len())
    };
    assert_eq!(read("", "TCP"), (Some(false), 0));
    assert_eq!(read("dead_connections silence", "TCP"), (Some(false), 0));
    assert_eq!(read("dead_connections reset", "TCP"), (Some(true), 0));
    assert_eq!(read("dead_connections reset", "UDP").1, 1, "it has no effect");
    assert_eq!(read("dead_connections rest", "TCP").1, 1);
}

#[test]
fn by_nat_the_port_is_the_real_servers_own_and_the_services_where_none_is_said() {
    let real = |port| {
        let service = sound("persistence").services.into_iter().find(|service| service.port == port).unwrap();
        (service.reals[0].forwarding, service.reals[0].port)
    };
    assert_eq!([82, 83].map(real), [(Forwarding::Nat, 8082), (Forwarding::Nat, 83)]);
}

#[test]
fn the_fragments_mean_what_they_say() {
    let expected = |address: [u8; 4], kind, retry, connect_timeout, delay_before_retry| RealServer {
        address: address.into(),
        port: 80,
        forwarding: Forwarding::Direct,
        weight: 1,
        inhibit_on_failure: false,
        limit: None,
        pace: Pace::default(),
        server_id: None,
        notify: UpDown::default(),
        checks: vec![Check {
            kind,
            address: address.into(),
            port: 80,
            source: Arc::default(),
            timing: Arc::new(CheckTiming {
                delay_loop: Duration::from_secs(10),
                connect_timeout: Duration::from_secs(connect_timeout),
                retry,
                delay_before_retry: Duration::from_secs(delay_before_retry),
                warmup: Duration::from_secs(10),
                rise: 1,
                fall: None,
            }),
            alpha: false,
            log_all_failures: false,
            on_vip: None,
            only_with: None,
        }],
    };
    let http = HttpCheck {
        urls: vec![Url {
            path: "/healthCheck".to_owned(),
            status: vec![(200, 200)],
            digest: None,
            search: None,
            host: "192.168.1.220:80".to_owned(),
            server_name: IpAddr::V4(Ipv4Addr::new(192, 168, 1, 220)).into(),
        }],
        protocol: HttpProtocol::V1_0,
        fast_recovery: false,
        tls: None,
    };
    let config = sound("fragments");
    assert_eq!(
        config.services,
        [VirtualServer {
            address: [192, 168, 1, 100].into(),
            port: 80,
            protocol: Protocol::Tcp,
            scheduler: Scheduler::Mh,
            one_packet: false,
            hash_port: false,
            forwarding: Forwarding::Direct,
            resets_dead: false,
            persistence: None,
            connection_ids: None,
            quorum: Quorum::default(),
            sorry: None,
            notify: UpDown::default(),
            omega: false,
            reals: vec![
                // delay_before_retry is keepalived's own for HTTP.
                expected([192, 168, 1, 220], CheckKind::Http(Box::new(http)), 3, 3, 3),
                expected([192, 168, 1, 221], CheckKind::Tcp, 3, 6, 3),
            ],
        }]
    );
    assert_eq!((config.global, config.instances), (Global::default(), Vec::new()));
}

#[test]
fn what_is_not_said_is_as_in_keepalived() {
    let config = sound("defaults");
    assert_eq!(
        config.instances,
        [VrrpInstance {
            name: "V".to_owned(),
            interface: "eth0".to_owned(),
            heartbeats: Vec::new(),
            family: Family::V4,
            vrid: Vrid::new(1).unwrap(),
            priority: Priority::DEFAULT,
            version: Version::V2,
            advert_interval: Duration::from_secs(1),
            start_as_master: false,
            source: None,
            peers: Vec::new(),
            multicast: [224, 0, 0, 18].into(),
            unicast_ttl: 255,
            ttl_limits: Vec::new(),
            authentication: Authentication::None,
            signing: None,
            preempt: Preempt::Immediate,
            addresses: vec![VirtualAddress::of([192, 0, 2, 1].into())],
            excluded: Vec::new(),
            garp: Garp {
                repeat: 5,
                delay: Duration::from_secs(5),
                refresh: Duration::ZERO,
                refresh_repeat: 1,
                lower_prio_repeat: 5,
                lower_prio_delay: Duration::from_secs(5),
            },
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
        }]
    );
    let timing = |delay_before_retry| CheckTiming {
        delay_loop: Duration::from_secs(60),
        connect_timeout: Duration::from_secs(5),
        retry: 1,
        delay_before_retry: Duration::from_secs(delay_before_retry),
        warmup: Duration::from_secs(60),
        rise: 1,
        fall: None,
    };
    let [service] = config.services.as_slice() else { panic!("{config:?}") };
    let [real] = service.reals.as_slice() else { panic!("{config:?}") };
    assert_eq!((real.weight, real.inhibit_on_failure), (1, false));
    assert_eq!(real.checks.iter().map(|check| *check.timing).collect::<Vec<_>>(), [timing(1), timing(3)]);
    let Some(CheckKind::Http(http)) = real.checks.last().map(|check| &check.kind) else { panic!("{real:?}") };
    assert_eq!(http.urls.first().map(|url| url.status.as_slice()), Some(&[(200, 299)][..]));
}

#[test]
fn carriage_returns_change_nothing() {
    assert_eq!(sound("carriage_returns"), sound("defaults"));
}

#[test]
fn a_setting_reaches_the_checks_from_the_blocks_around_them() {
    let config = sound("pair");
    let [web, dns] = config.services.as_slice() else { panic!("{config:?}") };
    let checks: Vec<_> = web.reals.iter().flat_map(|real| &real.checks).collect();
    let seconds = |check: &Check| {
        let CheckTiming { delay_loop, connect_timeout, retry, delay_before_retry, warmup, .. } =
            *check.timing;
        let seconds =
            [delay_loop, connect_timeout, delay_before_retry, warmup].map(|time| time.as_secs_f64());
        (seconds, retry)
    };
    assert_eq!(
        checks.iter().map(|check| seconds(check)).collect::<Vec<_>>(),
        [([6.0, 2.0, 0.5, 0.0], 2), ([0.25, 2.0, 0.5, 0.25], 0), ([6.0, 2.0, 0.5, 6.0], 2)]
    );
    let hosts: Vec<_> = checks
        .iter()
        .filter_map(|check| match &check.kind {
            CheckKind::Http(http) => Some(http.urls.iter().map(|url| url.host.as_str())),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(hosts, ["www.example.org", "www.example.org", "only.example.org", "rs2.example.org"]);
    let other: Vec<_> =
        checks.iter().map(|check| (check.address.to_string(), check.port, check.source.address)).collect();
    assert_eq!(
        other,
        [
            ("10.0.0.11".to_owned(), 80, None),
            ("10.9.0.12".to_owned(), 8080, Some([10, 9, 0, 2].into())),
            ("10.0.0.12".to_owned(), 80, None)
        ]
    );
    assert_eq!(dns.reals.iter().map(|real| real.weight).collect::<Vec<_>>(), [7, 0]);
    assert_eq!(dns.reals.iter().map(|real| real.inhibit_on_failure).collect::<Vec<_>>(), [false, true]);
    assert!(
        web.hash_port && dns.hash_port && web.scheduler == Scheduler::Mh && dns.scheduler == Scheduler::Sh
    );
}

#[test]
fn each_real_server_travels_as_it_says_or_as_its_service_says() {
    let config = sound("tunnels");
    let forwarding = |index: usize| -> Vec<Forwarding> {
        let service: &VirtualServer = &config.services[index];
        let reals = service.reals.iter().map(|real| real.forwarding);
        reals.chain(service.sorry.iter().map(|sorry| sorry.forwarding)).collect()
    };
    let [ipip, gre] = [Tunnel::Ipip, Tunnel::Gre].map(Forwarding::Tunnel);
    let gue = Forwarding::Tunnel(Tunnel::Gue { port: 6080 });
    assert_eq!(forwarding(0), [ipip, gue, gre, Forwarding::Direct, gue]);
    assert_eq!(forwarding(1), [gue, ipip, gue]);
    assert_eq!(forwarding(2), [ipip, gre, Forwarding::Direct, ipip]);
    assert_eq!(forwarding(3), [gue]);
}

#[test]
fn a_url_is_read_to_the_last_character() {
    let config = sound("pair");
    let check = &config.services.first().unwrap().reals.first().unwrap().checks.first().unwrap().kind;
    let CheckKind::Http(http) = check else { panic!("{check:?}") };
    let url = http.urls.first().unwrap();
    assert_eq!(http.protocol, HttpProtocol::V1_1);
    assert_eq!(url.path, "/status?full=1#x");
    assert_eq!(url.status, [(200, 204), (301, 301), (418, 418)]);
    assert_eq!(url.digest.map(u128::from_be_bytes), Some(0x9b3a_0c85_a887_a256_d693_9da8_8aab_d8cd));
}

#[test]
fn an_include_is_found_beside_the_file_that_names_it() {
    let config = sound("includes");
    assert_eq!(config.global.router_id.as_deref(), Some("LB_2"));
    let instances: Vec<_> = config.instances.iter().map(|it| (it.name.as_str(), it.vrid.get())).collect();
    assert_eq!(instances, [("A", 10), ("B", 20)]);
    let loaded = load(Path::new("tests/config/sound/includes.conf"), "node1").unwrap();
    assert_eq!(loaded.files.len(), 5);
}

#[test]
fn mails_are_sent_of_what_asks_for_them() {
    let read = |global: &str| {
        text(&format!(
            "global_defs {{\nnotification_email {{\nops@example.org night@example.org\n}}\n{global}\n}}\n\
             vrrp_instance A {{\ninterface a\nvirtual_router_id 1\nvirtual_ipaddress {{\n192.0.2.1/32\n}}\nsmtp_alert off\n}}\n\
             vrrp_instance B {{\ninterface a\nvirtual_router_id 2\nvirtual_ipaddress {{\n192.0.2.2/32\n}}\n}}\n\
             virtual_server 192.0.2.1 80 {{\nprotocol TCP\nlvs_method DR\nreal_server 192.0.2.3 80 {{\n}}\n\
             real_server 192.0.2.4 80 {{\nsmtp_alert no\n}}\n}}\n"
        ))
    };
    let flags = |loaded: &Loaded| -> Vec<bool> {
        let instances = loaded.config.instances.iter().map(|it| it.notify.mail);
        let service = &loaded.config.services[0];
        let pool = [service.notify.mail].into_iter().chain(service.reals.iter().map(|real| real.notify.mail));
        instances.chain(pool).collect()
    };
    let relay = "smtp_server 192.0.2.9 2525\n";
    let full = read(&format!(
        "{relay}notification_email_from lb1@example.org\nsmtp_helo_name lb1\nsmtp_connect_timeout 5\nno_email_faults"
    ));
    let mail = Mail {
        to: ["ops@example.org", "night@example.org"].map(|it| it.parse().unwrap()).into(),
        from: "lb1@example.org".parse().unwrap(),
        relay: "192.0.2.9".to_owned(),
        port: 2525,
        helo: Some("lb1".to_owned()),
        timeout: Duration::from_secs(5),
        faults: false,
    };
    assert_eq!(
        (full.config.global.mail.clone(), full.diagnostics.len()),
        (Some(mail), 0),
        "{}",
        full.render_text()
    );
    assert_eq!(flags(&full), [false, false, false, true, false], "real servers without being asked");
    assert_eq!(flags(&read(&format!("{relay}smtp_alert"))), [false, true, true, true, false]);
    assert_eq!(
        flags(&read(&format!("{relay}smtp_alert_vrrp\nsmtp_alert_checker off"))),
        [false, true, false, false, false]
    );
    let nowhere = read("smtp_alert");
    assert_eq!((nowhere.config.global.mail.clone(), nowhere.diagnostics.len()), (None, 1));
    assert_eq!(read(&format!("{relay}notification_email_from nobody\nsmtp_connect_timeout 0")).errors, 2);
}

#[test]
fn the_last_of_two_is_read() {
    let loaded = text("global_defs {\nrouter_id a\n}\nglobal_defs {\nrouter_id b\n}\n");
    assert_eq!((loaded.config.global.router_id.as_deref(), loaded.errors), (Some("b"), 1));
}

#[test]
fn a_byte_order_mark_is_no_word() {
    assert_eq!(text("\u{feff}global_defs {\n}\n").diagnostics, []);
}

#[test]
fn a_diagnostic_as_json_has_its_place() {
    let loaded = text("global_defs {\n\trouter_di lb1\n}\n");
    assert_eq!(
        serde_json::to_value(&loaded.diagnostics).unwrap(),
        serde_json::json!([{
            "severity": "error",
            "code": "E0010",
            "file": "lvsd.conf",
            "line": 2,
            "column": 2,
            "message": "unknown word \"router_di\" in global_defs; did you mean \"router_id\"?",
        }])
    );
}

#[test]
fn a_virtual_server_of_a_group_is_one_for_each_of_its_addresses() {
    let loaded = load(Path::new("tests/config/sound/server_group.conf"), "lb1").unwrap();
    let services: Vec<_> =
        loaded.config.services.iter().map(|it| (last_byte(it.address), it.port, it.reals[0].port)).collect();
    let expected = [(100, 80), (100, 443), (110, 80), (111, 80), (112, 80)];
    assert_eq!(services, expected.map(|(address, port)| (address, port, port)));
    assert_eq!(loaded.diagnostics.len(), 1, "the quorum is told once: {}", loaded.render_text());
}
