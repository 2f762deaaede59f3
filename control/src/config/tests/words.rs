//! What is said about each word of the table, where it may stand.

use super::*;

/// A file in which `line` stands alone in the block.
fn around(block: Block, line: &str) -> Option<String> {
    let vrrp = format!("vrrp_instance V {{\n{line}\n}}\n");
    let server = |inside: &str| format!("virtual_server 192.0.2.1 80 {{\n{inside}\n}}\n");
    let real = |inside: &str| server(&format!("real_server 192.0.2.2 80 {{\n{inside}\n}}"));
    Some(match block {
        Block::Top => line.to_owned(),
        Block::GlobalDefs => format!("global_defs {{\n{line}\n}}\n"),
        Block::VrrpInstance => vrrp,
        Block::SyncGroup => format!("vrrp_sync_group V {{\n{line}\n}}\n"),
        Block::VrrpScript => format!("vrrp_script V {{\n{line}\n}}\n"),
        Block::TrackProcess => format!("vrrp_track_process V {{\n{line}\n}}\n"),
        Block::TrackFile => format!("track_file V {{\n{line}\n}}\n"),
        Block::Authentication => format!("vrrp_instance V {{\nauthentication {{\n{line}\n}}\n}}\n"),
        Block::AuthHmac => format!("vrrp_instance V {{\nauth_hmac {{\n{line}\n}}\n}}\n"),
        Block::VirtualServer => server(line),
        Block::RealServer => real(line),
        Block::TcpCheck => real(&format!("TCP_CHECK {{\n{line}\n}}")),
        Block::HttpGet => real(&format!("HTTP_GET {{\n{line}\n}}")),
        Block::SslGet => real(&format!("SSL_GET {{\n{line}\n}}")),
        Block::Ssl => format!("SSL {{\n{line}\n}}\n"),
        Block::FileCheck => real(&format!("FILE_CHECK {{\n{line}\n}}")),
        Block::MiscCheck => real(&format!("MISC_CHECK {{\n{line}\n}}")),
        Block::SmtpCheck => real(&format!("SMTP_CHECK {{\n{line}\n}}")),
        Block::DnsCheck => real(&format!("DNS_CHECK {{\n{line}\n}}")),
        Block::UdpCheck => real(&format!("UDP_CHECK {{\n{line}\n}}")),
        Block::PingCheck => real(&format!("PING_CHECK {{\n{line}\n}}")),
        Block::Url => real(&format!("HTTP_GET {{\nurl {{\n{line}\n}}\n}}")),
        _ => return None,
    })
}

#[test]
fn real_servers_have_ids_in_the_connection_ids_of_quic_services() {
    let config = sound("quic");
    let read: Vec<_> = config
        .services
        .iter()
        .map(|service| {
            let ids: Vec<_> = service
                .reals
                .iter()
                .map(|real| real.server_id.map(|id| (id.to_string(), id.padded())))
                .collect();
            (service.connection_ids, ids)
        })
        .collect();
    let id = |text: &str, padded| Some((text.to_owned(), padded));
    let kind = |config, length| Some(lvs_ebpf_common::ConnectionIds { config, length });
    let two = vec![id("0a01", [0x0a, 1, 0, 0, 0, 0, 0, 0]), id("0a02", [0x0a, 2, 0, 0, 0, 0, 0, 0])];
    let longest = vec![id("0123456789abcdef", [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef])];
    assert_eq!(read, [(kind(2, 2), two), (kind(0, 8), longest)]);
}

#[test]
fn every_word_that_is_called_supported_is_read() {
    // Processes and interfaces may be called anything.
    let anything = ["process", "heartbeat_interface"];
    let told = |keyword: &Keyword| keyword.status == Status::Supported && !anything.contains(&keyword.word);
    for keyword in keywords::keywords().filter(told) {
        let line = match keyword.opens {
            None => format!("{} *not* *values*", keyword.word),
            Some(_) => format!("{} {{\n*neither* word\n}}", keyword.word),
        };
        let file = around(keyword.block, &line).expect("a supported word stands in a supported block");
        let at = file.lines().position(|other| line.starts_with(other)).unwrap() + 1;
        let loaded = text(&file);
        let about = |diagnostic: &&Diagnostic| (at..=at + 1).contains(&diagnostic.line);
        assert!(loaded.diagnostics.iter().any(|it| about(&it)), "{keyword:?} is not read");
    }
}

/// With one of these at least, every word of the table is no error where it may stand.
const VALUES: [&str; 39] = [
    "",
    "reset",
    "1",
    "2",
    "50",
    "0.5",
    "10.0.0.9",
    "224.0.0.20",
    "ff02::20",
    "192.0.2.9 80",
    "on",
    "eth0",
    "root",
    "/bin/true",
    "\"/bin/true x\"",
    "/run/lvsd-test.fifo",
    "MASTER",
    "PASS",
    "TCP",
    "DR",
    "rr",
    "tcp 900",
    "200",
    "d41d8cd98f00b204e9800998ecf8427e",
    "up",
    "caseless",
    "1.0",
    "/",
    "A",
    "example.org",
    "00ff",
    "lb1",
    "tests/config/ca.pem",
    "tests/config/client.key",
    "1 0123456789abcdef0123456789abcdef",
    "time",
    "enforce",
    "initial",
    "ops@example.org",
];

#[test]
fn every_word_can_be_written_without_an_error_in_every_block_it_is_allowed_in() {
    for keyword in keywords::keywords() {
        let word = keyword.word;
        let without_error = |value: &&str| {
            let line = match keyword.opens {
                None => format!("{word} {value}"),
                Some(_) => format!("{word} {value} {{\n}}"),
            };
            let Some(mut file) = around(keyword.block, &line) else { return true };
            file.push_str("\ntrack_file A {\nfile /run/lvsd-test\n}\n");
            let at = file.lines().position(|other| line.starts_with(other)).unwrap() + 1;
            let own = |it: &&Diagnostic| it.line == at && it.severity == Severity::Error;
            // That it is alone in its block is not its own fault.
            let faults = |it: &&Diagnostic| {
                own(it)
                    && ![Class::Missing, Class::SilentDefault, Class::Conflict, Class::MulticastAnyway]
                        .contains(&it.code)
            };
            !text(&file).diagnostics.iter().any(|it| faults(&it))
        };
        assert!(VALUES.iter().any(without_error), "{word} in {}", keyword.block.name());
    }
}

#[test]
fn every_other_word_is_answered_with_its_fate() {
    for keyword in keywords::keywords() {
        let class = match keyword.status {
            Status::Supported => continue,
            Status::Deprecated(_) => Class::Deprecated,
            Status::NotYet(_) => Class::Unsupported,
            Status::Ignored(keywords::DEAD) => Class::DeadWord,
            Status::Ignored(_) => Class::Ignored,
        };
        let block = if keyword.opens.is_some() { " {\n}" } else { " 1" };
        let Some(file) = around(keyword.block, &format!("{}{block}", keyword.word)) else { continue };
        let loaded = text(&file);
        let found = loaded.diagnostics.iter().any(|it| it.code == class && it.message.contains(keyword.word));
        assert!(found, "{keyword:?}: {}", loaded.render_text());
    }
}

#[test]
fn the_documentation_is_the_table() {
    assert!(is_as_pinned(Path::new("../docs/keepalived-conf.md"), &explain::page()));
}

/// Debian's keepalived has them. Each word in them is one of keepalived's.
#[test]
fn the_samples_of_keepalived_hold_no_unknown_word() {
    let folder = "/usr/share/doc/keepalived/samples";
    if !Path::new(folder).is_dir() {
        return lvs_tests::skip(&format!("no {folder} (keepalived brings it)"));
    }
    let samples = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    // Older than the block `group`: keepalived itself does not take this one any more.
    let outdated = "keepalived.conf.vrrp.lvs_syncd";
    let samples: Vec<_> = samples
        .filter(|path| path.to_string_lossy().contains("/keepalived.conf.") && !path.ends_with(outdated))
        .collect();
    assert!(!samples.is_empty());
    for sample in samples {
        let loaded = load(&sample, "node1").unwrap();
        let unknown = [
            Class::UnknownWord,
            Class::MisplacedWord,
            Class::Syntax,
            Class::Quote,
            Class::MissingBrace,
            Class::UnclosedBlock,
            Class::ExtraBrace,
            Class::Limit,
        ];
        let found: Vec<_> = loaded.diagnostics.iter().filter(|it| unknown.contains(&it.code)).collect();
        assert!(found.is_empty(), "{found:#?}");
    }
}
