//! What the checkers of a real_server say.

mod datagram;
mod http;

use std::{net::SocketAddrV4, time::Duration};

use super::{Item, Items, Reader, service::Inherited, value};
use crate::config::{
    diagnostic::Class,
    keywords::Block,
    model::{Check, CheckKind, CheckSource, CheckTiming},
};

/// A server may refuse a name without a dot.
const HELO: &str = "lvsd.localdomain";

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
            Block::HttpGet | Block::SslGet => {
                CheckKind::Http(self.http(&items, item, SocketAddrV4::new(address, port), &inherited))
            }
            Block::SmtpCheck => CheckKind::Smtp {
                helo: self.one(&items, "helo_name", value::text).unwrap_or_else(|| HELO.to_owned()),
            },
            Block::DnsCheck => CheckKind::Dns(self.dns(&items)?),
            Block::UdpCheck => CheckKind::Udp(self.udp(&items)),
            Block::PingCheck => CheckKind::Ping,
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
            port: self.one(items, "bind_port", |word| Ok(u16::try_from(value::number(1..=65535)(word)?)?)),
            interface: self.one(items, "bind_if", value::interface),
            mark: self.one(items, "fwmark", value::number(1..=u32::MAX)),
        }
    }

    /// Defaults are keepalived's, which differ by kind. `rise` and `fall` are lvsd's.
    fn timing(&mut self, items: &Items<'_>, kind: &CheckKind, said: &Inherited) -> CheckTiming {
        let delay_loop = said.delay_loop.unwrap_or(Duration::from_secs(60));
        let (retry, delay_before_retry) = match kind {
            CheckKind::Http(_) => (1, Duration::from_secs(3)),
            CheckKind::Dns(_) => (3, delay_loop),
            CheckKind::Tcp | CheckKind::Smtp { .. } | CheckKind::Udp(_) | CheckKind::Ping => {
                (1, Duration::from_secs(1))
            }
        };
        let fall = self.one(items, "fall", value::number(1..=1_000_000));
        if let (Some(_), Some(span)) = (fall, items.span("retry")) {
            self.warn(Class::Conflict, span, "retry has no effect beside fall");
        }
        CheckTiming {
            delay_loop,
            connect_timeout: said.connect_timeout.unwrap_or(Duration::from_secs(5)),
            retry: said.retry.unwrap_or(retry),
            delay_before_retry: said.delay_before_retry.unwrap_or(delay_before_retry),
            warmup: said.warmup.unwrap_or(delay_loop),
            rise: self.one(items, "rise", value::number(1..=1_000_000)).unwrap_or(1),
            fall,
        }
    }
}
