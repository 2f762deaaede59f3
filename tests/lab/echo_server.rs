//! `lab-echo PORT`: a real server that gives back what it gets (RFC 862), to thousands at a time.

use std::{
    collections::HashMap,
    env,
    io::{ErrorKind, Read as _, Result as IoResult, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

/// Of the listener; those of connections count on from there.
const LISTENER: u64 = 0;

fn main() -> Result<()> {
    let port: u16 = env::args().nth(1).context("usage: lab-echo PORT")?.parse()?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut streams = HashMap::new();
    let mut last = LISTENER;
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            count => count?,
        };
        for number in events.iter().take(count).map(EpollEvent::data) {
            if number == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    last += 1;
                    epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, last))?;
                    streams.insert(last, stream);
                }
            } else if streams.get_mut(&number).is_some_and(|stream| give_back(stream).is_err()) {
                streams.remove(&number);
            }
        }
    }
}

/// An error: the other end has closed.
fn give_back(stream: &mut TcpStream) -> IoResult<()> {
    let mut bytes = [0; 64];
    match stream.read(&mut bytes) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(length) => stream.write_all(bytes.get(..length).unwrap_or_default()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}
