//! Services that have every port of their address but those of other services.

use crate::{frames::*, *};

/// Real servers 3 to 6 are behind all TCP ports of [`VIP`].
fn director_of_all_ports() -> Option<Director> {
    let mut director = director()?;
    for number in 3..7 {
        director.real(97 + u32::from(number), Real { state: Real::ALIVE, ..real(number, INGRESS) });
    }
    let slots: Vec<u16> = (0..251).map(|slot| slot % 4).collect();
    let ring = director.ring(64, &slots);
    let all = service(key(VIP, 0, TCP), ring, 100..104);
    director.service(Service { id: 9, takes_turns: Service::REMEMBERED, persistence: 33, ..all });
    director.table(TableRef { has_all_ports: true, ..TABLE });
    Some(director)
}

#[test]
fn a_service_of_all_ports_has_those_that_no_other_has() {
    let Some(director) = director_of_all_ports() else { return };
    assert_eq!(director.run(&tcp(VIP, WEB)).frame[5], 1, "the web service stands before it");
    for port in [1, 21, 81, 65535] {
        let frame = tcp(VIP, port);
        let out = director.run(&frame);
        assert_eq!((out.outcome, &out.frame), (Outcome::Forwarded, &routed(&frame, out.frame[5])));
        assert!((3..7).contains(&out.frame[5]), "port {port}");
    }
    for frame in [udp(VIP, 81), tcp(BARE, 81), tcp(STRANGER, 81)] {
        assert_eq!(director.run(&frame).outcome, Outcome::NotOurs);
    }
}

#[test]
fn while_no_service_has_all_ports_none_is_looked_for() {
    let Some(mut director) = director_of_all_ports() else { return };
    director.table(TABLE);
    assert_eq!(director.run(&tcp(VIP, 81)).outcome, Outcome::NotOurs);
}

#[test]
fn all_that_a_client_does_with_all_ports_goes_to_one_real_server_with_and_without_memory() {
    let mut met = HashSet::new();
    for host in 0..16 {
        let frame = |source_port, port| {
            write_tcp(ip(VIP, |header| header.source = [10, 9, 0, host]), source_port, port)
        };
        // Two directors, one of which has not seen the first packet.
        let mut of_one = HashSet::new();
        for ports in [[21, 40_000], [40_000, 22]] {
            let Some(director) = director_of_all_ports() else { return };
            of_one.extend(ports.map(|port| director.run(&frame(port + 1, port)).frame[5]));
        }
        assert_eq!(of_one.len(), 1, "client {host}");
        met.extend(of_one);
    }
    assert_eq!(met.len(), 4);
}
