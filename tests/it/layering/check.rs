//! The rules, and what breaks them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    imports::{Import, Resolver, Target},
    tree::{Files, Tree},
};

/// What a top-level module may import besides itself and the standard library.
pub struct Rule {
    pub module: &'static str,
    /// Modules, or parts of them such as `telemetry::logging`.
    pub modules: &'static [&'static str],
    pub crates: &'static [&'static str],
}

/// A known failure: the importing file, and the imported file or crate or [`LINES`].
pub type Exception = (&'static str, &'static str);

/// In an exception: the file is too long.
pub const LINES: &str = "lines";

pub struct Limits {
    pub files_in_a_folder: usize,
    /// Without `#[cfg(test)]` code.
    pub lines_in_a_file: usize,
}

const STANDARD: [&str; 3] = ["std", "core", "alloc"];

/// Returns a line for each rule that is broken.
pub fn check(
    files: &Files,
    rules: &[Rule],
    exceptions: &[Exception],
    crates: &[&str],
    limits: &Limits,
) -> Vec<String> {
    let tree = Tree::read(files);
    let mut failures = tree.failures.clone();
    let crates = [crates, &STANDARD].concat();
    let (imports, unresolved) = Resolver { tree: &tree, crates: &crates }.imports();
    failures.extend(unresolved);
    let mut used: BTreeSet<&Exception> = BTreeSet::new();
    let mut is_exception = |from: &str, to: &str| {
        let known = exceptions.iter().find(|exception| **exception == (from, to));
        used.extend(known);
        known.is_some()
    };
    let imports: Vec<_> = imports
        .into_iter()
        .filter(|import| match &import.to {
            Target::File(to) | Target::Crate(to) => !is_exception(&import.from, to),
        })
        .collect();
    failures.extend(forbidden(&imports, rules));
    failures.extend(unruled(&tree, rules));
    failures.extend(loops(&imports));
    failures.extend(crowded(files, limits));
    for (file, lines) in &tree.lines {
        if *lines > limits.lines_in_a_file && !is_exception(file, LINES) {
            let most = limits.lines_in_a_file;
            failures.push(format!("src/{file}: {lines} lines without its tests, at most {most}"));
        }
    }
    let unused = exceptions.iter().filter(|exception| !used.contains(exception));
    failures.extend(unused.map(|(file, of)| format!("remove the exception ({file:?}, {of:?})")));
    failures
}

/// Returns the module that a file holds: `net::dns` for `net/dns/mod.rs`.
fn module_of(file: &str) -> String {
    file.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::")
}

fn top_of(file: &str) -> String {
    module_of(file).split("::").next().unwrap_or_default().to_owned()
}

fn forbidden(imports: &[Import], rules: &[Rule]) -> Vec<String> {
    let mut failures = Vec::new();
    for import in imports {
        let top = top_of(&import.from);
        let Some(rule) = rules.iter().find(|rule| rule.module == top) else { continue };
        let may = |file: &String| {
            let module = module_of(file);
            let is_in =
                |allowed: &&str| module == **allowed || module.starts_with(&format!("{allowed}::"));
            top_of(file) == top || rule.modules.iter().any(is_in)
        };
        let may_pass = |file: &String| {
            let is_top = |allowed: &&str| allowed.split("::").next() == Some(&top_of(file));
            top_of(file) == top || rule.modules.iter().any(is_top)
        };
        let place = format!("src/{}:{}: `{}`", import.from, import.line, import.text);
        match &import.to {
            Target::File(file) if !may(file) => {
                failures.push(format!("{place}: {top} must not import {}", module_of(file)));
            }
            Target::Crate(name)
                if !STANDARD.contains(&name.as_str()) && !rule.crates.contains(&name.as_str()) =>
            {
                failures.push(format!("{place}: {top} must not use the crate {name}"));
            }
            _ => {}
        }
        for file in import.through.iter().filter(|file| !may_pass(file)) {
            let module = module_of(file);
            failures.push(format!("{place}: {top} must not import through {module}"));
        }
    }
    failures
}

/// Returns the top-level modules without a rule, and the rules without a module.
fn unruled(tree: &Tree, rules: &[Rule]) -> Vec<String> {
    let tops: BTreeSet<_> = tree.lines.keys().map(|file| top_of(file)).collect();
    let ruled: BTreeSet<_> = rules.iter().map(|rule| rule.module.to_owned()).collect();
    let modules = tops.difference(&ruled).map(|top| format!("module {top} has no rule"));
    modules.chain(ruled.difference(&tops).map(|rule| format!("no module {rule}"))).collect()
}

/// Returns the groups of files that import each other in a loop, one shortest loop for each.
fn loops(imports: &[Import]) -> Vec<String> {
    let mut graph: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for import in imports {
        if let Target::File(to) = &import.to {
            graph.entry(&import.from).or_default().entry(to).or_insert(import.line);
        }
    }
    let reach: BTreeMap<_, _> = graph.keys().map(|file| (*file, reachable(&graph, file))).collect();
    let mut reported = BTreeSet::new();
    let mut failures = Vec::new();
    for (file, others) in reach.iter().filter(|(file, others)| others.contains(*file)) {
        if reported.contains(file) {
            continue;
        }
        let leads_back =
            |other: &&&str| reach.get(**other).is_some_and(|onward| onward.contains(file));
        let group: BTreeSet<_> = others.iter().filter(leads_back).copied().collect();
        let shortest = group.iter().filter_map(|start| shortest_loop(&graph, start));
        let way = shortest.min_by_key(Vec::len).expect("a group has a loop");
        let steps = way.windows(2).map(|pair| {
            format!("src/{}:{} imports src/{}", pair[0], graph[pair[0]][pair[1]], pair[1])
        });
        let steps: Vec<_> = steps.collect();
        let others: Vec<_> = group.iter().filter(|file| !way.contains(*file)).copied().collect();
        let others = if others.is_empty() {
            String::new()
        } else {
            format!(" (with {})", others.join(", "))
        };
        failures.push(format!("loop of {} files: {}{others}", group.len(), steps.join(", ")));
        reported.extend(group);
    }
    failures
}

fn reachable<'a>(
    graph: &BTreeMap<&'a str, BTreeMap<&'a str, usize>>,
    from: &str,
) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from];
    while let Some(file) = open.pop() {
        for next in graph.get(file).into_iter().flat_map(BTreeMap::keys) {
            if seen.insert(*next) {
                open.push(next);
            }
        }
    }
    seen
}

/// Returns the files of a shortest loop through `start`, which is its first and its last.
fn shortest_loop<'a>(
    graph: &BTreeMap<&'a str, BTreeMap<&'a str, usize>>,
    start: &'a str,
) -> Option<Vec<&'a str>> {
    let mut open = VecDeque::from([vec![start]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = open.pop_front() {
        let last = way[way.len() - 1];
        for next in graph.get(last).into_iter().flat_map(BTreeMap::keys) {
            let longer = [way.as_slice(), &[*next]].concat();
            if *next == start {
                return Some(longer);
            }
            if seen.insert(*next) {
                open.push_back(longer);
            }
        }
    }
    None
}

fn crowded(files: &Files, limits: &Limits) -> Vec<String> {
    let mut folders: BTreeMap<&str, usize> = BTreeMap::new();
    for file in files.keys() {
        *folders.entry(file.rsplit_once('/').map_or("", |(folder, _)| folder)).or_default() += 1;
    }
    let most = limits.files_in_a_folder;
    let crowded = folders.into_iter().filter(|(_, count)| *count > most);
    crowded.map(|(folder, count)| format!("src/{folder}: {count} files, at most {most}")).collect()
}
