use std::net::Ipv4Addr;

use super::*;

mod handover;
mod lease;
mod meeting;

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

#[test]
fn garp_repeat_zero_announces_nothing() {
    let garp = Garp { repeat: 0, delay: Duration::ZERO, ..Garp::default() };
    let mut bench = Bench::backup(Settings { garp, ..settings(100) });
    assert!(!bench.fire().iter().any(|effect| matches!(effect, Effect::Announce { .. })));
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
