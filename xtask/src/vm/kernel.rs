//! Where does the kernel of a guest come from?
//!
//! From Debian's security updates, by this machine's own mirror of them. apt keeps what it knows of their other suites
//! beside the kernels: its own lists are not touched.

use std::{
    cmp::Reverse,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::run_visibly;

/// Debian's long-term kernels that a director should run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kernel {
    #[value(name = "5.10")]
    V5_10,
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
}

impl Kernel {
    fn version(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    fn suite(self) -> &'static str {
        match self {
            Self::V5_10 => "bullseye-security",
            Self::V6_1 | Self::V6_12 => "bookworm-security",
        }
    }

    /// The image, with its modules where virtme-ng looks for them.
    pub fn fetch(self, directory: &Path) -> Result<PathBuf> {
        let tree = directory.join("kernels").join(self.version());
        if let Some(image) = image_below(&tree) {
            return Ok(image);
        }
        let apt = Apt::new(directory, self.suite())?;
        let packages = apt.names(&format!("linux-image-{}.", self.version()))?;
        let package = newest(&packages).with_context(|| {
            format!(
                "no kernel {} for the cloud is in {} of this machine's mirror of Debian's security updates",
                self.version(),
                self.suite()
            )
        })?;
        eprintln!("fetching {package}");
        let file = apt.download(package, directory)?;
        // It has its name when it is whole.
        let new = directory.join("kernels").join(format!("{}.new", self.version()));
        // What an interrupted run has left.
        let _ = fs::remove_dir_all(&new);
        fs::create_dir_all(&new)?;
        run_visibly(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&new))?;
        fs::rename(&new, &tree)?;
        fs::remove_file(&file)?;
        image_below(&tree).with_context(|| format!("{package} has no image"))
    }
}

fn image_below(tree: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(tree.join("boot")).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
}

/// Of `linux-image-6.1.0-56-cloud-amd64` and its kin the one with the highest numbers. Those for the cloud are small and
/// have all that virtual machines need.
fn newest(packages: &[String]) -> Option<&String> {
    let numbers = |name: &str| -> Vec<u32> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    packages.iter().filter(|name| name.ends_with("-cloud-amd64")).min_by_key(|name| Reverse(numbers(name)))
}

/// apt with one source.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(directory: &Path, suite: &str) -> Result<Self> {
        let mirror = match security_mirror()? {
            Some(mirror) => mirror,
            None => {
                // It knows of its sources only what it has updated.
                run_visibly(Command::new("apt-get").args(["update", "-q"]))?;
                security_mirror()?.context(
                    "none of apt's sources is one of Debian's security updates (`bookworm-security`): enable it, \
                     the kernels come from there",
                )?
            }
        };
        let state = directory.join("apt").join(suite);
        fs::create_dir_all(state.join("lists/partial"))?;
        fs::create_dir_all(state.join("cache/archives/partial"))?;
        let source = state.join("sources.list");
        fs::write(&source, format!("deb {mirror} {suite} main\n"))?;
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        let apt = Self {
            options: vec![
                option("Dir::Etc::SourceList", &source),
                option("Dir::Etc::SourceParts", Path::new("/dev/null")),
                option("Dir::State::Lists", &state.join("lists")),
                option("Dir::Cache", &state.join("cache")),
                "APT::Architecture=amd64".to_owned(),
                // Its own user may not write below a home directory.
                "APT::Sandbox::User=root".to_owned(),
            ],
        };
        run_visibly(apt.command("apt-get").args(["update", "-q"]))
            .with_context(|| format!("{suite} of Debian's security updates is not to be had"))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(self.options.iter().flat_map(|option| ["-o", option]));
        command
    }

    fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let output = self.command("apt-cache").args(["pkgnames", prefix]).output()?;
        ensure!(output.status.success(), "apt-cache: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
    }

    fn download(&self, package: &str, directory: &Path) -> Result<PathBuf> {
        run_visibly(self.command("apt-get").args(["download", "-q", package]).current_dir(directory))?;
        let entries = fs::read_dir(directory)?.flatten();
        let file = entries.map(|entry| entry.path()).find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{package}_")))
        });
        file.with_context(|| format!("apt-get left no file of {package}"))
    }
}

/// Where this machine has Debian's security updates from.
fn security_mirror() -> Result<Option<String>> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(SITE) $(RELEASE)"])
        .output()
        .context("Debian's kernels are fetched by apt-get")?;
    let text = String::from_utf8(output.stdout)?;
    let site = |line: &str| {
        let (site, release) = line.split_once(' ')?;
        release.ends_with("-security").then(|| site.to_owned())
    };
    Ok(text.lines().find_map(site))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_that_of_the_highest_numbers_for_the_cloud() {
        let names = [
            "linux-image-6.12.9+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.118+deb12-rt-amd64",
            "linux-image-6.12.119+deb12-cloud-amd64-unsigned",
        ]
        .map(str::to_owned);
        assert_eq!(newest(&names).unwrap(), "linux-image-6.12.117+deb12-cloud-amd64");
        assert_eq!(newest(&[]), None);
    }
}
