//! What an auth_hmac block says.

use std::{io::Read as _, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use super::{Items, Reader, value, value::Wrong};
use crate::config::{
    diagnostic::{Class, Report},
    keywords::Block,
    lexer::Word,
    model::{Secret, Signing, SigningKey, SigningMode},
    source,
};

/// Of a key, in bytes.
const LENGTHS: std::ops::RangeInclusive<usize> = 32..=64;

impl Reader<'_> {
    pub(super) fn signing(&mut self, items: &Items<'_>, advert_interval: Duration) -> Option<Signing> {
        let item = items.last("auth_hmac")?;
        self.extra(item, &item.statement.arguments());
        let inner = self.items(Block::AuthHmac, item.body());
        let keys = self.keys(&inner);
        if inner.lacks("key") {
            self.error(Class::Missing, item.statement.span(), "auth_hmac without key");
        }
        let active = self.required(&inner, item, "active_key", id);
        let by_time = self.one(&inner, "anti_replay", value::choice(&[("time", true), ("monotonic", false)]));
        // keepalived's default.
        let least = Duration::from_secs((3 * advert_interval).as_secs().max(5));
        let window = self.one(&inner, "time_window", |word| value::number(1..=300)(word));
        let window = window.map_or(least, |seconds| Duration::from_secs(seconds.into()));
        if let (Some(false), Some(span)) = (by_time, inner.span("time_window")) {
            self.warn(Class::Conflict, span, "time_window has no effect with anti_replay monotonic");
        }
        let modes = [
            ("enforce", SigningMode::Enforce),
            ("permissive", SigningMode::Permissive),
            ("receive-only", SigningMode::ReceiveOnly),
        ];
        let mode = self.one(&inner, "mode", value::choice(&modes)).unwrap_or_default();
        if let Some(legacy) = items.span("authentication") {
            let message = "authentication has no effect beside auth_hmac, as in keepalived";
            self.warn(Class::Trap, legacy, message);
        }
        let active = active?;
        if let Some(span) = inner.span("active_key")
            && !keys.iter().any(|key| key.id == active)
            && !keys.is_empty()
        {
            self.error(Class::BadValue, span, format!("active_key: there is no key {active}"));
        }
        let window = by_time.unwrap_or(true).then_some(window);
        Some(Signing { keys, active, window, mode })
    }

    /// `key ID VALUE`, once for each.
    fn keys(&mut self, items: &Items<'_>) -> Vec<SigningKey> {
        let mut keys: Vec<SigningKey> = Vec::new();
        for item in items.all("key") {
            let arguments = item.statement.arguments();
            let (number, value) = match arguments.as_slice() {
                [number, value, extra @ ..] => {
                    self.extra(item, extra);
                    (number, value)
                }
                _ => {
                    self.error(Class::BadValue, item.statement.span(), "key needs a number and a value");
                    continue;
                }
            };
            let (Some(id), Some(secret)) = (self.word("key", number, id), self.secret(value)) else {
                continue;
            };
            if keys.iter().any(|key| key.id == id) {
                self.error(Class::Duplicate, number.span, format!("there is a key {id} already"));
            } else {
                keys.push(SigningKey { id, secret });
            }
        }
        keys
    }

    /// `hex:DIGITS`, `file:PATH` or the bytes themselves.
    fn secret(&mut self, word: &Word) -> Option<Secret> {
        let Some(path) = word.text.strip_prefix("file:") else { return self.word("key", word, secret) };
        let (text, is_open) = self.word("key", word, |_| read(path))?;
        if is_open {
            let message = format!("others than its owner may read {path}");
            self.reports.push(Report::warning(Class::Trap, word.span, message).help("chmod 600"));
        }
        self.word("key", word, |_| secret(text.trim_end_matches(['\r', '\n'])))
    }
}

fn id(word: &str) -> value::Value<u8> {
    value::number(1..=255)(word).and_then(|id| Ok(u8::try_from(id)?))
}

/// The message does not show it.
fn secret(text: &str) -> value::Value<Secret> {
    let bytes = match text.strip_prefix("hex:") {
        None => text.as_bytes().to_vec(),
        Some(digits) => {
            let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
            let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
            let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
            match bytes.filter(|_| rest.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit())) {
                Some(bytes) => bytes,
                None => return Err(Wrong::new("pairs of hexadecimal digits follow `hex:`")),
            }
        }
    };
    if LENGTHS.contains(&bytes.len()) {
        return Ok(Secret::new(bytes));
    }
    let (least, most) = (LENGTHS.start(), LENGTHS.end());
    Err(Wrong::new(format!("{} bytes, where {least} to {most} are a key", bytes.len()))
        .help("`openssl rand -hex 32` makes one to be written behind `hex:`"))
}

/// The text, and whether others than the owner may read it too.
fn read(path: &str) -> value::Value<(String, bool)> {
    const MOST: u64 = 1024;
    if !path.starts_with('/') {
        return Err(Wrong::new(format!("file:{path} is not an absolute path")));
    }
    let (file, metadata) = source::open(Path::new(path))?;
    let is_open = metadata.mode() & 0o077 != 0;
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text)?;
    Ok((text, is_open))
}
