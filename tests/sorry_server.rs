//! Is there a real server for every packet while the last one dies, the sorry server stands in, and all return?

use std::{net::SocketAddrV4, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use lvs_tests::{
    Datagrams, Director, Need, PATIENCE, Scene, Tally, VIP, Vrrp, require, wait_for, web_service,
};

const UDP: SocketAddrV4 = SocketAddrV4::new(*VIP.ip(), 5001);
/// Packets a second.
const RATE: u32 = 5_000;
const ROUNDS: usize = 3;
/// Thousands of packets.
const A_WHILE: Duration = Duration::from_millis(500);

/// The real servers refuse their checks but still take packets, so each packet that is sent must arrive somewhere.
#[test]
fn at_5000_packets_a_second_none_is_without_a_real_server_and_none_is_lost() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut scene = Scene::new()?;
    let lb1 = Director::start(&scene.lb1, &config(&scene)?)?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    scene.wait_for_all(PATIENCE)?;
    let before = without_real(&lb1)?;
    let load = Datagrams::start(&scene.client, &scene.reals, UDP, RATE)?;

    for _ in 0..ROUNDS {
        for index in [0, 1] {
            scene.reals.get_mut(index).context("no such real server")?.kill()?;
        }
        wait_for_both(&lb1, "down")?;
        let dead = packets_of_both(&lb1)?;
        thread::sleep(A_WHILE);
        ensure!(packets_of_both(&lb1)? == dead, "the dead ones still get packets");
        for index in [0, 1] {
            scene.reals.get_mut(index).context("no such real server")?.start()?;
        }
        wait_for_both(&lb1, "up")?;
        wait_for("packets to the returned", PATIENCE, || Ok((packets_of_both(&lb1)? > dead).then_some(())))?;
    }

    let Tally { sent, lost, doubled } = load.finish()?;
    println!("{sent} packets at {RATE}/s through {ROUNDS} deaths of the pool, {} lost", lost.len());
    assert_eq!((lost, doubled), (vec![], 0));
    assert_eq!(without_real(&lb1)?, before);
    Ok(())
}

/// A UDP service on two real servers that are checked by their web server; the third stands in. And the web service
/// on all of them.
fn config(scene: &Scene) -> Result<String> {
    let [first, second, sorry] = scene.reals.as_slice() else { bail!("not three real servers") };
    let real = |address| {
        format!(
            "    real_server {address} {} {{\n        TCP_CHECK {{\n            connect_port {}\n            \
             delay_loop 0.1\n            retry 0\n            warmup 0\n        }}\n    }}\n",
            UDP.port(),
            VIP.port()
        )
    };
    let service = format!(
        "virtual_server {} {} {{\n    lvs_sched mh\n    mh-port\n    lvs_method DR\n    protocol UDP\n    \
         sorry_server {} {}\n{}{}}}\n",
        UDP.ip(),
        UDP.port(),
        sorry.node.address(),
        UDP.port(),
        real(first.node.address()),
        real(second.node.address())
    );
    let all: Vec<_> = scene.reals.iter().map(|real| (real, 1)).collect();
    Ok(Vrrp::v3(150, Duration::from_millis(100)).text() + &service + &web_service(&all))
}

fn without_real(director: &Director) -> Result<u64> {
    Ok(director.status()?.outcomes.get("no_real").copied().unwrap_or(0))
}

fn packets_of_both(director: &Director) -> Result<u64> {
    let status = director.status()?;
    let service = status.services.first().context("no service")?;
    Ok(service.reals.iter().take(2).map(|real| real.packets).sum())
}

fn wait_for_both(director: &Director, state: &str) -> Result<()> {
    wait_for(&format!("both real servers {state}"), PATIENCE, || {
        let status = director.status()?;
        let service = status.services.first().context("no service")?;
        Ok(service.reals.iter().take(2).all(|real| real.state == state).then_some(()))
    })
}
