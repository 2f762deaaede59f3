//! Does the real server give the expected answer to a GET, as keepalived's HTTP_GET asks and judges?
//!
//! The parser of heads is httparse, not hyper, for three rules of keepalived that a full client breaks: what an
//! HTTP/1.0 request is answered is taken as it comes (hyper decodes chunks), a body shorter than its Content-Length
//! is no failure (hyper's is an error), and no task may live beside the check that owns the socket. The answer
//! ends where the server closes or, kinder than keepalived, where its Content-Length or last chunk ends. Chunks
//! are decoded where the request was HTTP/1.1: keepalived takes their sizes for a part of the body.

mod body;

use std::{fmt::Display, io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use self::body::Body;
use super::WHOLE;
use crate::config::model::{HttpProtocol, Url};

/// Why an answer is not the expected one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    #[error("{0} while sending the request")]
    Write(io::ErrorKind),
    #[error("{0} while reading the answer")]
    Read(io::ErrorKind),
    /// Between two pieces of the answer.
    #[error("timeout after {0:?}")]
    Timeout(Duration),
    #[error("the answer is not complete after {0:?}")]
    TooSlow(Duration),
    #[error("connection closed without an answer")]
    NoAnswer,
    #[error("connection closed within the header, after {got} bytes")]
    HeadCut { got: usize },
    #[error("the header is longer than {HEAD_LIMIT} bytes")]
    HeadTooLong,
    #[error("not an HTTP answer, it starts with \"{start}\"")]
    NotHttp { start: String },
    #[error("malformed header: {0}")]
    Malformed(httparse::Error),
    #[error("status {got}, expected {}", ranges(.expected))]
    Status { got: u16, expected: Vec<(u16, u16)> },
    #[error("the body is longer than {BODY_LIMIT} bytes")]
    BodyTooLong,
    #[error("digest {}, expected {}", hex(.got), hex(.expected))]
    Digest { got: [u8; 16], expected: [u8; 16] },
    #[error("the body has a chunk without a size")]
    BadChunk,
    #[error("nothing in the body matches {pattern:?}")]
    NoMatch { pattern: String },
    #[error("the body matches {pattern:?} at byte {at}")]
    Match { pattern: String, at: usize },
}

const HEAD_LIMIT: usize = 64 * 1024;
const HEADERS_LIMIT: usize = 256;
const BODY_LIMIT: u64 = 16 * 1024 * 1024;
/// How much of a body is searched: each check under way may keep as much.
const SEARCH_LIMIT: usize = 256 * 1024;
const PIECE: usize = 8 * 1024;

/// Asks for `url` on a fresh connection; `limit` (`connect_timeout`) bounds the request and each read.
pub async fn get(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    url: &Url,
    protocol: HttpProtocol,
    limit: Duration,
) -> Result<(), HttpError> {
    let whole = WHOLE.of(limit);
    timeout(whole, exchange(stream, url, protocol, limit)).await.unwrap_or(Err(HttpError::TooSlow(whole)))
}

async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    url: &Url,
    protocol: HttpProtocol,
    limit: Duration,
) -> Result<(), HttpError> {
    timeout(limit, stream.write_all(request(url, protocol).as_bytes()))
        .await
        .map_err(|_| HttpError::Timeout(limit))?
        .map_err(|error| HttpError::Write(error.kind()))?;
    let mut answer = Answer::to(url, protocol);
    let mut piece = Vec::with_capacity(PIECE);
    loop {
        piece.clear();
        let got = timeout(limit, stream.read_buf(&mut piece))
            .await
            .map_err(|_| HttpError::Timeout(limit))?
            .or_else(|error| match error.kind() {
            // TLS without its last word; what has come is whole as far as HTTP tells.
            io::ErrorKind::UnexpectedEof => Ok(0),
            kind => Err(HttpError::Read(kind)),
        })?;
        if got == 0 || answer.feed(&piece)? {
            return answer.finish();
        }
    }
}

fn request(url: &Url, protocol: HttpProtocol) -> String {
    let (version, connection) = match protocol {
        HttpProtocol::V1_0 => ("1.0", ""),
        HttpProtocol::V1_0Close => ("1.0", "Connection: close\r\n"),
        HttpProtocol::V1_1 => ("1.1", "Connection: close\r\n"),
    };
    format!("GET {} HTTP/{version}\r\nUser-Agent: lvsd\r\n{connection}Host: {}\r\n\r\n", url.path, url.host)
}

/// An answer as it arrives, in pieces of any size.
struct Answer<'a> {
    url: &'a Url,
    protocol: HttpProtocol,
    /// What came before the body.
    head: Vec<u8>,
    body: Option<Body<'a>>,
}

impl<'a> Answer<'a> {
    fn to(url: &'a Url, protocol: HttpProtocol) -> Self {
        Self { url, protocol, head: Vec::new(), body: None }
    }

    /// Takes the next piece; true: the answer is complete.
    fn feed(&mut self, piece: &[u8]) -> Result<bool, HttpError> {
        if let Some(body) = &mut self.body {
            return body.feed(piece);
        }
        // An empty line may straddle the pieces. A head without one is not parsed: each byte is looked at once.
        let news = self.head.len().saturating_sub(3);
        self.head.extend_from_slice(piece);
        let start = &self.head[..self.head.len().min(16)];
        if !start.starts_with(b"HTTP/") && !b"HTTP/".starts_with(start) {
            return Err(HttpError::NotHttp { start: start.escape_ascii().to_string() });
        }
        if has_empty_line(&self.head[news..])
            && let Some((mut body, rest)) = split(&self.head, self.url, self.protocol)?
        {
            let complete = body.feed(rest)?;
            self.body = Some(body);
            return Ok(complete);
        }
        if self.head.len() > HEAD_LIMIT {
            return Err(HttpError::HeadTooLong);
        }
        Ok(false)
    }

    /// The server has closed, or the answer is complete.
    fn finish(self) -> Result<(), HttpError> {
        match self.body {
            None if self.head.is_empty() => Err(HttpError::NoAnswer),
            None => Err(HttpError::HeadCut { got: self.head.len() }),
            Some(body) => body.judge(),
        }
    }
}

fn has_empty_line(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|pair| pair == b"\n\n") || bytes.windows(3).any(|three| three == b"\n\r\n")
}

/// Judges the status line; `None` while the head is not complete.
fn split<'u, 'b>(
    bytes: &'b [u8],
    url: &'u Url,
    protocol: HttpProtocol,
) -> Result<Option<(Body<'u>, &'b [u8])>, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_LIMIT];
    let mut response = httparse::Response::new(&mut headers);
    // A check asks whether the server serves, not whether it keeps to the letter of RFC 9112.
    let parsed = httparse::ParserConfig::default()
        .allow_multiple_spaces_in_response_status_delimiters(true)
        .allow_spaces_after_header_name_in_responses(true)
        .ignore_invalid_headers_in_responses(true)
        .parse_response(&mut response, bytes)
        .map_err(HttpError::Malformed)?;
    let (httparse::Status::Complete(head), Some(got)) = (parsed, response.code) else { return Ok(None) };
    if !url.status.iter().any(|(low, high)| (*low..=*high).contains(&got)) {
        return Err(HttpError::Status { got, expected: url.status.clone() });
    }
    let header = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        Some(str::from_utf8(header.value).ok()?.trim())
    };
    let content_length = header("content-length").and_then(|length| length.parse().ok());
    let chunked = protocol == HttpProtocol::V1_1
        && header("transfer-encoding")
            .is_some_and(|codings| codings.to_ascii_lowercase().ends_with("chunked"));
    let body = Body::new(url, chunked, content_length)?;
    Ok(Some((body, bytes.get(head..).unwrap_or_default())))
}

fn ranges(ranges: &[(u16, u16)]) -> String {
    let range = |(low, high): &(u16, u16)| match low == high {
        true => low.to_string(),
        false => format!("{low}-{high}"),
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(", ")
}

fn hex(digest: &[u8; 16]) -> impl Display {
    digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
}

#[cfg(test)]
mod tests;
