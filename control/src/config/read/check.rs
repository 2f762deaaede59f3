//! What the checkers of a real_server say.

use std::{net::SocketAddrV4, time::Duration};

use super::{
    Item, Items, Reader,
    service::Inherited,
    value,
    value::{Value, Wrong},
};
use crate::config::{
    diagnostic::{Class, quote},
    keywords::Block,
    model::{Check, CheckKind, CheckSource, CheckTiming, HttpCheck, HttpProtocol, Url},
};

impl Reader<'_> {
    /// In the order of the file.
    pub(super) fn checks(&mut self, items: &Items<'_>, real: SocketAddrV4, outer: &Inherited) -> Vec<Check> {
        items.list.iter().filter_map(|&item| self.check(item, real, outer)).collect()
    }

    fn check(&mut self, item: Item<'_>, real: SocketAddrV4, outer: &Inherited) -> Option<Check> {
        let block = item.keyword.opens?;
        let items = self.items(block, item.body());
        self.extra(item, &item.statement.arguments);
        let address = self.one(&items, "connect_ip", value::address).unwrap_or(*real.ip());
        let port = self.one(&items, "connect_port", value::port).unwrap_or(real.port());
        let inherited = self.inherited(&items, outer, 0);
        let alpha = self.switch(&items, "alpha").or(outer.alpha).unwrap_or(false);
        let kind = match block {
            Block::TcpCheck => CheckKind::Tcp,
            Block::HttpGet => {
                CheckKind::Http(self.http(&items, item, SocketAddrV4::new(address, port), &inherited))
            }
            _ => return None,
        };
        let timing = self.timing(&items, &kind, &inherited);
        let source = self.source_of_check(&items);
        let log_all_failures = self.switch(&items, "log_all_failures").unwrap_or(self.log_all_failures);
        Some(Check { kind, address, port, source, timing, alpha, log_all_failures })
    }

    fn source_of_check(&mut self, items: &Items<'_>) -> CheckSource {
        CheckSource {
            address: self.one(items, "bindto", value::address),
            port: self.one(items, "bind_port", value::port),
            interface: self.one(items, "bind_if", value::interface),
            mark: self.one(items, "fwmark", value::number(1..=u32::MAX)),
        }
    }

    /// keepalived's defaults: lib/check_*.c agree on all but the pause of HTTP. `rise` and `fall` are lvsd's.
    fn timing(&mut self, items: &Items<'_>, kind: &CheckKind, said: &Inherited) -> CheckTiming {
        let delay_before_retry = match kind {
            CheckKind::Tcp => Duration::from_secs(1),
            CheckKind::Http(_) => Duration::from_secs(3),
        };
        let delay_loop = said.delay_loop.unwrap_or(Duration::from_secs(60));
        let fall = self.one(items, "fall", value::number(1..=1_000_000));
        if let (Some(_), Some(span)) = (fall, items.span("retry")) {
            self.warn(Class::Conflict, span, "retry has no effect beside fall");
        }
        CheckTiming {
            delay_loop,
            connect_timeout: said.connect_timeout.unwrap_or(Duration::from_secs(5)),
            retry: said.retry.unwrap_or(1),
            delay_before_retry: said.delay_before_retry.unwrap_or(delay_before_retry),
            warmup: said.warmup.unwrap_or(delay_loop),
            rise: self.one(items, "rise", value::number(1..=1_000_000)).unwrap_or(1),
            fall,
        }
    }

    fn http(&mut self, items: &Items<'_>, item: Item<'_>, to: SocketAddrV4, outer: &Inherited) -> HttpCheck {
        let protocols =
            [("1.0", HttpProtocol::V1_0), ("1.0C", HttpProtocol::V1_0Close), ("1.1", HttpProtocol::V1_1)];
        let protocol = self
            .one(items, "http_protocol", |word| value::choice(&protocols)(&word.to_ascii_uppercase()))
            .unwrap_or_default();
        let host = outer.virtualhost.clone().unwrap_or_else(|| to.to_string());
        let urls = items.all("url").filter_map(|url| self.url(url, &host)).collect();
        if items.lacks("url") {
            self.error(Class::Missing, item.statement.span(), "HTTP_GET without url");
        }
        HttpCheck { urls, protocol }
    }

    fn url(&mut self, item: Item<'_>, host: &str) -> Option<Url> {
        let items = self.items(Block::Url, item.body());
        self.extra(item, &item.statement.arguments);
        let path = self.required(&items, item, "path", path);
        let digest = self.one(&items, "digest", digest);
        let host = self.one(&items, "virtualhost", value::text).unwrap_or_else(|| host.to_owned());
        let status = self.status(&items);
        Some(Url { path: path?, status, digest, host })
    }

    fn status(&mut self, items: &Items<'_>) -> Vec<(u16, u16)> {
        let Some(item) = items.last("status_code") else { return vec![(200, 299)] };
        let words = &item.statement.arguments;
        if words.is_empty() {
            self.error(Class::BadValue, item.statement.word.span, "status_code needs a value");
        }
        words.iter().filter_map(|word| self.word("status_code", word, codes)).collect()
    }
}

fn path(word: &str) -> Value<String> {
    let path = value::text(word)?;
    if path.starts_with('/') || path.contains("://") {
        return Ok(path);
    }
    Err(Wrong::new(format!("{} does not begin with `/`", quote(&path))).help(format!("write /{path}")))
}

/// `200` or `200-299`.
fn codes(word: &str) -> Value<(u16, u16)> {
    let code = |word: &str| value::number(100..=599)(word).and_then(|code| Ok(u16::try_from(code)?));
    let (from, to) = match word.split_once('-') {
        Some((from, to)) => (code(from)?, code(to)?),
        None => (code(word)?, code(word)?),
    };
    if from <= to { Ok((from, to)) } else { Err(Wrong::new(format!("{from}-{to} holds no code"))) }
}

/// MD5 in hexadecimal.
fn digest(word: &str) -> Value<[u8; 16]> {
    let wrong = || Wrong::new(format!("{} is no MD5 sum of 32 hexadecimal digits", quote(word)));
    if word.len() != 32 || !word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    Ok(u128::from_str_radix(word, 16)?.to_be_bytes())
}
