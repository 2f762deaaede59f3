//! Nothing that a file can contain stops the reader, and nothing is read without a bound.

use proptest::prelude::*;

use super::*;

/// A directory that goes away again.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("lvsd-config-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn includes_end_at_a_depth() {
    let folder = Folder::new("depth");
    for number in 0..20 {
        folder.write(&format!("{number}.conf"), &format!("include {}.conf\n", number + 1));
    }
    let loaded = load(&folder.0.join("0.conf"), "node1").unwrap();
    assert_eq!((loaded.errors, loaded.files.len()), (1, 16));
    assert!(loaded.render_text().contains("nested deeper than 16"));
}

#[test]
fn includes_end_at_a_number_of_files() {
    let folder = Folder::new("number");
    folder.write("a.inc", "");
    let top = folder.write("top.conf", &"include a.inc\n".repeat(300));
    let loaded = load(&top, "node1").unwrap();
    assert_eq!((loaded.errors, loaded.files.len()), (45, 256));
}

#[test]
fn files_end_at_a_size() {
    let folder = Folder::new("size");
    folder.write("a.inc", &format!("#{}", " ".repeat(source::MAX_BYTES / 2)));
    let top = folder.write("top.conf", &"include a.inc\n".repeat(2));
    let loaded = load(&top, "node1").unwrap();
    assert_eq!((loaded.errors, loaded.files.len()), (1, 2));
    let large = folder.write("large.conf", "");
    fs::File::options().write(true).open(&large).unwrap().set_len(source::MAX_BYTES as u64 + 1).unwrap();
    assert!(matches!(load(&large, "node1").unwrap_err().cause, ReadError::TooLarge));
}

#[test]
fn scripts_beside_an_include_are_left_out() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new("scripts");
    folder.write("a.inc", "global_defs {\nrouter_id a\n}\n");
    let script = folder.write("b.inc", "echo hello\n");
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(folder.0.join("c.inc")).unwrap();
    nix::unistd::mkfifo(&folder.0.join("d.inc"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let loaded = load(&folder.write("top.conf", "include *.inc\n"), "node1").unwrap();
    assert_eq!((loaded.errors, loaded.diagnostics.len(), loaded.files.len()), (0, 1, 2));
    assert_eq!(loaded.config.global.router_id.as_deref(), Some("a"));
}

#[test]
fn what_cannot_be_read_is_no_configuration() {
    let cause = |path: &str| load(Path::new(path), "node1").unwrap_err().cause;
    assert!(matches!(cause("tests/config/none.conf"), ReadError::Io(_)));
    assert!(matches!(cause("tests/config"), ReadError::NotRegular));
    assert!(matches!(cause("/dev/zero"), ReadError::NotRegular));
}

#[test]
fn a_line_that_is_too_long_is_shown_around_the_mistake() {
    let loaded =
        text(&format!("global_defs {}{{ {}router_di x\n}}\n", " ".repeat(500), "\"a\"\t".repeat(300)));
    let shown = loaded.render_text();
    let [_, excerpt, carets, ..] = shown.lines().collect::<Vec<_>>()[..] else { panic!("{shown}") };
    assert!(excerpt.len() < 1200 && carets.len() <= excerpt.len() && excerpt.contains("..."), "{shown}");
}

#[test]
fn all_mistakes_are_counted_and_a_hundred_shown() {
    let loaded = text(&"mistake\n".repeat(10_000));
    assert_eq!((loaded.diagnostics.len(), loaded.omitted, loaded.errors), (100, 9_900, 10_000));
    assert!(loaded.render_text().ends_with("... and 9900 more\n"));
}

/// Not a speed limit: what is quadratic here takes an hour.
#[test]
fn much_of_anything_is_read_to_its_end() {
    let size = 1 << 18;
    let units = [
        "{",
        "}",
        "{}",
        "}{",
        "{{",
        "{{ }}",
        "{\n",
        "a{",
        "a {\n",
        "a\n{\n}\n",
        "\"",
        "\"\" ",
        "a ",
        "$",
        "${",
        "${a",
        "$a=",
        "$a ",
        "$a=\\\n",
        "\\",
        "\\#",
        "#",
        "!a",
        "a!",
        "@",
        "~SEQ",
        "\t",
        "\u{fffd}",
        "\u{feff}",
        "é",
        "a\n",
        "priority\n",
        "vrrp_instance\n",
        "vrrp_instance {\n",
        "global_defs {\n",
        "virtual_server 1.1.1.1 1 {\n",
        "include x\n",
        "include *x\n",
        "vrrp_instance x {\n}\n",
        "virtual_ipaddress\n",
        "real_server {\nTCP_CHECK {\n",
        "unknown_word_of_some_length\n",
    ];
    for unit in units {
        let loaded = text(&unit.repeat(size / unit.len()));
        assert!(loaded.diagnostics.len() <= 200, "{unit}");
    }
    let block = format!("vrrp_instance V {{\nvirtual_ipaddress {{\n{}", "10.0.0.1 dev a\n".repeat(size / 20));
    assert!(text(&block).has_errors());
}

#[test]
fn a_key_is_read_from_a_regular_file_with_an_absolute_path() {
    let folder = Folder::new("key");
    let secret = folder.write("secret", &"k".repeat(32));
    let pipe = folder.0.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let messages = |path: &Path| {
        text(&format!(
            "vrrp_instance A {{\ninterface eth0\nvirtual_router_id 1\nauth_hmac {{\nkey 1 file:{}\n\
             active_key 1\n}}\nvirtual_ipaddress {{\n10.0.0.100/24\n}}\n}}\n",
            path.display()
        ))
        .render_text()
    };
    assert!(!messages(&secret).contains("key:"), "{}", messages(&secret));
    for (path, why) in [(&*pipe, "not a regular file"), (Path::new("secret"), "not an absolute path")] {
        assert!(messages(path).contains(why), "{}", messages(path));
    }
}

/// The time of this thread alone: the load of the host is not in it.
#[test]
fn behind_a_limit_no_definition_is_replaced_any_more() {
    let work = |references: usize| {
        let large = format!("$A={}\n{}", "a ".repeat(1 << 19), "$A\n".repeat(references));
        let now = || {
            let now = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap();
            Duration::from(now)
        };
        let before = now();
        let loaded = text(&large);
        let spent = now() - before;
        assert!(loaded.render_text().contains("too many"), "{}", loaded.render_text());
        spent
    };
    let (few, many) = (work(1_000), work(100_000));
    assert!(many < 15 * few, "{many:?} for a hundred times the lines of {few:?}");
}

#[test]
fn a_service_per_line_of_a_large_file_is_read() {
    let service = |number: u32| {
        let address = Ipv4Addr::from_bits(0x0a00_0001 + number);
        format!(
            "virtual_server {address} 80 {{\nlvs_sched mh\nlvs_method DR\nprotocol TCP\nreal_server {address} 80 {{\n}}\n}}\n"
        )
    };
    let loaded = text(&(0..9000).map(service).collect::<String>());
    assert_eq!(
        (loaded.config.services.len(), loaded.diagnostics.len()),
        (9000, 0),
        "{}",
        loaded.render_text()
    );
}

fn token() -> impl Strategy<Value = String> {
    let words: Vec<_> = keywords::keywords().map(|keyword| keyword.word.to_owned()).collect();
    let others = [
        "{",
        "}",
        "\n",
        "\n",
        "{\n",
        "}\n",
        "\"",
        "!",
        "#",
        "\\",
        "$A",
        "${A}",
        "$A=1\n",
        "@x",
        "~SEQ(",
        "{{",
        "}}",
        "\r\n",
        "\t",
        "10.0.0.1",
        "10.0.0.1/24",
        "::1",
        "80",
        "1",
        "0",
        "255",
        "-1",
        "1.5",
        "99999999999999999999",
        "MASTER",
        "DR",
        "TCP",
        "mh",
        "dev",
        "label",
        "200-299",
        "é",
        "\0",
        "\u{feff}",
        "x",
    ];
    prop_oneof![
        3 => prop::sample::select(words),
        4 => prop::sample::select(others.map(str::to_owned).to_vec()),
    ]
}

proptest! {
    #[test]
    fn bytes_of_any_kind_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        text(&String::from_utf8_lossy(&bytes)).render_text();
    }

    #[test]
    fn words_in_any_order_are_answered(tokens in prop::collection::vec((token(), prop::bool::weighted(0.8)), 0..300)) {
        let mut hostile = String::new();
        for (token, blank) in tokens {
            hostile.push_str(&token);
            hostile.push_str(if blank { " " } else { "" });
        }
        let loaded = text(&hostile);
        for it in &loaded.diagnostics {
            let line = hostile.lines().nth(it.line - 1).unwrap_or("");
            prop_assert!(it.column <= line.chars().count() + 1, "{it}");
        }
        loaded.render_text();
    }
}
