//! What README.md and docs/ say about settings, commands, counters and files is true.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use wsbalancer::{
    config::Layers,
    domain::session::{
        close_code::CloseCodes,
        ending::{Ending, EndingRow, FrameCode},
    },
};

use crate::support::{Balancer, pod::Pod, program};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// README.md, the other files in the root that explain the project, and all of docs/.
fn documents() -> Vec<PathBuf> {
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let files = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"];
    files.map(|file| root().join(file)).into_iter().chain(docs).collect()
}

/// The fenced code blocks of a document in this language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("```{language}\n");
    text.split(&opening).skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect()
}

#[test]
fn the_table_of_settings_contains_every_key_with_its_default() {
    let text = read("docs/configuration.md");
    let section = text.split("\n## Settings").nth(1).unwrap().split("\n## ").next().unwrap();
    let row = |line: &str| {
        let mut cells = line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
        Some((cells.nth(1)?, cells.next()?)).filter(|(key, _)| key != "key" && key != "---")
    };
    let documented: BTreeMap<_, _> =
        section.lines().filter(|line| line.starts_with('|')).filter_map(row).collect();
    let defaults = Layers::defaults().0;
    let known: BTreeMap<_, _> =
        defaults.into_iter().map(|(key, setting)| (key, setting.texts.join(","))).collect();
    assert_eq!(documented, known);
}

#[test]
fn every_link_to_a_file_leads_to_a_file() {
    let mut links = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for (link, _) in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')) {
            let path = link.split('#').next().unwrap();
            if link.starts_with("http") || path.is_empty() {
                continue;
            }
            assert!(document.parent().unwrap().join(path).exists(), "{link} in {document:?}");
            links += 1;
        }
    }
    assert!(links > 10, "{links} links");
}

#[test]
fn every_link_to_a_heading_leads_to_a_heading() {
    let anchor =
        |heading: &str| heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    let mut links = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for (link, _) in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')) {
            let Some((path, wanted)) = link.split_once('#').filter(|_| !link.starts_with("http"))
            else {
                continue;
            };
            let target = match path {
                "" => text.clone(),
                path => fs::read_to_string(document.parent().unwrap().join(path)).unwrap(),
            };
            let found = target.lines().any(|line| line.starts_with('#') && anchor(line) == wanted);
            assert!(found, "{link} in {document:?}");
            links += 1;
        }
    }
    assert!(links > 0);
}

#[test]
fn the_quick_start_is_what_ci_runs() {
    let readme = read("README.md");
    let quick_start = readme.split("\n## Quick start").nth(1).unwrap();
    let commands = blocks(quick_start.split("\n## ").next().unwrap(), "sh");
    assert_eq!(commands, ["cargo run --release -- demo", "cargo test"]);
    // tests/show/quickstart runs the first two such blocks of the README.
    assert_eq!(blocks(&readme, "sh")[..2], commands);
    let lane = read("justfile");
    let steps: Vec<_> = lane.lines().filter(|line| line.contains("check tests ")).collect();
    assert_eq!(steps.len(), 1, "{steps:?}");
    assert!(steps[0].ends_with("check tests cargo test"), "{steps:?}");
}

#[test]
fn ci_runs_every_evidence_script() {
    let justfile = read("justfile");
    for entry in fs::read_dir(root().join("tests/show")).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let metadata = entry.metadata().unwrap();
        // `quickstart` clones the project and runs its tests once more.
        if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 || name == "quickstart"
        {
            continue;
        }
        let is_run = justfile
            .lines()
            .any(|line| line.starts_with("    ") && line.split_whitespace().next() == Some(&name));
        assert!(is_run, "the lane `shows` of the justfile does not run tests/show/{name}");
    }
}

#[actix_rt::test]
async fn every_counter_is_documented() {
    let pod = Pod::echo().await;
    let balancer = Balancer::start([&pod]).await;
    let url = balancer.admin_url("/telemetry");
    let body = awc::Client::new().get(url).send().await.unwrap().body().await.unwrap();
    let telemetry = String::from_utf8(body.to_vec()).unwrap();
    let operations = read("docs/operations.md");
    let mut reasons = Vec::new();
    for line in telemetry.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        assert!(operations.contains(&format!("| `{name}` |")), "{name}");
        if name == "wsbalancer_sessions_ended_total" {
            reasons.push(line.split('"').nth(1).unwrap());
        }
    }
    assert_eq!(reasons, Ending::labels());
}

/// Every row after its first cell, which is prose.
#[test]
fn the_documented_endings_are_those_of_the_code() {
    let code = |code: FrameCode| match code {
        FrameCode::NoFrame => String::new(),
        FrameCode::Fixed(code) => code.to_string(),
        FrameCode::Drain => format!("{} (`close_code_drain`)", CloseCodes::default().drain),
        FrameCode::PodLost => format!("{} (`close_code_pod_lost`)", CloseCodes::default().pod_lost),
    };
    let expected = Ending::ALL.map(|ending| {
        let EndingRow { label, to_client, to_pod, level, reason } = ending.row();
        let level = level.as_str().to_lowercase();
        let (label, level) = (format!("`{label}`"), format!("`{level}`"));
        [code(to_client), code(to_pod), reason.to_owned(), label, level]
    });
    let text = read("docs/session-ends.md");
    let rows = text.lines().filter(|line| line.starts_with("| ")).skip(1);
    let documented: Vec<Vec<&str>> =
        rows.map(|row| row.trim_matches('|').split('|').skip(1).map(str::trim).collect()).collect();
    assert_eq!(documented, expected);
}

#[actix_rt::test]
async fn the_example_configurations_are_accepted() {
    for document in ["README.md", "docs/routing.md"] {
        let text = read(document);
        let examples = blocks(&text, "toml");
        assert!(!examples.is_empty(), "{document}");
        for example in examples {
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("example.toml");
            fs::write(&file, example).unwrap();
            let check = program::command().arg("check").arg("--config").arg(&file).output();
            let output = check.await.unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{document}: {errors}\n{example}");
        }
    }
}
