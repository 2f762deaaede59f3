//! Frames for a virtual router's MAC: who takes them up, and what carries that MAC.

use lvs_ebpf_common::virtual_mac_key;
use nix::sys::time::TimeValLike as _;

use super::*;
use crate::ipv6::VIP6;

/// Of VRID 51 over IPv4.
const VIRTUAL_MAC: [u8; 6] = [0, 0, 0x5e, 0, 1, 51];
const VIRTUAL_MAC6: [u8; 6] = [0, 0, 0x5e, 0, 2, 51];

/// A master with `use_vmac`.
fn virtual_router(answers: [u8; 6]) -> Option<Director> {
    let mut director = director()?;
    let vip = Vip { lease: LEASE, ifindex: INGRESS, mac: DIRECTOR_MAC, answers, ..Vip::default() };
    director.vip(VIP, vip);
    director.vip6(VIP6, vip);
    let [.., family, vrid] = answers;
    director.vip6(virtual_mac_key(INGRESS, family, vrid).into(), vip);
    Some(director)
}

fn to(mac: [u8; 6]) -> Vec<u8> {
    with_destination(tcp(Ipv4Addr::new(10, 0, 9, 9), 22), mac)
}

#[test]
fn what_comes_for_a_virtual_mac_is_forwarded_or_the_kernels_at_the_interfaces_own() {
    let Some(director) = virtual_router(VIRTUAL_MAC) else { return };
    assert_eq!(director.run(&to(VIRTUAL_MAC)), verdict(Outcome::NotOurs, Action::Pass, to(DIRECTOR_MAC)));
    let web = with_destination(tcp(VIP, WEB), VIRTUAL_MAC);
    assert_eq!(director.run(&web), verdict(Outcome::Forwarded, Action::Tx, routed(&web, 1)));
    let asked = director.run(&with_destination(ping(VIP), VIRTUAL_MAC));
    assert_eq!(asked.outcome, Outcome::EchoAnswered);
    assert_eq!(asked.frame[6..12], VIRTUAL_MAC);
    // Of another VRID, of the other family, and of nobody.
    for (at, value) in [(5, 52), (4, 2), (3, 1), (2, 0x5f), (1, 1), (0, 2)] {
        let frame = patched(to(VIRTUAL_MAC), at, &[value]);
        assert_eq!(director.run(&frame), verdict(Outcome::NotOurs, Action::Pass, frame.clone()), "byte {at}");
    }
}

#[test]
fn what_a_switch_floods_while_another_is_master_is_not_taken_up() {
    let Some(mut director) = virtual_router(VIRTUAL_MAC) else { return };
    let now = || u64::try_from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().num_nanoseconds()).unwrap();
    let web = with_destination(tcp(VIP, WEB), VIRTUAL_MAC);
    // It has resigned, or died, a moment ago: its successor may not be known yet.
    for until in [RESIGNED, LAPSED] {
        director.leased(until, now());
        assert_eq!(director.run(&web).outcome, Outcome::Forwarded);
    }
    // It was never master, or long ago.
    for held in [0, now() - 61_000_000_000] {
        director.leased(RESIGNED, held);
        assert_eq!(director.run(&web), verdict(Outcome::OtherHost, Action::Pass, web.clone()), "{held}");
        assert_eq!(
            director.run(&to(VIRTUAL_MAC)),
            verdict(Outcome::NotOurs, Action::Pass, to(VIRTUAL_MAC)),
            "the kernel ignores it"
        );
    }
}

#[test]
fn arp_is_answered_with_the_virtual_mac_whichever_is_asked() {
    for mac in [VIRTUAL_MAC, VIRTUAL_MAC6] {
        let Some(mut director) = virtual_router(mac) else { return };
        for asked in [BROADCAST, mac, DIRECTOR_MAC] {
            let answered = director.run(&with_destination(who_has(VIP), asked));
            assert_eq!(answered.outcome, Outcome::ArpAnswered);
            assert_eq!((&answered.frame[6..12], &answered.frame[22..28]), (&mac[..], &mac[..]));
        }
        let other = with_destination(who_has(VIP), OTHER_MAC);
        assert_eq!(director.run(&other).outcome, Outcome::OtherHost);
        director.lease(RESIGNED);
        let own = with_destination(who_has(VIP), DIRECTOR_MAC);
        assert_eq!(
            director.run(&own).outcome,
            Outcome::ArpWithoutLease,
            "the kernel has it, and stays silent"
        );
    }
}

#[test]
fn the_virtual_mac_claims_nothing_that_is_not_its_own() {
    let Some(mut director) = virtual_router(VIRTUAL_MAC) else { return };
    for (mac, claims) in [(VIRTUAL_MAC, 0), (DIRECTOR_MAC, 0), (OTHER_MAC, 1)] {
        director.run(&is_at(VIP, mac));
        assert_eq!(director.take_claims().len(), claims, "{mac:x?}");
    }
}
