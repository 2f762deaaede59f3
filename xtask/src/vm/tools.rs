//! Where are virtme-ng and what it needs?

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use lvs_tests::find_program;

use crate::{cargo, run_visibly, setup};

const VIRTME: &str = "virtme-ng==1.42";
const VIRTIOFSD: &str = "1.14.0";
/// Program, and the Debian package that has it.
const PROGRAMS: [(&str, &str); 2] = [("qemu-system-x86_64", "qemu-system-x86"), ("modprobe", "kmod")];
/// What virtiofsd is linked to. QEMU 7.2 brings one written in C, which virtme-ng cannot use.
const LIBRARIES: [&str; 2] = ["libcap-ng-dev", "libseccomp-dev"];

/// The path of `vng`, when all else is there too.
pub fn find_or_install(directory: &Path) -> Result<PathBuf> {
    install_packages()?;
    if find_program("virtiofsd").is_none() {
        let install = ["install", "virtiofsd", "--locked", "--version", VIRTIOFSD];
        run_visibly(cargo().args(install))
            .with_context(|| format!("it needs {}", LIBRARIES.join(" and ")))?;
    }
    if let Some(vng) = find_program("vng") {
        return Ok(vng);
    }
    let environment = directory.join("venv");
    let vng = environment.join("bin/vng");
    if !vng.exists() {
        run_visibly(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
        run_visibly(Command::new(environment.join("bin/pip")).args(["install", "--quiet", VIRTME]))?;
    }
    Ok(vng)
}

fn install_packages() -> Result<()> {
    let absent = PROGRAMS.iter().filter(|(program, _)| find_program(program).is_none());
    let mut packages: Vec<_> = absent.map(|(_, package)| *package).collect();
    if find_program("virtiofsd").is_none() {
        packages.extend(LIBRARIES);
    }
    if !has_venv() {
        packages.push("python3-venv");
    }
    setup::install_packages(&packages, "a virtual machine")
}

fn has_venv() -> bool {
    let output = Command::new("python3").args(["-c", "import ensurepip"]).output();
    output.is_ok_and(|output| output.status.success())
}
