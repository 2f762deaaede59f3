//! How does a command run on another kernel than this machine's?
//!
//! virtme-ng boots a kernel of Debian's in QEMU on this machine's own files, of which the guest has a copy-on-write view:
//! what was built here runs there, nothing is installed into a guest. Its output comes back as it is said.

mod kernel;
mod tools;

use std::{
    env,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow};

pub use kernel::Kernel;

use crate::build;

/// A machine that is switched on for one command.
pub struct Machine {
    vng: PathBuf,
    image: PathBuf,
    script: PathBuf,
    pub cpus: u32,
    /// Further words of the kernel's command line.
    pub boot: String,
    /// Further words of QEMU's.
    pub qemu: String,
    /// Even where this machine could do better.
    pub emulated: bool,
    /// One machine at a time.
    _lock: File,
}

/// virtme-ng brings output back only from guests whose udev names the ports that it is written to. This one is found by its
/// name in /sys.
const PORT: &str = "-device virtio-serial-pci,id=said -chardev file,id=said,path=/proc/self/fd/1 \
                    -device virtserialport,bus=said.0,name=said,chardev=said";
const FIND_PORT: &str = r#"for port in /sys/class/virtio-ports/*; do
    if [ "$(cat "$port/name")" = said ]; then exec > "/dev/${port##*/}" 2>&1; fi
done
"#;
/// A guest that hangs ends after this many seconds.
const LIMIT: &str = "3000";

impl Machine {
    /// Installs and fetches what is missing. Waits for another machine to end.
    pub fn new(kernel: Kernel) -> Result<Self> {
        let directory = directory()?;
        let lock = File::create(directory.join("lock"))?;
        lock.lock()?;
        Ok(Self {
            vng: tools::find_or_install(&directory)?,
            image: kernel.fetch(&directory)?,
            script: directory.join("script"),
            cpus: 2,
            boot: String::new(),
            qemu: String::new(),
            emulated: !has_kvm(),
            _lock: lock,
        })
    }

    /// Runs a shell script as root in the root of the workspace, before the user's eyes; `said` gets each line too. The script
    /// has to say itself how it ended: without udev in the guest its exit code is not known.
    pub fn run(&self, script: &str, mut said: impl FnMut(&str) -> Result<()>) -> Result<()> {
        // QEMU opens what it writes to anew, and would empty a file: hence pipes, for both.
        let mut command = self.command(script)?;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let errors = child.stderr.take().context("no stderr")?;
        let errors = thread::spawn(move || {
            BufReader::new(errors).lines().map_while(Result::ok).for_each(|line| eprintln!("{line}"));
        });
        for line in BufReader::new(child.stdout.take().context("no stdout")?).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            println!("{line}");
            said(&line)?;
        }
        errors.join().map_err(|_| anyhow!("reading stderr panicked"))?;
        child.wait()?;
        Ok(())
    }

    fn command(&self, script: &str) -> Result<Command> {
        // Not on the command line, of which a kernel reads no more than 2,048 bytes.
        fs::write(&self.script, format!("{FIND_PORT}{script}"))?;
        let mut command = Command::new("timeout");
        // It starts another program of its own by name.
        let beside = self.vng.parent().map(Path::to_owned);
        let path = env::var_os("PATH").unwrap_or_default();
        command.env("PATH", env::join_paths(beside.into_iter().chain(env::split_paths(&path)))?);
        command.args(["--kill-after", "10", LIMIT]).arg(&self.vng).arg("--run").arg(&self.image);
        command.args(["--user", "root", "--memory", "2G", "--cpus"]).arg(self.cpus.to_string());
        command.arg("--cwd").arg(crate::root());
        // In one word: else what begins with a hyphen would be an option of its own.
        command.arg(format!("--qemu-opts={PORT} {}", self.qemu));
        if !self.boot.is_empty() {
            command.arg(format!("--append={}", self.boot));
        }
        if self.emulated {
            command.arg("--disable-kvm");
        }
        command.args(["--exec", &format!("sh {}", self.script.display())]).stdin(Stdio::null());
        Ok(command)
    }

    pub fn describe(&self) -> String {
        let kernel = self.image.file_name().unwrap_or_default().to_string_lossy();
        let kernel = kernel.trim_start_matches("vmlinuz-");
        format!("Linux {kernel} in QEMU, {}", if self.emulated { "emulated" } else { "by KVM" })
    }
}

/// Downloads lie here, for the next time.
fn directory() -> Result<PathBuf> {
    let directory = build::target_directory()?.join("vm");
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// Some machines have the device and yet cannot run a guest by it.
fn has_kvm() -> bool {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let virtualises = cpu.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"));
    virtualises && File::options().read(true).write(true).open(Path::new("/dev/kvm")).is_ok()
}
