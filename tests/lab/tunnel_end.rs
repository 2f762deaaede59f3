//! `lab-tunnel ipip|gre|gue PORT DEVICE`: takes tunnels' packets off their outer headers and gives what was inside to
//! the TUN device, as a kernel with the tunnel's module would. Not every kernel that runs the lab has one.

use std::{
    env,
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    net::{Ipv6Addr, SocketAddrV6},
    os::fd::AsRawFd as _,
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::{errno::Errno, libc};
use socket2::{Domain, Protocol, Socket, Type};

const USAGE: &str = "usage: lab-tunnel ipip|gre|gue PORT DEVICE";
const LONGEST: usize = 65_535;

/// Where outer packets come in, and what stands before the inner one there.
struct End {
    socket: Socket,
    /// Each with what is inside behind it.
    headers: &'static [&'static [u8]],
    /// Raw sockets of IPv4 give the IP header too.
    has_ip_header: bool,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [method, port, device] = arguments.as_slice() else { bail!(USAGE) };
    let device = open(device)?;
    let ends = ends(method, port.parse()?)?;
    thread::scope(|scope| {
        let threads: Vec<_> = ends.into_iter().map(|end| scope.spawn(|| end.deliver(&device))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

/// Of outer packets of both families, with inner ones of both.
fn ends(method: &str, port: u16) -> Result<Vec<End>> {
    match method {
        "ipip" => [
            (Domain::IPV4, libc::IPPROTO_IPIP),
            (Domain::IPV4, libc::IPPROTO_IPV6),
            (Domain::IPV6, libc::IPPROTO_IPIP),
            (Domain::IPV6, libc::IPPROTO_IPV6),
        ]
        .map(|(domain, protocol)| End::raw(domain, protocol, &[&[]]))
        .into_iter()
        .collect(),
        // Version 0, no options.
        "gre" => [Domain::IPV4, Domain::IPV6]
            .map(|domain| End::raw(domain, libc::IPPROTO_GRE, &[&[0, 0, 0x08, 0x00], &[0, 0, 0x86, 0xdd]]))
            .into_iter()
            .collect(),
        "gue" => {
            let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
            socket.set_only_v6(false)?;
            take_without_checksum(&socket)?;
            socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0).into())?;
            Ok(vec![End { socket, headers: &[&[0, 4, 0, 0], &[0, 41, 0, 0]], has_ip_header: false }])
        }
        _ => bail!(USAGE),
    }
}

/// RFC 6935 5: over IPv6 only who says so gets datagrams without a checksum.
fn take_without_checksum(socket: &Socket) -> Result<()> {
    const UDP_NO_CHECK6_RX: libc::c_int = 102;
    let on: libc::c_int = 1;
    // SAFETY: the call reads one integer, which lives until it returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_UDP,
            UDP_NO_CHECK6_RX,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(result).context("taking datagrams without a checksum")?;
    Ok(())
}

impl End {
    fn raw(domain: Domain, protocol: i32, headers: &'static [&'static [u8]]) -> Result<Self> {
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))?;
        Ok(Self { socket, headers, has_ip_header: domain == Domain::IPV4 })
    }

    fn deliver(mut self, mut device: &File) -> Result<()> {
        let mut buffer = [0; LONGEST];
        loop {
            let length = self.socket.read(&mut buffer)?;
            let packet = &buffer[..length];
            let outer = match packet.first() {
                Some(first) if self.has_ip_header => usize::from(first & 0xf) * 4,
                _ => 0,
            };
            let packet = packet.get(outer..).context("an outer header beyond its packet")?;
            let inner = self.headers.iter().find_map(|header| packet.strip_prefix(*header));
            let inner = inner.with_context(|| format!("no header of a tunnel in {packet:02x?}"))?;
            device.write_all(inner).context("writing to the TUN device")?;
        }
    }
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
