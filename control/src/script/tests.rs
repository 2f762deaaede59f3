use std::os::unix::fs::symlink;

use super::*;

const BOB: Account = Account { uid: 1000, gid: 1000 };

fn split(command: &str) -> Vec<String> {
    words(command).unwrap().into()
}

/// What a shell reads, as whoever runs the test.
fn shell(command: &str) -> Script {
    let words = ["/bin/sh", "-c", command].map(str::to_owned);
    Script::new(words.into(), Account::ROOT).unwrap()
}

fn refusal(words: &[&str], account: Account) -> String {
    Script::new(words.iter().map(|word| (*word).to_owned()).collect(), account).unwrap_err().to_string()
}

/// A directory of its own, gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lvsd-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(fs::canonicalize(path).unwrap())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_command_is_split_at_blanks_outside_of_quotes() {
    assert_eq!(split("/a  b\tc"), ["/a", "b", "c"]);
    assert_eq!(split(r#"/a 'b c' "d 'e'" f'g h'i "#), ["/a", "b c", "d 'e'", "fg hi"]);
    assert_eq!(split(r"/a '' b\ c $HOME;"), ["/a", "", r"b\", "c", "$HOME;"]);
    assert!(split("").is_empty());
    assert!(matches!(words("/a 'b"), Err(ScriptError::Quote)));
}

#[test]
fn what_somebody_else_could_replace_is_not_run() {
    let root = Account::ROOT;
    assert!(!others_may_write(0, 0, 0o100755, root));
    assert!(!others_may_write(0, 0, 0o100775, root), "the group root is root");
    assert!(others_may_write(0, 1000, 0o100775, root));
    assert!(others_may_write(0, 0, 0o100757, root));
    assert!(others_may_write(1000, 0, 0o100555, root), "an owner can change the mode");
    assert!(others_may_write(0, 0, 0o041777, root), "/tmp");
    assert!(!others_may_write(1000, 1000, 0o100755, BOB), "a script of the user that runs it");
    assert!(others_may_write(1000, 1000, 0o100775, BOB), "others may be in that group");
    assert!(
        refusal(&[&Scratch::new("replace").0.join("x").to_string_lossy()], root).contains("may be written")
    );
}

#[test]
fn a_script_needs_the_execute_bit_of_its_user() {
    for (mode, root, owner, group, other) in [
        (0o700, true, true, false, false),
        (0o750, true, true, true, false),
        (0o755, true, true, true, true),
        (0o070, true, false, true, false),
        (0o644, false, false, false, false),
    ] {
        let may = |uid, gid| may_execute(1, 1, mode, Account { uid, gid });
        assert_eq!((may(0, 0), may(1, 1), may(2, 1), may(2, 2)), (root, owner, group, other), "{mode:o}");
    }
}

#[test]
fn what_cannot_be_run_is_said_with_its_reason() {
    let root = Account::ROOT;
    assert_eq!(refusal(&[], root), "an empty command");
    assert_eq!(refusal(&["bin/x"], root), "bin/x is a relative path");
    assert!(
        refusal(&["no-such-program-here"], root).starts_with("there is no program \"no-such-program-here\"")
    );
    assert!(refusal(&["/usr/bin/no-such-program-here"], root).contains("No such file"));
    assert_eq!(
        refusal(&["/etc/passwd"], root),
        "/etc/passwd is not executable for the user that would run it"
    );
    assert_eq!(refusal(&["/usr"], root), "/usr is no regular file");
}

#[test]
fn every_directory_that_a_link_leads_through_is_looked_at() {
    let scratch = Scratch::new("links");
    let [a, b] = ["a", "b"].map(|name| scratch.0.join(name));
    for directory in [&a, &b] {
        fs::create_dir(directory).unwrap();
    }
    fs::write(b.join("script"), "").unwrap();
    symlink("../b/script", a.join("relative")).unwrap();
    symlink(a.join("relative"), scratch.0.join("absolute")).unwrap();
    symlink("loop", scratch.0.join("loop")).unwrap();
    let mut seen = Vec::new();
    let found = resolve(&scratch.0.join("absolute"), |path, _| {
        seen.push(path.to_owned());
        Ok(())
    });
    assert_eq!(found.unwrap(), b.join("script"));
    for path in [Path::new("/"), &scratch.0, &a, &b, &b.join("script")] {
        assert!(seen.iter().any(|seen| seen == path), "{} was not looked at", path.display());
    }
    let circle = resolve(&scratch.0.join("loop"), |_, _| Ok(())).unwrap_err();
    assert!(circle.to_string().contains("too many symbolic links"), "{circle}");
}

#[tokio::test]
async fn a_script_gets_its_arguments_and_nothing_of_our_environment() {
    let script =
        shell(r#"[ "$LVSD_NAME" = "VI 1" ] && [ -z "$HOME$CARGO" ] && [ "$0" = "a b" ] && [ $# = 1 ]"#);
    let arguments = ["a b", "c"].map(str::to_owned);
    let environment = [("LVSD_NAME", "VI 1".to_owned())];
    let ended = script.run(&arguments, &environment, Duration::from_secs(10)).await.unwrap();
    assert!(ended.success(), "{ended:?}");
    assert!(!shell("exit 3").run(&[], &[], Duration::from_secs(10)).await.unwrap().success());
}

/// Waits until no process has that word in its command line. A killed one takes a moment to end.
async fn all_ended(word: &str) {
    let alive = || {
        let mut entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        entries.any(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(word)
        })
    };
    for _ in 0..1000 {
        if !alive() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{word} still runs");
}

#[tokio::test]
async fn a_script_that_does_not_end_is_ended_with_all_it_has_started() {
    // Both lengths of sleep are names.
    let script = shell("trap '' TERM; sleep 98765.4321 & sleep 98765.4321; sleep 98765.4321");
    let ended = script.run(&[], &[], Duration::from_millis(300)).await.unwrap();
    assert_eq!(ended, Ended::TimedOut);
    all_ended("98765.4321").await;
}

#[tokio::test]
async fn a_run_that_is_given_up_leaves_no_process() {
    let script = shell("sleep 98765.1234; true");
    let run = script.run(&[], &[], Duration::from_secs(60));
    assert!(timeout(Duration::from_millis(300), run).await.is_err());
    all_ended("98765.1234").await;
}

#[tokio::test]
async fn a_script_of_another_user_has_only_his_rights() {
    if !nix::unistd::geteuid().is_root() {
        return lvs_tests::skip("not root");
    }
    let nobody = Account { uid: 65534, gid: 65534 };
    let check = r#"[ "$(id -u) $(id -G)" = "65534 65534" ]"#;
    let script = Script { account: nobody, ..shell(check) };
    assert!(script.run(&[], &[], Duration::from_secs(10)).await.unwrap().success());
}
