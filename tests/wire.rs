//! How many packets a second go through a director, live, beside plain forwarding by the kernel and a balancer of nftables?
//!
//! A measurement, for `cargo xtask bench wire`. The frames are the live ones of BPF_PROG_TEST_RUN: `lvs-ebpf/src/bench.rs` makes each,
//! of a flow that it picks at random, and redirects it into a cable; at the real servers' end it counts them. All of it happens on the
//! CPU of the thread that asked.
#![expect(clippy::unwrap_used, reason = "a measurement fails as tests do")]

use std::{env, fs, net::Ipv4Addr};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, PerCpuArray, ProgramArray},
    programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode},
};
use etherparse::PacketBuilder;
use lvs_tests::{Director, Lab, Need, Node, PATIENCE, Stamp, require, wait_for};
use nix::net::if_::if_nametoindex;
use serde_json::json;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 100);
const CLIENT: [u8; 4] = [10, 90, 0, 9];
const CLIENT_PORT: u16 = 40_000;
const PORT: u16 = 53;
const REALS: u8 = 4;
/// As on a cable.
const FRAME: usize = 64;
/// The generator has room for a longer one.
const ROOM: usize = 86;
const FLOWS: [(&str, u64); 2] = [("1", 1), ("64K", 1 << 16)];
/// Of one run.
const PACKETS: u32 = 200_000;
/// The kernel hands over so many at a time, as a driver does.
const BATCH: u32 = 64;

/// What is between the generator and the real servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// One cable.
    Nothing,
    Lvsd,
    /// A route for the virtual address.
    Kernel,
    /// A map of the client's address and port to real servers, by NAT.
    Nftables,
}

impl Way {
    const ALL: [Self; 4] = [Self::Nothing, Self::Lvsd, Self::Kernel, Self::Nftables];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Lvsd => "lvsd",
            Self::Kernel => "kernel",
            Self::Nftables => "nftables",
        }
    }
}

#[test]
#[ignore = "a measurement, which needs what `cargo xtask bench wire` builds"]
fn how_many_packets_a_second() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let variable = |name| env::var(name).with_context(|| format!("{name}: run `cargo xtask bench wire`"));
    let object = fs::read(variable("BENCH_OBJECT")?)?;
    let rounds: u32 = variable("BENCH_ROUNDS")?.parse()?;
    let mut lab = Lab::new()?;
    let client = lab.host("client", [10, 77, 0, 9].into())?;
    let server = lab.host("rs1", [10, 77, 0, 11].into())?;
    let mut lines = Vec::new();
    for (number, way) in (1..).zip(Way::ALL) {
        lines.push(Line::new(&mut lab, [&client, &server], &object, way, number)?);
    }
    let mut all = Vec::new();
    for (flows, count) in FLOWS {
        for line in &mut lines {
            line.prepare(&object, count, &client)?;
            // Tables fill, caches warm up.
            line.run(&client)?;
        }
        let mut rates = vec![Vec::new(); lines.len()];
        for _ in 0..rounds {
            for (line, rates) in lines.iter_mut().zip(&mut rates) {
                rates.push(line.run(&client)?);
            }
        }
        for (line, mut rates) in lines.iter().zip(rates) {
            rates.sort_by(f64::total_cmp);
            let (median, most) = (rates[rates.len() / 2].round(), rates[rates.len() - 1].round());
            let figure = json!({"way": line.way.name(), "flows": flows, "median": median, "max": most});
            println!("{figure}");
            all.push(figure.to_string());
        }
    }
    let text = format!("{{\"rounds\":{rounds},\"packets_a_second\":[\n{}\n]}}\n", all.join(",\n"));
    Ok(fs::write(variable("BENCH_FIGURES")?, text)?)
}

/// One way, with cables, generator and counter of its own.
struct Line {
    way: Way,
    /// The client's end.
    entry: u32,
    /// Where the generator's frames go first.
    target: [u8; 6],
    arrived: PerCpuArray<MapData, u64>,
    generator: Option<Generator>,
    _sink: Ebpf,
    _director: Option<Director>,
}

struct Generator {
    prologue: Ebpf,
    /// The kernel empties it when its last descriptor is closed.
    _next: ProgramArray<MapData>,
}

impl Line {
    fn new(lab: &mut Lab, [client, server]: [&Node; 2], object: &[u8], way: Way, number: u8) -> Result<Self> {
        let (entrance, exit) = (format!("in{number}"), format!("out{number}"));
        let mut sink = EbpfLoader::new().load(object)?;
        let (target, director, end) = match way {
            Way::Nothing => {
                lab.connect([client, server], &entrance)?;
                (mac(server, &entrance)?, None, entrance.clone())
            }
            _ => {
                let node = lab.host(&format!("lb{number}"), [10, 77, 0, number].into())?;
                lab.connect([client, &node], &entrance)?;
                lab.connect([&node, server], &exit)?;
                let director = way.set_up(&node, [&entrance, &exit], mac_text(server, &exit)?.trim())?;
                (mac(&node, &entrance)?, director, exit)
            }
        };
        server.in_ns(|| {
            let arrive = program(&mut sink, "arrive");
            arrive.load()?;
            arrive.attach(&end, XdpMode::Driver)?;
            Ok(())
        })?;
        let arrived = PerCpuArray::try_from(sink.take_map("ARRIVED").unwrap())?;
        let entry = client.in_ns(|| Ok(if_nametoindex(&*entrance)?))?;
        Ok(Self { way, entry, target, arrived, generator: None, _sink: sink, _director: director })
    }

    /// From now on so many flows.
    fn prepare(&mut self, object: &[u8], flows: u64, client: &Node) -> Result<()> {
        let mut frame = [0; ROOM];
        frame[..FRAME].copy_from_slice(&self.frame());
        // The word at 30 has the ports in its upper half, source first.
        let ports = ((flows - 1) & 0xffff) << 32;
        let mut prologue = EbpfLoader::new()
            .override_global("FRAME", &frame[..], true)
            .override_global("PORTS_MASK", &ports, true)
            .override_global("OUT", &self.entry, true)
            .load(object)?;
        let mut next = ProgramArray::try_from(prologue.take_map("UNDER_TEST").unwrap())?;
        let send = program(&mut prologue, "send");
        send.load()?;
        next.set(0, send.fd()?, 0)?;
        program(&mut prologue, "prologue").load()?;
        self.generator = Some(Generator { prologue, _next: next });
        // ARP and a pool that has just been filled are in time.
        wait_for(&format!("a packet by {}", self.way.name()), PATIENCE, || {
            Ok((self.send(BATCH, client)? > 0).then_some(()))
        })
    }

    /// Packets a second that arrived.
    fn run(&mut self, client: &Node) -> Result<f64> {
        let start = Stamp::now();
        let arrived = self.send(PACKETS, client)?;
        let time = start.elapsed();
        ensure!(arrived > u64::from(PACKETS) / 2, "{}: {arrived} of {PACKETS} arrived", self.way.name());
        Ok(arrived as f64 / time.as_secs_f64())
    }

    /// How many arrived.
    fn send(&mut self, packets: u32, client: &Node) -> Result<u64> {
        let frame = self.frame();
        let before = self.count()?;
        let generator = self.generator.as_mut().context("no generator")?;
        client.in_ns(|| {
            let options = TestRunOptions {
                data_in: Some(&frame),
                repeat: packets,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            };
            program(&mut generator.prologue, "prologue").test_run(options)?;
            Ok(())
        })?;
        Ok(self.count()? - before)
    }

    fn count(&self) -> Result<u64> {
        Ok(self.arrived.get(&0, 0)?.iter().sum())
    }

    fn frame(&self) -> [u8; FRAME] {
        let mut frame = Vec::new();
        let packet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], self.target)
            .ipv4(CLIENT, VIP.octets(), 64)
            .udp(CLIENT_PORT, PORT);
        packet.write(&mut frame, &[0; FRAME - 42]).unwrap();
        // RFC 768: no checksum, which is right for every port.
        frame[40..42].fill(0);
        frame.try_into().unwrap()
    }
}

impl Way {
    /// Makes a host such a director between two cables.
    fn set_up(self, node: &Node, [entrance, exit]: [&str; 2], mac: &str) -> Result<Option<Director>> {
        let network = |last: u8| Ipv4Addr::new(10, 78, 0, last);
        node.run(&format!("ip address add {}/24 dev {exit}", network(1)))?;
        for last in 11..11 + REALS {
            node.run(&format!("ip neighbour add {} lladdr {mac} dev {exit} nud permanent", network(last)))?;
        }
        if self == Self::Lvsd {
            // By this the program knows the interface as one of its own.
            node.run(&format!("ip address add {VIP}/32 dev {entrance}"))?;
            let mut config = format!(
                "virtual_server {VIP} {PORT} {{\n lvs_sched mh\n mh-port\n lvs_method DR\n protocol UDP\n"
            );
            for last in 11..11 + REALS {
                config += &format!(" real_server {} {PORT} {{\n }}\n", network(last));
            }
            return Director::start(node, &(config + "}\n")).map(Some);
        }
        // Redirected frames are taken by an interface with NAPI, which a program or this gives it.
        node.run(&format!("ethtool -K {entrance} gro on"))?;
        node.sysctl("ipv4.ip_forward", "1")?;
        node.run(&format!("ip route add 10.90.0.0/16 dev {entrance}"))?;
        if self == Self::Kernel {
            node.run(&format!("ip route add {VIP}/32 via {}", network(11)))?;
        } else {
            let reals: Vec<_> = (0..REALS).map(|real| format!("{real} : {}", network(11 + real))).collect();
            let rules = format!(
                "table ip balancer {{\n chain prerouting {{\n  type nat hook prerouting priority dstnat;\n  \
                 ip daddr {VIP} udp dport {PORT} dnat to jhash ip saddr . udp sport mod {REALS} map {{ {} }}\n }}\n}}\n",
                reals.join(", ")
            );
            let file = node.write_file("rules.nft", &rules)?;
            node.run(&format!("nft -f {}", file.display()))?;
        }
        Ok(None)
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut Xdp {
    ebpf.program_mut(name).unwrap().try_into().unwrap()
}

fn mac_text(node: &Node, interface: &str) -> Result<String> {
    let link = node.run(&format!("ip -oneline link show dev {interface}"))?;
    let (_, after) = link.split_once("link/ether ").context("no MAC")?;
    Ok(after.split(' ').next().unwrap_or_default().to_owned())
}

fn mac(node: &Node, interface: &str) -> Result<[u8; 6]> {
    let text = mac_text(node, interface)?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>().with_context(|| format!("not a MAC: {text}"))?;
    bytes.try_into().ok().context("not six bytes")
}
