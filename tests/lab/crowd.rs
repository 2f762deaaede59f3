//! What does a reload of a large site cost, and whom?

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddrV4},
    thread,
    time::Duration,
};

use anyhow::Result;

use crate::{Datagrams, Director, PATIENCE, Scene, Stamp, Tally, VIP, Vrrp, web_service};

const UDP: SocketAddrV4 = SocketAddrV4::new(*VIP.ip(), 5001);
/// Packets a second.
const RATE: u32 = 5_000;
const REALS: u32 = 100;
/// Behind the first real server.
const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 0);
const A_WHILE: Duration = Duration::from_millis(500);

/// What a site's first reload with one change in it did to the packets of one service.
#[derive(Debug)]
pub struct Reloaded {
    /// Each time one real server of this very service had another weight.
    pub times: Vec<Duration>,
    pub tally: Tally,
    /// Packets that the director had no real server for.
    pub without_real: u64,
}

/// `services` of 100 real servers each stand beside the one that gets 5,000 packets a second while `reloads` follow on each other.
pub fn reload_under_load(services: u32, reloads: u16) -> Result<Reloaded> {
    let scene = Scene::new()?;
    let [first, ..] = scene.reals.as_slice() else { return Err(anyhow::anyhow!("no real server")) };
    scene.lb1.run(&format!("ip route add {NETWORK}/12 via {}", first.node.address()))?;
    let others = crowd(services);
    let text = |weight| Ok::<_, anyhow::Error>(config(&scene, weight)? + &others);
    let lb1 = Director::start(&scene.lb1, &text(1)?)?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    scene.wait_for_all(PATIENCE)?;
    let without_real = || Ok::<_, anyhow::Error>(lb1.status()?.outcomes.get("no_real").copied().unwrap_or(0));
    let before = without_real()?;
    let load = Datagrams::start(&scene.client, &scene.reals, UDP, RATE)?;
    let mut times = Vec::new();
    for weight in 2..2 + reloads {
        thread::sleep(A_WHILE);
        let text = text(weight)?;
        let begun = Stamp::now();
        lb1.reload(&text)?;
        times.push(begun.elapsed());
    }
    thread::sleep(A_WHILE);
    let tally = load.finish()?;
    Ok(Reloaded { times, tally, without_real: without_real()? - before })
}

/// A UDP service in which the first real server has this weight, and the web service.
fn config(scene: &Scene, weight: u16) -> Result<String> {
    let mut text = Vrrp::v3(150, Duration::from_millis(100)).text();
    write!(
        text,
        "virtual_server {} {} {{\n    lvs_sched mh\n    mh-port\n    lvs_method DR\n    protocol UDP\n",
        UDP.ip(),
        UDP.port()
    )?;
    for (number, real) in scene.reals.iter().enumerate() {
        let weight = if number == 0 { weight } else { 1 };
        let address = real.node.address();
        writeln!(text, "    real_server {address} {} {{\n        weight {weight}\n    }}", UDP.port())?;
    }
    let all: Vec<_> = scene.reals.iter().map(|real| (real, 1)).collect();
    Ok(text + "}\n" + &web_service(&all))
}

fn crowd(services: u32) -> String {
    let mut text = String::new();
    for service in 0..services {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "virtual_server {} {} {{\n    lvs_sched wlc\n    lvs_method TUN\n    protocol TCP\n",
            VIP.ip(),
            10_000 + service
        );
        for real in 0..REALS {
            let address = Ipv4Addr::from_bits(NETWORK.to_bits() + service * REALS + real);
            let _ = writeln!(text, "    real_server {address} 80 {{\n        weight 1\n    }}");
        }
        text += "}\n";
    }
    text
}
