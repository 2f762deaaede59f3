//! What the reader says about whole files. `BLESS=1 cargo test -p control --test config` writes the expectations.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use control::config::{Loaded, load};

fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(Path::new("tests/config").join(folder)).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
    files.sort();
    files
}

/// Compares what is said about a file with the text beside it.
fn says_as_expected(path: &Path) -> (Loaded, bool) {
    let loaded = load(path).unwrap();
    let expected = path.with_extension("txt");
    let said = loaded.render_text();
    if env::var_os("BLESS").is_some() {
        fs::write(&expected, &said).unwrap();
    }
    let same = fs::read_to_string(&expected).is_ok_and(|expected| expected == said);
    if !same {
        println!("{}: expected other than\n{said}", path.display());
    }
    (loaded, same)
}

#[test]
fn each_broken_file_is_answered_as_pinned() {
    let files = files("broken");
    assert!(files.len() >= 20);
    let wrong: Vec<_> = files.iter().filter(|path| !says_as_expected(path).1).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn each_sound_file_is_read_without_an_error() {
    for path in files("sound") {
        let (loaded, as_expected) = says_as_expected(&path);
        assert!(!loaded.has_errors() && as_expected, "{}", path.display());
    }
}
