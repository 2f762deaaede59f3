//! What do three directors do under a rain of faults? Never more than one answers, and somebody does in time.
//!
//! `CHAOS_SEED=N` plays the faults of another run again (a real machine's timing is its own), `CHAOS_SECONDS=N` for so
//! long. `cargo xtask bench chaos` is ten minutes of it.

use std::{env, fmt::Write as _, thread, time::Duration};

use anyhow::{Result, ensure};
use lvs_tests::{
    ArpProbe, Capture, Dice, Director, Load, Mac, Need, PATIENCE, Scene, Stamp, VIP, Vrrp, require, wait_for,
    web_service,
};

const INTERVAL: Duration = Duration::from_millis(100);
const PRIORITIES: [u8; 3] = [150, 100, 50];
const QUESTION: Duration = Duration::from_millis(4);
/// Nobody who has lost the role has it back sooner: the shortest skew, of priority 150.
const SKEW: Duration = Duration::from_millis(41);
/// What a busy machine may add to a timer.
const SLACK: Duration = Duration::from_millis(60);
/// A daemon may need so long from its start to its first timer.
const START: Duration = Duration::from_millis(1500);

#[test]
fn never_two_answer_and_somebody_does_in_time() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let number = |name| env::var(name).ok().map(|value| value.parse::<u64>()).transpose();
    let seed = number("CHAOS_SEED")?.unwrap_or_else(|| Stamp::now().nanos() % 100_000);
    let length = Duration::from_secs(number("CHAOS_SECONDS")?.unwrap_or(60));
    println!("CHAOS_SEED={seed}, {} s", length.as_secs());
    let mut stage = Stage::new(seed)?;
    let start = Stamp::now();
    let settled = stage.rain(length)?;
    let violations = stage.violations(start, settled)?;
    stage.tell(&violations);
    ensure!(violations.is_empty(), "{} violations, CHAOS_SEED={seed}", violations.len());
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    Freeze,
    /// Its port goes down, which it sees.
    Unplug,
    /// Its port forwards nothing, which nobody sees.
    Cut,
    Stop,
    /// Ends and starts again within its lease.
    Restart,
    Reload,
}

/// What has been done to whom. Between `from` and `to` that director cannot be relied on.
#[derive(Clone, Copy, Debug)]
struct Deed {
    fault: Fault,
    director: usize,
    from: Stamp,
    /// `None` until it is repaired.
    to: Option<Stamp>,
}

impl Deed {
    /// The link is whole again since a moment in which a master that is deaf from then on has not been told yet.
    fn brings_back(&self, deaf: &Self, until: Stamp) -> bool {
        let is_link = matches!(self.fault, Fault::Cut | Fault::Unplug);
        is_link
            && self.to.is_some_and(|healed| deaf.from <= healed + INTERVAL + SLACK && healed <= until + SLACK)
    }
}

struct Stage {
    directors: [Director; 3],
    watch: Capture,
    _probe: ArpProbe,
    load: Load,
    scene: Scene,
    preempt: bool,
    deeds: Vec<Deed>,
    dice: Dice,
}

struct Violation {
    at: Stamp,
    what: String,
}

impl Stage {
    fn new(seed: u64) -> Result<Self> {
        let mut dice = Dice::new(seed);
        let preempt = dice.chance(500);
        let mut scene = Scene::new()?;
        let third = scene.lab.host("lb3", [10, 77, 0, 3].into())?;
        let watch = Capture::start(&scene.watcher, "eth0")?;
        let probe = ArpProbe::start(&scene.watcher, *VIP.ip(), QUESTION)?;
        let start = |node, priority| Director::start(node, &config(&scene, priority, preempt));
        let [first, second, last] = PRIORITIES;
        let directors = [start(&scene.lb1, first)?, start(&scene.lb2, second)?, start(&third, last)?];
        scene.wait_for_service(PATIENCE)?;
        let load = Load::start(&scene.client, VIP, Duration::from_millis(5))?;
        Ok(Self { directors, watch, _probe: probe, load, scene, preempt, deeds: Vec::new(), dice })
    }

    /// Faults for so long, then all is repaired and has to settle. Since when it has.
    fn rain(&mut self, length: Duration) -> Result<Stamp> {
        let start = Stamp::now();
        let mut next = start;
        // Of each director that is broken: when it will be repaired, and which deed it was.
        let mut broken: [Option<(Stamp, usize)>; 3] = [None; 3];
        while start.elapsed() < length {
            for repair in &mut broken {
                if let Some((at, deed)) = *repair
                    && at <= Stamp::now()
                {
                    self.repair(deed)?;
                    *repair = None;
                }
            }
            if next <= Stamp::now() {
                next = Stamp::now() + self.dice.up_to(Duration::from_millis(1500));
                let (director, lasts) = (self.dice.index(3), self.dice.up_to(Duration::from_millis(2500)));
                if broken.get(director) == Some(&None) {
                    let deed = self.break_one(director)?;
                    broken[director] = deed.map(|deed| (Stamp::now() + lasts, deed));
                }
            }
            thread::sleep(Duration::from_millis(2));
        }
        for (_, deed) in broken.into_iter().flatten() {
            self.repair(deed)?;
        }
        let states = || self.directors.iter().map(Director::state).collect::<Result<Vec<_>>>();
        wait_for("one master", PATIENCE, || {
            let masters = states()?.iter().filter(|state| *state == "MASTER").count();
            let best = !self.preempt || states()?.first().is_some_and(|state| state == "MASTER");
            Ok((masters == 1 && best).then_some(()))
        })?;
        let settled = Stamp::now();
        thread::sleep(INTERVAL * 5);
        Ok(settled)
    }

    /// Which deed has to be repaired later, if it is not yet.
    fn break_one(&mut self, index: usize) -> Result<Option<usize>> {
        let faults = [
            Fault::Kill,
            Fault::Freeze,
            Fault::Unplug,
            Fault::Cut,
            Fault::Stop,
            Fault::Restart,
            Fault::Reload,
        ];
        let fault = self.dice.pick(&faults);
        let (switch, lab) = (self.scene.lab.switch(), &self.scene.lab);
        let director = &mut self.directors[index];
        let from = Stamp::now();
        match fault {
            Fault::Kill => director.kill()?,
            Fault::Freeze => director.freeze()?,
            Fault::Unplug => lab.unplug(director.node())?,
            Fault::Cut => drop(switch.run(&format!("ip link set {} nomaster", director.node().name()))?),
            Fault::Stop => director.stop()?,
            Fault::Restart => {
                director.hand_over()?;
                director.start_again()?;
            }
            Fault::Reload => {
                // With and without something new for VRRP to do.
                let more = if self.dice.chance(500) { "garp_master_repeat 3\n" } else { "" };
                let text = config(&self.scene, PRIORITIES[index], self.preempt);
                director.reload(
                    &text.replace("    virtual_ipaddress", &format!("{more}    virtual_ipaddress")),
                )?;
            }
        }
        let over = matches!(fault, Fault::Restart | Fault::Reload).then(Stamp::now);
        self.deeds.push(Deed { fault, director: index, from, to: over });
        Ok(over.is_none().then_some(self.deeds.len() - 1))
    }

    fn repair(&mut self, deed: usize) -> Result<()> {
        let Deed { fault, director: index, .. } = self.deeds[deed];
        let director = &mut self.directors[index];
        match fault {
            Fault::Kill | Fault::Stop => director.start_again()?,
            Fault::Freeze => director.thaw()?,
            Fault::Unplug => self.scene.lab.plug_in(director.node())?,
            Fault::Cut => {
                let port = director.node().name();
                self.scene.lab.switch().run(&format!("ip link set {port} master br0"))?;
            }
            Fault::Restart | Fault::Reload => {}
        }
        self.deeds[deed].to = Some(Stamp::now());
        Ok(())
    }

    fn violations(&self, start: Stamp, settled: Stamp) -> Result<Vec<Violation>> {
        let answers = self.watch.answers_for(*VIP.ip());
        ensure!(answers.last().is_some_and(|(at, _)| *at > settled), "nobody answers after the rain");
        let mut violations = self.two_at_once(&answers);
        violations.extend(self.nobody(start, &answers));
        violations.extend(self.false_takeovers(&answers));
        violations.sort_by_key(|violation| violation.at);
        Ok(violations)
    }

    /// An answer of one between two answers of another that lie so close that it cannot have lost the role between them.
    fn two_at_once(&self, answers: &[(Stamp, Mac)]) -> Vec<Violation> {
        let mut violations: Vec<Violation> = Vec::new();
        for (index, (at, mac)) in answers.iter().enumerate() {
            let before = answers[..index].iter().rev().find(|(_, other)| other != mac);
            let Some((earlier, other)) = before else { continue };
            let Some((later, _)) = answers[index..].iter().find(|(_, whose)| whose == other) else {
                continue;
            };
            let told = violations.last().is_some_and(|last| at.since(last.at) < INTERVAL * 3);
            if later.since(*earlier) < SKEW - QUESTION && !told && !self.is_lawful(*at, *mac, *other) {
                violations.push(Violation { at: *at, what: format!("{mac} and {other} answer at once") });
            }
        }
        violations
    }

    /// What VRRP cannot know (ARCHITECTURE.md, the lease): two masters until a link is whole again and the next advert has
    /// passed it; and one that has died since its last advert, or is starting again and does not listen yet, does not hear who
    /// preempts it or whom a mended link brings back.
    fn is_lawful(&self, at: Stamp, mac: Mac, other: Mac) -> bool {
        let pair = [self.owner(mac), self.owner(other)];
        let concerned = |deed: &&Deed| pair.contains(&Some(deed.director));
        self.deeds.iter().filter(concerned).any(|deed| match deed.fault {
            Fault::Cut | Fault::Unplug => {
                deed.to.is_some_and(|healed| healed <= at + SLACK && at <= healed + INTERVAL + SLACK)
            }
            Fault::Kill | Fault::Freeze | Fault::Restart => {
                let holds_on = deed.from <= at && at <= deed.from + INTERVAL * 3 + SLACK;
                holds_on
                    && (self.preempt
                        || self.deeds.iter().filter(concerned).any(|link| link.brings_back(deed, at)))
            }
            Fault::Stop | Fault::Reload => false,
        }) || (self.preempt && self.preempts_now(at, pair))
    }

    /// The better of both has sent its first advert a moment ago.
    fn preempts_now(&self, at: Stamp, pair: [Option<usize>; 2]) -> bool {
        let Some(better) = pair.into_iter().flatten().min() else { return false };
        let source = self.directors[better].node().address();
        let adverts = self.watch.adverts();
        let mut own = adverts.iter().filter(|advert| advert.source == source && advert.priority > 0);
        let near = own.clone().any(|it| it.at <= at + SLACK && at <= it.at + SLACK);
        // An interval ago it was silent.
        near && !own.any(|it| it.at + INTERVAL / 2 < at && at < it.at + INTERVAL * 2)
    }

    fn owner(&self, mac: Mac) -> Option<usize> {
        self.directors.iter().position(|director| director.node().mac() == mac)
    }

    /// Nobody answers, though one director was there all the time.
    fn nobody(&self, start: Stamp, answers: &[(Stamp, Mac)]) -> Vec<Violation> {
        let mut violations = Vec::new();
        let mut from = start;
        for (to, mac) in answers.iter().filter(|(at, _)| *at > start) {
            let gap = to.since(from);
            let reliable = (0..3).find(|index| self.is_reliable(*index, from, *to));
            if let Some(index) = reliable.filter(|_| gap > takeover_time()) {
                let name = self.directors[index].node().name();
                violations.push(Violation {
                    at: *to,
                    what: format!("no answer for {gap:?} until {mac}, {name} looked on"),
                });
            }
            from = *to;
        }
        violations
    }

    /// It takes part from well before `from` until `to`, and so has nobody to wait for but a master that falls silent.
    fn is_reliable(&self, director: usize, from: Stamp, to: Stamp) -> bool {
        !self.deeds.iter().filter(|deed| deed.director == director).any(|deed| {
            deed.from <= to && deed.to.is_none_or(|repaired| from < repaired + START + INTERVAL * 4)
        })
    }

    /// The role passes to a worse one although nothing has happened to the better: what happens to others excuses no
    /// more than that two answer for a moment, and a reload excuses nothing.
    fn false_takeovers(&self, answers: &[(Stamp, Mac)]) -> Vec<Violation> {
        let mut violations = Vec::new();
        for pair in answers.windows(2) {
            let [(_, loser), (at, winner)] = pair else { continue };
            let (Some(worse), Some(better)) = (self.owner(*winner), self.owner(*loser)) else { continue };
            let is_reason = |deed: &Deed| {
                deed.director == better
                    && deed.fault != Fault::Reload
                    && deed.from <= *at
                    && deed.to.is_none_or(|to| *at <= to + takeover_time())
            };
            if worse > better && !self.deeds.iter().any(is_reason) && !self.is_lawful(*at, *winner, *loser) {
                violations.push(Violation {
                    at: *at,
                    what: format!("{winner} takes over from {loser} without a reason"),
                });
            }
        }
        violations
    }

    fn tell(&self, violations: &[Violation]) {
        let answers = self.watch.answers_for(*VIP.ip());
        let turns = lvs_tests::turns(answers.iter().map(|(_, mac)| *mac)).len();
        let requests = self.load.requests();
        let failed = requests.iter().filter(|request| request.answer.is_err()).count();
        println!(
            "{} faults, {turns} turns of answering, {} answers, {} requests of which {failed} failed, preempt {}",
            self.deeds.len(),
            answers.len(),
            requests.len(),
            self.preempt
        );
        for violation in violations {
            println!("{}", self.scene_of(violation));
        }
    }

    /// The violation with the faults and frames around it.
    fn scene_of(&self, violation: &Violation) -> String {
        let near = |at: Stamp| at.since(violation.at).max(violation.at.since(at)) < INTERVAL * 4;
        let offset = |at: Stamp| {
            format!(
                "{:+9.3} ms",
                (at.since(violation.at).as_secs_f64() - violation.at.since(at).as_secs_f64()) * 1e3
            )
        };
        let mut lines: Vec<(Stamp, String)> = Vec::new();
        for deed in &self.deeds {
            let name = self.directors[deed.director].node().name();
            lines.push((deed.from, format!("{name}: {:?}", deed.fault)));
            lines.extend(deed.to.map(|to| (to, format!("{name}: {:?} is over", deed.fault))));
        }
        let recent = |at: Stamp| {
            violation.at.since(at) < Duration::from_secs(3) && at.since(violation.at) < INTERVAL * 4
        };
        lines.retain(|(at, _)| recent(*at));
        let adverts = self.watch.adverts().into_iter().filter(|it| near(it.at));
        lines.extend(adverts.map(|it| (it.at, format!("advert of {}, priority {}", it.source, it.priority))));
        let arps = self.watch.arps().into_iter().filter(|it| near(it.at) && it.sender.1 == *VIP.ip());
        lines.extend(arps.map(|it| {
            (it.at, format!("{} {}", if it.is_reply { "answer of" } else { "announcement of" }, it.sender.0))
        }));
        lines.sort();
        let mut text = format!("VIOLATION: {}\n", violation.what);
        for (at, line) in lines {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {} {line}", offset(at));
        }
        text
    }
}

/// The longest that the VIP is without a master after the last one has fallen silent.
fn takeover_time() -> Duration {
    let slowest = Vrrp::v3(*PRIORITIES.last().unwrap_or(&1), INTERVAL);
    slowest.lifetime() + slowest.skew() + SLACK
}

fn config(scene: &Scene, priority: u8, preempt: bool) -> String {
    let pool: Vec<_> = scene.reals.iter().map(|real| (real, 1)).collect();
    Vrrp { preempt, ..Vrrp::v3(priority, INTERVAL) }.text() + &web_service(&pool)
}
