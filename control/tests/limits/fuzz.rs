//! Is there a text that makes the reader panic, hang, or take memory without measure?
//!
//! Files are changed at random, and a changed one that is answered in a new way is changed further.
//! `cargo xtask fuzz config` does it for ten minutes.

use std::{
    collections::HashSet,
    env, fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

use anyhow::Result;
use control::config::{self, Diagnostic};

use crate::peak::{TURN, peak};

/// What no file takes on any machine.
const HANG: Duration = Duration::from_secs(20);
/// Beside ten times the text: the tables of a reader that reads nothing, and the diagnostics.
const ALLOWANCE: usize = 3 << 20;
const LONGEST: usize = 64 << 10;

const TOKENS: [&str; 60] = [
    "{",
    "}",
    "{\n",
    "}\n",
    "\n",
    "\n\n",
    " ",
    "\t",
    "\"",
    "'",
    "#",
    "!",
    "\\",
    "\\\n",
    "\\#",
    "$A",
    "${A}",
    "$A=",
    "\n$A=1\n",
    "\n$A=${A}${A}\n",
    "\n$B=x \\\n y\n",
    "${_ENV PATH}",
    "${_RANDOM 1 9}",
    "${_PWD}",
    "${_HASH}",
    "@x ",
    "@^x ",
    "@node1 ",
    "\n~SEQ(a,3) ",
    "~SEQx(b,$A,5)",
    "\n~LST({c,d},{1,2}) ",
    "~SEQ(a,60000)",
    "include ",
    "\ninclude *\n",
    "includea {a,b}\n",
    "{{",
    "}}",
    "\0",
    "\r\n",
    "\u{feff}",
    "é",
    "10.0.0.1",
    "10.0.0.0/24",
    "::1",
    "2001:db8::1/64",
    "fe80::1%eth0",
    "0",
    "1",
    "-1",
    "255",
    "256",
    "65536",
    "1.5",
    ".",
    "99999999999999999999",
    "reverse",
    "weight",
    "on",
    "off",
    "-",
];

#[test]
fn a_few_seconds_find_no_panic_no_hang_and_no_flood() -> Result<()> {
    fuzz(Duration::from_secs(5))
}

#[test]
#[ignore = "takes ten minutes: cargo xtask fuzz config"]
fn ten_minutes_find_no_panic_no_hang_and_no_flood() -> Result<()> {
    let seconds = env::var("LVSD_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    fuzz(Duration::from_secs(seconds.unwrap_or(600)))
}

/// What takes most for its length, at a size that counts: lines beneath a head. `%` is another address in each.
const MUCH: [(&str, &str); 24] = [
    ("", "a\n"),
    ("", "a "),
    ("", "a{\n"),
    ("", "#\na\n"),
    ("$A=1\n", "${A}\n"),
    ("", "\"\" "),
    ("vrrp_instance V {\nvirtual_ipaddress {\n", "a\n"),
    ("vrrp_instance V {\nvirtual_ipaddress {\n", "10.0.0.1 a b c d e f\n"),
    ("vrrp_instance V {\nvirtual_ipaddress_excluded {\n", "%\n"),
    ("vrrp_instance V {\nvirtual_routes {\n", "% dev a\n"),
    ("vrrp_sync_group G {\ngroup {\n", "a\n"),
    ("vrrp_instance V {\ntrack_interface {\n~SEQ(a,60000)     eth2\n}\n}\n", ""),
    ("", "vrrp_instance V {\n}\n"),
    ("", "vrrp_instance % {\ninterface a\nvirtual_router_id 1\n}\n"),
    ("", "virtual_server 10.0.0.1 80 {\n}\n"),
    (
        "",
        "virtual_server % 80 {\nlvs_method DR\nprotocol TCP\nreal_server 10.0.0.1 80{\nTCP_CHECK{\n}\n}\n}\n",
    ),
    (
        "virtual_server_group g {\n1.1.1.0-255 80\n}\n",
        "virtual_server group g {\nprotocol TCP\nlvs_method DR\nreal_server % 80 {\n}\n}\n",
    ),
    (SERVICE, "real_server 10.0.0.1 80 {\nPING_CHECK {\n}\n}\n"),
    (SERVICE, "real_server 10.0.0.1 80 {\n}\n"),
    (SERVICE, "real_server % 80{\nPING_CHECK{\n}\n}\n"),
    (SERVICE, "real_server %{\n}\n"),
    (SERVICE, "real_server %{\nTCP_CHECK{\n}\nTCP_CHECK{\n}\nTCP_CHECK{\n}\nTCP_CHECK{\n}\n}\n"),
    (SERVICE, "real_server %{\nUDP_CHECK{\n}\n}\n"),
    (WITH_A_LONG_NAME, "real_server %{\nHTTP_GET{\nurl{\npath /\n}\n}\n}\n"),
];
const SERVICE: &str = "virtual_server 10.0.0.1 80 {\nlvs_method DR\nprotocol TCP\n";
const WITH_A_LONG_NAME: &str = "virtual_server 10.0.0.1 80 {\nlvs_method DR\nprotocol TCP\nvirtualhost aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n";

#[test]
fn much_of_anything_takes_ten_times_its_size_at_most() {
    let _turn = TURN.lock();
    let folder = env::temp_dir().join(format!("lvsd-megabyte-{}", process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("input.conf");
    let mut worst = Vec::new();
    for (head, unit) in MUCH {
        // The second is where a list that doubled would have most room that it does not need.
        for length in [1 << 20, 322 << 10] {
            let mut input = head.to_owned();
            for number in 0x0101_0001.. {
                if unit.is_empty() || input.len() >= length {
                    break;
                }
                input += &unit.replace('%', &Ipv4Addr::from_bits(number).to_string());
            }
            fs::write(&path, &input).unwrap();
            let (loaded, most) = peak(|| config::load(&path, "node1").unwrap());
            let size = input.len().max(loaded.bytes);
            worst.push((most.saturating_sub(ALLOWANCE) as f64 / size as f64, length, head, unit));
        }
    }
    println!("{worst:#?}");
    assert!(worst.iter().all(|(times, ..)| *times <= 10.0), "{worst:#?}");
    fs::remove_dir_all(folder).unwrap();
}

fn fuzz(time: Duration) -> Result<()> {
    let _turn = TURN.lock();
    let folder = env::temp_dir().join(format!("lvsd-fuzz-{}", process::id()));
    fs::create_dir_all(&folder)?;
    // It stays there after a panic.
    let path = folder.join("input.conf");
    let mut corpus = seeds();
    let mut seen = HashSet::new();
    let seed = env::var("LVSD_FUZZ_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}, {} files, inputs in {}", corpus.len(), path.display());
    let mut random = fastrand::Rng::with_seed(seed);
    config::explain::explain("weight");
    let (mut runs, mut worst, mut slowest) = (0_u64, 0.0_f64, Duration::ZERO);
    #[expect(clippy::disallowed_methods, reason = "a fuzzer stops after a time")]
    let now = Instant::now;
    let start = now();
    while start.elapsed() < time {
        let mut input = random.choice(&corpus).cloned().unwrap_or_default();
        for _ in 0..random.usize(1..8) {
            mutate(&mut input, &corpus, &mut random);
        }
        input.truncate(LONGEST);
        fs::write(&path, &input)?;
        let begun = now();
        let (loaded, most) = peak(|| {
            let loaded = config::load(&path, "node1");
            loaded.as_ref().map(|loaded| loaded.render_text()).ok();
            loaded
        });
        let loaded = loaded?;
        let (_, formatted) = config::format(&path)?;
        let took = begun.elapsed();
        assert!(took < HANG, "{took:?} for {}", path.display());
        let size = input.len().max(loaded.bytes);
        let bound = 10 * size + ALLOWANCE;
        assert!(most <= bound, "{most} bytes for the {size} of {}", path.display());
        assert!(formatted.len() <= 70 * input.len() + 70, "{}", path.display());
        runs += 1;
        slowest = slowest.max(took);
        if size >= LONGEST / 2 {
            worst = worst.max(most as f64 / size as f64);
        }
        // What is new in the answers stands for what is new in the ways through the code.
        let kinds = loaded.diagnostics.iter().map(kind);
        if kinds.filter(|kind| seen.insert(kind.clone())).count() > 0 {
            corpus.push(input);
        }
    }
    println!(
        "{runs} texts in {:?}: {} kept, {} kinds of answer; slowest {slowest:?}; of long ones {worst:.1} times the text at most",
        start.elapsed(),
        corpus.len(),
        seen.len()
    );
    Ok(fs::remove_dir_all(folder)?)
}

/// A message without what it quotes and counts.
fn kind(diagnostic: &Diagnostic) -> String {
    let mut quoted = false;
    let plain = diagnostic.message.chars().filter(|c| {
        quoted ^= *c == '"';
        !quoted && !c.is_ascii_digit()
    });
    format!("{}{}", diagnostic.code.code(), plain.collect::<String>())
}

fn seeds() -> Vec<Vec<u8>> {
    let mut open: Vec<PathBuf> = vec!["tests/config".into(), "/usr/share/doc/keepalived/samples".into()];
    let mut seeds = Vec::new();
    while let Some(path) = open.pop() {
        match fs::read_dir(&path) {
            Ok(entries) => open.extend(entries.flatten().map(|entry| entry.path())),
            Err(_) if is_configuration(&path) => seeds.extend(fs::read(&path)),
            Err(_) => {}
        }
    }
    assert!(seeds.len() >= 20, "{}", seeds.len());
    seeds
}

fn is_configuration(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.ends_with(".conf") || name.ends_with(".inc") || name.starts_with("keepalived.conf")
}

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut fastrand::Rng) {
    let mut at = |input: &Vec<u8>| random.usize(0..=input.len());
    let (one, other) = (at(input), at(input));
    let (from, to) = (one.min(other), one.max(other));
    match random.u32(0..10) {
        0 => drop(input.drain(from..to.min(from + 40))),
        1 => {
            let piece = input[from..to.min(from + 200)].to_vec();
            input.splice(other..other, piece);
        }
        2 => {
            let piece = input[from..to.min(from + 100)].repeat(random.usize(2..500));
            input.splice(from..from, piece.into_iter().take(LONGEST));
        }
        3 if from < input.len() => input[from] ^= 1 << random.u32(0..8),
        4 => {
            let source = random.choice(corpus).cloned().unwrap_or_default();
            let (one, other) = (random.usize(0..=source.len()), random.usize(0..=source.len()));
            let piece = source[one.min(other)..one.max(other)].iter().copied().take(2000).collect::<Vec<_>>();
            input.splice(from..from, piece);
        }
        5 | 6 => drop(line_of(input, from).map(|line| input.drain(line))),
        7 => {
            if let Some(line) = line_of(input, from) {
                let line = input[line].to_vec();
                let to = line_of(input, to).map_or(0, |line| line.start);
                input.splice(to..to, line);
            }
        }
        _ => drop(input.splice(from..from, random.choice(TOKENS).unwrap_or("").bytes())),
    }
}

/// With its end.
fn line_of(input: &[u8], at: usize) -> Option<std::ops::Range<usize>> {
    let start = input.get(..at)?.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let end =
        input.get(at..)?.iter().position(|byte| *byte == b'\n').map_or(input.len(), |length| at + length + 1);
    Some(start..end)
}
