//! What the checkers of a real_server say.

mod datagram;
mod http;
mod misc;

use std::{
    collections::HashSet,
    hash::Hash,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::{Item, Items, Reader, service::Inherited, value};
use crate::config::{
    diagnostic::Class,
    keywords::Block,
    model::{
        Check, CheckKind, CheckSource, CheckTiming, Family, Forwarding, HttpCheck, MiscCheck, OnVip, Reply,
        UdpCheck, Url,
    },
    source::Span,
};

const DELAY_LOOP: Duration = Duration::from_secs(60);
/// A server may refuse a name without a dot.
const HELO: &str = "lvsd.localdomain";

/// Whose checkers they are.
pub(super) struct Checked {
    pub address: IpAddr,
    pub port: u16,
    pub vip: Option<IpAddr>,
    pub forwarding: Option<Forwarding>,
    pub ha_suspend: bool,
}

impl Reader<'_> {
    /// In the order of the file.
    pub(super) fn checks(&mut self, items: &Items<'_>, real: &Checked, outer: &Inherited) -> Vec<Check> {
        let mut checks: Vec<_> =
            items.list.iter().filter_map(|&item| self.check(item, real, outer)).collect();
        // One of them is the rule, and there may be a hundred thousand such lists.
        checks.shrink_to_fit();
        checks
    }

    fn check(&mut self, item: Item<'_>, real: &Checked, outer: &Inherited) -> Option<Check> {
        let block = item.keyword.opens?;
        let items = self.items(block, item.body());
        self.extra(item, &item.statement.arguments());
        let address = self.one(&items, "connect_ip", value::host).unwrap_or(real.address);
        let port = self.one(&items, "connect_port", value::port).unwrap_or(real.port);
        let asks_a_port = !matches!(block, Block::PingCheck | Block::MiscCheck | Block::FileCheck);
        if port == 0 && asks_a_port && !real.address.is_unspecified() && items.lacks("connect_port") {
            let message = format!("{} without connect_port: its service has all ports", item.keyword.word);
            self.error(Class::Missing, item.statement.span(), message);
        }
        let inherited = self.inherited(&items, outer, 0);
        let alpha = self.switch(&items, "alpha").or(outer.alpha).unwrap_or(false);
        let kind = match block {
            Block::TcpCheck => Some(CheckKind::Tcp),
            Block::HttpGet | Block::SslGet => {
                let to = SocketAddr::new(address, port);
                Some(CheckKind::Http(Box::new(self.http(&items, item, to, &inherited))))
            }
            Block::SmtpCheck => {
                let helo = self.one(&items, "helo_name", value::text);
                Some(CheckKind::Smtp { helo: helo.unwrap_or_else(|| HELO.to_owned()) })
            }
            Block::DnsCheck => self.dns(&items).map(CheckKind::Dns),
            Block::UdpCheck => Some(CheckKind::Udp(Box::new(self.udp(&items)))),
            Block::PingCheck => Some(CheckKind::Ping),
            Block::MiscCheck => {
                let patience = outer.delay_loop.unwrap_or(DELAY_LOOP);
                self.misc(&items, item, patience).map(|misc| CheckKind::Misc(Box::new(misc)))
            }
            Block::FileCheck => self.file_check(&items, item).map(CheckKind::File),
            _ => None,
        };
        let on_vip = self.on_vip(&items, kind.as_ref(), real, outer);
        let only_with = real.vip.filter(|_| real.ha_suspend);
        let timing = self.timing(&items, block, &inherited);
        let timing = shared(&mut self.timings, timing);
        let source = self.source_of_check(&items, address);
        let source = shared(&mut self.sources, source);
        let log_all_failures = self.switch(&items, "log_all_failures").unwrap_or(self.log_all_failures);
        let kind = kind?;
        if !self.fits(size_of::<Check>() + boxed(&kind), item.statement.word().span) {
            return None;
        }
        Some(Check { kind, address, port, source, timing, alpha, log_all_failures, on_vip, only_with })
    }

    /// What the three levels say of check_vip, as far as `kind` can ask the virtual address.
    fn on_vip(
        &mut self,
        items: &Items<'_>,
        kind: Option<&CheckKind>,
        real: &Checked,
        outer: &Inherited,
    ) -> Option<Box<OnVip>> {
        let wanted = self.switch(items, "check_vip").or(outer.check_vip).unwrap_or(false);
        if let Some(span) = items.span("check_vip").filter(|_| wanted) {
            self.check_vip_with([real.vip, Some(real.address)], span);
            if real.forwarding == Some(Forwarding::Nat) {
                self.check_vip_with_nat(span);
            }
            if let Some(CheckKind::Udp(udp)) = kind
                && udp.reply == Reply::NotNeeded
            {
                let message = "check_vip finds little without require_reply: silence is a success";
                self.warn(Class::Conflict, span, message);
            }
        }
        match kind? {
            _ if !wanted => None,
            CheckKind::Ping | CheckKind::Misc(_) | CheckKind::File(_) => None,
            CheckKind::Tcp
            | CheckKind::Http(_)
            | CheckKind::Smtp { .. }
            | CheckKind::Dns(_)
            | CheckKind::Udp(_) => {
                let forwarding = real.forwarding.filter(|forwarding| *forwarding != Forwarding::Nat)?;
                let (IpAddr::V4(address), IpAddr::V4(real)) = (real.vip?, real.address) else { return None };
                Some(Box::new(OnVip { address, real, forwarding }))
            }
        }
    }

    /// `addresses`: of the service and of the real server, as far as they are known.
    pub(super) fn check_vip_with(&mut self, addresses: [Option<IpAddr>; 2], span: Span) {
        if addresses.iter().flatten().any(IpAddr::is_ipv6) {
            self.error(Class::Unsupported, span, "check_vip is not supported for IPv6 yet");
        }
    }

    pub(super) fn check_vip_with_nat(&mut self, span: Span) {
        let message = "check_vip has no effect with NAT: the real server does not get the virtual address";
        self.warn(Class::Conflict, span, message);
    }

    fn source_of_check(&mut self, items: &Items<'_>, to: IpAddr) -> CheckSource {
        let bindto = self.one(items, "bindto", value::host);
        if let (Some(from), Some(span)) = (bindto, items.span("bindto"))
            && Family::of(from) != Family::of(to)
            && !to.is_unspecified()
        {
            self.error(Class::Conflict, span, format!("bindto: from {from} nothing leads to {to}"));
        }
        if let (IpAddr::V6(address), Some(span)) = (to, items.span("connect_ip"))
            && address.is_unicast_link_local()
            && items.last("bind_if").is_none()
        {
            self.error(
                Class::Missing,
                span,
                format!("connect_ip: {to} is on every interface: write bind_if"),
            );
        }
        CheckSource {
            address: bindto,
            port: self.one(items, "bind_port", |word| Ok(u16::try_from(value::number(1..=65535)(word)?)?)),
            interface: self.one(items, "bind_if", value::interface),
            mark: self.one(items, "fwmark", value::number(1..=u32::MAX)),
        }
    }

    /// Defaults are keepalived's, which differ by kind. `rise` and `fall` are lvsd's.
    fn timing(&mut self, items: &Items<'_>, block: Block, said: &Inherited) -> CheckTiming {
        let delay_loop = said.delay_loop.unwrap_or(DELAY_LOOP);
        let (retry, delay_before_retry) = match block {
            Block::HttpGet | Block::SslGet => (1, Duration::from_secs(3)),
            Block::DnsCheck => (3, delay_loop),
            Block::MiscCheck => (0, Duration::from_secs(1)),
            _ => (1, Duration::from_secs(1)),
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

/// The one among them that is the same.
fn shared<T: Eq + Hash>(known: &mut HashSet<Arc<T>>, value: T) -> Arc<T> {
    if let Some(known) = known.get(&value) {
        return known.clone();
    }
    let value = Arc::new(value);
    known.insert(value.clone());
    value
}

/// Bytes that it takes beside itself. Names of hosts may be those of an outer block.
fn boxed(kind: &CheckKind) -> usize {
    match kind {
        CheckKind::Http(http) => {
            let urls = http.urls.iter().map(|url| size_of::<Url>() + 2 * url.host.len());
            size_of::<HttpCheck>() + urls.sum::<usize>()
        }
        CheckKind::Udp(udp) => size_of::<UdpCheck>() + udp.payload.len(),
        CheckKind::Misc(_) => size_of::<MiscCheck>(),
        CheckKind::Tcp
        | CheckKind::Smtp { .. }
        | CheckKind::Dns(_)
        | CheckKind::Ping
        | CheckKind::File(_) => 0,
    }
}
