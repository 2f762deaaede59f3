//! Does traffic for the VIP reach the real servers, by weight, and through XDP?

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{Director, Entry, Need, Node, Scene, VIP, Vrrp, get, require, web_service};

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
    lb1.wait_for_state("MASTER", Duration::from_secs(10))?;
    scene.wait_for_service(Duration::from_secs(10))?;

    let before = forwarded(&lb1)?;
    let names = scene.client.in_ns(|| {
        (FIRST_PORT..FIRST_PORT + REQUESTS)
            .map(|port| get(VIP, Some(port)).with_context(|| format!("the request from port {port}")))
            .collect::<Result<Vec<_>>>()
    })?;
    let after = forwarded(&lb1)?;

    for (real, weight) in &pool {
        let expected = usize::from(REQUESTS * weight / weights.iter().sum::<u16>());
        let answered = names.iter().filter(|name| *name == real.name()).count();
        println!("{} with weight {weight}: {answered} of {REQUESTS} requests", real.name());
        ensure!(answered.abs_diff(expected) <= TOLERANCE, "{answered} instead of {expected}");
    }
    let counted = after - before;
    ensure!(counted >= PACKETS_OF_A_REQUEST * u64::from(REQUESTS), "XDP forwarded only {counted} packets");
    assert_eq!(kernel_forwarded(&scene.lb1)?, 0, "packets that the kernel forwarded");
    let per_real: u64 =
        lb1.status()?.services.iter().flat_map(|service| &service.reals).map(|real| real.packets).sum();
    assert_eq!(per_real, forwarded(&lb1)?, "the real servers' counters do not add up to the director's");
    Ok(())
}

#[test]
fn a_director_works_inside_ip_netns_exec() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let pool: Vec<_> = scene.reals.iter().map(|real| (real, 1)).collect();
    let lb1 = Director::start_by(Entry::IpNetnsExec, &scene.lb1, &config(&web_service(&pool)))?;
    lb1.wait_for_state("MASTER", Duration::from_secs(10))?;
    scene.wait_for_service(Duration::from_secs(10))?;
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
