//! `cargo xtask test`: does everything still hold?

mod kernel;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{as_root, cargo, run_visibly, setup::setup, vm::Kernel};

#[derive(clap::Args)]
pub struct Arguments {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Instead, whether the program loads, the packet tests and one lab, on a kernel of Debian's in a virtual machine
    #[arg(long)]
    kernel: Option<Kernel>,
}

pub fn test(arguments: &Arguments) -> Result<()> {
    setup()?;
    if let Some(kernel) = arguments.kernel {
        return kernel::test(kernel, arguments.filter.as_deref());
    }
    // Real programs beside the tests, built with the same features, so that nothing is compiled twice.
    run_visibly(cargo().args(["build", "--workspace", "--bins", "--tests"]))?;

    let mut summary = Summary::default();
    let mut units = cargo();
    units.args(["test", "--workspace", "--lib", "--bins"]);
    let units_passed = watch(units, arguments, &mut summary)?;
    let mut labs = as_root::cargo_test();
    labs.args(["--workspace", "--test", "*"]);
    let labs_passed = watch(labs, arguments, &mut summary)?;

    print!("{summary}");
    ensure!(units_passed && labs_passed && summary.failed == 0, "not everything passed");
    ensure!(summary.idle < summary.results, "no test has such a name");
    Ok(())
}

/// Runs tests before the user's eyes and counts what they say.
fn watch(mut command: Command, arguments: &Arguments, summary: &mut Summary) -> Result<bool> {
    command.arg("--no-fail-fast").args(&arguments.filter);
    // Measurements that passing tests print are worth seeing.
    command.args(["--", "--show-output"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("running {command:?}"))?;
    let stderr = child.stderr.take().context("no stderr")?;
    let errors = thread::spawn(move || echo(stderr, |line| eprintln!("{line}")));
    let stdout = child.stdout.take().context("no stdout")?;
    let output = echo(stdout, |line| println!("{line}"))?;
    let errors = errors.join().map_err(|_| anyhow!("reading stderr panicked"))??;
    output.iter().chain(&errors).for_each(|line| summary.read(line));
    Ok(child.wait()?.success())
}

fn echo(stream: impl Read, print: impl Fn(&str)) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for line in BufReader::new(stream).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        print(&line);
        lines.push(line);
    }
    Ok(lines)
}

#[derive(Debug, Default, PartialEq)]
struct Summary {
    /// Test programs that ran to their end.
    results: usize,
    /// Of these, those in which the filter left no test.
    idle: usize,
    passed: usize,
    failed: usize,
    ignored: usize,
    /// Of the ignored, those that are among the skipped with their reason.
    listed: usize,
    /// Test and reason. libtest counts these as passed, but for the ignored.
    skipped: BTreeMap<String, String>,
}

impl Summary {
    fn read(&mut self, line: &str) {
        if let Some((_, skipped)) = line.split_once("skipped: ") {
            let (test, reason) = skipped.split_once(": ").unwrap_or((skipped, ""));
            self.skipped.insert(test.to_owned(), reason.to_owned());
        }
        if let Some((test, reason)) = line.split_once(" ... ignored, ") {
            self.skipped.insert(test.trim_start_matches("test ").to_owned(), reason.to_owned());
            // It is counted among the ignored, not among the passed.
            self.listed += 1;
        }
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let count = |what: &str| {
            let (before, _) = result.split_once(&format!(" {what}"))?;
            before.rsplit(' ').next()?.parse::<usize>().ok()
        };
        let [passed, failed, ignored] = ["passed", "failed", "ignored"].map(|what| count(what).unwrap_or(0));
        self.results += 1;
        self.idle += usize::from(passed + failed + ignored == 0);
        self.passed += passed;
        self.failed += failed;
        self.ignored += ignored;
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f)?;
        for (test, reason) in &self.skipped {
            writeln!(f, "skipped: {test}: {reason}")?;
        }
        let skipped = self.skipped.len() + self.ignored - self.ignored.min(self.listed);
        let passed = self.passed - self.passed.min(self.skipped.len() - self.skipped.len().min(self.listed));
        writeln!(f, "{passed} passed, {} failed, {skipped} skipped", self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let mut summary = Summary::default();
        for line in [
            "test a ... ok",
            "skipped: a_lab: not root",
            "test result: ok. 6 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test b ... skipped: a_lab: not root",
            "test m ... ignored, a measurement",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            summary.read(line);
        }
        assert_eq!(
            summary.to_string(),
            "\nskipped: a_lab: not root\nskipped: m: a measurement\n8 passed, 2 failed, 2 skipped\n"
        );
        assert_eq!((summary.results, summary.idle), (2, 0));
    }

    #[test]
    fn a_program_in_which_a_filter_has_left_no_test_is_idle() {
        let mut summary = Summary::default();
        for (passed, ignored) in [(0, 0), (1, 0), (0, 1)] {
            summary.read(&format!(
                "test result: ok. {passed} passed; 0 failed; {ignored} ignored; 0 measured; 9 filtered out; finished in 0.00s"
            ));
        }
        assert_eq!((summary.results, summary.idle), (3, 1));
    }
}
