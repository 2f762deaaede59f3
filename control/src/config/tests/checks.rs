//! What pools and checkers mean once they have been read.

use super::*;

#[test]
fn the_pool_rules_are_read_and_what_cannot_be_reached_is_lowered() {
    let config = sound("pools");
    let [web, low] = config.services.as_slice() else { panic!("{config:?}") };
    let alpha: Vec<Vec<_>> =
        web.reals.iter().map(|real| real.checks.iter().map(|check| check.alpha).collect()).collect();
    assert_eq!(alpha, [vec![false, true], vec![true]]);
    assert_eq!(web.quorum, Quorum { weight: 4, hysteresis: 1 });
    let sorry = SorryServer {
        address: [10, 0, 0, 99].into(),
        port: 80,
        forwarding: Forwarding::Direct,
        inhibit: true,
    };
    assert_eq!(web.sorry, Some(sorry.clone()));
    assert_eq!(low.quorum, Quorum { weight: 3, hysteresis: 2 });
    assert_eq!(low.sorry, Some(SorryServer { port: 81, inhibit: false, ..sorry }));
}

#[test]
fn the_words_of_connecting_checks_are_read() {
    let config = sound("checks");
    let service = config.services.first().unwrap();
    let checks = &service.reals.first().unwrap().checks;
    let [full, bare] = checks.as_slice() else { panic!("{checks:?}") };
    let source = CheckSource {
        address: Some([10, 9, 0, 1].into()),
        port: Some(1024),
        interface: Some("eth1".to_owned()),
        mark: Some(7),
    };
    assert_eq!((&*full.source, full.log_all_failures, bare.log_all_failures), (&source, false, true));
    assert_eq!((full.address, full.port), ([10, 9, 0, 11].into(), 8080));
    let milliseconds = Duration::from_millis;
    let timing = CheckTiming {
        delay_loop: milliseconds(50),
        connect_timeout: milliseconds(200),
        retry: 0,
        delay_before_retry: milliseconds(100),
        warmup: Duration::ZERO,
        rise: 2,
        fall: Some(3),
    };
    assert_eq!(*full.timing, timing);
    assert_eq!((bare.timing.rise, bare.timing.fall, bare.timing.retry), (1, None, 1));
}

#[test]
fn check_vip_goes_down_to_the_checkers_that_can_ask_and_not_through_nat() {
    let config = sound("check_vip");
    let service = config.services.first().unwrap();
    let on_vip: Vec<Vec<_>> = service
        .reals
        .iter()
        .map(|real| real.checks.iter().map(|check| check.on_vip.as_deref().copied()).collect())
        .collect();
    let IpAddr::V4(address) = service.address else { panic!("{service:?}") };
    let on = |real, forwarding| Some(OnVip { address, real, forwarding });
    let direct = on([10, 0, 0, 11].into(), Forwarding::Direct);
    let tunnel = on([10, 0, 0, 12].into(), Forwarding::Tunnel(Tunnel::Gre));
    assert_eq!(on_vip, [vec![direct, None, None], vec![tunnel], vec![None], vec![None]]);
}

#[test]
fn a_search_is_read_with_its_options() {
    let config = sound("checks");
    let checks = &config.services.first().unwrap().reals.get(1).unwrap().checks;
    let CheckKind::Http(http) = &checks.first().unwrap().kind else { panic!("{checks:?}") };
    assert!(http.fast_recovery);
    let [status, errors] = http.urls.as_slice() else { panic!("{http:?}") };
    let search = status.search.as_ref().unwrap();
    assert_eq!((search.wanted, search.min_offset, search.max_offset), (true, 2, 300));
    assert!(search.pattern.0.is_match(b"Status: all UP"));
    let search = errors.search.as_ref().unwrap();
    assert!(
        !search.wanted
            && search.pattern.0.is_match("\u{e9}".as_bytes())
            && !search.pattern.0.is_match(b"\xff")
    );
}

#[test]
fn the_checks_of_other_protocols_are_read_with_their_defaults() {
    let config = sound("checks");
    let checks = &config.services.first().unwrap().reals.get(2).unwrap().checks;
    let helo = |helo: &str| CheckKind::Smtp { helo: helo.to_owned() };
    let dns = |name, record| CheckKind::Dns(DnsCheck::new(name, record).unwrap());
    let udp = |payload: &[u8], reply| CheckKind::Udp(Box::new(UdpCheck { payload: payload.to_vec(), reply }));
    let like = Reply::Like { bytes: vec![(0xa0, 0xff), (0x07, 0x0f)], min: 2, max: 512 };
    let filler = b"lvsd check - lvsd check - lvsd c";
    let expected = [
        (helo("lb.example.org"), 25, 1, 1),
        (helo("lvsd.localdomain"), 80, 1, 1),
        (dns("www.example.org", simple_dns::TYPE::AAAA), 80, 3, 7),
        (dns("", simple_dns::TYPE::SOA), 80, 1, 9),
        (udp(&[0x0a, 0x0b, 0x0c], like), 80, 1, 1),
        (udp(filler, Reply::Any), 80, 1, 1),
        (udp(filler, Reply::NotNeeded), 80, 1, 1),
        (CheckKind::Ping, 80, 1, 1),
    ];
    let read: Vec<_> = checks
        .iter()
        .map(|it| (it.kind.clone(), it.port, it.timing.retry, it.timing.delay_before_retry.as_secs()))
        .collect();
    assert_eq!(read, expected);
}

#[test]
fn the_name_for_tls_is_the_most_special_one_and_the_address_without_any() {
    let config = sound("checks");
    let checks = &config.services.first().unwrap().reals.get(3).unwrap().checks;
    let read: Vec<_> = checks
        .iter()
        .map(|check| match &check.kind {
            CheckKind::Http(http) => {
                let HttpCheck { urls, tls: Some(tls), .. } = &**http else { panic!("{http:?}") };
                assert_eq!(tls.roots.as_ref().map(|roots| roots.len()), Some(1));
                assert_eq!(tls.identity.as_ref().map(|identity| identity.chain.len()), Some(1));
                let names = urls.iter().map(|url| url.server_name.to_str().into_owned());
                (names.collect::<Vec<_>>(), tls.sni)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        read,
        [
            (names(&["www.example.org", "other.example.org"]), true),
            (names(&["sni.example.org"]), true),
            (names(&["10.0.0.14"]), false),
        ]
    );
}

#[test]
fn what_runs_at_the_start_and_at_the_end_may_take_ten_seconds_unless_told() {
    let global = sound("checks").global;
    let (startup, shutdown) = (global.startup.unwrap(), global.shutdown.unwrap());
    assert_eq!(
        (startup.script.arguments, startup.timeout),
        (vec!["started".to_owned()], Duration::from_secs(3))
    );
    assert_eq!(shutdown.timeout, Duration::from_secs(10));
}

#[test]
fn a_program_is_read_with_its_arguments() {
    let config = sound("checks");
    let checks = &config.services.first().unwrap().reals.get(4).unwrap().checks;
    let read: Vec<_> = checks
        .iter()
        .map(|check| match &check.kind {
            CheckKind::Misc(misc) => {
                let MiscCheck { script, timeout, dynamic } = &**misc;
                (script.arguments.join("|"), timeout.as_millis(), *dynamic, check.timing.retry)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [("-c|exit 0|second", 500, true, 0), ("-c|exit 0", 9000, false, 0)];
    assert_eq!(
        read,
        expected.map(|(words, timeout, dynamic, retry)| (words.to_owned(), timeout, dynamic, retry))
    );
}
