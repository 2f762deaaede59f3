//! Does traffic for the VIP reach real servers at the ends of tunnels, over a router too, whatever its size?

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{Director, GUE_PORT, Need, Scene, VIP, Vrrp, echo, get, require, wait_for};

const LIMIT: Duration = Duration::from_secs(10);
/// Of the first real server: known to the router only.
const FAR: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 11);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 20);
const REQUESTS: u16 = 150;
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100);

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

#[test]
fn what_is_large_or_in_pieces_passes_through_tunnels_of_both_families() -> Result<()> {
    const AMOUNT: usize = 100 << 20;
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    for method in ["ipip", "gue", "gre"] {
        let scene = Scene::new()?;
        for node in [&scene.client, &scene.lb1].into_iter().chain(scene.reals.iter().map(|real| &real.node)) {
            node.enable_ipv6()?;
        }
        let [six_in_six, six_in_four, four_in_six] = [
            SocketAddr::from((VIP6, 5001)),
            SocketAddr::from((VIP6, 5002)),
            SocketAddr::from((*VIP.ip(), 5003)),
        ];
        let real = |number: usize| anyhow::Ok(&scene.reals.get(number).context("no such real server")?.node);
        let ways = [
            (six_in_six, IpAddr::from(real(0)?.address_v6())),
            (six_in_four, IpAddr::from(real(1)?.address())),
            (four_in_six, IpAddr::from(real(2)?.address_v6())),
        ];
        let mut ends = Vec::new();
        let mut text = Vrrp::v3(150, Duration::from_millis(100)).text();
        text = text.replace(
            "virtual_ipaddress {",
            &format!("virtual_ipaddress_excluded {{\n        {VIP6}/128\n    }}\n    virtual_ipaddress {{"),
        );
        for (real, (service, address)) in scene.reals.iter().zip(ways) {
            real.node.run(&format!("ip address add {VIP6}/128 dev lo nodad"))?;
            // The switch merges segments inside of tunnels too. Cut again, they have no checksums but for who keeps the kernel's
            // note about that, which the TUN device does not get.
            scene.lab.switch().run(&format!("ethtool -K {} tx off", real.name()))?;
            ends.push(real.end_tunnel(method)?);
            echo::give_back(&real.node, service)?;
            text += &echo_service(service, address, method);
        }
        let lb1 = Director::start(&scene.lb1, &text)?;
        lb1.wait_for_state("MASTER", LIMIT)?;
        wait_for("real servers that are up", LIMIT, || {
            let reals: Vec<_> = lb1.status()?.services.into_iter().flat_map(|it| it.reals).collect();
            Ok((reals.len() == 6 && reals.iter().all(|real| real.state == "up")).then_some(()))
        })?;
        for (service, _) in ways {
            for family in ["-4", "-6"] {
                scene.client.run(&format!("ip {family} route flush cache"))?;
            }
            let told = outcome(&lb1, "fragmentation_needed")?;
            scene
                .client
                .in_ns(|| echo::stream(service, AMOUNT))
                .with_context(|| format!("{method} to {service}"))?;
            println!("{method} to {service}: {AMOUNT} bytes to and fro");
            ensure!(outcome(&lb1, "fragmentation_needed")? > told, "the client was never told to send less");
            scene.client.in_ns(|| {
                (20_000..20_020).try_for_each(|port| echo::datagrams(service, port, &[40, 4000]))
            })?;
        }
        ensure!(outcome(&lb1, "too_big")? == 0, "something was lost without a word");
    }
    Ok(())
}

/// By TCP and by UDP, with one real server.
fn echo_service(at: SocketAddr, real: IpAddr, method: &str) -> String {
    let method = if method == "gue" { format!("gue port {GUE_PORT}") } else { method.to_owned() };
    let service = |protocol: &str| {
        format!(
            "virtual_server {} {port} {{\n    lvs_sched mh\n    mh-port\n    lvs_method TUN type {method}\n    protocol {protocol}\n    \
             real_server {real} {port} {{\n        TCP_CHECK {{\n            connect_timeout 1\n            delay_loop 0.5\n        }}\n    }}\n}}\n",
            at.ip(),
            port = at.port(),
        )
    };
    service("TCP") + &service("UDP")
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
