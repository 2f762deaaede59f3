//! Frames with VLAN tags: they fare as without, and keep their tags.

use crate::{director::Action, frames::*, *};

/// One tag, two of a customer, a customer's inside a provider's.
pub const TAGS: [&[u8]; 3] =
    [&[0x81, 0, 0x20, 5], &[0x81, 0, 0, 5, 0x81, 0, 0x60, 7], &[0x88, 0xa8, 0x0f, 0xff, 0x81, 0, 0, 1]];

pub fn tagged(frame: &[u8], tags: &[u8]) -> Vec<u8> {
    [&frame[..12], tags, &frame[12..]].concat()
}

/// Of a frame that has any.
pub fn tags_of(frame: &[u8]) -> &[u8] {
    let is_tag = |at: usize| matches!(frame.get(at..at + 2), Some([0x81, 0] | [0x88, 0xa8]));
    match (is_tag(12), is_tag(16)) {
        (true, true) => &frame[12..20],
        (true, false) => &frame[12..16],
        _ => &[],
    }
}

/// Without a tag in front that says a priority and no network.
pub fn without_priority(frame: &[u8]) -> Vec<u8> {
    let names_none = |tag: &[u8]| matches!(tag, [0x81, 0, a, 0] | [0x88, 0xa8, a, 0] if a & 0xf == 0);
    match frame.get(12..16) {
        // There is a frame behind it.
        Some(tag) if names_none(tag) && frame.len() >= 18 => [&frame[..12], &frame[16..]].concat(),
        _ => frame.to_vec(),
    }
}

/// The virtual addresses are in networks with tags too.
pub fn lead(director: &mut Director) {
    let vip = Vip {
        lease: LEASE,
        ifindex: INGRESS,
        mac: DIRECTOR_MAC,
        answers: DIRECTOR_MAC,
        flags: Vip::TAGGED,
        ..Vip::default()
    };
    director.vip(VIP, vip);
    director.vip6(ipv6::VIP6, vip);
}

fn with_tags() -> Option<Director> {
    let mut director = director()?;
    lead(&mut director);
    Some(director)
}

#[test]
fn what_becomes_of_a_tagged_frame_is_what_would_without_and_its_tags_stay() {
    let Some(mut director) = with_tags() else { return };
    let options = ip(VIP, |header| header.options = [1; 8].into());
    let frames = [
        tcp(VIP, WEB),
        padded(tcp(VIP, WEB)),
        write_tcp(options, 40_000, WEB),
        write_tcp(fragment(VIP, 0, true), 40_000, WEB),
        write_tcp(fragment(VIP, 3, false), 40_000, WEB),
        who_has(VIP),
        padded(who_has(VIP)),
        is_at(VIP, DIRECTOR_MAC),
        ping(VIP),
        ipv6::who_has6(ipv6::VIP6),
        ipv6::ping6(ipv6::CLIENT6, ipv6::VIP6),
        tcp(VIP, 81),
        patched(tcp(VIP, WEB), 46, &[0x40]),
        with_destination(tcp(VIP, WEB), OTHER_MAC),
        with_destination(tcp(VIP, WEB), BROADCAST),
    ];
    for until in [HELD, RESIGNED] {
        director.lease(until);
        for (number, frame) in frames.iter().enumerate() {
            let Verdict { outcome, action, frame: out } = director.run(frame);
            for tags in TAGS {
                let expected = verdict(outcome, action, tagged(&out, tags));
                assert_eq!(director.run(&tagged(frame, tags)), expected, "{number} {tags:02x?}");
            }
        }
    }
}

#[test]
fn a_tagged_frame_enters_a_tunnel_and_its_tags_stay_outside() {
    let Some(mut director) = with_tags() else { return };
    for method in [Real::IPIP, Real::GRE] {
        tunnel::lead(&mut director, method);
        for frame in [tcp(VIP, WEB), web_of(1481, true)] {
            let Verdict { outcome, action, frame: out } = director.run(&frame);
            for tags in TAGS {
                assert_eq!(director.run(&tagged(&frame, tags)), verdict(outcome, action, tagged(&out, tags)));
            }
        }
    }
    // Room for the tunnel's header, but not for the tag before it.
    tunnel::lead(&mut director, Real::IPIP);
    director.headroom(16);
    let Verdict { outcome, action, .. } = director.run(&tagged(&tcp(VIP, WEB), TAGS[0]));
    assert_eq!((outcome, action), (Outcome::NoHeadroom, Action::Drop));
}

#[test]
fn on_veth_devices_they_are_left_to_the_kernel() {
    let Some(director) = Director::load_for_veth() else { return };
    let mut director = master(director);
    lead(&mut director);
    let frame = tagged(&tcp(VIP, WEB), TAGS[0]);
    assert_eq!(director.run(&frame), verdict(Outcome::NotOurs, Action::Pass, frame.clone()));
}

#[test]
fn what_would_leave_its_network_or_is_for_no_address_in_one_is_left_alone() {
    let Some(mut director) = with_tags() else { return };
    let left_alone = |director: &Director, frame: &[u8], tags: &[u8]| {
        let frame = tagged(frame, tags);
        assert_eq!(director.run(&frame), verdict(Outcome::NotOurs, Action::Pass, frame.clone()));
    };
    for tags in TAGS {
        // The real server of DNS is behind another interface.
        for frame in [
            udp(VIP, DNS),
            tcp(BARE, WEB),
            tcp(STRANGER, WEB),
            who_has(STRANGER),
            ping(STRANGER),
            icmp_error::about(7),
        ] {
            left_alone(&director, &frame, tags);
        }
        for frame in
            [ipv6::who_has6("2001:db8::77".parse().unwrap()), patched(tcp(VIP, WEB), 12, &[0x88, 0x47])]
        {
            left_alone(&director, &frame, tags);
        }
        left_alone(&director, &tagged(&tcp(VIP, WEB), TAGS[0]), TAGS[1]);
    }
    nat::lead(&mut director);
    left_alone(&director, &tcp(VIP, WEB), TAGS[0]);
    left_alone(&director, &nat::answer_to(CLIENT), TAGS[0]);
}

#[test]
fn a_tag_that_names_no_network_is_none_to_whatever_address_and_on_veth_devices_too() {
    const PRIORITIES: [&[u8]; 2] = [&[0x81, 0, 0xa0, 0], &[0x88, 0xa8, 0x10, 0]];
    let answer = nat::answer_to(CLIENT);
    let frames = [
        tcp(VIP, WEB),
        tcp(BARE, WEB),
        udp(VIP, DNS),
        tcp(VIP, 81),
        who_has(VIP),
        who_has(STRANGER),
        ping(VIP),
        ipv6::who_has6(ipv6::VIP6),
        ipv6::ping6(ipv6::CLIENT6, ipv6::VIP6),
        services6::tcp6(ipv6::VIP6, WEB),
        with_destination(tcp(VIP, WEB), OTHER_MAC),
        answer,
        // It stands before one that does.
        tagged(&tcp(VIP, WEB), TAGS[0]),
    ];
    for director in [Director::load(), Director::load_for_veth()] {
        let Some(director) = director else { return };
        let mut director = master(director);
        for until in [HELD, RESIGNED] {
            director.lease(until);
            for (number, frame) in frames.iter().enumerate() {
                let expected = director.run(frame);
                for tag in PRIORITIES {
                    assert_eq!(director.run(&tagged(frame, tag)), expected, "{number} {tag:02x?}");
                }
            }
        }
        // Nothing that could be one behind it.
        let stub = &tagged(&tcp(VIP, WEB), PRIORITIES[0])[..17];
        assert_eq!(director.run(stub), verdict(Outcome::NotOurs, Action::Pass, stub.to_vec()));
    }
}
