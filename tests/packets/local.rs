//! Real servers that are the director itself, and directors that are real servers of one service.

use crate::{director::Action, frames::*, *};

/// Real server 1 is this node.
pub fn lead(director: &mut Director) {
    director
        .real(10, Real { mac: [0; 6], source_mac: [0; 6], ifindex: 0, method: Real::LOCAL, ..real(1, 0) });
}

#[test]
fn a_real_server_on_this_node_gets_packets_by_the_kernel_as_they_are() {
    let Some(mut director) = director() else { return };
    lead(&mut director);
    let frames = [
        tcp(VIP, WEB),
        padded(tcp(VIP, WEB)),
        write_tcp(fragment(VIP, 0, true), 40_000, WEB),
        write_tcp(fragment(VIP, 3, false), 40_000, WEB),
        icmp_error::about(7),
    ];
    for frame in &frames {
        assert_eq!(director.run(frame), verdict(Outcome::Local, Action::Pass, frame.clone()));
    }
    let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
    assert_eq!(director.counter(10), Counter { packets: frames.len() as u64, bytes });
}

#[test]
fn of_directors_that_are_real_servers_of_one_service_only_the_master_spreads_packets() {
    let Some(mut director) = director() else { return };
    director.real(10, Real { method: Real::DIRECT_BESIDE_LOCAL, ..real(1, INGRESS) });
    let frame = tcp(VIP, WEB);
    let sent = verdict(Outcome::Forwarded, Action::Tx, routed(&frame, 1));
    assert_eq!(director.run(&frame), sent);
    // Nobody is master of an address without a VRRP instance.
    assert_eq!(director.run(&tcp(BARE, WEB)).outcome, Outcome::Forwarded);
    // It would go back to whom it came from, who would send it here again.
    let back = patched(frame.clone(), 6, &mac_of(1));
    assert_eq!(director.run(&back), verdict(Outcome::Local, Action::Pass, back.clone()));
    for until in [RESIGNED, LAPSED] {
        director.lease(until);
        assert_eq!(director.run(&frame), verdict(Outcome::Local, Action::Pass, frame.clone()));
    }
    assert_eq!(director.counter(10).packets, 2);
}
