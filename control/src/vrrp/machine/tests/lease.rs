//! How long a master may answer.

use super::*;

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
fn an_advert_is_too_late_when_the_lease_that_it_renews_has_ended_not_the_one_that_it_earns() {
    let mut bench = Bench::master(settings(100));
    let runs_until = bench.machine.lease();
    bench.fire();
    assert_eq!(bench.machine.advert_deadline(), runs_until);
    assert!(bench.machine.lease() > runs_until);
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
