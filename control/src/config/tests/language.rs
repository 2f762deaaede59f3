//! What the language makes of text: definitions, conditions, repetitions, includes, quotes.

use super::*;

/// The text that is left of a file.
fn expanded(text: &str) -> String {
    let mut files = Files::default();
    let mut reports = Reports::default();
    expand::expand(Path::new("lvsd.conf"), text.to_owned(), "node1", &mut files, &mut reports)
        .as_str()
        .to_owned()
}

fn lines(file: &str) -> Vec<String> {
    expanded(file).lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

#[test]
fn a_reference_is_replaced_where_keepalived_would() {
    let file = "$A=1\n$EMPTY=\nbare $A\n10.$A.1\n10.${A}.1\n($A)\n$A,$A\n\"${A}\"x${EMPTY}y\n$A$A\n";
    assert_eq!(lines(file), ["bare 1", "10.$A.1", "10.1.1", "(1)", "1,1", "\"1\"xy", "$A1"]);
}

#[test]
fn a_definition_counts_from_where_it_stands_and_is_replaced_when_it_is_used() {
    assert_eq!(
        lines("a ${X}\n$X=${Y}\n$Y=1\nb ${X}\n$Y=2\nc ${X}\n$X=3\nd ${X}"),
        ["a ${X}", "b 1", "c 2", "d 3"]
    );
}

#[test]
fn a_definition_of_several_lines_is_several_lines() {
    let file = "$N=7\n$INST=vrrp_instance VI_${N} { \\\n  # said inside\n interface eth0 \\\n priority 10${N}\nbefore $INST\n}\n";
    assert_eq!(lines(file), ["before vrrp_instance VI_7 {", "interface eth0", "priority 107", "}"]);
    let file = "$A=a \\\n\n \t\n! no more\n b \\ # and\n\n c\nd\n$A";
    assert_eq!(lines(file), ["d", "a", "b", "c"]);
    assert_eq!(lines("$A=a \\\n\n#\n"), [""; 0], "the file ends before the definition");
    let file = "$A=10.0.0.1 \\\n 10.0.0.2 # the second\nvirtual_ipaddress {\n $A\n}\n";
    assert_eq!(lines(file), ["virtual_ipaddress {", "10.0.0.1", "10.0.0.2", "}"]);
}

#[test]
fn a_conditional_line_is_for_one_node_or_for_all_others() {
    let file = "@node1 a\n@node2 b\n@^node1 c\n@^node2 d\n@\n@node1\n@node1 $X=1\n@node2 $X=2\nx ${X}\n";
    assert_eq!(lines(file), ["a", "d", "x 1"]);
}

#[test]
fn a_line_is_repeated_over_numbers() {
    assert_eq!(lines("~SEQ(n, 3) a$n ${n}"), ["a1 1", "a2 2", "a3 3"]);
    assert_eq!(lines("~SEQ(n,3,1) $n"), ["3", "2", "1"]);
    assert_eq!(lines("~SEQ(n,-2) $n"), ["-1", "-2"]);
    assert_eq!(lines("~SEQ(n,0x10,010,040) $n"), ["16", "24", "32"]);
    assert_eq!(lines("~SEQx(n,9,11) ${n}x"), ["9x", "ax", "bx"]);
    assert_eq!(lines("$END=2\n~SEQ(a,$END) ~SEQ(b,$END) ${a}.${b}"), ["1.1", "1.2", "2.1", "2.2"]);
    assert_eq!(lines("$LINE=~SEQ(n,2) x${n}\n$LINE"), ["x1", "x2"]);
}

#[test]
fn a_line_is_repeated_over_a_list() {
    assert_eq!(lines("~LST(if,eth0, eth1) $if x"), ["eth0 x", "eth1 x"]);
    assert_eq!(lines("~LST({a,b},{1,2},{3,4}) ${a}-${b}"), ["1-2", "3-4"]);
}

#[test]
fn built_in_references_are_replaced() {
    let folder = hostile::Folder::new("builtin");
    let path = folder
        .write("a.conf", "instance blue\nglobal_defs {\nrouter_id \"${_INSTANCE}${_HASH}${_BANG}\"\n}\n");
    assert_eq!(load(&path, "").unwrap().config.global.router_id.as_deref(), Some("blue#!"));
    let path = folder.write("b.conf", "global_defs {\nrouter_id ${_PWD}\n}\n");
    let config = load(&path, "").unwrap().config;
    assert_eq!(
        config.global.router_id,
        fs::canonicalize(path.parent().unwrap()).unwrap().to_str().map(str::to_owned)
    );
    let random = || lines("random_seed 5\n${_RANDOM 10 19} ${_RANDOM 3 3} ${_RANDOM}");
    assert!(
        random()[1].starts_with('1') && random()[1].contains(" 3 ") && random() == random(),
        "{:?}",
        random()
    );
    let home = env::var("PATH").unwrap();
    assert_eq!(lines("${_ENV PATH}"), [home]);
}

#[test]
fn a_comment_ends_a_line_and_an_escape_does_not() {
    assert_eq!(lines("a # b\na\\#b \"c#d\" e!f\n#\n!x"), ["a", "a#b \"c#d\" e"]);
}

#[test]
fn a_diagnostic_names_the_use_and_the_definition() {
    let loaded = text("$P=\n$PRIO=30${P}0\nvrrp_instance V {\n  priority ${PRIO}\n}\n");
    let said = loaded.diagnostics.iter().find(|it| it.message.contains("above 255")).unwrap();
    assert_eq!((said.line, said.column), (4, 12));
    let source = said.source.as_ref().unwrap();
    assert_eq!((source.text.as_str(), source.line, source.column), ("300", 2, 7));
    assert!(said.to_string().contains("here: \"300\" from lvsd.conf:2:7"), "{said}");
}

#[test]
fn a_diagnostic_of_a_repeated_line_says_which_round() {
    let loaded = text("vrrp_instance V {\nvirtual_ipaddress {\n~SEQ(n,254,256) 10.0.0.${n}/24\n}\n}\n");
    let said = loaded.diagnostics.iter().find(|it| it.message.contains("10.0.0.256")).unwrap();
    assert_eq!((said.line, said.column), (3, 17));
}

#[test]
fn commands_have_quotes_of_their_own() {
    let commands = |line: &str| {
        let file = format!(
            "vrrp_script S {{\nscript {line}\n}}\nvrrp_instance V {{\ninterface a\nvirtual_router_id 1\ntrack_script {{\nS\n}}\n}}\n"
        );
        let config = text(&file).config;
        let Some(Tracker::Script(script)) = config.trackers.first() else {
            panic!("{}", text(&file).render_text())
        };
        script.script.arguments.clone()
    };
    assert_eq!(commands("\"/bin/sh -c 'exit 0'\""), ["-c", "exit 0"]);
    assert_eq!(commands("'/bin/sh -c \"exit 0\"'"), ["-c", "exit 0"]);
    assert_eq!(commands("/bin/sh -c 'exit 0' a\"b c\"d"), ["-c", "exit 0", "ab cd"]);
}

#[test]
fn include_variants_insist() {
    let folder = hostile::Folder::new("variants");
    folder.write("a.inc", "global_defs {\n}\n");
    let errors = |line: &str| {
        let loaded = load(&folder.write("top.conf", line), "").unwrap();
        (loaded.errors, loaded.files.len() - 1)
    };
    assert_eq!(errors("include none.inc"), (0, 0));
    assert_eq!(errors("includer none.inc"), (0, 0));
    assert_eq!(errors("includem none.inc"), (1, 0));
    assert_eq!(errors("includem none*"), (0, 0));
    assert_eq!(errors("includew none*"), (1, 0));
    assert_eq!(errors("include {a,b}.inc"), (0, 1));
    assert_eq!(errors("includeb {a,b}.inc"), (1, 1));
    assert_eq!(errors("includea {a,b}.inc"), (1, 1));
    assert_eq!(errors("global_defs {\ninclude_check match\n}\ninclude none.inc"), (1, 0));
    assert_eq!(
        errors("global_defs {\ninclude_check\ninclude_check -match\n}\ninclude none.inc\ninclude n*"),
        (1, 0)
    );
    assert_eq!(errors("$F=a\ninclude ${F}.inc"), (0, 1));
    assert_eq!(errors("@node2 include a.inc\n@^node2 include \"a.inc\""), (0, 1));
}

#[test]
fn expansions_end_at_a_bound() {
    let ends = |file: &str| {
        let loaded = text(file);
        assert!(loaded.diagnostics.iter().any(|it| it.code == Class::Limit), "{}", loaded.render_text());
        assert!(expanded(file).len() < 5 << 20);
    };
    ends("$A=${A}\n${A}\n");
    ends("$A=${B}\n$B=x ${A}\n${A}\n");
    let bomb: String =
        (0..40).map(|n| format!("$D{}={}\n", n + 1, format!("${{D{n}}}").repeat(10))).collect();
    ends(&format!("$D0=0123456789\n{bomb}${{D9}}\n"));
    ends(&format!("$D0=\n{bomb}${{D9}}\n"));
    ends("~SEQ(a,60000) ~SEQ(b,60000) ${a}\n");
    ends(&format!("{}x\n", "~SEQ(a,2) ".repeat(100)));
    ends("$L=~SEQ(n,2) ${L}\n${L}\n");
    ends(&(0..5000).map(|n| format!("$A{n}=1\n")).collect::<String>());
    ends(&format!("include {}\n", "{a,b}".repeat(20)));
}
