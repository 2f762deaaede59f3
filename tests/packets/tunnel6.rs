//! Tunnels with IPv6 inside, outside, or both: what goes in, how flows differ outside, whom is told what does not fit.

use std::net::Ipv6Addr;

use etherparse::{
    IpDscp, IpEcn, IpHeaders, Ipv6Extensions, Ipv6FlowLabel, Ipv6Header, NetSlice, SlicedPacket,
};

use lvs_ebpf_common::Address;

use super::{
    director::HEADROOM,
    ipv6::{VIP6, extended, ip6},
    services6::{CLIENT6, about6, pieces, tcp6, udp6},
    tunnel::{GUE_PORT, MTU, TUNNEL_SOURCE},
    *,
};

const SOURCE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xfe);
const METHODS: [(u8, usize); 3] = [(Real::IPIP, 0), (Real::GUE, 12), (Real::GRE, 4)];
const FRAME: usize = 14;
/// By RFC 8200 5 every link carries as much.
const LEAST_MTU: usize = 1280;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn header(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    fn of(frame: &[u8]) -> Self {
        if frame[12..14] == [8, 0] { Self::V4 } else { Self::V6 }
    }

    fn real(self, number: u8) -> Address {
        match self {
            Self::V4 => v4(Ipv4Addr::new(10, 0, 1, number)),
            Self::V6 => real6(number).octets().into(),
        }
    }

    fn source(self) -> Address {
        match self {
            Self::V4 => v4(TUNNEL_SOURCE),
            Self::V6 => SOURCE6.octets().into(),
        }
    }
}

fn real6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, number.into())
}

/// (inner, outer)
const WAYS: [(Family, Family); 3] =
    [(Family::V6, Family::V4), (Family::V4, Family::V6), (Family::V6, Family::V6)];

/// Makes both real servers of the master ends of tunnels through such a network.
fn lead(director: &mut Director, method: u8, outer: Family) {
    for (index, number, ifindex) in [(10, 1, INGRESS), (20, 2, 77)] {
        director.real(index, end(method, outer, number, ifindex));
    }
}

fn end(method: u8, outer: Family, number: u8, ifindex: u32) -> Real {
    Real {
        method,
        address: outer.real(number),
        source: outer.source(),
        mtu: MTU,
        tunnel_port: GUE_PORT.to_be(),
        ..real(number, ifindex)
    }
}

/// For the cases of all outcomes.
pub fn lead_over_v6(director: &mut Director) {
    lead(director, Real::IPIP, Family::V6);
}

fn director_with(method: u8, outer: Family) -> Option<Director> {
    let mut director = director()?;
    lead(&mut director, method, outer);
    Some(director)
}

/// What a tunnel makes of a frame, whose IP packet is all of it: in it, as it was. What the program is free to choose, a
/// flow label and a source port, is as in `got`.
fn expected(frame: &[u8], number: u8, method: u8, outer: Family, got: &[u8]) -> Vec<u8> {
    let inner = Family::of(frame);
    let (inner_protocol, inner_type) = match inner {
        Family::V4 => (4, [0x08, 0x00]),
        Family::V6 => (41, [0x86, 0xdd]),
    };
    let packet = &frame[FRAME..];
    let (protocol, payload) = match method {
        Real::IPIP => (IpNumber(inner_protocol), packet.to_vec()),
        Real::GRE => (IpNumber::GRE, [&[0, 0], &inner_type, packet].concat()),
        _ => {
            let at = FRAME + outer.header();
            let source_port = [got[at], got[at + 1]];
            assert!(u16::from_be_bytes(source_port) >= 0xc000);
            let length = ((packet.len() + 12) as u16).to_be_bytes();
            // No checksum; GUE of the inner family.
            let gue = [[0, 0], [0, inner_protocol], [0, 0]].concat();
            let header = [&source_port, &GUE_PORT.to_be_bytes(), &length, &gue[..]].concat();
            (IpNumber::UDP, [&header, packet].concat())
        }
    };
    let tos = tos_of(packet);
    let headers = match outer {
        Family::V4 => {
            let real = Ipv4Addr::new(10, 0, 1, number).octets();
            let mut header =
                etherparse::Ipv4Header::new(0, 64, protocol, TUNNEL_SOURCE.octets(), real).unwrap();
            header.dscp = IpDscp::try_new(tos >> 2).unwrap();
            header.ecn = IpEcn::try_new(tos & 3).unwrap();
            assert!(header.dont_fragment);
            IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
        }
        Family::V6 => {
            let header = Ipv6Header {
                traffic_class: tos,
                flow_label: label_of(got),
                hop_limit: 64,
                source: SOURCE6.octets(),
                destination: real6(number).octets(),
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(header, Ipv6Extensions::default())
        }
    };
    raw(PacketBuilder::ethernet2(DIRECTOR_MAC, mac_of(number)).ip(headers), protocol, &payload)
}

fn tos_of(packet: &[u8]) -> u8 {
    match packet[0] >> 4 {
        4 => packet[1],
        _ => packet[0] << 4 | packet[1] >> 4,
    }
}

fn label_of(frame: &[u8]) -> Ipv6FlowLabel {
    match SlicedPacket::from_ethernet(frame).unwrap().net {
        Some(NetSlice::Ipv6(ip)) => ip.header().flow_label(),
        other => panic!("no IPv6: {other:?}"),
    }
}

/// To the web service, as an IP packet of `length` bytes.
pub fn web6_of(length: usize) -> Vec<u8> {
    web6_from(CLIENT6, length)
}

fn web6_from(source: Ipv6Addr, length: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    let step = ip6((CLIENT_MAC, DIRECTOR_MAC), (source, VIP6), 61).tcp(40_000, WEB, 1, 64_000);
    step.write(&mut frame, &vec![7; length - 60]).unwrap();
    frame
}

/// One of each kind; `room`: what the tunnel takes.
fn frames(inner: Family, room: usize) -> Vec<Vec<u8>> {
    match inner {
        Family::V4 => {
            let options = ip(VIP, |header| header.options = vec![1; 40].as_slice().try_into().unwrap());
            vec![
                tcp(VIP, WEB),
                tcp(BARE, WEB),
                udp(VIP, DNS),
                write_tcp(options, 40_000, WEB),
                web_of(usize::from(MTU) - room, true),
            ]
        }
        Family::V6 => {
            let [first, last] = pieces(&tcp6(VIP6, WEB), 24, 7);
            vec![
                tcp6(VIP6, WEB),
                udp6(VIP6, DNS),
                extended(&tcp6(VIP6, WEB), &[0, 60]),
                first,
                last,
                about6(7),
                web6_of(usize::from(MTU) - room),
            ]
        }
    }
}

/// DNS is real server 2's.
fn number_of(frame: &[u8]) -> u8 {
    let at = FRAME + Family::of(frame).header();
    let protocol = if Family::of(frame) == Family::V4 { frame[23] } else { frame[20] };
    if protocol == UDP && frame[at + 2..at + 4] == DNS.to_be_bytes() { 2 } else { 1 }
}

#[test]
fn a_packet_travels_unchanged_inside_the_tunnels_headers() {
    let Some(mut director) = director() else { return };
    for (method, header) in METHODS {
        for (inner, outer) in WAYS {
            lead(&mut director, method, outer);
            let room = outer.header() + header;
            for frame in frames(inner, room) {
                let Verdict { outcome, action, frame: out } = director.run(&frame);
                let number = number_of(&frame);
                let wanted = match number {
                    1 => (Outcome::Forwarded, Action::Tx),
                    _ => (Outcome::Redirected, Action::Redirect),
                };
                assert_eq!((outcome, action), wanted, "method {method}, {inner:?} in {outer:?}");
                assert_eq!(out, expected(&frame, number, method, outer, &out));
                assert_eq!(out.len(), frame.len() + room);
            }
            let frame = frames(inner, room).swap_remove(0);
            let out = director.run(&padded(frame.clone())).frame;
            let (packet, padding) = out.split_at(frame.len() + room);
            assert_eq!(packet, expected(&frame, 1, method, outer, &out));
            assert_eq!(padding, &padded(frame.clone())[frame.len()..], "padding is not part of the packet");
        }
    }
}

#[test]
fn dscp_and_ecn_outside_are_those_inside_whatever_the_families() {
    let Some(mut director) = director() else { return };
    for (method, _) in METHODS {
        for (inner, outer) in WAYS {
            lead(&mut director, method, outer);
            for tos in 0..=255u8 {
                let frame = match inner {
                    Family::V4 => {
                        let step = ip(VIP, |header| {
                            header.dscp = IpDscp::try_new(tos >> 2).unwrap();
                            header.ecn = IpEcn::try_new(tos & 3).unwrap();
                        });
                        write_tcp(step, 40_000, WEB)
                    }
                    // And a flow label, which is the client's and stays inside.
                    Family::V6 => patched(tcp6(VIP6, WEB), 14, &[0x60 | tos >> 4, tos << 4 | 0x0a, 0xbc]),
                };
                let out = director.run(&frame).frame;
                assert_eq!(out, expected(&frame, 1, method, outer, &out), "{tos:#x}");
            }
        }
    }
}

#[test]
fn flows_differ_in_the_outer_flow_label_and_a_flow_keeps_its_own() {
    let Some(mut director) = director() else { return };
    for (method, _) in METHODS {
        for inner in [Family::V4, Family::V6] {
            lead(&mut director, method, Family::V6);
            let frame = |port| match inner {
                Family::V4 => tcp_from(port, VIP, WEB),
                Family::V6 => write_tcp(ip6((CLIENT_MAC, DIRECTOR_MAC), (CLIENT6, VIP6), 61), port, WEB),
            };
            let label = |port| label_of(&director.run(&frame(port)).frame).value();
            let labels: HashSet<_> = (20_000..21_000).map(label).collect();
            assert!(!labels.contains(&0) && labels.len() > 980, "{} labels", labels.len());
            assert_eq!(label(20_000), label(20_000));
        }
    }
}

#[test]
fn flows_of_ipv6_differ_in_the_source_port_of_gue() {
    let Some(mut director) = director() else { return };
    for outer in [Family::V4, Family::V6] {
        lead(&mut director, Real::GUE, outer);
        let at = FRAME + outer.header();
        let client = |host: u16| Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, host);
        let port = |host| director.run(&web6_from(client(host), 80)).frame[at..at + 2].to_vec();
        let ports: HashSet<_> = (1..1001).map(port).collect();
        // 1000 draws of 16384 meet about 970.
        assert!(ports.len() > 900, "{}", ports.len());
        assert_eq!(port(1), port(1));
    }
}

#[test]
fn the_pieces_of_a_packet_take_one_way() {
    let Some(mut director) = director() else { return };
    for (inner, outer) in WAYS {
        lead(&mut director, Real::GUE, outer);
        let at = FRAME + outer.header();
        let sent: HashSet<_> = match inner {
            Family::V4 => {
                vec![
                    write_tcp(fragment(VIP, 0, true), 40_000, WEB),
                    raw(fragment(VIP, 3, false), IpNumber::TCP, b"what comes then"),
                    raw(fragment(VIP, 5, false), IpNumber::TCP, b"end"),
                ]
            }
            Family::V6 => pieces(&tcp6(VIP6, WEB), 24, 7).to_vec(),
        }
        .iter()
        .map(|frame| {
            let Verdict { outcome, frame, .. } = director.run(frame);
            assert_eq!(outcome, Outcome::Forwarded);
            let label = (outer == Family::V6).then(|| label_of(&frame));
            (frame[at..at + 2].to_vec(), label)
        })
        .collect();
        assert_eq!(sent.len(), 1, "{inner:?} in {outer:?}");
    }
}

/// What a client of IPv6 is told: `mtu`, and the beginning of its packet.
fn packet_too_big(frame: &[u8], mtu: u32) -> Vec<u8> {
    let mut answer = Vec::new();
    ip6((DIRECTOR_MAC, CLIENT_MAC), (VIP6, CLIENT6), 64)
        .icmpv6(etherparse::Icmpv6Type::PacketTooBig { mtu })
        .write(&mut answer, &frame[FRAME..FRAME + LEAST_MTU - 48])
        .unwrap();
    answer
}

#[test]
fn a_client_of_ipv6_whose_packet_does_not_fit_is_told_what_does() {
    let Some(mut director) = director() else { return };
    for (method, header) in METHODS {
        for outer in [Family::V4, Family::V6] {
            lead(&mut director, method, outer);
            let limit = usize::from(MTU) - outer.header() - header;
            for frame in [web6_of(limit + 1), web6_of(1500), extended(&web6_of(1480), &[0, 60])] {
                let answer = packet_too_big(&frame, limit as u32);
                let told = verdict(Outcome::FragmentationNeeded, Action::Tx, answer);
                assert_eq!(director.run(&frame), told);
                assert_eq!(director.run(&padded(frame)), told, "padding is not sent back");
            }
            let counted = director.counter(10).packets;
            assert_eq!(counted, 0, "what was not sent is not counted");
            if director.has_headroom() {
                director.headroom(40);
                let frame = web6_of(1500);
                assert_eq!(director.run(&frame), verdict(Outcome::NoHeadroom, Action::Drop, frame.clone()));
                director.headroom(HEADROOM);
            }
        }
    }
}

#[test]
fn a_client_of_ipv4_is_told_what_fits_between_headers_of_ipv6() {
    let Some(mut director) = director() else { return };
    for (method, header) in METHODS {
        lead(&mut director, method, Family::V6);
        let limit = MTU - 40 - header as u16;
        let frame = web_of(usize::from(limit) + 1, true);
        let told =
            verdict(Outcome::FragmentationNeeded, Action::Tx, tunnel::fragmentation_needed(&frame, limit));
        assert_eq!(director.run(&frame), told);
        let frame = web_of(usize::from(limit) + 1, false);
        assert_eq!(director.run(&frame), verdict(Outcome::TooBig, Action::Drop, frame.clone()));
    }
}

#[test]
fn no_sender_of_ipv6_is_told_less_than_every_link_carries() {
    let Some(mut director) = director() else { return };
    director.real(10, Real { mtu: 1300, ..end(Real::IPIP, Family::V6, 1, INGRESS) });
    let told = |frame: &[u8]| {
        verdict(Outcome::FragmentationNeeded, Action::Tx, packet_too_big(frame, LEAST_MTU as u32))
    };
    let frame = web6_of(LEAST_MTU + 1);
    assert_eq!(director.run(&frame), told(&frame));
    let frame = web6_of(LEAST_MTU);
    assert_eq!(director.run(&frame), verdict(Outcome::TooBig, Action::Drop, frame.clone()));
    assert_eq!(director.run(&web6_of(1260)).outcome, Outcome::Forwarded);
    director.real(10, Real { mtu: 0, ..end(Real::IPIP, Family::V6, 1, INGRESS) });
    let frame = tcp6(VIP6, WEB);
    assert_eq!(director.run(&frame), verdict(Outcome::TooBig, Action::Drop, frame.clone()));
}

#[test]
fn nobody_is_told_who_is_no_single_host_nor_about_an_error() {
    let Some(director) = director_with(Real::IPIP, Family::V6) else { return };
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let error = {
        let mut frame = about6(7);
        frame.resize(FRAME + 1500, 7);
        patched(frame, 18, &1460_u16.to_be_bytes())
    };
    for frame in [
        web6_from(group, 1500),
        web6_from(Ipv6Addr::UNSPECIFIED, 1500),
        web6_from(Ipv6Addr::LOCALHOST, 1500),
        web6_from(VIP6, 1500),
        patched(web6_of(1500), 6, &[0x33]),
        error,
    ] {
        assert_eq!(director.run(&frame), verdict(Outcome::TooBig, Action::Drop, frame.clone()));
    }
}

#[test]
fn a_driver_without_headroom_costs_the_packet_and_no_more() {
    let Some(mut director) = director() else { return };
    for (method, header) in METHODS {
        for (inner, outer) in WAYS {
            lead(&mut director, method, outer);
            if !director.has_headroom() {
                return lvs_tests::skip("no other headroom in test runs before Linux 5.15");
            }
            let room = outer.header() + header;
            let frame = frames(inner, room).swap_remove(0);
            director.headroom(room - 4);
            assert_eq!(director.run(&frame), verdict(Outcome::NoHeadroom, Action::Drop, frame.clone()));
            director.headroom(room);
            let out = director.run(&frame).frame;
            assert_eq!(out, expected(&frame, 1, method, outer, &out));
        }
    }
}

#[test]
fn a_tunnel_has_both_its_ends_in_one_family() {
    let Some(mut director) = director() else { return };
    for (address, source) in [
        (Family::V6.real(1), Family::V4.source()),
        (Family::V4.real(1), Family::V6.source()),
        (Family::V6.real(1), Address::default()),
    ] {
        director.real(10, Real { address, source, ..end(Real::IPIP, Family::V6, 1, INGRESS) });
        for frame in [tcp(VIP, WEB), tcp6(VIP6, WEB)] {
            assert_eq!(director.run(&frame), verdict(Outcome::BadTable, Action::Drop, frame.clone()));
        }
    }
}

#[test]
fn what_a_switch_floods_enters_no_tunnel() {
    let Some(director) = director_with(Real::IPIP, Family::V6) else { return };
    let frame = with_destination(tcp6(VIP6, WEB), OTHER_MAC);
    assert_eq!(director.run(&frame), verdict(Outcome::OtherHost, Action::Pass, frame.clone()));
}

#[test]
fn a_checksum_that_a_veth_device_left_open_is_computed_before_the_tunnel() {
    let Some(mut director) = Director::load_for_veth().map(master) else { return };
    lead(&mut director, Real::IPIP, Family::V6);
    for frame in [tcp6(VIP6, WEB), udp6(VIP6, DNS)] {
        let out = director.run(&services6::unfinished(&frame)).frame;
        assert_eq!(out[FRAME + 40..], frame[FRAME..]);
    }
}
