//! What becomes of what is a director's own when something else changes it?

use std::{ffi::CString, fs, io, os::unix::ffi::OsStrExt as _, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData, MapInfo};
use lvs_ebpf_common::{Address, Real, maps};
use lvs_tests::{Director, Need, PATIENCE, Scene, VIP, Vrrp, get, require, wait_for, web_service};
use nix::libc;

const ROUTE: &str = "192.0.2.0/24";

#[test]
fn tables_attachments_pins_addresses_and_routes_are_put_back_and_counted() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let routes = format!("    virtual_routes {{\n        {ROUTE} via {}\n    }}\n", scene.client.address());
    let reals: Vec<_> = scene.reals.iter().map(|real| (real, 1)).collect();
    let config = Vrrp::v3(150, Duration::from_millis(100)).text_with(&routes) + &web_service(&reals);
    let mut lb1 = Director::start(&scene.lb1, &config)?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    scene.wait_for_service(PATIENCE)?;
    wait_for("the address and the route", PATIENCE, || {
        Ok((has_address(&scene)? && has_route(&scene)?).then_some(()))
    })?;
    ensure!(lb1.status()?.drifts.values().all(|count| *count == 0), "{:?}", lb1.status()?.drifts);

    let bpf = lb1.run_dir().join("bpf");
    let tables = bpf.join(format!("maps-v{}", maps::LAYOUT));
    let wiped = wipe_reals(&tables)?;
    let tables_restored = wait_until_counted(&lb1, "tables", wiped)?;
    ensure!(tables_restored == wiped, "{tables_restored} elements were put back, {wiped} were wiped");
    all_answer(&scene)?;

    let links: Vec<_> =
        fs::read_dir(bpf.join("links"))?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    for link in &links {
        detach(link)?;
    }
    wait_until_counted(&lb1, "attachments", links.len() as u64)?;
    all_answer(&scene)?;

    let pins: Vec<_> = fs::read_dir(&tables)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    for pin in pins.iter().chain(&links) {
        fs::remove_file(pin)?;
    }
    fs::remove_dir(&tables)?;
    wait_until_counted(&lb1, "pins", (pins.len() + links.len()) as u64)?;
    all_answer(&scene)?;
    let packets = packets(&lb1)?;
    lb1.hand_over()?;
    lb1.start_again()?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    ensure!(self::packets(&lb1)? >= packets, "the next daemon has not found the tables");

    wait_for("the address and the route", PATIENCE, || {
        Ok((has_address(&scene)? && has_route(&scene)?).then_some(()))
    })?;
    // The daemon that has just started need not have looked yet, and would count nothing. What it has put back it knows,
    // and so it does all that was there by then.
    wait_for("a route put back and counted", PATIENCE, || {
        let counted = lb1.status()?.drifts.get("routes").is_some_and(|count| *count > 0);
        if !counted && has_route(&scene)? {
            scene.lb1.run(&format!("ip route del {ROUTE}"))?;
        }
        Ok(counted.then_some(()))
    })?;
    wait_for("the route again", PATIENCE, || Ok(has_route(&scene)?.then_some(())))?;
    scene.lb1.run(&format!("ip address del {}/24 dev eth0", VIP.ip()))?;
    wait_until_counted(&lb1, "addresses", 1)?;
    ensure!(has_address(&scene)?);
    all_answer(&scene)?;

    // Tables that no program uses serve nobody, and may be too small for the file.
    let reals = || anyhow::Ok(MapInfo::from_pin(tables.join(maps::REALS))?.id());
    let before = reals()?;
    lb1.kill()?;
    links.iter().try_for_each(fs::remove_file)?;
    lb1.start_again()?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    ensure!(reals()? != before, "the tables were not made anew");
    scene.wait_for_service(PATIENCE)
}

/// Takes from all real servers their address and where they are; how many there were.
fn wipe_reals(tables: &Path) -> Result<u64> {
    let map = Map::Array(MapData::from_pin(tables.join(maps::REALS))?);
    let mut reals: Array<_, Real> = Array::try_from(map)?;
    let used: Vec<_> = (0..maps::REAL_SLOTS)
        .filter(|index| reals.get(index, 0).is_ok_and(|it| it.address != Address::default()))
        .collect();
    for index in &used {
        reals.set(*index, Real::default(), 0)?;
    }
    ensure!(!used.is_empty());
    Ok(used.len() as u64)
}

/// As `bpftool link detach pinned PATH`.
fn detach(link: &Path) -> Result<()> {
    const BPF_OBJ_GET: libc::c_int = 7;
    const BPF_LINK_DETACH: libc::c_int = 34;
    let path = CString::new(link.as_os_str().as_bytes())?;
    let by_path = [path.as_ptr() as u64, 0];
    let fd = bpf(BPF_OBJ_GET, &by_path)?;
    let detached = bpf(BPF_LINK_DETACH, &[fd as u64, 0]);
    // SAFETY: the descriptor is ours and not used any more.
    unsafe { libc::close(fd) };
    detached.map(drop).context("detaching the program")
}

fn bpf(command: libc::c_int, attributes: &[u64; 2]) -> io::Result<libc::c_int> {
    // SAFETY: the attributes are as long as said, and what they point to lives through the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

fn wait_until_counted(director: &Director, name: &str, least: u64) -> Result<u64> {
    wait_for(&format!("{least} {name} put back"), PATIENCE, || {
        let count = director.status()?.drifts.get(name).copied().context("no such counter")?;
        Ok((count >= least).then_some(count))
    })
}

fn all_answer(scene: &Scene) -> Result<()> {
    scene
        .client
        .in_ns(|| (30_000..30_030).try_for_each(|port| get(VIP, Some(port)).map(drop).context("a request")))
}

fn packets(director: &Director) -> Result<u64> {
    let status = director.status()?;
    Ok(status.services.iter().flat_map(|service| &service.reals).map(|real| real.packets).sum())
}

fn has_address(scene: &Scene) -> Result<bool> {
    Ok(scene.lb1.run("ip -4 address show dev eth0")?.contains(&format!("{}/24", VIP.ip())))
}

fn has_route(scene: &Scene) -> Result<bool> {
    Ok(!scene.lb1.run(&format!("ip route show {ROUTE}"))?.is_empty())
}
