//! Does the real server take a connection?

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::config::model::Check;

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot open a socket here: {0}")]
    Socket(io::ErrorKind),
    #[error("cannot bind to {address} here: {cause}")]
    Bind { address: Ipv4Addr, cause: io::ErrorKind },
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
pub async fn connect(check: &Check) -> Result<TcpStream, ConnectError> {
    let socket = TcpSocket::new_v4().map_err(|error| ConnectError::Socket(error.kind()))?;
    if let Some(address) = check.bind {
        // The port is chosen at connect: else all checks from this address share one range of ports.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)
            .map_err(io::Error::from)
            .and_then(|()| socket.bind(SocketAddr::from((address, 0))))
            .map_err(|error| ConnectError::Bind { address, cause: error.kind() })?;
    }
    let limit = check.timing.connect_timeout;
    match timeout(limit, socket.connect(SocketAddr::from((check.address, check.port)))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == io::ErrorKind::AddrNotAvailable => Err(ConnectError::NoLocalPort),
        Ok(Err(error)) => Err(ConnectError::Refused(error.kind())),
        Err(_) => Err(ConnectError::Timeout(limit)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::check::testing::{check_of, full_backlog};

    #[tokio::test]
    async fn an_open_port_takes_the_connection_and_sees_it_closed_at_once() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        drop(connect(&check_of(server.local_addr().unwrap())).await.unwrap());
        let (stream, _) = server.accept().await.unwrap();
        stream.readable().await.unwrap();
        assert_eq!(stream.try_read(&mut [0; 8]).unwrap(), 0, "FIN, no data, no RST");
    }

    #[tokio::test]
    async fn a_closed_port_is_refused() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = connect(&check_of(address)).await.unwrap_err();
        assert_eq!(error.to_string(), "connection refused");
        assert!(!error.is_local());
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_the_syn_times_out() {
        let (address, _held) = full_backlog();
        let mut check = check_of(address);
        check.timing.connect_timeout = Duration::from_millis(50);
        assert_eq!(connect(&check).await.unwrap_err().to_string(), "timeout after 50ms");
    }

    #[tokio::test]
    async fn bindto_is_the_source_the_server_sees() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut check = check_of(server.local_addr().unwrap());
        check.bind = Some(Ipv4Addr::new(127, 0, 0, 77));
        let _stream = connect(&check).await.unwrap();
        assert_eq!(server.accept().await.unwrap().1.ip(), Ipv4Addr::new(127, 0, 0, 77));
    }

    #[tokio::test]
    async fn an_address_this_host_does_not_own_is_a_local_fault() {
        let mut check = check_of(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        check.bind = Some(Ipv4Addr::new(192, 0, 2, 1));
        let error = connect(&check).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot bind to 192.0.2.1 here: address not available");
        assert!(error.is_local());
    }
}
