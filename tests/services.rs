//! Do the less usual kinds of services and real servers work from end to end?

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    ops::Range,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{
    Conversation, Director, Need, Node, PATIENCE, Scene, VIP, Vrrp, get, require, serve, serve_at,
    service_with, wait_for, web_service,
};

const SEVERAL: [u16; 3] = [21, 2121, 8080];
/// Of the client.
const PORTS: Range<u16> = 20_000..20_060;

#[test]
fn all_ports_of_an_address_lead_a_client_to_one_real_server_but_those_of_other_services() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let [rs1, rs2, rs3] = scene.reals.as_slice() else { anyhow::bail!("not three real servers") };
    let mut servers = Vec::new();
    for real in [rs1, rs2] {
        for port in SEVERAL {
            servers.push(serve_at(&real.node, port)?);
        }
    }
    let real = |node: &Node| {
        format!("    real_server {} 21 {{\n        TCP_CHECK {{\n        }}\n    }}\n", node.address())
    };
    let all = format!(
        "virtual_server {} {{\n    lvs_sched rr\n    lvs_method DR\n    protocol TCP\n    delay_loop 0.2\n{}{}}}\n",
        VIP.ip(),
        real(&rs1.node),
        real(&rs2.node)
    );
    let lb1 = master(&scene, &(web_service(&[(rs3, 1)]) + &all))?;
    let names = |node: &Node| -> Result<BTreeSet<String>> {
        node.in_ns(|| {
            let ports = SEVERAL.into_iter().cycle().take(12);
            ports.map(|port| Ok(get(SocketAddrV4::new(*VIP.ip(), port), None)?)).collect()
        })
    };
    let (client, watcher) = (names(&scene.client)?, names(&scene.watcher)?);
    ensure!(client.len() == 1 && watcher.len() == 1, "{client:?} {watcher:?}");
    ensure!(client != watcher, "rr gives two clients a real server each, not both {client:?}");
    ensure!(scene.client.in_ns(|| Ok(get(VIP, None)?))? == "rs3", "port 80 has its own service");
    // Nobody listens there: the real server refuses, not the director.
    let refused = scene.client.in_ns(|| Ok(get(SocketAddrV4::new(*VIP.ip(), 9999), None)))?;
    ensure!(refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused));
    ensure!(lb1.status()?.services.iter().any(|service| service.port == 0));
    Ok(())
}

#[test]
fn directors_are_real_servers_of_their_own_service_and_no_packet_goes_in_circles() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut servers = Vec::new();
    for node in [&scene.lb1, &scene.lb2] {
        // A backup needs the VIP too, to take what the master gives it.
        node.sysctl("ipv4.conf.all.arp_ignore", "1")?;
        node.sysctl("ipv4.conf.all.arp_announce", "2")?;
        node.run(&format!("ip address add {}/32 dev lo", VIP.ip()))?;
        servers.push(serve(node)?);
    }
    let nodes = [&scene.lb1, &scene.lb2, &scene.reals.first().context("no rs1")?.node];
    let services = |nodes: &[&Node]| {
        let real = |node: &&Node| {
            format!("    real_server {} 80 {{\n        TCP_CHECK {{\n        }}\n    }}\n", node.address())
        };
        format!(
            "virtual_server {} 80 {{\n    lvs_sched rr\n    lvs_method DR\n    protocol TCP\n    delay_loop 0.2\n{}}}\n",
            VIP.ip(),
            nodes.iter().map(real).collect::<String>()
        )
    };
    // The other way round: they would send a new connection to and fro.
    let lb1 = master(&scene, &services(&nodes))?;
    let reversed: Vec<_> = nodes.into_iter().rev().collect();
    let lb2 = Director::start(&scene.lb2, &(vrrp(100) + &services(&reversed)))?;
    lb2.wait_for_state("BACKUP", PATIENCE)?;
    scene.wait_for_service(PATIENCE)?;
    let spread = spread(&scene, PORTS)?;
    ensure!(spread.len() == 3 && spread.values().all(|count| *count == 20), "{spread:?}");
    for (director, own) in [(&lb1, scene.lb1.address()), (&lb2, scene.lb2.address())] {
        let status = director.status()?;
        let reals: Vec<_> = status.services.iter().flat_map(|service| &service.reals).collect();
        let ways: BTreeSet<_> =
            reals.iter().map(|real| (real.address == own, real.forwarding.as_str())).collect();
        ensure!(ways == [(true, "local"), (false, "DR")].into(), "{ways:?}");
        ensure!(status.outcomes.get("local").is_some_and(|count| *count >= 60), "{:?}", status.outcomes);
    }
    ensure!(
        lb2.status()?.outcomes.get("forwarded").is_none_or(|count| *count == 0),
        "the backup spreads packets"
    );
    Ok(())
}

#[test]
fn a_sorry_server_may_be_the_director_itself() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut scene = Scene::new()?;
    let _server = serve(&scene.lb1)?;
    let service = {
        let rs1 = scene.reals.first().context("no rs1")?;
        web_service(&[(rs1, 1)]).replace("lvs_method DR\n", "lvs_method DR\n    sorry_server 127.0.0.1 80\n")
    };
    let _lb1 = master(&scene, &service)?;
    scene.wait_for_service(PATIENCE)?;
    ensure!(scene.client.in_ns(|| Ok(get(VIP, None)?))? == "rs1");
    scene.reals.first_mut().context("no rs1")?.kill()?;
    let answer = || Ok(get(VIP, None).is_ok_and(|name| name == "lb1").then_some(()));
    scene.client.in_ns(|| wait_for("an answer of the director itself", PATIENCE, answer))
}

#[test]
fn a_connection_to_a_host_that_died_is_reset_at_once_where_that_is_configured_and_else_hangs() -> Result<()> {
    for (word, expected) in [("reset", ErrorKind::ConnectionReset), ("silence", ErrorKind::WouldBlock)] {
        if !require(&[Need::Lab, Need::Lvsd]) {
            return Ok(());
        }
        let scene = Scene::new()?;
        let pool: Vec<_> = scene.reals.iter().map(|real| (real, 1)).collect();
        let service = service_with(&format!("    dead_connections {word}\n"), &pool);
        let lb1 = master(&scene, &service)?;
        scene.wait_for_service(PATIENCE)?;
        // A port is one flow, and so of the same real server each time.
        let (victims, others) = scene.client.in_ns(|| {
            let (mut victims, mut others) = (Vec::new(), Vec::new());
            for port in PORTS {
                let is_victim = get(VIP, Some(port))? == "rs1";
                let talks = if is_victim { &mut victims } else { &mut others };
                talks.push((port, Conversation::begin(VIP, port)?));
            }
            Ok((victims, others))
        })?;
        ensure!(!victims.is_empty() && !others.is_empty());
        // Its kernel has no chance to say good-bye.
        scene.lab.unplug(&scene.reals.first().context("no rs1")?.node)?;
        wait_for("rs1 down", PATIENCE, || {
            let status = lb1.status()?;
            let rs1 = status.services.first().and_then(|service| service.reals.first()).context("no rs1")?;
            Ok((rs1.state == "down").then_some(()))
        })?;
        for (port, talk) in victims.into_iter().take(5) {
            let error =
                talk.end().err().with_context(|| format!("port {port} is answered by a dead host"))?;
            ensure!(error.kind() == expected, "dead_connections {word}: {error}");
            // Nobody has told the client's kernel that a port that hangs is free.
            if word == "reset" {
                let name = scene.client.in_ns(|| Ok(get(VIP, Some(port))?))?;
                ensure!(name != "rs1", "a new connection from port {port} goes to the dead host");
            }
        }
        for (port, talk) in others {
            talk.end().with_context(|| format!("port {port}, whose real server lives"))?;
        }
        let counted = if word == "reset" { "connection_reset" } else { "dead_real" };
        ensure!(lb1.status()?.outcomes.get(counted).is_some_and(|count| *count > 0));
    }
    Ok(())
}

#[test]
fn with_ops_rr_gives_each_real_server_every_third_packet_of_one_client() -> Result<()> {
    const DNS: SocketAddrV4 = SocketAddrV4::new(*VIP.ip(), 5353);
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut service =
        "virtual_server 10.77.0.100 5353 {\n lvs_sched rr\n ops\n lvs_method DR\n protocol UDP\n".to_owned();
    for real in &scene.reals {
        service += &format!(" real_server {} 5353 {{\n }}\n", real.node.address());
        let socket = real.node.in_ns(|| Ok(UdpSocket::bind(DNS)?))?;
        let name = real.name().to_owned();
        thread::spawn(move || {
            while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
                // A client that went away needs no answer.
                let _ = socket.send_to(name.as_bytes(), from);
            }
        });
    }
    let pool: Vec<_> = scene.reals.iter().map(|real| (real, 1)).collect();
    let _lb1 = master(&scene, &(web_service(&pool) + &service + "}\n"))?;
    scene.wait_for_service(PATIENCE)?;
    let names = scene.client.in_ns(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 20_000))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(DNS)?;
        let ask = || {
            socket.send(b"who?")?;
            let mut answer = [0; 64];
            let length = socket.recv(&mut answer)?;
            Ok(String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned())
        };
        (0..30).map(|_| ask()).collect::<Result<Vec<_>>>()
    })?;
    for three in names.chunks(3) {
        ensure!(three.iter().collect::<BTreeSet<_>>().len() == 3, "{names:?}");
    }
    Ok(())
}

/// The only director, once it is master.
fn master(scene: &Scene, services: &str) -> Result<Director> {
    let lb1 = Director::start(&scene.lb1, &(vrrp(150) + services))?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    Ok(lb1)
}

fn vrrp(priority: u8) -> String {
    Vrrp::v3(priority, Duration::from_millis(100)).text()
}

/// How many of the client's requests from these ports each real server answers.
fn spread(scene: &Scene, ports: Range<u16>) -> Result<BTreeMap<String, usize>> {
    scene.client.in_ns(|| {
        let mut spread = BTreeMap::new();
        for port in ports {
            *spread.entry(get(VIP, Some(port)).with_context(|| format!("from port {port}"))?).or_default() +=
                1;
        }
        Ok(spread)
    })
}
