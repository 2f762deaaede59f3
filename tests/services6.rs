//! Services of IPv6 from end to end: TCP and UDP by way of two directors, while real servers and a director die.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{
    Conversation, Director, Need, Node, PATIENCE, Process, Scene, VIP, Vrrp, echo, get, require, wait_for,
};

const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100);
const WEB: SocketAddrV6 = SocketAddrV6::new(VIP6, 80, 0, 0);
const BULK: SocketAddrV6 = SocketAddrV6::new(VIP6, 5001, 0, 0);
const ECHO: SocketAddrV6 = SocketAddrV6::new(VIP6, 7007, 0, 0);
/// Of the client.
const FIRST_PORT: u16 = 20_000;
const FLOWS: u16 = 48;

/// The usual hosts, with IPv6; a web server at each real server.
struct Stage {
    web: Vec<Process>,
    scene: Scene,
}

impl Stage {
    fn new() -> Result<Self> {
        let mut scene = Scene::new()?;
        for node in [&scene.client, &scene.lb1, &scene.lb2] {
            node.enable_ipv6()?;
        }
        let mut web = Vec::new();
        for real in &mut scene.reals {
            real.kill()?;
            real.node.enable_ipv6()?;
            // Nobody is told: Linux answers solicitations only for addresses of the interface that they come in by.
            real.node.run(&format!("ip address add {VIP6}/128 dev lo nodad"))?;
            web.push(serve(&real.node)?);
        }
        Ok(Self { web, scene })
    }

    fn real(&self, number: usize) -> Result<&Node> {
        Ok(&self.scene.reals.get(number).context("no such real server")?.node)
    }

    fn directors(&self, service: impl Fn(&Self) -> String) -> Result<[Director; 2]> {
        let text = |priority| text(priority) + &service(self);
        let lb1 = Director::start(&self.scene.lb1, &text(150))?;
        lb1.wait_for_state("MASTER", PATIENCE)?;
        let lb2 = Director::start(&self.scene.lb2, &text(100))?;
        lb2.wait_for_state("BACKUP", PATIENCE)?;
        for director in [&lb1, &lb2] {
            wait_for("real servers that are up", PATIENCE, || {
                let reals: Vec<_> = director.status()?.services.into_iter().flat_map(|it| it.reals).collect();
                Ok((!reals.is_empty() && reals.iter().all(|real| real.state == "up")).then_some(()))
            })
            .with_context(|| director.order(&["status"]).unwrap_or_default())?;
        }
        self.scene.client.in_ns(|| {
            wait_for("an answer from the virtual address", PATIENCE, || Ok(get(WEB, None).ok().map(drop)))
        })?;
        Ok([lb1, lb2])
    }

    /// A service with the checks of the web service, and one for each kind of flow.
    fn services(&self) -> String {
        let reals = |port: u16, check: &str| {
            let real =
                |node: &Node| format!("    real_server {} {port} {{\n{check}    }}\n", node.address_v6());
            self.scene.reals.iter().map(|it| real(&it.node)).collect::<String>()
        };
        let check = "        HTTP_GET {\n            url {\n                path /\n                status_code 200\n            }\n            \
             delay_loop 0.2\n            connect_timeout 0.5\n            retry 1\n            delay_before_retry 0.2\n            \
             warmup 0\n            connect_port 80\n        }\n";
        let service = |at: SocketAddrV6, protocol: &str| {
            format!(
                "virtual_server {} {} {{\n    lvs_sched mh\n    mh-port\n    lvs_method DR\n    protocol {protocol}\n{}}}\n",
                at.ip(),
                at.port(),
                reals(at.port(), check)
            )
        };
        service(WEB, "TCP") + &service(BULK, "TCP") + &service(ECHO, "UDP")
    }

    /// Who answers each of the client's ports.
    fn answers(&self) -> Result<Vec<String>> {
        self.scene.client.in_ns(|| {
            let ports = FIRST_PORT..FIRST_PORT + FLOWS;
            ports.map(|port| get(WEB, Some(port)).with_context(|| format!("from port {port}"))).collect()
        })
    }
}

/// A deprecated address is no source of checks, which real servers would answer to themselves.
fn text(priority: u8) -> String {
    let four = Vrrp::v3(priority, Duration::from_millis(100)).text();
    four.replace(&format!("{}/24", VIP.ip()), &format!("{VIP6}/128"))
}

/// At all addresses of `node`.
fn serve(node: &Node) -> Result<Process> {
    let mut command = node.lab_program("lab-http");
    command.args([node.name(), "[::]:80"]);
    let process = node.spawn("http-v6", command)?;
    let own = SocketAddrV6::new(node.address_v6(), 80, 0, 0);
    node.in_ns(|| wait_for("the HTTP server", PATIENCE, || Ok(get(own, None).ok().map(drop))))?;
    Ok(process)
}

fn forwarded(director: &Director) -> Result<u64> {
    director.status()?.outcomes.get("forwarded").copied().context("no counter `forwarded`")
}

#[test]
fn connections_outlive_the_master_and_new_ones_leave_a_dead_real_server() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut stage = Stage::new()?;
    let [mut lb1, lb2] = stage.directors(Stage::services)?;
    let before = stage.answers()?;
    let names: BTreeSet<_> = before.iter().cloned().collect();
    ensure!(names.len() == 3, "only {names:?} answered");
    ensure!(forwarded(&lb1)? > 0, "the answers did not come through XDP");

    let begin = |port| Ok(Conversation::begin(WEB, port)?);
    let talks: Vec<Conversation> = stage.scene.client.in_ns(|| (21_000..21_012).map(begin).collect())?;
    lb1.kill()?;
    lb2.wait_for_state("MASTER", PATIENCE)?;
    stage.scene.client.in_ns(|| {
        wait_for("an answer by way of the second director", PATIENCE, || Ok(get(WEB, None).ok().map(drop)))
    })?;
    for (mut talk, port) in talks.into_iter().zip(21_000..) {
        talk.go_on().with_context(|| format!("from port {port}"))?;
        let name = talk.end().with_context(|| format!("from port {port}"))?;
        ensure!(names.contains(&name), "{name}");
    }
    ensure!(stage.answers()? == before, "the second director places flows as the first did");
    ensure!(forwarded(&lb2)? > 0, "the answers did not come through XDP");

    // Its name in status is the one that orders take.
    let rs1 = SocketAddr::from((stage.real(0)?.address_v6(), 80)).to_string();
    let service = format!("tcp:{WEB}");
    ensure!(lb2.order(&["status"])?.contains(&format!("TCP  {WEB} ")));
    lb2.order(&["drain", &service, &rs1])?;
    ensure!(!stage.answers()?.contains(&"rs1".to_owned()), "a drained real server got new connections");
    lb2.order(&["enable", &service, &rs1])?;
    wait_for("the real server's own flows", PATIENCE, || Ok((stage.answers()? == before).then_some(())))?;

    stage.web.get_mut(1).context("no rs2")?.kill()?;
    wait_for("a real server that is down", PATIENCE, || {
        let services = lb2.status()?.services;
        let down = |address: IpAddr| {
            services.iter().flat_map(|it| &it.reals).filter(move |real| real.address == address)
        };
        let rs2 = stage.real(1)?.address_v6();
        Ok(down(rs2.into()).all(|real| real.state == "down").then_some(()))
    })?;
    let after = stage.answers()?;
    for (before, after) in before.iter().zip(&after) {
        ensure!(after != "rs2" && (before == "rs2" || before == after), "{before} became {after}");
    }
    Ok(())
}

#[test]
fn what_is_large_or_in_pieces_arrives_whole() -> Result<()> {
    const AMOUNT: usize = 100 << 20;
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let stage = Stage::new()?;
    for real in &stage.scene.reals {
        for at in [BULK, ECHO] {
            echo::give_back(&real.node, at.into())?;
        }
    }
    let [_lb1, _lb2] = stage.directors(Stage::services)?;
    stage.scene.client.in_ns(|| {
        echo::stream(BULK.into(), AMOUNT)?;
        // In one piece, and in three.
        (FIRST_PORT..FIRST_PORT + FLOWS).try_for_each(|port| echo::datagrams(ECHO.into(), port, &[40, 4000]))
    })
}
