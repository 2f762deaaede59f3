//! Where does a body end, and is it the expected one?

use md5::{Digest as _, Md5};

use super::{BODY_LIMIT, HttpError, SEARCH_LIMIT};
use crate::config::model::Url;

/// A body as it arrives, in pieces of any size.
pub struct Body<'a> {
    url: &'a Url,
    end: End,
    /// As they came, chunk headers included.
    received: u64,
    md5: Option<Md5>,
    /// What is searched.
    kept: Vec<u8>,
}

/// How the end is told. A close always ends it.
enum End {
    Close,
    After(u64),
    Chunks(Chunks),
}

impl<'a> Body<'a> {
    pub fn new(url: &'a Url, chunked: bool, content_length: Option<u64>) -> Result<Self, HttpError> {
        let end = match content_length {
            // RFC 9112 6.3: chunks override a length.
            _ if chunked => End::Chunks(Chunks::default()),
            Some(length) if length > BODY_LIMIT => return Err(HttpError::BodyTooLong),
            Some(length) => End::After(length),
            None => End::Close,
        };
        Ok(Self { url, end, received: 0, md5: url.digest.map(|_| Md5::new()), kept: Vec::new() })
    }

    /// True: it is complete.
    pub fn feed(&mut self, piece: &[u8]) -> Result<bool, HttpError> {
        self.received += piece.len() as u64;
        if self.received > BODY_LIMIT && !matches!(self.end, End::After(_)) {
            return Err(HttpError::BodyTooLong);
        }
        let (md5, kept) = (&mut self.md5, &mut self.kept);
        let search = self.url.search.is_some();
        let mut take = |data: &[u8]| {
            if let Some(md5) = md5 {
                md5.update(data);
            }
            if search {
                let room = SEARCH_LIMIT.saturating_sub(kept.len());
                kept.extend_from_slice(data.get(..room).unwrap_or(data));
            }
        };
        match &mut self.end {
            End::Close => {
                take(piece);
                Ok(false)
            }
            End::After(left) => {
                // What follows the announced end is not part of the body.
                let piece = piece.get(..usize::try_from(*left).unwrap_or(usize::MAX)).unwrap_or(piece);
                take(piece);
                *left = left.saturating_sub(piece.len() as u64);
                Ok(*left == 0)
            }
            End::Chunks(chunks) => chunks.feed(piece, take),
        }
    }

    /// keepalived's order: digest, then regex.
    pub fn judge(self) -> Result<(), HttpError> {
        if let (Some(md5), Some(expected)) = (self.md5, self.url.digest) {
            let got: [u8; 16] = md5.finalize().into();
            if got != expected {
                return Err(HttpError::Digest { got, expected });
            }
        }
        let Some(search) = &self.url.search else { return Ok(()) };
        let from = search.min_offset.min(self.kept.len());
        let found = search.pattern.0.find_at(&self.kept, from);
        match found.map(|found| found.start()).filter(|start| *start <= search.max_offset) {
            None if search.wanted => {
                Err(HttpError::NoMatch { pattern: search.pattern.0.as_str().to_owned() })
            }
            Some(at) if !search.wanted => {
                Err(HttpError::Match { pattern: search.pattern.0.as_str().to_owned(), at })
            }
            _ => Ok(()),
        }
    }
}

/// RFC 9112 7.1.
#[derive(Default)]
struct Chunks(Chunk);

#[derive(Clone, Copy)]
enum Chunk {
    Size {
        value: u64,
        digits: bool,
    },
    /// To the end of the size's line.
    Extension {
        value: u64,
    },
    Data {
        left: u64,
    },
    AfterData,
    /// Whether nothing but the end may follow on this line.
    Trailer {
        empty: bool,
    },
    Complete,
}

impl Default for Chunk {
    fn default() -> Self {
        Self::Size { value: 0, digits: false }
    }
}

impl Chunks {
    fn feed(&mut self, mut bytes: &[u8], mut take: impl FnMut(&[u8])) -> Result<bool, HttpError> {
        while let Some((byte, rest)) = bytes.split_first() {
            self.0 = match self.0 {
                Chunk::Complete => break,
                Chunk::Data { left } => {
                    let part = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    let (data, rest) = bytes.split_at(part);
                    take(data);
                    bytes = rest;
                    match left - part as u64 {
                        0 => self.0 = Chunk::AfterData,
                        left => self.0 = Chunk::Data { left },
                    }
                    continue;
                }
                state => state.step(*byte)?,
            };
            bytes = rest;
        }
        Ok(matches!(self.0, Chunk::Complete))
    }
}

impl Chunk {
    fn step(self, byte: u8) -> Result<Self, HttpError> {
        let digit = char::from(byte).to_digit(16).map(u64::from);
        Ok(match (self, byte) {
            (Self::Size { value, .. }, _) if let Some(digit) = digit => {
                let value = value.checked_mul(16).and_then(|value| value.checked_add(digit));
                Self::Size { value: value.ok_or(HttpError::BadChunk)?, digits: true }
            }
            (Self::Size { value, digits: true } | Self::Extension { value }, b'\n') => match value {
                0 => Self::Trailer { empty: true },
                left => Self::Data { left },
            },
            (Self::Size { value, digits: true }, b';' | b' ' | b'\t' | b'\r') => Self::Extension { value },
            (Self::Extension { value }, _) => Self::Extension { value },
            (Self::AfterData, b'\r') => Self::AfterData,
            (Self::AfterData, b'\n') => Self::default(),
            (Self::Trailer { empty: true }, b'\n') => Self::Complete,
            (Self::Trailer { .. }, b'\n') => Self::Trailer { empty: true },
            (Self::Trailer { empty }, b'\r') => Self::Trailer { empty },
            (Self::Trailer { .. }, _) => Self::Trailer { empty: false },
            _ => return Err(HttpError::BadChunk),
        })
    }
}
