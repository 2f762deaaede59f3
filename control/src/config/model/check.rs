//! What a checker shall ask, from where, and how often.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use regex::bytes::Regex;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, SimpleDnsError, TYPE};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::Forwarding;
use crate::script::Script;

#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    pub kind: CheckKind,
    /// `connect_ip`, `connect_port`; the real server's own where absent.
    pub address: IpAddr,
    pub port: u16,
    // Shared or boxed: there may be a hundred thousand, most of them alike.
    pub source: Arc<CheckSource>,
    pub timing: Arc<CheckTiming>,
    /// The real server stays out of its pool until the first success.
    pub alpha: bool,
    /// `log_all_failures`: those that change nothing are logged too.
    pub log_all_failures: bool,
    /// `check_vip`: once that has succeeded, the virtual address is asked as well.
    pub on_vip: Option<Box<OnVip>>,
    /// `ha_suspend`: nothing is asked while this host has not got that address.
    pub only_with: Option<IpAddr>,
}

/// How a packet for a virtual address gets to a real server that owns it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnVip {
    pub address: Ipv4Addr,
    pub real: Ipv4Addr,
    /// Not NAT.
    pub forwarding: Forwarding,
}

/// Where a check comes from; the kernel chooses what is not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CheckSource {
    /// `bindto`, of the family of what is asked.
    pub address: Option<IpAddr>,
    /// `bind_port`.
    pub port: Option<u16>,
    /// `bind_if`.
    pub interface: Option<String>,
    /// `fwmark`: SO_MARK, for the routing rules of this host.
    pub mark: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CheckTiming {
    pub delay_loop: Duration,
    pub connect_timeout: Duration,
    /// Failures tolerated after the first.
    pub retry: u32,
    pub delay_before_retry: Duration,
    /// The first check runs at 1 s plus a random part of this.
    pub warmup: Duration,
    /// As many successes in a row bring a real server back.
    pub rise: u32,
    /// As many failures in a row take it out, the first ones after the start too. Replaces `retry`.
    pub fall: Option<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum CheckKind {
    Tcp,
    Http(Box<HttpCheck>),
    Smtp { helo: String },
    Dns(DnsCheck),
    Udp(Box<UdpCheck>),
    Ping,
    Misc(Box<MiscCheck>),
    File(FileCheck),
}

impl CheckKind {
    /// As the file has it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Tcp => "TCP_CHECK",
            Self::Http(http) if http.tls.is_none() => "HTTP_GET",
            Self::Http(_) => "SSL_GET",
            Self::Smtp { .. } => "SMTP_CHECK",
            Self::Dns(_) => "DNS_CHECK",
            Self::Udp(_) => "UDP_CHECK",
            Self::Ping => "PING_CHECK",
            Self::Misc(_) => "MISC_CHECK",
            Self::File(_) => "FILE_CHECK",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct HttpCheck {
    pub urls: Vec<Url>,
    pub protocol: HttpProtocol,
    /// `fast_recovery`: after a failure no pause between the urls that must all answer.
    pub fast_recovery: bool,
    /// SSL_GET.
    pub tls: Option<Tls>,
}

#[derive(Clone, PartialEq)]
pub struct Tls {
    /// `ca`: who may sign a certificate. Without, none is looked at.
    pub roots: Option<Arc<Vec<CertificateDer<'static>>>>,
    /// `certificate` and `key`: what a server that asks who we are is shown.
    pub identity: Option<Arc<Identity>>,
    /// `enable_sni`: the server is told the name.
    pub sni: bool,
}

/// Fitting together.
#[derive(Debug, PartialEq)]
pub struct Identity {
    /// Its own first, then those that sign it.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

/// Without the bytes of the certificates, which thousands of checks share.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roots = self.roots.as_ref().map_or(0, super::fingerprint);
        let identity = self.identity.as_ref().map_or(0, |identity| super::fingerprint(&identity.chain));
        f.debug_struct("Tls")
            .field("roots", &format_args!("#{roots:x}"))
            .field("identity", &format_args!("#{identity:x}"))
            .field("sni", &self.sni)
            .finish()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HttpProtocol {
    #[default]
    V1_0,
    /// 1.0 with `Connection: close`.
    V1_0Close,
    V1_1,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Url {
    pub path: String,
    /// Accepted codes, inclusive ranges; 200..=299 where the file names none.
    pub status: Vec<(u16, u16)>,
    /// MD5 of the body.
    pub digest: Option<[u8; 16]>,
    pub search: Option<Search>,
    /// Host header: url, checker, real server, virtual server, in that order; `ip:port` where none says.
    pub host: String,
    /// What TLS calls it: `sni_name`, else a virtualhost, else its address.
    pub server_name: ServerName<'static>,
}

/// `regex` and the words beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Search {
    pub pattern: Pattern,
    /// False with `regex_no_match`.
    pub wanted: bool,
    /// Where a match may begin.
    pub min_offset: usize,
    pub max_offset: usize,
}

/// Two are the same where their text is: options stand in it.
#[derive(Clone, Debug)]
pub struct Pattern(pub Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct DnsCheck {
    /// The message to send, but for its number.
    pub query: Vec<u8>,
}

impl DnsCheck {
    /// `name` without the last dot: the root's is empty.
    pub fn new(name: &str, record: TYPE) -> Result<Self, SimpleDnsError> {
        let mut packet = Packet::new_query(0);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        packet.questions.push(Question::new(Name::new(name)?, record.into(), CLASS::IN.into(), false));
        Ok(Self { query: packet.build_bytes_vec()? })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct UdpCheck {
    pub payload: Vec<u8>,
    pub reply: Reply,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Silence is fine.
    NotNeeded,
    Any,
    Like {
        /// Value and which of its bits count.
        bytes: Vec<(u8, u8)>,
        min: usize,
        max: usize,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct MiscCheck {
    pub script: Script,
    pub timeout: Duration,
    /// `misc_dynamic`: the exit code says the weight.
    pub dynamic: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct FileCheck {
    pub path: PathBuf,
    /// Times the number in the file it is added to the weight. Zero: the real server is up while the number is 0.
    pub weight: i32,
    /// The other sign; for zero, up while the number is not 0.
    pub reverse: bool,
}
