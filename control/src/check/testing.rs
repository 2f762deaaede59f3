//! Checks and servers for the tests of this module.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use socket2::{Domain, Socket, Type};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer},
    },
};

use crate::config::model::{Check, CheckKind, CheckTiming};

/// A TCP check of `server` that is patient with a slow machine.
pub fn check_of(server: SocketAddr) -> Check {
    Check {
        kind: CheckKind::Tcp,
        address: server.ip(),
        port: server.port(),
        source: Arc::default(),
        timing: Arc::new(CheckTiming {
            delay_loop: Duration::from_millis(50),
            connect_timeout: Duration::from_secs(20),
            retry: 1,
            delay_before_retry: Duration::from_millis(10),
            warmup: Duration::ZERO,
            rise: 1,
            fall: None,
        }),
        alpha: false,
        log_all_failures: false,
        on_vip: None,
        only_with: None,
    }
}

/// A listener whose queue is full: the kernel drops every further SYN, as an unplugged host would.
pub fn full_backlog() -> (SocketAddr, [Socket; 3]) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let fill = || {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        // In progress is all there is to wait for.
        let _ = client.connect(&address);
        client
    };
    (address.as_socket().unwrap(), [fill(), fill(), listener])
}

/// A new certificate for example.org, and what serves it.
pub fn tls_server() -> (CertificateDer<'static>, TlsAcceptor) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["example.org".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    (cert.der().clone(), TlsAcceptor::from(Arc::new(config)))
}
