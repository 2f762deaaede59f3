use std::{net::Ipv4Addr, sync::Arc};

use proptest::prelude::*;

use super::{
    Change::{Down, Up},
    Finding::{Failure, NotTried, Success},
    *,
};
use crate::config::model::{HttpCheck, HttpProtocol, Url};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn tcp(retry: u32) -> Check {
    Check {
        kind: CheckKind::Tcp,
        address: Ipv4Addr::LOCALHOST.into(),
        port: 80,
        source: Arc::default(),
        timing: Arc::new(CheckTiming {
            delay_loop: secs(10),
            connect_timeout: secs(5),
            retry,
            delay_before_retry: secs(2),
            warmup: secs(10),
            rise: 1,
            fall: None,
        }),
        alpha: false,
        log_all_failures: false,
        on_vip: None,
        only_with: None,
    }
}

fn http(urls: usize, retry: u32) -> Check {
    let url = |n| Url {
        path: format!("/{n}"),
        status: vec![(200, 299)],
        digest: None,
        search: None,
        host: "www".into(),
        server_name: std::net::IpAddr::V4(Ipv4Addr::LOCALHOST).into(),
    };
    let urls = (0..urls).map(url).collect();
    Check {
        kind: CheckKind::Http(Box::new(HttpCheck {
            urls,
            protocol: HttpProtocol::V1_0,
            fast_recovery: false,
            tls: None,
        })),
        ..tcp(retry)
    }
}

/// A machine on a clock that jumps from probe to probe; each probe takes one second.
struct Bench {
    machine: Machine,
    now: Instant,
}

impl Bench {
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of a virtual clock")]
    fn new(check: &Check) -> Self {
        let now = Instant::now();
        Self { machine: Machine::new(check, true, 0, now), now }
    }

    /// Answers the next probe; returns the verdict and the delay that follows.
    fn answer(&mut self, finding: Finding) -> (Option<Change>, Duration) {
        self.now = self.machine.due() + secs(1);
        let change = self.machine.on_finding(finding, self.now);
        (change, self.machine.due() - self.now)
    }

    fn after(check: &Check, findings: &[Finding]) -> Self {
        let mut bench = Self::new(check);
        for finding in findings {
            bench.answer(*finding);
        }
        bench
    }
}

#[test]
fn the_first_probe_runs_after_one_second_plus_a_random_part_of_warmup() {
    let start = Bench::new(&tcp(1)).now;
    let delay = |random| Machine::new(&tcp(1), true, random, start).due() - start;
    assert_eq!(delay(0), secs(1));
    assert_eq!(delay(1 << 31), secs(6));
    assert!(delay(u32::MAX) > secs(10) && delay(u32::MAX) < secs(11));
    let mut check = tcp(1);
    Arc::make_mut(&mut check.timing).warmup = Duration::ZERO;
    assert_eq!(Machine::new(&check, true, u32::MAX, start).due() - start, secs(1));
}

#[test]
fn a_real_that_was_out_before_a_restart_returns_with_its_first_success() {
    let mut bench = Bench::new(&tcp(1));
    bench.machine = Machine::new(&tcp(1), false, 0, bench.now);
    assert_eq!(bench.answer(Failure).0, Some(Down), "the first result is told");
    assert_eq!(bench.answer(Failure).0, None);
    assert_eq!(bench.answer(Success).0, Some(Up));
}

#[test]
fn the_first_failure_after_start_is_enough_whatever_retry_says() {
    assert_eq!(Bench::new(&tcp(3)).answer(Failure), (Some(Down), secs(10)));
}

#[test]
fn later_failures_need_retry_plus_one_in_a_row_close_together() {
    let mut bench = Bench::new(&tcp(2));
    assert_eq!(bench.answer(Success), (Some(Up), secs(10)));
    assert_eq!(bench.answer(Failure), (None, secs(2)));
    assert_eq!(bench.answer(Failure), (None, secs(2)));
    assert_eq!(bench.answer(Failure), (Some(Down), secs(10)));
}

#[test]
fn a_success_between_failures_starts_the_count_again() {
    let mut bench = Bench::after(&tcp(1), &[Success, Failure, Success]);
    assert_eq!(bench.answer(Failure), (None, secs(2)));
    assert_eq!(bench.answer(Failure), (Some(Down), secs(10)));
}

#[test]
fn without_retry_every_failure_decides() {
    let mut bench = Bench::after(&tcp(0), &[Success]);
    assert_eq!(bench.answer(Failure), (Some(Down), secs(10)));
}

#[test]
fn only_the_first_success_and_changes_are_news() {
    let mut bench = Bench::new(&tcp(1));
    assert_eq!(bench.answer(Success).0, Some(Up));
    assert_eq!(bench.answer(Success).0, None);
    assert_eq!(bench.answer(Success).0, None);
}

#[test]
fn while_down_it_asks_every_delay_loop_and_one_success_brings_it_back() {
    let mut bench = Bench::after(&tcp(3), &[Failure]);
    assert_eq!(bench.answer(Failure), (None, secs(10)));
    assert_eq!(bench.answer(Failure), (None, secs(10)));
    assert_eq!(bench.answer(Success), (Some(Up), secs(10)));
}

#[test]
fn a_server_that_returned_has_all_its_retries() {
    let mut bench = Bench::after(&tcp(1), &[Failure, Success]);
    assert_eq!(bench.answer(Failure), (None, secs(2)));
}

#[test]
fn a_probe_that_could_not_start_says_nothing_about_the_server() {
    let mut bench = Bench::new(&tcp(1));
    assert_eq!(bench.answer(NotTried), (None, secs(10)));
    // Not a first result: the next failure still decides.
    assert_eq!(bench.answer(Failure), (Some(Down), secs(10)));
    assert_eq!(bench.answer(NotTried), (None, secs(10)));
    assert_eq!(bench.answer(Success).0, Some(Up));
    // It neither uses up a retry nor gives one back.
    assert_eq!(bench.answer(Failure).0, None);
    assert_eq!(bench.answer(NotTried), (None, secs(10)));
    assert_eq!(bench.answer(Failure).0, Some(Down));
}

#[test]
fn urls_are_asked_one_per_cycle_and_up_is_said_when_all_have_answered() {
    let mut bench = Bench::new(&http(3, 1));
    for url in [0, 1] {
        assert_eq!(bench.machine.url(), url);
        assert_eq!(bench.answer(Success), (None, secs(10)));
    }
    assert_eq!(bench.machine.url(), 2);
    assert_eq!(bench.answer(Success), (Some(Up), secs(10)));
    assert_eq!(bench.machine.url(), 0);
}

#[test]
fn the_first_failure_decides_during_the_whole_first_round_of_urls() {
    let mut bench = Bench::after(&http(2, 3), &[Success]);
    assert_eq!(bench.answer(Failure).0, Some(Down));
}

#[test]
fn a_retry_asks_the_same_url() {
    let mut bench = Bench::after(&http(2, 1), &[Success, Success, Success]);
    assert_eq!(bench.machine.url(), 1);
    assert_eq!(bench.answer(Failure), (None, secs(2)));
    assert_eq!(bench.machine.url(), 1);
    assert_eq!(bench.answer(Success), (None, secs(10)));
    assert_eq!(bench.machine.url(), 0);
    assert_eq!(bench.answer(Failure).0, None, "the success gave the retries back");
}

#[test]
fn a_failed_url_is_asked_until_it_answers_and_then_all_must_answer_once() {
    let mut bench = Bench::after(&http(2, 0), &[Success, Success, Success]);
    assert_eq!(bench.answer(Failure), (Some(Down), secs(10)));
    for _ in 0..3 {
        assert_eq!(bench.machine.url(), 1);
        assert_eq!(bench.answer(Failure), (None, secs(10)));
    }
    assert_eq!(bench.answer(Success), (None, secs(10)));
    assert_eq!(bench.machine.url(), 0);
    assert_eq!(bench.answer(Success), (None, secs(10)));
    assert_eq!(bench.answer(Success), (Some(Up), secs(10)));
}

#[test]
fn a_single_failed_url_must_answer_twice() {
    let mut bench = Bench::after(&http(1, 0), &[Success, Failure]);
    assert_eq!(bench.answer(Success).0, None);
    assert_eq!(bench.answer(Success).0, Some(Up));
}

#[test]
fn fast_recovery_asks_all_urls_without_a_pause() {
    let mut check = http(3, 0);
    let CheckKind::Http(http) = &mut check.kind else { panic!("{check:?}") };
    http.fast_recovery = true;
    let mut bench = Bench::after(&check, &[Failure]);
    for _ in 0..3 {
        assert_eq!(bench.answer(Success), (None, SHORTEST));
    }
    assert_eq!(bench.answer(Success), (Some(Up), secs(10)));
    assert_eq!(bench.answer(Success), (None, secs(10)), "only on the way back");
}

#[test]
fn another_url_that_fails_on_the_way_back_is_the_failed_one_from_then_on() {
    let mut bench = Bench::after(&http(2, 0), &[Failure, Success, Success]);
    assert_eq!(bench.machine.url(), 1);
    assert_eq!(bench.answer(Failure), (None, secs(10)));
    assert_eq!(bench.machine.url(), 1);
    assert_eq!(bench.answer(Success).0, None);
    assert_eq!(bench.machine.url(), 0);
    assert_eq!(bench.answer(Success).0, None);
    assert_eq!(bench.answer(Success).0, Some(Up));
}

#[test]
fn a_failed_url_is_asked_at_the_slower_of_both_delays() {
    let mut check = http(1, 0);
    Arc::make_mut(&mut check.timing).delay_before_retry = secs(30);
    let mut bench = Bench::new(&check);
    assert_eq!(bench.answer(Failure), (Some(Down), secs(30)));
    assert_eq!(bench.answer(Failure), (None, secs(30)));
}

#[test]
fn with_fall_as_many_failures_in_a_row_decide_from_the_start_on() {
    let mut check = tcp(5);
    Arc::make_mut(&mut check.timing).fall = Some(3);
    let mut bench = Bench::new(&check);
    assert_eq!(bench.answer(Failure), (None, secs(2)));
    assert_eq!(bench.answer(Failure), (None, secs(2)));
    assert_eq!(bench.answer(Success).0, Some(Up));
    assert_eq!(bench.answer(Failure), (None, secs(2)));
    assert_eq!(bench.answer(Failure), (None, secs(2)));
    assert_eq!(bench.answer(Failure), (Some(Down), secs(10)));
}

#[test]
fn with_rise_as_many_successes_in_a_row_bring_it_back() {
    let mut check = tcp(0);
    Arc::make_mut(&mut check.timing).rise = 3;
    let mut bench = Bench::after(&check, &[Failure, Success, Success]);
    assert_eq!(bench.answer(Failure), (None, secs(10)), "the count starts again");
    assert_eq!(bench.answer(Success), (None, secs(10)));
    assert_eq!(bench.answer(NotTried), (None, secs(10)));
    assert_eq!(bench.answer(Success), (None, secs(10)));
    assert_eq!(bench.answer(Success).0, Some(Up));
}

#[test]
fn rise_does_not_hold_up_a_server_that_starts_in_the_pool() {
    let mut check = tcp(0);
    Arc::make_mut(&mut check.timing).rise = 3;
    assert_eq!(Bench::new(&check).answer(Success).0, Some(Up));
}

#[test]
fn with_urls_rise_counts_rounds() {
    let mut check = http(2, 0);
    Arc::make_mut(&mut check.timing).rise = 2;
    // The failed url answers, then all must, twice.
    let mut bench = Bench::after(&check, &[Failure, Success, Success, Success, Success]);
    assert_eq!(bench.answer(Success).0, Some(Up));
}

fn finding() -> impl Strategy<Value = Finding> {
    prop_oneof![Just(Success), Just(Failure), Just(NotTried)]
}

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![Just(Duration::ZERO), Just(Duration::MAX), (0..100_000_u64).prop_map(Duration::from_millis),]
}

proptest! {
    #[test]
    fn verdicts_alternate_and_the_deadline_always_moves_forward(
        findings in prop::collection::vec(finding(), 0..60),
        urls in 0_usize..4,
        retry in prop_oneof![0..4_u32, Just(u32::MAX)],
        rise in 1..4_u32,
        fall in prop::option::of(1..4_u32),
        delays in [duration(), duration(), duration()],
        random: u32,
        up: bool,
    ) {
        let mut check = if urls == 0 { tcp(retry) } else { http(urls, retry) };
        let timing = Arc::make_mut(&mut check.timing);
        (timing.rise, timing.fall) = (rise, fall);
        [timing.delay_loop, timing.delay_before_retry, timing.warmup] = delays;
        let start = Bench::new(&check).now;
        let mut machine = Machine::new(&check, up, random, start);
        prop_assert!(machine.due() > start);
        let mut last = None;
        for finding in findings {
            let now = machine.due();
            let change = machine.on_finding(finding, now);
            prop_assert!(machine.due() > now);
            prop_assert!(machine.url() < urls.max(1));
            match change {
                None => {}
                Some(Up) => prop_assert!(finding == Success && last != Some(Up)),
                Some(Down) => prop_assert!(finding == Failure && last != Some(Down)),
            }
            last = change.or(last);
        }
    }
}
