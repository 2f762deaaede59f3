//! What `lvsd` does on a command line that is not about packets.

use std::{
    io::pipe,
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
