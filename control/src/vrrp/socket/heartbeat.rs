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
    sys::socket::{MsgFlags, recv},
};
use socket2::{SockFilter, Socket};

use super::{QUEUE_PRIORITY, RECEIVE_BUFFER, Room, mac_of};
use crate::{
    config::model::Family,
    packet_socket::{self, link_address},
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
        let socket = packet_socket::open(ifindex, ethertype, &filter(protocol), RECEIVE_BUFFER)?;
        socket.set_priority(QUEUE_PRIORITY)?;
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
        packet_socket::set_option(&self.socket, libc::PACKET_ADD_MEMBERSHIP, &membership)
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
