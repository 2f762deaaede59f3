//! Which kinds of mistake there are: the table of their codes, for diagnostics, `lvsd check --explain` and the documentation.

use serde::{Serialize, Serializer};

/// What is said about one kind.
#[derive(Debug, PartialEq)]
pub struct Code {
    pub class: Class,
    pub code: &'static str,
    pub title: &'static str,
    pub help: &'static str,
}

macro_rules! codes {
    ($($class:ident $code:literal $title:literal $help:literal)+) => {
        /// What kind of mistake it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Class { $($class,)+ }

        pub const CODES: &[Code] = &[$(
            Code { class: Class::$class, code: $code, title: $title, help: $help },
        )+];

        impl Class {
            pub const fn code(self) -> &'static str {
                match self { $(Self::$class => $code,)+ }
            }
        }
    };
}

impl Serialize for Class {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

/// By its code, in either case.
pub fn find(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|known| known.code.eq_ignore_ascii_case(code))
}

codes! {
    Syntax "E0001" "the text is not built as it should be"
        "One statement stands on one line, and a word takes a block in braces or does not. Words that need a line of their \
         own are no further values of the word before them: keepalived would read them as such and say nothing."
    Quote "E0002" "a quote has no end"
        "A word in quotes ends on the line on which it begins. The rest of this line is left out. Single quotes protect words \
         in commands (script, notify.., misc_path, quorum_up ..) and in regex only; elsewhere they are part of the value."
    Bytes "E0003" "bytes that nobody can see or that are no text"
        "Files are UTF-8. No-break spaces, zero-width characters and control characters come from word processors and web \
         pages; they make another word of what looks like a known one."
    Template "E0004" "a template that nobody filled in"
        "{{ NAME }} is the language of a generator. As it stands its braces would open and close blocks."
    MissingBrace "E0005" "a block without its {"
        "The word needs a block: { stands behind it or on the next line."
    UnclosedBlock "E0006" "a block without its }"
        "The block is open where the file ends, or where a word begins that stands in no block. keepalived reads what \
         follows as part of the wrong block; lvsd goes on as if the } stood there."
    ExtraBrace "E0007" "a } too many, or a { that belongs to no word"
        "No block is open here, or no word stands before the brace that could have a block."
    UnknownWord "E0010" "a word that neither keepalived nor lvsd knows"
        "The word is left out with its whole block, and reading goes on behind it. keepalived would read the words of an \
         unknown block as if they stood in the block around it."
    MisplacedWord "E0011" "a word of another block"
        "The word is known, but not where it stands. A brace is missing above, or the word belongs elsewhere."
    BadValue "E0012" "a value is absent, unreadable or out of range"
        "keepalived warns, takes its default or ends, depending on the word. lvsd does not start with a value that it \
         cannot read."
    Missing "E0013" "a word is absent without which the block means nothing"
        "Write the word, or remove the block. The address of a virtual_server that no vrrp_instance has is warned of in the \
         same way: put it into one, unless something else answers for it."
    Duplicate "E0014" "said twice"
        "keepalived takes the last value, without a word, or the first of two names. Where both say the same it is a warning."
    Conflict "E0015" "two statements that cannot both be meant"
        "One of the two has no effect. Remove the one that is not meant."
    Unsupported "E0016" "keepalived can do it, lvsd not yet"
        "As a warning: the file is used without this word, and the message says what follows. As an error: the node would \
         not do what the file asks for."
    Ignored "E0017" "read, and without effect"
        "The message says why. The word can stay."
    Deprecated "E0018" "an old name"
        "It is read as the new one."
    Include "E0020" "a file that is included is not there or cannot be read"
        "An include that finds nothing is silent in keepalived, and a warning here. includer, includem, includew, includeb \
         and includea insist: on readable files, on names, on patterns, on each name of braces, on all of it; include_check \
         makes that the rule for those that follow."
    Limit "E0021" "more than lvsd reads"
        "Files, their size and nesting, definitions and what comes of them are bounded, so that no file can keep the \
         machine busy. The bounds are far above what a site needs; a definition that stands for itself is the usual cause."
    Trap "E0030" "read as keepalived reads it, which is rarely what was meant"
        "The message says how it is read."
    CommentInWord "E0101" "a comment begins in the middle of a word"
        "! and # begin a comment wherever they stand outside double quotes, in passwords and URLs too: auth_pass ab#cd is \
         ab. Quote the word, or write \\# and \\!."
    OwnerByDefault "E0102" "state MASTER without priority makes an owner"
        "Then the priority is 255, that of the owner of the addresses, which no tracker lowers and no nopreempt holds \
         back. Without state MASTER it would be 100. Write a priority."
    SilentDefault "E0103" "a word is absent for which keepalived has a dangerous default"
        "Without protocol keepalived balances UDP, without lvs_method it translates (NAT). Write what is meant."
    CutPassword "E0104" "a password that adverts do not carry as it is written"
        "An advert has room for 8 bytes of auth_pass, the rest is cut off. VRRP version 3 has no authentication at all."
    AdvertInterval "E0105" "an interval that adverts cannot carry"
        "VRRP version 2 counts whole seconds and version 3 hundredths of one, up to 40.95. keepalived rounds without \
         asking; then the nodes may differ. The decimal mark is a point."
    PortIgnored "E0106" "a port that packets do not get"
        "With DR and TUN a packet reaches the real server as the client sent it, to the port of the virtual server. \
         keepalived sets the real server's port to that one."
    QuorumLowered "E0107" "a quorum or hysteresis that can never be reached"
        "It is lowered to what can be: the weight of all real servers, and below the quorum."
    RetryZero "E0108" "retry 0 where keepalived takes 1"
        "In virtual_server and real_server the least is 1. Only in a checker retry 0 means that the first failure counts."
    DeadWord "E0109" "a word that keepalived does not read any more"
        "nat_mask, net_mask, lvs_id and others have no effect in any version of today. Remove them."
    MulticastAnyway "E0110" "a unicast source without peers"
        "unicast_src_ip alone leaves the adverts multicast. Write unicast_peer { ADDRESS }, or mcast_src_ip where \
         multicast is meant."
    PreemptIgnored "E0111" "nopreempt or preempt_delay beside state MASTER"
        "keepalived clears them. Write state BACKUP on every node: the priority decides."
    HostAddress "E0112" "an address without the length of its subnet"
        "It becomes a /32, so the node has no route to its neighbours by that address. Write the length, or /32 if that \
         is meant: then the message goes."
    MixedFamilies "E0113" "addresses of both families where there can be one"
        "An advert carries one family. keepalived drops the addresses of the other one in virtual_ipaddress. Put them into \
         virtual_ipaddress_excluded, or make a second instance. DR and NAT keep a packet's family, as in IPVS: only by \
         lvs_method TUN may a real server be of another one than its service."
    TooManyAddresses "E0114" "more addresses than an advert holds"
        "keepalived moves those beyond it without advertising them. Put them into virtual_ipaddress_excluded."
    UnusableScript "E0115" "a program that cannot be run, or that others could replace"
        "keepalived disables such a script and goes on without the tracking. lvsd refuses the file: a check that never \
         runs protects nobody. Programs and the folders above them must be writable by root (or the script's user) only."
    WeightInGroup "E0116" "a weight of a tracker in a sync group"
        "Members of a group move together, so their priorities must not move apart: weights count only with \
         sync_group_tracking_weight."
    ExtraWord "E0118" "words behind the end of a statement"
        "keepalived leaves them out without a word. Nothing of them is in force."
    BraceInWord "E0121" "a brace in the middle of a word ends the line"
        "Outside of quotes { and } are always braces: a value with them, such as a regular expression, JSON or a \
         template, needs double quotes."
    SingleQuotes "E0122" "single quotes are part of the value"
        "Only commands and regex know single quotes. Everywhere else a value with blanks stands in double quotes."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_ascend_and_each_has_its_words() {
        assert!(CODES.is_sorted_by(|one, other| one.code < other.code));
        for code in CODES {
            assert!(
                code.code.len() == 5 && !code.title.ends_with('.') && code.help.ends_with('.'),
                "{code:?}"
            );
        }
    }
}
