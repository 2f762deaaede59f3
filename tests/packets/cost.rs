//! What a packet costs on each path. A prologue (`lvs-ebpf/src/bench.rs`) makes each run's frame anew, of a flow that it
//! picks at random, and calls the real program by a tail call.

use std::{env, fs};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp},
};
use control::dataplane::plan::table::place;
use lvs_ebpf_common::{Turn, maps::MOVED};
use serde_json::json;

use super::*;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const BASE: u32 = 100;
const TUNNELS: u32 = 300;
const REALS: u16 = 100;
/// Prime, and 100 times the real servers.
const SLOTS: u16 = 10_007;
const RING: u32 = 1024;
/// How many ports have a service.
const CROWDS: [(&str, u16); 2] = [("1000 services", 1000), ("10000 services", 10_000)];
const IPV4: usize = 20;
const IPV6: usize = 40;
const IPIP: usize = IPV4;
/// The longest frame that the prologue restores; of others, behind what is changed in none.
const SOLICITATION: usize = 86;
/// For each flow to be new.
const ALL_FLOWS: u32 = u32::MAX;
const COUNTS: [(&str, u32); 4] = [("1", 1), ("1K", 1 << 10), ("64K", 1 << 16), ("1M", 1 << 20)];
/// Each call of the kernel takes it some 30 ms beside them.
const RUNS: u32 = 200_000;
const XDP_TX: u32 = 3;

/// One line of the table.
struct Path {
    name: &'static str,
    flows: &'static str,
    prologue: Ebpf,
    /// The kernel empties it when its last descriptor is closed.
    _under_test: ProgramArray<MapData>,
    frame: Vec<u8>,
    /// Nanoseconds a run, of each round.
    rounds: Vec<f64>,
}

/// What the prologue is told.
struct Setting<'a> {
    object: &'a [u8],
    frame: Vec<u8>,
    flows: u32,
    /// The client is the destination.
    answers: bool,
    services: u32,
    grows: usize,
}

impl Setting<'_> {
    fn load(&self) -> Ebpf {
        let mut frame = [0; SOLICITATION];
        frame[..self.frame.len()].copy_from_slice(&self.frame);
        let bits = u64::from(self.flows - 1);
        let ports = (bits & 0xffff) << if self.answers { 48 } else { 32 };
        // The last two bytes of the address.
        let source = (bits >> 16 & 0xffff) << 48;
        let is_solicitation = u32::from(self.frame.len() == SOLICITATION);
        let grows = self.grows as u32;
        EbpfLoader::new()
            .override_global("FRAME", &frame[..], true)
            .override_global("IS_SOLICITATION", &is_solicitation, true)
            .override_global("SOURCE_MASK", &source, true)
            .override_global("PORTS_MASK", &ports, true)
            .override_global("SERVICES", &self.services, true)
            .override_global("GROWS", &grows, true)
            .load(self.object)
            .unwrap()
    }
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut Xdp {
    ebpf.program_mut(name).unwrap().try_into().unwrap()
}

/// A program of the same object, loaded.
fn own(ebpf: &mut Ebpf, name: &str) -> ProgramFd {
    let program = xdp(ebpf, name);
    program.load().unwrap();
    program.fd().unwrap().try_clone().unwrap()
}

impl Path {
    /// `program`: who is under test and what it is to make of all frames. None = the program of this name in the same object,
    /// which sends them.
    fn new(
        name: &'static str,
        flows: &'static str,
        setting: &Setting,
        program: Option<(&Director, Outcome)>,
    ) -> Self {
        const TRIALS: u32 = 1000;
        let mut prologue = setting.load();
        let under_test = match program {
            Some((director, _)) => director.fd().try_clone().unwrap(),
            None => own(&mut prologue, name),
        };
        let mut array = ProgramArray::try_from(prologue.take_map("UNDER_TEST").unwrap()).unwrap();
        array.set(0, &under_test, 0).unwrap();
        xdp(&mut prologue, "prologue").load().unwrap();
        let frame = setting.frame.clone();
        let mut path = Self { name, flows, prologue, _under_test: array, frame, rounds: Vec::new() };
        let count = || program.map(|(director, outcome)| director.outcomes()[outcome as usize]);
        let before = count();
        let (action, _) = path.run(TRIALS);
        let (Some(before), Some(after)) = (before, count()) else {
            assert_eq!(action, XDP_TX, "{name}");
            return path;
        };
        assert_eq!(after - before, u64::from(TRIALS), "{name}");
        path
    }

    /// What the last run returned, and nanoseconds of this thread's own time that one took.
    fn run(&mut self, times: u32) -> (u32, f64) {
        let options =
            TestRunOptions { data_in: Some(&self.frame), repeat: times, ..TestRunOptions::default() };
        let program = xdp(&mut self.prologue, "prologue");
        let clock = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
        let before = clock();
        let result = program.test_run(options).unwrap();
        let time = clock() - before;
        (result.return_value, time.as_secs_f64() * 1e9 / f64::from(times))
    }
}

/// At least 64 bytes, as on a cable.
fn whole(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(64), 0);
    frame
}

fn flagged(frame: Vec<u8>, flags: u8) -> Vec<u8> {
    whole(patched(frame, 47, &[flags]))
}

/// As lvsd has it for the addresses below.
fn table() -> TableRef {
    let addresses = AddressFilter::default().with(be(VIP)).with(be(BARE));
    TableRef { addresses, ..TABLE }
}

/// The web service on [`REALS`] real servers.
fn site(takes_turns: u16) -> Option<Director> {
    let mut director = director()?;
    director.table(table());
    for number in 0..REALS {
        director.real(BASE + u32::from(number), Real { state: Real::ALIVE, ..real(number as u8, INGRESS) });
        let tunnel = Real {
            method: Real::IPIP,
            source: v4(tunnel::TUNNEL_SOURCE),
            mtu: 1500,
            ..real(number as u8, INGRESS)
        };
        director.real(TUNNELS + u32::from(number), tunnel);
    }
    let slots: Vec<u16> = (0..SLOTS).map(|slot| slot % REALS).collect();
    let ring = director.ring(RING, &slots);
    let reals = |base| base..base + u32::from(REALS);
    let web = service(key(VIP, WEB, TCP), ring, reals(BASE));
    director.service(Service { id: 5, takes_turns, ..web });
    director.service(service(key(BARE, WEB, TCP), ring, reals(TUNNELS)));
    let sequence = director.ring(0x8000, &slots[..256]);
    director.turn(5, Turn { sequence: sequence.pack(), taken: 0 });
    let web6 = service(services6::key6(ipv6::VIP6, WEB, TCP), ring, reals(BASE));
    services6::serve(&mut director, ipv6::VIP6, Service { id: 6, ..web6 });
    Some(director)
}

/// Every slot has moved from one real server to the next.
fn moved() -> Option<Director> {
    let mut director = site(Service::NO_TURNS)?;
    let slots: Vec<u16> = (0..SLOTS).map(|slot| (slot % REALS) | MOVED).collect();
    let olds: Vec<u16> = (0..SLOTS).map(|slot| (slot + 1) % REALS).collect();
    let behind = RING + director.ring(RING, &slots).length.div_ceil(maps::RING_CHUNK as u32);
    director.ring(behind, &[SLOTS, 0]);
    director.ring(behind + 1, &olds);
    Some(director)
}

/// Services on the ports from 1 on.
fn crowd(ports: u16) -> Option<Director> {
    let mut director = site(Service::NO_TURNS)?;
    let keys: Vec<_> = (1..=ports).map(|port| key(VIP, port, TCP)).collect();
    let (seed, slots) = place(&keys).unwrap();
    director.table(TableRef { seed, ..table() });
    let ring = RingRef { chunk: RING, length: SLOTS.into() };
    for (key, slot) in keys.into_iter().zip(slots) {
        director.service_in(slot, service(key, ring, BASE..BASE + u32::from(REALS)));
    }
    Some(director)
}

#[test]
#[ignore = "a measurement, which needs what `cargo xtask bench` builds"]
fn what_a_packet_costs() {
    use Outcome::*;
    let variable = |name| env::var(name).unwrap_or_else(|_| panic!("{name}: run `cargo xtask bench`"));
    let object = fs::read(variable("BENCH_OBJECT")).unwrap();
    let rounds: u32 = variable("BENCH_ROUNDS").parse().unwrap();
    let wlc = Service::TURNS_OF_OVERLOADED;
    let (Some(plain), Some(moved), Some(known), Some(flood), Some(mut nat)) =
        (site(Service::NO_TURNS), moved(), site(wlc), site(wlc), director())
    else {
        return;
    };
    nat::lead(&mut nat);
    let web = |flags| flagged(tcp(VIP, WEB), flags);
    let of = |frame, flows| Setting { object: &object, frame, flows, answers: false, services: 0, grows: 0 };
    let answer = whole(nat::answer_to(CLIENT));
    let tunnel = |flows| Setting { grows: IPIP, ..of(flagged(tcp(BARE, WEB), ACK), flows) };
    let crowds = CROWDS.map(|(name, ports)| (name, ports, crowd(ports).unwrap()));
    let mut paths = vec![
        Path::new("floor", "1", &of(web(ACK), 1), None),
        Path::new("phys", "1", &of(web(ACK), 1), None),
        Path::new("grow", "1", &tunnel(1), None),
        Path::new("foreign", "1", &of(flagged(tcp(STRANGER, WEB), ACK), 1), Some((&plain, NotOurs))),
        Path::new("arp", "1", &of(whole(who_has(VIP)), 1), Some((&plain, ArpAnswered))),
        Path::new(
            "solicitation",
            "1",
            &of(ipv6::who_has6(ipv6::VIP6), 1),
            Some((&plain, SolicitationAnswered)),
        ),
    ];
    for (name, flows) in COUNTS {
        paths.push(Path::new("established", name, &of(web(ACK), flows), Some((&plain, Forwarded))));
        let web6 = patched(services6::tcp6(ipv6::VIP6, WEB), IPV6 - IPV4 + 47, &[ACK]);
        paths.push(Path::new("established6", name, &of(web6, flows), Some((&plain, Forwarded))));
        paths.push(Path::new("syn", name, &of(web(SYN), flows), Some((&plain, Forwarded))));
        paths.push(Path::new("moved", name, &of(web(ACK), flows), Some((&moved, Forwarded))));
        paths.push(Path::new("wlc", name, &of(web(ACK), flows), Some((&known, Forwarded))));
        paths.push(Path::new("ipip", name, &tunnel(flows), Some((&plain, Forwarded))));
        if flows <= 1 << 16 {
            paths.push(Path::new("nat", name, &of(web(ACK), flows), Some((&nat, Forwarded))));
            let answers = Setting { answers: true, ..of(answer.clone(), flows) };
            paths.push(Path::new("nat answer", name, &answers, Some((&nat, NatReplyRedirected))));
        }
    }
    paths.push(Path::new("wlc syn", "all new", &of(web(SYN), ALL_FLOWS), Some((&flood, Forwarded))));
    for (name, ports, director) in &crowds {
        let many = Setting { services: (*ports).into(), ..of(patched(web(ACK), 36, &[0, 0]), 1 << 16) };
        paths.push(Path::new(name, "64K", &many, Some((director, Forwarded))));
    }
    for path in &mut paths {
        // So that the flow table knows nearly all of a million.
        path.run(if path.flows == "1M" { 4_000_000 } else { 500_000 });
    }
    for _ in 0..rounds {
        for path in &mut paths {
            let (_, time) = path.run(RUNS);
            path.rounds.push(time);
        }
    }
    let figures: Vec<_> = paths
        .iter_mut()
        .map(|path| {
            path.rounds.sort_by(f64::total_cmp);
            let at = |place: usize| (path.rounds[place] * 100.0).round() / 100.0;
            json!({"path": path.name, "flows": path.flows, "min": at(0), "median": at(path.rounds.len() / 2)})
        })
        .collect();
    let lines: Vec<_> = figures.iter().map(ToString::to_string).collect();
    let text = format!("{{\"rounds\":{rounds},\"gross\":[\n{}\n]}}\n", lines.join(",\n"));
    fs::write(variable("BENCH_FIGURES"), text).unwrap();
}
