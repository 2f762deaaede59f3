//! What a question to a virtual address looks like on the wire, and what answers one.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use bytes::BufMut as _;
use lvs_ebpf_common::protocol::{TCP, UDP};

use crate::{
    checksum::Sum,
    config::model::{Forwarding, Tunnel},
};

/// Who asks whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// TCP or UDP.
    pub protocol: u8,
    /// This host, not by a virtual address.
    pub from: SocketAddrV4,
    /// The virtual address.
    pub to: SocketAddrV4,
}

#[derive(Clone, Copy, Debug)]
pub enum Message<'a> {
    /// Asks for a connection.
    Open {
        number: u32,
    },
    /// Takes that back.
    Reset {
        number: u32,
    },
    Datagram(&'a [u8]),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A connection could be had; `number` is the one after ours.
    Open {
        number: u32,
    },
    Refused {
        number: u32,
    },
    Datagram(Vec<u8>),
    /// An ICMP error: nobody is there, or not on that port. `quoted`: the number of the segment that it is about.
    Unreachable {
        quoted: Option<u32>,
    },
    /// An ICMP error: somebody would have passed it on, had it not been for its TTL.
    NotTaken {
        quoted: Option<u32>,
    },
}

pub const ICMP: u8 = 1;
const GRE: u8 = 47;
const IPIP: u8 = 4;
const IP_HEADER: usize = 20;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Types of ICMP (RFC 792).
pub const UNREACHABLE: u8 = 3;
pub const TIME_EXCEEDED: u8 = 11;

/// The host that it is sent to takes it or nobody does: one that has not got the address, but routes, would send it back to
/// the directors, where another real server answered in its place.
const NO_FURTHER: u8 = 1;
/// As what XDP sends.
const TUNNEL_TTL: u8 = 64;

/// From the IP header on, as it is sent to the next hop of the real server at `real`.
pub fn build(flow: &Flow, message: Message<'_>, real: Ipv4Addr, forwarding: Forwarding) -> Vec<u8> {
    let segment = match message {
        Message::Open { number } => tcp(flow, number, SYN),
        Message::Reset { number } => tcp(flow, number, RST),
        Message::Datagram(payload) => udp(flow, payload),
    };
    let (from, to) = (*flow.from.ip(), *flow.to.ip());
    let packet = ip(flow.protocol, NO_FURTHER, [from, to], &segment);
    match forwarding {
        // No virtual address leads there by NAT; the reader says so.
        Forwarding::Direct | Forwarding::Nat => packet,
        Forwarding::Tunnel(tunnel) => {
            let (protocol, headers) = tunnel_headers(tunnel, flow, packet.len());
            ip(protocol, TUNNEL_TTL, [from, real], &[headers, packet].concat())
        }
    }
}

/// Of a packet from its IP header on. `None`: it answers no question of this kind.
pub fn parse(packet: &[u8]) -> Option<(Flow, Heard)> {
    let (protocol, [from, to], segment) = parse_ip(packet)?;
    if protocol == ICMP {
        let kind = *segment.first()?;
        // RFC 792: eight bytes of unused and other fields, then the packet, of which 8 bytes behind its header are sure.
        let (protocol, [from, to], segment) = parse_ip(segment.get(8..)?)?;
        let (source, destination) = ports(segment)?;
        let quoted = match protocol {
            TCP => Some(u32::from_be_bytes(*segment.get(4..)?.first_chunk()?)),
            _ => None,
        };
        let heard = match kind {
            UNREACHABLE => Heard::Unreachable { quoted },
            TIME_EXCEEDED => Heard::NotTaken { quoted },
            _ => return None,
        };
        let flow =
            Flow { protocol, from: SocketAddrV4::new(from, source), to: SocketAddrV4::new(to, destination) };
        return Some((flow, heard));
    }
    let (source, destination) = ports(segment)?;
    let flow =
        Flow { protocol, from: SocketAddrV4::new(to, destination), to: SocketAddrV4::new(from, source) };
    let heard = match protocol {
        TCP => {
            let number = u32::from_be_bytes(*segment.get(8..)?.first_chunk()?);
            match *segment.get(13)? & (SYN | RST | ACK) {
                flags if flags == SYN | ACK => Heard::Open { number },
                flags if flags == RST | ACK => Heard::Refused { number },
                _ => return None,
            }
        }
        UDP => {
            let length = usize::from(u16::from_be_bytes(*segment.get(4..)?.first_chunk()?));
            Heard::Datagram(segment.get(UDP_HEADER..length)?.to_vec())
        }
        _ => return None,
    };
    Some((flow, heard))
}

/// Protocol, addresses, and what is behind the header, as far as it is there: errors quote no whole packets.
fn parse_ip(packet: &[u8]) -> Option<(u8, [Ipv4Addr; 2], &[u8])> {
    let header: &[u8; IP_HEADER] = packet.first_chunk()?;
    let length = usize::from(header[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // Not in pieces.
    if header[0] >> 4 != 4 || length < IP_HEADER || header[6] & 0x3f != 0 || header[7] != 0 {
        return None;
    }
    let address = |at: usize| Some(Ipv4Addr::from(*header.get(at..)?.first_chunk::<4>()?));
    Some((header[9], [address(12)?, address(16)?], packet.get(length..total.min(packet.len()))?))
}

fn ports(segment: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d] = *segment.first_chunk()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

fn ip(protocol: u8, ttl: u8, [from, to]: [Ipv4Addr; 2], segment: &[u8]) -> Vec<u8> {
    const DONT_FRAGMENT: u16 = 0x4000;
    let mut header = Vec::with_capacity(IP_HEADER + segment.len());
    header.put_slice(&[0x45, 0]);
    header.put_u16((IP_HEADER + segment.len()) as u16);
    header.put_u16(0); // RFC 6864 4.1: of no meaning with DF
    header.put_u16(DONT_FRAGMENT);
    header.put_slice(&[ttl, protocol]);
    header.put_u16(0); // checksum
    header.put_slice(&from.octets());
    header.put_slice(&to.octets());
    Sum::default().put(&mut header, 10);
    [header.as_slice(), segment].concat()
}

fn tcp(flow: &Flow, number: u32, flags: u8) -> Vec<u8> {
    const WINDOW: u16 = 64_240;
    const MSS: [u8; 4] = [2, 4, 0x05, 0xb4];
    // A reset opens nothing and needs no options.
    let options: &[u8] = if flags == SYN { &MSS } else { &[] };
    let mut segment = Vec::with_capacity(TCP_HEADER + options.len());
    segment.put_u16(flow.from.port());
    segment.put_u16(flow.to.port());
    segment.put_u32(number);
    segment.put_u32(0);
    segment.put_u8(((TCP_HEADER + options.len()) as u8 / 4) << 4);
    segment.put_u8(flags);
    segment.put_u16(WINDOW);
    segment.put_u32(0); // checksum, nothing urgent
    segment.put_slice(options);
    pseudo_header(flow, segment.len()).put(&mut segment, 16);
    segment
}

fn udp(flow: &Flow, payload: &[u8]) -> Vec<u8> {
    let length = UDP_HEADER + payload.len();
    let mut segment = Vec::with_capacity(length);
    segment.put_u16(flow.from.port());
    segment.put_u16(flow.to.port());
    segment.put_u16(length as u16);
    segment.put_u16(0);
    segment.put_slice(payload);
    pseudo_header(flow, length).put(&mut segment, 6);
    // RFC 768: 0 would mean that there is none.
    if let Some(none @ [0, 0]) = segment.get_mut(6..8) {
        none.fill(0xff);
    }
    segment
}

/// Which protocol the outer packet is of, and what stands behind its header. As the XDP program has it.
fn tunnel_headers(tunnel: Tunnel, flow: &Flow, inner: usize) -> (u8, Vec<u8>) {
    match tunnel {
        Tunnel::Ipip => (IPIP, Vec::new()),
        // RFC 2784 2.1: no flags, version 0, IPv4.
        Tunnel::Gre => (GRE, vec![0, 0, 0x08, 0x00]),
        Tunnel::Gue { port } => {
            let mut headers = Vec::with_capacity(12);
            headers.put_u16(flow.from.port());
            headers.put_u16(port);
            headers.put_u16((12 + inner) as u16);
            headers.put_u16(0); // no checksum
            headers.put_slice(&[0, IPIP, 0, 0]);
            (UDP, headers)
        }
    }
}

fn pseudo_header(flow: &Flow, length: usize) -> Sum {
    let [from, to] = [flow.from.ip(), flow.to.ip()].map(|address| IpAddr::V4(*address));
    Sum::default().and_pseudo_header(from, to, length, flow.protocol)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REAL: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);

    fn flow(protocol: u8) -> Flow {
        let at = |last, port| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, last), port);
        Flow { protocol, from: at(1, 64_600), to: at(100, 80) }
    }

    #[test]
    fn a_question_is_to_the_virtual_address_and_goes_no_further_than_its_next_hop() {
        let open = build(&flow(TCP), Message::Open { number: 7 }, REAL, Forwarding::Direct);
        assert_eq!((open.len(), open[8], &open[16..20]), (44, 1, &[10, 0, 0, 100][..]));
        assert!(
            Sum::default().and(&open[..20]).is_sound()
                && pseudo_header(&flow(TCP), 24).and(&open[20..]).is_sound()
        );
        let reset = build(&flow(TCP), Message::Reset { number: 8 }, REAL, Forwarding::Direct);
        assert_eq!((reset.len(), reset[33]), (40, RST));
        let asked = build(&flow(UDP), Message::Datagram(b"who"), REAL, Forwarding::Direct);
        assert!(asked.ends_with(b"who") && pseudo_header(&flow(UDP), 11).and(&asked[20..]).is_sound());
    }

    #[test]
    fn through_a_tunnel_it_is_inside_a_packet_to_the_real_server() {
        let direct = build(&flow(TCP), Message::Open { number: 7 }, REAL, Forwarding::Direct);
        for (tunnel, protocol, headers) in
            [(Tunnel::Ipip, 4, 0), (Tunnel::Gre, 47, 4), (Tunnel::Gue { port: 6080 }, 17, 12)]
        {
            let packet = build(&flow(TCP), Message::Open { number: 7 }, REAL, Forwarding::Tunnel(tunnel));
            assert_eq!((packet[8], packet[9], &packet[16..20]), (64, protocol, &REAL.octets()[..]));
            assert_eq!(packet[20 + headers..], direct, "{tunnel:?}");
            assert!(Sum::default().and(&packet[..20]).is_sound());
        }
    }

    /// The same segment from the other side, with other flags and the next number.
    fn answer(flags: u8) -> Vec<u8> {
        let Flow { protocol, from, to } = flow(TCP);
        let mut segment = tcp(&Flow { protocol, from: to, to: from }, 99, flags);
        segment[8..12].copy_from_slice(&8u32.to_be_bytes());
        ip(TCP, 64, [*to.ip(), *from.ip()], &segment)
    }

    #[test]
    fn answers_are_told_by_what_they_grant_and_belong_to_the_flow_that_asked() {
        assert_eq!(parse(&answer(SYN | ACK)), Some((flow(TCP), Heard::Open { number: 8 })));
        assert_eq!(parse(&answer(RST | ACK)), Some((flow(TCP), Heard::Refused { number: 8 })));
        assert_eq!(parse(&answer(ACK)), None);
        let Flow { from, to, .. } = flow(UDP);
        let said = udp(&Flow { protocol: UDP, from: to, to: from }, b"me");
        let packet = [&ip(UDP, 64, [*to.ip(), *from.ip()], &said)[..], b"padding"].concat();
        assert_eq!(parse(&packet), Some((flow(UDP), Heard::Datagram(b"me".to_vec()))));
    }

    #[test]
    fn an_icmp_error_is_about_the_flow_that_it_quotes() {
        let quoted = build(&flow(TCP), Message::Open { number: 7 }, REAL, Forwarding::Direct);
        let error = |kind: u8, quoted: &[u8]| {
            let message = [&[kind, 0, 0, 0, 0, 0, 0, 0], quoted].concat();
            parse(&ip(ICMP, 64, [REAL, *flow(TCP).from.ip()], &message))
        };
        assert_eq!(
            error(UNREACHABLE, &quoted[..28]),
            Some((flow(TCP), Heard::Unreachable { quoted: Some(7) }))
        );
        assert_eq!(error(TIME_EXCEEDED, &quoted), Some((flow(TCP), Heard::NotTaken { quoted: Some(7) })));
        assert_eq!(error(0, &quoted), None);
        assert_eq!(error(UNREACHABLE, &quoted[..20]), None);
    }

    #[test]
    fn what_is_in_pieces_or_cut_short_is_no_answer() {
        let whole = answer(SYN | ACK);
        for length in 0..34 {
            assert_eq!(parse(&whole[..length]), None, "{length}");
        }
        let mut piece = whole;
        piece[6] = 0x20;
        assert_eq!(parse(&piece), None);
    }

    proptest! {
        #[test]
        fn no_packet_panics(packet: Vec<u8>) {
            parse(&packet);
        }
    }
}
