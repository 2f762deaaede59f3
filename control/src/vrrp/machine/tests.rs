use std::net::Ipv4Addr;

use super::*;

const SELF: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const LOWER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const HIGHER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3));
const SECOND: Duration = Duration::from_secs(1);
/// An arbitrary start, so that nothing rests on time zero.
const START: Monotonic = Monotonic::from_nanos(5_000_000_000_000);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn settings(priority: i64) -> Settings {
    Settings {
        source: SELF,
        version: Version::V3,
        priority: Priority::new(priority).unwrap(),
        advert_interval: SECOND,
        start_as_master: false,
        preempt: Preempt::Immediate,
        garp: Garp::default(),
        rules: Rules::default(),
        down_timer_adverts: 3,
        grouped: false,
    }
}

/// A machine, its clock, and what it did last.
struct Bench {
    machine: Machine,
    now: Monotonic,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        Self { machine: Machine::new(settings), now: START }
    }

    fn backup(settings: Settings) -> Self {
        let mut bench = Self::new(settings);
        bench.start();
        assert_eq!(bench.machine.state(), State::Backup);
        bench
    }

    fn master(settings: Settings) -> Self {
        let mut bench = Self::backup(settings);
        bench.fire();
        assert_eq!(bench.machine.state(), State::Master);
        bench
    }

    fn input(&mut self, input: impl FnOnce(&mut Machine, Monotonic, &mut Effects)) -> Vec<Effect> {
        let mut effects = Effects::new();
        input(&mut self.machine, self.now, &mut effects);
        effects.into()
    }

    fn start(&mut self) -> Vec<Effect> {
        self.input(|machine, now, effects| machine.on_start(Monotonic::default(), now, effects))
    }

    fn hear(&mut self, from: IpAddr, priority: u8) -> Vec<Effect> {
        self.hear_interval(from, priority, SECOND)
    }

    fn hear_interval(&mut self, from: IpAddr, priority: u8, interval: Duration) -> Vec<Effect> {
        let advert = Advert { priority, interval };
        self.input(|machine, now, effects| machine.on_advert(from, &advert, now, effects))
    }

    /// Wakes the machine at its next deadline.
    fn fire(&mut self) -> Vec<Effect> {
        self.now = self.machine.next_deadline().unwrap();
        self.wake()
    }

    fn wake(&mut self) -> Vec<Effect> {
        self.input(Machine::on_timer)
    }

    fn pass(&mut self, duration: Duration) -> &mut Self {
        self.now = self.now + duration;
        self
    }

    /// How long until the machine acts by itself.
    fn patience(&self) -> Duration {
        Duration::from_nanos(self.machine.next_deadline().unwrap().nanos() - self.now.nanos())
    }

    fn lease(&self, after: Duration) -> Effect {
        Effect::HoldLease { until: self.now + after }
    }
}

fn advert(priority: u8) -> Effect {
    Effect::SendAdvert { priority }
}

fn transition(from: State, to: State, cause: Cause) -> Effect {
    Effect::Transition { from, to, cause }
}

// --- preemption and the lease of the preempted

#[test]
fn a_master_that_dies_while_it_is_preempted_has_its_lease_waited_out() {
    let mut bench = Bench::backup(settings(200));
    bench.pass(ms(1500));
    bench.hear(LOWER, 100);
    let heard = bench.now;
    bench.fire();
    assert_eq!(bench.machine.state(), State::Backup, "silent for more than an interval and a half");
    bench.fire();
    assert_eq!((bench.machine.state(), bench.now), (State::Master, heard + SECOND * 3));
}

#[test]
fn a_living_master_is_preempted_without_waiting_for_its_lease() {
    let mut bench = Bench::backup(settings(200));
    let own_time = bench.now + bench.patience();
    bench.pass(ms(2000));
    bench.hear(LOWER, 100);
    bench.fire();
    assert_eq!((bench.machine.state(), bench.now), (State::Master, own_time));
}

// --- handed over by an operator

fn hand_over(bench: &mut Bench, to: Option<IpAddr>) -> Vec<Effect> {
    bench.input(|machine, now, effects| machine.hand_over(to, now, effects))
}

#[test]
fn a_master_that_hands_over_gives_up_its_lease_before_it_invites_all_peers() {
    let mut bench = Bench::master(settings(200));
    assert_eq!(
        hand_over(&mut bench, None),
        [
            Effect::ResignLease,
            advert(0),
            Effect::AddressesDown,
            transition(State::Master, State::Backup, Cause::HandedOver)
        ]
    );
    assert_eq!(bench.patience(), 3 * SECOND + Duration::from_micros(996_093), "last in line");
}

#[test]
fn handed_over_it_obeys_any_master_until_it_takes_part_again() {
    for preempt in [Preempt::Immediate, Preempt::After(SECOND)] {
        let mut bench = Bench::master(Settings { preempt, ..settings(200) });
        hand_over(&mut bench, None);
        for _ in 0..20 {
            bench.pass(SECOND).hear(LOWER, 1);
            assert_eq!(bench.patience(), 3 * SECOND + Duration::from_micros(996_093));
        }
        bench.input(Machine::take_part);
        assert_eq!(bench.patience(), 3 * SECOND + Duration::from_micros(218_750));
        for _ in 0..6 {
            if bench.patience() > SECOND {
                bench.pass(SECOND).hear(LOWER, 100);
            }
        }
        bench.fire();
        assert_eq!(bench.machine.state(), State::Master, "{preempt:?}");
    }
}

#[test]
fn handed_over_it_serves_again_when_nobody_does_and_yields_to_whoever_comes() {
    let mut bench = Bench::master(settings(255));
    hand_over(&mut bench, None);
    bench.pass(SECOND).hear(LOWER, 100);
    assert_eq!(bench.fire()[0], advert(1));
    assert_eq!(bench.machine.state(), State::Master);
    bench.hear(LOWER, 100);
    assert_eq!(bench.machine.state(), State::Backup);
}

#[test]
fn trackers_do_not_end_what_an_operator_wanted() {
    let mut bench = Bench::backup(settings(200));
    hand_over(&mut bench, None);
    let better = Priority::new(220).unwrap();
    bench.input(|machine, now, effects| machine.on_priority(better, now, effects));
    assert_eq!((bench.machine.priority(), bench.machine.standing()), (Priority::LAST, better));
    bench.input(Machine::take_part);
    assert_eq!(bench.machine.priority(), better);
}

#[test]
fn one_peer_is_invited_alone_and_all_of_them_if_it_does_not_come() {
    let mut bench = Bench::master(settings(200));
    let done = hand_over(&mut bench, Some(LOWER));
    assert_eq!(done[..2], [Effect::ResignLease, Effect::Farewell { peer: LOWER }]);
    assert_eq!(bench.patience(), ms(1500));
    assert_eq!(bench.fire(), [advert(0)]);
    assert_eq!(bench.fire().last(), Some(&transition(State::Backup, State::Master, Cause::MasterSilent)));

    let mut bench = Bench::master(settings(200));
    hand_over(&mut bench, Some(LOWER));
    bench.pass(ms(600)).hear(LOWER, 100);
    assert_eq!(bench.patience(), 3 * SECOND + Duration::from_micros(996_093), "it came");
}

// --- priorities of trackers

#[test]
fn a_backup_waits_longer_or_shorter_by_the_skew_of_its_new_priority() {
    let set = |bench: &mut Bench, to: i64| {
        let priority = Priority::new(to).unwrap();
        bench.input(|machine, now, effects| machine.on_priority(priority, now, effects))
    };
    let mut bench = Bench::backup(settings(100));
    bench.pass(SECOND);
    bench.hear(HIGHER, 150);
    bench.pass(ms(500));
    assert_eq!(set(&mut bench, 200), []);
    assert_eq!(bench.patience(), ms(2_500) + Duration::from_micros(218_750));
    set(&mut bench, 100);
    assert_eq!(bench.patience(), ms(2_500) + Duration::from_micros(609_375));
    set(&mut bench, 151);
    let patience = bench.patience();
    bench.hear(HIGHER, 150);
    assert_eq!(bench.patience(), patience, "a master below the new priority is not obeyed");
    bench.pass(patience - ms(100));
    bench.hear(HIGHER, 150);
    bench.fire();
    assert_eq!(bench.machine.state(), State::Master);
}

#[test]
fn a_masters_next_advert_says_its_new_priority_and_yields_by_it() {
    let mut bench = Bench::master(settings(150));
    let low = Priority::new(90).unwrap();
    assert_eq!(bench.input(|machine, now, effects| machine.on_priority(low, now, effects)), []);
    assert_eq!(bench.fire(), [advert(90), bench.lease(3 * SECOND)]);
    bench.hear(LOWER, 100);
    assert_eq!(bench.machine.state(), State::Backup);
}

#[test]
fn a_machine_that_was_held_up_starts_when_it_may_and_can_fail_before() {
    let mut bench = Bench::new(settings(100));
    assert_eq!(
        bench.input(|machine, now, effects| machine.on_fault(FaultCause::Tracker(7), now, effects)),
        [transition(State::Init, State::Fault, Cause::Fault(FaultCause::Tracker(7)))]
    );
    assert_eq!(
        bench.input(Machine::on_recovered),
        [transition(State::Fault, State::Backup, Cause::Recovered)]
    );
    let mut bench = Bench::new(settings(100));
    assert_eq!(bench.input(Machine::on_recovered), [transition(State::Init, State::Backup, Cause::Started)]);
    bench.input(Machine::stop);
    assert_eq!(bench.input(Machine::on_recovered), [], "a stop is for good");
    assert_eq!(bench.input(|machine, now, effects| machine.on_fault(FaultCause::LinkDown, now, effects)), []);
}

// --- timers

#[test]
fn a_backup_waits_three_intervals_and_a_skew_of_its_priority() {
    let of = |version, priority, interval| {
        Bench::backup(Settings { version, advert_interval: interval, ..settings(priority) }).patience()
    };
    let micros = Duration::from_micros;
    assert_eq!(of(Version::V2, 100, SECOND), micros(3_609_375));
    assert_eq!(
        of(Version::V2, 254, 5 * SECOND),
        micros(15_007_812),
        "v2: skew does not grow with the interval"
    );
    assert_eq!(of(Version::V3, 100, SECOND), micros(3_609_375));
    assert_eq!(of(Version::V3, 100, ms(10)), micros(36_093));
    assert_eq!(of(Version::V3, 254, ms(100)), micros(300_781));
    assert_eq!(of(Version::V3, 1, ms(40_950)), micros(122_850_000 + 40_790_039));
}

#[test]
fn lease_and_patience_follow_down_timer_adverts() {
    let five = Settings { down_timer_adverts: 5, ..settings(100) };
    assert_eq!(Bench::backup(five.clone()).patience(), 5 * SECOND + Duration::from_micros(609_375));
    let mut bench = Bench::master(five);
    assert_eq!(bench.fire(), [advert(100), bench.lease(5 * SECOND)]);
    bench.pass(ms(4_900)).wake();
    assert_eq!(bench.machine.state(), State::Master, "late, and still in time");
    bench.pass(5 * SECOND).wake();
    assert_eq!(bench.machine.state(), State::Backup);
}

#[test]
fn adverts_keep_their_grid_when_a_wake_up_is_late() {
    let mut bench = Bench::master(settings(100));
    let start = bench.now;
    bench.pass(ms(1_400)).wake();
    assert_eq!(bench.machine.next_deadline(), Some(start + 2 * SECOND));
}

#[test]
fn a_thousand_adverts_with_late_wake_ups_and_answers_between_them_do_not_drift() {
    let mut bench = Bench::master(Settings { advert_interval: ms(10), ..settings(100) });
    let start = bench.now;
    let mut adverts = 0;
    for step in 1..=1000 {
        bench.now = start + ms(10) * step + Duration::from_micros(u64::from(step * 7 % 9_000));
        adverts += bench.wake().iter().filter(|effect| **effect == advert(100)).count();
        if step % 10 == 0 {
            bench.hear(LOWER, 50);
        }
    }
    assert_eq!(adverts, 1000);
    while !bench.fire().contains(&advert(100)) {}
    assert_eq!(bench.now, start + ms(10) * 1001);
}

#[test]
fn missed_adverts_are_not_made_up_for() {
    let mut bench = Bench::master(settings(100));
    let start = bench.now;
    let sent = bench.pass(ms(2_900)).wake();
    assert_eq!(sent, [advert(100), bench.lease(3 * SECOND)]);
    assert_eq!(bench.machine.next_deadline(), Some(start + 3 * SECOND));
}

#[test]
fn a_v3_backup_learns_the_interval_of_its_master() {
    let mut bench = Bench::backup(settings(100));
    bench.hear_interval(HIGHER, 150, ms(100));
    assert_eq!(bench.patience(), Duration::from_micros(360_937));
}

#[test]
fn a_v3_backup_does_not_learn_from_a_master_it_ignores() {
    let mut bench = Bench::backup(settings(100));
    let before = bench.patience();
    bench.hear_interval(LOWER, 50, ms(10));
    assert_eq!(bench.patience(), before);
}

// --- BACKUP

#[test]
fn a_silent_master_is_replaced_advert_first_and_addresses_last() {
    let mut bench = Bench::backup(settings(100));
    assert_eq!(
        bench.fire(),
        [
            advert(100),
            bench.lease(3 * SECOND),
            Effect::Announce { repeat: 5 },
            Effect::AddressesUp,
            transition(State::Backup, State::Master, Cause::MasterSilent),
        ]
    );
}

#[test]
fn waking_early_changes_nothing() {
    let mut bench = Bench::backup(settings(100));
    assert_eq!(bench.pass(3 * SECOND).wake(), []);
}

#[test]
fn state_master_below_255_still_listens_first() {
    Bench::backup(Settings { start_as_master: true, ..settings(254) });
}

#[test]
fn the_owner_is_master_at_once() {
    let mut bench = Bench::new(Settings { start_as_master: true, ..settings(255) });
    let done = bench.start();
    assert_eq!(done.last(), Some(&transition(State::Init, State::Master, Cause::Owner)));
}

#[test]
fn a_resigned_master_is_replaced_after_the_skew_alone() {
    let mut bench = Bench::backup(settings(100));
    bench.hear(HIGHER, 150);
    assert_eq!(bench.pass(ms(500)).hear(HIGHER, 0), []);
    assert_eq!(bench.patience(), Duration::from_micros(609_375));
    assert_eq!(bench.fire().last(), Some(&transition(State::Backup, State::Master, Cause::MasterResigned)));
}

#[test]
fn a_new_master_ends_the_haste_after_a_resignation() {
    let mut bench = Bench::backup(settings(100));
    bench.hear(HIGHER, 0);
    bench.hear(LOWER, 150);
    assert_eq!(bench.patience(), Duration::from_micros(3_609_375));
}

#[test]
fn equal_and_higher_priorities_are_obeyed_whatever_their_address() {
    for (from, priority) in [(LOWER, 100), (HIGHER, 100), (LOWER, 101)] {
        let mut bench = Bench::backup(settings(100));
        bench.pass(SECOND).hear(from, priority);
        assert_eq!(bench.patience(), Duration::from_micros(3_609_375));
    }
}

#[test]
fn a_lower_priority_master_is_preempted() {
    let mut bench = Bench::backup(settings(100));
    bench.pass(SECOND).hear(HIGHER, 99);
    assert_eq!(bench.patience(), Duration::from_micros(2_609_375), "the timer runs on");
}

#[test]
fn nopreempt_obeys_a_lower_priority_master() {
    let mut bench = Bench::backup(Settings { preempt: Preempt::Never, ..settings(100) });
    bench.pass(SECOND).hear(LOWER, 1);
    assert_eq!(bench.patience(), Duration::from_micros(3_609_375));
}

#[test]
fn preempt_delay_counts_from_the_first_advert_of_the_lower_master() {
    let mut bench = Bench::backup(Settings { preempt: Preempt::After(10 * SECOND), ..settings(100) });
    for _ in 0..=10 {
        bench.pass(SECOND).hear(LOWER, 50);
    }
    // The 11th comes 10 s after the first and is the first to be ignored.
    assert_eq!(bench.patience(), Duration::from_micros(2_609_375));
}

#[test]
fn a_higher_master_in_between_restarts_the_preempt_delay() {
    let mut bench = Bench::backup(Settings { preempt: Preempt::After(2 * SECOND), ..settings(100) });
    bench.hear(LOWER, 50);
    bench.pass(SECOND).hear(HIGHER, 150);
    bench.pass(SECOND).hear(LOWER, 50);
    assert_eq!(bench.patience(), Duration::from_micros(3_609_375), "obeyed: the delay has just begun");
}

// --- MASTER

#[test]
fn a_better_master_is_yielded_to_lease_first_and_told_so() {
    let mut bench = Bench::master(settings(100));
    let cause = Cause::BetterMaster { address: LOWER, priority: 101 };
    assert_eq!(
        bench.hear_interval(LOWER, 101, ms(200)),
        [
            Effect::ResignLease,
            Effect::Farewell { peer: LOWER },
            Effect::AddressesDown,
            transition(State::Master, State::Backup, cause)
        ]
    );
    assert_eq!(bench.patience(), Duration::from_micros(721_875), "waits by the interval of the new master");
}

#[test]
fn equal_priority_yields_to_the_higher_address() {
    let mut bench = Bench::master(settings(100));
    bench.hear(LOWER, 100);
    assert_eq!(bench.machine.state(), State::Master);
    bench.hear(HIGHER, 100);
    assert_eq!(bench.machine.state(), State::Backup);
}

#[test]
fn equal_addresses_compare_as_numbers() {
    let mut bench = Bench::master(Settings { source: [10, 0, 0, 9].into(), ..settings(100) });
    bench.hear([10, 0, 0, 128].into(), 100);
    assert_eq!(bench.machine.state(), State::Backup);
}

#[test]
fn its_own_advert_come_back_changes_nothing() {
    let mut bench = Bench::master(settings(100));
    assert_eq!(bench.hear(SELF, 100), []);
}

#[test]
fn a_lower_master_is_answered_and_its_announcements_are_overruled() {
    let mut bench = Bench::master(settings(100));
    bench.pass(ms(900));
    assert_eq!(
        bench.hear(HIGHER, 50),
        [advert(100), bench.lease(3 * SECOND), Effect::Announce { repeat: 5 }]
    );
    let again_at = bench.now + 5 * SECOND;
    let mut bursts = vec![];
    while bench.now < again_at {
        bursts.extend(bench.fire().into_iter().filter(|effect| matches!(effect, Effect::Announce { .. })));
    }
    assert_eq!((bench.now, bursts), (again_at, vec![Effect::Announce { repeat: 5 }]));
}

#[test]
fn lower_prio_no_advert_announces_and_says_nothing() {
    let rules = Rules { lower_prio_no_advert: true, ..Rules::default() };
    let mut bench = Bench::master(Settings { rules, ..settings(100) });
    bench.pass(ms(900));
    assert_eq!(bench.hear(HIGHER, 50), [Effect::Announce { repeat: 5 }]);
    assert_eq!(bench.hear(HIGHER, 0), [advert(100), bench.lease(3 * SECOND)], "a resignation is answered");
}

#[test]
fn higher_prio_send_advert_says_a_last_word_without_the_lease() {
    let rules = Rules { higher_prio_send_advert: true, ..Rules::default() };
    let mut bench = Bench::master(Settings { rules, ..settings(100) });
    let cause = Cause::BetterMaster { address: LOWER, priority: 101 };
    let done = [
        Effect::ResignLease,
        advert(100),
        Effect::AddressesDown,
        transition(State::Master, State::Backup, cause),
    ];
    assert_eq!(bench.hear(LOWER, 101), done);
    let mut late = Bench::master(Settings { rules, ..settings(100) });
    late.pass(3 * SECOND);
    assert!(!late.hear(LOWER, 101).contains(&advert(100)), "a lapsed lease is no mastership to end");
}

#[test]
fn an_owner_yields_to_another_owner_of_a_lower_address_only_if_that_one_goes_on() {
    let owner = || Settings { start_as_master: true, ..settings(255) };
    let hear = |bench: &mut Bench, pauses: &[u64]| {
        for pause in pauses {
            bench.pass(ms(*pause)).hear(LOWER, 255);
            if bench.machine.state() == State::Master {
                bench.wake();
            }
        }
        bench.machine.state()
    };
    let new = || {
        let mut bench = Bench::new(owner());
        bench.start();
        bench
    };
    assert_eq!(hear(&mut new(), &[900, 1_000]), State::Master, "it may have to hear of us first");
    assert_eq!(hear(&mut new(), &[900, 1_000, 1_300, 1_000]), State::Master, "it comes and goes");
    let mut bench = new();
    assert_eq!(hear(&mut bench, &[900, 1_000, 1_000]), State::Backup);
    for _ in 0..5 {
        bench.pass(SECOND).hear(LOWER, 255);
    }
    assert_eq!(bench.machine.state(), State::Backup);
    bench.fire();
    assert_eq!(bench.machine.state(), State::Master, "the other one is gone");
    bench.pass(ms(10)).hear(HIGHER, 255);
    assert_eq!(bench.machine.state(), State::Backup, "the higher address is obeyed at once");
}

#[test]
fn a_stream_of_lower_adverts_makes_no_stream_of_announcements() {
    let mut bench = Bench::master(settings(100));
    bench.pass(ms(900)).hear(LOWER, 50);
    let answers: Vec<_> = (0..9).flat_map(|_| bench.pass(ms(10)).hear(LOWER, 50)).collect();
    assert!(!answers.contains(&Effect::Announce { repeat: 5 }));
    assert_eq!(answers.iter().filter(|effect| **effect == advert(100)).count(), 9);
    while bench.patience() > ms(0) {
        if bench.fire().contains(&Effect::Announce { repeat: 5 }) {
            break;
        }
    }
    assert_eq!(bench.now, START + Duration::from_micros(3_609_375) + SECOND, "the last word is ours");
}

#[test]
fn priority_zero_from_another_is_answered_at_once() {
    let mut bench = Bench::master(settings(100));
    bench.pass(ms(300));
    assert_eq!(
        bench.hear(HIGHER, 0),
        [advert(100), bench.lease(3 * SECOND), Effect::Announce { repeat: 5 }],
        "neighbours may believe the other one"
    );
}

#[test]
fn a_claim_is_contradicted_by_a_master_only_and_not_without_end() {
    let claim = |bench: &mut Bench| {
        let mut contradicts = false;
        let effects = bench.input(|machine, now, effects| contradicts = machine.on_claim(now, effects));
        (contradicts, effects)
    };
    let mut bench = Bench::backup(settings(100));
    assert_eq!(claim(&mut bench), (false, vec![]));
    bench.fire();
    bench.pass(ms(500));
    assert_eq!(claim(&mut bench), (true, vec![Effect::Announce { repeat: 5 }]));
    assert_eq!(claim(bench.pass(ms(50))), (true, vec![]), "a pause is kept");
    bench.pass(ms(50));
    assert_eq!(bench.wake(), [Effect::Announce { repeat: 5 }], "and then the last word is ours");
    bench.pass(3 * SECOND);
    assert!(!claim(&mut bench).0, "the lease has lapsed: the other one is right");
}

#[test]
fn answers_do_not_shift_the_grid_of_adverts() {
    let mut bench = Bench::master(settings(100));
    let start = bench.now;
    bench.pass(ms(300)).hear(HIGHER, 0);
    assert_eq!(bench.machine.next_deadline(), Some(start + SECOND));
}

#[test]
fn garp_repeat_zero_announces_nothing() {
    let garp = Garp { repeat: 0, delay: Duration::ZERO, ..Garp::default() };
    let mut bench = Bench::backup(Settings { garp, ..settings(100) });
    assert!(!bench.fire().iter().any(|effect| matches!(effect, Effect::Announce { .. })));
}

// --- the lease

#[test]
fn a_lease_ends_before_the_most_eager_peer_takes_over() {
    for version in [Version::V2, Version::V3] {
        for interval in [ms(1_000), ms(2_000)].into_iter().chain((version == Version::V3).then_some(ms(10))) {
            let of = |priority| Settings { version, advert_interval: interval, ..settings(priority) };
            let mut master = Bench::master(of(100));
            let sent = master.fire();
            let Effect::HoldLease { until } = sent[1] else { panic!("{sent:?}") };
            // In v3 its own interval does not matter once it has heard the master's.
            for own in [interval, ms(1_000), ms(40_000)] {
                if version == Version::V2 && own != interval {
                    continue; // refused by the decoder
                }
                let mut peer = Bench::backup(Settings { advert_interval: own, ..of(255) });
                peer.now = master.now;
                peer.hear_interval(SELF, 255, interval);
                assert!(peer.machine.next_deadline().unwrap() > until, "{version:?} {interval:?} {own:?}");
            }
        }
    }
}

#[test]
fn a_master_that_wakes_with_a_lapsed_lease_is_backup_and_sends_nothing() {
    let lapsed = [
        Effect::ResignLease,
        Effect::AddressesDown,
        transition(State::Master, State::Backup, Cause::LeaseLapsed),
    ];
    let frozen = || {
        let mut bench = Bench::master(settings(100));
        bench.pass(3 * SECOND);
        bench
    };
    let mut bench = frozen();
    assert_eq!(bench.wake(), lapsed);
    assert_eq!(bench.patience(), Duration::from_micros(3_609_375));
    assert_eq!(frozen().hear(LOWER, 50), lapsed, "no answer to a lower priority");
    assert_eq!(frozen().hear(LOWER, 0), lapsed);
    assert_eq!(frozen().hear(HIGHER, 150), lapsed);
    let farewell = frozen().input(Machine::stop);
    assert!(!farewell.contains(&advert(0)), "no resignation of what is not held");
}

#[test]
fn one_nanosecond_before_the_end_the_lease_is_renewed() {
    let mut bench = Bench::master(settings(100));
    bench.pass(3 * SECOND - Duration::from_nanos(1));
    assert_eq!(bench.wake(), [advert(100), bench.lease(3 * SECOND)]);
}

#[test]
fn a_woken_machine_waits_by_the_interval_of_the_last_master_not_its_own() {
    let mut bench = Bench::backup(Settings { advert_interval: ms(100), ..settings(100) });
    bench.hear_interval(HIGHER, 150, SECOND);
    bench.fire();
    bench.pass(ms(300)).wake();
    assert_eq!(bench.patience(), Duration::from_micros(3_609_375));
}

#[test]
fn an_advert_that_was_not_sent_earns_no_lease() {
    let mut bench = Bench::master(settings(100));
    for _ in 0..2 {
        bench.now = bench.machine.next_deadline().unwrap();
        let after = bench.input(|machine, now, effects| {
            machine.on_timer(now, effects);
            assert_eq!(effects.pop_front(), Some(advert(100)));
            machine.on_advert_failed(now, effects);
        });
        assert_eq!(after, []);
    }
    assert_eq!(bench.fire().last(), Some(&transition(State::Master, State::Backup, Cause::LeaseLapsed)));
}

#[test]
fn a_master_that_cannot_send_wakes_up_for_the_end_of_its_lease() {
    let mut bench = Bench::master(settings(100));
    // The last advert that is sent is late, so that its lease ends between two ticks of the grid.
    bench.pass(SECOND + ms(1)).wake();
    let earned = bench.now + 3 * SECOND;
    for _ in 0..3 {
        bench.fire();
        bench.input(Machine::on_advert_failed);
    }
    assert_eq!((bench.machine.state(), bench.machine.next_deadline()), (State::Master, Some(earned)));
    bench.fire();
    assert_eq!(bench.machine.state(), State::Backup);
}

#[test]
fn a_takeover_that_nobody_hears_does_not_take_place() {
    let mut bench = Bench::backup(settings(100));
    bench.now = bench.machine.next_deadline().unwrap();
    let after = bench.input(|machine, now, effects| {
        machine.on_timer(now, effects);
        assert_eq!(effects.pop_front(), Some(advert(100)));
        machine.on_advert_failed(now, effects);
    });
    assert_eq!(after, []);
    assert_eq!((bench.machine.state(), bench.patience()), (State::Backup, SECOND), "and is tried again");
}

#[test]
fn a_running_lease_is_adopted() {
    let mut bench = Bench::new(settings(100));
    let lease = bench.now + Duration::from_nanos(1);
    let done = bench.input(|machine, now, effects| machine.on_start(lease, now, effects));
    assert_eq!(
        done,
        [
            advert(100),
            bench.lease(3 * SECOND),
            Effect::Announce { repeat: 5 },
            Effect::AddressesUp,
            transition(State::Init, State::Master, Cause::Adopted),
        ]
    );
    bench.hear(HIGHER, 101);
    assert_eq!(bench.machine.state(), State::Backup, "a better master is yielded to as ever");
}

#[test]
fn a_lease_that_has_ended_is_not_adopted() {
    let mut bench = Bench::new(settings(100));
    let done = bench.input(|machine, now, effects| machine.on_start(now, now, effects));
    assert_eq!(done, [transition(State::Init, State::Backup, Cause::Started)]);
}

#[test]
fn an_adopted_lease_survives_a_failing_advert_for_what_is_left_of_it() {
    let mut bench = Bench::new(settings(100));
    let lease = bench.now + SECOND;
    bench.input(|machine, now, effects| machine.on_start(lease, now, effects));
    bench.input(Machine::on_advert_failed);
    assert_eq!((bench.machine.state(), bench.machine.lease()), (State::Master, Some(lease)));
}

// --- fault and stop

#[test]
fn a_fault_drops_the_lease_before_it_resigns() {
    let mut bench = Bench::master(settings(100));
    let done = bench.input(|machine, now, effects| machine.on_fault(FaultCause::LinkDown, now, effects));
    assert_eq!(
        done,
        [
            Effect::ResignLease,
            advert(0),
            Effect::AddressesDown,
            transition(State::Master, State::Fault, Cause::Fault(FaultCause::LinkDown)),
        ]
    );
}

#[test]
fn a_faulty_instance_hears_nothing_and_does_nothing() {
    let mut bench = Bench::backup(settings(100));
    bench.input(|machine, now, effects| machine.on_fault(FaultCause::LinkDown, now, effects));
    assert_eq!((bench.hear(HIGHER, 0), bench.machine.next_deadline()), (vec![], None));
    bench.input(Machine::on_recovered);
    assert_eq!((bench.machine.state(), bench.patience()), (State::Backup, Duration::from_micros(3_609_375)));
}

#[test]
fn a_stopped_master_drops_the_lease_before_it_resigns() {
    let mut bench = Bench::master(settings(100));
    assert_eq!(
        bench.input(Machine::stop),
        [
            Effect::ResignLease,
            advert(0),
            Effect::AddressesDown,
            transition(State::Master, State::Init, Cause::Stopped),
        ]
    );
    assert_eq!(bench.machine.next_deadline(), None);
}

#[test]
fn a_stopped_backup_leaves_in_silence() {
    let mut bench = Bench::backup(settings(100));
    assert_eq!(bench.input(Machine::stop), [transition(State::Backup, State::Init, Cause::Stopped)]);
}
