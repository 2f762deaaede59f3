//! What sockets beneath IP, and those with a large queue, have in common.

use std::{io, os::fd::AsRawFd as _};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{setsockopt, sockopt},
};
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

/// Hears those packets of an ethertype and an interface (0 = of all) that `filter` lets in, from their IP header on, and none that
/// this host sends. What is sent gets the interface's MAC as its source.
pub fn open(ifindex: u32, ethertype: i32, filter: &[SockFilter], queue: usize) -> io::Result<Socket> {
    // Protocol 0: nothing is queued before the filter is there.
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
    socket.set_nonblocking(true)?;
    enlarge_queue(&socket, queue)?;
    socket.attach_filter(filter)?;
    set_option(&socket, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
    socket.bind(&link_address(ifindex, ethertype, [0; 6])?)?;
    Ok(socket)
}

/// Beyond net.core.rmem_max where CAP_NET_ADMIN allows it, else as far as the system lets us.
pub fn enlarge_queue(socket: &Socket, bytes: usize) -> io::Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &bytes)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &bytes))
        .map_err(io::Error::from)
}

/// An option of packet(7).
pub fn set_option<T>(socket: &Socket, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` is a plain structure of the length given, valid for the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// An interface, and who is meant there.
pub fn link_address(ifindex: u32, protocol: i32, mac: [u8; 6]) -> io::Result<SockAddr> {
    let fill = |storage: *mut socket2::SockAddrStorage, length: *mut libc::socklen_t| {
        // SAFETY: `storage` is zeroed, aligned and large enough for every kind of socket address, `length` is valid.
        unsafe {
            let address = storage.cast::<libc::sockaddr_ll>();
            (*address).sll_family = libc::AF_PACKET as libc::sa_family_t;
            (*address).sll_protocol = (protocol as u16).to_be();
            (*address).sll_ifindex =
                i32::try_from(ifindex).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            let [a, b, c, d, e, f] = mac;
            (*address).sll_halen = 6;
            (*address).sll_addr = [a, b, c, d, e, f, 0, 0];
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        }
        Ok(())
    };
    // SAFETY: `fill` writes a complete sockaddr_ll and its length.
    unsafe { SockAddr::try_init(fill) }.map(|((), address)| address)
}
