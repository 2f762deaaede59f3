//! An operator wants another to be master.

use super::*;

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
