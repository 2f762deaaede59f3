//! Is a real server found that answers at its own address and not at the virtual one?

use std::{
    fmt::Write as _,
    net::{SocketAddrV4, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{
    CHECK_TIME, Director, GUE_PORT, Need, PATIENCE, RealServer, Scene, VIP, Vrrp, get, require, service_with,
    wait_for,
};

const CHECK_VIP: &str = "    check_vip\n";
const UDP_PORT: u16 = 5001;

#[test]
fn by_direct_routing_each_way_not_to_answer_at_the_virtual_address_is_told_on_master_and_backup() -> Result<()>
{
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut scene = Scene::new()?;
    let lb1 = Director::start(&scene.lb1, &direct(&scene, 150, CHECK_VIP))?;
    let lb2 = Director::start(&scene.lb2, &direct(&scene, 100, CHECK_VIP))?;
    let both = [&lb1, &lb2];
    lb1.wait_for_state("MASTER", PATIENCE)?;
    scene.wait_for_service(PATIENCE)?;
    for director in both {
        wait_until_checked(director, ["up", "up", "up"])?;
    }

    // One has no such address, another would send the packets on, and a third listens elsewhere.
    let [first, second, third] = scene.reals.as_mut_slice() else { anyhow::bail!("not three real servers") };
    forget_vip(first)?;
    second.node.sysctl("ipv4.ip_forward", "1")?;
    forget_vip(second)?;
    third.kill()?;
    let own = SocketAddrV4::new(third.node.address(), VIP.port());
    let mut command = third.node.lab_program("lab-http");
    command.args([third.name(), &own.to_string()]);
    let _elsewhere = third.node.spawn("elsewhere", command)?;
    third.node.in_ns(|| wait_for("the HTTP server", PATIENCE, || Ok(get(own, None).ok().map(drop))))?;
    for director in both {
        wait_until_checked(director, ["down", "down", "down"])?;
        let errors = errors(director)?;
        for (error, expected) in errors.iter().zip([
            "no answer from 10.77.0.100:80 by DR",
            "packets to 10.77.0.100:80 are passed on: the real server does not own the address",
            // It may have been met between its two servers.
            "connection refused",
        ]) {
            ensure!(error.contains(expected), "{}: {errors:?}", director.node().name());
        }
    }

    // Their own addresses are fine all the while.
    for (director, priority) in [(&lb1, 150), (&lb2, 100)] {
        director.reload(&direct(&scene, priority, ""))?;
        wait_until_checked(director, ["up", "up", "up"])?;
    }
    thread::sleep(CHECK_TIME * 3);
    for (director, priority) in [(&lb1, 150), (&lb2, 100)] {
        wait_until_checked(director, ["up", "up", "up"])?;
        director.reload(&direct(&scene, priority, CHECK_VIP))?;
        wait_until_checked(director, ["down", "down", "down"])?;
    }
    // The address is back on one of them.
    scene.reals[0].node.run(&format!("ip address add {}/32 dev lo", VIP.ip()))?;
    for director in both {
        wait_until_checked(director, ["up", "down", "down"])?;
    }
    Ok(())
}

#[test]
fn a_tunnels_end_without_the_virtual_address_leaves_the_pool() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let methods = ["ipip", "gue", "gre"];
    let ends = scene.reals.iter().zip(methods).map(|(real, method)| real.end_tunnel(method));
    let _ends = ends.collect::<Result<Vec<_>>>()?;
    let lb1 = Director::start(&scene.lb1, &tunnels(&scene, &methods))?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    wait_until_checked(&lb1, ["up", "up", "up"])?;
    let mut expected = ["up", "up", "up"];
    for (index, real) in scene.reals.iter().enumerate() {
        forget_vip(real)?;
        expected[index] = "down";
        wait_until_checked(&lb1, expected)?;
    }
    let errors = errors(&lb1)?;
    ensure!(
        errors.iter().all(|error| error.starts_with("no answer from 10.77.0.100:80 by TUN")),
        "{errors:?}"
    );
    Ok(())
}

#[test]
fn an_answer_over_udp_must_come_from_the_virtual_address() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let done = &AtomicBool::new(false);
    thread::scope(|scope| {
        // As servers that listen at all addresses and do not care by which they are asked.
        let echoes: Vec<_> = scene
            .reals
            .iter()
            .zip([true, false, true])
            .map(|(real, careful)| scope.spawn(move || echo(real, careful, done)))
            .collect();
        let judged = (|| {
            let lb1 = Director::start(&scene.lb1, &udp(&scene))?;
            lb1.wait_for_state("MASTER", PATIENCE)?;
            wait_until_checked(&lb1, ["up", "down", "up"])?;
            let errors = errors(&lb1)?;
            ensure!(errors[0].contains("no answer from 10.77.0.100:5001"), "{errors:?}");
            forget_vip(&scene.reals[0])?;
            wait_until_checked(&lb1, ["down", "down", "up"])
        })();
        done.store(true, Ordering::Relaxed);
        for echo in echoes {
            echo.join().map_err(|_| anyhow::anyhow!("an echo panicked"))??;
        }
        judged
    })
}

fn direct(scene: &Scene, priority: u8, line: &str) -> String {
    let reals: Vec<_> = scene.reals.iter().map(|real| (real, 1)).collect();
    Vrrp::v3(priority, Duration::from_millis(100)).text() + &service_with(line, &reals)
}

fn tunnels(scene: &Scene, methods: &[&str; 3]) -> String {
    let mut text = direct(scene, 150, CHECK_VIP);
    for (real, method) in scene.reals.iter().zip(methods) {
        let port = if *method == "gue" { format!(" port {GUE_PORT}") } else { String::new() };
        let head = format!("real_server {} {} {{\n", real.node.address(), VIP.port());
        text = text.replace(&head, &format!("{head}        lvs_method TUN type {method}{port}\n"));
    }
    text
}

fn udp(scene: &Scene) -> String {
    let mut text = Vrrp::v3(150, Duration::from_millis(100)).text();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "virtual_server {} {UDP_PORT} {{\n    lvs_sched mh\n    lvs_method DR\n    protocol UDP\n{CHECK_VIP}",
        VIP.ip()
    );
    for real in &scene.reals {
        let _ = write!(
            text,
            "    real_server {} {UDP_PORT} {{\n        UDP_CHECK {{\n            payload 0102\n            \
             require_reply 0102\n            delay_loop 0.2\n            connect_timeout 0.5\n            \
             retry 1\n            delay_before_retry 0.2\n            warmup 0\n        }}\n    }}\n",
            real.node.address()
        );
    }
    text + "}\n"
}

/// Answers from the address that was asked, or, not `careful`, from whatever the kernel chooses.
fn echo(real: &RealServer, careful: bool, done: &AtomicBool) -> Result<()> {
    real.node.in_ns(|| {
        let addresses = if careful { vec![real.node.address(), *VIP.ip()] } else { vec![[0; 4].into()] };
        let sockets = addresses.into_iter().map(|address| {
            let socket = UdpSocket::bind((address, UDP_PORT))?;
            socket.set_read_timeout(Some(Duration::from_millis(10)))?;
            Ok(socket)
        });
        let sockets = sockets.collect::<std::io::Result<Vec<_>>>()?;
        let mut asked = [0; 100];
        while !done.load(Ordering::Relaxed) {
            for socket in &sockets {
                if let Ok((length, from)) = socket.recv_from(&mut asked) {
                    // An address that was taken away cannot answer.
                    let _ = socket.send_to(&asked[..length], from);
                }
            }
        }
        Ok(())
    })
}

fn forget_vip(real: &RealServer) -> Result<()> {
    real.node.run(&format!("ip address del {}/32 dev lo", VIP.ip())).map(drop)
}

/// Every check has a result, and the real servers are so.
fn wait_until_checked(director: &Director, states: [&str; 3]) -> Result<()> {
    wait_for(&format!("real servers {states:?} on {}", director.node().name()), PATIENCE, || {
        let status = director.status()?;
        let service = status.services.first().context("no service")?;
        let checked =
            service.reals.iter().flat_map(|real| &real.checks).all(|check| check.state != "unchecked");
        let as_wanted = service.reals.iter().map(|real| real.state.as_str()).eq(states);
        Ok((checked && as_wanted).then_some(()))
    })
}

/// What is said of those that are down.
fn errors(director: &Director) -> Result<Vec<String>> {
    let status = director.status()?;
    let service = status.services.first().context("no service")?;
    Ok(service.reals.iter().flat_map(|real| &real.checks).filter_map(|check| check.error.clone()).collect())
}
