//! Two hundred mistakes, and what is said about each.

use super::*;

/// A file of cases: `=== name`, the text, `---`, what is said about it.
fn cases(file: &str) -> Vec<(&str, &str)> {
    file.split("=== ").skip(1).filter_map(|case| case.split_once("\n---\n")?.0.split_once('\n')).collect()
}

#[test]
fn two_hundred_mistakes_are_answered_as_pinned_and_each_in_its_own_way() {
    let mut answers: HashMap<Vec<String>, String> = HashMap::new();
    let mut paths: Vec<_> =
        fs::read_dir("tests/config/mistakes").unwrap().map(|it| it.unwrap().path()).collect();
    paths.sort();
    let (mut differ, mut alike) = (Vec::new(), Vec::new());
    for path in &paths {
        let file = fs::read_to_string(path).unwrap();
        let mut said = String::new();
        for (name, mistake) in cases(&file) {
            let loaded = text(&format!("{mistake}\n"));
            let messages: Vec<_> = loaded.diagnostics.iter().map(|it| it.message.clone()).collect();
            if messages.is_empty() {
                alike.push(format!("{name} is silent"));
            }
            if let Some(same) = answers.insert(messages, name.to_owned()) {
                alike.push(format!("{name} is answered as {same}"));
            }
            said.push_str(&format!("=== {name}\n{mistake}\n---\n{}", loaded.render_text()));
        }
        if !is_as_pinned(path, &said) {
            differ.push(path);
        }
    }
    assert_eq!(differ, [] as [&PathBuf; 0]);
    assert_eq!(alike, [] as [String; 0]);
    assert!(answers.len() >= 200, "{}", answers.len());
}

#[test]
fn each_code_is_shown_by_a_file() {
    let broken = files("tests/config/broken").into_iter().map(|path| load(&path, "node1").unwrap());
    let mut texts = Vec::new();
    for entry in fs::read_dir("tests/config/mistakes").unwrap() {
        let file = fs::read_to_string(entry.unwrap().path()).unwrap();
        texts.extend(cases(&file).into_iter().map(|(_, mistake)| text(mistake)));
    }
    let shown: HashSet<_> = broken
        .chain(texts)
        .flat_map(|it| it.diagnostics)
        .map(|it| it.code.code())
        .chain([Class::MixedFamilies.code()])
        .collect();
    let missing: Vec<_> =
        codes::CODES.iter().map(|it| it.code).filter(|code| !shown.contains(code)).collect();
    assert_eq!(missing, [] as [&str; 0]);
}
