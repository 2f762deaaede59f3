//! Do `lvsd` and keepalived (and FRR) make one pair? Judged by what they send, not by what they say of themselves.
//!
//! The matrix: every row of [`ROWS`] by multicast and by unicast, in every case of [`Case`], with either program first.
//! All rows of a case run at once, each with a VRID of its own.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    thread,
    time::Duration,
};

use anyhow::Result;
use lvs_tests::{
    Advert, ArpProbe, Capture, Director, Frr, Keepalived, Lab, Mac, Need, Node, PATIENCE, Stamp, Vrrp,
    masters, require, turns, wait_for,
};

/// What keepalived may take to remove or to add its address, on a busy machine.
const HANDOVER: Duration = Duration::from_millis(150);
/// Timers of the others end early by no more than this.
const HASTE: Duration = Duration::from_millis(10);
const FIRST_VRID: u8 = 51;

struct Row {
    name: &'static str,
    version: u8,
    ipv6: bool,
    interval: Duration,
    authentication: &'static str,
}

const SECOND: Duration = Duration::from_secs(1);

const V2: Row = Row { name: "v2", version: 2, ipv6: false, interval: SECOND, authentication: "" };
const V3: Row = Row { name: "v3 IPv4", version: 3, interval: Duration::from_millis(100), ..V2 };
const ROWS: [Row; 5] = [
    V2,
    Row { name: "v2 PASS", authentication: "auth_type PASS\nauth_pass secret12", ..V2 },
    Row { name: "v2 AH", authentication: "auth_type AH\nauth_pass secret12", ..V2 },
    V3,
    Row { name: "v3 IPv6", ipv6: true, ..V3 },
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Case {
    Stop,
    Kill,
    Preempt,
    Nopreempt,
    /// Priority 255, `state MASTER`: it asks nobody.
    Owner,
    /// Of two masters with one priority the higher address remains, which is the second's.
    Equal,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Program {
    Lvsd,
    Keepalived,
}

#[test]
fn the_matrix_holds_with_lvsd_first() -> Result<()> {
    matrix(Program::Lvsd)
}

#[test]
fn the_matrix_holds_with_keepalived_first() -> Result<()> {
    matrix(Program::Keepalived)
}

fn matrix(first: Program) -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd, Need::Keepalived]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let watcher = lab.host("watcher", [10, 77, 0, 8].into())?;
    watcher.enable_ipv6()?;
    let watch = Capture::start(&watcher, "eth0")?;
    let cells = cells();
    let _probes = cells
        .iter()
        .map(|cell| ArpProbe::start(&watcher, cell.vip(), Duration::from_millis(20)))
        .collect::<Result<Vec<_>>>()?;
    let mut wrong = String::new();
    for case in [Case::Stop, Case::Kill, Case::Preempt, Case::Nopreempt, Case::Owner, Case::Equal] {
        let stage = Stage::new(&mut lab, case, first)?;
        stage.play(&lab, &cells, &watch, &mut wrong)?;
        // What was killed may have left an address that answers.
        lab.unplug(&stage.first)?;
        lab.unplug(&stage.second)?;
    }
    println!("{} cells with {first:?} first", cells.len() * 6);
    // A panic shows the logs.
    assert!(wrong.is_empty(), "\n{wrong}");
    Ok(())
}

/// A row, by multicast or unicast.
struct Cell {
    row: &'static Row,
    unicast: bool,
    vrid: u8,
}

fn cells() -> Vec<Cell> {
    let rows = ROWS.iter().flat_map(|row| [(row, false), (row, true)]);
    rows.zip(FIRST_VRID..).map(|((row, unicast), vrid)| Cell { row, unicast, vrid }).collect()
}

impl Cell {
    fn vip(&self) -> IpAddr {
        match self.row.ipv6 {
            false => Ipv4Addr::new(10, 77, 0, 100 + self.vrid).into(),
            true => Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100 + u16::from(self.vrid)).into(),
        }
    }

    /// Where its adverts come from.
    fn address(&self, node: &Node) -> IpAddr {
        match (self.row.ipv6, self.unicast) {
            (false, _) => node.address().into(),
            (true, false) => node.link_local().into(),
            (true, true) => node.address_v6().into(),
        }
    }

    fn text(&self, node: &Node, peer: &Node, priority: u8, case: Case) -> String {
        let Row { version, ipv6, interval, authentication, .. } = self.row;
        let length = if *ipv6 { 64 } else { 24 };
        let state = if priority == 255 { "MASTER" } else { "BACKUP" };
        let mut text = format!(
            "vrrp_instance VI_{vrid} {{\nstate {state}\ninterface eth0\nvirtual_router_id {vrid}\npriority {priority}\n\
             version {version}\nadvert_int {}\nvirtual_ipaddress {{\n{}/{length}\n}}\n",
            interval.as_secs_f64(),
            self.vip(),
            vrid = self.vrid,
        );
        if case == Case::Nopreempt {
            text += "nopreempt\n";
        }
        if !authentication.is_empty() {
            text += &format!("authentication {{\n{authentication}\n}}\n");
        }
        if self.unicast {
            let (own, peer) = (self.address(node), self.address(peer));
            text += &format!("unicast_src_ip {own}\nunicast_peer {{\n{peer}\n}}\n");
        }
        text + "}\n"
    }

    /// How long a backup of that priority waits for a master that has died.
    fn down(&self, priority: u8) -> Duration {
        self.row.interval * 3 + self.skew(priority)
    }

    fn skew(&self, priority: u8) -> Duration {
        self.row.interval * (256 - u32::from(priority)) / 256
    }
}

enum Daemon {
    Lvsd(Director),
    Keepalived(Keepalived),
}

impl Daemon {
    fn start(program: Program, node: &Node, text: &str) -> Result<Self> {
        Ok(match program {
            Program::Lvsd => Self::Lvsd(Director::start(node, text)?),
            Program::Keepalived => Self::Keepalived(Keepalived::start(node, text)?),
        })
    }

    fn stop(&mut self) -> Result<()> {
        match self {
            Self::Lvsd(director) => director.stop(),
            Self::Keepalived(keepalived) => keepalived.stop(),
        }
    }

    fn kill(&mut self) -> Result<()> {
        match self {
            Self::Lvsd(director) => director.kill(),
            Self::Keepalived(keepalived) => keepalived.kill(),
        }
    }
}

/// Two new hosts for one case.
struct Stage {
    case: Case,
    programs: [Program; 2],
    first: Node,
    second: Node,
    /// What they send themselves: a switch shows unicast to nobody else.
    sent: [Capture; 2],
}

impl Stage {
    fn new(lab: &mut Lab, case: Case, first: Program) -> Result<Self> {
        let programs = match first {
            Program::Lvsd => [Program::Lvsd, Program::Keepalived],
            Program::Keepalived => [Program::Keepalived, Program::Lvsd],
        };
        let number = 10 + 2 * case as u8;
        let host =
            |lab: &mut Lab, name: &str, last| lab.host(&format!("{name}{number}"), [10, 77, 0, last].into());
        let (first, second) = (host(lab, "a", number)?, host(lab, "b", number + 1)?);
        first.enable_ipv6()?;
        second.enable_ipv6()?;
        let sent = [Capture::start(&first, "eth0")?, Capture::start(&second, "eth0")?];
        Ok(Self { case, programs, first, second, sent })
    }

    fn priorities(&self) -> [u8; 2] {
        match self.case {
            Case::Stop | Case::Kill | Case::Preempt | Case::Nopreempt => [150, 100],
            Case::Owner => [255, 100],
            Case::Equal => [100, 100],
        }
    }

    fn play(&self, lab: &Lab, cells: &[Cell], watch: &Capture, wrong: &mut String) -> Result<()> {
        let [first_priority, second_priority] = self.priorities();
        let text = |node, peer, priority| -> String {
            cells.iter().map(|cell| cell.text(node, peer, priority, self.case)).collect()
        };
        let first =
            || Daemon::start(self.programs[0], &self.first, &text(&self.first, &self.second, first_priority));
        let second = || {
            Daemon::start(self.programs[1], &self.second, &text(&self.second, &self.first, second_priority))
        };
        let (one, two) = (&self.first, &self.second);
        // Kept alive to the end.
        let _daemons = match self.case {
            Case::Stop | Case::Kill => {
                let mut first = first()?;
                self.expect(cells, &[one], wrong)?;
                let second = second()?;
                self.stay(cells, &[one], wrong);
                match self.case {
                    Case::Stop => first.stop()?,
                    _ => first.kill()?,
                }
                self.expect(cells, &[one, two], wrong)?;
                self.stay(cells, &[one, two], wrong);
                [first, second]
            }
            Case::Preempt | Case::Owner => {
                let second = second()?;
                self.expect(cells, &[two], wrong)?;
                let first = first()?;
                self.expect(cells, &[two, one], wrong)?;
                self.stay(cells, &[two, one], wrong);
                [first, second]
            }
            Case::Nopreempt => {
                let second = second()?;
                self.expect(cells, &[two], wrong)?;
                let first = first()?;
                thread::sleep(SECOND);
                self.stay(cells, &[two], wrong);
                [first, second]
            }
            Case::Equal => {
                let first = first()?;
                self.expect(cells, &[one], wrong)?;
                let second = second()?;
                thread::sleep(SECOND);
                self.stay(cells, &[one], wrong);
                lab.switch().run(&format!("ip link set {} nomaster", self.second.name()))?;
                self.expect(cells, &[one, two], wrong)?;
                lab.switch().run(&format!("ip link set {} master br0", self.second.name()))?;
                thread::sleep(SECOND * 3);
                [first, second]
            }
        };
        let settled = Stamp::now();
        thread::sleep(SECOND * 2);
        for cell in cells {
            for what in self.judge(cell, watch, settled) {
                // Writing to a String cannot fail.
                let _ = writeln!(wrong, "{}: {what}", self.name(cell));
            }
        }
        Ok(())
    }

    fn name(&self, cell: &Cell) -> String {
        let by = if cell.unicast { "unicast" } else { "multicast" };
        format!("{} by {by}, {:?} first, {:?}", cell.row.name, self.programs[0], self.case)
    }

    /// What a host has sent of a cell.
    fn adverts(&self, cell: &Cell) -> Vec<Advert> {
        let own = |(capture, node): (&Capture, &Node)| {
            let (vrid, source) = (cell.vrid, cell.address(node));
            let mut adverts = capture.adverts();
            adverts.retain(|advert| advert.vrid == vrid && advert.source == source);
            adverts
        };
        let mut adverts: Vec<_> = self.sent.iter().zip([&self.first, &self.second]).flat_map(own).collect();
        adverts.sort_by_key(|advert| advert.at);
        adverts
    }

    fn masters(&self, cell: &Cell) -> Vec<&str> {
        let name = |source| {
            let node = [&self.first, &self.second].into_iter().find(|node| cell.address(node) == source);
            node.map_or("?", Node::name)
        };
        masters(&self.adverts(cell)).into_iter().map(name).collect()
    }

    /// Waits until all cells have had these masters.
    fn expect(&self, cells: &[Cell], masters: &[&Node], wrong: &mut String) -> Result<()> {
        let masters: &[&str] = &masters.iter().map(|node| node.name()).collect::<Vec<_>>();
        let reached = wait_for("masters", PATIENCE, || {
            Ok(cells.iter().all(|cell| self.masters(cell).starts_with(masters)).then_some(()))
        });
        if reached.is_err() {
            for cell in cells.iter().filter(|cell| !self.masters(cell).starts_with(masters)) {
                let _ =
                    writeln!(wrong, "{}: masters {:?}, not {masters:?}", self.name(cell), self.masters(cell));
            }
        }
        Ok(())
    }

    /// Longer than anybody waits who believes that there is no master.
    fn stay(&self, cells: &[Cell], masters: &[&Node], wrong: &mut String) {
        let masters: &[&str] = &masters.iter().map(|node| node.name()).collect::<Vec<_>>();
        let longest = cells.iter().map(|cell| cell.down(100)).max().unwrap_or_default();
        thread::sleep(longest + HANDOVER * 2);
        for cell in cells.iter().filter(|cell| self.masters(cell) != masters) {
            let _ = writeln!(
                wrong,
                "{}: masters {:?} instead of {masters:?}",
                self.name(cell),
                self.masters(cell)
            );
        }
    }

    /// The wire of a cell, after all is over; since `settled` nothing was to change.
    fn judge(&self, cell: &Cell, watch: &Capture, settled: Stamp) -> Vec<String> {
        let mut wrong = Vec::new();
        let adverts = self.adverts(cell);
        let [one, two] = [&self.first, &self.second].map(|node| cell.address(node));
        let first_of = |source| adverts.iter().find(|advert| advert.source == source).map(|advert| advert.at);
        let mut within =
            |what: &str, from: Option<Stamp>, to: Option<Stamp>, least: Duration, most: Duration| {
                let (Some(from), Some(to)) = (from, to) else {
                    return wrong.push(format!("{what}: no advert"));
                };
                let took = to.since(from);
                if took + HASTE < least || took > most + HANDOVER {
                    wrong.push(format!("{what} after {took:?}, not {least:?} to {most:?}"));
                }
            };
        let last_of_first = adverts.iter().rfind(|advert| advert.source == one);
        match self.case {
            Case::Stop => {
                let resigned = last_of_first.filter(|advert| advert.priority == 0).map(|advert| advert.at);
                within("taken over from priority 0", resigned, first_of(two), Duration::ZERO, cell.skew(100));
            }
            Case::Kill => {
                let last = last_of_first.map(|advert| advert.at);
                within("taken over from the dead", last, first_of(two), cell.down(100), cell.down(100));
            }
            Case::Preempt | Case::Nopreempt | Case::Owner | Case::Equal => {}
        }
        let (master, loser): (&Node, &Node) = match self.case {
            Case::Stop | Case::Kill | Case::Nopreempt | Case::Equal => (&self.second, &self.first),
            Case::Preempt | Case::Owner => (&self.first, &self.second),
        };
        let late = adverts.iter().filter(|advert| advert.at > settled).map(|advert| advert.source);
        if turns(late.clone()) != [cell.address(master)] {
            wrong.push(format!("in the end {:?} are masters, not {}", turns(late), master.name()));
        }
        let mut answers: Vec<Mac> = watch
            .answers_for(cell.vip())
            .into_iter()
            .filter(|(at, _)| *at > settled)
            .map(|(_, mac)| mac)
            .collect();
        if self.case == Case::Kill && self.programs[0] == Program::Keepalived {
            // It leaves its address behind, which the kernel answers for.
            answers.retain(|mac| *mac != loser.mac());
        }
        if turns(answers.iter()) != [&master.mac()] {
            wrong.push(format!("in the end {:?} answer, not {}", turns(answers.iter()), master.mac()));
        }
        if !is_announced(watch, cell.vip(), master.mac()) {
            wrong.push(format!("{} did not announce itself", master.name()));
        }
        wrong
    }
}

/// Without a question.
fn is_announced(watch: &Capture, vip: IpAddr, mac: Mac) -> bool {
    match vip {
        IpAddr::V4(vip) => watch.arps().iter().any(|arp| arp.is_gratuitous() && arp.sender == (mac, vip)),
        IpAddr::V6(vip) => {
            watch.advertisements().iter().any(|it| !it.is_solicited && (it.mac, it.target) == (mac, vip))
        }
    }
}

// --- FRR

const FRR_VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100));
const FRR_VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100));
const FRR_INTERVAL: Duration = Duration::from_millis(100);

#[test]
fn frr_follows_lvsd_and_yields_to_it_v3() -> Result<()> {
    frr_follows(FRR_VIP)
}

#[test]
fn frr_follows_lvsd_and_yields_to_it_v3_over_ipv6() -> Result<()> {
    frr_follows(FRR_VIP6)
}

fn frr_follows(vip: IpAddr) -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd, Need::Frr]) {
        return Ok(());
    }
    let duo = Duo::new(vip)?;
    let mut lvsd = Director::start(&duo.lvsd, &duo.text(150))?;
    duo.wait_for_masters(&["lvsd"])?;
    let _frr = Frr::start(&duo.frr, FIRST_VRID, 100, FRR_INTERVAL, vip)?;
    thread::sleep(SECOND * 2);
    lvsd.stop()?;
    duo.wait_for_masters(&["lvsd", "frr"])?;
    lvsd.start_again()?;
    duo.wait_for_masters(&["lvsd", "frr", "lvsd"])?;
    duo.stay(&["lvsd", "frr", "lvsd"])?;
    assert_eq!(lvsd.state()?, "MASTER");
    Ok(())
}

#[test]
fn lvsd_follows_frr_and_yields_to_it_v3() -> Result<()> {
    lvsd_follows(FRR_VIP)
}

#[test]
fn lvsd_follows_frr_and_yields_to_it_v3_over_ipv6() -> Result<()> {
    lvsd_follows(FRR_VIP6)
}

fn lvsd_follows(vip: IpAddr) -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd, Need::Frr]) {
        return Ok(());
    }
    let duo = Duo::new(vip)?;
    let mut frr = Frr::start(&duo.frr, FIRST_VRID, 150, FRR_INTERVAL, vip)?;
    duo.wait_for_masters(&["frr"])?;
    let lvsd = Director::start(&duo.lvsd, &duo.text(100))?;
    duo.stay(&["frr"])?;
    lvsd.wait_for_state("BACKUP", PATIENCE)?;
    frr.stop()?;
    duo.wait_for_masters(&["frr", "lvsd"])?;
    duo.stay(&["frr", "lvsd"])?;
    let rejected: u64 = lvsd.status()?.instances.iter().flat_map(|it| it.rejected.values()).sum();
    assert_eq!(rejected, 0, "adverts of FRR were refused");
    Ok(())
}

struct Duo {
    lvsd: Node,
    frr: Node,
    vip: IpAddr,
    watch: Capture,
    _lab: Lab,
}

impl Duo {
    fn new(vip: IpAddr) -> Result<Self> {
        let mut lab = Lab::new()?;
        let watcher = lab.host("watcher", [10, 77, 0, 8].into())?;
        let watch = Capture::start(&watcher, "eth0")?;
        let (lvsd, frr) = (lab.host("lb1", [10, 77, 0, 1].into())?, lab.host("lb2", [10, 77, 0, 2].into())?);
        if vip.is_ipv6() {
            lvsd.enable_ipv6()?;
            frr.enable_ipv6()?;
        }
        Ok(Self { lvsd, frr, vip, watch, _lab: lab })
    }

    fn text(&self, priority: u8) -> String {
        let text = Vrrp::v3(priority, FRR_INTERVAL).text();
        match self.vip {
            IpAddr::V4(_) => text,
            IpAddr::V6(vip) => text.replace(&format!("{FRR_VIP}/24"), &format!("{vip}/64")),
        }
    }

    /// Over IPv6, FRR's source is an address of its macvlan that nobody knows before.
    fn masters(&self) -> Vec<&str> {
        let own = [IpAddr::from(self.lvsd.address()), self.lvsd.link_local().into()];
        let of_family = |advert: &Advert| advert.source.is_ipv6() == self.vip.is_ipv6();
        let adverts: Vec<_> = self.watch.adverts().into_iter().filter(of_family).collect();
        masters(&adverts).iter().map(|source| if own.contains(source) { "lvsd" } else { "frr" }).collect()
    }

    fn wait_for_masters(&self, expected: &[&str]) -> Result<()> {
        wait_for(
            &format!("masters {expected:?}"),
            PATIENCE,
            || Ok((self.masters() == expected).then_some(())),
        )
    }

    fn stay(&self, expected: &[&str]) -> Result<()> {
        thread::sleep(SECOND);
        self.wait_for_masters(expected)
    }
}
