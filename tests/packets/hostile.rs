//! Frames that are cut, bent or made up: nothing is forwarded that is not whole, nothing passed on is changed.

use etherparse::{SlicedPacket, TransportSlice};

use crate::{director::Action, frames::*, *};

/// Frames that take every way through the program.
fn originals() -> Vec<Vec<u8>> {
    let options =
        |words: usize| ip(VIP, |header| header.options = vec![1; words * 4].as_slice().try_into().unwrap());
    let mut frames = vec![
        tcp(VIP, WEB),
        udp(VIP, DNS),
        write_tcp(options(1), 40_000, WEB),
        write_udp(options(10), DNS),
        who_has(VIP),
        is_at(VIP, OTHER_MAC),
        ping(VIP),
        write_ping(options(2)),
        write_tcp(fragment(VIP, 0, true), 40_000, WEB),
        write_udp(fragment(VIP, 3, false), DNS),
        tcp(STRANGER, WEB),
        ping(STRANGER),
        ipv6::who_has6(ipv6::VIP6),
        ipv6::ping6(ipv6::CLIENT6, ipv6::VIP6),
        icmp_error::about(7),
    ];
    frames.extend(services6::originals());
    frames
}

#[test]
fn a_frame_cut_anywhere_is_neither_forwarded_nor_changed() {
    let Some(director) = director() else { return };
    for frame in originals() {
        // Less than an Ethernet header never reaches a program.
        for length in 14..frame.len() {
            let cut = &frame[..length];
            let (action, out) = director.run_uncounted(cut);
            assert_eq!((action, out.as_slice()), (Action::Pass, cut), "{length} bytes of {frame:02x?}");
        }
        // A cut that the padding takes is none.
        let whole = padded(frame.clone());
        for length in frame.len()..whole.len() {
            assert_eq!(director.run_uncounted(&whole[..length]).0, director.run_uncounted(&frame).0);
        }
    }
}

#[test]
fn a_packet_that_ends_anywhere_before_its_headers_do_is_not_forwarded() {
    let Some(director) = director() else { return };
    for (frame, protocol, header) in [(tcp(VIP, WEB), IpNumber::TCP, 24), (udp(VIP, DNS), IpNumber::UDP, 8)] {
        for length in 0..header {
            // Whole as IP, so only its own header tells; once alone, once with padding that must not count.
            let packet = raw(ip(VIP, |_| {}), protocol, &frame[34..34 + length]);
            for packet in [padded(packet.clone()), packet] {
                let (action, out) = director.run_uncounted(&packet);
                assert_eq!((action, out), (Action::Drop, packet), "{length} bytes of {protocol:?}");
            }
        }
    }
}

const FRAMES: u64 = 100_000;

/// Sends random frames and shows those that are sent on, before and after, as etherparse understands them. The others are unchanged.
fn each_sent(
    director: &Director,
    mut random: Random,
    originals: &[Vec<u8>],
    mut see: impl FnMut((&[u8], &SlicedPacket), (&[u8], &SlicedPacket)),
) {
    for _ in 0..FRAMES {
        let frame = random.frame(originals);
        let (action, out) = director.run_uncounted(&frame);
        match action {
            Action::Drop | Action::Pass => assert_eq!(out, frame),
            Action::Tx | Action::Redirect => {
                let packet =
                    SlicedPacket::from_ethernet(&frame).unwrap_or_else(|e| panic!("{e}: {frame:02x?}"));
                let outer = SlicedPacket::from_ethernet(&out).unwrap_or_else(|e| panic!("{e}: {out:02x?}"));
                see((&frame, &packet), (&out, &outer));
            }
        }
    }
}

#[test]
fn random_frames_enter_a_tunnel_only_if_etherparse_accepts_them() {
    let Some(mut director) = director() else { return };
    let (method, source) = (Real::IPIP, v4(tunnel::TUNNEL_SOURCE));
    for (index, real) in [(10, real(1, INGRESS)), (20, real(2, 77))] {
        // Some of the frames are too large for it.
        director.real(index, Real { method, source, mtu: 90, ..real });
    }
    let originals = [tcp(VIP, WEB), udp(VIP, DNS), web_of(60, true), web_of(71, true), web_of(71, false)];
    let (mut sent, mut refused) = (0, 0);
    each_sent(&director, Random(0x7a11_ed5e), &originals, |(frame, packet), (out, outer)| {
        let is_whole = matches!(packet.transport, Some(TransportSlice::Tcp(_) | TransportSlice::Udp(_)));
        assert!(is_whole || packet.is_ip_payload_fragmented(), "{frame:02x?}");
        if let Some(TransportSlice::Icmpv4(message)) = &outer.transport {
            refused += 1;
            assert_eq!(message.payload(), &frame[14..82]);
        } else {
            sent += 1;
            assert_eq!(out[34..], frame[14..]);
        }
    });
    assert_eq!(director.outcomes().iter().sum::<u64>(), FRAMES, "each frame is counted once");
    assert!(sent > 1000 && refused > 1000, "{sent} sent, {refused} refused");
}

#[test]
fn random_frames_enter_a_tunnel_of_ipv6_only_if_etherparse_accepts_them() {
    const HEADER: usize = 40;
    let Some(mut director) = director() else { return };
    tunnel6::lead_over_v6(&mut director);
    let mut originals = vec![tcp(VIP, WEB), udp(VIP, DNS), web_of(1461, true), tunnel6::web6_of(1461)];
    originals.extend(services6::originals());
    let (mut sent, mut refused) = ([0; 2], [0; 2]);
    each_sent(&director, Random(0x6a11_ed5e), &originals, |(frame, packet), (out, outer)| {
        let is_whole = match &packet.transport {
            Some(TransportSlice::Tcp(_) | TransportSlice::Udp(_)) => true,
            Some(TransportSlice::Icmpv6(error)) => error.type_u8() < 128,
            _ => false,
        };
        assert!(is_whole || packet.is_ip_payload_fragmented(), "{frame:02x?}");
        let family = usize::from(matches!(packet.net, Some(etherparse::NetSlice::Ipv6(_))));
        if out.len() == frame.len() + HEADER {
            sent[family] += 1;
            assert_eq!(out[14 + HEADER..], frame[14..]);
            return;
        }
        refused[family] += 1;
        match &outer.transport {
            Some(TransportSlice::Icmpv4(message)) => assert_eq!(message.payload(), &frame[14..82]),
            Some(TransportSlice::Icmpv6(message)) => {
                let Some(etherparse::NetSlice::Ipv6(ip)) = &outer.net else { panic!("{out:02x?}") };
                let (source, destination) = (ip.header().source(), ip.header().destination());
                assert!(message.is_checksum_valid(source, destination));
                assert_eq!(message.payload(), &frame[14..14 + 1232]);
            }
            _ => panic!("{out:02x?}"),
        }
    });
    assert_eq!(director.outcomes().iter().sum::<u64>(), FRAMES, "each frame is counted once");
    let enough = sent.iter().chain(&refused).all(|count| *count > 1000);
    assert!(enough, "{sent:?} sent, {refused:?} refused");
}

#[test]
fn a_million_random_frames_are_forwarded_only_if_etherparse_accepts_them() {
    const FRAMES: u64 = 1_000_000;
    let Some(mut director) = director() else { return };
    vlan::lead(&mut director);
    let mut originals = originals();
    let tagged = |(frame, tags): (&Vec<u8>, &&[u8])| vlan::tagged(frame, tags);
    originals.extend(originals.clone().iter().zip(vlan::TAGS.iter().cycle()).map(tagged));
    let mut random = Random(0x1ab5_eed5);
    let mut seen = [0; 4];
    for _ in 0..FRAMES {
        let frame = random.frame(&originals);
        let (action, out) = director.run_uncounted(&frame);
        let frame = vlan::without_priority(&frame);
        seen[action as usize] += 1;
        match action {
            Action::Drop => {}
            Action::Pass => assert_eq!(out, frame),
            Action::Tx | Action::Redirect => check_sent(&frame, &out),
        }
    }
    assert_eq!(director.outcomes().iter().sum::<u64>(), FRAMES, "each frame is counted once");
    assert!(seen.iter().all(|count| *count > 300), "{seen:?}");
}

fn check_sent(frame: &[u8], out: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap_or_else(|error| panic!("{error}: {frame:02x?}"));
    let tags = vlan::tags_of(frame);
    assert_eq!(vlan::tags_of(out), tags, "{frame:02x?}");
    let [frame, out] = [frame, out].map(|it| [&it[..12], &it[12 + tags.len()..]].concat());
    let (frame, out) = (frame.as_slice(), out.as_slice());
    if let Some(TransportSlice::Icmpv6(question)) = &packet.transport
        && question.type_u8() == 135
    {
        let Some(etherparse::NetSlice::Ipv6(ip)) = &packet.net else { panic!("{frame:02x?}") };
        let (source, destination) = (ip.header().source(), ip.header().destination());
        assert!(question.is_checksum_valid(source, destination), "{frame:02x?}");
        assert_eq!((out.len(), out[54], &out[62..78]), (86, 136, &frame[62..78]));
        return;
    }
    assert_eq!(out.len(), frame.len());
    if packet.is_ip_payload_fragmented() {
        assert_eq!(out[12..], frame[12..]);
        return;
    }
    match packet.transport {
        Some(TransportSlice::Tcp(_) | TransportSlice::Udp(_)) => {
            assert_eq!(out[12..], frame[12..]);
        }
        // An error that is led to its flow's real server.
        Some(TransportSlice::Icmpv4(_)) if matches!(frame[34], 3 | 11 | 12) => {
            assert_eq!(out[12..], frame[12..]);
        }
        Some(TransportSlice::Icmpv4(_)) => {
            // Addresses swapped; type, TTL and their checksums apart, the rest stays.
            assert_eq!((&out[26..30], &out[30..34]), (&frame[30..34], &frame[26..30]));
            assert_eq!((out[34], &out[38..]), (0, &frame[38..]));
        }
        Some(TransportSlice::Icmpv6(error)) if error.type_u8() < 128 => {
            assert_eq!(out[12..], frame[12..]);
        }
        Some(TransportSlice::Icmpv6(_)) => {
            assert_eq!((&out[22..38], &out[38..54]), (&frame[38..54], &frame[22..38]));
            assert_eq!((out[54], &out[58..]), (129, &frame[58..]));
        }
        _ => {
            assert!(packet.net.is_some_and(|net| matches!(net, etherparse::NetSlice::Arp(_))), "{frame:02x?}")
        }
    }
}

/// xorshift64*: the same frames in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }

    /// An original with a few bytes changed, cut or stretched, or (rarely) nothing but noise.
    fn frame(&mut self, originals: &[Vec<u8>]) -> Vec<u8> {
        if self.below(16) == 0 {
            return (0..14 + self.below(200)).map(|_| self.below(256) as u8).collect();
        }
        let mut frame = originals[self.below(originals.len())].clone();
        for _ in 0..self.below(4) {
            // Headers matter most.
            let at = self.below(frame.len().min(60));
            frame[at] = match self.below(3) {
                0 => self.below(256) as u8,
                1 => frame[at] ^ 1 << self.below(8),
                _ => [0, 0xff, 0x45, 5, 20][self.below(5)],
            };
        }
        match self.below(8) {
            0 => frame.truncate(14 + self.below(frame.len() - 13)),
            1 => frame.resize(frame.len() + self.below(40), 0),
            _ => {}
        }
        frame
    }
}
