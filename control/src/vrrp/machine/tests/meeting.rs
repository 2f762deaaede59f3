//! Two masters meet.

use super::*;

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
