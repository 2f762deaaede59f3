//! What is left when the daemon is killed in the middle of a reload? Every connection, and after the restart the tables
//! of one file, whichever it is.
//!
//! `CRASH_SEED=N` kills at the moments of another run again, as far as the machine's timing lets it.

use std::{
    collections::{BTreeSet, HashMap},
    env,
    fmt::Write as _,
    fs,
    net::SocketAddrV4,
    ops::Range,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{
    Conversation, Dice, Director, Load, Need, PACE, PATIENCE, Process, RealServer, Scene, Stamp, VIP, Vrrp,
    get, outage, require, scheduled_service, wait_for, web_service,
};
use nix::sys::signal::Signal;

const ROUNDS: u16 = 16;
const TALKS: u16 = 12;
/// Ports of services that nobody asks: they make the reload long enough to be killed in.
const BALLAST: Range<u16> = 8000..8400;
/// Only the second file has it.
const SECOND: SocketAddrV4 = SocketAddrV4::new(*VIP.ip(), 81);

#[test]
fn a_kill_in_the_middle_of_a_reload_fails_no_request_and_the_restart_has_the_tables_of_its_file() -> Result<()>
{
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let seed = env::var("CRASH_SEED").ok().map(|value| value.parse()).transpose()?;
    let seed = seed.unwrap_or_else(|| Stamp::now().nanos() % 100_000);
    println!("CRASH_SEED={seed}");
    let mut dice = Dice::new(seed);
    let mut site = Site::new()?;
    let load = Load::start(&site.scene.client, VIP, PACE)?;
    let length = site.length_of_a_reload()?;
    let begun = Stamp::now();
    let (mut cut, mut talked) = (0, 0);
    for round in 0..ROUNDS {
        let talks = site.begin(20_000 + round * TALKS)?;
        talked += talks.len();
        let (old, new) =
            if round % 2 == 0 { (File::First, File::Second) } else { (File::Second, File::First) };
        let reloads = site.reloads()?;
        site.put(new)?;
        site.lb1.process().signal(Signal::SIGHUP)?;
        thread::sleep(dice.up_to(length));
        site.lb1.kill()?;
        cut += usize::from(site.reloads()? == reloads);
        // As likely as not, the operator takes the new file back.
        let last = if dice.chance(500) { old } else { new };
        site.put(last)?;
        site.lb1.start_again()?;
        site.shows_its_file(last).with_context(|| format!("round {round}, {last:?} after {old:?}"))?;
        for (port, mut talk) in talks {
            let end = talk.go_on().and_then(|()| talk.end());
            end.with_context(|| format!("round {round}, the connection from port {port}"))?;
        }
        // The next round begins with the other file.
        site.lb1.reload(&site.text(new))?;
    }
    let requests = load.finish()?;
    println!("a reload takes {length:?}; {cut} of {ROUNDS} were cut short; {talked} connections went on");
    println!("of {} requests none failed", requests.len());
    ensure!(cut > 0, "no reload was cut short");
    let outage = outage(&requests, begun)?;
    ensure!(outage.failed == 0, "{outage:?}");
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum File {
    First,
    Second,
}

impl File {
    /// Who takes new connections of the VIP.
    fn pool(self) -> [usize; 2] {
        match self {
            Self::First => [0, 1],
            Self::Second => [1, 2],
        }
    }
}

/// One director and three real servers, which listen on both ports.
struct Site {
    lb1: Director,
    _second: Vec<Process>,
    scene: Scene,
}

impl Site {
    fn new() -> Result<Self> {
        let scene = Scene::new()?;
        let second = scene.reals.iter().map(|real| {
            let mut command = real.node.lab_program("lab-http");
            command.args([real.name(), &format!("0.0.0.0:{}", SECOND.port())]);
            real.node.spawn("http81", command)
        });
        let second = second.collect::<Result<_>>()?;
        let lb1 = Director::start(&scene.lb1, &text(&scene.reals, File::First))?;
        lb1.wait_for_state("MASTER", PATIENCE)?;
        scene.wait_for_service(PATIENCE)?;
        Ok(Self { lb1, _second: second, scene })
    }

    fn text(&self, file: File) -> String {
        text(&self.scene.reals, file)
    }

    fn put(&self, file: File) -> Result<()> {
        self.scene.lb1.write_file("lvsd.conf", &self.text(file)).map(drop)
    }

    /// There and back.
    fn length_of_a_reload(&self) -> Result<Duration> {
        let start = Stamp::now();
        self.lb1.reload(&self.text(File::Second))?;
        self.lb1.reload(&self.text(File::First))?;
        Ok(start.elapsed() / 2)
    }

    /// How many the daemons here have come to the end of.
    fn reloads(&self) -> Result<usize> {
        Ok(fs::read_to_string(self.lb1.process().log())?.matches(" reloaded").count())
    }

    fn begin(&self, first: u16) -> Result<HashMap<u16, Conversation>> {
        let ports = first..first + TALKS;
        self.scene.client.in_ns(|| ports.map(|port| Ok((port, Conversation::begin(VIP, port)?))).collect())
    }

    /// New connections go where the file says, on both ports, and nowhere else.
    fn shows_its_file(&self, file: File) -> Result<()> {
        self.lb1.wait_for_state("MASTER", PATIENCE)?;
        let expected: BTreeSet<_> = file.pool().iter().map(|index| format!("rs{}", index + 1)).collect();
        let services = self.lb1.status()?.services.len();
        self.scene.client.in_ns(|| {
            let asked = |target| (0..30).map(|_| get(target, None)).collect::<Result<BTreeSet<_>, _>>();
            wait_for("answers of the whole pool", PATIENCE, || Ok((asked(VIP)? == expected).then_some(())))?;
            match file {
                File::First => {
                    ensure!(services == 1, "{services} services");
                    ensure!(get(SECOND, None).is_err(), "a service that the file does not have answers");
                }
                File::Second => {
                    ensure!(services == 2 + BALLAST.len(), "{services} services");
                    ensure!(asked(SECOND)?.len() > 1, "one real server alone has all turns");
                }
            }
            Ok(())
        })
    }
}

fn text(reals: &[RealServer], file: File) -> String {
    let pool = file.pool().map(|index| (&reals[index], 1));
    let mut text = Vrrp::v3(150, Duration::from_millis(100)).text() + &web_service(&pool);
    if file == File::First {
        return text;
    }
    let all: Vec<_> = reals.iter().map(|real| (real, 1)).collect();
    let on_second = |port: u16| format!("{} {} {{", SECOND.ip(), port);
    text += &scheduled_service("wlc", &all).replace(&on_second(VIP.port()), &on_second(SECOND.port()));
    for port in BALLAST {
        // Writing to a String cannot fail.
        let _ = write!(text, "virtual_server {} {port} {{\n    lvs_method DR\n    protocol TCP\n", VIP.ip());
        for (real, weight) in &all {
            let _ = writeln!(
                text,
                "    real_server {} {port} {{\n        weight {weight}\n    }}",
                real.node.address()
            );
        }
        text += "}\n";
    }
    text
}
