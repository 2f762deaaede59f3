use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr},
};

use md5::{Digest as _, Md5};
use proptest::prelude::*;
use tokio::{
    io::{DuplexStream, duplex},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

use super::*;
use crate::config::model::Search;

const LIMIT: Duration = Duration::from_secs(3);

fn url() -> Url {
    Url {
        path: "/healthCheck".into(),
        status: vec![(200, 299)],
        digest: None,
        search: None,
        host: "10.0.0.1:80".into(),
        server_name: std::net::IpAddr::V4(Ipv4Addr::LOCALHOST).into(),
    }
}

fn with_digest(body: &[u8]) -> Url {
    Url { digest: Some(Md5::digest(body).into()), ..url() }
}

/// What a check says of a server that sends `answer` over a real connection and closes.
async fn check(url: &Url, answer: &[u8]) -> Result<(), HttpError> {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = server.local_addr().unwrap();
    let serve = async {
        let (mut stream, _) = server.accept().await.unwrap();
        read_request(&mut stream).await;
        // A check that has seen enough closes first.
        let _ = stream.write_all(answer).await;
    };
    let ask =
        async { get(&mut TcpStream::connect(address).await.unwrap(), url, HttpProtocol::V1_0, LIMIT).await };
    tokio::join!(ask, serve).0
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
    }
    String::from_utf8(request).unwrap()
}

/// The same against a server that takes its time, on a paused clock; also how long the check took.
async fn check_slow<F: Future<Output = ()>>(
    server: impl FnOnce(DuplexStream) -> F,
) -> (Result<(), HttpError>, Duration) {
    let (mut near, mut far) = duplex(1024);
    let start = Instant::now();
    let serve = async {
        read_request(&mut far).await;
        server(far).await;
    };
    let url = url();
    tokio::select! {
        result = get(&mut near, &url, HttpProtocol::V1_0, LIMIT) => (result, start.elapsed()),
        () = async { serve.await; std::future::pending().await } => unreachable!(),
    }
}

fn says(result: Result<(), HttpError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn requests_are_keepaliveds_but_for_the_agent() {
    assert_eq!(
        request(&url(), HttpProtocol::V1_0),
        "GET /healthCheck HTTP/1.0\r\nUser-Agent: lvsd\r\nHost: 10.0.0.1:80\r\n\r\n"
    );
    assert_eq!(
        request(&url(), HttpProtocol::V1_0Close),
        "GET /healthCheck HTTP/1.0\r\nUser-Agent: lvsd\r\nConnection: close\r\nHost: 10.0.0.1:80\r\n\r\n"
    );
    assert_eq!(
        request(&url(), HttpProtocol::V1_1),
        "GET /healthCheck HTTP/1.1\r\nUser-Agent: lvsd\r\nConnection: close\r\nHost: 10.0.0.1:80\r\n\r\n"
    );
}

#[tokio::test]
async fn any_2xx_is_good_by_default_with_or_without_a_body_or_a_reason() {
    for answer in ["HTTP/1.0 200 OK\r\n\r\nfine", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 299\n\n"] {
        assert_eq!(check(&url(), answer.as_bytes()).await, Ok(()), "{answer:?}");
    }
}

#[tokio::test]
async fn any_other_status_fails_and_says_what_was_expected() {
    let answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno";
    assert_eq!(says(check(&url(), answer).await), "status 503, expected 200-299");
    let listed = Url { status: vec![(200, 200), (300, 302)], ..url() };
    assert_eq!(says(check(&listed, b"HTTP/1.0 404 NO\r\n\r\n").await), "status 404, expected 200, 300-302");
    assert_eq!(check(&listed, b"HTTP/1.0 302 Found\r\n\r\n").await, Ok(()));
}

#[tokio::test]
async fn the_digest_is_the_md5_of_the_body() {
    let known = "9e107d9d372bb6826bd81d3542a419d6"; // RFC 1321's algorithm on the best known test sentence
    let sentence = b"The quick brown fox jumps over the lazy dog";
    assert_eq!(hex(&with_digest(sentence).digest.unwrap()).to_string(), known);
    let answer = [b"HTTP/1.0 200 OK\r\n\r\n".as_slice(), sentence].concat();
    assert_eq!(check(&with_digest(sentence), &answer).await, Ok(()));
    assert_eq!(
        says(check(&with_digest(b"else"), &answer).await),
        format!("digest {known}, expected 2954e92a9b4d0e998fe4893f8141649a")
    );
}

#[tokio::test]
async fn an_empty_body_has_a_digest_too() {
    assert_eq!(check(&with_digest(b""), b"HTTP/1.0 200 OK\r\n\r\n").await, Ok(()));
    assert_eq!(check(&with_digest(b""), b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n").await, Ok(()));
}

#[tokio::test]
async fn the_digest_ends_at_the_content_length() {
    let answer = b"HTTP/1.0 200 OK\r\ncontent-length: 4\r\n\r\nbodyjunk";
    assert_eq!(check(&with_digest(b"body"), answer).await, Ok(()));
}

#[test]
fn the_content_length_holds_over_all_pieces() {
    let url = with_digest(b"body");
    let mut answer = Answer::to(&url, HttpProtocol::V1_1);
    let pieces: [&[u8]; 4] = [b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nb", b"o", b"dyj", b"unk"];
    assert_eq!(pieces.map(|piece| answer.feed(piece)), [Ok(false), Ok(false), Ok(true), Ok(true)]);
    assert_eq!(answer.finish(), Ok(()));
}

#[tokio::test]
async fn a_sloppy_header_is_no_failure() {
    let answer = b"HTTP/1.0  200 OK\r\nno colon\r\nb\x01d: y\r\nContent-Length : 4\r\n\r\nbodyjunk";
    assert_eq!(check(&with_digest(b"body"), answer).await, Ok(()));
}

#[tokio::test]
async fn a_body_shorter_than_its_content_length_is_no_failure() {
    let answer = b"HTTP/1.0 200 OK\r\nContent-Length: 400\r\n\r\nbody";
    assert_eq!(check(&with_digest(b"body"), answer).await, Ok(()));
}

#[tokio::test]
async fn chunks_that_answer_a_1_0_request_are_not_decoded() {
    let chunks = b"4\r\nbody\r\n0\r\n\r\n";
    let answer = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice(), chunks].concat();
    assert_eq!(check(&with_digest(chunks), &answer).await, Ok(()));
    assert_eq!(check(&url(), &answer).await, Ok(()));
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\nContent-Length: 1\r\n\r\n";

/// What is said of a chunked answer to a 1.1 request, and whether it was seen to be complete.
fn chunked(url: &Url, body: &str) -> (Result<bool, HttpError>, Result<(), HttpError>) {
    let mut answer = Answer::to(url, HttpProtocol::V1_1);
    let fed = answer.feed(format!("{CHUNKED}{body}").as_bytes());
    (fed, answer.finish())
}

#[test]
fn chunks_that_answer_a_1_1_request_are_put_together_and_end_it() {
    let url = with_digest(b"one body");
    for body in [
        "8\r\none body\r\n0\r\n\r\n",
        "3\r\none\r\n005;ext=\"a;b\"\r\n body\r\n0\r\n\r\nmore",
        "8\none body\n0\nTrailer: x\nOther: y\n\n",
        "8 \r\none body\r\n0\r\nTrailer: x\r\n\r\n",
    ] {
        assert_eq!(chunked(&url, body), (Ok(true), Ok(())), "{body:?}");
    }
    assert_eq!(chunked(&url, "8\r\none body").0, Ok(false));
    assert_eq!(chunked(&url, "8\r\none body").1, Ok(()), "cut, but all that was asked for");
}

#[test]
fn chunks_without_a_size_fail() {
    for body in ["\r\n", "x\r\n", ";a\r\n", "-1\r\n", "1\r\nab\r\n", "11111111111111111\r\n"] {
        assert_eq!(chunked(&url(), body).0, Err(HttpError::BadChunk), "{body:?}");
    }
    // A size that no body has is waited for, and then the body is too long.
    assert_eq!(chunked(&url(), "ffffffffffffffff\r\nabc").0, Ok(false));
}

fn searched(pattern: &str, wanted: bool) -> Url {
    let pattern = crate::config::model::Pattern(regex::bytes::Regex::new(pattern).unwrap());
    Url { search: Some(Search { pattern, wanted, min_offset: 0, max_offset: usize::MAX }), ..url() }
}

#[tokio::test]
async fn a_pattern_must_be_found_in_the_body_or_must_not() {
    let answer = b"HTTP/1.0 200 OK\r\nX: status=up\r\n\r\nstatus=down \xff\n";
    assert_eq!(check(&searched("status=(up|down)", true), answer).await, Ok(()));
    assert_eq!(says(check(&searched("=up", true), answer).await), r#"nothing in the body matches "=up""#);
    assert_eq!(check(&searched("=up", false), answer).await, Ok(()));
    assert_eq!(says(check(&searched("down", false), answer).await), r#"the body matches "down" at byte 7"#);
}

#[tokio::test]
async fn a_match_counts_between_its_offsets_only() {
    let answer = b"HTTP/1.0 200 OK\r\n\r\n0123 0123";
    let mut url = searched("01", true);
    for (min, max, good) in [(0, 0, true), (1, 4, false), (1, 5, true), (6, 99, false), (99, 99, false)] {
        let Some(search) = &mut url.search else { panic!("no search") };
        (search.min_offset, search.max_offset) = (min, max);
        assert_eq!(check(&url, answer).await.is_ok(), good, "{min} to {max}");
    }
}

#[tokio::test]
async fn only_the_beginning_of_a_long_body_is_searched() {
    let mut answer = b"HTTP/1.0 200 OK\r\n\r\n".to_vec();
    answer.resize(answer.len() + SEARCH_LIMIT - 1, b'x');
    answer.extend_from_slice(b"yz");
    assert_eq!(check(&searched("xy", true), &answer).await, Ok(()));
    assert!(check(&searched("z", true), &answer).await.is_err());
}

#[tokio::test]
async fn a_body_without_end_is_cut_off() {
    let mut answer = b"HTTP/1.0 200 OK\r\n\r\n".to_vec();
    answer.resize(answer.len() + 17 * 1024 * 1024, b'x');
    assert_eq!(says(check(&url(), &answer).await), "the body is longer than 16777216 bytes");
    let announced = b"HTTP/1.0 200 OK\r\nContent-Length: 16777217\r\n\r\n";
    assert_eq!(check(&url(), announced).await, Err(HttpError::BodyTooLong));
}

#[tokio::test]
async fn a_header_without_end_is_cut_off() {
    let mut answer = b"HTTP/1.0 200 OK\r\nX: ".to_vec();
    answer.resize(answer.len() + 100 * 1024, b'x');
    assert_eq!(says(check(&url(), &answer).await), "the header is longer than 65536 bytes");
    let many = format!("HTTP/1.0 200 OK\r\n{}\r\n", "A: b\r\n".repeat(300));
    assert_eq!(says(check(&url(), many.as_bytes()).await), "malformed header: too many headers");
}

#[tokio::test]
async fn a_server_that_closes_early_fails() {
    assert_eq!(says(check(&url(), b"").await), "connection closed without an answer");
    assert_eq!(
        says(check(&url(), b"HTTP/1.0 200 OK\r\nServ").await),
        "connection closed within the header, after 21 bytes"
    );
}

#[tokio::test]
async fn another_protocol_is_named_at_once_and_harmlessly() {
    let (result, took) = check_slow(|mut server| async move {
        server.write_all(b"SSH-2.0-\x1b[31mOpenSSH\r\n").await.unwrap();
        sleep(LIMIT * 2).await;
    })
    .await;
    assert_eq!(says(result), r#"not an HTTP answer, it starts with "SSH-2.0-\x1b[31mOpe""#);
    assert!(took < LIMIT);
}

#[tokio::test]
async fn a_reset_fails() {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut client = TcpStream::connect(server.local_addr().unwrap()).await.unwrap();
    let serve = async {
        let (mut stream, _) = server.accept().await.unwrap();
        read_request(&mut stream).await;
        stream.set_zero_linger().unwrap();
    };
    let url = url();
    let (result, ()) = tokio::join!(get(&mut client, &url, HttpProtocol::V1_0, LIMIT), serve);
    assert_eq!(says(result), "connection reset while reading the answer");
}

#[tokio::test]
async fn a_server_that_closes_only_its_own_half_has_answered() {
    let server = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    let mut client = TcpStream::connect(server.local_addr().unwrap()).await.unwrap();
    let serve = async {
        let (mut stream, _) = server.accept().await.unwrap();
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nfine").await.unwrap();
        stream.shutdown().await.unwrap();
        stream
    };
    let url = url();
    let (result, _still_open) = tokio::join!(get(&mut client, &url, HttpProtocol::V1_0, LIMIT), serve);
    assert_eq!(result, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_times_out() {
    let (result, took) = check_slow(|server| async move {
        let _held = server;
        std::future::pending().await
    })
    .await;
    assert_eq!((says(result).as_str(), took), ("timeout after 3s", LIMIT));
}

#[tokio::test(start_paused = true)]
async fn connect_timeout_bounds_each_read_not_their_sum() {
    let (result, took) = check_slow(|mut server| async move {
        for piece in [b"HTTP/1.0 200 OK\r".as_slice(), b"\n", b"\r\nbo", b"dy"] {
            sleep(Duration::from_secs(2)).await;
            server.write_all(piece).await.unwrap();
        }
    })
    .await;
    assert_eq!((result, took), (Ok(()), Duration::from_secs(8)));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_in_the_middle_times_out() {
    let (result, _) = check_slow(|mut server| async move {
        server.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await.unwrap();
        std::future::pending().await
    })
    .await;
    assert_eq!(says(result), "timeout after 3s");
}

#[tokio::test(start_paused = true)]
async fn a_dripping_server_cannot_hold_its_check() {
    let (result, took) = check_slow(|mut server| async move {
        server.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await.unwrap();
        loop {
            sleep(Duration::from_secs(1)).await;
            server.write_all(b"x").await.unwrap();
        }
    })
    .await;
    assert_eq!((says(result).as_str(), took), ("the answer is not complete after 30s", LIMIT * 10));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_keeps_the_connection_open_has_answered_at_its_content_length() {
    let (result, took) = check_slow(|mut server| async move {
        server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody").await.unwrap();
        std::future::pending().await
    })
    .await;
    assert_eq!((result, took), (Ok(()), Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_read_its_request_times_out() {
    let (mut near, _far) = duplex(8);
    let url = url();
    assert_eq!(get(&mut near, &url, HttpProtocol::V1_0, LIMIT).await, Err(HttpError::Timeout(LIMIT)));
}

/// Bytes that look like an answer often enough to reach the body.
fn answer() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        Just(b"HTTP/1.0 200 OK\r\n".to_vec()),
        Just(b"HTTP/1.1  299\n".to_vec()),
        Just(b"Content-Length: 3\r\n".to_vec()),
        Just(b"Content-Length: 99999999999999999999\r\n".to_vec()),
        Just(b" : \x00\r\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
        Just(b"3\r\nabc\r\n".to_vec()),
        Just(b"0\r\n\r\n".to_vec()),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn no_answer_panics_and_its_pieces_do_not_matter(
        answer in prop_oneof![answer(), answer().prop_map(|rest| [b"HTTP/1.0 200 OK\r\n", &rest[..]].concat())],
        cuts in prop::collection::vec(1_usize..20, 0..20),
    ) {
        let url = with_digest(b"abc");
        let judge = |pieces: &[&[u8]]| {
            let mut state = Answer::to(&url, HttpProtocol::V1_1);
            for piece in pieces {
                if state.feed(piece)? {
                    break;
                }
            }
            state.finish()
        };
        let mut pieces = Vec::new();
        let mut rest = &answer[..];
        for cut in cuts {
            let (piece, more) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = more;
        }
        pieces.push(rest);
        let (whole, split) = (judge(&[&answer[..]]), judge(&pieces));
        match (&whole, &split) {
            // How much of it was seen first differs.
            (Err(HttpError::NotHttp { .. }), Err(HttpError::NotHttp { .. })) => {}
            _ => prop_assert_eq!(whole, split),
        }
    }
}
