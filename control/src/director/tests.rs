use std::{sync::Arc, time::Duration};

use super::*;
use crate::check::Weight;
use crate::config::model::{
    CheckKind, CheckTiming, Forwarding, Pace, Protocol, Quorum, Scheduler, Tunnel, UpDown, VirtualServer,
};

const HOP: NextHop = NextHop { mac: [2; 6], source_mac: [4; 6], ifindex: 3, source: None, mtu: 1500 };
const SORRY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 99));

fn real(last: u8, checks: usize) -> RealServer {
    let second = Duration::from_secs(1);
    let timing = CheckTiming {
        delay_loop: second,
        connect_timeout: second,
        retry: 1,
        delay_before_retry: second,
        warmup: second,
        rise: 1,
        fall: None,
    };
    let address = IpAddr::from([10, 77, 0, last]);
    let check = Check {
        kind: CheckKind::Tcp,
        address,
        port: 80,
        source: Arc::default(),
        timing: Arc::new(timing),
        alpha: false,
        log_all_failures: false,
        on_vip: None,
        only_with: None,
    };
    RealServer {
        address,
        port: 80,
        forwarding: Forwarding::Direct,
        weight: 3,
        inhibit_on_failure: false,
        limit: None,
        pace: Pace::default(),
        server_id: None,
        notify: UpDown::default(),
        checks: vec![check; checks],
    }
}

fn alpha(last: u8) -> RealServer {
    let mut real = real(last, 2);
    real.checks[0].alpha = true;
    real
}

fn service(reals: Vec<RealServer>) -> VirtualServer {
    VirtualServer {
        address: [10, 77, 0, 100].into(),
        port: 80,
        protocol: Protocol::Tcp,
        scheduler: Scheduler::Wlc,
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
        reals,
    }
}

fn direct(service: VirtualServer) -> Director {
    let config = Config { services: vec![service], ..Config::default() };
    Director::new(&config, Vec::new(), Orders::default(), |_, _| None)
}

/// A service with a sorry server and, behind each of its reals, one check of the same number.
fn with_sorry(reals: u8, quorum: Quorum) -> Director {
    let sorry =
        Some(SorryServer { address: SORRY, port: 80, forwarding: Forwarding::Direct, inhibit: false });
    let reals = (1..=reals).map(|last| real(last, 1)).collect();
    let mut director = direct(VirtualServer { sorry, quorum, ..service(reals) });
    director.on_next_hops([(SORRY, HOP)].into());
    director
}

fn weights(director: &Director) -> Vec<u16> {
    director.desired().services[0].reals.iter().map(|real| real.weight).collect()
}

fn down(director: &mut Director, id: usize) -> Vec<Change> {
    director.on_verdict(
        id,
        CheckState { up: false, weight: None, error: Some("connection refused".into()), ran: true },
    )
}

fn up(director: &mut Director, id: usize) -> Vec<Change> {
    director.on_verdict(id, CheckState { up: true, weight: None, error: None, ran: true })
}

#[test]
fn a_real_is_in_the_pool_only_while_all_its_checks_succeed() {
    let mut director = direct(service(vec![real(1, 2), real(2, 0)]));
    assert_eq!(weights(&director), [3, 3], "in the pool from the start");
    assert_eq!(
        down(&mut director, 0),
        [Change::Real { service: 0, real: 0, from: Standing::Up, to: Standing::Down }]
    );
    assert_eq!(up(&mut director, 1), []);
    assert_eq!(weights(&director), [0, 3]);
    up(&mut director, 0);
    assert_eq!(weights(&director), [3, 3]);
}

#[test]
fn a_real_that_was_out_before_a_restart_stays_out_until_a_check_succeeds() {
    let config = Config { services: vec![service(vec![real(1, 1), real(2, 1)])], ..Config::default() };
    let mut director = Director::new(&config, Vec::new(), Orders::default(), |_, real| {
        Some(real.address != IpAddr::from([10, 77, 0, 2]))
    });
    assert_eq!(weights(&director), [3, 0]);
    assert_eq!(director.targets().iter().map(|target| target.up).collect::<Vec<_>>(), [true, false]);
    up(&mut director, 1);
    assert_eq!(weights(&director), [3, 3]);
}

#[test]
fn with_alpha_a_real_is_out_until_its_first_success() {
    let mut director = direct(service(vec![alpha(1), real(2, 1)]));
    assert_eq!(weights(&director), [0, 3]);
    assert_eq!(director.targets().iter().map(|target| target.up).collect::<Vec<_>>(), [false, true, true]);
    up(&mut director, 0);
    assert_eq!(weights(&director), [3, 3]);
}

#[test]
fn a_restart_does_not_take_a_real_with_alpha_out() {
    let config = Config { services: vec![service(vec![alpha(1)])], ..Config::default() };
    assert_eq!(weights(&Director::new(&config, Vec::new(), Orders::default(), |_, _| Some(true))), [3]);
}

#[test]
fn a_next_hop_once_known_is_kept_when_the_kernel_forgets_it() {
    let mut director = direct(service(vec![real(1, 0)]));
    director.on_next_hops([(IpAddr::from([10, 77, 0, 1]), HOP)].into());
    director.on_next_hops(HashMap::new());
    assert_eq!(director.desired().services[0].reals[0].next_hop, Some(HOP));
}

#[test]
fn a_failed_real_drains_with_inhibit_on_failure_and_is_down_without() {
    let inhibited = RealServer { inhibit_on_failure: true, ..real(2, 1) };
    let mut director = direct(service(vec![real(1, 1), inhibited]));
    down(&mut director, 0);
    down(&mut director, 1);
    let standings: Vec<_> = director.services()[0].reals.iter().map(RealState::standing).collect();
    assert_eq!(standings, [Standing::Down, Standing::Draining]);
    // Weight 0 for both, but only one of them keeps its flows.
    let reals: Vec<_> = director.desired().services[0].reals.iter().map(|it| (it.weight, it.alive)).collect();
    assert_eq!(reals, [(0, false), (0, true)]);
}

#[test]
fn the_sorry_server_stands_for_all_reals_while_none_is_up() {
    let mut director = with_sorry(2, Quorum::default());
    assert_eq!(weights(&director), [3, 3, 0]);
    down(&mut director, 0);
    assert_eq!(weights(&director), [0, 3, 0]);
    let lost = Change::Quorum { service: 0, gained: false };
    assert!(down(&mut director, 1).contains(&lost));
    assert_eq!(weights(&director), [0, 0, 1]);
    let gained = Change::Quorum { service: 0, gained: true };
    assert!(up(&mut director, 1).contains(&gained));
    assert_eq!(weights(&director), [0, 3, 0]);
}

#[test]
fn the_sorry_server_keeps_its_connections_with_inhibit_only() {
    for inhibit in [false, true] {
        let sorry = Some(SorryServer { address: SORRY, port: 80, forwarding: Forwarding::Direct, inhibit });
        let mut director = direct(VirtualServer { sorry, ..service(vec![real(1, 1)]) });
        director.on_next_hops([(SORRY, HOP)].into());
        let keeps = |director: &Director| director.desired().services[0].reals[1].alive;
        assert_eq!(keeps(&director), inhibit);
        down(&mut director, 0);
        assert!(keeps(&director), "it is in");
        up(&mut director, 0);
        assert_eq!(keeps(&director), inhibit);
    }
}

#[test]
fn the_living_wait_outside_until_there_are_enough_of_them() {
    // Lost below 5, gained at 7: each real weighs 3.
    let mut director = with_sorry(3, Quorum { weight: 6, hysteresis: 1 });
    down(&mut director, 0);
    assert_eq!(weights(&director), [0, 3, 3, 0]);
    down(&mut director, 1);
    assert_eq!(weights(&director), [0, 0, 0, 1]);
    assert_eq!(up(&mut director, 0).len(), 1, "6 is not enough to gain what 6 did not lose");
    assert_eq!(weights(&director), [0, 0, 0, 1]);
    up(&mut director, 1);
    assert_eq!(weights(&director), [3, 3, 3, 0]);
}

#[test]
fn without_a_sorry_server_a_lost_quorum_is_told_and_the_living_stay() {
    let quorum = Quorum { weight: 6, hysteresis: 0 };
    let mut director = direct(VirtualServer { quorum, ..service(vec![real(1, 1), real(2, 1)]) });
    assert!(down(&mut director, 0).contains(&Change::Quorum { service: 0, gained: false }));
    assert_eq!(weights(&director), [0, 3]);
}

#[test]
fn a_sorry_server_without_next_hop_does_not_replace_living_reals() {
    let mut director = with_sorry(2, Quorum { weight: 6, hysteresis: 0 });
    director.next_hops.clear();
    down(&mut director, 0);
    assert_eq!(weights(&director), [0, 3, 0]);
    director.on_next_hops([(SORRY, HOP)].into());
    assert_eq!(weights(&director), [0, 0, 1]);
}

#[test]
fn a_start_without_quorum_begins_with_the_sorry_server_and_tells_no_loss() {
    let sorry =
        Some(SorryServer { address: SORRY, port: 80, forwarding: Forwarding::Direct, inhibit: false });
    let mut director = direct(VirtualServer { sorry, ..service(vec![alpha(1)]) });
    director.on_next_hops([(SORRY, HOP)].into());
    assert_eq!(weights(&director), [0, 1]);
    assert_eq!(down(&mut director, 0), []);
}

#[test]
fn a_new_configuration_keeps_the_state_of_what_is_in_both() {
    let mut before = direct(service(vec![real(1, 1), real(2, 2), real(3, 1)]));
    for id in [0, 2, 3] {
        down(&mut before, id);
    }

    let mut changed = real(3, 1);
    Arc::make_mut(&mut changed.checks[0].timing).retry = 7;
    let config = Config {
        services: vec![service(vec![real(4, 1), changed, real(2, 2), real(1, 1)])],
        ..Config::default()
    };
    let mut after = before.succeed(&config, Vec::new());

    assert_eq!(weights(&after), [3, 0, 0, 0], "what was down is down, changed or not; what is new is up");
    let ids: HashMap<IpAddr, Vec<usize>> =
        after.targets().into_iter().fold(HashMap::new(), |mut ids, target| {
            ids.entry(target.check.address).or_default().push(target.id);
            ids
        });
    let of = |last: u8| &ids[&IpAddr::from([10, 77, 0, last])];
    assert_eq!((of(1), of(2)), (&vec![0], &vec![1, 2]), "unchanged checks keep their numbers");
    assert!(of(3)[0] > 3 && of(4)[0] > 3, "others get new ones: {ids:?}");
    let changed = after.targets().into_iter().find(|target| target.id == of(3)[0]);
    assert!(changed.is_some_and(|target| !target.up), "one success brings it back");
    up(&mut after, 0);
    assert_eq!(weights(&after), [3, 0, 0, 3]);
    up(&mut after, 3);
    assert_eq!(weights(&after), [3, 0, 0, 3], "a late verdict of a check that is gone is nobody's");
    up(&mut after, of(3)[0]);
    assert_eq!(weights(&after), [3, 3, 0, 3]);
}

#[test]
fn a_new_check_of_a_real_that_is_up_leaves_it_in_even_with_alpha() {
    let before = direct(service(vec![real(1, 0)]));
    let config = Config { services: vec![service(vec![alpha(1)])], ..Config::default() };
    assert_eq!(weights(&before.succeed(&config, Vec::new())), [3]);
}

#[test]
fn a_new_configuration_keeps_the_sorry_server_in_while_quorum_is_missing() {
    let mut before = with_sorry(2, Quorum { weight: 4, hysteresis: 1 });
    down(&mut before, 0);
    down(&mut before, 1);
    up(&mut before, 0);
    let config = Config { services: vec![before.services()[0].config.clone()], ..Config::default() };
    let after = before.succeed(&config, Vec::new());
    assert_eq!(weights(&after), weights(&before));
}

#[test]
fn checks_that_say_a_weight_add_their_differences() {
    let mut director = direct(service(vec![real(1, 3), real(2, 0)]));
    let says = |weight| CheckState { up: true, weight: Some(Weight::To(weight)), error: None, ran: true };
    assert_eq!(director.on_verdict(0, says(5)), []);
    assert_eq!(weights(&director), [5, 3]);
    director.on_verdict(1, says(4));
    assert_eq!(weights(&director), [6, 3], "3 + 2 + 1");
    let drained = Change::Real { service: 0, real: 0, from: Standing::Up, to: Standing::Draining };
    director.on_verdict(1, says(1));
    assert_eq!(director.on_verdict(0, says(0)), [drained], "3 - 3 - 2");
    assert_eq!(weights(&director), [0, 3]);
    director.on_verdict(0, says(u16::MAX));
    director.on_verdict(1, says(u16::MAX));
    assert_eq!(weights(&director), [u16::MAX, 3]);
    for (change, weight) in [(i64::MIN, 0), (i64::MAX, u16::MAX), (-2, 1)] {
        let says = CheckState { weight: Some(Weight::By(change)), ..says(0) };
        director.on_verdict(1, says.clone());
        director.on_verdict(0, CheckState { weight: None, ..says });
        assert_eq!(weights(&director), [weight, 3], "{change}");
    }
    down(&mut director, 2);
    assert_eq!(weights(&director), [0, 3]);
}

fn news(real: Option<usize>, up: bool) -> News {
    News { service: 0, real, up, last: false }
}

#[test]
fn scripts_are_told_of_real_servers_before_the_quorum_and_of_nothing_twice() {
    let inhibited = RealServer { inhibit_on_failure: true, ..real(2, 1) };
    let mut director = direct(service(vec![real(1, 1), inhibited, alpha(3)]));
    let mut told = Told::default();
    let mut look = |director: &Director| told.look(director.services(), false);
    assert_eq!(look(&director), [], "the start");
    down(&mut director, 0);
    assert_eq!(look(&director), [news(Some(0), false)]);
    down(&mut director, 1);
    assert_eq!(look(&director), [news(Some(1), false), news(None, false)], "draining is down too");
    assert_eq!(look(&director), []);
    down(&mut director, 2);
    assert_eq!(look(&director), [news(Some(2), false)], "the first result with alpha");
    for id in [0, 2] {
        up(&mut director, id);
    }
    assert_eq!(look(&director), [news(Some(0), true), news(Some(2), true), news(None, true)]);
    let says_0 = CheckState { up: true, weight: Some(Weight::To(0)), error: None, ran: true };
    director.on_verdict(0, says_0);
    assert_eq!(look(&director), [], "weight 0 is not down");
}

#[test]
fn a_real_server_that_a_reload_brings_is_not_told_until_it_changes() {
    let before = direct(service(vec![real(1, 1)]));
    let mut told = Told::default();
    told.look(before.services(), false);
    let config = Config { services: vec![service(vec![real(2, 1), real(1, 1)])], ..Config::default() };
    let mut after = before.succeed(&config, Vec::new());
    assert_eq!(told.look(after.services(), false), []);
    let second = IpAddr::from([10, 77, 0, 2]);
    let id = after.targets().into_iter().find(|target| target.check.address == second).unwrap().id;
    down(&mut after, id);
    assert_eq!(told.look(after.services(), false), [news(Some(0), false)]);
}

#[test]
fn the_start_is_told_where_it_is_asked_for_and_the_stop_with_omega() {
    let mut director = direct(service(vec![real(1, 1), real(2, 1), alpha(3)]));
    let mut told = Told::default();
    let start = told.look(director.services(), true);
    assert_eq!(start, [news(Some(0), true), news(Some(1), true), news(Some(2), false)]);
    down(&mut director, 0);
    assert_eq!(Told::stop(director.services()), []);
    let config = VirtualServer { omega: true, ..director.services[0].config.clone() };
    director.services[0].config = config;
    let last = |real| News { last: true, ..news(real, false) };
    assert_eq!(Told::stop(director.services()), [last(Some(1)), last(None)], "what is up");
}

#[test]
fn a_tunnel_without_an_address_to_come_from_leads_nowhere() {
    let ipip = Forwarding::Tunnel(Tunnel::Ipip);
    let tunnelled = RealServer { forwarding: ipip, ..real(1, 0) };
    let sorry = Some(SorryServer { address: SORRY, port: 80, forwarding: ipip, inhibit: false });
    let mut director = direct(VirtualServer { sorry, ..service(vec![tunnelled, real(2, 1)]) });
    let addresses = [[10, 77, 0, 1].into(), [10, 77, 0, 2].into(), SORRY];
    let ways = |director: &Director| -> Vec<bool> {
        director.desired().services[0].reals.iter().map(|real| real.next_hop.is_some()).collect()
    };
    director.on_next_hops(addresses.map(|address| (address, HOP)).into());
    assert_eq!(ways(&director), [false, true, false]);
    let hop = NextHop { source: Some([10, 77, 0, 254].into()), ..HOP };
    director.on_next_hops(addresses.map(|address| (address, hop)).into());
    assert_eq!(ways(&director), [true; 3]);
    director.on_next_hops([(addresses[0], NextHop::LOCAL)].into());
    assert_eq!(ways(&director), [true; 3], "to this node itself no tunnel leads");
    assert!(director.is_local(addresses[0]) && !director.is_local(addresses[1]));
}

const SERVICE: &str = "tcp:10.77.0.100:80";

fn weight(real: &str, weight: u16) -> Order {
    Order::Weight { service: SERVICE.into(), real: real.into(), weight }
}

#[test]
fn an_order_holds_over_checks_and_reloads_until_it_is_taken_back() {
    let config = Config { services: vec![service(vec![real(1, 1), real(2, 0)])], ..Config::default() };
    let mut director = direct(config.services[0].clone());
    assert_eq!(
        director.on_order(&weight("10.77.0.1:80", 0)),
        Ok(vec![Change::Real { service: 0, real: 0, from: Standing::Up, to: Standing::Draining }])
    );
    director.on_order(&weight("10.77.0.2:80", 9)).unwrap();
    director.on_verdict(0, CheckState { up: true, weight: Some(Weight::To(5)), error: None, ran: true });
    assert_eq!(weights(&director), [0, 9]);
    let mut director = director.succeed(&config, Vec::new());
    assert_eq!(weights(&director), [0, 9]);

    director.on_order(&Order::Enable { service: SERVICE.into(), real: "10.77.0.1:80".into() }).unwrap();
    assert_eq!(weights(&director), [5, 9]);
    director.on_order(&Order::Reset).unwrap();
    assert_eq!(weights(&director), [5, 3]);
    assert_eq!(director.orders(), &Orders::default());
}

#[test]
fn an_order_does_not_bring_a_dead_real_server_back() {
    let mut director = direct(service(vec![real(1, 1), real(2, 0)]));
    down(&mut director, 0);
    director.on_order(&weight("10.77.0.1:80", 7)).unwrap();
    assert_eq!(weights(&director), [0, 3]);
    up(&mut director, 0);
    assert_eq!(weights(&director), [7, 3]);
}

#[test]
fn orders_are_kept_for_a_restart_and_forgotten_with_their_real_server() {
    let both = Config { services: vec![service(vec![real(1, 1), real(2, 0)])], ..Config::default() };
    let one = Config { services: vec![service(vec![real(2, 0)])], ..Config::default() };
    let mut orders = Orders::default();
    orders.set(SERVICE, "10.77.0.1:80", Some(0));
    let director = Director::new(&both, Vec::new(), orders, |_, _| None);
    assert_eq!(director.services()[0].reals[0].standing(), Standing::Draining);
    let director = director.succeed(&one, Vec::new()).succeed(&both, Vec::new());
    assert_eq!(weights(&director)[0], 3);
}

#[test]
fn an_order_for_what_does_not_exist_says_what_does() {
    let udp = VirtualServer { protocol: Protocol::Udp, ..service(vec![real(1, 0)]) };
    let zero = RealServer { weight: 0, ..real(3, 0) };
    let config = Config { services: vec![service(vec![real(1, 0), zero]), udp], ..Config::default() };
    let mut director = Director::new(&config, Vec::new(), Orders::default(), |_, _| None);
    let mut refusal = |service: &str, real: &str| {
        let order = Order::Enable { service: service.into(), real: real.into() };
        director.on_order(&order).unwrap_err().to_string()
    };
    for (service, real, said) in [
        (
            "10.77.0.9:80",
            "10.77.0.1:80",
            "no virtual server is called \"10.77.0.9:80\"; there are tcp:10.77.0.100:80, udp:",
        ),
        (
            "10.77.0.100:80",
            "10.77.0.1:80",
            "is several virtual servers: tcp:10.77.0.100:80, udp:10.77.0.100:80",
        ),
        (
            SERVICE,
            "10.77.0.1",
            "tcp:10.77.0.100:80 has no real server \"10.77.0.1\"; there are 10.77.0.1:80, 10.77",
        ),
        (SERVICE, "10.77.0.3:80", "10.77.0.3:80 has weight 0 in the configuration"),
    ] {
        let text = refusal(service, real);
        assert!(text.contains(said), "{text}");
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
fn what_is_left_of_connections_is_reset_where_that_is_said_and_when_a_drain_or_the_sorry_server_is_over() {
    let pace = Pace { slow_start: Duration::ZERO, drain_timeout: Some(Duration::from_secs(5)) };
    let drained = RealServer { weight: 0, pace, ..real(1, 0) };
    let sorry =
        Some(SorryServer { address: SORRY, port: 80, forwarding: Forwarding::Direct, inhibit: false });
    let start = Instant::now();
    for (resets_dead, after) in [(false, [true, false, true]), (true, [true; 3])] {
        let reals = vec![drained.clone(), real(2, 1)];
        let mut director = direct(VirtualServer { resets_dead, sorry: sorry.clone(), ..service(reals) });
        let resets = |director: &Director| -> Vec<bool> {
            director.desired().services[0].reals.iter().map(|real| real.resets).collect()
        };
        director.advance(start);
        assert_eq!(resets(&director), [resets_dead, resets_dead, true]);
        director.advance(start + Duration::from_secs(5));
        assert_eq!(resets(&director), after);
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
fn a_reload_goes_on_with_a_slow_start_and_what_is_new_begins_one() {
    let slowly = |last| RealServer {
        weight: 100,
        pace: Pace { slow_start: Duration::from_secs(10), drain_timeout: None },
        ..real(last, 1)
    };
    let start = Instant::now();
    let mut director = direct(service(vec![slowly(1)]));
    director.advance(start);
    assert_eq!(weights(&director), [100], "the start of the daemon is no return");
    down(&mut director, 0);
    director.advance(start);
    up(&mut director, 0);
    director.advance(start);
    assert_eq!((weights(&director), director.services()[0].weight()), (vec![1], 100));

    let both = Config { services: vec![service(vec![slowly(1), slowly(2)])], ..Config::default() };
    let mut director = director.succeed(&both, Vec::new());
    let mut changes = |after| {
        director.advance(start + Duration::from_millis(after));
        let services = director.take_touched();
        services.iter().map(|it| it.reals.iter().map(|real| real.weight).collect()).collect::<Vec<Vec<_>>>()
    };
    assert_eq!(changes(5000), [[50, 1]]);
    assert!(changes(5900).is_empty(), "nothing for the tables");
    assert_eq!(changes(10_000), [[100, 50]]);
    assert_eq!(changes(15_000), [[100, 100]]);
    assert!(changes(20_000).is_empty());
}

#[test]
fn a_reset_does_not_lose_a_quorum_on_its_way() {
    let weighing = |last, weight| RealServer { weight, ..real(last, 0) };
    let quorum = Quorum { weight: 2, hysteresis: 1 };
    let mut director =
        direct(VirtualServer { quorum, ..service(vec![weighing(1, 0), weighing(2, 2), weighing(3, 1)]) });
    for (real, to) in [("10.77.0.1:80", 5), ("10.77.0.2:80", 0), ("10.77.0.3:80", 0)] {
        director.on_order(&weight(real, to)).unwrap();
    }
    director.on_order(&Order::Enable { service: SERVICE.into(), real: "10.77.0.3:80".into() }).unwrap();
    director.on_order(&weight("10.77.0.3:80", 0)).unwrap();
    assert!(director.services()[0].has_quorum());
    let changes = director.on_order(&Order::Reset).unwrap();
    assert!(!changes.iter().any(|change| matches!(change, Change::Quorum { .. })), "{changes:?}");
    // An order stands over a configured 0 and can be taken back.
    director.on_order(&weight("10.77.0.1:80", 5)).unwrap();
    director.on_order(&Order::Enable { service: SERVICE.into(), real: "10.77.0.1:80".into() }).unwrap();
    assert_eq!(weights(&director), [0, 2, 1]);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
fn only_services_whose_packets_would_meet_something_else_are_touched() {
    let other = VirtualServer { port: 81, ..service(vec![real(1, 1), real(2, 1)]) };
    let sorry =
        Some(SorryServer { address: SORRY, port: 80, forwarding: Forwarding::Direct, inhibit: false });
    let first = VirtualServer { sorry, ..service(vec![real(1, 1)]) };
    let config = Config { services: vec![first, other], ..Config::default() };
    let mut director = Director::new(&config, Vec::new(), Orders::default(), |_, _| None);
    let touched = |director: &mut Director| {
        director.advance(Instant::now());
        director.take_touched().iter().map(|it| it.key.port).collect::<Vec<_>>()
    };
    director.on_next_hops([(IpAddr::from([10, 77, 0, 2]), HOP)].into());
    assert_eq!(touched(&mut director), [81]);
    director.on_next_hops([(IpAddr::from([10, 77, 0, 2]), HOP)].into());
    assert!(touched(&mut director).is_empty(), "it is known");
    director.on_next_hops([(SORRY, HOP)].into());
    assert_eq!(touched(&mut director), [80]);

    let check = director.targets()[1].id;
    assert_eq!(director.service_of(check), Some(1));
    up(&mut director, check);
    assert!(touched(&mut director).is_empty(), "it began in the pool");
    for _ in 0..2 {
        down(&mut director, check);
    }
    assert_eq!(touched(&mut director), [81]);
    assert!(touched(&mut director).is_empty());
}
