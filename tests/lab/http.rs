//! What does a client of the VIP see: which real server answers, and when does none?

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{Node, Stamp, background::Background};

/// Shorter than the first retransmission of a SYN: a request that was lost fails, it does not come late.
const TIMEOUT: Duration = Duration::from_millis(900);
const REQUEST: &[u8] = b"GET / HTTP/1.0\r\nHost: lab\r\n\r\n";
/// A longer answer is not from the lab's servers.
const LONGEST_ANSWER: usize = 4096;

/// One request and what became of it.
#[derive(Clone, Debug)]
pub struct Request {
    pub started: Stamp,
    pub finished: Stamp,
    /// Name of the real server.
    pub answer: Result<String, ErrorKind>,
}

/// Starts a request every so often, whatever became of the earlier ones, until it is dropped. So an outage
/// shows as the requests that were started in it, to the precision of the pace.
pub struct Load {
    done: Arc<Mutex<Vec<Request>>>,
    thread: Background,
}

impl Load {
    pub fn start(client: &Node, target: impl Into<SocketAddr>, every: Duration) -> Result<Self> {
        let target = target.into();
        let done = Arc::new(Mutex::new(Vec::new()));
        let thread = Background::start("the load", {
            let (client, done) = (client.clone(), Arc::clone(&done));
            move |stop| {
                client.enter()?;
                generate(target, every, &done, stop)
            }
        });
        Ok(Self { done, thread })
    }

    /// All requests that have ended so far, in the order of their ends.
    pub fn requests(&self) -> Vec<Request> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts no more, waits for the last to end, and returns all in the order of their starts.
    pub fn finish(mut self) -> Result<Vec<Request>> {
        self.thread.finish()?;
        let mut requests = self.requests();
        requests.sort_by_key(|request| request.started);
        Ok(requests)
    }
}

/// How long a service was away.
#[derive(Clone, Debug, PartialEq)]
pub struct Outage {
    /// From the event until the first answer after the last request that failed. Zero where none failed.
    pub length: Duration,
    pub failed: usize,
}

/// What `requests` saw of an event at `event`.
pub fn outage(requests: &[Request], event: Stamp) -> Result<Outage> {
    let failures = requests.iter().filter(|request| request.answer.is_err() && request.finished >= event);
    let failed = failures.clone().count();
    let Some(last) = failures.map(|request| request.started).max() else {
        return Ok(Outage { length: Duration::ZERO, failed: 0 });
    };
    let answered = requests
        .iter()
        .filter(|request| request.answer.is_ok() && request.started > last)
        .map(|request| request.finished)
        .min()
        .context("no request was answered any more")?;
    Ok(Outage { length: answered.since(event), failed })
}

/// How many requests each real server answered.
pub fn spread<'a>(requests: impl IntoIterator<Item = &'a Request>) -> BTreeMap<String, usize> {
    let mut spread = BTreeMap::new();
    for name in requests.into_iter().filter_map(|request| request.answer.as_ref().ok()) {
        *spread.entry(name.clone()).or_default() += 1;
    }
    spread
}

/// One request from the calling thread's namespace, from `port` where given. Returns the real server's name.
pub fn get(target: impl Into<SocketAddr>, port: Option<u16>) -> io::Result<String> {
    let target = target.into();
    let mut socket = tcp_socket(target, port)?;
    socket.connect_timeout(&target.into(), TIMEOUT)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.write_all(REQUEST)?;
    let mut answer = Vec::new();
    socket.take(LONGEST_ANSWER as u64).read_to_end(&mut answer)?;
    body(&answer)
}

/// A request that takes its time: a connection that is there before a change, through it and after.
pub struct Conversation(Socket);

impl Conversation {
    /// From the calling thread's namespace.
    pub fn begin(target: impl Into<SocketAddr>, port: u16) -> io::Result<Self> {
        let target = target.into();
        let mut socket = tcp_socket(target, Some(port))?;
        socket.connect_timeout(&target.into(), TIMEOUT)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.write_all(b"GET / HTTP/1.0\r\n")?;
        Ok(Self(socket))
    }

    pub fn go_on(&mut self) -> io::Result<()> {
        self.0.write_all(b"Still: there\r\n")
    }

    /// The name of the real server that has listened all the time: no other knows the connection.
    pub fn end(mut self) -> io::Result<String> {
        self.0.write_all(b"\r\n")?;
        let mut answer = Vec::new();
        self.0.take(LONGEST_ANSWER as u64).read_to_end(&mut answer)?;
        body(&answer)
    }
}

fn tcp_socket(target: SocketAddr, port: Option<u16>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(port) = port {
        socket.set_reuse_address(true)?;
        let any: IpAddr = match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        socket.bind(&SocketAddr::from((any, port)).into())?;
    }
    Ok(socket)
}

fn body(answer: &[u8]) -> io::Result<String> {
    let text = std::str::from_utf8(answer).map_err(|_| ErrorKind::InvalidData)?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.0 200 ") => Ok(body.to_owned()),
        // A server that dies between the handshake and its answer.
        _ => Err(ErrorKind::UnexpectedEof.into()),
    }
}

struct Attempt {
    started: Stamp,
    socket: Socket,
    connected: bool,
    answer: Vec<u8>,
}

fn generate(
    target: SocketAddr,
    every: Duration,
    done: &Mutex<Vec<Request>>,
    stop: &AtomicBool,
) -> Result<()> {
    let mut running: Vec<Attempt> = Vec::new();
    let mut next = Stamp::now();
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        if stopping && running.is_empty() {
            return Ok(());
        }
        if !stopping && Stamp::now() >= next {
            let started = Stamp::now();
            // Behind schedule, requests are left out rather than sent in a bunch.
            next = (next + every).max(started);
            match start(target) {
                Ok(socket) => {
                    running.push(Attempt { started, socket, connected: false, answer: Vec::new() });
                }
                Err(error) => record(done, started, Err(error)),
            }
        }
        wait_for_sockets(&running, next.since(Stamp::now()).min(Duration::from_millis(10)))?;
        running.retain_mut(|attempt| match attempt.advance() {
            Ok(None) if attempt.started.elapsed() > TIMEOUT => {
                record(done, attempt.started, Err(ErrorKind::TimedOut.into()));
                false
            }
            Ok(None) => true,
            Ok(Some(name)) => {
                record(done, attempt.started, Ok(name));
                false
            }
            Err(error) => {
                record(done, attempt.started, Err(error));
                false
            }
        });
    }
}

fn start(target: SocketAddr) -> io::Result<Socket> {
    let socket = tcp_socket(target, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

fn record(done: &Mutex<Vec<Request>>, started: Stamp, answer: io::Result<String>) {
    let request = Request { started, finished: Stamp::now(), answer: answer.map_err(|error| error.kind()) };
    done.lock().unwrap_or_else(PoisonError::into_inner).push(request);
}

fn wait_for_sockets(running: &[Attempt], limit: Duration) -> Result<()> {
    let mut waiting: Vec<PollFd> = running
        .iter()
        .map(|attempt| {
            let event = if attempt.connected { PollFlags::POLLIN } else { PollFlags::POLLOUT };
            PollFd::new(attempt.socket.as_fd(), event)
        })
        .collect();
    match poll(&mut waiting, PollTimeout::try_from(limit)?) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context("waiting for sockets"),
    }
}

impl Attempt {
    /// The name once the whole answer is there.
    fn advance(&mut self) -> io::Result<Option<String>> {
        if !self.connected {
            if let Some(error) = self.socket.take_error()? {
                return Err(error);
            }
            match self.socket.write(REQUEST) {
                Ok(_) => self.connected = true,
                Err(error) if not_yet(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let mut buffer = [0; 1024];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return body(&self.answer).map(Some),
                Ok(length) => self.answer.extend(buffer.iter().take(length)),
                Err(error) if not_yet(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
            if self.answer.len() > LONGEST_ANSWER {
                return Err(ErrorKind::InvalidData.into());
            }
        }
    }
}

/// Still connecting, or nothing to read.
fn not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Stamp {
        Stamp::START + Duration::from_millis(milliseconds)
    }

    fn request(started: u64, finished: u64, answer: Result<&str, ErrorKind>) -> Request {
        Request { started: at(started), finished: at(finished), answer: answer.map(str::to_owned) }
    }

    #[test]
    fn an_outage_lasts_from_the_event_to_the_first_answer_after_the_last_failure() {
        let requests = [
            request(90, 91, Ok("rs1")),
            request(99, 999, Err(ErrorKind::TimedOut)),
            request(120, 1020, Err(ErrorKind::TimedOut)),
            request(130, 132, Ok("rs2")),
            request(140, 142, Ok("rs2")),
        ];
        let expected = Outage { length: Duration::from_millis(32), failed: 2 };
        assert_eq!(outage(&requests, at(100)).unwrap(), expected);
    }

    #[test]
    fn without_a_failure_there_was_no_outage() {
        let requests = [request(90, 91, Ok("rs1")), request(110, 112, Ok("rs1"))];
        assert_eq!(outage(&requests, at(100)).unwrap(), Outage { length: Duration::ZERO, failed: 0 });
    }

    #[test]
    fn an_outage_without_end_is_an_error() {
        assert!(outage(&[request(120, 1020, Err(ErrorKind::TimedOut))], at(100)).is_err());
    }
}
