//! What goes into a tunnel, what does not fit, and whom that is told.

use etherparse::{Icmpv4Type, IpDscp, IpEcn, Ipv4HeaderSlice, icmpv4::DestUnreachableHeader};

use crate::{director::Action, frames::*, *};

pub const TUNNEL_SOURCE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 254);
pub const MTU: u16 = 1500;
pub const GUE_PORT: u16 = 6080;
const METHODS: [(u8, usize); 3] = [(Real::IPIP, 20), (Real::GUE, 32), (Real::GRE, 24)];

/// Makes both real servers of the master ends of tunnels.
pub fn lead(director: &mut Director, method: u8) {
    for (index, real) in [(10, real(1, INGRESS)), (20, real(2, 77))] {
        let source = v4(TUNNEL_SOURCE);
        director.real(index, Real { method, source, mtu: MTU, tunnel_port: GUE_PORT.to_be(), ..real });
    }
}

fn director_with(method: u8) -> Option<Director> {
    let mut director = director()?;
    lead(&mut director, method);
    Some(director)
}

/// What a tunnel makes of a frame, whose IP packet is all of it: in it, as it was.
fn tunnelled(frame: &[u8], number: u8, method: u8) -> Vec<u8> {
    let inner = Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap();
    let real = [10, 0, 1, number];
    let protocol = match method {
        Real::IPIP => IpNumber::IPV4,
        Real::GUE => IpNumber::UDP,
        _ => IpNumber::GRE,
    };
    let mut outer = etherparse::Ipv4Header::new(0, 64, protocol, TUNNEL_SOURCE.octets(), real).unwrap();
    outer.dscp = inner.dcp();
    outer.ecn = inner.ecn();
    outer.dont_fragment = inner.dont_fragment();
    if !outer.dont_fragment {
        let [a, b, c, d] = inner.source();
        outer.identification =
            inner.identification() ^ u16::from_be_bytes([a, b]) ^ u16::from_be_bytes([c, d]);
    }
    let headers = etherparse::IpHeaders::Ipv4(outer, etherparse::Ipv4Extensions::default());
    let step = PacketBuilder::ethernet2(DIRECTOR_MAC, mac_of(number)).ip(headers);
    let packet = &frame[14..];
    match method {
        Real::IPIP => raw(step, protocol, packet),
        Real::GRE => raw(step, protocol, &[&[0, 0, 8, 0], packet].concat()),
        _ => {
            let length = (packet.len() + 12) as u16;
            // Source port (filled in by the caller), port, length, no checksum; GUE of IPv4.
            let header =
                [[0, 0], GUE_PORT.to_be_bytes(), length.to_be_bytes(), [0, 0], [0, 4], [0, 0]].concat();
            raw(step, protocol, &[&header, packet].concat())
        }
    }
}

/// The same, with the source port that the program chose.
fn expected(frame: &[u8], number: u8, method: u8, got: &[u8]) -> Vec<u8> {
    let mut wanted = tunnelled(frame, number, method);
    if method == Real::GUE {
        let port = u16::from_be_bytes([got[34], got[35]]);
        assert!(port >= 0xc000, "{port}");
        wanted[34..36].copy_from_slice(&got[34..36]);
    }
    wanted
}

#[test]
fn a_packet_travels_unchanged_inside_the_tunnels_headers() {
    for (method, room) in METHODS {
        let Some(director) = director_with(method) else { return };
        let options = |words: usize| {
            ip(VIP, |header| header.options = vec![1; words * 4].as_slice().try_into().unwrap())
        };
        let bare_udp = raw(ip(VIP, |_| {}), IpNumber::UDP, &[0x9c, 0x40, 0, 53, 0, 8, 0, 0]);
        let mut bare_tcp = Vec::new();
        ip(VIP, |_| {}).tcp(40_000, WEB, 1, 64_000).write(&mut bare_tcp, &[]).unwrap();
        let frames = [
            tcp(VIP, WEB),
            tcp(BARE, WEB),
            udp(VIP, DNS),
            bare_udp,
            bare_tcp,
            write_tcp(options(1), 40_000, WEB),
            write_udp(options(10), DNS),
            web_of(MTU as usize - room, true),
            web_of(MTU as usize - room, false),
        ];
        for frame in frames {
            let number = if frame[23] == TCP { 1 } else { 2 };
            let Verdict { outcome, action, frame: out } = director.run(&frame);
            assert_eq!(out, expected(&frame, number, method, &out), "method {method}");
            assert_eq!(out.len(), frame.len() + room);
            let wanted = match number {
                1 => (Outcome::Forwarded, Action::Tx),
                _ => (Outcome::Redirected, Action::Redirect),
            };
            assert_eq!((outcome, action), wanted);
        }
        let frame = udp(VIP, DNS);
        let out = director.run(&padded(frame.clone())).frame;
        let (packet, padding) = out.split_at(frame.len() + room);
        assert_eq!(packet, expected(&frame, 2, method, &out));
        assert_eq!(padding, &padded(frame.clone())[frame.len()..], "padding is not part of the packet");
    }
}

#[test]
fn the_outer_header_takes_tos_and_dont_fragment_from_the_inner() {
    for (method, _) in METHODS {
        let Some(director) = director_with(method) else { return };
        for tos in 0..=255u8 {
            let frame = write_tcp(
                ip(VIP, |header| {
                    header.dscp = IpDscp::try_new(tos >> 2).unwrap();
                    header.ecn = IpEcn::try_new(tos & 3).unwrap();
                    header.dont_fragment = tos & 16 == 0;
                    header.identification = u16::from(tos) << 8 | 0x5a;
                    header.time_to_live = tos.max(1);
                }),
                40_000,
                WEB,
            );
            let out = director.run(&frame).frame;
            assert_eq!(out, expected(&frame, 1, method, &out), "TOS {tos:#x}");
        }
    }
}

#[test]
fn a_real_server_at_the_end_of_a_tunnel_is_counted_for_by_the_clients_frames() {
    let Some(director) = director_with(Real::IPIP) else { return };
    let frame = tcp(VIP, WEB);
    director.run(&frame);
    assert_eq!(director.counter(10), Counter { packets: 1, bytes: frame.len() as u64 });
    director.run(&web_of(1481, true));
    director.run(&web_of(1481, false));
    assert_eq!(director.counter(10).packets, 1, "what was not sent is not counted");
}

#[test]
fn flows_differ_in_the_source_port_of_gue_and_a_flow_keeps_its_own() {
    let Some(director) = director_with(Real::GUE) else { return };
    let source_port = |port| director.run(&tcp_from(port, VIP, WEB)).frame[34..36].to_vec();
    let ports: HashSet<_> = (20_000..21_000).map(source_port).collect();
    // 1000 draws of 16384 meet about 970.
    assert!(ports.len() > 900, "{}", ports.len());
    assert_eq!(source_port(20_000), source_port(20_000));
}

/// What the client is told: `limit`, and the beginning of its packet.
pub fn fragmentation_needed(frame: &[u8], limit: u16) -> Vec<u8> {
    let inner = Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap();
    let (source, destination) = (inner.destination(), inner.source());
    let mut header = etherparse::Ipv4Header::new(0, 64, IpNumber::ICMP, source, destination).unwrap();
    header.dscp = IpDscp::try_new(0xc0 >> 2).unwrap();
    let headers = etherparse::IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default());
    let kind = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: limit };
    let mut answer = Vec::new();
    PacketBuilder::ethernet2(DIRECTOR_MAC, CLIENT_MAC)
        .ip(headers)
        .icmpv4(Icmpv4Type::DestinationUnreachable(kind))
        .write(&mut answer, &frame[14..14 + 68])
        .unwrap();
    answer
}

#[test]
fn a_client_whose_packet_does_not_fit_is_told_what_does() {
    for (method, room) in METHODS {
        let Some(mut director) = director_with(method) else { return };
        let limit = MTU - room as u16;
        let mut with_options = Vec::new();
        ip(VIP, |header| header.options = vec![1; 40].as_slice().try_into().unwrap())
            .tcp(40_000, WEB, 1, 64_000)
            .write(&mut with_options, &[7; 1420])
            .unwrap();
        for frame in [web_of(limit as usize + 1, true), web_of(1500, true), with_options] {
            let answer = fragmentation_needed(&frame, limit);
            let told = verdict(Outcome::FragmentationNeeded, Action::Tx, answer.clone());
            assert_eq!(director.run(&frame), told);
            assert_eq!(director.run(&padded(frame)), told, "padding is not sent back");
        }
        let frame = web_of(1500, false);
        assert_eq!(director.run(&frame), verdict(Outcome::TooBig, Action::Drop, frame.clone()));
        if !director.has_headroom() {
            continue;
        }
        director.headroom(24);
        let frame = web_of(1500, true);
        assert_eq!(director.run(&frame), verdict(Outcome::NoHeadroom, Action::Drop, frame.clone()));
    }
}

#[test]
fn nobody_is_told_who_is_no_single_host_or_would_get_more_than_he_sent() {
    let Some(mut director) = director_with(Real::IPIP) else { return };
    for source in [[0; 4], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4], VIP.octets()] {
        let mut frame = Vec::new();
        let step = ip(VIP, |header| header.source = source).tcp(40_000, WEB, 1, 64_000);
        step.write(&mut frame, &[0; 1460]).unwrap();
        assert_eq!(director.run(&frame), verdict(Outcome::TooBig, Action::Drop, frame.clone()));
    }
    let frame = patched(web_of(1500, true), 6, &[0x03]);
    assert_eq!(director.run(&frame), verdict(Outcome::TooBig, Action::Drop, frame.clone()));
    // No interface is that narrow; a table may say so.
    let narrow = Real { method: Real::IPIP, mtu: 60, ..real(1, INGRESS) };
    director.real(10, narrow);
    for length in [41, 67] {
        let frame = web_of(length, true);
        assert_eq!(director.run(&frame), verdict(Outcome::TooBig, Action::Drop, frame.clone()));
    }
    director.real(10, Real { mtu: 0, ..narrow });
    assert_eq!(director.run(&web_of(68, true)).frame, fragmentation_needed(&web_of(68, true), 0));
}

#[test]
fn a_driver_without_headroom_costs_the_packet_and_no_more() {
    for (method, room) in METHODS {
        let Some(mut director) = director_with(method) else { return };
        if !director.has_headroom() {
            return lvs_tests::skip("no other headroom in test runs before Linux 5.15");
        }
        let frame = tcp(VIP, WEB);
        director.headroom(room - 4);
        assert_eq!(director.run(&frame), verdict(Outcome::NoHeadroom, Action::Drop, frame.clone()));
        director.headroom(room);
        let out = director.run(&frame).frame;
        assert_eq!(out, expected(&frame, 1, method, &out));
    }
}

#[test]
fn the_tunnels_packets_of_others_are_not_ours() {
    let Some(director) = director_with(Real::IPIP) else { return };
    let frame = tunnelled(&tcp(VIP, WEB), 1, Real::IPIP);
    assert_eq!(director.run(&frame), verdict(Outcome::NotOurs, Action::Pass, frame.clone()));
}
