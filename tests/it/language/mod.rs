//! Names, texts and comments use plain English: no file contains a word or phrase of `words.txt`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

const WORDS: &str = include_str!("words.txt");

const CHECKED: [&str; 9] = [
    "src",
    "tests",
    "benches",
    "fuzz/targets",
    "config",
    "docs",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
];

const EXTENSIONS: [&str; 8] = ["rs", "py", "mjs", "js", "toml", "md", "html", "yaml"];

#[test]
fn plain_words_only() {
    let patterns = Pattern::all();
    let mut failures = String::new();
    for (file, text) in files() {
        for hit in find(&patterns, &text, file.starts_with("src/")) {
            let Hit { line, text, pattern } = hit;
            writeln!(failures, "{file}:{line}: {text:?}: write: {}", pattern.instead).unwrap();
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

#[test]
fn a_word_is_found_in_texts_and_names() {
    let patterns = Pattern::parse("outlet -> handle\n=Hop -> PeerInfo\nwho !are -> the client");
    let lines = |text| find(&patterns, text, true).iter().map(|hit| hit.line).collect::<Vec<_>>();
    assert_eq!(
        lines("an Outlet\nof_outlet\nOutletHandle\nmyOutlet.x\noutlets OUTLET_X"),
        [1, 2, 3, 4, 5]
    );
    assert_eq!(lines("struct Hop;\nhop HopCount Hop-by-hop\n"), [1]);
    assert_eq!(lines("who are you\nwho comes"), [2]);
}

#[test]
fn a_phrase_is_found_across_lines_but_not_across_sentences() {
    let patterns = Pattern::parse("nothing is|was taken -> write timed out");
    let lines = |text| find(&patterns, text, true).iter().map(|hit| hit.line).collect::<Vec<_>>();
    assert_eq!(lines("/// Nothing\n    /// is taken. nothing_was_taken"), [1, 2]);
    assert_eq!(lines("nothing. Is taken; nothing (was) taken"), [0; 0]);
    assert_eq!(lines("nothing is given, nothing is"), [0; 0]);
}

struct Pattern {
    instead: &'static str,
    elements: Vec<Element>,
}

enum Element {
    AnyOf(Vec<&'static str>),
    NotBefore(Vec<&'static str>),
    Identifier(&'static str),
}

impl Pattern {
    fn all() -> Vec<Self> {
        Self::parse(WORDS)
    }

    fn parse(words: &'static str) -> Vec<Self> {
        let lines = words.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let pairs = lines.map(|line| line.split_once(" -> ").unwrap_or_else(|| panic!("{line}")));
        pairs.map(|(text, instead)| Self { instead, elements: elements(text) }).collect()
    }

    /// Whether `words` starts with this pattern.
    fn matches(&self, words: &[Word<'_>], is_source: bool) -> bool {
        let mut rest = words.iter();
        for (index, element) in self.elements.iter().enumerate() {
            let word = rest.next().filter(|word| index == 0 || !word.after_break);
            let is_match = match (element, word) {
                (Element::AnyOf(any), Some(word)) => any.contains(&word.lower.as_str()),
                (Element::NotBefore(not), Some(word)) => !not.contains(&word.lower.as_str()),
                (Element::Identifier(name), Some(word)) => {
                    is_source && word.of == *name && word.starts && !word.hyphen
                }
                (element, None) => matches!(element, Element::NotBefore(_)),
            };
            if !is_match {
                return false;
            }
        }
        true
    }
}

fn elements(pattern: &'static str) -> Vec<Element> {
    let element = |word: &'static str| match (word.strip_prefix('!'), word.strip_prefix('=')) {
        (Some(words), _) => Element::NotBefore(words.split('|').collect()),
        (_, Some(name)) => Element::Identifier(name),
        _ => Element::AnyOf(word.split('|').collect()),
    };
    pattern.split(' ').map(element).collect()
}

/// A word of a text or a part of an identifier.
struct Word<'a> {
    lower: String,
    line: usize,
    /// The whole identifier.
    of: &'a str,
    /// Whether it is the identifier's first part.
    starts: bool,
    /// Whether a hyphen follows the identifier.
    hyphen: bool,
    /// Whether something else than white space or the mark of a comment stands before it.
    after_break: bool,
}

struct Hit<'a> {
    line: usize,
    text: String,
    pattern: &'a Pattern,
}

fn find<'a>(patterns: &'a [Pattern], text: &str, is_source: bool) -> Vec<Hit<'a>> {
    let words = words(text);
    let mut hits = Vec::new();
    for at in 0..words.len() {
        for pattern in patterns.iter().filter(|pattern| pattern.matches(&words[at..], is_source)) {
            let found = words[at..].iter().take(pattern.elements.len()).map(|word| &*word.lower);
            let text = found.collect::<Vec<_>>().join(" ");
            hits.push(Hit { line: words[at].line, text, pattern });
        }
    }
    hits
}

fn words(text: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let content = line.trim_start().trim_start_matches(['/', '!', '#', '*']);
        let is_word = |char: char| char.is_alphanumeric() || char == '_';
        let mut between = String::new();
        let mut rest = content;
        while let Some(start) = rest.find(is_word) {
            between += &rest[..start];
            let length = rest[start..].find(|char| !is_word(char)).unwrap_or(rest.len() - start);
            let (of, after) = rest[start..].split_at(length);
            let after_break = !between.chars().all(char::is_whitespace);
            let hyphen = after.starts_with('-');
            for (part, lower) in parts(of).into_iter().enumerate() {
                let (starts, after_break) = (part == 0, part == 0 && after_break);
                words.push(Word { lower, line: index + 1, of, starts, hyphen, after_break });
            }
            between.clear();
            rest = after;
        }
        // A break at the end of the line counts for the first word of the next one.
        if !rest.trim().trim_end_matches('\\').is_empty() {
            words.push(Word {
                lower: String::new(),
                line: index + 1,
                of: "",
                starts: false,
                hyphen: false,
                after_break: true,
            });
        }
    }
    words
}

/// Splits an identifier at underscores and at capitals: `HTTPHeader_name2` into http, header, name2.
fn parts(identifier: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let chars: Vec<char> = identifier.chars().collect();
    for (index, char) in chars.iter().enumerate() {
        let after_lower = index > 0 && chars[index - 1].is_lowercase();
        let before_lower = chars.get(index + 1).is_some_and(|next| next.is_lowercase());
        let after_upper = index > 0 && chars[index - 1].is_uppercase();
        if char.is_uppercase() && (after_lower || after_upper && before_lower) {
            parts.push(String::new());
        }
        match char {
            '_' => parts.push(String::new()),
            char => parts.last_mut().unwrap().extend(char.to_lowercase()),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// Returns the texts that people read, by path.
fn files() -> BTreeMap<String, String> {
    fn add(files: &mut BTreeMap<String, String>, root: &Path, path: &str) {
        let full = root.join(path);
        let name = path.rsplit('/').next().unwrap();
        if full.is_dir() {
            let entries = fs::read_dir(&full).unwrap().map(|entry| entry.unwrap().file_name());
            let names: BTreeSet<_> = entries.map(|name| name.into_string().unwrap()).collect();
            for name in names.iter().filter(|name| !name.starts_with(['.', '_'])) {
                add(files, root, &format!("{path}/{name}"));
            }
            return;
        }
        let is_text = name.rsplit_once('.').is_none_or(|(_, end)| EXTENSIONS.contains(&end));
        let is_this = path.starts_with("tests/it/language/");
        if is_text
            && !is_this
            && let Ok(text) = fs::read_to_string(full)
        {
            files.insert(path.to_owned(), text);
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = BTreeMap::new();
    for path in CHECKED.into_iter().filter(|path| root.join(path).exists()) {
        add(&mut files, root, path);
    }
    files
}
