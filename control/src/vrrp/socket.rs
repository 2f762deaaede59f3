//! How do adverts and announcements get onto an interface, and adverts off it?

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use bytes::BufMut as _;
use nix::{
    errno::Errno,
    libc,
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recv, recvmsg, setsockopt, sockopt},
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, Socket, Type};

mod heartbeat;

pub use heartbeat::HeartbeatSocket;

use super::packet::{Datagram, MAX_DATAGRAM};
use crate::{
    config::model::Family,
    packet_socket::{enlarge_queue, link_address},
};

/// Holds what arrives in the longest pause the thread may be in for, so that one overlooked advert in a full
/// queue is not taken for a silent master.
const RECEIVE_BUFFER: usize = 1 << 20;
/// TC_PRIO_CONTROL: adverts go before everything else that waits for the wire.
const QUEUE_PRIORITY: u32 = 7;

/// All adverts of one interface, family and IP protocol: one socket whatever the number of instances. (One for all interfaces
/// could join 20 groups only, net.ipv4.igmp_max_memberships.)
pub struct AdvertSocket {
    socket: Socket,
    family: Family,
    ifindex: u32,
}

/// Where a received packet is put. The default one holds nothing.
#[derive(Default)]
pub struct Room {
    packet: Box<[u8]>,
    /// What the kernel says beside it.
    control: Vec<u8>,
}

impl Room {
    pub fn new() -> Self {
        let control = nix::cmsg_space!(libc::in6_pktinfo, libc::c_int);
        Self { packet: vec![0; 2 * MAX_DATAGRAM].into(), control }
    }
}

impl AdvertSocket {
    pub fn open(interface: &str, ifindex: u32, family: Family, protocol: u8) -> io::Result<Self> {
        let domain = match family {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
        socket.set_nonblocking(true)?;
        socket.bind_device(Some(interface.as_bytes()))?;
        match family {
            Family::V4 => {
                socket.set_header_included_v4(true)?;
                socket.set_multicast_loop_v4(false)?;
            }
            Family::V6 => {
                socket.set_header_included_v6(true)?;
                socket.set_multicast_loop_v6(false)?;
                // Such a socket does not get the header.
                setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            }
        }
        socket.set_priority(QUEUE_PRIORITY)?;
        enlarge_queue(&socket, RECEIVE_BUFFER)?;
        Ok(Self { socket, family, ifindex })
    }

    /// Once for each group.
    pub fn join(&self, group: IpAddr) -> io::Result<()> {
        match group {
            IpAddr::V4(group) => {
                self.socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(self.ifindex))
            }
            IpAddr::V6(group) => self.socket.join_multicast_v6(&group, self.ifindex),
        }
    }

    /// `packet` begins with its IP header.
    pub fn send(&self, packet: &[u8], destination: IpAddr) -> io::Result<()> {
        let destination: SocketAddr = match destination {
            IpAddr::V4(address) => SocketAddrV4::new(address, 0).into(),
            IpAddr::V6(address) => SocketAddrV6::new(address, 0, 0, self.ifindex).into(),
        };
        self.socket.send_to(packet, &destination.into()).map(drop)
    }

    /// The next packet, `Some(None)` if it cannot be an advert; `None` where there is no more.
    pub fn receive<'a>(&self, room: &'a mut Room) -> Option<Option<Datagram<'a>>> {
        loop {
            let received = match self.family {
                Family::V4 => recv(self.socket.as_raw_fd(), &mut room.packet, MsgFlags::MSG_DONTWAIT)
                    .map(|length| (length, None)),
                Family::V6 => self.receive_v6(room).map(|(length, header)| (length, Some(header))),
            };
            let (length, header) = match received {
                Err(Errno::EINTR) => continue,
                // A pending socket error is cleared by this call; the queue is looked at again at the next wake-up.
                Err(_) => return None,
                Ok(received) => received,
            };
            let message = room.packet.get(..length)?;
            return Some(match header {
                None => Datagram::parse(message),
                Some(header) => header
                    .map(|header| Datagram::ipv6(header.source, header.destination, header.ttl, message)),
            });
        }
    }

    /// The length of the message, and what its header said; `None` where the kernel kept that for itself.
    fn receive_v6(&self, room: &mut Room) -> nix::Result<(usize, Option<HeaderV6>)> {
        let mut packet = [IoSliceMut::new(&mut room.packet)];
        let received = recvmsg::<SockaddrIn6>(
            self.socket.as_raw_fd(),
            &mut packet,
            Some(&mut room.control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let (mut destination, mut ttl) = (None, None);
        for control in received.cmsgs().into_iter().flatten() {
            match control {
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    destination = Some(IpAddr::from(info.ipi6_addr.s6_addr));
                }
                ControlMessageOwned::Ipv6HopLimit(limit) => ttl = u8::try_from(limit).ok(),
                _ => {}
            }
        }
        let header = || {
            let source = received.address?.ip().into();
            Some(HeaderV6 { source, destination: destination?, ttl: ttl? })
        };
        Ok((received.bytes, header()))
    }
}

/// What the kernel says of a header that it keeps.
struct HeaderV6 {
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
}

impl AsFd for AdvertSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
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

    pub fn send(&self, frame: &[u8], interface: &SockAddr) -> io::Result<()> {
        self.0.send_to(frame, interface).map(drop)
    }

    /// `packet` begins with its IP header.
    pub fn send_in(&self, envelope: &Envelope, packet: &[u8]) -> io::Result<()> {
        let parts = [IoSlice::new(&envelope.header), IoSlice::new(packet)];
        self.0.send_to_vectored(&parts, &envelope.interface).map(drop)
    }
}

/// What goes before a multicast packet whose source MAC is not the interface's own.
pub struct Envelope {
    interface: SockAddr,
    header: [u8; 14],
}

impl Envelope {
    pub fn new(ifindex: u32, source: [u8; 6], group: IpAddr) -> io::Result<Self> {
        let protocol = match group {
            IpAddr::V4(_) => libc::ETH_P_IP,
            IpAddr::V6(_) => libc::ETH_P_IPV6,
        };
        let mut header = [0; 14];
        let mut out = header.as_mut_slice();
        out.put_slice(&mac_of(group)?);
        out.put_slice(&source);
        out.put_u16(protocol as u16);
        Ok(Self { interface: link_address(ifindex, protocol, [0; 6])?, header })
    }
}

/// An interface as destination of announcements of a family.
pub fn announced_on(ifindex: u32, family: Family) -> io::Result<SockAddr> {
    let protocol = match family {
        Family::V4 => libc::ETH_P_ARP,
        Family::V6 => libc::ETH_P_IPV6,
    };
    link_address(ifindex, protocol, [0; 6])
}

/// RFC 1112 6.4: the lower 23 bits of the group. RFC 2464 7: its last four bytes.
fn mac_of(group: IpAddr) -> io::Result<[u8; 6]> {
    match group {
        IpAddr::V4(group) if group.is_multicast() => {
            let [_, a, b, c] = group.octets();
            Ok([0x01, 0x00, 0x5e, a & 0x7f, b, c])
        }
        IpAddr::V6(group) if group.is_multicast() => {
            let [.., a, b, c, d] = group.octets();
            Ok([0x33, 0x33, a, b, c, d])
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}
