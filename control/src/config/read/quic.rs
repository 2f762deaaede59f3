//! What says how QUIC connections find their real servers.

use std::collections::HashMap;

use lvs_ebpf_common::{ConnectionIds, ServerId};

use super::{
    Items, Reader,
    value::{self, Value, Wrong},
};
use crate::config::{
    diagnostic::{Class, Report, quote},
    model::{Protocol, QuicServerId},
    source::Span,
};

const CONFIG: &str = "quic_config_id";
const SERVER: &str = "quic_server_id";

impl Reader<'_> {
    /// None where connections are told apart by address and port alone.
    pub(super) fn connection_ids(
        &mut self,
        items: &Items<'_>,
        protocol: Option<Protocol>,
        one_packet: bool,
    ) -> Option<ConnectionIds> {
        let config = self.one(items, CONFIG, config_id);
        let Some(span) = items.span(CONFIG) else {
            self.server_ids_are_idle(items);
            return None;
        };
        if protocol == Some(Protocol::Tcp) {
            self.error(Class::Conflict, span, format!("{CONFIG} with protocol TCP: QUIC is UDP"));
        } else if one_packet {
            let message = format!("{CONFIG} with ops: a connection's first packets would be torn apart");
            self.error(Class::Conflict, span, message);
        }
        let length = self.server_ids(items)?;
        Some(ConnectionIds { config: config?, length })
    }

    fn server_ids_are_idle(&mut self, items: &Items<'_>) {
        if items.misspelt.contains(&CONFIG) {
            return;
        }
        for real in items.all("real_server") {
            if let Some(said) = real.body().find(|it| it.word().text == SERVER) {
                let message = format!("{SERVER} has no effect without {CONFIG} in virtual_server");
                self.warn(Class::Conflict, said.span(), message);
            }
        }
    }

    /// How long those of all real servers are, which differ.
    fn server_ids(&mut self, items: &Items<'_>) -> Option<u8> {
        let mut first: Option<(QuicServerId, Span)> = None;
        let mut seen = HashMap::new();
        for real in items.all("real_server") {
            let Some(said) = real.body().filter(|it| it.word().text == SERVER).last() else {
                let message = format!("real_server without {SERVER} in a virtual_server with {CONFIG}");
                let report = Report::error(Class::Missing, real.statement.span(), message);
                self.reports.push(report.help("its connections would be lost with their clients' addresses"));
                continue;
            };
            let span = said.span();
            // A wrong one was told of with its real server.
            let Some(id) = said.arguments().first().and_then(|word| server_id(&word.unquoted()).ok()) else {
                continue;
            };
            if let Some(other) = seen.insert(id, span) {
                let message = format!("a second real_server with {SERVER} {id}");
                self.reports.push(Report::error(Class::Duplicate, span, message).first(other));
            }
            let (model, at) = *first.get_or_insert((id, span));
            if model.length() != id.length() {
                let [length, wanted] = [id, model].map(QuicServerId::length);
                let message =
                    format!("{SERVER} {id} has {length} octets, that of the first real_server {wanted}");
                self.reports.push(Report::error(Class::Conflict, span, message).first(at));
            }
        }
        first.map(|(id, _)| id.length())
    }
}

fn config_id(word: &str) -> Value<u8> {
    if value::integer(word)? == 7 {
        return Err(Wrong::new("7 says that a connection ID names nobody").help("choose one of 0 to 6"));
    }
    Ok(u8::try_from(value::number(0..=6)(word)?)?)
}

/// Octets as two hexadecimal digits each.
pub(super) fn server_id(word: &str) -> Value<QuicServerId> {
    if !word.len().is_multiple_of(2) || !word.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        let wrong = Wrong::new(format!("{} is not octets in hexadecimal", quote(word)));
        return Err(wrong.help("two digits an octet and nothing between them, such as 0a01"));
    }
    let octets: Vec<u8> = word
        .as_bytes()
        .chunks(2)
        .filter_map(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok())
        .collect();
    let wrong = || Wrong::new(format!("{} octets, it has 1 to {}", octets.len(), ServerId::LONGEST));
    QuicServerId::new(&octets).ok_or_else(wrong)
}
