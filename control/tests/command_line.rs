//! What `lvsd` does on a command line that is not about packets.

use std::{
    io::{self, pipe},
    process::{Command, Stdio},
};

#[test]
fn a_reader_who_leaves_early_changes_neither_status_nor_standard_error() {
    for (file, status) in [("sound/checks", 0), ("broken/duplicates", 1)] {
        for format in ["text", "json"] {
            let (reader, writer) = pipe().unwrap();
            drop(reader);
            let file = format!("tests/config/{file}.conf");
            let mut lvsd = Command::new(env!("CARGO_BIN_EXE_lvsd"));
            lvsd.args(["check", &file, "--format", format]).stdout(writer).stderr(Stdio::piped());
            let ended = lvsd.output().unwrap();
            assert_eq!(ended.status.code(), Some(status), "{file} {format}");
            assert_eq!(String::from_utf8_lossy(&ended.stderr), "", "{file} {format}");
        }
    }
}

fn lvsd(arguments: &[&str]) -> io::Result<(Option<i32>, String, String)> {
    let ended = Command::new(env!("CARGO_BIN_EXE_lvsd")).args(arguments).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((ended.status.code(), text(&ended.stdout), text(&ended.stderr)))
}

#[test]
fn words_and_codes_are_explained() {
    let (status, said, _) = lvsd(&["check", "--explain", "garp_master_delay"]).unwrap();
    assert!(status == Some(0) && said.contains("vrrp_instance"), "{said}");
    let (status, said, _) = lvsd(&["check", "--explain", "E0101"]).unwrap();
    assert!(status == Some(0) && said.starts_with("E0101: a comment begins"), "{said}");
    let (status, _, said) = lvsd(&["check", "--explain", "prioritty"]).unwrap();
    assert!(status == Some(1) && said.contains("did you mean priority"), "{said}");
}

#[test]
fn fmt_prints_and_its_check_only_judges() {
    let (status, said, _) = lvsd(&["fmt", "tests/config/sound/includes.conf"]).unwrap();
    assert!(status == Some(0) && said.contains("include "), "{said}");
    let (status, said, why) = lvsd(&["fmt", "--check", "tests/config/sound/carriage_returns.conf"]).unwrap();
    assert!(status == Some(1) && said.is_empty() && why.contains("written otherwise"), "{said}{why}");
}

#[test]
fn lines_for_another_node_do_not_count() {
    let file = "tests/config/sound/nodes.conf";
    let errors = |id: &str| lvsd(&["check", file, "-i", id]).unwrap();
    assert_eq!(errors("node1").0, Some(0));
    let (status, said, _) = errors("nobody");
    assert!(status == Some(0) && said.contains("E0112"), "{said}");
}
