//! How does a check come by a TLS connection, and whom does it trust?
//!
//! As keepalived: nobody's certificate is looked at, since a check asks whether the server serves. Unlike it, where
//! a `ca` is given the certificate must be of that authority and for the name, or the check fails.

use std::{io, sync::Arc, time::Duration};

use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
        client::{
            Resumption,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};

use crate::config::model::Tls;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    #[error("TLS cannot be set up here: {0}")]
    Setup(String),
    #[error("TLS: {0}")]
    Handshake(String),
    #[error("{0} during the TLS handshake")]
    Io(io::ErrorKind),
    #[error("the TLS handshake is not complete after {0:?}")]
    Timeout(Duration),
}

/// What all connections of one check share.
pub fn connector(tls: &Tls) -> Result<TlsConnector, TlsError> {
    let setup = |error: rustls::Error| TlsError::Setup(error.to_string());
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(setup)?;
    let builder = match &tls.roots {
        Some(trusted) => {
            let mut roots = RootCertStore::empty();
            for root in trusted.iter() {
                roots.add(root.clone()).map_err(setup)?;
            }
            builder.with_root_certificates(roots)
        }
        None => builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustsAll(provider))),
    };
    let mut config = match &tls.identity {
        Some(identity) => {
            builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key()).map_err(setup)?
        }
        None => builder.with_no_client_auth(),
    };
    config.enable_sni = tls.sni;
    // Each check is to see a whole handshake.
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

pub async fn handshake(
    connector: &TlsConnector,
    stream: TcpStream,
    name: ServerName<'static>,
    limit: Duration,
) -> Result<TlsStream<TcpStream>, TlsError> {
    match timeout(limit, connector.connect(name, stream)).await {
        Ok(done) => {
            done.map_err(|error| match error.get_ref().and_then(|it| it.downcast_ref::<rustls::Error>()) {
                Some(refused) => TlsError::Handshake(refused.to_string()),
                None => TlsError::Io(error.kind()),
            })
        }
        Err(_) => Err(TlsError::Timeout(limit)),
    }
}

#[derive(Debug)]
struct TrustsAll(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustsAll {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    // A certificate that nobody looks at may be one that cannot be read, such as of X.509 version 1.
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };
    use tokio_rustls::{
        TlsAcceptor,
        rustls::{ServerConfig, pki_types::PrivateKeyDer, server::WebPkiClientVerifier},
    };

    use super::*;
    use crate::{check::testing::tls_server as server, config::model::Identity};

    const LONG: Duration = Duration::from_secs(20);

    /// What a check says of that server, and the name that the server was asked for.
    async fn check(
        acceptor: TlsAcceptor,
        roots: Option<Vec<CertificateDer<'static>>>,
        sni: bool,
        name: &'static str,
    ) -> (Result<(), TlsError>, Option<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.ok()?;
            let name = stream.get_ref().1.server_name().map(str::to_owned);
            let mut byte = [0];
            let _ = stream.read(&mut byte).await;
            name
        };
        let ask = async {
            let connector = connector(&Tls { roots: roots.map(Arc::new), identity: None, sni }).unwrap();
            let stream = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from(name).unwrap();
            let mut stream = handshake(&connector, stream, name, LONG).await?;
            stream.shutdown().await.unwrap();
            Ok(())
        };
        tokio::join!(ask, serve)
    }

    #[tokio::test]
    async fn without_a_ca_any_certificate_will_do() {
        let (_, acceptor) = server();
        assert_eq!(check(acceptor, None, false, "other.org").await, (Ok(()), None));
    }

    #[tokio::test]
    async fn the_server_is_told_the_name_with_enable_sni_only() {
        let (_, acceptor) = server();
        let (result, name) = check(acceptor, None, true, "www.example.org").await;
        assert_eq!((result, name.as_deref()), (Ok(()), Some("www.example.org")));
    }

    #[tokio::test]
    async fn with_a_ca_the_certificate_must_be_of_it_and_for_the_name() {
        let (certificate, acceptor) = server();
        let trusted = Some(vec![certificate]);
        assert_eq!(check(acceptor.clone(), trusted.clone(), false, "example.org").await.0, Ok(()));
        let error = check(acceptor, trusted.clone(), false, "other.org").await.0.unwrap_err().to_string();
        assert!(error.starts_with("TLS: invalid peer certificate: "), "{error}");
        let (_, other) = server();
        assert!(check(other, trusted, false, "example.org").await.0.is_err());
    }

    #[tokio::test]
    async fn a_server_that_asks_who_we_are_is_shown_our_certificate() {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["lb.example.org".to_owned()]).unwrap();
        let identity = Identity {
            chain: vec![cert.der().clone()],
            key: PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap(),
        };
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["example.org".to_owned()]).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![cert.der().clone()],
                PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        for (identity, admitted) in [(Some(Arc::new(identity)), true), (None, false)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let connector = connector(&Tls { roots: None, identity, sni: false }).unwrap();
            let ask = async {
                let stream = TcpStream::connect(address).await.unwrap();
                // With TLS 1.3 a client hears of its refusal later.
                drop(handshake(&connector, stream, ServerName::try_from("a").unwrap(), LONG).await);
            };
            let serve = async { acceptor.accept(listener.accept().await.unwrap().0).await.is_ok() };
            assert_eq!(tokio::join!(ask, serve).1, admitted);
        }
    }

    #[tokio::test]
    async fn what_speaks_no_tls_closes_or_says_nothing_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connector = connector(&Tls { roots: None, identity: None, sni: false }).unwrap();
        let name = || ServerName::try_from("a").unwrap();
        for (answer, expected) in [
            (&b"HTTP/1.0 400 Bad Request\r\n\r\n"[..], "TLS: received corrupt message of type "),
            (b"", "unexpected end of file during the TLS handshake"),
        ] {
            let ask = async {
                handshake(&connector, TcpStream::connect(address).await.unwrap(), name(), LONG).await
            };
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut hello = [0; 1024];
                assert_ne!(stream.read(&mut hello).await.unwrap(), 0);
                stream.write_all(answer).await.unwrap();
                stream.shutdown().await.unwrap();
                stream
            };
            let (result, _still_open) = tokio::join!(ask, serve);
            let error = result.unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let silent = TcpStream::connect(address).await.unwrap();
        let limit = Duration::from_millis(50);
        let error = handshake(&connector, silent, name(), limit).await.unwrap_err();
        assert_eq!(error, TlsError::Timeout(limit));
    }
}
