//! Which ARP, neighbour discovery and VRRP frames pass an interface, and when?

use std::{
    io::{IoSliceMut, Write as _},
    mem,
    net::IpAddr,
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    cmsg_space,
    errno::Errno,
    libc,
    net::if_::if_nametoindex,
    sys::{
        socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt},
        time::TimeSpec,
    },
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{Advert, Advertisement, Arp, Mac, Node, Stamp, background::Background};

/// Room for what comes while the machine is busy with something else.
const QUEUE: usize = 8 << 20;

/// Listens until it is dropped. Frames that the node itself sends are heard too, except by XDP.
pub struct Capture {
    heard: Arc<Mutex<Heard>>,
    _thread: Background,
}

#[derive(Default)]
struct Heard {
    adverts: Vec<Advert>,
    arps: Vec<Arp>,
    advertisements: Vec<Advertisement>,
}

impl Capture {
    pub fn start(node: &Node, interface: &str) -> Result<Self> {
        let socket = node.in_ns(|| packet_socket(interface, libc::ETH_P_ALL as u16))?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        setsockopt(&socket, sockopt::RcvBufForce, &QUEUE)?;
        let heard = Arc::new(Mutex::new(Heard::default()));
        let thread = Background::start("the capture", {
            let heard = Arc::clone(&heard);
            move |stop| listen(&socket, &heard, stop)
        });
        Ok(Self { heard, _thread: thread })
    }

    pub fn adverts(&self) -> Vec<Advert> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).adverts.clone()
    }

    pub fn arps(&self) -> Vec<Arp> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).arps.clone()
    }

    /// Of neighbours, over IPv6.
    pub fn advertisements(&self) -> Vec<Advertisement> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).advertisements.clone()
    }

    /// When who answered for `address`: replies only.
    pub fn answers_for(&self, address: impl Into<IpAddr>) -> Vec<(Stamp, Mac)> {
        match address.into() {
            IpAddr::V4(address) => {
                let of = |arp: &Arp| arp.is_reply && arp.sender.1 == address;
                self.arps().iter().filter(|arp| of(arp)).map(|arp| (arp.at, arp.sender.0)).collect()
            }
            IpAddr::V6(address) => {
                let of = |it: &Advertisement| it.is_solicited && it.target == address;
                self.advertisements().iter().filter(|it| of(it)).map(|it| (it.at, it.mac)).collect()
            }
        }
    }
}

fn listen(socket: &Socket, heard: &Mutex<Heard>, stop: &AtomicBool) -> Result<()> {
    let mut buffer = [0; 2048];
    let mut control = cmsg_space!(TimeSpec);
    while !stop.load(Ordering::Relaxed) {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message =
            match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty()) {
                Ok(message) => message,
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(error) => return Err(error).context("reading frames"),
            };
        let at = message
            .cmsgs()?
            .find_map(|control| match control {
                ControlMessageOwned::ScmTimestampns(at) => Some(Stamp::of_frame(at.into())),
                _ => None,
            })
            .context("a frame without a timestamp")?;
        let frame = message.iovs().next().unwrap_or_default();
        let (advert, arp) = (Advert::read(at, frame), Arp::read(at, frame));
        let advertisement = Advertisement::read(at, frame);
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.adverts.extend(advert);
        heard.arps.extend(arp);
        heard.advertisements.extend(advertisement);
    }
    let lost = lost_frames(socket)?;
    ensure!(lost == 0, "{lost} frames came faster than they were read");
    Ok(())
}

/// Frames for which the socket had no room.
fn lost_frames(socket: &Socket) -> Result<u32> {
    /// `struct tpacket_stats`.
    #[repr(C)]
    #[derive(Default)]
    struct Statistics {
        packets: u32,
        drops: u32,
    }
    let mut statistics = Statistics::default();
    let mut length = size_of::<Statistics>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, the size of `statistics`, of which all bytes are valid values.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &mut length,
        )
    };
    Errno::result(result).context("the capture's statistics")?;
    Ok(statistics.drops)
}

/// What somebody on `node` puts on the wire.
pub fn send(node: &Node, frame: &[u8]) -> Result<()> {
    let mut socket = node.in_ns(|| packet_socket("eth0", 0))?;
    socket.write_all(frame).context("sending a frame")
}

/// A socket for whole frames on `interface` of the calling thread's namespace, which hears frames of `ethertype`
/// (0 = none, to send only).
pub(crate) fn packet_socket(interface: &str, ethertype: u16) -> Result<Socket> {
    let protocol = ethertype.to_be();
    let index = if_nametoindex(interface).with_context(|| interface.to_owned())?;
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
    // SAFETY: sockaddr_ll consists of integers only, for which all zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = i32::try_from(index)?;
    // SAFETY: the storage is large and aligned enough for every sockaddr, and the length written is that of
    // the sockaddr_ll stored.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            storage.cast::<libc::sockaddr_ll>().write(address);
            length.write(size_of::<libc::sockaddr_ll>() as libc::socklen_t);
            Ok(())
        })?
    };
    socket.bind(&address).with_context(|| format!("binding to {interface}"))?;
    Ok(socket)
}
