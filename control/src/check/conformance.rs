//! Every check against a server of every manner: the verdict, its time, and that the socket is closed after it.
//!
//! What asks no server over a connection has no half of it to close, and nothing to reset: datagrams are empty or refused
//! instead, programs close their output or are killed, files are empty or removed.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    file,
    runner::Prober,
    testing::{check_of, full_backlog, tls_server},
};
use crate::{
    config::model::{
        Check, CheckKind, DnsCheck, FileCheck, HttpCheck, HttpProtocol, MiscCheck, Reply, Tls, UdpCheck, Url,
    },
    file_value::Files,
    script::{Account, Script},
};

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
    Arc::make_mut(&mut check.timing).connect_timeout = LIMIT;
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
    let tls = tls.then_some(Tls { roots: None, identity: None, sni: false });
    let http = HttpCheck { urls: vec![url], protocol: HttpProtocol::V1_0, fast_recovery: false, tls };
    CheckKind::Http(Box::new(http))
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
        CheckKind::Http(http) if http.tls.is_some() => {
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
    // The reset may come before the connection is looked at, or behind.
    expect(CheckKind::Tcp, Manner::Resetting, "").await;
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

/// Answers each datagram.
async fn answer_datagrams(server: &UdpSocket, manner: Manner) {
    let mut asked = [0; 100];
    loop {
        let (length, from) = server.recv_from(&mut asked).await.unwrap();
        // An answer to a question of DNS, and to itself.
        asked[2] |= 0x80;
        let answer = match manner {
            Manner::Good => asked[..length].to_vec(),
            Manner::Slow => {
                sleep(PAUSE).await;
                asked[..length].to_vec()
            }
            Manner::Garbage => vec![0x7f; 50],
            Manner::HalfClosing => Vec::new(),
            Manner::Silent | Manner::Resetting => continue,
        };
        server.send_to(&answer, from).await.unwrap();
    }
}

#[tokio::test]
async fn datagram_checks_want_the_answer_that_they_are_told_to_want() {
    let dns = CheckKind::Dns(DnsCheck::new("", simple_dns::TYPE::SOA).unwrap());
    let udp = |reply| CheckKind::Udp(Box::new(UdpCheck { payload: vec![0; 12], reply }));
    let like = Reply::Like { bytes: vec![(0, 0xff)], min: 1, max: 255 };
    const NO_ANSWER: &str = "no answer within 1s";
    const NO_REPLY: &str = "no reply within 1s";
    for (kind, [silent, garbage, empty]) in [
        // What is no answer to the question leaves the time that is left.
        (dns, [NO_ANSWER, NO_ANSWER, NO_ANSWER]),
        (udp(Reply::NotNeeded), ["good", "good", "good"]),
        (udp(Reply::Any), [NO_REPLY, "good", "good"]),
        (udp(like), [NO_REPLY, "byte 0 of the reply is 7f", "a reply of 0 bytes is not in 1 to 255"]),
    ] {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let check = check(kind, server.local_addr().unwrap());
        for (manner, expected) in [
            (Manner::Good, "good"),
            (Manner::Slow, "good"),
            (Manner::Silent, silent),
            (Manner::Garbage, garbage),
            (Manner::HalfClosing, empty),
        ] {
            let (said, took) = tokio::select! {
                probed = probe(&check) => probed,
                () = answer_datagrams(&server, manner) => unreachable!(),
            };
            let name = format!("{} of a {manner:?} server", check.kind.word());
            assert_eq!(said, expected, "{name}");
            let waits = expected.contains("within") || manner == Manner::Silent;
            let least = match manner {
                Manner::Slow => PAUSE,
                _ if waits => LIMIT,
                _ => Duration::ZERO,
            };
            assert!((least..least + SLACK).contains(&took), "{name}: {took:?}");
        }
        drop(server);
        let (said, took) = probe(&check).await;
        assert_eq!(said, "connection refused");
        assert!(took < SLACK, "{took:?}");
    }
}

#[tokio::test]
async fn ping_check_wants_an_echo() {
    let ping = |to: [u8; 4]| check(CheckKind::Ping, SocketAddr::from((to, 0)));
    let (said, took) = probe(&ping([127, 0, 0, 1])).await;
    if said.starts_with("cannot open a socket") {
        return lvs_tests::skip("neither raw sockets nor those of net.ipv4.ping_group_range are allowed");
    }
    assert_eq!(said, "good");
    assert!(took < SLACK, "{took:?}");
    // Nobody has an address for documentation (RFC 5737).
    let mut silent = ping([192, 0, 2, 1]);
    Arc::make_mut(&mut silent.source).interface = Some("lo".into());
    let (said, took) = probe(&silent).await;
    assert_eq!(said, "no echo within 1s");
    assert!((LIMIT..LIMIT + SLACK).contains(&took), "{took:?}");
}

#[tokio::test]
async fn misc_check_wants_a_program_that_ends_well_and_in_time() {
    for (manner, program, expected, least) in [
        ("good", "exit 0", "good", Duration::ZERO),
        ("slow", "sleep 0.3", "good", Duration::from_millis(300)),
        ("refusing", "exit 1", "the program ended with 1", Duration::ZERO),
        ("silent", "sleep 99", "the program took longer than 1s", LIMIT),
        ("killed", "kill -9 $$", "the program was killed", Duration::ZERO),
        ("babbling", "head -c 200000 /dev/zero; exit 0", "good", Duration::ZERO),
        ("half-closing", "exec >&- 2>&-; exit 0", "good", Duration::ZERO),
    ] {
        let words = ["/bin/sh", "-c", program].map(str::to_owned).into();
        let account = Account { uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw() };
        let script = Script::new(words, account).unwrap();
        let kind = CheckKind::Misc(Box::new(MiscCheck { script, timeout: LIMIT, dynamic: false }));
        let (said, took) = probe(&check(kind, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))).await;
        assert_eq!(said, expected, "a {manner} program");
        assert!((least..least + SLACK).contains(&took), "a {manner} program: {took:?}");
    }
}

#[tokio::test]
async fn file_check_wants_a_0_and_hears_of_each_change() {
    let folder = std::env::temp_dir().join(format!("lvsd-conformance-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (path, new) = (folder.join("number"), folder.join("new"));
    let (files, cancel) = (Files::open(), CancellationToken::new());
    let listener = tokio::spawn(files.clone().run(cancel.clone()));
    let (sender, mut verdicts) = mpsc::channel(1);
    let follower = files.follow(&path);
    let check = FileCheck { path: path.clone(), weight: 0, reverse: false };
    let task = tokio::spawn(async move { file::follow(0, &check, follower, &sender).await });
    let mut next = async || {
        let verdict = timeout(SLACK, verdicts.recv()).await.expect("a verdict in time").unwrap();
        verdict.error.map_or_else(|| "good".to_owned(), |error| error.to_string())
    };
    assert_eq!(next().await, "good", "a file that is not there");
    for (content, expected) in [
        ("3\n", "the file says 3"),
        ("0", "good"),
        ("-1 and more", "the file says -1"),
        ("\u{0}\u{7f}garbage", "good"),
        ("7", "the file says 7"),
        ("", "good"),
        ("8", "the file says 8"),
    ] {
        fs::write(&new, content).unwrap();
        fs::rename(&new, &path).unwrap();
        assert_eq!(next().await, expected, "{content:?}");
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(next().await, "good", "a file that was removed");
    cancel.cancel();
    task.abort();
    listener.await.unwrap();
    fs::remove_dir_all(&folder).unwrap();
}
