//! What a word or a code means: for `lvsd check --explain`, and as a page of the documentation.

use std::fmt::Write as _;

use super::{
    codes::{self, CODES, Code},
    keywords::{self, Block, Keyword, Status},
};

/// All there is to say about a word, in each block that knows it, or about a code. `None`: neither.
pub fn explain(what: &str) -> Option<String> {
    if let Some(Code { code, title, help, .. }) = codes::find(what) {
        return Some(format!("{code}: {title}\n\n{help}\n"));
    }
    let mut found: Vec<_> = keywords::keywords().filter(|keyword| keyword.word == what).collect();
    // Checkers share words: one paragraph for all of them.
    found.dedup_by(|next, first| (next.meaning, next.status) == (first.meaning, first.status));
    let text: Vec<_> = found.iter().map(word).collect();
    (!text.is_empty()).then(|| text.join("\n"))
}

/// A word that is near to one that is unknown.
pub fn nearest(what: &str) -> Option<&'static str> {
    keywords::nearest_anywhere(what).map(|keyword| keyword.word)
}

fn word(keyword: &Keyword) -> String {
    let others = keywords::keywords().filter(|other| {
        other.word == keyword.word && (other.meaning, other.status) == (keyword.meaning, keyword.status)
    });
    let places: Vec<_> = others.map(|other| other.block.name()).collect();
    let mut text = format!("{} ({}): {}\n", keyword.word, places.join(", "), keyword.meaning);
    for (name, value) in [("values", keyword.values), ("default", keyword.default)] {
        if !value.is_empty() {
            let _ = writeln!(text, "  {name}: {value}");
        }
    }
    if keyword.canonical != keyword.word {
        let _ = writeln!(text, "  the same as {}", keyword.canonical);
    }
    let _ = writeln!(text, "  {}", status(keyword.status));
    text
}

fn status(status: Status) -> String {
    match status {
        Status::Supported => "supported".to_owned(),
        Status::Deprecated(by) => format!("supported; old name of {by}"),
        Status::NotYet("") => "not yet".to_owned(),
        Status::NotYet(effect) => format!("not yet: {effect}"),
        Status::Ignored(reason) => format!("no effect: {reason}"),
    }
}

/// docs/keepalived-conf.md.
pub fn page() -> String {
    let mut text = String::from(
        "<!-- Written by a test from control/src/config/keywords/table.rs and codes.rs: BLESS=1 cargo test -p control config -->\n\n\
         # Words and codes\n\n\
         Every word of keepalived.conf, by block: what it means, and what lvsd makes of it. \
         `lvsd check --explain WORD` says the same. How the language is read stands in [configuration.md](configuration.md).\n",
    );
    for &block in Block::ALL {
        let mut known = keywords::keywords().filter(|keyword| keyword.block == block).peekable();
        if known.peek().is_none() {
            continue;
        }
        let _ = write!(
            text,
            "\n## {}\n\n| word | meaning | values | default | status |\n|---|---|---|---|---|\n",
            block.name()
        );
        for keyword in known {
            let Keyword { word, meaning, values, default, .. } = keyword;
            let code = |text: &str| match text {
                "" => String::new(),
                text => format!("`{}`", text.replace('|', "\\|")),
            };
            let fate = status(keyword.status);
            let _ = writeln!(text, "| `{word}` | {meaning} | {} | {default} | {fate} |", code(values));
        }
    }
    text.push_str(
        "\n## Codes\n\n`lvsd check` gives each finding a code, `lvsd check --explain CODE` says more.\n",
    );
    for Code { code, title, help, .. } in CODES {
        let _ = write!(text, "\n**{code}**: {title}. {help}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_explained_in_each_block_that_knows_it() {
        let said = explain("weight").unwrap();
        for block in ["vrrp_script", "virtual_server", "real_server", "FILE_CHECK"] {
            assert!(said.contains(&format!("({block})")), "{said}");
        }
        let shared = explain("connect_port").unwrap();
        assert!(shared.contains("(TCP_CHECK, HTTP_GET, SSL_GET, "), "{shared}");
        assert!(explain("lb_algo").unwrap().contains("the same as lvs_sched"));
    }

    #[test]
    fn a_code_is_explained_in_either_case() {
        assert!(explain("e0102").unwrap().starts_with("E0102: state MASTER without priority"));
        assert_eq!(explain("E9999"), None);
        assert_eq!(nearest("prioritty"), Some("priority"));
    }

    #[test]
    fn every_word_has_a_meaning() {
        for keyword in keywords::keywords() {
            assert!(!keyword.meaning.is_empty() && !keyword.meaning.ends_with('.'), "{keyword:?}");
        }
    }
}
