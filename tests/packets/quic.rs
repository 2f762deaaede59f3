//! QUIC packets whose connection ID names a real server: which one gets them, whatever address they come from.

use std::net::Ipv6Addr;

use etherparse::{IpHeaders, PacketBuilderStep};
use lvs_ebpf_common::{ById, ConnectionIds, ServerId, flow_table::FlowSet, maps::NOBODY};

use crate::{
    frames::*,
    ipv6::{VIP6, ip6},
    services6::{CLIENT6, key6, serve},
    *,
};

const QUIC: u16 = 443;
const IDS: ConnectionIds = ConnectionIds { config: 2, length: 2 };
const BASE: u32 = 100;
const NUMBERS: [u16; 2] = [50, 51];
/// The first octet of a connection ID, by its configuration.
const FIRST: u8 = 0x40;
const V1: [u8; 4] = [0, 0, 0, 1];

/// A QUIC service of both families with four living real servers, of which the ring knows the first alone.
struct Site(Director);

#[derive(Clone, Copy)]
enum From {
    V4(Ipv4Addr, u16),
    V6(Ipv6Addr, u16),
}

/// Where a connection begins, and where its client goes.
const JOURNEYS: [[From; 3]; 2] = [
    [From::V4(CLIENT, 1000), From::V4(CLIENT, 2000), From::V4(Ipv4Addr::new(203, 0, 113, 5), 443)],
    [
        From::V6(CLIENT6, 1000),
        From::V6(CLIENT6, 2000),
        From::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 5), 443),
    ],
];

impl Site {
    fn new() -> Option<Self> {
        Self::with(Service { takes_turns: Service::REMEMBERED, ..Service::default() })
    }

    fn with(rest: Service) -> Option<Self> {
        let mut director = director()?;
        let ring = director.ring(64, &[0]);
        for (key, id) in [(key(VIP, QUIC, UDP), NUMBERS[0]), (key6(VIP6, QUIC, UDP), NUMBERS[1])] {
            let Service { takes_turns, persistence, .. } = rest;
            let connection_ids = IDS.pack();
            let of = service(key, ring, BASE..BASE + 4);
            serve(&mut director, VIP6, Service { id, takes_turns, persistence, connection_ids, ..of });
            (0..4).for_each(|number| director.server_id(server_id(id, number), number.into()));
        }
        let mut site = Self(director);
        (0..4).for_each(|number| site.is(number, Real::ALIVE));
        Some(site)
    }

    fn is(&mut self, number: u8, state: u8) {
        self.0.real(BASE + u32::from(number), Real { state, ..real(number, INGRESS) });
    }

    /// Number of the real server that a packet goes to, and what was made of its server ID.
    fn send(&self, from: From, payload: &[u8]) -> (u8, Option<ById>) {
        self.meet(&frame(from, payload))
    }

    fn meet(&self, frame: &[u8]) -> (u8, Option<ById>) {
        let before = self.0.by_id();
        let verdict = self.0.run(frame);
        let after = self.0.by_id();
        assert_eq!(verdict.outcome, Outcome::Forwarded);
        let number = verdict.frame[5];
        assert_eq!(verdict, self::verdict(Outcome::Forwarded, Action::Tx, routed(frame, number)));
        let moved: Vec<_> =
            ById::ALL.into_iter().filter(|what| before[*what as usize] != after[*what as usize]).collect();
        assert!(moved.len() <= 1, "{moved:?}");
        (number, moved.first().copied())
    }

    fn knows_no_flow(&self) -> bool {
        self.0.flow_sets().iter().all(|set| *set == FlowSet::default())
    }
}

fn server_id(service: u16, number: u8) -> ServerId {
    ServerId { octets: [0xa5, number, 0, 0, 0, 0, 0, 0], service: service.into() }
}

fn frame(from: From, payload: &[u8]) -> Vec<u8> {
    let write = |step: PacketBuilderStep<IpHeaders>, port| {
        let mut frame = Vec::new();
        step.udp(port, QUIC).write(&mut frame, payload).unwrap();
        frame
    };
    match from {
        From::V4(address, port) => write(ip(VIP, |header| header.source = address.octets()), port),
        From::V6(address, port) => write(ip6((CLIENT_MAC, DIRECTOR_MAC), (address, VIP6), 61), port),
    }
}

/// What a connection ID of eight octets begins with that names a real server.
fn named(number: u8) -> [u8; 8] {
    [FIRST | 0x1f, 0xa5, number, 1, 2, 3, 4, 5]
}

/// Of a connection that is established.
fn short(id: &[u8]) -> Vec<u8> {
    [&[0x40], id, &[0xee; 24]].concat()
}

/// Of one that begins. `kind`: in version 1 Initial, 0-RTT and Handshake are 0xc0, 0xd0 and 0xe0.
fn long(kind: u8, version: [u8; 4], id: &[u8]) -> Vec<u8> {
    [&[kind], &version[..], &[id.len() as u8], id, &[8], &[0x77; 8], &[0xee; 1200]].concat()
}

#[test]
fn a_client_keeps_its_real_server_wherever_it_goes() {
    let Some(site) = Site::new() else { return };
    for journey in JOURNEYS {
        for number in 0..4 {
            for from in journey {
                assert_eq!(site.send(from, &short(&named(number))), (number, Some(ById::Led)));
            }
        }
    }
}

#[test]
fn each_form_of_header_in_any_version_leads_to_the_real_server_that_it_names() {
    let Some(site) = Site::new() else { return };
    for [from, ..] in JOURNEYS {
        for version in [V1, [0x6b, 0x33, 0x43, 0xcf], [0; 4], [0xfa, 0xce, 0xb0, 0x02]] {
            for kind in [0x80, 0xc0, 0xd0, 0xe0, 0xff] {
                assert_eq!(site.send(from, &long(kind, version, &named(3))), (3, Some(ById::Led)));
            }
        }
        for first in [0, 0x40, 0x7f] {
            let mut packet = short(&named(2));
            packet[0] = first;
            assert_eq!(site.send(from, &packet), (2, Some(ById::Led)), "bits that are a version's own");
        }
        let longest: Vec<u8> = named(1).into_iter().chain([9; 12]).collect();
        assert_eq!(site.send(from, &long(0xc0, V1, &longest)), (1, Some(ById::Led)));
    }
}

#[test]
fn what_a_client_has_made_up_goes_by_the_ring_and_is_no_fault() {
    let Some(site) = Site::new() else { return };
    for [from, ..] in JOURNEYS {
        let others = [
            named(9).to_vec(),
            // Other configurations, of which the last says that it has no server ID.
            [&[0x20], &named(3)[1..]].concat(),
            [&[0xff], &named(3)[1..]].concat(),
            // One octet too short for a nonce behind it.
            named(3)[..6].to_vec(),
            Vec::new(),
        ];
        for id in others {
            assert_eq!(site.send(from, &long(0xc0, V1, &id)), (0, None), "{id:02x?}");
        }
        let mut behind_its_end = long(0xc0, V1, &named(3));
        behind_its_end[5] = 255;
        behind_its_end.truncate(6 + 254);
        assert_eq!(site.send(from, &behind_its_end), (0, None));
    }
}

#[test]
fn a_short_header_that_names_nobody_goes_by_the_ring_and_is_counted() {
    let Some(site) = Site::new() else { return };
    for [from, ..] in JOURNEYS {
        for id in [named(9), [0x20, 0xa5, 3, 1, 2, 3, 4, 5], [0xff, 0xa5, 3, 1, 2, 3, 4, 5]] {
            assert_eq!(site.send(from, &short(&id)), (0, Some(ById::Unknown)), "{id:02x?}");
        }
    }
}

#[test]
fn a_packet_cut_anywhere_before_it_could_be_of_quic_goes_by_the_ring() {
    let Some(site) = Site::new() else { return };
    for [begun, other, _] in JOURNEYS {
        for whole in [short(&named(3)), long(0xc0, V1, &named(3))] {
            for length in 0..24 {
                let (from, expected) =
                    if length < 16 { (begun, (0, None)) } else { (other, (3, Some(ById::Led))) };
                let cut = frame(from, &whole[..length]);
                assert_eq!(site.meet(&cut), expected, "{length} octets");
                assert_eq!(site.meet(&padded(cut)), expected, "padding is not of the packet");
            }
        }
    }
}

#[test]
fn what_is_not_quic_falls_back_and_is_forwarded_whole() {
    let Some(site) = Site::new() else { return };
    let mut random = hostile::Random(0x9b1c);
    for _ in 0..20_000 {
        let length = random.below(64);
        let payload: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
        let [[v4, ..], [v6, ..]] = JOURNEYS;
        let (number, told) = site.send(if random.below(2) == 0 { v4 } else { v6 }, &payload);
        // One in 2^19 names a real server.
        assert!(told == Some(ById::Led) || number == 0, "{payload:02x?}");
    }
}

#[test]
fn a_real_server_that_drains_keeps_its_connections_and_a_dead_one_loses_them_to_the_ring() {
    let Some(mut site) = Site::new() else { return };
    for [from, ..] in JOURNEYS {
        for state in [Real::DRAINING, Real::LEAVING, Real::OVERLOADED] {
            site.is(3, state);
            assert_eq!(site.send(from, &short(&named(3))), (3, Some(ById::Led)), "{state}");
        }
        for state in [Real::DEAD, Real::RESETTING, Real::DEAD_BESIDE_LOCAL] {
            site.is(3, state);
            for packet in [short(&named(3)), long(0xc0, V1, &named(3))] {
                assert_eq!(site.send(from, &packet), (0, Some(ById::Dead)), "{state}");
            }
        }
    }
}

#[test]
fn an_id_that_leads_outside_its_service_counts_as_dead() {
    let Some(mut site) = Site::new() else { return };
    for (index, number) in [(4, 5), (u32::from(NOBODY), 6), (u32::MAX, 7), (1 << 16, 8)] {
        site.0.server_id(server_id(NUMBERS[0], number), index);
        assert_eq!(site.send(JOURNEYS[0][0], &short(&named(number))), (0, Some(ById::Dead)), "{index}");
    }
}

#[test]
fn what_tells_nothing_and_icmp_errors_follow_the_flow_to_where_its_connection_is() {
    let Some(mut site) = Site::new() else { return };
    for [from, later, _] in JOURNEYS {
        assert_eq!(site.send(from, b"hello").0, 0, "by the ring");
        assert_eq!(site.send(from, &short(&named(3))), (3, Some(ById::Led)));
        assert_eq!(site.send(from, b"hello").0, 3);
        assert_eq!(site.send(from, &short(&named(2))), (2, Some(ById::Led)));
        assert_eq!(site.send(from, b"hello").0, 2, "another connection from the same port");
        // It is no worse than any other when its real server dies.
        site.is(2, Real::DEAD);
        assert_eq!(site.send(from, b"hello").0, 0);
        site.is(2, Real::ALIVE);
        assert_eq!(site.send(later, &short(&named(3))), (3, Some(ById::Led)));
    }
    let [_, From::V4(_, port), _] = JOURNEYS[0] else { panic!() };
    assert_eq!(site.meet(&icmp_error::about_of(QUIC, port, UDP)), (3, None));
}

#[test]
fn a_persistent_clients_other_flows_stay_where_they_are() {
    let Some(site) =
        Site::with(Service { takes_turns: Service::REMEMBERED, persistence: 25, ..Service::default() })
    else {
        return;
    };
    let [from, other, _] = JOURNEYS[0];
    assert_eq!(site.send(from, b"hello").0, 0);
    assert_eq!(site.send(from, &short(&named(3))), (3, Some(ById::Led)));
    assert_eq!(site.send(other, b"hello").0, 0);
}

#[test]
fn later_pieces_of_a_packet_follow_the_first() {
    let Some(site) = Site::new() else { return };
    let udp = frame(From::V4(CLIENT, 1000), &long(0xc0, V1, &named(3)));
    let piece = |offset: u16, more: bool, data: &[u8]| {
        let step = fragment(VIP, offset, more);
        raw(step, IpNumber::UDP, data)
    };
    assert_eq!(site.meet(&piece(0, true, &udp[34..34 + 64])), (3, Some(ById::Led)));
    assert_eq!(site.meet(&piece(8, false, &udp[34 + 64..])), (3, None));
}

#[test]
fn by_nat_the_answers_go_to_where_the_client_is_by_now() {
    let Some(mut site) = Site::new() else { return };
    nat::lead(&mut site.0);
    let translated = Real {
        method: Real::NAT,
        source: v4(nat::INSIDE),
        mtu: 1500,
        port: 8443_u16.to_be(),
        ..real(3, INGRESS)
    };
    site.0.real(BASE + 3, Real { state: Real::ALIVE, ..translated });
    let own = Ipv4Addr::new(10, 0, 1, 3);
    site.0.reply(key(own, 8443, UDP), lvs_ebpf_common::Reply { face: nat::face(QUIC), real: BASE + 3 });
    for port in [1000, 2000] {
        let verdict = site.0.run(&frame(From::V4(CLIENT, port), &short(&named(3))));
        assert_eq!(verdict.outcome, Outcome::Forwarded);
        assert_eq!(verdict.frame[30..34], own.octets());
        let mut answer = Vec::new();
        let step = PacketBuilder::ethernet2(mac_of(3), DIRECTOR_MAC).ipv4(own.octets(), CLIENT.octets(), 64);
        step.udp(8443, port).write(&mut answer, &[0xee; 30]).unwrap();
        let verdict = site.0.run(&answer);
        assert!(matches!(verdict.outcome, Outcome::NatReply | Outcome::NatReplyRedirected), "{verdict:?}");
        assert_eq!(verdict.frame[26..30], VIP.octets());
        assert_eq!(verdict.frame[34..38], [QUIC.to_be_bytes(), port.to_be_bytes()].concat());
    }
}

#[test]
fn services_without_the_word_and_tcp_are_led_by_no_id() {
    let Some(mut site) = Site::new() else { return };
    let ring = site.0.ring(64, &[0]);
    let of = |key| Service { id: NUMBERS[0], connection_ids: 0, ..service(key, ring, BASE..BASE + 4) };
    site.0.service(of(key(VIP, QUIC, UDP)));
    assert_eq!(site.send(JOURNEYS[0][0], &short(&named(3))), (0, None));
    site.0.service(Service { connection_ids: IDS.pack(), ..of(key(VIP, QUIC, TCP)) });
    let mut tcp = Vec::new();
    let step = ip(VIP, |_| {}).tcp(1000, QUIC, 1, 1);
    step.write(&mut tcp, &short(&named(3))).unwrap();
    assert_eq!(site.meet(&tcp), (0, None));
    assert!(site.knows_no_flow());
}
