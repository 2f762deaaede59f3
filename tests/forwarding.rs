//! Does traffic for the VIP reach the real servers, by weight, and through XDP?

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{
    Director, Entry, Need, Node, PATIENCE, Scene, VIP, Vrrp, get, require, wait_for, web_service,
};

const REQUESTS: u16 = 1000;
/// Of all requests: 5 %.
const TOLERANCE: usize = 50;
/// SYN, ACK, request, ACK of the answer or FIN.
const PACKETS_OF_A_REQUEST: u64 = 4;
/// Fixed client ports: the same flows, and so the same spread, in every run.
const FIRST_PORT: u16 = 20_000;

#[test]
fn a_thousand_requests_spread_by_weight_and_none_passes_the_kernel() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let weights = [1, 1, 2];
    let pool: Vec<_> = scene.reals.iter().zip(weights).collect();
    let lb1 = Director::start(&scene.lb1, &config(&web_service(&pool)))?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    scene.wait_for_service(PATIENCE)?;

    let before = forwarded(&lb1)?;
    let names = scene.client.in_ns(|| {
        (FIRST_PORT..FIRST_PORT + REQUESTS)
            .map(|port| get(VIP, Some(port)).with_context(|| format!("the request from port {port}")))
            .collect::<Result<Vec<_>>>()
    })?;

    for (real, weight) in &pool {
        let expected = usize::from(REQUESTS * weight / weights.iter().sum::<u16>());
        let answered = names.iter().filter(|name| *name == real.name()).count();
        println!("{} with weight {weight}: {answered} of {REQUESTS} requests", real.name());
        ensure!(answered.abs_diff(expected) <= TOLERANCE, "{answered} instead of {expected}");
    }
    // The last packets of a connection come after its answer.
    wait_for("all packets counted, by XDP and for each real server alike", PATIENCE, || {
        let status = lb1.status()?;
        let all = forwarded(&lb1)?;
        let reals = status.services.iter().flat_map(|service| &service.reals);
        let per_real: u64 = reals.map(|real| real.packets).sum();
        let enough = all - before >= PACKETS_OF_A_REQUEST * u64::from(REQUESTS);
        Ok((enough && per_real == all).then_some(()))
    })?;
    assert_eq!(kernel_forwarded(&scene.lb1)?, 0, "packets that the kernel forwarded");
    Ok(())
}

#[test]
fn datagrams_in_pieces_arrive_whole() -> Result<()> {
    const ECHO: SocketAddrV4 = SocketAddrV4::new(*VIP.ip(), 7007);
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut service =
        "virtual_server 10.77.0.100 7007 {\n lvs_sched mh\n mh-port\n lvs_method DR\n protocol UDP\n"
            .to_owned();
    for real in &scene.reals {
        service += &format!(" real_server {} 7007 {{\n }}\n", real.node.address());
        let socket = real.node.in_ns(|| Ok(UdpSocket::bind(ECHO)?))?;
        thread::spawn(move || {
            let mut buffer = [0; 1 << 16];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                // A client that went away needs no answer.
                let _ = socket.send_to(&buffer[..length], from);
            }
        });
    }
    let pool: Vec<_> = scene.reals.iter().map(|real| (real, 1)).collect();
    let lb1 = Director::start(&scene.lb1, &config(&(web_service(&pool) + &service + "}\n")))?;
    lb1.wait_for_state("MASTER", Duration::from_secs(10))?;
    scene.wait_for_service(Duration::from_secs(10))?;
    scene.client.in_ns(|| {
        for port in FIRST_PORT..FIRST_PORT + 50 {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
            socket.connect(ECHO)?;
            let query = port.to_be_bytes().repeat(2000);
            socket.send(&query)?;
            let mut answer = [0; 1 << 16];
            let length = socket.recv(&mut answer).with_context(|| format!("from port {port}"))?;
            ensure!(answer.get(..length) == Some(&query[..]), "another answer than the query");
        }
        Ok(())
    })
}

#[test]
fn a_director_works_inside_ip_netns_exec() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let pool: Vec<_> = scene.reals.iter().map(|real| (real, 1)).collect();
    let lb1 = Director::start_by(Entry::IpNetnsExec, &scene.lb1, &config(&web_service(&pool)))?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    scene.wait_for_service(PATIENCE)?;
    ensure!(forwarded(&lb1)? > 0, "the answer did not come through XDP");
    Ok(())
}

fn config(service: &str) -> String {
    Vrrp::v3(150, Duration::from_millis(100)).text() + service
}

fn forwarded(director: &Director) -> Result<u64> {
    director.status()?.outcomes.get("forwarded").copied().context("no counter `forwarded`")
}

/// `ForwDatagrams` of RFC 4293.
fn kernel_forwarded(node: &Node) -> Result<u64> {
    let snmp = node.run("cat /proc/net/snmp")?;
    let mut ip = snmp.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = ip.next().zip(ip.next()).context("no Ip lines in /proc/net/snmp")?;
    let mut columns = names.split(' ').zip(values.split(' '));
    let (_, count) = columns.find(|(name, _)| *name == "ForwDatagrams").context("no ForwDatagrams")?;
    Ok(count.parse()?)
}
