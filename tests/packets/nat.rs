//! Address translation both ways: what is rewritten, what is left alone, and whom a router's errors are told.

use std::{fs, process::Command};

use etherparse::{Icmpv4Type, IpDscp, icmpv4::DestUnreachableHeader, icmpv4::TimeExceededCode};
use lvs_ebpf_common::{Face, Reply, Wanted};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};

use crate::{director::Action, frames::*, *};

/// Port of the real servers.
pub const PORT: u16 = 8080;
pub const REAL: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
/// This node's, towards clients and towards real servers.
const OUTSIDE: &str = "10.0.0.1";
pub const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 254);
/// On the link, but the kernel has not asked for it.
pub const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
/// The routes say that it is not to be reached.
pub const NOWHERE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub const OUTSIDE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x21];

/// Has the master reach its real servers by NAT, on a host with routes that is new each time.
pub fn lead(director: &mut Director) {
    // This test's thread alone goes there; the namespace goes with it.
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for command in [
        "link set lo up",
        "link add outside type veth peer far",
        &format!("link set outside up address {}", text(OUTSIDE_MAC)),
        "link set far up",
        &format!("address add {OUTSIDE}/24 dev outside"),
        &format!("route add unreachable {NOWHERE}"),
        &format!("neighbour add {CLIENT} lladdr {} dev outside", text(CLIENT_MAC)),
    ] {
        assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success(), "ip {command}");
    }
    forward(true);
    director.table(TableRef { translates: true, ..TABLE });
    for (index, real, port) in [(10, real(1, INGRESS), PORT), (20, real(2, 77), DNS)] {
        let translated =
            Real { method: Real::NAT, source: v4(INSIDE), mtu: 1500, port: port.to_be(), ..real };
        director.real(index, translated);
    }
    director.reply(key(REAL, PORT, TCP), Reply { face: face(WEB), real: 10 });
    director.reply(key(Ipv4Addr::new(10, 0, 1, 2), DNS, UDP), Reply { face: face(DNS), real: 20 });
}

/// Another service has real server 1 as well.
pub fn share(director: &mut Director) {
    let shared = Real { method: Real::NAT_SHARED, source: v4(INSIDE), mtu: 1500, ..real(1, INGRESS) };
    director.real(10, Real { port: PORT.to_be(), ..shared });
    director.reply(key(REAL, PORT, TCP), Reply { face: Face::default(), real: 10 });
}

pub fn forward(on: bool) {
    fs::write("/proc/sys/net/ipv4/ip_forward", if on { "1" } else { "0" }).unwrap();
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

pub fn face(port: u16) -> Face {
    Face { address: be(VIP), port: port.to_be(), _pad: 0 }
}

fn director_with_nat() -> Option<Director> {
    let mut director = director()?;
    lead(&mut director);
    Some(director)
}

/// A frame of the test's choice, with checksums as etherparse has them.
struct Frame {
    macs: ([u8; 6], [u8; 6]),
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    ttl: u8,
    options: usize,
    length: usize,
}

impl Frame {
    fn request() -> Self {
        let macs = (CLIENT_MAC, DIRECTOR_MAC);
        Self { macs, from: (CLIENT, 40_000), to: (VIP, WEB), ttl: 61, options: 0, length: 5 }
    }

    fn translated_request() -> Self {
        Self { macs: (DIRECTOR_MAC, mac_of(1)), to: (REAL, PORT), ttl: 60, ..Self::request() }
    }

    fn answer() -> Self {
        let macs = (mac_of(1), DIRECTOR_MAC);
        Self { macs, from: (REAL, PORT), to: (CLIENT, 40_000), ttl: 64, options: 0, length: 5 }
    }

    fn translated_answer() -> Self {
        Self { macs: (OUTSIDE_MAC, CLIENT_MAC), from: (VIP, WEB), ttl: 63, ..Self::answer() }
    }

    fn step(&self, protocol: IpNumber) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        let (from, to) = (self.from.0.octets(), self.to.0.octets());
        let mut header = etherparse::Ipv4Header::new(0, self.ttl, protocol, from, to).unwrap();
        header.options = vec![1; self.options * 4].as_slice().try_into().unwrap();
        let headers = etherparse::IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default());
        PacketBuilder::ethernet2(self.macs.0, self.macs.1).ip(headers)
    }

    fn tcp(&self) -> Vec<u8> {
        self.tcp_with(|step| step.ack(7))
    }

    fn tcp_with(
        &self,
        flags: impl FnOnce(
            etherparse::PacketBuilderStep<etherparse::TcpHeader>,
        ) -> etherparse::PacketBuilderStep<etherparse::TcpHeader>,
    ) -> Vec<u8> {
        let mut frame = Vec::new();
        let step = self.step(IpNumber::TCP).tcp(self.from.1, self.to.1, 1, 64_000);
        flags(step).write(&mut frame, &vec![7; self.length]).unwrap();
        frame
    }

    fn udp(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        let step = self.step(IpNumber::UDP).udp(self.from.1, self.to.1);
        step.write(&mut frame, &vec![7; self.length]).unwrap();
        frame
    }
}

/// To the web service.
pub fn tcp_from(client: Ipv4Addr) -> Vec<u8> {
    Frame { from: (client, 40_000), ..Frame::request() }.tcp()
}

/// Of real server 1.
pub fn answer_to(client: Ipv4Addr) -> Vec<u8> {
    Frame { to: (client, 40_000), ..Frame::answer() }.tcp()
}

pub fn first_fragment_of_an_answer() -> Vec<u8> {
    // More fragments.
    with_ttl(patched(Frame::answer().tcp(), 20, &[0x20, 0]), 64)
}

pub fn with_ttl(mut frame: Vec<u8>, ttl: u8) -> Vec<u8> {
    frame[22] = ttl;
    let header = etherparse::Ipv4Header::from_slice(&frame[14..]).unwrap().0;
    frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    frame
}

/// The real server of DNS, its client's query and its answer.
fn dns(answer: bool, translated: bool) -> Frame {
    let real = (Ipv4Addr::new(10, 0, 1, 2), DNS);
    match (answer, translated) {
        (false, false) => Frame { to: (VIP, DNS), ..Frame::request() },
        (false, true) => Frame { to: real, macs: (DIRECTOR_MAC, mac_of(2)), ..Frame::translated_request() },
        (true, false) => Frame { from: real, macs: (mac_of(2), DIRECTOR_MAC), ..Frame::answer() },
        (true, true) => Frame { from: (VIP, DNS), ..Frame::translated_answer() },
    }
}

#[test]
fn a_packet_and_its_answer_are_as_if_written_anew_with_other_addresses_and_ports() {
    let Some(director) = director_with_nat() else { return };
    for (options, length) in [(0, 0), (0, 1), (1, 5), (10, 1000), (0, 1460)] {
        let with = |frame: Frame| Frame { options, length: length.min(1460 - options * 4), ..frame };
        let sent = verdict(Outcome::Forwarded, Action::Tx, with(Frame::translated_request()).tcp());
        assert_eq!(director.run(&with(Frame::request()).tcp()), sent, "{options} {length}");
        let answered =
            verdict(Outcome::NatReplyRedirected, Action::Redirect, with(Frame::translated_answer()).tcp());
        assert_eq!(director.run(&with(Frame::answer()).tcp()), answered, "{options} {length}");
        let query = with(dns(false, false)).udp();
        let sent = verdict(Outcome::Redirected, Action::Redirect, with(dns(false, true)).udp());
        assert_eq!(director.run(&query), sent, "{options} {length}");
        let answered = verdict(Outcome::NatReplyRedirected, Action::Redirect, with(dns(true, true)).udp());
        assert_eq!(director.run(&with(dns(true, false)).udp()), answered, "{options} {length}");
    }
    let padded_request = padded(Frame { length: 0, ..Frame::request() }.tcp());
    let out = director.run(&padded_request).frame;
    let translated = Frame { length: 0, ..Frame::translated_request() }.tcp();
    assert_eq!((&out[..54], &out[54..]), (&translated[..], &padded_request[54..]));
}

#[test]
fn a_udp_checksum_that_comes_out_as_none_is_sent_as_its_other_zero() {
    let Some(director) = director_with_nat() else { return };
    let with = |frame: Frame, port| Frame { from: (CLIENT, port), ..frame }.udp();
    // The sum counts the port, so the checksum of port 0 is the port whose checksum is zero.
    let none = with(dns(false, true), 0);
    let port = u16::from_be_bytes([none[40], none[41]]);
    let out = director.run(&with(dns(false, false), port)).frame;
    assert_eq!((&out[40..42], &out), (&[0xff; 2][..], &with(dns(false, true), port)));
    for port in (0..=u16::MAX).step_by(997) {
        assert_eq!(director.run_uncounted(&with(dns(false, false), port)).1, with(dns(false, true), port));
    }
}

#[test]
fn a_checksum_that_is_not_there_or_wrong_stays_so() {
    let Some(director) = director_with_nat() else { return };
    let without = |frame: Vec<u8>| patched(frame, 40, &[0, 0]);
    assert_eq!(director.run(&without(dns(false, false).udp())).frame, without(dns(false, true).udp()));
    assert_eq!(director.run(&without(dns(true, false).udp())).frame, without(dns(true, true).udp()));
    let sum = |frame: &[u8]| u32::from(frame[50]) << 8 | u32::from(frame[51]);
    let wrong = patched(Frame::request().tcp(), 50, &[0x12, 0x34]);
    let out = director.run(&wrong).frame;
    let error = |got: &[u8], right: &[u8]| (sum(got) + 0xffff - sum(right)) % 0xffff;
    let (request, translated) = (Frame::request().tcp(), Frame::translated_request().tcp());
    assert_eq!(error(&out, &translated), error(&wrong, &request));
}

#[test]
fn what_a_real_server_begins_itself_is_left_alone() {
    let Some(director) = director_with_nat() else { return };
    let own = Frame { to: (NEIGHBOUR, 25), ..Frame::answer() };
    let passed = |frame: &[u8]| verdict(Outcome::NotOurs, Action::Pass, frame.to_vec());
    for frame in [own.tcp_with(|step| step.syn()), own.tcp(), dns(true, false).udp()] {
        assert_eq!(director.run(&frame), passed(&frame));
    }
    // From another port than its service's it is nobody's answer.
    let other = Frame { from: (REAL, PORT + 1), ..Frame::answer() }.tcp();
    assert_eq!(director.run(&other), passed(&other));
    // A SYN with ACK is an answer.
    let accepted = Frame::answer().tcp_with(|step| step.syn().ack(2));
    assert_eq!(director.run(&accepted).outcome, Outcome::NatReplyRedirected);
}

#[test]
fn who_talks_to_the_real_server_itself_is_answered_by_it() {
    let Some(director) = director_with_nat() else { return };
    let direct = Frame { to: (REAL, PORT), ..Frame::request() }.tcp();
    assert_eq!(director.run(&direct), verdict(Outcome::NotOurs, Action::Pass, direct.clone()));
    let answer = Frame::answer().tcp();
    assert_eq!(director.run(&answer), verdict(Outcome::NotOurs, Action::Pass, answer.clone()));
    let other = Frame { to: (CLIENT, 40_001), ..Frame::answer() }.tcp();
    assert_eq!(director.run(&other).outcome, Outcome::NatReplyRedirected);
}

#[test]
fn who_has_talked_to_the_real_server_itself_can_talk_to_the_service_from_the_same_port() {
    let Some(director) = director_with_nat() else { return };
    assert_eq!(director.run(&Frame { to: (REAL, PORT), ..Frame::request() }.tcp()).outcome, Outcome::NotOurs);
    assert_eq!(director.run(&Frame::answer().tcp()).outcome, Outcome::NotOurs);
    director.run(&Frame::request().tcp());
    assert_eq!(director.run(&Frame::answer().tcp()).outcome, Outcome::NatReplyRedirected);
}

#[test]
fn an_answer_to_this_node_itself_is_the_kernels() {
    let Some(mut director) = director_with_nat() else { return };
    let check = answer_to(OUTSIDE.parse().unwrap());
    assert_eq!(director.run(&check), verdict(Outcome::NotOurs, Action::Pass, check.clone()));
    share(&mut director);
    assert_eq!(director.run(&check), verdict(Outcome::NotOurs, Action::Pass, check.clone()));
}

#[test]
fn flows_of_services_that_share_a_real_server_are_told_apart() {
    let Some(mut director) = director_with_nat() else { return };
    share(&mut director);
    let from = |service, port| Frame { from: (CLIENT, port), to: (service, WEB), ..Frame::request() };
    for (service, port) in [(VIP, 1), (BARE, 2)] {
        let answer = Frame { to: (CLIENT, port), ..Frame::answer() }.tcp();
        assert_eq!(director.run(&answer).outcome, Outcome::UnknownNatFlow);
        director.run(&from(service, port).tcp());
        let wanted = Frame { from: (service, WEB), to: (CLIENT, port), ..Frame::translated_answer() };
        assert_eq!(director.run(&answer).frame, wanted.tcp());
    }
}

#[test]
fn by_a_service_of_all_ports_a_packet_keeps_its_port_both_ways() {
    let Some(mut director) = director_with_nat() else { return };
    director.table(TableRef { translates: true, has_all_ports: true, ..TABLE });
    let all = Real { method: Real::NAT_SHARED, source: v4(INSIDE), mtu: 1500, ..real(1, INGRESS) };
    director.real(30, all);
    let ring = director.ring(0, &[0]);
    for protocol in [TCP, UDP] {
        director.service(service(key(STRANGER, 0, protocol), ring, 30..31));
        director.reply(key(REAL, 0, protocol), Reply { face: Face::default(), real: 30 });
    }
    let to = |port| Frame { to: (STRANGER, port), ..Frame::request() };
    let answer = |port| Frame { from: (REAL, port), ..Frame::answer() };
    for port in [21, 2121] {
        let passed = verdict(Outcome::NotOurs, Action::Pass, answer(port).tcp());
        assert_eq!(director.run(&answer(port).tcp()), passed, "nobody is known to have asked");
        let sent = Frame { to: (REAL, port), ..Frame::translated_request() };
        let back = Frame { from: (STRANGER, port), ..Frame::translated_answer() };
        for write in [Frame::tcp, Frame::udp] {
            assert_eq!(
                director.run(&write(&to(port))),
                verdict(Outcome::Forwarded, Action::Tx, write(&sent))
            );
            let answered = verdict(Outcome::NatReplyRedirected, Action::Redirect, write(&back));
            assert_eq!(director.run(&write(&answer(port))), answered);
        }
    }
    // The service that has a port alone has its answers.
    assert_eq!(director.run(&Frame::answer().tcp()).frame, Frame::translated_answer().tcp());
    let own = Frame { from: (REAL, 7), ..Frame::answer() }.tcp_with(|step| step.syn());
    assert_eq!(director.run(&own).outcome, Outcome::NotOurs);
}

#[test]
fn a_client_whose_neighbour_entry_is_missing_gets_its_answers_where_it_sent_from() {
    let Some(director) = director_with_nat() else { return };
    let answer = answer_to(NEIGHBOUR);
    assert_eq!(director.run(&answer), verdict(Outcome::NoNeighbour, Action::Drop, answer.clone()));
    let wanted = Wanted { address: be(NEIGHBOUR), ifindex: if_nametoindex("outside").unwrap() };
    assert_eq!(director.wanted(), [wanted]);
    director
        .run(&Frame { from: (NEIGHBOUR, 40_000), macs: (OTHER_MAC, DIRECTOR_MAC), ..Frame::request() }.tcp());
    let back =
        Frame { to: (NEIGHBOUR, 40_000), macs: (DIRECTOR_MAC, OTHER_MAC), ..Frame::translated_answer() };
    assert_eq!(director.run(&answer), verdict(Outcome::NatReply, Action::Tx, back.tcp()));
}

#[test]
fn a_frame_for_another_hosts_mac_is_not_translated() {
    let Some(director) = director_with_nat() else { return };
    for frame in [Frame::request().tcp(), Frame::answer().tcp()] {
        let frame = with_destination(frame, OTHER_MAC);
        assert_eq!(director.run(&frame), verdict(Outcome::OtherHost, Action::Pass, frame.clone()));
    }
}

/// What the sender of `frame` is told.
pub fn told(frame: &[u8], from: Ipv4Addr, kind: Icmpv4Type, excerpt: usize) -> Vec<u8> {
    let to = Ipv4Addr::new(frame[26], frame[27], frame[28], frame[29]);
    let mut header = etherparse::Ipv4Header::new(0, 64, IpNumber::ICMP, from.octets(), to.octets()).unwrap();
    header.dscp = IpDscp::try_new(0xc0 >> 2).unwrap();
    let headers = etherparse::IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default());
    let mut answer = Vec::new();
    PacketBuilder::ethernet2(DIRECTOR_MAC, frame[6..12].try_into().unwrap())
        .ip(headers)
        .icmpv4(kind)
        .write(&mut answer, &frame[14..14 + excerpt])
        .unwrap();
    answer
}

#[test]
fn a_ttl_that_ends_here_is_told_both_ways() {
    let Some(director) = director_with_nat() else { return };
    let exceeded = Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit);
    for (frame, from) in [(Frame::request(), VIP), (Frame::answer(), INSIDE)] {
        let frame = Frame { ttl: 1, length: 16, ..frame };
        let answer = told(&frame.tcp(), from, exceeded.clone(), 28);
        assert_eq!(director.run(&frame.tcp()), verdict(Outcome::TimeExceeded, Action::Tx, answer));
        for small in [Frame { length: 15, ..frame }, Frame { options: 1, length: 100, ..Frame::request() }] {
            let small = with_ttl(small.tcp(), 1);
            assert_eq!(director.run(&small), verdict(Outcome::TtlEnded, Action::Drop, small.clone()));
        }
        assert_eq!(director.run(&with_ttl(Frame::request().tcp(), 2)).outcome, Outcome::Forwarded);
    }
}

#[test]
fn what_does_not_fit_is_told_both_ways() {
    let Some(mut director) = director_with_nat() else { return };
    let narrow =
        Real { method: Real::NAT, source: v4(INSIDE), mtu: 1000, port: PORT.to_be(), ..real(1, INGRESS) };
    director.real(10, narrow);
    let route = "ip route add 10.0.5.0/24 dev outside mtu lock 900";
    assert!(Command::new("sh").args(["-c", route]).status().unwrap().success());
    let far = (Ipv4Addr::new(10, 0, 5, 5), 40_000);
    for (frame, from, next_hop_mtu) in
        [(Frame::request(), VIP, 1000), (Frame { to: far, ..Frame::answer() }, INSIDE, 900)]
    {
        let frame = Frame { length: usize::from(next_hop_mtu) - 39, ..frame };
        let kind = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
        let answer = told(&frame.tcp(), from, Icmpv4Type::DestinationUnreachable(kind), 68);
        assert_eq!(director.run(&frame.tcp()), verdict(Outcome::FragmentationNeeded, Action::Tx, answer));
        let may_be_cut = patched(frame.tcp(), 20, &[0]);
        assert_eq!(director.run(&may_be_cut), verdict(Outcome::TooBig, Action::Drop, may_be_cut.clone()));
    }
}

#[test]
fn without_forwarding_the_kernel_gets_all_answers() {
    let Some(director) = director_with_nat() else { return };
    forward(false);
    for client in [CLIENT, OUTSIDE.parse().unwrap()] {
        let answer = answer_to(client);
        assert_eq!(director.run(&answer), verdict(Outcome::NotForwarding, Action::Pass, answer.clone()));
    }
}
