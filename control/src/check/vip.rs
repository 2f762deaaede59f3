//! Does a real server serve at the virtual address, if a packet gets there the way that clients' packets do?
//!
//! With direct routing and tunnels it has to own that address, which a check of its own address cannot see. So packets
//! for the virtual address are sent as the XDP program sends them: to the real server's MAC, or inside of its tunnel.
//! On a master the address is the host's own and its kernel would never let them out; hence a packet socket. They come
//! from an address of this host that is not virtual, so the answers come here and not to whoever is master.
//!
//! Nothing else on this host learns of the exchange but its kernel, which meets the answer as well: a master's drops
//! it, for it seems to come from the host itself; a backup's answers with a reset, which ends at the virtual address as
//! one of a connection that nobody has.

mod packet;

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::{IpAddr, SocketAddrV4},
    os::fd::AsRawFd as _,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use lvs_ebpf_common::protocol;
use nix::{
    libc,
    sys::socket::{MsgFlags, recv},
};
use socket2::{SockFilter, Socket};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};

use self::packet::{Flow, Heard, Message};
use super::{DnsError, UdpError, dns, udp};
use crate::{
    config::model::{Check, CheckKind, DnsCheck, OnVip, Reply, UdpCheck},
    dataplane::plan::NextHop,
    packet_socket::{self, link_address},
};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VipError {
    #[error("cannot ask {vip} here: {cause}")]
    NotTried { vip: SocketAddrV4, cause: &'static str },
    #[error("cannot send frames here: {0}")]
    NotSent(io::ErrorKind),
    #[error("{0}: connection refused")]
    Refused(SocketAddrV4),
    #[error("{0}: not reachable")]
    Unreachable(SocketAddrV4),
    #[error("no answer from {vip} by {method} within {limit:?}: does the real server own the address?")]
    Silent { vip: SocketAddrV4, method: &'static str, limit: Duration },
    #[error("packets to {0} are passed on: the real server does not own the address")]
    NotTaken(SocketAddrV4),
    #[error("{vip}: {error}")]
    Dns { vip: SocketAddrV4, error: DnsError },
    #[error("{vip}: {error}")]
    Udp { vip: SocketAddrV4, error: UdpError },
}

impl VipError {
    /// No verdict on the real server.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::NotTried { .. } | Self::NotSent(_))
    }
}

/// One socket for all questions: opening and closing such a one takes the kernel some milliseconds.
pub struct Asker {
    socket: AsyncFd<Socket>,
    next_hops: watch::Receiver<HashMap<IpAddr, NextHop>>,
    asked: Asked,
}

/// Questions without an answer yet.
type Asked = Mutex<HashMap<Flow, mpsc::Sender<Heard>>>;

/// Ports of questions, where kernels do not choose any for connections unless told so.
const PORTS: std::ops::RangeInclusive<u16> = FIRST_PORT..=u16::MAX;
const FIRST_PORT: u16 = 0xfc00;
/// As a kernel repeats a SYN.
const AGAIN: Duration = Duration::from_secs(1);
/// Of some thousand answers.
const QUEUE: usize = 1 << 20;
const LONGEST: usize = 1 << 16;
/// Of what one question is answered with: more says nothing new.
const ANSWERS: usize = 8;

impl Asker {
    pub fn open(next_hops: watch::Receiver<HashMap<IpAddr, NextHop>>) -> io::Result<Self> {
        let socket = packet_socket::open(0, libc::ETH_P_IP, &filter(), QUEUE)?;
        // SAFETY: the socket owns its descriptor and closes it when it is dropped, inside the AsyncFd.
        let socket = unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)?;
        Ok(Self { socket, next_hops, asked: Asked::default() })
    }

    /// Hears answers, until it is cancelled.
    pub async fn listen(&self) -> io::Error {
        let mut packet = vec![0; LONGEST];
        loop {
            let mut ready = match self.socket.readable().await {
                Ok(ready) => ready,
                Err(error) => return error,
            };
            let received = ready.try_io(|socket| {
                Ok(recv(socket.get_ref().as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT)?)
            });
            // An error of the socket, such as that an interface went down, is told once and then gone.
            let Ok(Ok(length)) = received else { continue };
            if let Some((flow, heard)) = packet.get(..length).and_then(packet::parse)
                && let Some(asker) = self.asked.lock().unwrap_or_else(PoisonError::into_inner).get(&flow)
            {
                // It has enough to look at if there is no room.
                let _ = asker.try_send(heard);
            }
        }
    }

    /// Asks at the virtual address what `check` asks, as far as that can be done by single packets: a check over TCP has
    /// spoken with the real server already, here the connection is all that is wanted.
    pub async fn ask(&self, check: &Check, on: OnVip) -> Result<(), VipError> {
        // A real server that is this host has the address while it is master, and gets no packets before.
        if self.next_hops.borrow().get(&on.real.into()).is_some_and(NextHop::is_local) {
            return Ok(());
        }
        let mut question = self.question(check, on)?;
        match &check.kind {
            CheckKind::Dns(check) => question.ask_dns(check).await,
            CheckKind::Udp(check) => question.ask_udp(check).await,
            _ => question.connect().await,
        }
    }

    fn question(&self, check: &Check, on: OnVip) -> Result<Question<'_>, VipError> {
        /// Each fails where another question to the same place has the port.
        const TRIES: usize = 16;
        let vip = SocketAddrV4::new(on.address, check.port);
        let not_tried = |cause| VipError::NotTried { vip, cause };
        let hop = self.next_hops.borrow().get(&on.real.into()).copied();
        let hop = hop.ok_or(not_tried("the next hop of the real server is not known"))?;
        let source = match check.source.address {
            Some(source @ IpAddr::V4(_)) => Some(source),
            _ => hop.source,
        };
        let Some(IpAddr::V4(source)) = source else {
            return Err(not_tried("this host has no address towards the real server"));
        };
        let protocol = match check.kind {
            CheckKind::Dns(_) | CheckKind::Udp(_) => protocol::UDP,
            _ => protocol::TCP,
        };
        let limit = check.timing.connect_timeout;
        let (sender, answers) = mpsc::channel(ANSWERS);
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..TRIES {
            let flow = Flow { protocol, from: SocketAddrV4::new(source, fastrand::u16(PORTS)), to: vip };
            if let Entry::Vacant(free) = asked.entry(flow) {
                free.insert(sender);
                return Ok(Question {
                    asker: self,
                    on,
                    hop,
                    flow,
                    answers,
                    limit,
                    until: Instant::now() + limit,
                });
            }
        }
        Err(not_tried("too much is asked of it at once"))
    }
}

/// One that waits for its answer.
struct Question<'a> {
    asker: &'a Asker,
    on: OnVip,
    hop: NextHop,
    flow: Flow,
    answers: mpsc::Receiver<Heard>,
    limit: Duration,
    until: Instant,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.asker.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.flow);
    }
}

impl Question<'_> {
    async fn connect(&mut self) -> Result<(), VipError> {
        let number = fastrand::u32(..);
        let next = number.wrapping_add(1);
        loop {
            self.send(Message::Open { number })?;
            let again = self.until.min(Instant::now() + AGAIN);
            loop {
                match self.next(again).await {
                    Some(Heard::Open { number }) if number == next => {
                        // The server need not keep half a connection.
                        return self.send(Message::Reset { number });
                    }
                    // Of an earlier question.
                    Some(Heard::Open { .. } | Heard::Datagram(_)) => {}
                    Some(Heard::Refused { number }) if number != next => {}
                    Some(Heard::Unreachable { quoted } | Heard::NotTaken { quoted })
                        if quoted != Some(number) => {}
                    None if again < self.until => break,
                    heard => return Err(self.error(heard)),
                }
            }
        }
    }

    async fn ask_dns(&mut self, check: &DnsCheck) -> Result<(), VipError> {
        let number = fastrand::u16(..);
        self.send(Message::Datagram(&dns::query(check, number)))?;
        loop {
            match self.next(self.until).await {
                Some(Heard::Datagram(answer)) => {
                    if let Some(judged) = dns::judge(&answer, number) {
                        return judged.map_err(|error| VipError::Dns { vip: self.flow.to, error });
                    }
                }
                heard => return Err(self.error(heard)),
            }
        }
    }

    async fn ask_udp(&mut self, check: &UdpCheck) -> Result<(), VipError> {
        self.send(Message::Datagram(&check.payload))?;
        match self.next(self.until).await {
            Some(Heard::Datagram(reply)) => {
                udp::judge(&reply, &check.reply).map_err(|error| VipError::Udp { vip: self.flow.to, error })
            }
            None if check.reply == Reply::NotNeeded => Ok(()),
            heard => Err(self.error(heard)),
        }
    }

    fn send(&self, message: Message<'_>) -> Result<(), VipError> {
        let packet = packet::build(&self.flow, message, self.on.real, self.on.forwarding);
        let sent = link_address(self.hop.ifindex, libc::ETH_P_IP, self.hop.mac)
            .and_then(|to| self.asker.socket.get_ref().send_to(&packet, &to));
        match sent {
            Ok(_) => Ok(()),
            // A full queue loses packets, as wires do.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => Ok(()),
            Err(error) => Err(VipError::NotSent(error.kind())),
        }
    }

    async fn next(&mut self, until: Instant) -> Option<Heard> {
        timeout_at(until, self.answers.recv()).await.ok().flatten()
    }

    fn error(&self, heard: Option<Heard>) -> VipError {
        let vip = self.flow.to;
        match heard {
            Some(Heard::Refused { .. }) => VipError::Refused(vip),
            Some(Heard::Unreachable { .. }) => VipError::Unreachable(vip),
            Some(Heard::NotTaken { .. }) => VipError::NotTaken(vip),
            Some(Heard::Open { .. } | Heard::Datagram(_)) | None => {
                VipError::Silent { vip, method: self.on.forwarding.word(), limit: self.limit }
            }
        }
    }
}

/// Lets in what may be an answer, so that nothing else wakes the daemon.
fn filter() -> [SockFilter; 18] {
    const FRAGMENT_OFFSET: u32 = 0x1fff;
    const SYN_OR_RST: u32 = 0x06;
    let step = |code: u32, jt: u8, jf: u8, k: u32| SockFilter::new(code as u16, jt, jf, k);
    let load = |size: u32, at| step(libc::BPF_LD | size | libc::BPF_ABS, 0, 0, at);
    let behind_header = |size: u32, at| step(libc::BPF_LD | size | libc::BPF_IND, 0, 0, at);
    let equals = |value: u8, jt, jf| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, jf, value.into());
    let has = |bits, jt, jf| step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, jt, jf, bits);
    [
        // Only the first piece of a packet has ports.
        load(libc::BPF_H, 6),
        has(FRAGMENT_OFFSET, 15, 0),
        // The length of the IP header.
        step(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 0),
        load(libc::BPF_B, 9),
        equals(protocol::UDP, 9, 0),
        equals(protocol::TCP, 6, 0),
        equals(packet::ICMP, 0, 10),
        behind_header(libc::BPF_B, 0),
        equals(packet::UNREACHABLE, 1, 0),
        equals(packet::TIME_EXCEEDED, 0, 7),
        // Where our port is in what it quotes.
        behind_header(libc::BPF_H, 28),
        step(libc::BPF_JMP | libc::BPF_JA, 0, 0, 3),
        behind_header(libc::BPF_B, 13),
        has(SYN_OR_RST, 0, 3),
        behind_header(libc::BPF_H, 2),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, FIRST_PORT.into()),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ]
}
