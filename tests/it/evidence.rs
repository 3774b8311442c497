//! The index of evidence scripts, `tests/show/README.md`, is complete, and so is the list for ruff.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, path::Path};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Returns the executable files in `tests/show`.
fn scripts() -> BTreeSet<String> {
    let entries = fs::read_dir(root().join("tests/show")).unwrap().map(|entry| entry.unwrap());
    let executable = entries.filter(|entry| {
        let metadata = entry.metadata().unwrap();
        metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
    });
    executable.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// Returns the scripts of the index: its rows begin with a link to a file, ``| [`NAME`](NAME) |``.
fn indexed() -> BTreeSet<String> {
    let index = read("tests/show/README.md");
    let rows = index.lines().filter_map(|line| line.strip_prefix("| [`"));
    let names = rows.map(|row| {
        let (name, rest) = row.split_once("`](").unwrap();
        assert!(rest.starts_with(&format!("{name}) |")), "the row of {name} links to it: {rest}");
        name.to_owned()
    });
    names.collect()
}

/// Returns the first word of each line of the justfile's lists `waiting` and `measuring`.
fn listed_in_justfile() -> BTreeSet<String> {
    let justfile = read("justfile");
    let lists = ["waiting", "measuring"].map(|list| {
        let (_, rest) = justfile.split_once(&format!("\n{list} := '''\n")).unwrap();
        rest.split_once("'''").unwrap().0.to_owned()
    });
    let lines = lists.iter().flat_map(|list| list.lines());
    lines.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

/// Returns the scripts that the files of CI and the justfile name by their path, `tests/show/NAME`.
fn named_by_path() -> BTreeSet<String> {
    let folders = [".ci", ".github/workflows"].map(|folder| root().join(folder));
    let files = folders.into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    let texts = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| fs::read_to_string(path).unwrap())
        .chain([read("justfile")]);
    let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
    let names = texts.flat_map(|text| {
        let behind = text.split("tests/show/").skip(1);
        let names = behind.map(|rest| rest.split(|letter| !is_of_name(letter)).next().unwrap());
        names.filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    });
    names.collect()
}

#[test]
fn the_index_names_every_script_and_no_other() {
    assert_eq!(indexed(), scripts());
}

#[test]
fn every_script_that_ci_runs_is_in_the_index() {
    let run: BTreeSet<_> = listed_in_justfile().into_iter().chain(named_by_path()).collect();
    let unknown: Vec<_> = run.difference(&indexed()).cloned().collect();
    assert!(unknown.is_empty(), "not in tests/show/README.md: {unknown:?}");
}

#[test]
fn ruff_checks_every_script() {
    let settings = read("tests/show/pyproject.toml");
    let (_, rest) = settings.split_once("\nextend-include = [\n").unwrap();
    let (list, _) = rest.split_once("\n]").unwrap();
    let included: BTreeSet<_> =
        list.lines().map(|line| line.trim().trim_matches([',', '"']).to_owned()).collect();
    assert_eq!(included, scripts());
}
