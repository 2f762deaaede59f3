//! What DNS_CHECK and UDP_CHECK say.

use simple_dns::TYPE;

use super::super::{
    Items, Reader, value,
    value::{Value, Wrong},
};
use crate::config::{
    diagnostic::{Class, quote},
    model::{DnsCheck, Reply, UdpCheck},
};

/// Bytes of hexadecimal digits, each with the bits of it that count.
type Masked = Vec<(u8, u8)>;

impl Reader<'_> {
    pub(super) fn dns(&mut self, items: &Items<'_>) -> Option<DnsCheck> {
        let record = self.one(items, "type", value::choice(&RECORDS)).unwrap_or(TYPE::SOA);
        let query = |name: &str| {
            let name = name.strip_suffix('.').unwrap_or(name);
            let wrong = || Wrong::new(format!("{} is no domain name", quote(name)));
            // The crate reads over an empty label.
            if !name.is_empty() && name.split('.').any(str::is_empty) {
                return Err(wrong());
            }
            DnsCheck::new(name, record).map_err(|_| wrong())
        };
        match items.last("name") {
            Some(_) => self.one(items, "name", query),
            None => query(".").ok(),
        }
    }

    pub(super) fn udp(&mut self, items: &Items<'_>) -> UdpCheck {
        let payload = self.hexadecimal(items, "payload", false);
        let payload = match payload {
            Some(bytes) => bytes.into_iter().map(|(value, _)| value).collect(),
            None => FILLER.to_vec(),
        };
        let length = value::number(0..=65507);
        let mut length = |word| self.one(items, word, &length).and_then(|it| usize::try_from(it).ok());
        let (min, max) = (length("min_reply_length"), length("max_reply_length"));
        let reply = match items.last("require_reply") {
            None => Reply::NotNeeded,
            Some(item) if item.statement.arguments().is_empty() => Reply::Any,
            Some(_) => Reply::Like {
                bytes: self.hexadecimal(items, "require_reply", true).unwrap_or_default(),
                min: min.unwrap_or(0),
                max: max.unwrap_or(255),
            },
        };
        match &reply {
            Reply::Like { min, max, .. } => {
                if min > max
                    && let Some(span) = items.span("max_reply_length").or(items.span("min_reply_length"))
                {
                    self.error(Class::Conflict, span, format!("no reply has {min} to {max} bytes"));
                }
            }
            Reply::NotNeeded | Reply::Any => {
                let words = ["min_reply_length", "max_reply_length"];
                for (word, span) in words.into_iter().filter_map(|word| Some((word, items.span(word)?))) {
                    let message = format!("{word} has no effect without the bytes of a require_reply");
                    self.warn(Class::Conflict, span, message);
                }
            }
        }
        UdpCheck { payload, reply }
    }

    /// All words of the statement together: blanks between digits mean nothing.
    fn hexadecimal(&mut self, items: &Items<'_>, word: &'static str, masks: bool) -> Option<Masked> {
        let item = items.last(word)?;
        let words = &item.statement.arguments();
        if words.is_empty() {
            self.error(Class::BadValue, item.statement.word().span, format!("{word} needs a value"));
        }
        let digits: Vec<_> =
            words.iter().filter_map(|it| self.word(word, it, |it| nibbles(it, masks))).collect();
        let digits = digits.concat();
        if !digits.len().is_multiple_of(2) {
            let message = format!("{word}: {} digits are no whole bytes", digits.len());
            self.error(Class::BadValue, item.statement.span(), message);
        }
        let byte = |pair: &[(u8, u8)]| match pair {
            [(high, high_mask), (low, low_mask)] => Some((high << 4 | low, high_mask << 4 | low_mask)),
            _ => None,
        };
        Some(digits.chunks(2).filter_map(byte).collect())
    }
}

/// Value and mask of each digit.
fn nibbles(word: &str, masks: bool) -> Value<Masked> {
    let nibble = |c: char| match c {
        'x' | 'X' if masks => Ok((0, 0)),
        _ => match c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()) {
            Some(digit) => Ok((digit, 0x0f)),
            None => {
                let or_x = if masks { ", x for any" } else { "" };
                Err(Wrong::new(format!("{} holds other than hexadecimal digits{or_x}", quote(word))))
            }
        },
    };
    word.chars().filter(|c| !c.is_whitespace()).map(nibble).collect()
}

/// What a UDP_CHECK without payload sends: as long as what keepalived sends.
const FILLER: [u8; 32] = *b"lvsd check - lvsd check - lvsd c";

const RECORDS: [(&str, TYPE); 9] = [
    ("A", TYPE::A),
    ("NS", TYPE::NS),
    ("CNAME", TYPE::CNAME),
    ("SOA", TYPE::SOA),
    ("PTR", TYPE::PTR),
    ("MX", TYPE::MX),
    ("TXT", TYPE::TXT),
    ("AAAA", TYPE::AAAA),
    ("SRV", TYPE::SRV),
];
