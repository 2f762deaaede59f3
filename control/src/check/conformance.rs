//! Every check against a server of every manner: the verdict, its time, and that the socket is closed after it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::OnceLock,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    runner::Prober,
    testing::{check_of, full_backlog, tls_server},
};
use crate::config::model::{Check, CheckKind, DnsCheck, HttpCheck, HttpProtocol, Reply, Tls, UdpCheck, Url};

/// `connect_timeout` of all checks here.
const LIMIT: Duration = Duration::from_secs(1);
/// What a slow server takes for each answer.
const PAUSE: Duration = Duration::from_millis(150);
/// More than a verdict without a timeout needs on a busy machine, and how late one with it may be.
const SLACK: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Good,
    Slow,
    Silent,
    Resetting,
    Garbage,
    /// Ends its half of the connection at once and goes on reading.
    HalfClosing,
}

fn check(kind: CheckKind, server: SocketAddr) -> Check {
    let mut check = Check { kind, ..check_of(server) };
    check.timing.connect_timeout = LIMIT;
    check
}

fn http(tls: bool) -> CheckKind {
    let url = Url {
        path: "/".into(),
        status: vec![(200, 299)],
        digest: None,
        search: None,
        host: "www".into(),
        server_name: std::net::IpAddr::V4(Ipv4Addr::LOCALHOST).into(),
    };
    let tls = tls.then_some(Tls { roots: None, sni: false });
    CheckKind::Http(HttpCheck { urls: vec![url], protocol: HttpProtocol::V1_0, fast_recovery: false, tls })
}

fn smtp() -> CheckKind {
    CheckKind::Smtp { helo: "lb.example.org".into() }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Serves one connection; the task ends when the check has closed it.
async fn serve(kind: CheckKind, manner: Manner) -> (SocketAddr, JoinHandle<()>) {
    let (listener, address) = listener().await;
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        match manner {
            Manner::Good | Manner::Slow => answer(&kind, &mut stream, manner).await,
            Manner::Silent => {}
            Manner::Resetting => return stream.set_zero_linger().unwrap(),
            Manner::Garbage => {
                // A check that has seen enough closes first.
                let _ = stream.write_all(&[0x80; 100_000]).await;
            }
            Manner::HalfClosing => stream.shutdown().await.unwrap(),
        }
        // Until the end or a reset.
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await.is_ok_and(|length| length > 0) {}
    });
    (address, task)
}

async fn answer(kind: &CheckKind, stream: &mut TcpStream, manner: Manner) {
    let pause = if manner == Manner::Slow { PAUSE } else { Duration::ZERO };
    match kind {
        CheckKind::Http(HttpCheck { tls: Some(_), .. }) => {
            sleep(pause).await;
            let (_, acceptor) = tls_server();
            let mut stream = acceptor.accept(stream).await.unwrap();
            page(&mut stream, pause).await;
        }
        CheckKind::Http(_) => page(stream, pause).await,
        CheckKind::Smtp { .. } => {
            for line in ["220 mx\r\n", "250 hello\r\n", "221 bye\r\n"] {
                sleep(pause).await;
                stream.write_all(line.as_bytes()).await.unwrap();
                if !line.starts_with("221") {
                    assert_ne!(stream.read(&mut [0; 100]).await.unwrap(), 0);
                }
            }
        }
        _ => {}
    }
}

async fn page(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), pause: Duration) {
    assert_ne!(stream.read(&mut [0; 1000]).await.unwrap(), 0);
    for part in ["HTTP/1.0 200 OK\r\n", "Content-Length: 2\r\n\r\n", "ok"] {
        sleep(pause).await;
        stream.write_all(part.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
    }
}

/// What the check says, and how long it took.
async fn probe(check: &Check) -> (String, Duration) {
    let asker = OnceLock::new();
    let prober = Prober::new(check, &asker);
    let start = Instant::now();
    let said = prober.probe(0).await.map_or_else(|error| error.to_string(), |_| "good".into());
    (said, start.elapsed())
}

async fn expect(kind: CheckKind, manner: Manner, expected: &str) {
    let (address, server) = serve(kind.clone(), manner).await;
    let word = kind.word();
    let (said, took) = probe(&check(kind, address)).await;
    assert!(said.starts_with(expected), "{word} of a {manner:?} server: {said}");
    let (least, most) = match manner {
        Manner::Silent if said != "good" => (LIMIT, LIMIT + SLACK),
        Manner::Slow if word != "TCP_CHECK" => (PAUSE * 3, PAUSE * 4 + SLACK),
        _ => (Duration::ZERO, SLACK),
    };
    assert!((least..most).contains(&took), "{word} of a {manner:?} server: {took:?}");
    timeout(SLACK, server).await.expect("a closed connection").unwrap();
}

#[tokio::test]
async fn tcp_check_asks_for_a_connection_and_no_more() {
    for manner in [Manner::Good, Manner::Slow, Manner::Silent, Manner::Garbage, Manner::HalfClosing] {
        expect(CheckKind::Tcp, manner, "good").await;
    }
}

#[tokio::test]
async fn http_get_wants_an_answer_of_http() {
    for (manner, expected) in [
        (Manner::Good, "good"),
        (Manner::Slow, "good"),
        (Manner::Silent, "timeout after 1s"),
        // The reset may come before or behind the request.
        (Manner::Resetting, ""),
        (Manner::Garbage, r#"not an HTTP answer, it starts with "\x80"#),
        (Manner::HalfClosing, "connection closed without an answer"),
    ] {
        expect(http(false), manner, expected).await;
    }
}

#[tokio::test]
async fn ssl_get_wants_an_answer_of_http_over_tls() {
    for (manner, expected) in [
        (Manner::Good, "good"),
        (Manner::Slow, "good"),
        (Manner::Silent, "the TLS handshake is not complete after 1s"),
        (Manner::Resetting, ""),
        (Manner::Garbage, "TLS: received corrupt message"),
        (Manner::HalfClosing, "unexpected end of file during the TLS handshake"),
    ] {
        expect(http(true), manner, expected).await;
    }
}

#[tokio::test]
async fn ssl_get_forgives_a_server_that_ends_without_a_word() {
    let (listener, address) = listener().await;
    let serve = async {
        let (_, acceptor) = tls_server();
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        assert_ne!(stream.read(&mut [0; 1000]).await.unwrap(), 0);
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nok").await.unwrap();
        stream.flush().await.unwrap();
        // No close_notify: as the connection is dropped, so it ends.
        drop(stream.into_inner());
    };
    let check = check(http(true), address);
    assert_eq!(tokio::join!(probe(&check), serve).0.0, "good");
}

#[tokio::test]
async fn smtp_check_wants_a_dialogue() {
    for (manner, expected) in [
        (Manner::Good, "good"),
        (Manner::Slow, "good"),
        (Manner::Silent, "no answer to the connection within 1s"),
        (Manner::Resetting, "connection reset while"),
        (Manner::Garbage, "the answer to the connection is longer than 4096 bytes"),
        (Manner::HalfClosing, "connection closed instead of an answer to the connection"),
    ] {
        expect(smtp(), manner, expected).await;
    }
}

#[tokio::test]
async fn a_reset_is_never_a_success_of_a_dialogue() {
    for kind in [http(false), http(true), smtp()] {
        let (address, server) = serve(kind.clone(), Manner::Resetting).await;
        let (said, _) = probe(&check(kind, address)).await;
        assert_ne!(said, "good");
        server.await.unwrap();
    }
}

#[tokio::test]
async fn nobody_who_refuses_or_drops_connections_passes() {
    for kind in [CheckKind::Tcp, http(false), http(true), smtp()] {
        let (listener, closed) = listener().await;
        drop(listener);
        assert_eq!(probe(&check(kind.clone(), closed)).await.0, "connection refused");
        let (full, _held) = full_backlog();
        let (said, took) = probe(&check(kind, full)).await;
        assert_eq!(said, "timeout after 1s");
        assert!((LIMIT..LIMIT + SLACK).contains(&took), "{took:?}");
    }
}

#[tokio::test]
async fn datagram_checks_of_a_good_a_silent_and_a_refusing_server() {
    let dns = CheckKind::Dns(DnsCheck::new("", simple_dns::TYPE::SOA).unwrap());
    let udp = |reply| CheckKind::Udp(UdpCheck { payload: vec![0; 12], reply });
    for (kind, silent) in [
        (dns, "no answer within 1s"),
        (udp(Reply::Any), "no reply within 1s"),
        (udp(Reply::NotNeeded), "good"),
    ] {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let check = check(kind, server.local_addr().unwrap());
        let (said, took) = probe(&check).await;
        assert_eq!(said, silent);
        assert!((LIMIT..LIMIT + SLACK).contains(&took), "{took:?}");

        let echo = async {
            let mut asked = [0; 100];
            // The silence before has left a question.
            for _ in 0..2 {
                let (length, from) = server.recv_from(&mut asked).await.unwrap();
                asked[2] |= 0x80;
                sleep(PAUSE / 2).await;
                server.send_to(&asked[..length], from).await.unwrap();
            }
        };
        let ((said, took), ()) = tokio::join!(probe(&check), echo);
        assert_eq!(said, "good");
        assert!(took < LIMIT, "{took:?}");

        drop(server);
        assert_eq!(probe(&check).await.0, "connection refused");
    }
}
