//! Frames, built by etherparse: what the program is given and what it should make of it.

use std::net::Ipv4Addr;

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header,
    PacketBuilder, PacketBuilderStep,
};

pub const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x07];
pub const DIRECTOR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
pub const OTHER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];
pub const REAL_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 0x01];
pub const BROADCAST: [u8; 6] = [0xff; 6];

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
/// Has services, but no VRRP instance.
pub const BARE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 101);
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 200);
pub const WEB: u16 = 80;
pub const DNS: u16 = 53;

/// From the client to the director.
pub fn ip(destination: Ipv4Addr, change: impl FnOnce(&mut Ipv4Header)) -> PacketBuilderStep<IpHeaders> {
    let mut header = Ipv4Header::new(0, 61, IpNumber::TCP, CLIENT.octets(), destination.octets()).unwrap();
    change(&mut header);
    PacketBuilder::ethernet2(CLIENT_MAC, DIRECTOR_MAC).ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
}

pub fn tcp(destination: Ipv4Addr, port: u16) -> Vec<u8> {
    tcp_from(40_000, destination, port)
}

pub fn tcp_from(source_port: u16, destination: Ipv4Addr, port: u16) -> Vec<u8> {
    write_tcp(ip(destination, |_| {}), source_port, port)
}

/// With four bytes of TCP options and a payload.
pub fn write_tcp(step: PacketBuilderStep<IpHeaders>, source_port: u16, port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let mss = [etherparse::TcpOptionElement::MaximumSegmentSize(1460)];
    step.tcp(source_port, port, 1, 64_000).options(&mss).unwrap().write(&mut frame, b"GET /").unwrap();
    frame
}

/// To the web service, as an IP packet of `length` bytes.
pub fn web_of(length: usize, dont_fragment: bool) -> Vec<u8> {
    let mut frame = Vec::new();
    let step = ip(VIP, |header| header.dont_fragment = dont_fragment).tcp(40_000, WEB, 1, 64_000);
    step.write(&mut frame, &vec![7; length - 40]).unwrap();
    frame
}

pub fn udp(destination: Ipv4Addr, port: u16) -> Vec<u8> {
    write_udp(ip(destination, |_| {}), port)
}

pub fn write_udp(step: PacketBuilderStep<IpHeaders>, port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    step.udp(40_000, port).write(&mut frame, b"query").unwrap();
    frame
}

/// An IP packet of these bytes.
pub fn raw(step: PacketBuilderStep<IpHeaders>, protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    step.write(&mut frame, protocol, payload).unwrap();
    frame
}

pub fn ping(destination: Ipv4Addr) -> Vec<u8> {
    write_ping(ip(destination, |_| {}))
}

pub fn write_ping(step: PacketBuilderStep<IpHeaders>) -> Vec<u8> {
    let mut frame = Vec::new();
    step.icmpv4_echo_request(9, 1).write(&mut frame, b"abcdefghi").unwrap();
    frame
}

pub fn pong(source: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(DIRECTOR_MAC, CLIENT_MAC)
        .ipv4(source.octets(), CLIENT.octets(), 64)
        .icmpv4_echo_reply(9, 1)
        .write(&mut frame, b"abcdefghi")
        .unwrap();
    frame
}

/// One side of an ARP packet.
pub type Side = ([u8; 6], Ipv4Addr);

pub fn arp(link: ([u8; 6], [u8; 6]), operation: ArpOperation, sender: Side, target: Side) -> Vec<u8> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &sender.0,
        &sender.1.octets(),
        &target.0,
        &target.1.octets(),
    );
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(link.0, link.1).arp(packet.unwrap()).write(&mut frame).unwrap();
    frame
}

/// The client, broadcasting.
pub fn who_has(address: Ipv4Addr) -> Vec<u8> {
    who_has_from(CLIENT, address)
}

pub fn who_has_from(sender: Ipv4Addr, address: Ipv4Addr) -> Vec<u8> {
    arp((CLIENT_MAC, BROADCAST), ArpOperation::REQUEST, (CLIENT_MAC, sender), ([0; 6], address))
}

pub fn is_at(address: Ipv4Addr, mac: [u8; 6]) -> Vec<u8> {
    arp((mac, CLIENT_MAC), ArpOperation::REPLY, (mac, address), (CLIENT_MAC, CLIENT))
}

pub fn with_destination(mut frame: Vec<u8>, mac: [u8; 6]) -> Vec<u8> {
    frame[..6].copy_from_slice(&mac);
    frame
}

/// With other bytes at an offset; checksums are left to be wrong.
pub fn patched(mut frame: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    frame
}

/// As a short frame looks behind a real cable.
pub fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(60.max(frame.len() + 3), 0xee);
    frame
}
