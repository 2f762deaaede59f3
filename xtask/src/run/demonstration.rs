//! Two directors and three real servers lose one of each, before the user's eyes.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{Director, Load, Node, Outage, Request, Scene, Stamp, VIP, outage, spread, wait_for};

const CONFIG: &str = include_str!("demonstration.conf");
/// Time between two requests of the client.
const PACE: Duration = Duration::from_millis(4);
/// Time between two lines on the screen.
const TICK: Duration = Duration::from_millis(500);
/// More than any step takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn show(keep: bool) -> Result<()> {
    let mut scene = Scene::new()?;
    if keep {
        scene.lab.keep()?;
    }
    print_hosts(&scene);
    let result = lose_and_recover(&mut scene);
    if keep {
        // After a failure most of all.
        print_kept(&scene);
        return result;
    }
    drop(scene);
    println!("\nAll hosts are removed again. `cargo xtask run --keep` leaves them up.");
    result
}

fn lose_and_recover(scene: &mut Scene) -> Result<()> {
    let mut lb1 = Director::start(&scene.lb1, CONFIG)?;
    let lb2 = Director::start(&scene.lb2, &CONFIG.replace("priority 150", "priority 100"))?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    scene.wait_for_service(PATIENCE)?;

    let screen = Screen::new(Load::start(&scene.client, VIP, PACE)?);
    let mut table = Table::default();

    screen.headline("All is well");
    screen.watch(&[&lb1, &lb2], 4)?;
    let answered = spread(&screen.settled());
    ensure!(answered.len() == scene.reals.len(), "not every real server was asked: {answered:?}");

    screen.headline("kill -9 of lvsd on lb1, the master: its tables forward on, lb2 takes over");
    let killed = Stamp::now();
    lb1.kill()?;
    lb2.wait_for_state("MASTER", PATIENCE)?;
    let took = killed.elapsed();
    screen.watch(&[&lb2], 4)?;
    table.row(
        "kill -9 of lvsd on the master",
        took,
        "until lb2 is master",
        &outage(&screen.settled(), killed)?,
    );

    screen.headline("lvsd on lb1 is started again and takes its role back");
    let returned = Stamp::now();
    lb1.start_again()?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    lb2.wait_for_state("BACKUP", PATIENCE)?;
    let took = returned.elapsed();
    screen.watch(&[&lb1, &lb2], 4)?;
    table.row("start of lvsd", took, "until lb1 is master", &outage(&screen.settled(), returned)?);

    screen.headline("the cable of lb1 is pulled: the master is gone as a whole");
    let pulled = Stamp::now();
    scene.lab.unplug(&scene.lb1)?;
    lb2.wait_for_state("MASTER", PATIENCE)?;
    let took = pulled.elapsed();
    screen.watch(&[&lb1, &lb2], 4)?;
    table.row("loss of the master's host", took, "until lb2 is master", &outage(&screen.settled(), pulled)?);

    screen.headline("the cable is back");
    let returned = Stamp::now();
    scene.lab.plug_in(&scene.lb1)?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    lb2.wait_for_state("BACKUP", PATIENCE)?;
    let took = returned.elapsed();
    screen.watch(&[&lb1, &lb2], 4)?;
    table.row(
        "return of the master's host",
        took,
        "until lb1 is master",
        &outage(&screen.settled(), returned)?,
    );

    let victim = scene.reals.get_mut(1).context("no second real server")?;
    let name = victim.name().to_owned();
    screen.headline(&format!("kill -9 of the HTTP server on {name}"));
    let killed = Stamp::now();
    victim.kill()?;
    screen.watch(&[&lb1, &lb2], 4)?;
    let lost = outage(&screen.settled(), killed)?;
    table.row("kill -9 of a real server", lost.length, "until no request fails any more", &lost);

    screen.headline(&format!("the HTTP server on {name} is started again"));
    let returned = Stamp::now();
    victim.start()?;
    let first = wait_for(&format!("an answer of {name}"), PATIENCE, || {
        let requests = screen.since(returned);
        let first = requests.iter().find(|request| request.answer.as_ref().is_ok_and(|who| *who == name));
        Ok(first.map(|request| request.finished))
    })?;
    screen.watch(&[&lb1, &lb2], 4)?;
    let took = first.since(returned);
    table.row(
        "return of the real server",
        took,
        "until it is asked again",
        &outage(&screen.settled(), returned)?,
    );

    let requests = screen.finish()?;
    let failed = requests.iter().filter(|request| request.answer.is_err()).count();
    let forwarded = forwarded(&lb1)? + forwarded(&lb2)?;
    table.print();
    println!("\n    {} requests, {failed} failed; {forwarded} packets forwarded by XDP", requests.len());
    Ok(())
}

/// By the director's tables, which survive a daemon.
fn forwarded(director: &Director) -> Result<u64> {
    Ok(director.status()?.outcomes.get("forwarded").copied().unwrap_or(0))
}

fn print_hosts(scene: &Scene) {
    println!("One switch and its hosts, each a network namespace:\n");
    print_host(&scene.client, "asks the VIP every 4 ms");
    print_host(&scene.lb1, "director, lvsd with priority 150");
    print_host(&scene.lb2, "director, lvsd with priority 100");
    scene.reals.iter().for_each(|real| print_host(&real.node, "real server, HTTP"));
    println!("    {:<8} {:<14} the VIP", "", VIP.ip());
}

fn print_host(host: &Node, role: &str) {
    println!("    {:<8} {:<14} {role}", host.name(), host.address());
}

fn print_kept(scene: &Scene) {
    println!("\nThe hosts stay up. To enter one:");
    let hosts = [&scene.client, &scene.lb1, &scene.lb2, scene.lab.switch()];
    for host in hosts.into_iter().chain(scene.reals.iter().map(|real| &real.node)) {
        println!("    nsenter --net=/run/netns/{}", host.namespace());
    }
    println!("Logs, configurations and run directories: {}", scene.lab.dir().display());
    println!("    lvsd status --run-dir {}", scene.lb1.dir().join("run").display());
    println!("To remove them: cargo xtask run --clean");
}

/// What the client sees, a line at a time.
struct Screen {
    load: Load,
    start: Stamp,
}

impl Screen {
    fn new(load: Load) -> Self {
        Self { load, start: Stamp::now() }
    }

    fn headline(&self, text: &str) {
        println!("\n{:6.1} s  {text}", self.start.elapsed().as_secs_f64());
    }

    /// Prints `ticks` lines.
    fn watch(&self, directors: &[&Director], ticks: usize) -> Result<()> {
        let mut last = Stamp::now();
        for _ in 0..ticks {
            thread::sleep(TICK);
            let roles = directors
                .iter()
                .map(|director| Ok(format!("{} {}", director.node().name(), director.state()?)))
                .collect::<Result<Vec<_>>>()?;
            let requests = self.since(last);
            last = Stamp::now();
            let answered = spread(requests.iter());
            let failed = requests.iter().filter(|request| request.answer.is_err()).count();
            println!(
                "{:6.1} s  {:<26} {:<30} failed {failed}",
                self.start.elapsed().as_secs_f64(),
                join(roles),
                join(answered.iter().map(|(name, count)| format!("{name} {count:3}"))),
            );
        }
        Ok(())
    }

    /// Requests that ended since.
    fn since(&self, from: Stamp) -> Vec<Request> {
        let mut requests = self.load.requests();
        requests.retain(|request| request.finished >= from);
        requests
    }

    /// All requests, after those that are still out have ended one way or the other.
    fn settled(&self) -> Vec<Request> {
        thread::sleep(Duration::from_secs(1));
        self.load.requests()
    }

    fn finish(self) -> Result<Vec<Request>> {
        self.load.finish()
    }
}

/// One line per event.
#[derive(Default)]
struct Table(Vec<String>);

impl Table {
    fn row(&mut self, event: &str, took: Duration, until: &str, outage: &Outage) {
        self.0.push(format!(
            "{event:<30} {:>6} ms {until:<32} {:>6} ms {:>6}",
            took.as_millis(),
            outage.length.as_millis(),
            outage.failed
        ));
    }

    fn print(&self) {
        println!("\n    {:<30} {:<42} {:>9} {:>6}", "event", "", "outage", "failed");
        self.0.iter().for_each(|row| println!("    {row}"));
    }
}

fn join(parts: impl IntoIterator<Item = String>) -> String {
    parts.into_iter().collect::<Vec<_>>().join("  ")
}
