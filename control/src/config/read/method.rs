//! What lvs_method says, and sorry_server_lvs_method.

use super::{Item, Items, Reader, value, value::Value};
use crate::config::{
    diagnostic::{Class, Report},
    lexer::Word,
    model::{Forwarding, Tunnel},
};

impl Reader<'_> {
    pub fn method(&mut self, items: &Items<'_>, word: &'static str) -> Option<Forwarding> {
        match items.last(word)?.statement.arguments().as_slice() {
            [name, options @ ..] if name.text == "TUN" => {
                self.tunnel(items.last(word)?, options).map(Forwarding::Tunnel)
            }
            _ => self.one(items, word, method),
        }
    }

    /// `type ipip`, `type gue port N [nocsum]`, `type gre [nocsum]`.
    fn tunnel(&mut self, item: Item<'_>, mut options: &[Word]) -> Option<Tunnel> {
        let name = item.keyword.word;
        let (mut kind, mut port) = (Tunnel::Ipip, None);
        while let [option, rest @ ..] = options {
            options = rest;
            match option.text {
                what @ ("type" | "port") => {
                    let [value, rest @ ..] = rest else {
                        let message = format!("{name}: {what} needs a value");
                        self.error(Class::BadValue, option.span, message);
                        return None;
                    };
                    options = rest;
                    match what {
                        "type" => kind = self.word(name, value, tunnel_kind)?,
                        _ => port = Some((self.word(name, value, gue_port)?, value.span)),
                    }
                }
                // The inner packet has its own checksums.
                "nocsum" => {}
                what @ ("csum" | "remcsum") => {
                    let message = format!("{name}: {what} is not supported yet, only nocsum");
                    self.error(Class::Unsupported, option.span, message);
                    return None;
                }
                _ => {
                    self.extra(item, std::slice::from_ref(option));
                    break;
                }
            }
        }
        match (kind, port) {
            (Tunnel::Gue { .. }, Some((port, _))) => Some(Tunnel::Gue { port }),
            (Tunnel::Gue { .. }, None) => {
                let message = format!("{name}: gue without a port");
                let report = Report::error(Class::Missing, item.statement.span(), message);
                self.reports
                    .push(report.help("write `type gue port N`, the port that the real servers listen on"));
                None
            }
            (kind, None) => Some(kind),
            (kind, Some((_, span))) => {
                self.warn(Class::Conflict, span, format!("{name}: a port has no effect without gue"));
                Some(kind)
            }
        }
    }
}

/// `TUN` has words of its own.
fn method(word: &str) -> Value<Forwarding> {
    let tunnel = Forwarding::Tunnel(Tunnel::Ipip);
    value::choice(&[("DR", Forwarding::Direct), ("TUN", tunnel), ("NAT", Forwarding::Nat)])(word)
}

/// The port of gue is said apart.
fn tunnel_kind(word: &str) -> Value<Tunnel> {
    value::choice(&[("ipip", Tunnel::Ipip), ("gue", Tunnel::Gue { port: 0 }), ("gre", Tunnel::Gre)])(word)
}

fn gue_port(word: &str) -> Value<u16> {
    value::number(1..=65535)(word).and_then(|port| Ok(u16::try_from(port)?))
}
