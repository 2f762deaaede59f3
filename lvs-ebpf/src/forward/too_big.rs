//! What a client hears whose packet is too large for the tunnel to its real server: how large it may be.

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::Outcome;
use network_types::ip::IpProto;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    checksum, icmp,
    packet::Packet,
    parse::{Ethernet, Ipv4, Ipv4Header, TTL},
};

/// RFC 792 with the field of RFC 1191 4.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct FragmentationNeeded {
    kind: u8,
    code: u8,
    checksum: u16,
    unused: u16,
    /// Of the next hop: what the client may send.
    mtu: u16,
}

/// What is told of the packet: its header, however many options that has, and at least eight bytes more (RFC 792).
type Excerpt = [u32; 17];

const HEADERS: usize = size_of::<Ipv4Header>() + size_of::<FragmentationNeeded>();
const TOTAL: usize = HEADERS + size_of::<Excerpt>();

/// RFC 1812 4.3.2.3: internetwork control.
const TOS: u8 = 0xc0;

#[inline(always)]
pub fn refuse(ctx: &XdpContext, ethernet: Ethernet, ip: &Ipv4, limit: u16) -> Outcome {
    match answer(ctx, ethernet, ip, limit) {
        Ok(()) => Outcome::FragmentationNeeded,
        Err(outcome) => outcome,
    }
}

/// Makes the packet the answer to itself, which is shorter: nobody gains by asking in another's name.
#[inline(always)]
fn answer(ctx: &XdpContext, ethernet: Ethernet, ip: &Ipv4, limit: u16) -> Result<(), Outcome> {
    if ip.header.may_be_fragmented()
        || usize::from(ip.total_len()) < size_of::<Excerpt>()
        || !icmp::asker_is_host(ethernet, &ip.header)
    {
        return Err(Outcome::TunnelTooBig);
    }
    Packet::grown(ctx, HEADERS).ok_or(Outcome::NoHeadroom)?;
    let frame = Packet::resized(ctx, Ethernet::LEN + TOTAL).ok_or(Outcome::TunnelTooBig)?;
    let excerpt: Excerpt = frame.read(Ethernet::LEN + HEADERS).ok_or(Outcome::TunnelTooBig)?;
    let header = Ipv4Header {
        version_ihl: Ipv4Header::VERSION_IHL,
        tos: TOS,
        total_len: (TOTAL as u16).to_be(),
        id: 0,
        fragment: Ipv4Header::DONT_FRAGMENT,
        ttl: TTL,
        protocol: IpProto::Icmp as u8,
        checksum: 0,
        // Not an address of the director's own: the client knows this one, and its firewall expects it.
        source: ip.header.destination,
        destination: ip.header.source,
    };
    let back = Ethernet { destination: ethernet.source, source: ethernet.destination, ..ethernet };
    frame.write(0, back).ok_or(Outcome::TunnelTooBig)?;
    frame.write(Ethernet::LEN, header.with_checksum()).ok_or(Outcome::TunnelTooBig)?;
    frame.write(Ethernet::LEN + size_of::<Ipv4Header>(), message(limit, excerpt)).ok_or(Outcome::TunnelTooBig)
}

#[inline(always)]
fn message(limit: u16, excerpt: Excerpt) -> FragmentationNeeded {
    let message = FragmentationNeeded { kind: 3, code: 4, checksum: 0, unused: 0, mtu: limit.to_be() };
    let [first, second]: [u32; 2] = zerocopy::transmute!(message);
    let mut words = [0; 2 + size_of::<Excerpt>() / 4];
    words[..2].copy_from_slice(&[first, second]);
    words[2..].copy_from_slice(&excerpt);
    FragmentationNeeded { checksum: checksum::of(words), ..message }
}
