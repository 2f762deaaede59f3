//! What the XDP program makes of single frames: outcome, frame out, counters. The program is the real object, run
//! by the kernel; the frames are built by etherparse, not by our code.
#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests fail as tests do")]

use std::{collections::HashSet, net::Ipv4Addr, thread, time::Duration};

use etherparse::{ArpOperation, IpFragOffset, IpNumber, PacketBuilder};
use lvs_ebpf_common::{
    AddressFilter, Claim, Counter, Outcome, Real, RingRef, Service, ServiceKey, TableRef, Vip, maps,
};
use nix::time::{ClockId, clock_gettime};

use crate::{
    director::{Action, Director, INGRESS, LEASE, TABLE, Verdict, be, key, v4},
    frames::*,
};

#[path = "packets/all_ports.rs"]
mod all_ports;
#[path = "packets/cost.rs"]
mod cost;
#[path = "packets/dead.rs"]
mod dead;
#[path = "packets/director.rs"]
mod director;
#[path = "packets/flow_table.rs"]
mod flow_table;
#[path = "packets/fragment.rs"]
mod fragments;
#[path = "packets/frames.rs"]
mod frames;
#[path = "packets/hostile.rs"]
mod hostile;
#[path = "packets/icmp_error.rs"]
mod icmp_error;
#[path = "packets/ipv6.rs"]
mod ipv6;
#[path = "packets/kernel.rs"]
mod kernel;
#[path = "packets/lease.rs"]
mod lease;
#[path = "packets/local.rs"]
mod local;
#[path = "packets/nat.rs"]
mod nat;
#[path = "packets/quic.rs"]
mod quic;
#[path = "packets/redirect.rs"]
mod redirect;
#[path = "packets/services6.rs"]
mod services6;
#[path = "packets/tunnel.rs"]
mod tunnel;
#[path = "packets/tunnel6.rs"]
mod tunnel6;
#[path = "packets/veth.rs"]
mod veth;
#[path = "packets/virtual_mac.rs"]
mod virtual_mac;
#[path = "packets/vlan.rs"]
mod vlan;

const TCP: u8 = 6;
const UDP: u8 = 17;
const HELD: u64 = u64::MAX;
const RESIGNED: u64 = 0;
const LAPSED: u64 = 1;

fn real(number: u8, ifindex: u32) -> Real {
    Real {
        mac: mac_of(number),
        source_mac: DIRECTOR_MAC,
        ifindex,
        address: v4(Ipv4Addr::new(10, 0, 1, number)),
        mtu: 1500,
        ..Real::default()
    }
}

fn mac_of(number: u8) -> [u8; 6] {
    let mut mac = REAL_MAC;
    mac[5] = number;
    mac
}

fn service(key: ServiceKey, ring: RingRef, reals: std::ops::Range<u32>) -> Service {
    Service {
        key,
        ring: ring.pack(),
        reals_base: reals.start,
        reals_len: reals.end - reals.start,
        hash: Service::HASH_CONNECTION,
        ..Service::default()
    }
}

/// A master for [`VIP`] and [`ipv6::VIP6`]: real server 1 behind TCP [`WEB`], on the interface that frames come in on; real
/// server 2 behind UDP [`DNS`], on another. [`BARE`] has the web service too.
fn director() -> Option<Director> {
    Director::load().map(master)
}

fn master(mut director: Director) -> Director {
    director.vip(
        VIP,
        Vip { lease: LEASE, ifindex: INGRESS, mac: DIRECTOR_MAC, answers: DIRECTOR_MAC, ..Vip::default() },
    );
    director.vip6(
        ipv6::VIP6,
        Vip { lease: LEASE, ifindex: INGRESS, mac: DIRECTOR_MAC, answers: DIRECTOR_MAC, ..Vip::default() },
    );
    director.interface(INGRESS, DIRECTOR_MAC);
    director.lease(HELD);
    director.real(10, real(1, INGRESS));
    director.real(20, real(2, 77));
    let ring = director.ring(0, &[0]);
    for address in [VIP, BARE] {
        director.service(service(key(address, WEB, TCP), ring, 10..11));
    }
    director.service(service(key(VIP, DNS, UDP), ring, 20..21));
    services6::lead(&mut director, ring);
    director
}

fn verdict(outcome: Outcome, action: Action, frame: Vec<u8>) -> Verdict {
    Verdict { outcome, action, frame }
}

/// What direct routing makes of a frame.
fn routed(frame: &[u8], number: u8) -> Vec<u8> {
    let mut frame = with_destination(frame.to_vec(), mac_of(number));
    frame[6..12].copy_from_slice(&DIRECTOR_MAC);
    frame
}

fn fragment(
    destination: Ipv4Addr,
    offset: u16,
    more: bool,
) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    ip(destination, |header| {
        header.dont_fragment = false;
        header.fragment_offset = IpFragOffset::try_from(offset).unwrap();
        header.more_fragments = more;
    })
}

/// (fate, change of the master, frame)
type Case = (Outcome, fn(&mut Director), Vec<u8>);

/// One frame or more for each outcome.
fn cases() -> Vec<Case> {
    use Outcome::*;
    fn nothing(_: &mut Director) {}
    let resign = |director: &mut Director| director.lease(RESIGNED);
    let not_accepted = |director: &mut Director| {
        let flags = Vip::NOT_ACCEPTED;
        let vip = Vip { lease: LEASE, ifindex: INGRESS, mac: DIRECTOR_MAC, flags, ..Vip::default() };
        director.vip(VIP, vip);
        director.vip6(ipv6::VIP6, vip);
    };
    let stub = |protocol, payload: &[u8]| raw(ip(VIP, |_| {}), protocol, payload);
    let web_ports = [0x9c, 0x40, 0, 80];
    let short_tcp = [&web_ports[..], &[0; 15]].concat();
    // Data offset of TCP, length of UDP.
    let (offset_at, length_at) = (14 + 20 + 12, 14 + 20 + 4);
    vec![
        (Forwarded, nothing, tcp(VIP, WEB)),
        (Forwarded, nothing, tcp(BARE, WEB)),
        (Redirected, nothing, udp(VIP, DNS)),
        (ArpAnswered, nothing, who_has(VIP)),
        (EchoAnswered, nothing, ping(VIP)),
        (Local, local::lead, tcp(VIP, WEB)),
        (NotOurs, nothing, tcp(STRANGER, WEB)),
        (NotOurs, nothing, tcp(VIP, 81)),
        (NotOurs, nothing, udp(VIP, WEB)),
        (NotOurs, nothing, who_has(STRANGER)),
        (NotOurs, nothing, ping(STRANGER)),
        (NotOurs, nothing, pong(CLIENT)),
        (NotOurs, nothing, stub(IpNumber::GRE, &[0; 30])),
        (NotOurs, nothing, stub(IpNumber::ICMP, &[8, 0, 0, 0])),
        (BadIpHeader, nothing, patched(tcp(VIP, WEB), 12, &[0x86, 0xdd])),
        (OtherHost, nothing, with_destination(tcp(VIP, WEB), OTHER_MAC)),
        (OtherHost, nothing, with_destination(udp(VIP, DNS), OTHER_MAC)),
        (OtherHost, nothing, with_destination(ping(VIP), OTHER_MAC)),
        (OtherHost, nothing, with_destination(who_has(VIP), OTHER_MAC)),
        (TruncatedHeader, nothing, tcp(VIP, WEB)[..33].to_vec()),
        (TruncatedHeader, nothing, who_has(VIP)[..41].to_vec()),
        (BadIpHeader, nothing, patched(tcp(VIP, WEB), 14, &[0x65])),
        (BadIpHeader, nothing, patched(tcp(VIP, WEB), 14, &[0x44])),
        (BadIpHeader, nothing, patched(tcp(VIP, WEB), 16, &[0, 19])),
        (BadIpHeader, nothing, patched(tcp(VIP, WEB), 16, &[0xff, 0xff])),
        (ArpWithoutLease, resign, who_has(VIP)),
        (EchoWithoutLease, resign, ping(VIP)),
        (EchoNotAccepted, not_accepted, ping(VIP)),
        (ArpAnswered, not_accepted, who_has(VIP)),
        (Forwarded, not_accepted, tcp(VIP, WEB)),
        (EchoNotAccepted, not_accepted, ipv6::ping6(ipv6::CLIENT6, ipv6::VIP6)),
        (SolicitationAnswered, not_accepted, ipv6::who_has6(ipv6::VIP6)),
        (TruncatedTcp, nothing, stub(IpNumber::TCP, &[])),
        (TruncatedTcp, nothing, stub(IpNumber::TCP, &web_ports[..3])),
        (TruncatedTcp, nothing, stub(IpNumber::TCP, &web_ports)),
        (TruncatedTcp, nothing, stub(IpNumber::TCP, &short_tcp)),
        (TruncatedTcp, nothing, patched(tcp(VIP, WEB), offset_at, &[0xf0])),
        (BadTcpOffset, nothing, patched(tcp(VIP, WEB), offset_at, &[0x40])),
        (TruncatedUdp, nothing, stub(IpNumber::UDP, &[0x9c, 0x40, 0])),
        (TruncatedUdp, nothing, stub(IpNumber::UDP, &[0x9c, 0x40, 0, 53, 0, 8, 0])),
        (BadUdpLength, nothing, patched(udp(VIP, DNS), length_at, &[0, 7])),
        (BadUdpLength, nothing, patched(udp(VIP, DNS), length_at, &[0, 0])),
        (BadUdpLength, nothing, patched(udp(VIP, DNS), length_at, &[0, 14])),
        (Fragment, nat::lead, nat::first_fragment_of_an_answer()),
        (Forwarded, nothing, write_tcp(fragment(VIP, 0, true), 40_000, WEB)),
        (Redirected, nothing, write_udp(fragment(VIP, 0, true), DNS)),
        (NotOurs, nothing, write_tcp(fragment(VIP, 0, true), 40_000, 81)),
        (NotOurs, nothing, write_udp(fragment(VIP, 0, true), WEB)),
        // Data that looks like the ports of a service.
        (StrayFragment, nothing, write_udp(fragment(VIP, 100, false), DNS)),
        (StrayFragment, nothing, write_tcp(fragment(VIP, 3, true), 40_000, WEB)),
        (NotOurs, nothing, write_tcp(fragment(BARE, 3, true), 40_000, WEB)),
        (
            NoReal,
            |director| director.service(service(key(VIP, WEB, TCP), RingRef::default(), 10..11)),
            tcp(VIP, WEB),
        ),
        (DeadReal, |director| dead::lead(director, Real::DEAD), patched(tcp(VIP, WEB), 47, &[0x10])),
        (
            ConnectionReset,
            |director| dead::lead(director, Real::RESETTING),
            patched(tcp(VIP, WEB), 47, &[0x10]),
        ),
        (NoNeighbour, |director| director.real(10, Real { mac: [0; 6], ..real(1, INGRESS) }), tcp(VIP, WEB)),
        (FragmentationNeeded, |director| tunnel::lead(director, Real::IPIP), web_of(1481, true)),
        (TooBig, |director| tunnel::lead(director, Real::IPIP), web_of(1481, false)),
        (
            NatReply,
            |director| {
                nat::lead(director);
                director.run(&nat::tcp_from(nat::NEIGHBOUR));
            },
            nat::answer_to(nat::NEIGHBOUR),
        ),
        (NatReplyRedirected, nat::lead, nat::answer_to(CLIENT)),
        (TimeExceeded, nat::lead, nat::with_ttl(web_of(56, false), 1)),
        (TtlEnded, nat::lead, nat::with_ttl(web_of(55, false), 1)),
        (NoRoute, nat::lead, nat::answer_to(nat::NOWHERE)),
        (
            UnknownNatFlow,
            |director| {
                nat::lead(director);
                nat::share(director);
            },
            nat::answer_to(CLIENT),
        ),
        (
            NotForwarding,
            |director| {
                nat::lead(director);
                nat::forward(false);
            },
            nat::answer_to(CLIENT),
        ),
        (
            NoHeadroom,
            |director| {
                tunnel::lead(director, Real::IPIP);
                director.headroom(16);
            },
            tcp(VIP, WEB),
        ),
        (BadTable, |director| tunnel::lead(director, 200), tcp(VIP, WEB)),
        (
            BadTable,
            |director| director.service(service(key(VIP, WEB, TCP), RingRef { chunk: 0, length: 1 }, 10..10)),
            tcp(VIP, WEB),
        ),
        (
            BadTable,
            |director| {
                let beyond = RingRef { chunk: maps::RING_CHUNKS, length: 1 };
                director.service(service(key(VIP, WEB, TCP), beyond, 10..11));
            },
            tcp(VIP, WEB),
        ),
        (
            BadTable,
            |director| {
                let ring = RingRef { chunk: 0, length: 1 };
                director.service(service(key(VIP, WEB, TCP), ring, maps::REAL_SLOTS..maps::REAL_SLOTS + 1));
            },
            tcp(VIP, WEB),
        ),
        (
            BadTable,
            |director| {
                director.vip(VIP, Vip { lease: maps::LEASE_SLOTS, ifindex: INGRESS, ..Vip::default() })
            },
            who_has(VIP),
        ),
    ]
}

fn all_cases() -> Vec<Case> {
    [cases(), ipv6::cases(), services6::cases()].concat()
}

#[test]
fn every_outcome_has_a_frame_that_meets_it() {
    let mut met = HashSet::new();
    for (number, (outcome, change, frame)) in all_cases().into_iter().enumerate() {
        met.insert(outcome);
        let Some(mut director) = director() else { return };
        if outcome == Outcome::NoHeadroom && !director.has_headroom() {
            continue;
        }
        change(&mut director);
        let Verdict { outcome: got, action, frame: out } = director.run(&frame);
        assert_eq!(got, outcome, "case {number}");
        let wanted = match outcome {
            Outcome::Forwarded
            | Outcome::ArpAnswered
            | Outcome::SolicitationAnswered
            | Outcome::EchoAnswered
            | Outcome::NatReply
            | Outcome::ConnectionReset
            | Outcome::TimeExceeded
            | Outcome::FragmentationNeeded => Action::Tx,
            Outcome::Redirected | Outcome::NatReplyRedirected => Action::Redirect,
            Outcome::Local
            | Outcome::NotOurs
            | Outcome::OtherHost
            | Outcome::TruncatedHeader
            | Outcome::BadIpHeader
            | Outcome::StrayFragment
            | Outcome::NotForwarding => Action::Pass,
            _ => Action::Drop,
        };
        assert_eq!(action, wanted, "case {number}, {}", outcome.name());
        if matches!(action, Action::Pass | Action::Drop) {
            assert_eq!(out, frame, "case {number}: {} changed the frame", outcome.name());
        }
    }
    let missing: Vec<_> = Outcome::ALL.iter().filter(|outcome| !met.contains(outcome)).collect();
    assert!(missing.is_empty(), "no frame meets {missing:?}");
}

#[test]
fn direct_routing_changes_nothing_but_the_macs() {
    let Some(director) = director() else { return };
    let frame = tcp(VIP, WEB);
    assert_eq!(director.run(&frame), verdict(Outcome::Forwarded, Action::Tx, routed(&frame, 1)));
    let frame = udp(VIP, DNS);
    assert_eq!(director.run(&frame), verdict(Outcome::Redirected, Action::Redirect, routed(&frame, 2)));
}

#[test]
fn what_is_too_long_for_another_interface_is_told_its_sender_and_not_counted_as_sent() {
    let Some(mut director) = director() else { return };
    director.real(10, Real { mtu: 1000, ..real(1, 77) });
    let kind = etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1000 };
    let long = web_of(1001, true);
    let answer = nat::told(&long, VIP, etherparse::Icmpv4Type::DestinationUnreachable(kind), 68);
    assert_eq!(director.run(&long), verdict(Outcome::FragmentationNeeded, Action::Tx, answer));
    let may_be_cut = web_of(1001, false);
    assert_eq!(director.run(&may_be_cut), verdict(Outcome::TooBig, Action::Drop, may_be_cut.clone()));
    director.real(10, Real { mtu: 1280, ..real(1, 77) });
    for (length, outcome) in [(1281, Outcome::FragmentationNeeded), (1280, Outcome::Redirected)] {
        assert_eq!(director.run(&services6::web_of(length)).outcome, outcome);
    }
    director.real(10, Real { mtu: 1000, ..real(1, 77) });
    assert_eq!(director.counter(10).packets, 1);
    assert_eq!(director.run(&web_of(1000, true)).outcome, Outcome::Redirected);
    // Of the same link all hosts have the same bound.
    director.real(10, Real { mtu: 1000, ..real(1, INGRESS) });
    assert_eq!(director.run(&long).outcome, Outcome::Forwarded);
}

#[test]
fn a_real_server_is_counted_for_by_packets_and_bytes_of_frames() {
    let Some(director) = director() else { return };
    let frame = tcp(VIP, WEB);
    director.run(&frame);
    director.run(&padded(frame.clone()));
    director.run(&tcp(VIP, 81));
    let bytes = (frame.len() + padded(frame).len()) as u64;
    assert_eq!(director.counter(10), Counter { packets: 2, bytes });
    assert_eq!(director.counter(20), Counter::default());
}

#[test]
fn a_backup_forwards_what_reaches_it() {
    let Some(mut director) = director() else { return };
    director.lease(RESIGNED);
    assert_eq!(director.run(&tcp(VIP, WEB)).outcome, Outcome::Forwarded);
}

#[test]
fn packets_with_ip_options_and_padding_are_forwarded() {
    let Some(director) = director() else { return };
    for words in 1..=10 {
        let step = ip(VIP, |header| header.options = vec![1; words * 4].as_slice().try_into().unwrap());
        for frame in [write_tcp(step, 40_000, WEB), padded(udp(VIP, DNS))] {
            let number = if frame[23] == TCP { 1 } else { 2 };
            assert_eq!(director.run(&frame).frame, routed(&frame, number), "{words} words of options");
        }
    }
    // Padding does not count as part of a packet that is too short.
    let stub = padded(raw(ip(VIP, |_| {}), IpNumber::TCP, &tcp(VIP, WEB)[34..53]));
    assert_eq!(director.run(&stub).outcome, Outcome::TruncatedTcp);
}

#[test]
fn a_flow_keeps_to_what_its_scheduler_hashes() {
    const REALS: u32 = 4;
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 8);
    let Some(mut director) = director() else { return };
    let slots: Vec<u16> = (0..251).map(|slot| slot % REALS as u16).collect();
    let ring = director.ring(64, &slots);
    for number in 0..REALS {
        director.real(100 + number, real(number as u8, INGRESS));
    }
    let ports: Vec<u16> = (20_000..20_064).collect();
    let mut reals = |hash, source: Ipv4Addr| -> HashSet<Vec<u8>> {
        let web = service(key(VIP, WEB, TCP), ring, 100..100 + REALS);
        director.service(Service { hash, ..web });
        let frame = |port| write_tcp(ip(VIP, |header| header.source = source.octets()), port, WEB);
        ports.iter().map(|port| director.run(&frame(*port)).frame[..6].to_vec()).collect()
    };
    assert_eq!(reals(Service::HASH_CONNECTION, CLIENT).len(), 4);
    assert_eq!(reals(Service::HASH_SOURCE_PORT, CLIENT).len(), 4);
    assert_eq!(reals(Service::HASH_SOURCE, CLIENT).len(), 1);
    let many = (0..64).flat_map(|host| reals(Service::HASH_SOURCE, Ipv4Addr::new(10, 9, 0, host)));
    assert_eq!(many.collect::<HashSet<_>>().len(), 4);
    let one = reals(Service::HASH_DESTINATION, CLIENT);
    assert_eq!((one.len(), one), (1, reals(Service::HASH_DESTINATION, OTHER)));
}

#[test]
fn a_ring_slot_is_an_index_of_fifteen_bits_into_the_services_reals() {
    let Some(mut director) = director() else { return };
    for entry in [3, 0x8003] {
        director.real(103, real(3, INGRESS));
        // Long enough that its last slots lie in another chunk.
        let ring = director.ring(32, &[entry; 100]);
        director.service(service(key(VIP, WEB, TCP), ring, 100..104));
        for port in 0..100 {
            let frame = tcp_from(port, VIP, WEB);
            assert_eq!(director.run(&frame).frame, routed(&frame, 3));
        }
    }
}

#[test]
fn a_service_is_found_within_two_slots_of_the_live_half() {
    let Some(mut director) = Director::load() else { return };
    let ring = director.ring(0, &[0]);
    director.real(10, real(1, INGRESS));
    director.real(11, real(2, INGRESS));
    let web = |reals| service(key(VIP, WEB, TCP), ring, reals);
    let frame = tcp(VIP, WEB);
    director.service_at(1, 1, web(10..11));
    assert_eq!(director.run(&frame).outcome, Outcome::NotOurs);
    director.table(TableRef { half: 1, ..TABLE });
    assert_eq!(director.run(&frame).frame, routed(&frame, 1));
    director.table(TABLE);
    director.service_at(0, 0, service(key(VIP, 81, TCP), ring, 10..11));
    director.service_at(0, 1, web(11..12));
    assert_eq!(director.run(&frame).frame, routed(&frame, 2));
}

#[test]
fn of_an_address_that_the_table_does_not_have_nothing_else_is_looked_at() {
    let Some(mut director) = director() else { return };
    let frame = tcp(VIP, WEB);
    let (all, others) = (TABLE, TableRef { addresses: AddressFilter::default().with(be(STRANGER)), ..TABLE });
    assert!(!others.addresses.may_have(be(VIP)));
    assert_eq!(director.run(&frame).outcome, Outcome::Forwarded);
    director.table(others);
    // Not even whether it is whole.
    for frame in [frame.clone(), ping(VIP), patched(frame, 14, &[0x44])] {
        assert_eq!(director.run(&frame), verdict(Outcome::NotOurs, Action::Pass, frame.clone()));
    }
    assert_eq!(director.run(&who_has(VIP)).outcome, Outcome::ArpAnswered);
    director.table(all);
    assert_eq!(director.run(&ping(VIP)).outcome, Outcome::EchoAnswered);
}

#[test]
fn a_flip_of_the_ring_moves_the_next_packet() {
    let Some(mut director) = director() else { return };
    director.real(11, real(5, INGRESS));
    let frame = tcp(VIP, WEB);
    assert_eq!(director.run(&frame).frame, routed(&frame, 1));
    let ring = director.ring(7, &[1]);
    director.service(service(key(VIP, WEB, TCP), ring, 10..12));
    assert_eq!(director.run(&frame).frame, routed(&frame, 5));
}

#[test]
fn a_broadcast_to_a_service_is_not_forwarded() {
    let Some(director) = director() else { return };
    for mac in [BROADCAST, [0x01, 0, 0x5e, 0, 0, 18]] {
        for frame in [tcp(VIP, WEB), udp(VIP, DNS), ping(VIP)] {
            let frame = with_destination(frame, mac);
            assert_eq!(director.run(&frame), verdict(Outcome::NotOurs, Action::Pass, frame.clone()));
        }
    }
}

#[test]
fn a_vlan_tag_is_left_to_the_kernel() {
    let Some(director) = director() else { return };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, DIRECTOR_MAC)
        .single_vlan(5.try_into().unwrap())
        .ipv4(CLIENT.octets(), VIP.octets(), 64)
        .tcp(40_000, WEB, 1, 1000)
        .write(&mut frame, &[])
        .unwrap();
    assert_eq!(director.run(&frame), verdict(Outcome::NotOurs, Action::Pass, frame.clone()));
}

#[test]
fn a_flood_of_refused_queries_is_logged_once() {
    let Some(mut director) = director() else { return };
    director.run(&who_has(VIP));
    assert_eq!(director.take_log(), 0);
    director.lease(RESIGNED);
    director.run(&who_has(VIP));
    assert_eq!(director.take_log(), 0, "resigning is no event");
    director.lease(LAPSED);
    director.repeat(&who_has(VIP), 100);
    assert_eq!(director.take_log(), 1);
    director.real(10, Real { mac: [0; 6], ..real(1, INGRESS) });
    director.repeat(&tcp(VIP, WEB), 100);
    assert_eq!(director.take_log(), 1, "another kind of event has its own turn");
    thread::sleep(Duration::from_millis(1100));
    director.run(&who_has(VIP));
    assert_eq!(director.take_log(), 1);
}

#[test]
fn the_log_level_is_kept_to() {
    const ERROR: u8 = 1;
    let Some(director) = Director::load_with_log_level(ERROR) else { return };
    let mut director = master(director);
    director.lease(LAPSED);
    director.run(&who_has(VIP));
    assert_eq!(director.take_log(), 0);
}
