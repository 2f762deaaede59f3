//! `lab-tunnel ipip|gre|gue PORT DEVICE`: takes tunnels' packets off their outer headers and gives what was inside to
//! the TUN device, as a kernel with the tunnel's module would. Not every kernel that runs the lab has one.

use std::{
    env,
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd as _,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{errno::Errno, libc};
use socket2::{Domain, Protocol, Socket, Type};

const USAGE: &str = "usage: lab-tunnel ipip|gre|gue PORT DEVICE";
const LONGEST: usize = 65_535;
/// Version 0, no options, IPv4 inside.
const GRE: [u8; 4] = [0, 0, 8, 0];
const GUE: [u8; 4] = [0, 4, 0, 0];

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [method, port, device] = arguments.as_slice() else { bail!(USAGE) };
    let mut device = open(device)?;
    let mut buffer = [0; LONGEST];
    if method == "gue" {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port.parse()?))?;
        loop {
            let length = socket.recv(&mut buffer)?;
            deliver(&mut device, &buffer[..length], &GUE)?;
        }
    }
    let (protocol, header): (i32, &[u8]) = match method.as_str() {
        "ipip" => (libc::IPPROTO_IPIP, &[]),
        "gre" => (libc::IPPROTO_GRE, &GRE),
        _ => bail!(USAGE),
    };
    let mut socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(protocol)))?;
    loop {
        let length = socket.read(&mut buffer)?;
        let packet = &buffer[..length];
        let outer = packet.first().map_or(0, |first| usize::from(first & 0xf) * 4);
        deliver(&mut device, packet.get(outer..).context("an outer header beyond its packet")?, header)?;
    }
}

fn deliver(device: &mut File, packet: &[u8], header: &[u8]) -> Result<()> {
    let inner = packet.strip_prefix(header).with_context(|| format!("no {header:02x?} in {packet:02x?}"))?;
    device.write_all(inner).context("writing to the TUN device")
}

/// Becomes the program behind a TUN device that is there already.
fn open(device: &str) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
    // SAFETY: integers and an array of them; all zero is a request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    ensure!(device.len() < request.ifr_name.len(), "{device} is too long for the name of a device");
    for (place, byte) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the call reads and writes one ifreq, which lives until it returns.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(result).with_context(|| format!("opening {device}"))?;
    Ok(file)
}
