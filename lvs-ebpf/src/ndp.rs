//! Who answers a neighbour solicitation for a virtual address: this node under its lease, and otherwise nobody here. And
//! does anybody else claim one?

use aya_ebpf::programs::XdpContext;
use lvs_ebpf_common::{Address, Outcome, Vip};
use network_types::ip::IpProto;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    checksum::{self, sum_of},
    claim,
    ipv6::{Header, Ipv6},
    packet::Packet,
    parse::{Ethernet, Mac},
    vip,
};

/// A neighbour solicitation or advertisement (RFC 4861 4.3, 4.4), without its options.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct Message {
    kind: u8,
    code: u8,
    checksum: u16,
    flags: u32,
    target: Address,
}

/// The one option that matters here (RFC 4861 4.6.1).
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct LinkLayerAddress {
    kind: u8,
    /// In units of eight bytes.
    length: u8,
    mac: Mac,
}

/// All that an answer is behind its Ethernet header.
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct Answer {
    header: Header,
    message: Message,
    option: LinkLayerAddress,
}

/// What a solicitation has to say beyond its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Question {
    /// Of the sender's own option.
    mac: Option<Mac>,
}

pub const SOLICITATION: u8 = 135;
pub const ADVERTISEMENT: u8 = 136;
const SOURCE: u8 = 1;
const TARGET: u8 = 2;
const ROUTER: u32 = (1_u32 << 31).to_be();
const SOLICITED: u32 = (1_u32 << 30).to_be();
const OVERRIDE: u32 = (1_u32 << 29).to_be();
/// 33:33 and the last four bytes of ff02::1.
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// RFC 4861 7.1: no router forwards it, so the sender is a neighbour.
const HOP_LIMIT: u8 = 255;

#[inline(always)]
pub fn answer(ctx: &XdpContext, ethernet: Ethernet, ip: &Ipv6) -> Result<Outcome, Outcome> {
    if ip.payload_len < size_of::<Message>() {
        return Err(Outcome::NotOurs);
    }
    let message: Message = ip.payload.read(0).ok_or(Outcome::NotOurs)?;
    let vip = vip::find_v6(message.target).ok_or(Outcome::NotOurs)?;
    let on_its_interface = vip.ifindex == ctx.ingress_ifindex() as u32;
    if on_its_interface && !ethernet.destination.is_multicast() && !ethernet.destination.is(vip.mac.into()) {
        return Err(Outcome::OtherHost);
    }
    vip::check_lease_v6(ctx, message.target, vip, Outcome::SolicitedWithoutLease)?;
    if !on_its_interface {
        return Err(Outcome::NotOurs);
    }
    // The master's kernel has the address too: it answers what is valid and not plain, and nothing that is not valid.
    let question = Question::of(ip, &message).ok_or(Outcome::NotOurs)?;
    let sender = question.mac.unwrap_or(ethernet.source);
    if sender.is_multicast() || sender.is_zero() {
        return Err(Outcome::NotOurs);
    }
    // RFC 4861 7.2.4: who has no address yet is told by way of all nodes.
    let (to, back) = if ip.header.source.is_unspecified() {
        (Mac::from(ALL_NODES), Address::ALL_NODES)
    } else {
        (sender, ip.header.source)
    };
    let frame = Packet::resized(ctx, Ethernet::LEN + size_of::<Answer>()).ok_or(Outcome::NotOurs)?;
    frame.write(Ethernet::LEN, Answer::new(message.target, back, vip)).ok_or(Outcome::TruncatedHeader)?;
    let source = vip.answers.into();
    frame.write(0, Ethernet { destination: to, source, ..ethernet }).ok_or(Outcome::TruncatedHeader)?;
    Ok(Outcome::SolicitationAnswered)
}

/// An advertisement says where its target is, a solicitation where its source is: who says it to all has to name the
/// MAC (RFC 4861 4.3, 4.4). Nobody claims an address by a probe, which has no source.
#[inline(always)]
pub fn heed(ctx: &XdpContext, ip: &Ipv6) -> Option<()> {
    const FIRST: usize = size_of::<Message>();
    const END: usize = FIRST + size_of::<LinkLayerAddress>();
    if ip.payload_len < END || !ip.is_plain || ip.header.hop_limit != HOP_LIMIT {
        return None;
    }
    let option: LinkLayerAddress = ip.payload.read(FIRST)?;
    let message: Message = ip.payload.read(0)?;
    let address = match (message.kind, option.kind) {
        (ADVERTISEMENT, TARGET) => message.target,
        (SOLICITATION, SOURCE) => ip.header.source,
        _ => return None,
    };
    let vip = vip::find_v6(address)?;
    claim::heed(ctx, address.octets(), vip, option.mac);
    Some(())
}

impl Question {
    /// None if it is not plain, or not valid by RFC 4861 7.1.1.
    #[inline(always)]
    fn of(ip: &Ipv6, message: &Message) -> Option<Self> {
        let Header { source, destination, hop_limit, .. } = ip.header;
        let group = message.target.solicited_node();
        let is_addressed = destination.is(group) || destination.is(message.target);
        if !ip.is_plain
            || hop_limit != HOP_LIMIT
            || message.code != 0
            || !is_addressed
            || source.is_multicast()
            || source.is(message.target)
        {
            return None;
        }
        let (mac, options) = options(ip)?;
        let sum = sum_of_pseudo_header(source, destination, ip.payload_len) + message.sum() + options;
        let is_probe = source.is_unspecified();
        (checksum::fold(sum) == 0xffff && !(is_probe && (mac.is_some() || !destination.is(group))))
            .then_some(Self { mac })
    }
}

/// The sender's MAC, if it is among the options, and their sum. None if they are not well-formed, or larger or more than
/// anyone sends: a source address, a nonce (RFC 7527), or both.
#[inline(always)]
fn options(ip: &Ipv6) -> Option<(Option<Mac>, u64)> {
    const FIRST: usize = size_of::<Message>();
    const SECOND: usize = FIRST + size_of::<LinkLayerAddress>();
    const END: usize = SECOND + size_of::<LinkLayerAddress>();
    match ip.payload_len {
        FIRST => Some((None, 0)),
        SECOND => option(ip.payload, FIRST),
        END => {
            let (first, second) = (option(ip.payload, FIRST)?, option(ip.payload, SECOND)?);
            Some((first.0.or(second.0), first.1 + second.1))
        }
        _ => None,
    }
}

#[inline(always)]
fn option(payload: Packet, at: usize) -> Option<(Option<Mac>, u64)> {
    let option: LinkLayerAddress = payload.read(at)?;
    let mac = if option.kind == SOURCE { Some(option.mac) } else { None };
    (option.length == 1).then_some((mac, sum_of(zerocopy::transmute!(option))))
}

impl Message {
    #[inline(always)]
    fn sum(self) -> u64 {
        let [first, second, third]: [u64; 3] = zerocopy::transmute!(self);
        sum_of(first) + sum_of(second) + sum_of(third)
    }
}

impl Answer {
    #[inline(always)]
    fn new(target: Address, to: Address, vip: &Vip) -> Self {
        const LENGTH: usize = size_of::<Message>() + size_of::<LinkLayerAddress>();
        let solicited = if to.is(Address::ALL_NODES) { 0 } else { SOLICITED };
        let router = if vip.flags & Vip::ROUTER != 0 { ROUTER } else { 0 };
        let header = Header {
            version_class_flow: (6_u32 << 28).to_be(),
            payload_len: (LENGTH as u16).to_be(),
            next_header: IpProto::Ipv6Icmp as u8,
            hop_limit: HOP_LIMIT,
            source: target,
            destination: to,
        };
        let message = Message {
            kind: ADVERTISEMENT,
            code: 0,
            checksum: 0,
            flags: OVERRIDE | solicited | router,
            target,
        };
        let option = LinkLayerAddress { kind: TARGET, length: 1, mac: vip.answers.into() };
        let sum =
            sum_of_pseudo_header(target, to, LENGTH) + message.sum() + sum_of(zerocopy::transmute!(option));
        Self { header, message: Message { checksum: !checksum::fold(sum), ..message }, option }
    }
}

/// RFC 8200 8.1.
#[inline(always)]
fn sum_of_pseudo_header(source: Address, destination: Address, length: usize) -> u64 {
    let ([a, b], [c, d]) = (source.0, destination.0);
    let rest = (length as u32).to_be() as u64 + (IpProto::Ipv6Icmp as u32).to_be() as u64;
    sum_of(a) + sum_of(b) + sum_of(c) + sum_of(d) + rest
}
