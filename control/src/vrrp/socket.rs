//! How do adverts and announcements get onto an interface, and adverts off it?

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{MsgFlags, recv, setsockopt, sockopt},
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, Socket, Type};

use super::packet::{GROUP, PROTOCOL};
use crate::announce::Frame;

/// Holds what arrives in the longest pause the thread may be in for, so that one overlooked advert in a full
/// queue is not taken for a silent master.
const RECEIVE_BUFFER: usize = 1 << 20;
/// TC_PRIO_CONTROL: adverts go before everything else that waits for the wire.
const QUEUE_PRIORITY: u32 = 7;

/// All adverts of one interface: one socket whatever the number of instances. (One for all interfaces
/// could join 20 groups only, net.ipv4.igmp_max_memberships.)
pub struct AdvertSocket(Socket);

impl AdvertSocket {
    pub fn open(interface: &str, ifindex: u32, multicast: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(i32::from(PROTOCOL))))?;
        socket.set_nonblocking(true)?;
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.set_header_included_v4(true)?;
        socket.set_multicast_loop_v4(false)?;
        socket.set_priority(QUEUE_PRIORITY)?;
        // Beyond net.core.rmem_max where CAP_NET_ADMIN allows it, else as far as the system lets us.
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER))?;
        if multicast {
            socket.join_multicast_v4_n(&GROUP, &InterfaceIndexOrAddress::Index(ifindex))?;
        }
        Ok(Self(socket))
    }

    /// `packet` begins with its IP header.
    pub fn send(&self, packet: &[u8], destination: Ipv4Addr) -> io::Result<()> {
        self.0.send_to(packet, &SocketAddrV4::new(destination, 0).into()).map(drop)
    }

    /// The next packet, IP header included, cut to the size of the buffer; `None` where there is no more.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        loop {
            match recv(self.0.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => return buffer.get(..length),
                Err(Errno::EINTR) => {}
                // A pending socket error is cleared by this call; the queue is looked at again at the next wake-up.
                Err(_) => return None,
            }
        }
    }
}

impl AsFd for AdvertSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends ready-made Ethernet frames, receives nothing.
pub struct FrameSocket(Socket);

impl FrameSocket {
    pub fn open() -> io::Result<Self> {
        // Protocol 0: no frame is ever queued here.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        socket.set_nonblocking(true)?;
        socket.set_priority(QUEUE_PRIORITY)?;
        Ok(Self(socket))
    }

    pub fn send(&self, frame: &Frame, interface: &SockAddr) -> io::Result<()> {
        self.0.send_to(frame, interface).map(drop)
    }
}

/// An interface as destination of ARP frames.
pub fn arp_interface(ifindex: u32) -> io::Result<SockAddr> {
    let fill = |storage: *mut socket2::SockAddrStorage, length: *mut libc::socklen_t| {
        // SAFETY: `storage` is zeroed, aligned and large enough for every kind of socket address, `length` is valid.
        unsafe {
            let address = storage.cast::<libc::sockaddr_ll>();
            (*address).sll_family = libc::AF_PACKET as libc::sa_family_t;
            (*address).sll_protocol = (libc::ETH_P_ARP as u16).to_be();
            (*address).sll_ifindex =
                i32::try_from(ifindex).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        }
        Ok(())
    };
    // SAFETY: `fill` writes a complete sockaddr_ll and its length.
    unsafe { SockAddr::try_init(fill) }.map(|((), address)| address)
}
