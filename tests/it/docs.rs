//! What the README says of settings and commands is so.

use std::{collections::BTreeMap, fs, path::Path};

use wsbalancer::config::Layers;

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

#[test]
fn the_table_of_settings_names_every_key_with_its_default() {
    let readme = readme();
    let section = readme.split("\n## Settings").nth(1).unwrap().split("\n## ").next().unwrap();
    let row = |line: &str| {
        let mut cells = line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
        Some((cells.nth(1)?, cells.next()?)).filter(|(key, _)| key != "key" && key != "---")
    };
    let told: BTreeMap<_, _> =
        section.lines().filter(|line| line.starts_with('|')).filter_map(row).collect();
    let defaults = Layers::defaults().0;
    let known: BTreeMap<_, _> =
        defaults.into_iter().map(|(key, setting)| (key, setting.texts.join(","))).collect();
    assert_eq!(told, known);
}

#[test]
fn every_file_the_readme_links_to_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = readme();
    let links: Vec<_> =
        readme.split("](").skip(1).filter_map(|rest| rest.split_once(')')).collect();
    assert!(!links.is_empty());
    for (link, _) in links.iter().filter(|(link, _)| !link.starts_with("http")) {
        assert!(root.join(link).exists(), "{link}");
    }
}
