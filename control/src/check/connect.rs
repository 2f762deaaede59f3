//! Does the real server take a connection? And how every other check comes by its socket.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpSocket, TcpStream, UdpSocket},
    time::timeout,
};

use crate::config::model::{Check, Family};

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot open a socket here: {0}")]
    Socket(io::ErrorKind),
    #[error("cannot bind to {to} here: {cause}")]
    Bind { to: String, cause: io::ErrorKind },
    #[error("no local port is free")]
    NoLocalPort,
    #[error("{0}")]
    Refused(io::ErrorKind),
    #[error("timeout after {0:?}")]
    Timeout(Duration),
}

impl ConnectError {
    /// This host could not even try: no verdict on the real server.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Socket(_) | Self::Bind { .. } | Self::NoLocalPort => true,
            Self::Refused(_) | Self::Timeout(_) => false,
        }
    }
}

/// Connects as `check` says. Dropping the stream closes it, as dropping the future does.
pub async fn tcp(check: &Check) -> Result<TcpStream, ConnectError> {
    let socket = socket(check, Type::STREAM, None)?;
    let socket = TcpSocket::from_std_stream(socket.into());
    let limit = check.timing.connect_timeout;
    match timeout(limit, socket.connect(target(check))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(refused(error)),
        Err(_) => Err(ConnectError::Timeout(limit)),
    }
}

/// A socket that talks to nobody else; nothing has been sent yet.
pub fn udp(check: &Check) -> Result<UdpSocket, ConnectError> {
    connected(check, Type::DGRAM, None)
}

fn connected(check: &Check, kind: Type, protocol: Option<Protocol>) -> Result<UdpSocket, ConnectError> {
    let socket = socket(check, kind, protocol)?;
    socket.connect(&target(check).into()).map_err(refused)?;
    UdpSocket::from_std(socket.into()).map_err(|error| ConnectError::Socket(error.kind()))
}

pub struct Icmp {
    /// tokio has no type of its own for it; what it does with the descriptor is the same.
    pub socket: UdpSocket,
    pub family: Family,
    /// It sees what is for others, and shows the headers of IPv4.
    pub raw: bool,
}

/// A raw socket needs CAP_NET_RAW, the other a group within net.ipv4.ping_group_range.
pub fn icmp(check: &Check, raw: bool) -> Result<Icmp, ConnectError> {
    let kind = if raw { Type::RAW } else { Type::DGRAM };
    let family = Family::of(check.address);
    let protocol = match family {
        Family::V4 => Protocol::ICMPV4,
        Family::V6 => Protocol::ICMPV6,
    };
    let socket = connected(check, kind, Some(protocol))?;
    Ok(Icmp { socket, family, raw })
}

/// A socket that does not block and is bound as the check's source says.
fn socket(check: &Check, kind: Type, protocol: Option<Protocol>) -> Result<Socket, ConnectError> {
    let source = &check.source;
    let (domain, any) = match check.address {
        IpAddr::V4(_) => (Domain::IPV4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        IpAddr::V6(_) => (Domain::IPV6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    };
    let socket = Socket::new(domain, kind.nonblocking(), protocol)
        .map_err(|error| ConnectError::Socket(error.kind()))?;
    let failed = |to: String| move |cause: io::Error| ConnectError::Bind { to, cause: cause.kind() };
    if let Some(mark) = source.mark {
        socket.set_mark(mark).map_err(failed(format!("fwmark {mark}")))?;
    }
    if let Some(interface) = &source.interface {
        socket.bind_device(Some(interface.as_bytes())).map_err(failed(interface.clone()))?;
    }
    let address = source.address.unwrap_or(any);
    match source.port {
        Some(port) => {
            let to = SocketAddr::new(address, port);
            // The last check's connection may still be in TIME_WAIT.
            socket
                .set_reuse_address(true)
                .and_then(|()| socket.bind(&to.into()))
                .map_err(failed(to.to_string()))?;
        }
        None if source.address.is_some() => {
            // The port is chosen at connect: else all checks from this address share one range of ports. A raw socket
            // has none, and one of IPv6 does not know the option.
            let option = match kind {
                Type::RAW => Ok(()),
                _ => setsockopt(&socket, sockopt::IpBindAddressNoPort, &true).map_err(io::Error::from),
            };
            option
                .and_then(|()| socket.bind(&SocketAddr::new(address, 0).into()))
                .map_err(failed(address.to_string()))?;
        }
        None => {}
    }
    Ok(socket)
}

fn target(check: &Check) -> SocketAddr {
    SocketAddr::new(check.address, check.port)
}

fn refused(error: io::Error) -> ConnectError {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => ConnectError::NoLocalPort,
        kind => ConnectError::Refused(kind),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, sync::Arc};

    use super::*;
    use crate::check::testing::{check_of, full_backlog};

    #[tokio::test]
    async fn an_open_port_takes_the_connection_and_sees_it_closed_at_once() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        drop(tcp(&check_of(server.local_addr().unwrap())).await.unwrap());
        let (stream, _) = server.accept().await.unwrap();
        stream.readable().await.unwrap();
        assert_eq!(stream.try_read(&mut [0; 8]).unwrap(), 0, "FIN, no data, no RST");
    }

    #[tokio::test]
    async fn a_closed_port_is_refused() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = tcp(&check_of(address)).await.unwrap_err();
        assert_eq!(error.to_string(), "connection refused");
        assert!(!error.is_local());
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_the_syn_times_out() {
        let (address, _held) = full_backlog();
        let mut check = check_of(address);
        Arc::make_mut(&mut check.timing).connect_timeout = Duration::from_millis(50);
        assert_eq!(tcp(&check).await.unwrap_err().to_string(), "timeout after 50ms");
    }

    #[tokio::test]
    async fn bindto_is_the_source_the_server_sees() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut check = check_of(server.local_addr().unwrap());
        Arc::make_mut(&mut check.source).address = Some([127, 0, 0, 77].into());
        let _stream = tcp(&check).await.unwrap();
        assert_eq!(server.accept().await.unwrap().1.ip(), Ipv4Addr::new(127, 0, 0, 77));
    }

    #[tokio::test]
    async fn over_ipv6_it_is_the_same() {
        let Ok(server) = tokio::net::TcpListener::bind("[::1]:0").await else {
            return lvs_tests::skip("this host has no IPv6");
        };
        let mut check = check_of(server.local_addr().unwrap());
        Arc::make_mut(&mut check.source).address = Some(Ipv6Addr::LOCALHOST.into());
        let _stream = tcp(&check).await.unwrap();
        assert_eq!(server.accept().await.unwrap().1.ip(), Ipv6Addr::LOCALHOST);
        // RFC 3849: nobody has it.
        Arc::make_mut(&mut check.source).address = Some("2001:db8::77".parse().unwrap());
        assert!(tcp(&check).await.unwrap_err().is_local());
        let asked = udp(&check_of(server.local_addr().unwrap())).unwrap();
        assert_eq!(asked.peer_addr().unwrap(), server.local_addr().unwrap());
    }

    #[tokio::test]
    async fn an_address_this_host_does_not_own_is_a_local_fault() {
        let mut check = check_of(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        Arc::make_mut(&mut check.source).address = Some([192, 0, 2, 1].into());
        let error = tcp(&check).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot bind to 192.0.2.1 here: address not available");
        assert!(error.is_local());
    }

    #[tokio::test]
    async fn bind_port_is_the_port_the_server_sees_again_and_again() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let free = TcpListener::bind("127.0.0.78:0").unwrap().local_addr().unwrap().port();
        let mut check = check_of(server.local_addr().unwrap());
        let source = Arc::make_mut(&mut check.source);
        (source.port, source.address) = (Some(free), Some([127, 0, 0, 78].into()));
        for _ in 0..2 {
            let stream = tcp(&check).await.unwrap();
            let (served, from) = server.accept().await.unwrap();
            assert_eq!(from.port(), free);
            // The server closes first: TIME_WAIT is on its side.
            drop(served);
            stream.readable().await.unwrap();
        }
    }

    #[tokio::test]
    async fn bind_if_keeps_a_check_on_its_interface() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut check = check_of(server.local_addr().unwrap());
        Arc::make_mut(&mut check.source).interface = Some("lo".into());
        tcp(&check).await.unwrap();
        Arc::make_mut(&mut check.source).interface = Some("none-such".into());
        let error = tcp(&check).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot bind to none-such here: "), "{error}");
        assert!(error.is_local());
    }
}
