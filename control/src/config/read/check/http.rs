//! What HTTP_GET and SSL_GET say, and the certificates of SSL.

use std::{net::SocketAddr, path::Path, sync::Arc};

use regex::bytes::RegexBuilder;
use tokio_rustls::rustls::{
    RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    sign::CertifiedKey,
};

use super::super::{
    Item, Items, Reader,
    service::Inherited,
    value,
    value::{Value, Wrong},
};
use crate::config::{
    diagnostic::{Class, quote},
    keywords::Block,
    model::{HttpCheck, HttpProtocol, Identity, Pattern, Search, Tls, Url},
    source,
};

/// Whom the urls of one check are asked of.
struct Server {
    tls: bool,
    address: SocketAddr,
    virtualhost: Option<String>,
    sni_name: Option<ServerName<'static>>,
}

impl Reader<'_> {
    pub(super) fn http(
        &mut self,
        items: &Items<'_>,
        item: Item<'_>,
        to: SocketAddr,
        outer: &Inherited,
    ) -> HttpCheck {
        let protocols =
            [("1.0", HttpProtocol::V1_0), ("1.0C", HttpProtocol::V1_0Close), ("1.1", HttpProtocol::V1_1)];
        let protocol = self
            .one(items, "http_protocol", |word| value::choice(&protocols)(&word.to_ascii_uppercase()))
            .unwrap_or_default();
        let tls = (item.keyword.opens == Some(Block::SslGet)).then(|| self.tls(items));
        let (tls, sni_name) = tls.map_or((None, None), |(tls, name)| (Some(tls), name));
        let server =
            Server { tls: tls.is_some(), address: to, virtualhost: outer.virtualhost.clone(), sni_name };
        let mut urls: Vec<_> = items.all("url").filter_map(|url| self.url(url, &server)).collect();
        // One of them is the rule.
        urls.shrink_to_fit();
        if items.lacks("url") {
            let message = format!("{} without url", item.keyword.word);
            self.error(Class::Missing, item.statement.span(), message);
        }
        let fast_recovery = self.switch(items, "fast_recovery").unwrap_or(false);
        HttpCheck { urls, protocol, fast_recovery, tls }
    }

    fn tls(&mut self, items: &Items<'_>) -> (Tls, Option<ServerName<'static>>) {
        let name = self.one(items, "sni_name", server_name);
        let sni = self.switch(items, "enable_sni").unwrap_or(false);
        let (roots, identity) = (self.roots.clone(), self.identity.clone());
        (Tls { roots, identity, sni: sni || name.is_some() }, name)
    }

    /// `SSL`: for all SSL_GETs of the file.
    pub fn certificates(&mut self, top: &Items<'_>) {
        let Some(item) = top.last("SSL") else { return };
        self.extra(item, &item.statement.arguments());
        let items = self.items(Block::Ssl, item.body());
        self.roots = self.one(&items, "ca", roots).map(Arc::new);
        let chain = self.one(&items, "certificate", certificates);
        let key = self.one(&items, "key", key);
        for (word, other) in [("certificate", "key"), ("key", "certificate")] {
            if let (Some(span), None) = (items.span(word), items.last(other)) {
                self.error(Class::Missing, span, format!("SSL: {word} without {other}"));
            }
        }
        if let (Some(chain), Some(key), Some(span)) = (chain, key, items.span("key")) {
            match CertifiedKey::from_der(chain.clone(), key.clone_key(), &ring::default_provider()) {
                Ok(_) => self.identity = Some(Arc::new(Identity { chain, key })),
                Err(error) => self.error(Class::Conflict, span, format!("SSL: certificate and key: {error}")),
            }
        }
    }

    fn url(&mut self, item: Item<'_>, server: &Server) -> Option<Url> {
        let items = self.items(Block::Url, item.body());
        self.extra(item, &item.statement.arguments());
        let path = self.required(&items, item, "path", path);
        let digest = self.one(&items, "digest", digest);
        let host = self.one(&items, "virtualhost", value::text).or_else(|| server.virtualhost.clone());
        let address = || ServerName::from(server.address.ip());
        // A virtualhost may have a port. Where it is no name, as for HTTP it need not be, the address stands for it.
        let name = |host: &String| server_name(host.split_once(':').map_or(host, |(host, _)| host)).ok();
        let server_name = match (&server.sni_name, &host) {
            (Some(name), _) => name.clone(),
            (None, Some(host)) if server.tls => name(host).unwrap_or_else(address),
            _ => address(),
        };
        let host = host.unwrap_or_else(|| server.address.to_string());
        let status = self.status(&items);
        let search = self.search(&items);
        Some(Url { path: path?, status, digest, search, host, server_name })
    }

    fn status(&mut self, items: &Items<'_>) -> Vec<(u16, u16)> {
        let Some(item) = items.last("status_code") else { return vec![(200, 299)] };
        let words = &item.statement.arguments();
        if words.is_empty() {
            self.error(Class::BadValue, item.statement.word().span, "status_code needs a value");
        }
        words.iter().filter_map(|word| self.word("status_code", word, codes)).collect()
    }

    fn search(&mut self, items: &Items<'_>) -> Option<Search> {
        let options = self.regex_options(items);
        let wanted = !self.flag(items, "regex_no_match");
        let offset = value::number(0..=u32::MAX);
        let mut offset =
            |word| self.one(items, word, &offset).and_then(|offset| usize::try_from(offset).ok());
        let (min_offset, max_offset) = (offset("regex_min_offset"), offset("regex_max_offset"));
        if items.lacks("regex") {
            let lonely = ["regex_no_match", "regex_options", "regex_min_offset", "regex_max_offset"];
            for (word, span) in lonely.into_iter().filter_map(|word| Some((word, items.span(word)?))) {
                self.warn(Class::Conflict, span, format!("{word} has no effect without regex"));
            }
        }
        let (min_offset, max_offset) = (min_offset.unwrap_or(0), max_offset.unwrap_or(usize::MAX));
        if min_offset > max_offset
            && let Some(span) = items.span("regex_max_offset")
        {
            self.error(Class::Conflict, span, "regex_max_offset is below regex_min_offset");
        }
        let pattern = self.one(items, "regex", |word| pattern(&options, word))?;
        // Thousands of real servers are searched for the same: one set of tables will do.
        let pattern = self.patterns.entry(pattern.0.as_str().to_owned()).or_insert(pattern).clone();
        Some(Search { pattern, wanted, min_offset, max_offset })
    }

    /// As the flags that begin a pattern. PCRE looks at bytes unless told otherwise, hence `-u`.
    fn regex_options(&mut self, items: &Items<'_>) -> String {
        let mut flags = String::new();
        let mut unicode = "-u";
        for word in items.all("regex_options").flat_map(|item| item.statement.arguments()) {
            match self.word("regex_options", &word, value::choice(&OPTIONS)) {
                Some("utf" | "ucp") => unicode = "",
                Some("unsupported") => {
                    let message = format!("regex_options: {} is not supported", word.text);
                    self.error(Class::Unsupported, word.span, message);
                }
                Some(flag) => flags.push_str(flag),
                None => {}
            }
        }
        if flags.is_empty() && unicode.is_empty() { flags } else { format!("(?{flags}{unicode})") }
    }
}

/// PCRE's options: the same here, without meaning here (""), or impossible.
const OPTIONS: [(&str, &str); 24] = [
    ("caseless", "i"),
    ("multiline", "m"),
    ("dotall", "s"),
    ("extended", "x"),
    ("ungreedy", "U"),
    ("utf", "utf"),
    ("ucp", "ucp"),
    ("auto_callout", ""),
    ("dupnames", ""),
    ("match_unset_backref", ""),
    ("never_ucp", ""),
    ("never_utf", ""),
    ("never_backslash_c", ""),
    ("no_auto_capture", ""),
    ("no_auto_possess", ""),
    ("no_dotstar_anchor", ""),
    ("no_start_optimize", ""),
    ("alt_verbnames", ""),
    ("use_offset_limit", ""),
    ("allow_empty_class", "unsupported"),
    ("alt_bsux", "unsupported"),
    ("alt_circumflex", "unsupported"),
    ("dollar_endonly", "unsupported"),
    ("firstline", "unsupported"),
];

fn pattern(options: &str, word: &str) -> Value<Pattern> {
    /// Of the compiled pattern: a short text can ask for a very large one.
    const SIZE: usize = 1 << 20;
    if word.is_empty() {
        return Err(Wrong::new("an empty value"));
    }
    let build = |text: &str| RegexBuilder::new(text).size_limit(SIZE).dfa_size_limit(SIZE).build();
    match build(&format!("{options}{word}")) {
        Ok(regex) => Ok(Pattern(regex)),
        Err(error) => {
            let text = error.to_string();
            let why = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            let wrong = Wrong::new(format!("{}: {why}", quote(word)));
            Err(wrong.help("unlike PCRE, patterns have no look-around and no back references"))
        }
    }
}

fn server_name(word: &str) -> Value<ServerName<'static>> {
    let wrong = || Wrong::new(format!("{} is no host name", quote(word)));
    ServerName::try_from(word.to_owned()).map_err(|_| wrong())
}

/// All certificates of a PEM file, of authorities.
fn roots(word: &str) -> Value<Vec<CertificateDer<'static>>> {
    let roots = certificates(word)?;
    let mut store = RootCertStore::empty();
    for root in &roots {
        store.add(root.clone()).map_err(|error| unusable(word, error))?;
    }
    Ok(roots)
}

/// All certificates of a PEM file.
fn certificates(word: &str) -> Value<Vec<CertificateDer<'static>>> {
    let text = source::read(Path::new(word)).map_err(|error| unusable(word, error))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let certificates = read.map_err(|error| unusable(word, error))?;
    if certificates.is_empty() { Err(unusable(word, "no certificate")) } else { Ok(certificates) }
}

/// The first key of a PEM file.
fn key(word: &str) -> Value<PrivateKeyDer<'static>> {
    let text = source::read(Path::new(word)).map_err(|error| unusable(word, error))?;
    PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|error| unusable(word, error).help("a key with a password cannot be read"))
}

fn unusable(word: &str, why: impl std::fmt::Display) -> Wrong {
    Wrong::new(format!("{}: {why}", quote(word)))
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
