//! ICMP errors about balanced flows: they reach the flow's real server, and its errors reach the client.

use etherparse::{
    Icmpv4Type, icmpv4::DestUnreachableHeader, icmpv4::ParameterProblemHeader, icmpv4::TimeExceededCode,
};

use crate::{director::Action, frames::*, *};

/// On the way between clients and the director.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 1);

/// From `from` to `to`, quoting a packet.
fn error(kind: Icmpv4Type, from: Ipv4Addr, to: Ipv4Addr, ttl: u8, quote: &[u8]) -> Vec<u8> {
    let header = etherparse::Ipv4Header::new(0, ttl, IpNumber::ICMP, from.octets(), to.octets()).unwrap();
    let headers = etherparse::IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default());
    let mut frame = Vec::new();
    let step = PacketBuilder::ethernet2(CLIENT_MAC, DIRECTOR_MAC).ip(headers).icmpv4(kind);
    step.write(&mut frame, quote).unwrap();
    frame
}

fn too_big() -> Icmpv4Type {
    Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 })
}

/// The beginning of what `from` sent to the client's port.
fn quote(from: (Ipv4Addr, u16), port: u16, options: usize, protocol: u8) -> Vec<u8> {
    quote_between(from, (CLIENT, port), options, protocol)
}

fn quote_between(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), options: usize, protocol: u8) -> Vec<u8> {
    let number = IpNumber(protocol);
    let mut header = etherparse::Ipv4Header::new(1480, 60, number, from.0.octets(), to.0.octets()).unwrap();
    header.options = vec![1; options * 4].as_slice().try_into().unwrap();
    header.header_checksum = header.calc_header_checksum();
    let mut quote = header.to_bytes().to_vec();
    quote.extend([from.1.to_be_bytes(), to.1.to_be_bytes()].concat());
    quote.extend([1, 2, 3, 4]);
    quote
}

pub fn about(port: u16) -> Vec<u8> {
    about_of(WEB, port, TCP)
}

/// Of the service of that port.
pub fn about_of(service: u16, port: u16, protocol: u8) -> Vec<u8> {
    error(too_big(), ROUTER, VIP, 61, &quote((VIP, service), port, 0, protocol))
}

#[test]
fn an_error_reaches_the_real_server_of_its_flow() {
    const REALS: u32 = 4;
    let Some(mut director) = director() else { return };
    let slots: Vec<u16> = (0..251).map(|slot| slot % REALS as u16).collect();
    let ring = director.ring(64, &slots);
    (0..REALS).for_each(|number| director.real(100 + number, real(number as u8, INGRESS)));
    director.service(service(key(VIP, WEB, TCP), ring, 100..100 + REALS));
    let mut met = HashSet::new();
    for port in 1..64 {
        let number = director.run(&tcp_from(port, VIP, WEB)).frame[5];
        met.insert(number);
        let kinds = [
            too_big(),
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host),
            Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
            Icmpv4Type::ParameterProblem(ParameterProblemHeader::PointerIndicatesError(1)),
        ];
        for kind in kinds {
            for options in [0, 1, 10] {
                let frame = error(kind.clone(), ROUTER, VIP, 61, &quote((VIP, WEB), port, options, TCP));
                let sent = verdict(Outcome::Forwarded, Action::Tx, routed(&frame, number));
                assert_eq!(director.run(&frame), sent, "{kind:?} {options}");
            }
        }
    }
    assert_eq!(met.len(), REALS as usize);
    let frame = error(too_big(), ROUTER, VIP, 61, &quote((VIP, DNS), 1, 0, UDP));
    assert_eq!(director.run(&frame), verdict(Outcome::Redirected, Action::Redirect, routed(&frame, 2)));
}

#[test]
fn an_error_about_nothing_of_ours_is_the_kernels() {
    let Some(director) = director() else { return };
    let of = |quote: &[u8]| error(too_big(), ROUTER, VIP, 61, quote);
    let good = quote((VIP, WEB), 7, 0, TCP);
    assert_eq!(director.run(&of(&good)).outcome, Outcome::Forwarded);
    let redirect = patched(of(&good), 34, &[5]);
    let quench = patched(of(&good), 34, &[4]);
    let frames = [
        of(&quote((VIP, 81), 7, 0, TCP)),
        of(&quote((VIP, WEB), 7, 0, 47)),
        of(&quote((BARE, WEB), 7, 0, TCP)),
        of(&good[..23]),
        of(&good[..8]),
        of(&patched(good.clone(), 6, &[0, 1])),
        of(&patched(good.clone(), 0, &[0x65])),
        of(&patched(good.clone(), 0, &[0x44])),
        of(&patched(good, 0, &[0x4f])),
        redirect,
        quench,
    ];
    for (number, frame) in frames.iter().enumerate() {
        assert_eq!(director.run(frame), verdict(Outcome::NotOurs, Action::Pass, frame.clone()), "{number}");
    }
}

#[test]
fn an_error_goes_through_the_real_servers_tunnel_and_causes_no_other() {
    let Some(mut director) = director() else { return };
    tunnel::lead(&mut director, Real::IPIP);
    let frame = about(7);
    let out = director.run(&frame);
    assert_eq!((out.outcome, &out.frame[34..]), (Outcome::Forwarded, &frame[14..]));
    let large = error(too_big(), ROUTER, VIP, 61, &[quote((VIP, WEB), 7, 0, TCP), vec![0; 1440]].concat());
    let large = patched(large, 20, &[0x40]);
    assert_eq!(director.run(&large), verdict(Outcome::TooBig, Action::Drop, large.clone()));
}

#[test]
fn an_error_to_a_real_server_by_nat_quotes_what_that_one_sent() {
    let Some(mut director) = director() else { return };
    nat::lead(&mut director);
    for options in [0, 3] {
        let frame = error(too_big(), ROUTER, VIP, 61, &quote((VIP, WEB), 7, options, TCP));
        let sent = error(too_big(), ROUTER, nat::REAL, 60, &quote((nat::REAL, nat::PORT), 7, options, TCP));
        assert_eq!(director.run(&frame), verdict(Outcome::Forwarded, Action::Tx, routed(&sent, 1)));
    }
    let ended = error(too_big(), ROUTER, VIP, 1, &quote((VIP, WEB), 7, 0, TCP));
    assert_eq!(director.run(&ended), verdict(Outcome::TtlEnded, Action::Drop, ended.clone()));
}

#[test]
fn an_error_of_a_real_server_by_nat_is_its_services() {
    let Some(mut director) = director() else { return };
    nat::lead(&mut director);
    let closed = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
    let between = |to| quote_between((CLIENT, 40_000), to, 0, TCP);
    let frame = error(closed.clone(), nat::REAL, CLIENT, 64, &between((nat::REAL, nat::PORT)));
    let mut told = error(closed.clone(), VIP, CLIENT, 63, &between((VIP, WEB)));
    told[..6].copy_from_slice(&CLIENT_MAC);
    told[6..12].copy_from_slice(&nat::OUTSIDE_MAC);
    assert_eq!(director.run(&frame), verdict(Outcome::NatReplyRedirected, Action::Redirect, told));
    let flooded = with_destination(frame, OTHER_MAC);
    assert_eq!(director.run(&flooded), verdict(Outcome::OtherHost, Action::Pass, flooded.clone()));
    // About a flow that no service has, or to somebody else than the flow's client.
    for frame in [
        error(closed.clone(), nat::REAL, CLIENT, 64, &between((nat::REAL, nat::PORT + 1))),
        error(closed, nat::REAL, STRANGER, 64, &between((nat::REAL, nat::PORT))),
    ] {
        assert_eq!(director.run(&frame), verdict(Outcome::NotOurs, Action::Pass, frame.clone()));
    }
}

#[test]
fn an_error_leaves_no_trace_in_the_flow_table() {
    let Some(mut director) = director() else { return };
    let ring = director.ring(64, &[1 | maps::MOVED]);
    (0..2).for_each(|number| {
        director.real(100 + number, Real { state: Real::ALIVE, ..real(number as u8, INGRESS) });
    });
    let web = service(key(VIP, WEB, TCP), ring, 100..102);
    director.service(Service { takes_turns: Service::REMEMBERED, ..web });
    assert_eq!(director.run(&about(7)).frame[5], 1);
    assert!(director.flow_sets().iter().all(|set| *set == Default::default()));
}
