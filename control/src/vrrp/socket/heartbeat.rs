//! How do adverts get over an interface that is there for them alone?
//!
//! They are copies of those on the instance's interface, source address included: both nodes compare the same addresses
//! whichever copy they hear. That address is not of this interface, so the routing and the reverse path filter of the
//! kernel are passed by. The interface needs no address at all.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{MsgFlags, recv, setsockopt, sockopt},
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::{QUEUE_PRIORITY, RECEIVE_BUFFER, Room, link_address};
use crate::{
    config::model::Family,
    vrrp::{
        auth::AH_PROTOCOL,
        packet::{Datagram, PROTOCOL},
    },
};

/// Adverts of one interface and family.
pub struct HeartbeatSocket {
    socket: Socket,
    ifindex: u32,
    ethertype: i32,
}

impl HeartbeatSocket {
    pub fn open(ifindex: u32, family: Family) -> io::Result<Self> {
        // And where the IP header says what it carries.
        let (ethertype, protocol) = match family {
            Family::V4 => (libc::ETH_P_IP, 9),
            Family::V6 => (libc::ETH_P_IPV6, 6),
        };
        // Protocol 0: nothing is queued before the filter is there.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        socket.set_priority(QUEUE_PRIORITY)?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER))?;
        socket.attach_filter(&filter(protocol))?;
        // What the host itself sends there is no news.
        set(&socket, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
        socket.bind(&link_address(ifindex, ethertype, [0; 6])?)?;
        Ok(Self { socket, ifindex, ethertype })
    }

    /// Has the interface let frames to the group in.
    pub fn join(&self, group: IpAddr) -> io::Result<()> {
        let [a, b, c, d, e, f] = mac_of(group)?;
        let membership = libc::packet_mreq {
            mr_ifindex: i32::try_from(self.ifindex).map_err(|_| io::ErrorKind::InvalidInput)?,
            mr_type: libc::PACKET_MR_MULTICAST as u16,
            mr_alen: 6,
            mr_address: [a, b, c, d, e, f, 0, 0],
        };
        set(&self.socket, libc::PACKET_ADD_MEMBERSHIP, &membership)
    }

    /// `packet` begins with its IP header, which names the group.
    pub fn send(&self, packet: &[u8], group: IpAddr) -> io::Result<()> {
        let group = link_address(self.ifindex, self.ethertype, mac_of(group)?)?;
        self.socket.send_to(packet, &group).map(drop)
    }

    /// As of the other sockets.
    pub fn receive<'a>(&self, room: &'a mut Room) -> Option<Option<Datagram<'a>>> {
        loop {
            return match recv(self.socket.as_raw_fd(), &mut room.packet, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => room.packet.get(..length).map(Datagram::parse),
                Err(Errno::EINTR) => continue,
                Err(_) => None,
            };
        }
    }
}

impl AsFd for HeartbeatSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
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

/// Lets adverts in, plain or behind an authentication header, and nothing else wake the thread.
fn filter(protocol: u32) -> [SockFilter; 5] {
    let step = |code: u32, jt: u8, jf: u8, k: u32| SockFilter::new(code as u16, jt, jf, k);
    let equals = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    [
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, protocol),
        step(equals, 1, 0, PROTOCOL.into()),
        step(equals, 0, 1, AH_PROTOCOL.into()),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ]
}

fn set<T>(socket: &Socket, option: libc::c_int, value: &T) -> io::Result<()> {
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
