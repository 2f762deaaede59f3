//! Which words there are, where each may stand, and what lvsd makes of it.
//!
//! One table feeds the reader, the suggestions in diagnostics and the documentation.

mod table;

use std::{collections::HashMap, sync::LazyLock};

use Block::*;
pub use table::DEAD;
use table::TABLE;

/// A word in one block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Keyword {
    pub word: &'static str,
    /// The word that the reader asks for: synonyms share it.
    pub canonical: &'static str,
    pub block: Block,
    pub status: Status,
    /// The block that follows the word.
    pub opens: Option<Block>,
    /// May stand more than once in its block.
    pub repeats: bool,
    pub meaning: &'static str,
    /// Where nothing is said.
    pub default: &'static str,
    /// What may follow.
    pub values: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Supported,
    /// Supported, with the name that replaced it.
    Deprecated(&'static str),
    /// Named in a warning, with what follows from its absence.
    NotYet(&'static str),
    /// Without effect for good, with the reason.
    Ignored(&'static str),
}

macro_rules! blocks {
    ($($block:ident = $name:literal,)+) => {
        /// Where a word may stand.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Block { $($block,)+ }

        impl Block {
            pub const ALL: &'static [Block] = &[$(Block::$block,)+];

            pub const fn name(self) -> &'static str {
                match self { $(Block::$block => $name,)+ }
            }
        }
    };
}

blocks! {
    Top = "the top level",
    GlobalDefs = "global_defs",
    VrrpInstance = "vrrp_instance",
    Authentication = "authentication",
    AuthHmac = "auth_hmac",
    SyncGroup = "vrrp_sync_group",
    VrrpScript = "vrrp_script",
    TrackProcess = "vrrp_track_process",
    TrackFile = "track_file",
    TrackGroup = "track_group",
    GarpGroup = "garp_group",
    VirtualServer = "virtual_server",
    RealServer = "real_server",
    TcpCheck = "TCP_CHECK",
    HttpGet = "HTTP_GET",
    SslGet = "SSL_GET",
    Url = "url",
    SmtpCheck = "SMTP_CHECK",
    SmtpHost = "host",
    DnsCheck = "DNS_CHECK",
    UdpCheck = "UDP_CHECK",
    PingCheck = "PING_CHECK",
    MiscCheck = "MISC_CHECK",
    FileCheck = "FILE_CHECK",
    BfdCheck = "BFD_CHECK",
    Ssl = "SSL",
    BfdInstance = "bfd_instance",
    // Lines that are values, such as addresses.
    Entries = "a list",
}

impl Block {
    /// For a message.
    pub fn place(self) -> String {
        if self == Top { format!("at {}", self.name()) } else { format!("in {}", self.name()) }
    }
}

/// The word in that block.
pub fn find(block: Block, word: &str) -> Option<&'static Keyword> {
    INDEX.get(word)?.iter().find(|keyword| keyword.block == block)
}

/// The words behind it are those of a command or a pattern, which have quoting rules of their own.
pub fn has_command(word: &str) -> bool {
    word.starts_with("notify")
        || word.ends_with("_script")
        || matches!(word, "script" | "misc_path" | "quorum_up" | "quorum_down" | "process" | "regex")
}

/// Where the word may stand, for a message; the blocks that are read come first.
pub fn homes(word: &str) -> Option<String> {
    const SHOWN: usize = 4;
    let mut found: Vec<_> = INDEX.get(word)?.iter().collect();
    found.sort_by_key(|keyword| matches!(keyword.status, Status::NotYet(_)));
    match found.as_slice() {
        [only] => Some(only.block.place()),
        found => {
            let names: Vec<_> = found.iter().take(SHOWN).map(|keyword| keyword.block.name()).collect();
            Some(format!("in {}", names.join(" or ")))
        }
    }
}

/// The word opens a block that stands in no other.
pub fn only_at_top(word: &str) -> bool {
    INDEX
        .get(word)
        .is_some_and(|found| found.iter().all(|keyword| keyword.block == Top && keyword.opens.is_some()))
}

/// The word of that block that was probably meant.
pub fn nearest(block: Block, word: &str) -> Option<&'static Keyword> {
    let here = INDEX.values().flatten().filter(|keyword| keyword.block == block);
    find(block, nearest_of(here.map(|keyword| keyword.word), word)?)
}

/// The word of any block that was probably meant.
pub fn nearest_anywhere(word: &str) -> Option<&'static Keyword> {
    INDEX.get(nearest_of(INDEX.keys().copied(), word)?)?.first()
}

/// The candidate that was probably meant by `word`.
pub fn nearest_of<'a>(candidates: impl Iterator<Item = &'a str>, word: &str) -> Option<&'a str> {
    const LONGEST: usize = 40;
    if word.len() > LONGEST {
        return None;
    }
    let typed = word.to_ascii_lowercase();
    // As far apart as their lengths at least: most candidates need no closer look.
    let far = |candidate: &str| typed.len().abs_diff(candidate.len()) > candidate.len().div_ceil(3);
    candidates
        .filter(|candidate| !far(candidate))
        .map(|candidate| (strsim::osa_distance(&candidate.to_ascii_lowercase(), &typed), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3).min(candidate.len() / 2))
        .min()
        .map(|(_, candidate)| candidate)
}

static INDEX: LazyLock<HashMap<&'static str, Vec<Keyword>>> = LazyLock::new(|| {
    let mut index: HashMap<_, Vec<Keyword>> = HashMap::new();
    for keyword in keywords() {
        index.entry(keyword.word).or_default().push(keyword);
    }
    index
});

pub fn keywords() -> impl Iterator<Item = Keyword> {
    TABLE.iter().flat_map(|row| {
        row.blocks.iter().flat_map(move |&block| {
            let first = row.words.split('|').next().unwrap_or(row.words);
            let canonical = if let Status::Deprecated(by) = row.status { by } else { first };
            row.words.split('|').map(move |word| Keyword {
                word,
                canonical,
                block,
                status: row.status,
                opens: row.opens,
                repeats: row.repeats,
                meaning: row.meaning,
                default: row.default,
                values: row.values,
            })
        })
    })
}

/// A line of the table.
pub struct Row {
    blocks: &'static [Block],
    /// `|` between synonyms.
    words: &'static str,
    status: Status,
    opens: Option<Block>,
    repeats: bool,
    meaning: &'static str,
    default: &'static str,
    values: &'static str,
}

impl Row {
    const fn new(
        blocks: &'static [Block],
        words: &'static str,
        status: Status,
        [meaning, default, values]: [&'static str; 3],
    ) -> Self {
        Self { blocks, words, status, opens: None, repeats: false, meaning, default, values }
    }

    const fn opens(self, block: Block) -> Self {
        Self { opens: Some(block), ..self }
    }

    const fn repeats(self) -> Self {
        Self { repeats: true, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_stands_twice_in_one_block() {
        let mut seen = std::collections::HashSet::new();
        for keyword in keywords() {
            assert!(seen.insert((keyword.block, keyword.word)), "{keyword:?}");
        }
    }

    #[test]
    fn a_word_is_found_by_its_likeness_but_not_by_any() {
        let guess = |block, word| nearest(block, word).map(|keyword| keyword.word);
        assert_eq!(guess(VirtualServer, "delay_lop"), Some("delay_loop"));
        assert_eq!(guess(RealServer, "tcp_check"), Some("TCP_CHECK"));
        assert_eq!(guess(VirtualServer, "haproxy"), None);
        assert_eq!(guess(VirtualServer, &"x".repeat(1 << 20)), None);
        assert_eq!(nearest_of(["2", "3"].into_iter(), "4"), None);
    }

    #[test]
    fn only_blocks_of_the_top_level_end_the_blocks_around_them() {
        assert!(only_at_top("vrrp_instance") && only_at_top("virtual_server"));
        assert!(!only_at_top("track_file") && !only_at_top("real_server") && !only_at_top("include"));
    }
}
