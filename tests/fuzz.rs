//! Does anything that comes off the wire, in any order at any time, make VRRP panic or break its word?
//!
//! Two targets: the decoder of adverts with what checks them, and the state machine. Inputs are mutated from a corpus in
//! `fixtures/fuzz`, a line of hex each; one that shows something new is mutated further. `FUZZ_KEEP=1` adds these to the
//! corpus. Ten seconds here, ten minutes by `cargo xtask fuzz vrrp`; `FUZZ_SEED=N` repeats a run.
#![expect(clippy::panic, clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

use std::{collections::BTreeSet, env, fs, panic, path::PathBuf, sync::Arc, time::Duration};

use bytes::BytesMut;
use control::{
    config::model::{
        Authentication, Garp, Preempt, Priority, Rules, Secret, Signing, SigningKey, SigningMode, Version,
        Vrid,
    },
    vrrp::{
        FaultCause, Monotonic, State,
        auth::Guard,
        group::Order,
        machine::{Effect, Effects, Machine, Settings},
        packet::{Advert, Checksum, Datagram, Format},
    },
};
use lvs_tests::{Dice, Stamp};

const LONGEST: usize = 2048;
/// Any moment for signatures that carry one.
const WALL: Duration = Duration::from_secs(1_800_000_000);

#[test]
fn no_advert_makes_the_decoder_panic() {
    let formats = formats();
    let mut seeds: Vec<Vec<u8>> =
        formats.iter().map(|(format, signing)| sealed(format, signing.as_ref())).collect();
    // An address more or less, as from another configuration.
    seeds.extend(formats.iter().map(|(format, signing)| {
        let more =
            Format { addresses: [&format.addresses[..], &format.addresses[..]].concat(), ..format.clone() };
        sealed(&more, signing.as_ref())
    }));
    fuzz("adverts", seeds, |input| {
        formats
            .iter()
            .enumerate()
            .map(|(index, (format, signing))| (index, decode(format, signing.as_ref(), input)))
            .collect::<Vec<_>>()
    });
}

#[test]
fn no_order_of_events_makes_the_machine_panic_or_break_its_word() {
    let seeds = vec![vec![0; 40], (0..80).collect(), (0..=255).rev().collect()];
    fuzz("machine", seeds, live);
}

/// Feeds mutations of the corpus to `target` until the time is over. What it returns tells inputs apart.
fn fuzz<T: Ord + std::fmt::Debug>(
    name: &str,
    seeds: Vec<Vec<u8>>,
    target: impl Fn(&[u8]) -> T + panic::RefUnwindSafe,
) {
    let number = |name: &str| env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seed = number("FUZZ_SEED").unwrap_or_else(|| Stamp::now().nanos() % 1_000_000);
    let time = Duration::from_secs(number("LVSD_FUZZ_SECONDS").unwrap_or(10));
    let file =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/fuzz").join(name).with_extension("hex");
    let mut corpus: Vec<Vec<u8>> = fs::read_to_string(&file).unwrap_or_default().lines().map(bytes).collect();
    corpus.extend(seeds);
    let mut seen = BTreeSet::new();
    corpus.retain(|input| seen.insert(attempt(&target, input, seed)));
    let (mut dice, start, mut count) = (Dice::new(seed), Stamp::now(), 0_u64);
    while start.elapsed() < time {
        for _ in 0..1000 {
            let input = mutate(&mut dice, &corpus);
            if seen.insert(attempt(&target, &input, seed)) {
                corpus.push(input);
            }
        }
        count += 1000;
    }
    println!("{name}: {count} inputs in {time:?}, {} kinds of outcome, FUZZ_SEED={seed}", corpus.len());
    if number("FUZZ_KEEP").is_some() {
        // The shortest are the most telling.
        corpus.sort_by_key(Vec::len);
        corpus.truncate(150);
        corpus.sort();
        fs::write(&file, corpus.iter().map(|input| hex(input) + "\n").collect::<String>()).unwrap();
    }
}

fn attempt<T>(target: impl Fn(&[u8]) -> T + panic::RefUnwindSafe, input: &[u8], seed: u64) -> T {
    panic::catch_unwind(|| target(input)).unwrap_or_else(|_| panic!("FUZZ_SEED={seed}, input {}", hex(input)))
}

fn mutate(dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus[dice.index(corpus.len())].clone();
    for _ in 0..1 + dice.index(6) {
        let place = dice.index(input.len() + 1);
        match dice.index(8) {
            0 => input.truncate(place),
            1 => input.insert(place, dice.roll(256) as u8),
            2 if place < input.len() => drop(input.remove(place)),
            3 => {
                let other = &corpus[dice.index(corpus.len())];
                input.truncate(place);
                input.extend_from_slice(&other[place.min(other.len())..]);
            }
            4 if input.len() > 28 => correct(&mut input),
            5 if place < input.len() => input[place] = dice.pick(&[0, 1, 2, 0x7f, 0x80, 0xfe, 0xff]),
            6 if place < input.len() => input[place] ^= 1 << dice.index(8),
            _ if place < input.len() => input[place] = dice.roll(256) as u8,
            _ => {}
        }
    }
    input.truncate(LONGEST);
    input
}

/// Makes length and checksum right, so that what comes behind these checks is reached.
fn correct(packet: &mut [u8]) {
    let length = u16::try_from(packet.len()).unwrap_or(u16::MAX);
    // Over IPv4 the sum of the message alone is accepted too.
    let (header, pseudo) = match packet[0] >> 4 {
        6 if packet.len() > 48 => {
            let payload = length - 40;
            packet[4..6].copy_from_slice(&payload.to_be_bytes());
            (40, u32::from(payload) + 112 + sum(&packet[8..40]))
        }
        _ => {
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            (20, 0)
        }
    };
    packet[header + 6..header + 8].fill(0);
    let sum = pseudo + sum(&packet[header..]);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = !(((sum >> 16) + (sum & 0xffff)) as u16);
    packet[header + 6..header + 8].copy_from_slice(&sum.to_be_bytes());
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum()
}

// --- adverts

fn formats() -> Vec<(Format, Option<Signing>)> {
    let v3 = Format {
        vrid: Vrid::new(51).unwrap(),
        version: Version::V3,
        interval: Duration::from_secs(1),
        authentication: Authentication::None,
        checksum: Checksum::PseudoHeader,
        source: "10.77.0.1".parse().unwrap(),
        peers: vec![],
        multicast: "224.0.0.18".parse().unwrap(),
        ttl: 255,
        ttl_limits: vec![],
        addresses: vec!["10.77.0.100".parse().unwrap()],
    };
    let v2 = Format { version: Version::V2, checksum: Checksum::Message, ..v3.clone() };
    let key = SigningKey { id: 1, secret: Secret::new(b"secret".to_vec()) };
    let signing = |mode| Signing { keys: vec![key.clone()], active: 1, window: Some(WALL), mode };
    let unicast = Format { peers: vec!["10.77.0.1".parse().unwrap()], ..v3.clone() };
    let v6 = Format {
        source: "fe80::1".parse().unwrap(),
        multicast: "ff02::12".parse().unwrap(),
        addresses: vec!["fd77::100".parse().unwrap()],
        ..v3.clone()
    };
    vec![
        (v2.clone(), None),
        (Format { authentication: Authentication::Pass(*b"secret12"), ..v2.clone() }, None),
        (Format { authentication: Authentication::Ah(*b"secret12"), ..v2 }, None),
        (v3.clone(), Some(signing(SigningMode::default()))),
        (v3.clone(), None),
        (Format { checksum: Checksum::Message, ..v3 }, None),
        (unicast, None),
        (v6.clone(), None),
        (v6, Some(signing(SigningMode::default()))),
    ]
}

fn sealed(format: &Format, signing: Option<&Signing>) -> Vec<u8> {
    let mut packet = BytesMut::new();
    let destination = format.peers.first().copied().unwrap_or(format.multicast);
    format.encode(150, destination, 1, &mut packet);
    Guard::new(format, signing, Arc::default(), WALL).seal(format, &mut packet, WALL);
    packet.to_vec()
}

/// As the VRRP thread does it: what became of it, in a number.
fn decode(format: &Format, signing: Option<&Signing>, input: &[u8]) -> usize {
    let Some(datagram) = Datagram::parse(input) else { return 0 };
    if datagram.vrid() != Some(format.vrid.get()) {
        return 1;
    }
    let mut guard = Guard::new(format, signing, Arc::default(), WALL);
    let datagram = guard.open(datagram);
    match format.accept(&datagram).and_then(|received| {
        guard.check(format, &datagram, WALL)?;
        Ok(received)
    }) {
        Err(rejection) => 2 + rejection.kind(),
        Ok(received) => {
            100 + usize::from(received.addresses_differ) + 2 * usize::from(received.advert.priority == 0)
        }
    }
}

// --- the machine

/// Reads settings and events out of `input`; returns the states that it went through.
fn live(input: &[u8]) -> Vec<u8> {
    let mut input = input.iter().copied();
    let mut next = || input.next().unwrap_or(0);
    let interval = Duration::from_millis(10 * (1 + u64::from(next())));
    let settings = Settings {
        source: "10.0.0.2".parse().unwrap(),
        version: if next() % 2 == 0 { Version::V2 } else { Version::V3 },
        priority: Priority::new(i64::from(next().max(1))).unwrap(),
        advert_interval: interval,
        start_as_master: next() % 2 == 0,
        preempt: match next() % 3 {
            0 => Preempt::Immediate,
            1 => Preempt::Never,
            _ => Preempt::After(interval * u32::from(next())),
        },
        garp: Garp {
            delay: interval * u32::from(next()),
            refresh: interval * u32::from(next()),
            ..Garp::default()
        },
        down_timer_adverts: 2 + u32::from(next() % 4),
        grouped: next() % 3 == 0,
        rules: rules(next()),
    };
    let lasts = interval * settings.down_timer_adverts;
    let mut machine = Machine::new(settings);
    let mut now = Monotonic::from_nanos(1 << 40);
    // What a daemon before this one has left.
    let mut lease = now + interval * u32::from(next() % 4);
    let mut states = Vec::new();
    for round in 0..60 {
        let (what, a, b) = (next(), next(), next());
        now = match what >> 5 {
            // On time, a little late, or long after.
            0..=2 => machine.next_deadline().unwrap_or(now).max(now),
            3 | 4 => now + interval * u32::from(b) / 64,
            5 | 6 => now + Duration::from_micros(b.into()),
            _ => now + interval * u32::from(b),
        };
        let mut effects = Effects::new();
        match what % 16 {
            _ if round == 0 => machine.on_start(lease, now, &mut effects),
            0..=5 => {
                let from = if b % 2 == 0 { "10.0.0.1" } else { "10.0.0.3" }.parse().unwrap();
                let advert = Advert { priority: a, interval: interval * (1 + u32::from(b % 3)) };
                machine.on_advert(from, &advert, now, &mut effects);
            }
            6..=9 => machine.on_timer(now, &mut effects),
            10 => machine.on_priority(Priority::clamped(a.into()), now, &mut effects),
            11 => machine.on_fault(FaultCause::LinkDown, now, &mut effects),
            12 => machine.on_recovered(now, &mut effects),
            13 => machine.obey(Order::TakeOver, now, &mut effects),
            14 => machine.obey(Order::StepDown, now, &mut effects),
            _ if a == 0 => machine.stop(now, &mut effects),
            _ => machine.obey(Order::Recover, now, &mut effects),
        }
        assert!(effects.len() < 12, "{effects:?}");
        let fails = a % 5 == 0;
        let mut earned = Monotonic::default();
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::SendAdvert { .. } if fails => machine.on_advert_failed(now, &mut effects),
                Effect::SendAdvert { priority } if priority > 0 => earned = now + lasts,
                Effect::HoldLease { until } => {
                    assert!(until <= earned, "a lease that no advert has earned");
                    lease = until;
                }
                Effect::ResignLease => lease = Monotonic::default(),
                Effect::Announce { .. } => assert!(lease > now, "announced without a lease"),
                _ => {}
            }
        }
        assert!(machine.state() == State::Master || lease <= now, "a lease without the role");
        let sleeps = matches!(machine.state(), State::Init | State::Fault) || machine.wants_master(now);
        assert!(sleeps || machine.next_deadline().is_some(), "{machine:?} would never wake up");
        if states.last() != Some(&(machine.state() as u8)) {
            states.push(machine.state() as u8);
        }
        states.truncate(12);
    }
    states
}

fn rules(bits: u8) -> Rules {
    let bit = |place: u8| bits >> place & 1 == 1;
    Rules {
        lower_prio_no_advert: bit(0),
        higher_prio_send_advert: bit(1),
        owner_ignore_adverts: bit(2),
        skip_check_adv_addr: bit(3),
        strict: bit(4),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
