//! Who answers ARP and pings for a virtual address? The program, under the lease; else nobody, the kernel neither.

use crate::{frames::*, *};

#[test]
fn arp_is_answered_under_the_lease_with_the_mac_of_the_address() {
    let Some(director) = director() else { return };
    let answer = is_at(VIP, DIRECTOR_MAC);
    assert_eq!(director.run(&who_has(VIP)), verdict(Outcome::ArpAnswered, Action::Tx, answer.clone()));
    // A neighbour that renews its entry asks by unicast.
    let unicast = with_destination(who_has(VIP), DIRECTOR_MAC);
    assert_eq!(director.run(&unicast).frame, answer);
    assert_eq!(director.run(&padded(who_has(VIP))).frame, padded(answer));
    // RFC 5227 1.1: a probe asks from no address. The answer defends ours.
    let none = Ipv4Addr::UNSPECIFIED;
    let defence =
        arp((DIRECTOR_MAC, CLIENT_MAC), ArpOperation::REPLY, (DIRECTOR_MAC, VIP), (CLIENT_MAC, none));
    assert_eq!(director.run(&who_has_from(none, VIP)), verdict(Outcome::ArpAnswered, Action::Tx, defence));
}

#[test]
fn arp_is_dropped_while_the_lease_is_resigned_or_lapsed() {
    let Some(mut director) = director() else { return };
    for until in [RESIGNED, LAPSED] {
        director.lease(until);
        for frame in [who_has(VIP), who_has_from(Ipv4Addr::UNSPECIFIED, VIP), padded(who_has(VIP))] {
            assert_eq!(director.run(&frame), verdict(Outcome::ArpWithoutLease, Action::Drop, frame.clone()));
        }
    }
}

#[test]
fn a_lease_ends_by_itself() {
    let Some(mut director) = director() else { return };
    let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().into();
    director.lease((now + Duration::from_secs(2)).as_nanos() as u64);
    assert_eq!(director.run(&who_has(VIP)).outcome, Outcome::ArpAnswered);
    thread::sleep(Duration::from_millis(2100));
    assert_eq!(director.run(&who_has(VIP)).outcome, Outcome::ArpWithoutLease);
    assert_eq!(director.run(&ping(VIP)).outcome, Outcome::EchoWithoutLease);
}

#[test]
fn arp_on_another_interface_is_the_kernels_under_the_lease_and_nobodys_without() {
    let Some(mut director) = director() else { return };
    director
        .vip(VIP, Vip { lease: LEASE, ifindex: 77, mac: OTHER_MAC, answers: OTHER_MAC, ..Vip::default() });
    assert_eq!(director.run(&who_has(VIP)), verdict(Outcome::NotOurs, Action::Pass, who_has(VIP)));
    director.lease(RESIGNED);
    assert_eq!(director.run(&who_has(VIP)).outcome, Outcome::ArpWithoutLease);
}

#[test]
fn announcements_and_replies_of_others_reach_the_kernel() {
    let Some(mut director) = director() else { return };
    for until in [HELD, RESIGNED] {
        director.lease(until);
        for frame in [
            arp((OTHER_MAC, BROADCAST), ArpOperation::REQUEST, (OTHER_MAC, VIP), ([0; 6], VIP)),
            arp((OTHER_MAC, BROADCAST), ArpOperation::REPLY, (OTHER_MAC, VIP), (BROADCAST, VIP)),
            is_at(VIP, OTHER_MAC),
        ] {
            assert_eq!(director.run(&frame), verdict(Outcome::NotOurs, Action::Pass, frame.clone()));
        }
    }
}

#[test]
fn a_claim_of_our_address_by_another_mac_is_told_once_a_second_while_we_hold_the_lease() {
    let Some(mut director) = director() else { return };
    let claims = [
        arp((OTHER_MAC, BROADCAST), ArpOperation::REQUEST, (OTHER_MAC, VIP), ([0; 6], VIP)),
        arp((OTHER_MAC, BROADCAST), ArpOperation::REPLY, (OTHER_MAC, VIP), (BROADCAST, VIP)),
        arp((OTHER_MAC, BROADCAST), ArpOperation::REQUEST, (OTHER_MAC, VIP), ([0; 6], CLIENT)),
        is_at(VIP, OTHER_MAC),
    ];
    for until in [RESIGNED, LAPSED] {
        director.lease(until);
        claims.iter().for_each(|frame| drop(director.run(frame)));
    }
    director.lease(HELD);
    director.run(&is_at(VIP, DIRECTOR_MAC));
    director.run(&who_has(VIP));
    assert_eq!(director.take_claims(), [], "nobody contradicts us");

    let address = v4(VIP).octets();
    let told = Claim { address, lease: LEASE, ifindex: INGRESS, mac: OTHER_MAC, ..Claim::default() };
    for frame in &claims {
        director.run(frame);
        director.run(frame);
        assert_eq!(director.take_claims(), [told]);
        thread::sleep(Duration::from_millis(1100));
    }
}

#[test]
fn arp_that_is_not_ethernet_and_ipv4_or_of_no_single_sender_is_not_answered() {
    let Some(director) = director() else { return };
    for (offset, value) in [(15, 7), (16, 0x86), (18, 8), (19, 16), (21, 3), (22, 0x01)] {
        let frame = patched(who_has(VIP), offset, &[value]);
        assert_eq!(director.run(&frame), verdict(Outcome::NotOurs, Action::Pass, frame.clone()), "{offset}");
    }
}

#[test]
fn a_request_as_ieee_802_is_judged_by_the_lease_like_any_other() {
    let Some(mut director) = director() else { return };
    let request = patched(who_has(VIP), 15, &[6]);
    assert_eq!(director.run(&request), director.run(&who_has(VIP)), "the answer is Ethernet's");
    director.lease(RESIGNED);
    assert_eq!(director.run(&request), verdict(Outcome::ArpWithoutLease, Action::Drop, request.clone()));
}

#[test]
fn a_ping_is_answered_under_the_lease() {
    let Some(director) = director() else { return };
    assert_eq!(director.run(&ping(VIP)), verdict(Outcome::EchoAnswered, Action::Tx, pong(VIP)));
    // The answer to a broken request is broken too, by as much.
    let broken = patched(ping(VIP), 36, &[0x12, 0x34]);
    let sum = |frame: &[u8]| u32::from(frame[36]) << 8 | u32::from(frame[37]);
    let answer = director.run(&broken).frame;
    let error = |got, right| (got + 0xffff - right) % 0xffff;
    assert_eq!(error(sum(&answer), sum(&pong(VIP))), error(sum(&broken), sum(&ping(VIP))));
}

#[test]
fn a_ping_that_is_not_plain_is_the_kernels_under_the_lease_and_nobodys_without() {
    let Some(mut director) = director() else { return };
    let from = |source: [u8; 4]| write_ping(ip(VIP, |header| header.source = source));
    let frames = [
        write_ping(ip(VIP, |header| header.options = [1; 4].into())),
        write_ping(fragment(VIP, 0, true)),
        from(VIP.octets()),
        from([127, 0, 0, 1]),
        from([224, 0, 0, 1]),
        from([255; 4]),
        from([0; 4]),
        patched(ping(VIP), 6, &[0x03]),
    ];
    for (number, frame) in frames.iter().enumerate() {
        director.lease(HELD);
        assert_eq!(director.run(frame), verdict(Outcome::NotOurs, Action::Pass, frame.clone()), "{number}");
        director.lease(RESIGNED);
        assert_eq!(director.run(frame).outcome, Outcome::EchoWithoutLease, "{number}");
    }
}
