//! With `use_vmac`: what do clients and the switch see of the virtual router's MAC, and do they get through by it?

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use lvs_tests::{
    Capture, Director, Keepalived, Load, Mac, Need, Node, PACE, PATIENCE, Scene, Stamp, VIP, Vrrp, ask,
    believes, get, masters, outage, require, serve, turns, wait_for, wait_until_believed, web_service,
};

/// Of VRID 51 over IPv4 and over IPv6.
const VIRTUAL_MAC: Mac = Mac([0, 0, 0x5e, 0, 1, 51]);
const VIRTUAL_MAC6: Mac = Mac([0, 0, 0x5e, 0, 2, 51]);

fn vrrp(priority: u8) -> Vrrp {
    Vrrp::v3(priority, Duration::from_millis(100))
}

/// Who sent adverts, in order.
fn advertisers(watch: &Capture) -> Vec<(IpAddr, Mac)> {
    turns(watch.adverts().into_iter().map(|advert| (advert.source, advert.mac)))
}

/// Behind which host the switch believes the MAC to be.
fn switch_port(scene: &Scene, mac: Mac) -> Result<Option<String>> {
    let table = scene.lab.switch().run("bridge fdb show br br0 dynamic")?;
    let line = table.lines().find(|line| line.starts_with(&mac.to_string()));
    let port = line.and_then(|line| line.split_whitespace().skip_while(|word| *word != "dev").nth(1));
    Ok(port.map(str::to_owned))
}

fn lets_in(node: &Node, mac: Mac) -> Result<bool> {
    Ok(node.run("bridge fdb show dev eth0")?.contains(&mac.to_string()))
}

#[test]
fn a_takeover_moves_the_switchs_port_and_leaves_the_clients_arp_entry_as_it_is() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let service = web_service(&scene.reals.iter().map(|real| (real, 1)).collect::<Vec<_>>());
    let text = |priority| vrrp(priority).text_with("    use_vmac vrrp.51\n") + &service;
    let watch = Capture::start(&scene.watcher, "eth0")?;
    let mut lb1 = Director::start(&scene.lb1, &text(150))?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    let lb2 = Director::start(&scene.lb2, &text(100))?;
    lb2.wait_for_state("BACKUP", PATIENCE)?;
    scene.wait_for_service(PATIENCE)?;
    wait_until_believed(&[&scene.client], VIRTUAL_MAC, PATIENCE)?;
    assert_eq!(switch_port(&scene, VIRTUAL_MAC)?.as_deref(), Some("lb1"));

    let load = Load::start(&scene.client, VIP, PACE)?;
    thread::sleep(Duration::from_millis(300));
    let killed = Stamp::now();
    lb1.kill()?;
    lb2.wait_for_state("MASTER", PATIENCE)?;
    let passed = |director: &Director| -> Result<u64> {
        let status = director.status()?;
        Ok(status.services.iter().flat_map(|service| &service.reals).map(|real| real.packets).sum())
    };
    wait_for("packets through lb2", PATIENCE, || Ok((passed(&lb2)? > 100).then_some(())))?;
    let requests = load.finish()?;

    assert_eq!(switch_port(&scene, VIRTUAL_MAC)?.as_deref(), Some("lb2"));
    assert_eq!(believes(&scene.client)?, Some(VIRTUAL_MAC.to_string()));
    // Whatever said where the address is, from the first announcement on, said the same.
    let told = watch.arps().into_iter().filter(|arp| arp.sender.1 == *VIP.ip()).map(|arp| arp.sender.0);
    assert_eq!(turns(told), [VIRTUAL_MAC]);
    let [one, two] = [&scene.lb1, &scene.lb2].map(Node::address).map(IpAddr::from);
    assert_eq!(advertisers(&watch), [(one, VIRTUAL_MAC), (two, VIRTUAL_MAC)]);
    // A killed master forwards until its successor's first advert moves the port.
    let outage = outage(&requests, killed)?;
    println!("killed at 100 ms: {outage:?}");
    ensure!(outage.failed == 0, "{outage:?}");
    Ok(())
}

#[test]
fn a_handover_by_virtual_mac_costs_no_request() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let service = web_service(&scene.reals.iter().map(|real| (real, 1)).collect::<Vec<_>>());
    let text = |priority| vrrp(priority).text_with("    use_vmac\n") + &service;
    let mut lb1 = Director::start(&scene.lb1, &text(150))?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    let lb2 = Director::start(&scene.lb2, &text(100))?;
    lb2.wait_for_state("BACKUP", PATIENCE)?;
    scene.wait_for_service(PATIENCE)?;
    let load = Load::start(&scene.client, VIP, PACE)?;
    thread::sleep(Duration::from_millis(300));
    let started = Stamp::now();
    lb1.order(&["failover"])?;
    lb2.wait_for_state("MASTER", PATIENCE)?;
    lb1.order(&["failback"])?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    lb1.stop()?;
    lb2.wait_for_state("MASTER", PATIENCE)?;
    thread::sleep(Duration::from_millis(300));
    let outage = outage(&load.finish()?, started)?;
    println!("handed over, back, and stopped: {outage:?}");
    ensure!(outage.failed == 0, "{outage:?}");
    assert_eq!(believes(&scene.client)?, Some(VIRTUAL_MAC.to_string()));
    Ok(())
}

#[test]
fn a_service_of_the_director_itself_is_reached_by_the_virtual_mac() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    // Else its kernel asks for the client in the name of the VIP, at its own MAC.
    scene.lb1.sysctl("ipv4.conf.all.arp_announce", "2")?;
    let mut lb1 = Director::start(&scene.lb1, &vrrp(150).text_with("    use_vmac\n"))?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    // No packet of it is balanced.
    let _server = serve(&scene.lb1)?;
    scene.wait_for_service(PATIENCE)?;
    assert_eq!(scene.client.in_ns(|| Ok(get(VIP, None)?))?, "lb1");
    assert_eq!(believes(&scene.client)?, Some(VIRTUAL_MAC.to_string()));
    lb1.stop()
}

#[test]
fn with_vmac_xmit_base_adverts_have_the_interfaces_mac_and_nothing_is_left_after_a_stop() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let watch = Capture::start(&scene.watcher, "eth0")?;
    let mut lb1 = Director::start(&scene.lb1, &vrrp(150).text_with("    use_vmac\n"))?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    lb1.reload(&vrrp(150).text_with("    use_vmac\n    vmac_xmit_base\n"))?;
    let (address, own) = (IpAddr::from(scene.lb1.address()), scene.lb1.mac());
    wait_for("adverts by the interface's own MAC", PATIENCE, || {
        Ok((advertisers(&watch) == [(address, VIRTUAL_MAC), (address, own)]).then_some(()))
    })?;
    assert_eq!(lb1.state()?, "MASTER");
    ask(&scene.client)?;
    wait_until_believed(&[&scene.client], VIRTUAL_MAC, PATIENCE)?;
    wait_for("the interface to let the MAC in", PATIENCE, || {
        Ok(lets_in(&scene.lb1, VIRTUAL_MAC)?.then_some(()))
    })?;
    lb1.reload(&vrrp(150).text())?;
    ensure!(!lets_in(&scene.lb1, VIRTUAL_MAC)?, "no word asks for it");
    wait_until_believed(&[&scene.client], own, PATIENCE)?;
    lb1.reload(&vrrp(150).text_with("    use_vmac\n"))?;
    wait_for("the interface to let the MAC in", PATIENCE, || {
        Ok(lets_in(&scene.lb1, VIRTUAL_MAC)?.then_some(()))
    })?;
    // What a killed one has left is found by the next start, and by `lvsd unload`.
    lb1.kill()?;
    ensure!(lets_in(&scene.lb1, VIRTUAL_MAC)?, "forwarding goes on");
    lb1.unload()?;
    ensure!(!lets_in(&scene.lb1, VIRTUAL_MAC)?, "it is let in after unload");
    lb1.start_again()?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    lb1.stop()?;
    ensure!(!lets_in(&scene.lb1, VIRTUAL_MAC)?, "it is let in after the stop");
    Ok(())
}

#[test]
fn over_ipv6_the_virtual_mac_is_another() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    for node in [&scene.client, &scene.lb1] {
        node.enable_ipv6()?;
    }
    let watch = Capture::start(&scene.watcher, "eth0")?;
    let answers = Capture::start(&scene.client, "eth0")?;
    let text = vrrp(150).text_with("    use_vmac\n").replace(&format!("{}/24", VIP.ip()), "fd77::100/64");
    let lb1 = Director::start(&scene.lb1, &text)?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    // Its kernel says that nobody listens there.
    let vip = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100);
    let port = SocketAddr::from((vip, 81));
    wait_for("a refused connection", PATIENCE, || {
        let connect = || Ok(TcpStream::connect_timeout(&port, Duration::from_millis(500)));
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        Ok(scene.client.in_ns(connect)?.is_err_and(refused).then_some(()))
    })?;
    // What the client believes now is another matter: the kernel has asked for it in the name of the address.
    let answered = answers.answers_for(vip).into_iter().map(|(_, mac)| mac);
    assert_eq!(turns(answered), [VIRTUAL_MAC6]);
    assert_eq!(advertisers(&watch), [(IpAddr::from(scene.lb1.link_local()), VIRTUAL_MAC6)]);
    let announced = watch.advertisements().into_iter().map(|it| it.mac);
    assert_eq!(turns(announced), [VIRTUAL_MAC6]);
    Ok(())
}

#[test]
fn keepalived_without_use_vmac_obeys_adverts_from_the_virtual_mac() -> Result<()> {
    beside_keepalived(&[Need::Lab, Need::Lvsd, Need::Keepalived], "")
}

#[test]
fn keepalived_with_use_vmac_and_lvsd_share_one_virtual_mac() -> Result<()> {
    beside_keepalived(&[Need::Lab, Need::Lvsd, Need::Keepalived, Need::Macvlan], "    use_vmac vrrp.51\n")
}

fn beside_keepalived(needs: &[Need], lines: &str) -> Result<()> {
    if !require(needs) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let watch = Capture::start(&scene.watcher, "eth0")?;
    let mut lvsd = Director::start(&scene.lb1, &vrrp(150).text_with("    use_vmac\n"))?;
    lvsd.wait_for_state("MASTER", PATIENCE)?;
    let mut keepalived = Keepalived::start(&scene.lb2, &vrrp(100).text_with(lines))?;
    ask(&scene.client)?;
    wait_until_believed(&[&scene.client], VIRTUAL_MAC, PATIENCE)?;
    thread::sleep(Duration::from_secs(2));
    let [one, two] = [&scene.lb1, &scene.lb2].map(Node::address).map(IpAddr::from);
    let expect = |wanted: &[IpAddr]| {
        wait_for(&format!("{} masters", wanted.len()), PATIENCE, || {
            Ok((masters(&watch.adverts()) == wanted).then_some(()))
        })
    };
    expect(&[one])?;
    lvsd.stop()?;
    expect(&[one, two])?;
    lvsd.start_again()?;
    expect(&[one, two, one])?;
    wait_until_believed(&[&scene.client], VIRTUAL_MAC, PATIENCE)?;
    keepalived.stop()
}
