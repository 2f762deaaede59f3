//! Does traffic for the VIP reach real servers at the ends of tunnels, over a router too, whatever its size?

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{Director, GUE_PORT, Need, Scene, VIP, Vrrp, get, require, wait_for};

const LIMIT: Duration = Duration::from_secs(10);
/// Of the first real server: known to the router only.
const FAR: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 11);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 20);
const REQUESTS: u16 = 150;

#[test]
fn requests_of_any_size_reach_real_servers_through_each_kind_of_tunnel() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut scene = Scene::new()?;
    let router = scene.lab.host("router", ROUTER)?;
    router.sysctl("ipv4.ip_forward", "1")?;
    // All are on one wire here, which the router would point out.
    for interfaces in ["all", "eth0"] {
        router.sysctl(&format!("ipv4.conf.{interfaces}.send_redirects"), "0")?;
    }
    router.run(&format!("ip route add {FAR} via {}", scene.reals[0].node.address()))?;
    scene.lb1.run(&format!("ip route add {FAR} via {ROUTER}"))?;
    scene.reals[0].node.run(&format!("ip address add {FAR}/32 dev lo"))?;

    let near = |real: usize| scene.reals[real].node.address();
    let gue = format!("gue port {GUE_PORT}");
    let pool = [(FAR, "ipip"), (near(1), gue.as_str()), (near(2), "gre")];
    let methods = ["ipip", "gue", "gre"];
    let _ends = scene
        .reals
        .iter()
        .zip(methods)
        .map(|(real, method)| real.end_tunnel(method))
        .collect::<Result<Vec<_>>>()?;
    let vrrp = Vrrp::v3(150, Duration::from_millis(100)).text();
    let lb1 = Director::start(&scene.lb1, &(vrrp.clone() + &service(&pool)))?;
    lb1.wait_for_state("MASTER", LIMIT)?;
    scene.wait_for_service(LIMIT)?;

    let answers = scene.client.in_ns(|| {
        (0..REQUESTS).map(|i| get(VIP, Some(20_000 + i)).context("a request")).collect::<Result<Vec<_>>>()
    })?;
    for real in &scene.reals {
        let answered = answers.iter().filter(|name| *name == real.name()).count();
        println!("{}: {answered} of {REQUESTS} requests", real.name());
        ensure!(answered > 20, "{} answered {answered} times", real.name());
    }

    // More than a packet may carry in any of the tunnels: TCP begins with packets of 1500 bytes and has to be told.
    for (real, entry) in scene.reals.iter().zip(pool) {
        scene.client.run("ip route flush cache")?;
        lb1.reload(&(vrrp.clone() + &service(&[entry])))?;
        let told = outcome(&lb1, "fragmentation_needed")?;
        ensure!(
            scene.client.in_ns(|| large_request(100_000))? == real.name(),
            "another real server answered"
        );
        let told = outcome(&lb1, "fragmentation_needed")? - told;
        println!("{}: told {told} times to send less", real.name());
        ensure!(told > 0, "the client was never told to send less");
    }

    // The way to the last one, by GRE, becomes narrower under way.
    scene.lb1.run(&format!("ip route add {} dev eth0 mtu 1300", near(2)))?;
    wait_for("what fits through a route of 1300 bytes", LIMIT, || {
        scene.client.run("ip route flush cache")?;
        scene.client.in_ns(|| large_request(10_000))?;
        let known = scene.client.run(&format!("ip route get {}", VIP.ip()))?;
        Ok(known.contains("mtu 1276").then_some(()))
    })?;
    ensure!(outcome(&lb1, "too_big")? == 0, "something was lost without a word");
    Ok(())
}

fn service(pool: &[(Ipv4Addr, &str)]) -> String {
    let mut text = format!(
        "virtual_server {} {} {{\n    lvs_sched mh\n    mh-port\n    lvs_method TUN\n    protocol TCP\n",
        VIP.ip(),
        VIP.port()
    );
    for (address, tunnel) in pool {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "    real_server {address} {} {{\n        lvs_method TUN type {tunnel}\n        TCP_CHECK {{\n            \
             connect_timeout 1\n            delay_loop 0.5\n        }}\n    }}\n",
            VIP.port()
        );
    }
    text + "}\n"
}

/// The name of the real server that read a request of `length` bytes.
fn large_request(length: usize) -> Result<String> {
    let mut stream = TcpStream::connect(VIP)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(format!("GET / HTTP/1.0\r\nFiller: {}\r\n\r\n", "x".repeat(length)).as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the answer to a large request")?;
    let (_, name) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    Ok(name.to_owned())
}

fn outcome(director: &Director, name: &str) -> Result<u64> {
    director.status()?.outcomes.get(name).copied().with_context(|| format!("no counter {name}"))
}
