//! The check finds imports of every kind in small source trees.

use super::{
    check::{Exception, LINES, Limits, Rule, check},
    tree::Files,
};

const RULES: &[Rule] = &[
    Rule { module: "lib", modules: &[], crates: &[] },
    Rule { module: "low", modules: &[], crates: &["log"] },
    Rule { module: "middle", modules: &["low"], crates: &["log"] },
    Rule { module: "high", modules: &["middle", "low::open"], crates: &["log", "tokio"] },
];

const LIMITS: Limits = Limits { files_in_a_folder: 4, lines_in_a_file: 10 };

/// A small tree that breaks no rule, with the given files in place of its own.
fn failures_with_exceptions(planted: &[(&str, &str)], exceptions: &[Exception]) -> Vec<String> {
    let mut files = Files::new();
    let own = [
        ("lib.rs", "pub mod low; pub mod middle; pub mod high;"),
        ("low/mod.rs", "mod open; mod shut; pub use self::open::Open;"),
        ("low/open.rs", "pub struct Open;"),
        ("low/shut.rs", "pub struct Shut; pub fn shut() {}"),
        (
            "middle.rs",
            "pub use crate::low::Open; pub use self::tokio_free as free; pub mod tokio_free {}",
        ),
        (
            "high/mod.rs",
            "use crate::middle::Open; fn f(_: Open) { tokio::spawn(log::max_level()) }",
        ),
    ];
    for (file, text) in own.iter().chain(planted) {
        files.insert((*file).to_owned(), (*text).to_owned());
    }
    check(&files, RULES, exceptions, &["log", "tokio"], &LIMITS)
}

fn failures(planted: &[(&str, &str)]) -> Vec<String> {
    failures_with_exceptions(planted, &[])
}

/// Plants one file and expects one failure that contains `text`.
fn assert_failure(planted: &[(&str, &str)], text: &str) {
    let failures = failures(planted);
    assert!(failures.len() == 1 && failures[0].contains(text), "{failures:#?}");
}

#[test]
fn a_clean_tree_passes() {
    assert_eq!(failures(&[]), [""; 0]);
}

#[test]
fn a_plain_import_is_found() {
    let text = "use std::fmt;\nuse crate::middle::Middle; pub struct Open;";
    let middle = ("middle.rs", "pub use crate::low::Open; pub struct Middle;");
    let failures = failures(&[("low/open.rs", text), middle]);
    assert_eq!(
        failures,
        [
            "src/low/open.rs:2: `crate::middle::Middle`: low must not import middle",
            "loop of 2 files: src/low/open.rs:2 imports src/middle.rs, \
             src/middle.rs:1 imports src/low/open.rs",
        ]
    );
}

#[test]
fn a_grouped_import_is_found() {
    let text = "use std::fmt;\nuse crate::{\n    low::{Open},\n    high::{self as top, Top},\n};";
    let high = ("high/mod.rs", "pub struct Top;");
    let failures = failures(&[("middle.rs", text), high]);
    assert_eq!(
        failures,
        [
            "src/middle.rs:4: `crate::high`: middle must not import high",
            "src/middle.rs:4: `crate::high::Top`: middle must not import high",
        ]
    );
}

#[test]
fn an_aliased_import_is_found() {
    let high = ("high/mod.rs", "pub struct Top;");
    let text = "use crate::high as harmless; fn f() {}";
    assert_failure(&[("middle.rs", text), high], "`crate::high`: middle must not import high");
    let text = "use crate as all; fn f(_: all::high::Top) {}";
    let failures = failures(&[("middle.rs", text), high]);
    assert!(failures[0].contains("`all::high::Top`: middle must not import high"), "{failures:#?}");
}

#[test]
fn an_import_by_super_is_found() {
    let high = ("high/mod.rs", "pub struct Top;");
    let text = "use super::super::high::Top; pub struct Shut;";
    assert_failure(&[("low/shut.rs", text), high], "low must not import high");
}

#[test]
fn an_import_through_a_reexport_is_found() {
    let high = ("high/mod.rs", "use crate::middle::Shut;");
    let middle = ("middle.rs", "pub use crate::low::Shut;");
    let low = ("low/mod.rs", "mod open; mod shut; pub use self::{open::Open, shut::Shut};");
    assert_failure(&[high, middle, low], "`crate::middle::Shut`: high must not import low::shut");
}

#[test]
fn a_module_that_only_reexports_is_an_import_too() {
    let low = ("low/shut.rs", "use crate::middle::Shade; pub struct Shut;");
    let middle = ("middle.rs", "pub use crate::low::{Open, Open as Shade};");
    assert_failure(&[low, middle], "`crate::middle::Shade`: low must not import through middle");
}

#[test]
fn a_glob_import_is_found() {
    let high = ("high/mod.rs", "use crate::low::*;");
    let failures = failures(&[high]);
    for text in ["must not import low", "must not import low::shut"] {
        assert!(failures.iter().any(|failure| failure.ends_with(text)), "{failures:#?}");
    }
}

#[test]
fn a_name_from_a_glob_import_is_resolved() {
    let middle = ("middle.rs", "pub use crate::low::*;");
    let low = ("low/mod.rs", "mod open; pub mod shut; pub use self::open::Open;");
    let high = ("high/mod.rs", "fn f() { crate::middle::shut::shut() }");
    assert_failure(&[middle, low, high], "high must not import low::shut");
}

#[test]
fn inline_paths_are_found() {
    let high = ("high/mod.rs", "pub struct Top; pub fn top() {}");
    for text in [
        "fn f() { crate::high::top() }",
        "fn f(_: Option<crate::high::Top>) {}",
        "fn f() { log::info!(\"{}\", crate::high::top()) }",
        "fn f() { vec![1, { use crate::{high::top}; 2 }]; }",
        "#[derive(Debug)] struct S { #[serde(with = \"crate::high::top\")] f: u8 }",
        "macro_rules! m { () => { $crate::high::top() } }",
        "fn f() { if true { use super::high::top; top() } }",
    ] {
        assert_failure(&[("middle.rs", text), high], "middle must not import high");
    }
}

#[test]
fn external_crates_are_found() {
    for text in [
        "use tokio::net::TcpStream;",
        "use {std::fmt, tokio::{net::TcpStream as Stream}};",
        "fn f() { tokio::spawn(()) }",
        "fn f() { tokio::select! { _ = () => {} } }",
        "fn f() { log::info!(\"{:?}\", tokio::time::Instant::now()) }",
        "#[tokio::main] fn f() {}",
        "use ::tokio as innocent; fn f() {}",
    ] {
        let text = format!("{text} pub use crate::low::Open;");
        assert_failure(&[("middle.rs", &text)], "middle must not use the crate tokio");
    }
}

#[test]
fn an_external_crate_through_a_reexport_is_found() {
    let low = ("low/open.rs", "pub use std::fmt; pub struct Open; pub use tokio::net;");
    let middle = ("middle.rs", "use crate::low::open::net::TcpStream;");
    let failures = failures(&[low, middle]);
    assert!(failures.iter().any(|failure| failure.contains("middle must not use the crate tokio")));
}

#[test]
fn a_loop_of_two_files_is_found() {
    let open = ("low/open.rs", "use super::shut::Shut; pub struct Open;");
    let shut = ("low/shut.rs", "use super::open::Open; pub struct Shut;");
    assert_failure(&[open, shut], "loop of 2 files: src/low/open.rs:1 imports src/low/shut.rs");
}

#[test]
fn a_loop_of_three_files_is_found() {
    let low = ("low/mod.rs", "mod open; mod shut; mod wide; pub use self::open::Open;");
    let open = ("low/open.rs", "use super::shut::Shut; pub struct Open;");
    let shut = ("low/shut.rs", "use super::wide::Wide; pub struct Shut;");
    let wide = ("low/wide.rs", "fn f() { super::Open::new() } pub struct Wide;");
    assert_failure(&[low, open, shut, wide], "loop of 3 files");
}

#[test]
fn a_loop_with_the_parent_is_found() {
    let low = ("low/mod.rs", "mod open; mod shut; pub use self::open::Open; pub struct Parent;");
    let open = ("low/open.rs", "use super::Parent; pub struct Open;");
    assert_failure(&[low, open], "loop of 2 files: src/low/mod.rs:1 imports src/low/open.rs");
}

#[test]
fn a_reexport_of_the_parent_makes_no_loop() {
    let shut = ("low/shut.rs", "use super::Open; pub struct Shut;");
    assert_eq!(failures(&[shut]), [""; 0]);
}

#[test]
fn a_path_through_a_module_does_not_lead_to_a_function_of_its_name() {
    let low = ("low/mod.rs", "mod open; mod shut; pub use self::open::Open; fn shut() {}");
    let lower = ("low/open.rs", "use super::shut::Shut; pub struct Open;");
    assert_eq!(failures(&[low, lower]), [""; 0]);
    let lower = ("low/open.rs", "use super::shut; pub struct Open;");
    assert_failure(&[low, lower], "loop of 2 files");
}

#[test]
fn test_code_is_free() {
    let text = "pub struct Open;\n#[cfg(test)]\nmod tests { use super::super::super::high::*; }";
    let files = [("low/open.rs", text), ("low/shut.rs", "#[cfg(test)]\nmod tests;")];
    let tests = ("low/shut/tests.rs", "use crate::high::Top;");
    assert_eq!(failures(&[files[0], files[1], tests]), [""; 0]);
    let text = "pub struct Open;\n#[cfg(all(test, unix))]\nuse tokio::net;";
    assert_eq!(failures(&[("low/open.rs", text)]), [""; 0]);
    let text = "pub struct Open;\n#[cfg(not(test))]\nuse tokio::net;";
    assert_failure(&[("low/open.rs", text)], "low must not use the crate tokio");
}

#[test]
fn a_module_without_a_rule_is_found() {
    let library = ("lib.rs", "pub mod low; pub mod middle; pub mod high; pub mod wild;");
    assert_failure(&[library, ("wild.rs", "")], "module wild has no rule");
}

#[test]
fn a_rule_without_a_module_is_found() {
    let library = ("lib.rs", "pub mod low; pub mod middle;");
    let failures = failures(&[library]);
    assert_eq!(failures, ["src/high/mod.rs: in no module", "no module high"]);
}

#[test]
fn a_path_that_leads_nowhere_is_found() {
    assert_failure(
        &[("middle.rs", "pub use crate::low::{Open, Gone};")],
        "cannot resolve `crate::low::Gone`",
    );
}

#[test]
fn an_exception_holds_as_long_as_it_is_needed() {
    let planted = [("low/open.rs", "use tokio::net; pub struct Open;")];
    let exception = [("low/open.rs", "tokio")];
    assert_eq!(failures_with_exceptions(&planted, &exception), [""; 0]);
    let failures = failures_with_exceptions(&[], &exception);
    assert_eq!(failures, [r#"remove the exception ("low/open.rs", "tokio")"#]);
}

#[test]
fn an_excepted_import_closes_no_loop() {
    let open = ("low/open.rs", "use super::shut::Shut; pub struct Open;");
    let shut = ("low/shut.rs", "use super::open::Open; pub struct Shut;");
    let exception = [("low/shut.rs", "low/open.rs")];
    assert_eq!(failures_with_exceptions(&[open, shut], &exception), [""; 0]);
}

#[test]
fn long_files_and_crowded_folders_are_found() {
    let long = "pub struct Open;\n".to_owned() + &"\n".repeat(10);
    assert_failure(&[("low/open.rs", &long)], "11 lines without its tests, at most 10");
    let tests = "pub struct Open;\n#[cfg(test)]\nmod tests {\n".to_owned() + &"\n".repeat(10) + "}";
    assert_eq!(failures(&[("low/open.rs", &tests)]), [""; 0]);
    let exceptions = [("low/open.rs", LINES)];
    assert_eq!(failures_with_exceptions(&[("low/open.rs", &long)], &exceptions), [""; 0]);
    let low = ("low/mod.rs", "mod open; mod shut; mod a; mod b; pub use self::open::Open;");
    let planted = [low, ("low/a.rs", ""), ("low/b.rs", "")];
    assert_failure(&planted, "src/low: 5 files, at most 4");
}
