//! Services of IPv6: who gets a packet, whatever stands before its ports; its pieces, and errors about it.

use std::{collections::HashMap, net::Ipv6Addr};

use etherparse::{IpHeaders, PacketBuilderStep};
use lvs_ebpf_common::{Address, Turn, flow_table::FlowSet, maps::MOVED};

use super::{
    ipv6::{VIP6, extended, ip6},
    *,
};

/// Not on the link.
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 7);
pub const BARE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x77, 0x101);
const STRANGER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x200);
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x9, 0, 0, 0, 0, 1);
const HEADERS: usize = 14 + 40;
const BASE: u32 = 100;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

pub fn key6(address: Ipv6Addr, port: u16, protocol: u8) -> ServiceKey {
    let address = Address::from(address.octets()).fold();
    ServiceKey { address, port: port.to_be(), protocol, family: ServiceKey::V6 }
}

/// A service with a number of its own, on a ring.
pub fn serve(director: &mut Director, address: Ipv6Addr, service: Service) {
    director.address6(service.id, address);
    director.service(service);
}

/// The services that [`master`] has over IPv4 too.
pub fn lead(director: &mut Director, ring: RingRef) {
    let web = |address| service(key6(address, WEB, TCP), ring, 10..11);
    serve(director, VIP6, Service { id: 40, ..web(VIP6) });
    serve(director, BARE6, Service { id: 41, ..web(BARE6) });
    let dns = service(key6(VIP6, DNS, UDP), ring, 20..21);
    serve(director, VIP6, Service { id: 42, ..dns });
}

/// The web service with four real servers on such a ring.
fn balanced(slots: &[u16], rest: Service) -> Option<Director> {
    let mut director = director()?;
    let ring = director.ring(64, slots);
    for number in 0..4 {
        director.real(BASE + number, Real { state: Real::ALIVE, ..real(number as u8, INGRESS) });
    }
    for (key, id) in [(key6(VIP6, WEB, TCP), 40), (key6(VIP6, DNS, UDP), 42)] {
        let Service { hash, takes_turns, persistence, .. } = rest;
        serve(
            &mut director,
            VIP6,
            Service { id, hash, takes_turns, persistence, ..service(key, ring, BASE..BASE + 4) },
        );
    }
    Some(director)
}

fn spread() -> Vec<u16> {
    (0..251).map(|slot| slot % 4).collect()
}

fn by_connection() -> Service {
    Service { hash: Service::HASH_CONNECTION, ..Service::default() }
}

fn to(destination: Ipv6Addr) -> PacketBuilderStep<IpHeaders> {
    from(CLIENT6, destination)
}

fn from(source: Ipv6Addr, destination: Ipv6Addr) -> PacketBuilderStep<IpHeaders> {
    ip6((CLIENT_MAC, DIRECTOR_MAC), (source, destination), 61)
}

pub fn tcp6(destination: Ipv6Addr, port: u16) -> Vec<u8> {
    write_tcp(to(destination), 40_000, port)
}

/// To the web service, as a packet of `length` bytes.
pub fn web_of(length: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    to(VIP6).tcp(40_000, WEB, 1, 64_000).write(&mut frame, &vec![7; length - 60]).unwrap();
    frame
}

pub fn udp6(destination: Ipv6Addr, port: u16) -> Vec<u8> {
    write_udp(to(destination), port)
}

/// A packet of these bytes to the virtual address.
fn stub(protocol: u8, payload: &[u8]) -> Vec<u8> {
    raw(to(VIP6), IpNumber(protocol), payload)
}

/// Cut into two pieces behind the first `at` bytes of the payload.
pub fn pieces(frame: &[u8], at: usize, id: u32) -> [Vec<u8>; 2] {
    let piece = |place: u16, data: &[u8]| {
        let place = [&[frame[20], 0][..], &place.to_be_bytes(), &id.to_be_bytes(), data].concat();
        let mut out = [&frame[..HEADERS], &place].concat();
        out[20] = 44;
        let length = (out.len() - HEADERS) as u16;
        patched(out, 18, &length.to_be_bytes())
    };
    let (first, last) = frame[HEADERS..].split_at(at);
    [piece(1, first), piece(at as u16, last)]
}

/// An ICMPv6 error about what a service sent to `port` of the client.
fn error6(kind: u8, code: u8, quote: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let step = from(ROUTER6, VIP6).icmpv6_raw(kind, code, 1280_u32.to_be_bytes());
    step.write(&mut frame, quote).unwrap();
    frame
}

/// What the service sent to `port` of the client, as far as errors quote it; with extension headers of these kinds.
fn quote6(service_port: u16, port: u16, kinds: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    from(VIP6, CLIENT6).tcp(service_port, port, 1, 1).write(&mut frame, &[7; 60]).unwrap();
    extended(&frame, kinds)[14..].to_vec()
}

pub fn about6(port: u16) -> Vec<u8> {
    error6(2, 0, &quote6(WEB, port, &[]))
}

pub fn originals() -> Vec<Vec<u8>> {
    let web = tcp6(VIP6, WEB);
    vec![
        web.clone(),
        udp6(VIP6, DNS),
        extended(&web, &[0, 60]),
        pieces(&web, 24, 7)[0].clone(),
        pieces(&udp6(VIP6, DNS), 8, 8)[0].clone(),
        about6(7),
        tcp6(STRANGER6, WEB),
    ]
}

pub fn cases() -> Vec<Case> {
    use Outcome::*;
    fn nothing(_: &mut Director) {}
    let web = tcp6(VIP6, WEB);
    let web_ports = [0x9c, 0x40, 0, 80];
    let short_tcp = [&web_ports[..], &[0; 15]].concat();
    let (offset_at, length_at) = (HEADERS + 12, HEADERS + 4);
    let [first, last] = pieces(&web, 24, 1);
    let [first_of_dns, last_of_dns] = pieces(&udp6(VIP6, DNS), 8, 2);
    vec![
        (Forwarded, nothing, web.clone()),
        (Forwarded, nothing, tcp6(BARE6, WEB)),
        (Redirected, nothing, udp6(VIP6, DNS)),
        (NotOurs, nothing, tcp6(STRANGER6, WEB)),
        (NotOurs, nothing, tcp6(VIP6, 81)),
        (NotOurs, nothing, udp6(VIP6, WEB)),
        (NotOurs, nothing, stub(47, &[0; 30])),
        (NotOurs, nothing, with_destination(web.clone(), [0x33, 0x33, 0, 0, 0, 1])),
        (OtherHost, nothing, with_destination(web.clone(), OTHER_MAC)),
        (Forwarded, nothing, extended(&web, &[0, 60, 44, 60])),
        (Redirected, nothing, extended(&udp6(VIP6, DNS), &[0])),
        (ExtensionHeaders, nothing, extended(&web, &[0, 60, 60, 60, 60])),
        (NotOurs, nothing, extended(&web, &[60, 0])),
        // Another address is to be visited first.
        (NotOurs, nothing, extended(&web, &[43])),
        (TruncatedTcp, nothing, stub(TCP, &[])),
        (TruncatedTcp, nothing, stub(TCP, &web_ports)),
        (TruncatedTcp, nothing, stub(TCP, &short_tcp)),
        (TruncatedTcp, nothing, extended(&stub(TCP, &short_tcp), &[0])),
        (TruncatedTcp, nothing, patched(web.clone(), offset_at, &[0xf0])),
        (BadTcpOffset, nothing, patched(web.clone(), offset_at, &[0x40])),
        (TruncatedUdp, nothing, stub(UDP, &[0x9c, 0x40, 0])),
        (TruncatedUdp, nothing, stub(UDP, &[0x9c, 0x40, 0, 53, 0, 8, 0])),
        (BadUdpLength, nothing, patched(udp6(VIP6, DNS), length_at, &[0, 7])),
        (BadUdpLength, nothing, patched(udp6(VIP6, DNS), length_at, &[0, 14])),
        (Forwarded, nothing, first),
        (Redirected, nothing, first_of_dns),
        (StrayFragment, nothing, last.clone()),
        (StrayFragment, nothing, last_of_dns),
        (NotOurs, nothing, patched(last, 38, &BARE6.octets())),
        (NotOurs, nothing, pieces(&stub(58, &[128; 40]), 24, 3)[1].clone()),
        (Forwarded, nothing, about6(7)),
        (NotOurs, nothing, error6(2, 0, &quote6(81, 7, &[]))),
        (
            NoReal,
            |director| {
                director.service(service(key6(VIP6, WEB, TCP), RingRef::default(), 10..11));
                director.address6(0, VIP6);
            },
            web.clone(),
        ),
        (
            NoNeighbour,
            |director| {
                let address = Address::from(ROUTER6.octets());
                director.real(10, Real { mac: [0; 6], address, ..real(1, INGRESS) });
            },
            web.clone(),
        ),
        (FragmentationNeeded, tunnel6::lead_over_v6, tunnel6::web6_of(1461)),
        (
            BadTable,
            |director| {
                tunnel::lead(director, 200);
            },
            web,
        ),
    ]
}

#[test]
fn direct_routing_changes_nothing_but_the_macs() {
    let Some(director) = director() else { return };
    for frame in [tcp6(VIP6, WEB), padded(tcp6(VIP6, WEB)), extended(&tcp6(VIP6, WEB), &[0, 60])] {
        assert_eq!(director.run(&frame), verdict(Outcome::Forwarded, Action::Tx, routed(&frame, 1)));
    }
    let frame = udp6(VIP6, DNS);
    assert_eq!(director.run(&frame), verdict(Outcome::Redirected, Action::Redirect, routed(&frame, 2)));
    assert_eq!((director.counter(10).packets, director.counter(20).packets), (3, 1));
}

/// Two addresses for which 32 bits are the same.
fn alike() -> [Ipv6Addr; 2] {
    let mut known = HashMap::new();
    for number in 0..=u32::MAX {
        let [a, b, c, d] = number.to_be_bytes().map(u16::from);
        let address = Ipv6Addr::new(0x2001, 0xdb8, a, b, c, d, 0, 1);
        if let Some(other) = known.insert(Address::from(address.octets()).fold(), address) {
            return [other, address];
        }
    }
    panic!("all folds differ");
}

#[test]
fn services_whose_keys_are_alike_are_told_apart_by_their_whole_address() {
    let Some(mut director) = director() else { return };
    let addresses = alike();
    assert_eq!(key6(addresses[0], WEB, TCP), key6(addresses[1], WEB, TCP));
    let ring = RingRef { chunk: 0, length: 1 };
    let mut add = |probe: u32| {
        let (address, reals) = (addresses[probe as usize], [10, 20][probe as usize]);
        director.address6(50 + probe as u16, address);
        let id = 50 + probe as u16;
        let service = service(key6(address, WEB, TCP), ring, reals..reals + 1);
        director.service_at(0, probe as usize, Service { id, ..service });
        addresses.map(|address| director.run(&tcp6(address, WEB)).outcome)
    };
    assert_eq!(add(0), [Outcome::Forwarded, Outcome::NotOurs]);
    assert_eq!(add(1), [Outcome::Forwarded, Outcome::Redirected]);
}

#[test]
fn a_service_of_one_family_is_none_of_the_other() {
    let Some(mut director) = director() else { return };
    // An IPv4 service on the very number that stands for the IPv6 address.
    let key = ServiceKey { family: ServiceKey::V4, ..key6(VIP6, WEB, TCP) };
    let address = Ipv4Addr::from(key.address.to_ne_bytes());
    assert_eq!(director.run(&tcp(address, WEB)).outcome, Outcome::NotOurs);
    director.service(service(key, RingRef { chunk: 0, length: 1 }, 10..11));
    assert_eq!(director.run(&tcp(address, WEB)).outcome, Outcome::Forwarded);
    assert_eq!(director.run(&tcp6(VIP6, WEB)).outcome, Outcome::NotOurs);
}

#[test]
fn later_fragments_follow_the_first_and_errors_their_flow() {
    let Some(director) = balanced(&spread(), by_connection()) else { return };
    let mut met = HashSet::new();
    for port in 1..64 {
        let whole = write_tcp(to(VIP6), port, WEB);
        let number = director.run(&whole).frame[5];
        met.insert(number);
        let sent = |frame: &[u8]| {
            (director.run(frame), verdict(Outcome::Forwarded, Action::Tx, routed(frame, number)))
        };
        let [first, last] = pieces(&whole, 24, port.into());
        assert_eq!(director.run(&last).outcome, Outcome::StrayFragment, "before the first one");
        // In whatever way the last one names what it is a piece of.
        for frame in [first, last.clone(), extended(&last, &[60]), patched(last.clone(), HEADERS, &[60])] {
            let (got, wanted) = sent(&frame);
            assert_eq!(got, wanted);
        }
        let other = patched(last, HEADERS + 4, &[9; 4]);
        assert_eq!(director.run(&other), verdict(Outcome::StrayFragment, Action::Pass, other.clone()));
        for (kind, code) in [(1, 0), (1, 4), (2, 0), (3, 0), (4, 1)] {
            for kinds in [&[][..], &[0, 60]] {
                let (got, wanted) = sent(&error6(kind, code, &quote6(WEB, port, kinds)));
                assert_eq!(got, wanted, "{kind} {code} {kinds:?}");
            }
        }
    }
    assert_eq!(met.len(), 4);
}

#[test]
fn an_error_about_nothing_of_ours_is_the_kernels() {
    let Some(director) = director() else { return };
    let good = quote6(WEB, 7, &[]);
    assert_eq!(director.run(&error6(2, 0, &good)).outcome, Outcome::Forwarded);
    for (number, frame) in [
        error6(2, 0, &good[..43]),
        error6(2, 0, &good[..39]),
        error6(2, 0, &patched(good.clone(), 0, &[0x45])),
        error6(2, 0, &patched(good.clone(), 6, &[58])),
        error6(2, 0, &patched(good.clone(), 8, &BARE6.octets())),
        error6(2, 0, &quote6(WEB, 7, &[0, 60, 60, 60, 60])),
        error6(5, 0, &good),
        error6(0, 0, &good),
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(director.run(frame), verdict(Outcome::NotOurs, Action::Pass, frame.clone()), "{number}");
    }
}

/// Number of the real server that a segment goes to.
fn send(director: &Director, source: Ipv6Addr, port: u16, flags: u8) -> u8 {
    let frame = patched(write_tcp(from(source, VIP6), port, WEB), HEADERS + 13, &[flags]);
    let verdict = director.run(&frame);
    assert_eq!(verdict.outcome, Outcome::Forwarded);
    verdict.frame[5]
}

#[test]
fn the_flow_table_knows_flows_of_a_moved_slot_by_client_and_port() {
    let Some(mut director) = balanced(&[1 | MOVED], Service::default()) else { return };
    // The slot's old owner.
    director.ring(65, &[1, 0]);
    director.ring(66, &[0]);
    let other = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 1, 0, 0, 0, 7);
    assert_eq!(send(&director, CLIENT6, 1, SYN), 1);
    assert_eq!(send(&director, CLIENT6, 2, ACK), 0);
    assert_eq!(send(&director, other, 1, ACK), 0);
    assert_eq!(send(&director, CLIENT6, 1, ACK), 1);
    let known: usize =
        director.flow_sets().iter().map(|set| set.entries.iter().filter(|e| **e != 0).count()).sum();
    assert_eq!(known, 3);
}

#[test]
fn a_service_that_takes_turns_remembers_whose_each_flow_is() {
    let rest = Service { takes_turns: Service::EVERY_TURN, ..by_connection() };
    let Some(mut director) = balanced(&spread(), rest) else { return };
    let sequence = director.ring(128, &[2, 3, 0, 1]);
    director.turn(40, Turn { sequence: sequence.pack(), taken: 0 });
    let met: Vec<u8> = (0..8).map(|port| send(&director, CLIENT6, port, SYN)).collect();
    assert_eq!(met, [2, 3, 0, 1, 2, 3, 0, 1]);
    assert!(met.iter().zip(0..).all(|(number, port)| send(&director, CLIENT6, port, ACK) == *number));
}

#[test]
fn clients_of_one_prefix_are_one_with_persistence() {
    let rest = Service { takes_turns: Service::REMEMBERED, persistence: 64 + 1, ..by_connection() };
    let Some(director) = balanced(&spread(), rest) else { return };
    let client = |network: u16, host: u16| Ipv6Addr::new(0x2001, 0xdb8, 0xc, network, host, 0, 0, host);
    let met: HashSet<u8> = (0..32)
        .map(|network| {
            let first = send(&director, client(network, 1), 1, SYN);
            for host in 2..20 {
                assert_eq!(
                    send(&director, client(network, host), 1000 + host, SYN),
                    first,
                    "{network} {host}"
                );
            }
            first
        })
        .collect();
    assert_eq!(met.len(), 4, "and networks are spread");
    let known = director.flow_sets().iter().filter(|set| **set != FlowSet::default()).count();
    assert!(known <= 32, "{known}");
}

#[test]
fn each_hash_goes_by_what_it_names() {
    let other = Ipv6Addr::new(0x2001, 0xdb8, 0xd, 0, 0, 0, 0, 7);
    for (hash, by_port, by_source) in [
        (Service::HASH_SOURCE, false, true),
        (Service::HASH_SOURCE_PORT, true, true),
        (Service::HASH_DESTINATION, false, false),
        (Service::HASH_CONNECTION, true, true),
    ] {
        let Some(director) = balanced(&spread(), Service { hash, ..Service::default() }) else { return };
        let ports: HashSet<u8> = (0..64).map(|port| send(&director, other, port, ACK)).collect();
        let host = |last: u16| Ipv6Addr::new(0x2001, 0xdb8, 0xd, 0, 0, 0, 0, last);
        let sources: HashSet<u8> = (0..64).map(|last| send(&director, host(last), 1, ACK)).collect();
        assert_eq!((ports.len() > 1, sources.len() > 1), (by_port, by_source), "{hash}");
    }
}

/// With nothing but the sum of the pseudo header where the checksum belongs.
pub fn unfinished(frame: &[u8]) -> Vec<u8> {
    let addresses = frame[22..HEADERS].chunks(2);
    let sum: u32 = addresses.map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = sum + u32::from(frame[20]) + (frame.len() - HEADERS) as u32;
    let sum = (sum & 0xffff) + (sum >> 16);
    let at = HEADERS + if frame[20] == TCP { 16 } else { 6 };
    patched(frame.to_vec(), at, &(sum as u16).to_be_bytes())
}

#[test]
fn a_checksum_that_a_veth_device_left_open_is_computed() {
    let Some(director) = Director::load_for_veth().map(master) else { return };
    for length in (0..20).chain([1000, 1001, 1440]) {
        let data: Vec<u8> = (0..length).map(|at| (at * 7 + 1) as u8).collect();
        let mut frames = [(); 2].map(|()| Vec::new());
        to(VIP6).tcp(40_000, WEB, 1, 64_000).write(&mut frames[0], &data).unwrap();
        to(VIP6).udp(40_000, DNS).write(&mut frames[1], &data).unwrap();
        for (frame, number) in frames.into_iter().zip([1, 2]) {
            assert_eq!(director.run(&unfinished(&frame)).frame, routed(&frame, number), "{length}");
            assert_eq!(director.run(&frame).frame, routed(&frame, number), "{length}: one that is there");
        }
    }
}

#[test]
fn a_connection_of_a_dead_real_server_is_reset_in_the_services_name() {
    let Some(mut director) = balanced(&[1 | MOVED], Service::default()) else { return };
    director.ring(65, &[1, 0]);
    director.ring(66, &[0]);
    director.real(BASE, Real { state: Real::RESETTING, ..real(0, INGRESS) });
    let known = patched(tcp6(VIP6, WEB), HEADERS + 13, &[ACK]);
    let mut reset = Vec::new();
    let step = ip6((DIRECTOR_MAC, CLIENT_MAC), (VIP6, CLIENT6), 64);
    step.tcp(WEB, 40_000, 0, 0).rst().write(&mut reset, &[]).unwrap();
    for frame in [known.clone(), padded(known.clone()), extended(&known, &[60])] {
        assert_eq!(director.run(&frame), verdict(Outcome::ConnectionReset, Action::Tx, reset.clone()));
    }
    // Without an ACK what the segment takes up is acknowledged.
    let unknown = patched(tcp6(VIP6, WEB), HEADERS + 13, &[0]);
    let mut reset = Vec::new();
    let step = ip6((DIRECTOR_MAC, CLIENT_MAC), (VIP6, CLIENT6), 64);
    step.tcp(WEB, 40_000, 0, 0).rst().ack(1 + 5).write(&mut reset, &[]).unwrap();
    assert_eq!(director.run(&unknown).frame, reset);
    for frame in [patched(known.clone(), HEADERS + 13, &[0x14]), patched(known, 22, &VIP6.octets())] {
        assert_eq!(director.run(&frame), verdict(Outcome::DeadReal, Action::Drop, frame.clone()));
    }
}

#[test]
fn a_real_server_may_be_this_node_and_only_the_master_spreads_packets() {
    let Some(mut director) = director() else { return };
    local::lead(&mut director);
    let frame = tcp6(VIP6, WEB);
    assert_eq!(director.run(&frame), verdict(Outcome::Local, Action::Pass, frame.clone()));
    director.real(10, Real { method: Real::DIRECT_BESIDE_LOCAL, ..real(1, INGRESS) });
    assert_eq!(director.run(&frame), verdict(Outcome::Forwarded, Action::Tx, routed(&frame, 1)));
    let back = patched(frame.clone(), 6, &mac_of(1));
    assert_eq!(director.run(&back).outcome, Outcome::Local);
    director.lease(RESIGNED);
    assert_eq!(director.run(&frame), verdict(Outcome::Local, Action::Pass, frame.clone()));
}
