//! Connections whose real server is dead: silence or a reset, until they begin anew.

use etherparse::{PacketBuilderStep, TcpHeader};
use lvs_ebpf_common::maps::{MOVED, NOBODY};

use crate::{director::Action, frames::*, *};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// The slot of all flows has moved from real server 3, which is `state`, to real server 4.
pub fn lead(director: &mut Director, state: u8) {
    director.real(100, Real { state, ..real(3, INGRESS) });
    director.real(101, Real { state: Real::ALIVE, ..real(4, INGRESS) });
    let ring = director.ring(64, &[1 | MOVED]);
    director.ring(65, &[1, 0]);
    director.ring(66, &[0]);
    for key in [key(VIP, WEB, TCP), key(BARE, WEB, TCP), key(VIP, DNS, UDP)] {
        director.service(Service { id: 5, ..service(key, ring, 100..102) });
    }
}

fn with_dead_real(state: u8) -> Option<Director> {
    let mut director = director()?;
    lead(&mut director, state);
    Some(director)
}

fn flagged(flags: u8) -> Vec<u8> {
    patched(tcp(VIP, WEB), 14 + 20 + 13, &[flags])
}

fn segment(
    length: usize,
    flags: impl FnOnce(PacketBuilderStep<TcpHeader>) -> PacketBuilderStep<TcpHeader>,
) -> Vec<u8> {
    let mut frame = Vec::new();
    flags(ip(VIP, |_| {}).tcp(40_000, WEB, u32::MAX - 1, 64_000))
        .write(&mut frame, &vec![7; length])
        .unwrap();
    frame
}

/// In the service's name.
fn reset(sequence: u32, acknowledgment: Option<u32>) -> Vec<u8> {
    let headers = PacketBuilder::ethernet2(DIRECTOR_MAC, CLIENT_MAC).ipv4(VIP.octets(), CLIENT.octets(), 64);
    let step = headers.tcp(WEB, 40_000, sequence, 0).rst();
    let step = match acknowledgment {
        Some(number) => step.ack(number),
        None => step,
    };
    let mut frame = Vec::new();
    step.write(&mut frame, &[]).unwrap();
    frame
}

#[test]
fn a_connection_of_a_dead_real_server_meets_silence_until_it_begins_anew_or_that_one_returns() {
    let Some(mut director) = with_dead_real(Real::DEAD) else { return };
    let silence = verdict(Outcome::DeadReal, Action::Drop, flagged(ACK));
    assert_eq!(director.run(&flagged(ACK)), silence);
    lead(&mut director, Real::ALIVE);
    assert_eq!(director.run(&flagged(ACK)).frame[5], 3, "a check that failed for a moment");
    lead(&mut director, Real::DEAD);
    // Now it is known, and the ring says nothing of it any more.
    director.ring(65, &[0, 0]);
    assert_eq!(director.run(&flagged(ACK)), silence);
    assert_eq!(director.run(&flagged(0x11)).outcome, Outcome::DeadReal);
    assert_eq!(director.run(&flagged(SYN)).frame[5], 4);
    assert_eq!(director.run(&flagged(ACK)).frame[5], 4);
}

#[test]
fn a_connection_of_a_dead_neighbour_of_a_local_real_server_goes_where_the_ring_says() {
    let Some(mut director) = with_dead_real(Real::ALIVE) else { return };
    assert_eq!(director.run(&flagged(ACK)).frame[5], 3);
    lead(&mut director, Real::DEAD_BESIDE_LOCAL);
    assert_eq!(director.run(&flagged(ACK)).frame[5], 4);
}

#[test]
fn connections_of_a_pool_that_is_all_dead_are_reset_and_new_ones_are_not() {
    let Some(mut director) = with_dead_real(Real::RESETTING) else { return };
    director.ring(64, &[NOBODY | MOVED]);
    assert_eq!(director.run(&flagged(ACK)).outcome, Outcome::ConnectionReset);
    assert_eq!(director.run(&flagged(SYN)).outcome, Outcome::NoReal);
}

#[test]
fn datagrams_go_to_a_living_real_server_at_once() {
    for state in [Real::DEAD, Real::RESETTING] {
        let Some(mut director) = with_dead_real(Real::ALIVE) else { return };
        assert_eq!(director.run(&udp(VIP, DNS)).frame[5], 3);
        lead(&mut director, state);
        assert_eq!(director.run(&udp(VIP, DNS)).frame[5], 4);
    }
}

#[test]
fn a_reset_is_what_a_closed_port_would_say() {
    let Some(director) = with_dead_real(Real::RESETTING) else { return };
    // Without ACK it acknowledges what was sent (RFC 9293 3.10.7.1); the numbers wrap.
    for (frame, expected) in [
        (segment(100, |it| it.ack(7)), padded_to_60(reset(7, None))),
        (segment(6, |it| it.ack(7)), padded_to_60(reset(7, None))),
        (segment(5, |it| it.ack(u32::MAX).fin()), reset(u32::MAX, None)),
        (segment(0, |it| it.ack(7)), reset(7, None)),
        (segment(1000, |it| it), padded_to_60(reset(0, Some(998)))),
        (segment(2, |it| it.fin()), reset(0, Some(1))),
    ] {
        assert_eq!(director.run(&frame), verdict(Outcome::ConnectionReset, Action::Tx, expected));
    }
    let options = ip(VIP, |header| header.options = [1; 8].into());
    assert_eq!(director.run(&write_tcp(options, 40_000, WEB)).frame, padded_to_60(reset(0, Some(6))));
}

fn padded_to_60(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(60, 0);
    frame
}

#[test]
fn who_resets_or_is_no_single_host_or_speaks_to_another_is_not_reset() {
    let Some(director) = with_dead_real(Real::RESETTING) else { return };
    let from = |source: [u8; 4]| {
        patched(write_tcp(ip(VIP, |header| header.source = source), 40_000, WEB), 47, &[ACK])
    };
    for frame in [
        flagged(0x04),
        flagged(0x14),
        from([255; 4]),
        from(VIP.octets()),
        patched(flagged(ACK), 6, &[0x03]),
        patched(write_tcp(fragment(VIP, 0, true), 40_000, WEB), 47, &[ACK]),
    ] {
        assert_eq!(director.run(&frame), verdict(Outcome::DeadReal, Action::Drop, frame.clone()));
    }
    let flooded = with_destination(flagged(ACK), OTHER_MAC);
    assert_eq!(director.run(&flooded), verdict(Outcome::OtherHost, Action::Pass, flooded.clone()));
}
