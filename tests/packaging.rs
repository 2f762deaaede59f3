//! Do the files that go onto a host hold together: unit, example configuration, provisioning, Vagrantfile?

use std::{
    env, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context as _, Result, ensure};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| path.to_owned())
}

/// What a tool says that must succeed; nothing where it is absent.
fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_owned();
    let output = match command.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            lvs_tests::skip(&format!("{} is not installed", program.display()));
            return Ok(String::new());
        }
        output => output.with_context(|| program.display().to_string())?,
    };
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success(), "{}: {said}", output.status);
    Ok(said)
}

/// A directory that is gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let path = env::temp_dir().join(format!("lvs-{name}-{}", process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays in /tmp harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_provisioning_script_is_valid_bash() -> Result<()> {
    run(Command::new("bash").arg("-n").arg(root().join("packaging/provision.sh"))).map(drop)
}

#[test]
fn systemd_accepts_the_unit() -> Result<()> {
    let scratch = Scratch::new("unit")?;
    let unit = scratch.0.join("lvsd.service");
    // systemd-analyze wants the program to exist.
    fs::write(&unit, read("packaging/lvsd.service")?.replace("/usr/sbin/lvsd", "/bin/true"))?;
    let said = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit))?;
    // An unknown key or a bad value is reported, and still counts as success.
    ensure!(!said.contains("lvsd.service"), "{said}");
    Ok(())
}

#[test]
fn the_unit_leaves_the_daemon_in_the_mount_namespace_of_the_host() -> Result<()> {
    // systemd.exec(5): each of these makes a mount namespace, which would take the pinned programs with it.
    let prefixes =
        ["Private", "Protect", "ReadOnly", "ReadWrite", "Inaccessible", "Bind", "Root", "DynamicUser"];
    for line in read("packaging/lvsd.service")?.lines() {
        let found = prefixes.iter().find(|prefix| line.starts_with(**prefix));
        ensure!(found.is_none(), "{line}");
    }
    Ok(())
}

/// `bind_port` takes every port, and the bounding set limits root too.
#[test]
fn the_unit_lets_checks_bind_to_low_ports() -> Result<()> {
    let unit = read("packaging/lvsd.service")?;
    let allowed =
        unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).context("no limit")?;
    ensure!(allowed.split(' ').any(|it| it == "CAP_NET_BIND_SERVICE"), "{allowed}");
    Ok(())
}

#[test]
fn vagrant_accepts_the_lab() -> Result<()> {
    let scratch = Scratch::new("vagrant")?;
    let mut validate = Command::new("vagrant");
    validate.args(["validate", "--ignore-provider"]).current_dir(root());
    validate.env("VAGRANT_HOME", &scratch.0).env("VAGRANT_DOTFILE_PATH", scratch.0.join("dot"));
    run(&mut validate).map(drop)
}

#[test]
fn the_lab_has_the_addresses_of_the_example_configuration() -> Result<()> {
    let (lab, example) = (read("Vagrantfile")?, read("packaging/lvsd.conf")?);
    for word in ["virtual_server", "real_server"] {
        let mut lines = example.lines().filter_map(|line| line.trim().strip_prefix(word)).peekable();
        ensure!(lines.peek().is_some(), "no {word}");
        for line in lines {
            let address = line.split_whitespace().next().context(word)?;
            ensure!(lab.contains(&format!("\"{address}\"")), "{address} is not in the Vagrantfile");
        }
    }
    Ok(())
}
