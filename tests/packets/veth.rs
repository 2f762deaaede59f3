//! Frames as hosts behind veth devices leave them: with checksums that a card was to compute.

use etherparse::Ipv4HeaderSlice;

use crate::{director::Action, frames::*, *};

/// With nothing but the sum of the pseudo header where the checksum belongs.
fn unfinished(frame: &[u8]) -> Vec<u8> {
    let ip = Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap();
    let (header, length) = (usize::from(ip.ihl()) * 4, ip.payload_len().unwrap());
    let protocol = ip.protocol().0;
    let words = [ip.source(), ip.destination()].concat();
    let words = words.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum::<u32>() + u32::from(protocol) + u32::from(length);
    let sum = (sum & 0xffff) + (sum >> 16);
    let offset = 14 + header + if protocol == UDP { 6 } else { 16 };
    patched(frame.to_vec(), offset, &(sum as u16).to_be_bytes())
}

/// One of each kind with `length` bytes of data.
fn frames(length: usize) -> [Vec<u8>; 3] {
    let data: Vec<u8> = (0..length).map(|at| (at * 7 + 1) as u8).collect();
    let options = ip(VIP, |header| header.options = vec![1; 12].as_slice().try_into().unwrap());
    let mut frames = [(); 3].map(|()| Vec::new());
    ip(VIP, |_| {}).tcp(40_000, WEB, 1, 64_000).write(&mut frames[0], &data).unwrap();
    options.tcp(40_000, WEB, 1, 64_000).write(&mut frames[1], &data).unwrap();
    ip(VIP, |_| {}).udp(40_000, DNS).write(&mut frames[2], &data).unwrap();
    frames
}

#[test]
fn a_checksum_that_is_still_to_be_computed_is_computed() {
    let Some(director) = Director::load_for_veth().map(master) else { return };
    for length in (0..40).chain([1000, 1001, 1447, 1460]) {
        for frame in frames(length) {
            let number = if frame[23] == TCP { 1 } else { 2 };
            let outcome = if number == 1 { Outcome::Forwarded } else { Outcome::Redirected };
            let sent = verdict(outcome, Action::Redirect, routed(&frame, number));
            assert_eq!(director.run(&unfinished(&frame)), sent, "{length}");
            assert_eq!(director.run(&frame), sent, "{length}: one that is there");
            let out = director.run(&padded(unfinished(&frame))).frame;
            assert_eq!(out, padded(routed(&frame, number)), "{length}: padding counts");
        }
    }
}

#[test]
fn a_wrong_checksum_is_not_mended() {
    let Some(director) = Director::load_for_veth().map(master) else { return };
    let wrong = patched(tcp(VIP, WEB), 50, &[0x12, 0x34]);
    assert_eq!(director.run(&wrong).frame, routed(&wrong, 1));
    let none = patched(udp(VIP, DNS), 40, &[0, 0]);
    assert_eq!(director.run(&none).frame, routed(&none, 2));
}

#[test]
fn nothing_is_computed_for_cards() {
    let Some(director) = director() else { return };
    let frame = unfinished(&tcp(VIP, WEB));
    assert_eq!(director.run(&frame).frame, routed(&frame, 1));
}

#[test]
fn a_checksum_is_computed_before_it_is_translated() {
    let Some(mut director) = Director::load_for_veth().map(master) else { return };
    nat::lead(&mut director);
    let translated = |frame: &[u8]| director.run(frame).frame;
    for frame in [tcp(VIP, WEB), udp(VIP, DNS), nat::answer_to(CLIENT)] {
        assert_eq!(translated(&unfinished(&frame)), translated(&frame));
    }
}
