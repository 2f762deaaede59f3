//! What a virtual_server_group says: the addresses that one virtual_server stands for.

use std::net::IpAddr;

use super::{Item, Reader, service::server, value, value::Wrong};
use crate::config::{
    diagnostic::{Class, Report, quote},
    lexer::Word,
    tree::Statement,
};

/// Each address is a service of its own, with its own checks.
const MOST: usize = 256;

pub(super) type Endpoints = Vec<(IpAddr, u16)>;

impl Reader<'_> {
    pub fn server_group(&mut self, item: Item<'_>) {
        let arguments = item.statement.arguments();
        let [word, extra @ ..] = arguments.as_slice() else {
            return self.error(Class::Missing, item.statement.span(), "virtual_server_group without a name");
        };
        self.extra(item, extra);
        let mut endpoints = Endpoints::new();
        let mut sound = true;
        for entry in item.body() {
            match self.group_entry(item, entry) {
                Some(more) => endpoints.extend(more),
                None => sound = false,
            }
        }
        if endpoints.len() > MOST {
            let message =
                format!("{} addresses, more than {MOST} in one virtual_server_group", endpoints.len());
            self.error(Class::BadValue, word.span, message);
            sound = false;
        }
        if item.body().is_empty() {
            self.error(Class::Missing, item.statement.span(), "virtual_server_group without an address");
        }
        let group = (sound.then_some(endpoints), word.span);
        if let Some((_, first)) = self.server_groups.insert(word.text.to_owned(), group) {
            let message = format!("a second virtual_server_group {}", quote(word.text));
            self.reports.push(Report::error(Class::Duplicate, word.span, message).first(first));
        }
    }

    /// `ADDRESS [PORT]`, `A.B.C.D-E [PORT]` or, by hexadecimal digits, `A:B::C-D [PORT]`.
    fn group_entry(&mut self, item: Item<'_>, entry: Statement<'_>) -> Option<Endpoints> {
        if entry.word().text == "fwmark" {
            let message = "fwmark: XDP sees packets before any firewall could have marked them";
            self.error(Class::Unsupported, entry.word().span, message);
            return None;
        }
        if entry.is_block() {
            self.error(Class::Syntax, entry.word().span, "an entry takes no block");
        }
        let range = self.word("virtual_server_group", &entry.word(), range);
        let arguments = entry.arguments();
        let port = match arguments.as_slice() {
            [] => 0,
            [port, extra @ ..] => {
                self.extra(item, extra);
                self.word("virtual_server_group", port, value::service_port)?
            }
        };
        Some(range?.into_iter().map(|address| (address, port)).collect())
    }

    /// What `virtual_server group NAME` stands for.
    pub(super) fn group_endpoints(&mut self, name: &Word) -> Option<Endpoints> {
        let near = match self.server_groups.get(name.text) {
            Some((endpoints, _)) => return endpoints.clone(),
            None => {
                crate::config::keywords::nearest_of(self.server_groups.keys().map(String::as_str), name.text)
            }
        };
        let suggestion = near.map_or(String::new(), |near| format!("; did you mean {}?", quote(near)));
        let message = format!("there is no virtual_server_group {}{suggestion}", quote(name.text));
        self.error(Class::BadValue, name.span, message);
        None
    }
}

/// An address, or several that differ in their last byte; over IPv6 in their last two.
fn range(word: &str) -> value::Value<Vec<IpAddr>> {
    let Some((first, last)) = word.split_once('-') else {
        if word.contains('/') {
            return Err(Wrong::unsupported("a subnet is not supported yet").help("write A.B.C.D-E"));
        }
        return Ok(vec![server(word)?]);
    };
    let wrong = |what: String| Wrong::new(format!("{} is no {what}", quote(last)));
    match server(first)? {
        IpAddr::V4(first) => {
            let [a, b, c, d] = first.octets();
            let last = last.parse::<u8>().ok().filter(|last| *last >= d);
            let last = last.ok_or_else(|| wrong(format!("last byte in {d} to 255")))?;
            Ok((d..=last).map(|d| IpAddr::from([a, b, c, d])).collect())
        }
        IpAddr::V6(first) => {
            let [a, b, c, d, e, f, g, h] = first.segments();
            let last = u16::from_str_radix(last, 16).ok().filter(|last| *last >= h);
            let last = last.ok_or_else(|| wrong(format!("hexadecimal number in {h:x} to ffff")))?;
            Ok((h..=last).map(|h| IpAddr::from([a, b, c, d, e, f, g, h])).collect())
        }
    }
}
