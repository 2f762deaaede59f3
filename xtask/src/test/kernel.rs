//! `cargo xtask test --kernel`: does it work on another kernel?

use std::{collections::HashMap, path::PathBuf, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Summary;
use crate::{
    cargo,
    vm::{Kernel, Machine},
};

/// Test program, and the test in it that is run alone. First whether the kernel takes the program at all: without that
/// nothing else says much.
const STEPS: [(&str, Option<&str>); 3] = [
    ("packets", Some("kernel::the_kernel_takes_the_program")),
    ("packets", None),
    ("forwarding", Some("a_thousand_requests_spread_by_weight_and_none_passes_the_kernel")),
];

pub fn test(kernel: Kernel, filter: Option<&str>) -> Result<()> {
    let machine = Machine::new(kernel)?;
    let programs = build()?;
    let mut script = format!("export LAB_SLOWNESS={}\n", if machine.emulated { 10 } else { 1 });
    for (name, test) in STEPS {
        let program = programs.get(name).with_context(|| format!("cargo built no test {name}"))?;
        let only = match (test, filter) {
            (Some(test), _) => format!("--exact {test}"),
            (None, Some(filter)) => filter.to_owned(),
            (None, None) => String::new(),
        };
        script += &format!("{} --show-output {only}\n", program.display());
    }

    println!("{}", machine.describe());
    let mut summary = Summary::default();
    machine.run(&script, |line| {
        summary.read(line);
        Ok(())
    })?;
    print!("{summary}");
    // Its exit code says nothing: what it said counts.
    ensure!(summary.results == STEPS.len(), "{}: it ended before all tests had run", machine.describe());
    ensure!(summary.failed == 0, "{}: not everything passed", machine.describe());
    ensure!(summary.idle == 0, "{}: a test program has no test of such a name", machine.describe());
    Ok(())
}

/// Everything, as for all tests. Where each test program is.
fn build() -> Result<HashMap<String, PathBuf>> {
    let mut command = cargo();
    command.args(["build", "--workspace", "--bins", "--tests"]);
    command.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let output = command.output().context("running cargo")?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    let messages = String::from_utf8(output.stdout)?;
    let program = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_test = message["target"]["kind"][0].as_str()? == "test";
        let name = message["target"]["name"].as_str()?.to_owned();
        is_test.then(|| Some((name, message["executable"].as_str()?.into())))?
    };
    Ok(messages.lines().filter_map(program).collect())
}
