//! Servers that give back what they get, and clients that see whether it is the same.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{Node, PATIENCE, Sum};

/// An answer of UDP may be lost only with the test.
const ANSWER: Duration = Duration::from_secs(10);

/// By TCP at all addresses of `node`, by UDP at `at` alone: from there its answers are to come.
pub fn give_back(node: &Node, at: SocketAddr) -> Result<()> {
    let (tcp, udp) = node.in_ns(|| {
        let everywhere = (Ipv6Addr::UNSPECIFIED, at.port());
        Ok((TcpListener::bind(everywhere)?, UdpSocket::bind(at)?))
    })?;
    thread::spawn(move || {
        // Whoever went away gets no more.
        tcp.incoming().flatten().for_each(|stream| drop(thread::spawn(|| return_stream(stream).ok())))
    });
    thread::spawn(move || {
        let mut buffer = [0; 1 << 16];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&buffer[..length], from);
        }
    });
    Ok(())
}

fn return_stream(mut stream: TcpStream) -> io::Result<u64> {
    let mut writer = stream.try_clone()?;
    io::copy(&mut stream, &mut writer)
}

/// So many bytes to `server` and back, both ways at once, so that both are in full-sized segments.
pub fn stream(server: SocketAddr, amount: usize) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = stream.try_clone()?;
    let writer = thread::spawn(move || -> Result<Sum> {
        let mut sum = Sum::default();
        for number in 0..amount as u64 / 8192 {
            let block: Vec<u8> = (0..1024).flat_map(|at| (number << 10 | at).to_be_bytes()).collect();
            sum.add(&block);
            stream.write_all(&block)?;
        }
        Ok(sum)
    });
    let (mut sum, mut left, mut buffer) = (Sum::default(), amount, vec![0; 1 << 16]);
    while left > 0 {
        let length = reader.read(&mut buffer)?;
        ensure!(length > 0, "{left} bytes are missing");
        sum.add(buffer.get(..length).context("more than asked for")?);
        left = left.checked_sub(length).context("more than was sent")?;
    }
    let sent = writer.join().map_err(|_| anyhow!("the writer panicked"))??;
    ensure!(sent == sum, "what came back is not what was sent");
    Ok(())
}

/// Datagrams of `lengths` bytes to `server` and back, from `port`.
pub fn datagrams(server: SocketAddr, port: u16, lengths: &[usize]) -> Result<()> {
    let any = match server.ip() {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0_u16; 8]),
    };
    let socket = UdpSocket::bind((any, port))?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.connect(server)?;
    for length in lengths {
        let query = port.to_be_bytes().repeat(length / 2);
        socket.send(&query)?;
        let mut answer = [0; 1 << 16];
        let length = socket.recv(&mut answer).with_context(|| format!("{length} bytes from port {port}"))?;
        ensure!(answer.get(..length) == Some(&query[..]), "another answer than the query");
    }
    Ok(())
}
