//! What becomes of IPv6: neighbour solicitations and pings for a virtual address, under the lease and without.

use std::net::Ipv6Addr;

use etherparse::{IpHeaders, IpNumber, Ipv6Extensions, Ipv6Header, PacketBuilder, PacketBuilderStep};

use super::*;

pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7);
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x77, 0x100);
const STRANGER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x200);
const NOBODY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
/// ff02::1:ff77:100 and its MAC.
const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff77, 0x100);
const GROUP_MAC: [u8; 6] = [0x33, 0x33, 0xff, 0x77, 0x01, 0x00];
const ALL_NODES: (Ipv6Addr, [u8; 6]) = (Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), [0x33, 0x33, 0, 0, 0, 1]);
const SOURCE_MAC: [u8; 8] = [1, 1, 0x02, 0, 0, 0, 0, 0x07];
/// RFC 7527: what Linux puts into a probe.
const NONCE: [u8; 8] = [14, 1, 1, 2, 3, 4, 5, 6];

pub fn ip6(
    macs: ([u8; 6], [u8; 6]),
    (source, destination): (Ipv6Addr, Ipv6Addr),
    hop_limit: u8,
) -> PacketBuilderStep<IpHeaders> {
    let header = Ipv6Header {
        hop_limit,
        source: source.octets(),
        destination: destination.octets(),
        ..Ipv6Header::default()
    };
    PacketBuilder::ethernet2(macs.0, macs.1).ip(IpHeaders::Ipv6(header, Ipv6Extensions::default()))
}

fn icmp6(step: PacketBuilderStep<IpHeaders>, kind: u8, code: u8, word: u32, rest: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    step.icmpv6_raw(kind, code, word.to_be_bytes()).write(&mut frame, rest).unwrap();
    frame
}

fn solicitation_by(step: PacketBuilderStep<IpHeaders>, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    icmp6(step, 135, 0, 0, &[&target.octets(), options].concat())
}

fn solicitation(source: Ipv6Addr, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    solicitation_by(ip6((CLIENT_MAC, GROUP_MAC), (source, GROUP), 255), target, options)
}

/// The client, by multicast.
pub fn who_has6(target: Ipv6Addr) -> Vec<u8> {
    solicitation(CLIENT6, target, &SOURCE_MAC)
}

fn advertisement(to: (Ipv6Addr, [u8; 6]), flags: u32) -> Vec<u8> {
    let step = ip6((DIRECTOR_MAC, to.1), (VIP6, to.0), 255);
    let option = [&[2, 1][..], &DIRECTOR_MAC].concat();
    icmp6(step, 136, 0, flags << 29, &[&VIP6.octets()[..], &option].concat())
}

pub fn ping6(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    icmp6(ip6((CLIENT_MAC, DIRECTOR_MAC), (source, destination), 61), 128, 0, 0x0009_0001, b"abcdefghi")
}

fn pong6() -> Vec<u8> {
    icmp6(ip6((DIRECTOR_MAC, CLIENT_MAC), (VIP6, CLIENT6), 64), 129, 0, 0x0009_0001, b"abcdefghi")
}

/// With an extension header of eight bytes of each of these kinds before its payload.
pub fn extended(frame: &[u8], kinds: &[u8]) -> Vec<u8> {
    const FRAGMENT: u8 = 44;
    let (headers, payload) = frame.split_at(14 + 40);
    let mut out = headers.to_vec();
    let chain: Vec<u8> = kinds.iter().copied().chain([frame[20]]).collect();
    out[20] = chain[0];
    for link in chain.windows(2) {
        // Of a whole packet, or with padding as its only option.
        let rest = if link[0] == FRAGMENT { [0; 6] } else { [1, 4, 0, 0, 0, 0] };
        out.extend([link[1], 0]);
        out.extend(rest);
    }
    out.extend(payload);
    let length = (out.len() - 54) as u16;
    out[18..20].copy_from_slice(&length.to_be_bytes());
    out
}

pub fn cases() -> Vec<Case> {
    use Outcome::*;
    fn nothing(_: &mut Director) {}
    let resign = |director: &mut Director| director.lease(RESIGNED);
    vec![
        (SolicitationAnswered, nothing, who_has6(VIP6)),
        (EchoAnswered, nothing, ping6(CLIENT6, VIP6)),
        (SolicitedWithoutLease, resign, who_has6(VIP6)),
        (EchoWithoutLease, resign, ping6(CLIENT6, VIP6)),
        (NotOurs, nothing, who_has6(STRANGER6)),
        (NotOurs, nothing, ping6(CLIENT6, STRANGER6)),
        (NotOurs, nothing, pong6()),
        (OtherHost, nothing, with_destination(who_has6(VIP6), OTHER_MAC)),
        (OtherHost, nothing, with_destination(ping6(CLIENT6, VIP6), OTHER_MAC)),
        (TruncatedHeader, nothing, who_has6(VIP6)[..53].to_vec()),
        (BadIpHeader, nothing, patched(who_has6(VIP6), 14, &[0x45])),
        (BadIpHeader, nothing, patched(who_has6(VIP6), 18, &[0, 33])),
        (ExtensionHeaders, nothing, extended(&who_has6(VIP6), &[0, 60, 60, 60, 60])),
        (ExtensionHeaders, nothing, extended(&ping6(CLIENT6, VIP6), &[0, 60, 60, 60, 60])),
        (NotOurs, nothing, extended(&ping6(CLIENT6, STRANGER6), &[0, 60, 60, 60, 60])),
        (
            BadTable,
            |director| {
                director.vip6(VIP6, Vip { lease: maps::LEASE_SLOTS, ifindex: INGRESS, ..Vip::default() })
            },
            who_has6(VIP6),
        ),
    ]
}

#[test]
fn a_solicitation_is_answered_under_the_lease_with_the_mac_of_the_address() {
    let Some(director) = director() else { return };
    let answer =
        verdict(Outcome::SolicitationAnswered, Action::Tx, advertisement((CLIENT6, CLIENT_MAC), 0b011));
    assert_eq!(director.run(&who_has6(VIP6)), answer);
    // A neighbour that renews its entry asks by unicast, and need not say where it is.
    for options in [&SOURCE_MAC[..], &[]] {
        let step = ip6((CLIENT_MAC, DIRECTOR_MAC), (CLIENT6, VIP6), 255);
        assert_eq!(director.run(&solicitation_by(step, VIP6, options)), answer);
    }
    // The sender's own option counts, not the frame; what is not known is passed over.
    let relayed = patched(who_has6(VIP6), 6, &OTHER_MAC);
    assert_eq!(director.run(&relayed), answer);
    assert_eq!(director.run(&padded(who_has6(VIP6))), answer);
    assert_eq!(director.run(&solicitation(CLIENT6, VIP6, &[&NONCE[..], &SOURCE_MAC].concat())), answer);
}

#[test]
fn a_router_says_that_it_is_one() {
    let Some(mut director) = director() else { return };
    let vip = Vip {
        lease: LEASE,
        ifindex: INGRESS,
        mac: DIRECTOR_MAC,
        answers: DIRECTOR_MAC,
        flags: Vip::ROUTER,
        ..Vip::default()
    };
    director.vip6(VIP6, vip);
    assert_eq!(director.run(&who_has6(VIP6)).frame, advertisement((CLIENT6, CLIENT_MAC), 0b111));
}

#[test]
fn a_probe_for_a_duplicate_is_answered_to_all_nodes() {
    let Some(director) = director() else { return };
    let defence = verdict(Outcome::SolicitationAnswered, Action::Tx, advertisement(ALL_NODES, 0b001));
    // With the nonce of Linux and without: then the answer is longer than the question.
    assert_eq!(director.run(&solicitation(NOBODY, VIP6, &NONCE)), defence);
    assert_eq!(director.run(&solicitation(NOBODY, VIP6, &[])), defence);
}

#[test]
fn a_solicitation_is_dropped_while_the_lease_is_resigned_or_lapsed() {
    let Some(mut director) = director() else { return };
    let hop_limit = patched(who_has6(VIP6), 21, &[64]);
    for until in [RESIGNED, LAPSED] {
        director.lease(until);
        for frame in [
            who_has6(VIP6),
            solicitation(NOBODY, VIP6, &NONCE),
            extended(&who_has6(VIP6), &[60, 44]),
            padded(who_has6(VIP6)),
            hop_limit.clone(),
        ] {
            let refused = verdict(Outcome::SolicitedWithoutLease, Action::Drop, frame.clone());
            assert_eq!(director.run(&frame), refused);
        }
    }
}

#[test]
fn a_solicitation_that_is_not_plain_or_not_valid_is_the_kernels_under_the_lease() {
    let Some(mut director) = director() else { return };
    let step = |hop_limit| ip6((CLIENT_MAC, GROUP_MAC), (CLIENT6, GROUP), hop_limit);
    let to = |address| ip6((CLIENT_MAC, GROUP_MAC), (CLIENT6, address), 255);
    let target = VIP6.octets();
    let unicast_probe = ip6((CLIENT_MAC, DIRECTOR_MAC), (NOBODY, VIP6), 255);
    let frames = [
        ("routed", solicitation_by(step(254), VIP6, &SOURCE_MAC)),
        ("code", icmp6(step(255), 135, 1, 0, &target)),
        ("checksum", patched(who_has6(VIP6), 56, &[0x12, 0x34])),
        ("option of length 0", solicitation(CLIENT6, VIP6, &[1, 0, 2, 0, 0, 0, 0, 7])),
        ("option beyond the end", solicitation(CLIENT6, VIP6, &[1, 2, 2, 0, 0, 0, 0, 7])),
        ("half an option", solicitation(CLIENT6, VIP6, &[1, 1, 2, 0])),
        ("three options", solicitation(CLIENT6, VIP6, &[NONCE, NONCE, SOURCE_MAC].concat())),
        ("probe with an address", solicitation(NOBODY, VIP6, &SOURCE_MAC)),
        ("probe by unicast", solicitation_by(unicast_probe, VIP6, &NONCE)),
        ("to all nodes", solicitation_by(to(ALL_NODES.0), VIP6, &SOURCE_MAC)),
        ("from the address itself", solicitation(VIP6, VIP6, &SOURCE_MAC)),
        ("from a group", solicitation(ALL_NODES.0, VIP6, &SOURCE_MAC)),
        ("of no single sender", solicitation(CLIENT6, VIP6, &[1, 1, 3, 0, 0, 0, 0, 7])),
        ("of no sender", solicitation(CLIENT6, VIP6, &[1, 1, 0, 0, 0, 0, 0, 0])),
        ("extended", extended(&who_has6(VIP6), &[60])),
    ];
    for (what, frame) in &frames {
        director.lease(HELD);
        assert_eq!(director.run(frame), verdict(Outcome::NotOurs, Action::Pass, frame.clone()), "{what}");
        director.lease(RESIGNED);
        assert_eq!(director.run(frame).outcome, Outcome::SolicitedWithoutLease, "{what}");
    }
}

#[test]
fn a_solicitation_on_another_interface_is_the_kernels_under_the_lease_and_nobodys_without() {
    let Some(mut director) = director() else { return };
    director
        .vip6(VIP6, Vip { lease: LEASE, ifindex: 77, mac: OTHER_MAC, answers: OTHER_MAC, ..Vip::default() });
    assert_eq!(director.run(&who_has6(VIP6)), verdict(Outcome::NotOurs, Action::Pass, who_has6(VIP6)));
    director.lease(RESIGNED);
    assert_eq!(director.run(&who_has6(VIP6)).outcome, Outcome::SolicitedWithoutLease);
}

#[test]
fn advertisements_of_others_reach_the_kernel() {
    let Some(director) = director() else { return };
    let step = ip6((OTHER_MAC, ALL_NODES.1), (VIP6, ALL_NODES.0), 255);
    let claim = icmp6(step, 136, 0, 1 << 29, &[&VIP6.octets()[..], &[2, 1], &OTHER_MAC].concat());
    assert_eq!(director.run(&claim), verdict(Outcome::NotOurs, Action::Pass, claim.clone()));
}

#[test]
fn a_claim_of_our_ipv6_address_by_another_mac_is_told_while_we_hold_the_lease() {
    let Some(mut director) = director() else { return };
    let by = |mac, source, hop_limit| ip6((mac, ALL_NODES.1), (source, ALL_NODES.0), hop_limit);
    let at = |kind: u8, mac: [u8; 6]| [&[kind, 1][..], &mac].concat();
    let says = |step, option: &[u8]| icmp6(step, 136, 0, 1 << 29, &[&VIP6.octets()[..], option].concat());
    let claims = [
        says(by(OTHER_MAC, VIP6, 255), &at(2, OTHER_MAC)),
        // Where packets would go counts, not who says so.
        says(by(CLIENT_MAC, CLIENT6, 255), &at(2, OTHER_MAC)),
        solicitation_by(by(OTHER_MAC, VIP6, 255), STRANGER6, &at(1, OTHER_MAC)),
    ];
    for until in [RESIGNED, LAPSED] {
        director.lease(until);
        claims.iter().for_each(|frame| drop(director.run(frame)));
    }
    director.lease(HELD);
    for frame in [
        advertisement(ALL_NODES, 0b001),
        who_has6(VIP6),
        solicitation(NOBODY, VIP6, &NONCE),
        says(by(OTHER_MAC, VIP6, 254), &at(2, OTHER_MAC)),
        extended(&claims[0], &[60]),
        icmp6(by(OTHER_MAC, VIP6, 255), 136, 0, 0, &VIP6.octets()[..15]),
        says(by(OTHER_MAC, VIP6, 255), &[]),
        says(by(OTHER_MAC, VIP6, 255), &at(1, OTHER_MAC)),
    ] {
        director.run(&frame);
    }
    assert_eq!(director.take_claims(), [], "nobody contradicts us");

    let address = VIP6.octets();
    let told = Claim { address, lease: LEASE, ifindex: INGRESS, mac: OTHER_MAC, ..Claim::default() };
    for frame in &claims {
        director.run(frame);
        director.run(frame);
        assert_eq!(director.take_claims(), [told]);
        thread::sleep(Duration::from_millis(1100));
    }
}

#[test]
fn a_ping_over_ipv6_is_answered_under_the_lease() {
    let Some(mut director) = director() else { return };
    assert_eq!(director.run(&ping6(CLIENT6, VIP6)), verdict(Outcome::EchoAnswered, Action::Tx, pong6()));
    for frame in [
        extended(&ping6(CLIENT6, VIP6), &[60]),
        ping6(NOBODY, VIP6),
        ping6(Ipv6Addr::LOCALHOST, VIP6),
        ping6(VIP6, VIP6),
        ping6(ALL_NODES.0, VIP6),
    ] {
        director.lease(HELD);
        assert_eq!(director.run(&frame), verdict(Outcome::NotOurs, Action::Pass, frame.clone()));
        director.lease(RESIGNED);
        assert_eq!(director.run(&frame).outcome, Outcome::EchoWithoutLease);
    }
}

#[test]
fn an_excluded_address_of_the_other_family_hangs_on_the_same_lease() {
    let Some(mut director) = director() else { return };
    let outcomes = |director: &Director| [who_has(VIP), who_has6(VIP6)].map(|it| director.run(&it).outcome);
    assert_eq!(outcomes(&director), [Outcome::ArpAnswered, Outcome::SolicitationAnswered]);
    director.lease(RESIGNED);
    assert_eq!(outcomes(&director), [Outcome::ArpWithoutLease, Outcome::SolicitedWithoutLease]);
}

#[test]
fn other_protocols_over_ipv6_are_left_alone() {
    let Some(director) = director() else { return };
    let mut vrrp = Vec::new();
    let step = ip6((OTHER_MAC, [0x33, 0x33, 0, 0, 0, 0x12]), (CLIENT6, ALL_NODES.0), 255);
    step.write(&mut vrrp, IpNumber(112), &[0x31, 51, 100, 0, 0, 100, 0, 0]).unwrap();
    assert_eq!(director.run(&vrrp), verdict(Outcome::NotOurs, Action::Pass, vrrp.clone()));
}
