//! Resolves the paths that code mentions to the files that define the named items.

use std::collections::BTreeSet;

use super::tree::{Kind, Mention, Name, Tree};

/// The name by which the program imports the library.
const LIBRARY: &str = "wsbalancer";

/// One file's import of another file or of an external crate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    pub from: String,
    pub line: usize,
    pub to: Target,
    /// The files whose `use` declarations the path leads through.
    pub through: BTreeSet<String>,
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    File(String),
    Crate(String),
}

/// What a path or a part of it leads to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Module(usize),
    /// An item of this module.
    Item(usize),
    Crate(String),
}

type Found = BTreeSet<(Place, BTreeSet<String>)>;

/// Resolves imports; `crates` are the external ones that paths can start with.
pub struct Resolver<'a> {
    pub tree: &'a Tree,
    pub crates: &'a [&'a str],
}

impl Resolver<'_> {
    /// Returns all imports, and a line for each path that leads nowhere.
    pub fn imports(&self) -> (BTreeSet<Import>, Vec<String>) {
        let (mut imports, mut failures) = (BTreeSet::new(), Vec::new());
        for (index, module) in self.tree.modules.iter().enumerate() {
            for mention in &module.mentions {
                let found = self.places(index, &mention.path, &mut Vec::new());
                let rooted = matches!(mention.path[0].as_str(), "crate" | "self" | "super");
                let text = mention.path.join("::");
                let Mention { line, kind, .. } = *mention;
                if found.is_empty() && (rooted || kind != Kind::Inline) {
                    failures.push(format!("src/{}:{line}: cannot resolve `{text}`", module.file));
                }
                for (place, through) in self.with_globbed(found, kind) {
                    let to = match place {
                        Place::Module(index) | Place::Item(index) => {
                            Target::File(self.tree.modules[index].file.clone())
                        }
                        Place::Crate(name) => Target::Crate(name),
                    };
                    if to != Target::File(module.file.clone()) {
                        let (from, text) = (module.file.clone(), text.clone());
                        imports.insert(Import { from, line, to, through, text });
                    }
                }
            }
        }
        (imports, failures)
    }

    /// Adds to a glob import's module what this module re-exports.
    fn with_globbed(&self, mut found: Found, kind: Kind) -> Found {
        if kind == Kind::Glob {
            for (place, through) in found.clone() {
                let Place::Module(index) = place else { continue };
                for name in self.tree.modules[index].names.keys() {
                    for (place, more) in self.lookup(index, name, &mut Vec::new()) {
                        found.insert((place, &through | &more));
                    }
                }
            }
        }
        found
    }

    /// Returns what `path` means in the module `from`.
    fn places(&self, from: usize, path: &[String], under_way: &mut Vec<(usize, String)>) -> Found {
        let only = |place| Found::from([(place, BTreeSet::new())]);
        let module = &self.tree.modules[from];
        let (first, rest) = path.split_first().expect("a path has a segment");
        let start = match first.as_str() {
            "crate" => only(Place::Module(module.root)),
            "self" => only(Place::Module(from)),
            "super" => module.parent.map(|parent| only(Place::Module(parent))).unwrap_or_default(),
            name => {
                let found = self.lookup(from, name, under_way);
                match self.tree.library {
                    _ if !found.is_empty() => found,
                    Some(library) if name == LIBRARY => only(Place::Module(library)),
                    _ if self.crates.contains(&name) => only(Place::Crate(name.to_owned())),
                    _ => found,
                }
            }
        };
        rest.iter().fold(start, |found, segment| {
            let step = |(place, through): (Place, BTreeSet<String>)| -> Found {
                let Place::Module(index) = place else { return [(place, through)].into() };
                if segment == "super" {
                    let parent = self.tree.modules[index].parent;
                    return parent
                        .map(|parent| (Place::Module(parent), through))
                        .into_iter()
                        .collect();
                }
                let next = self.lookup(index, segment, under_way).into_iter();
                next.map(|(place, more)| (place, &through | &more)).collect()
            };
            // A function can have the name of a module, but no path leads through a function.
            let is_module = |(place, _): &(Place, _)| matches!(place, Place::Module(_));
            let any_module = found.iter().any(is_module);
            found.into_iter().filter(|it| !any_module || is_module(it)).flat_map(step).collect()
        })
    }

    /// Returns what `name` means in a module: its own items first, then its glob imports.
    fn lookup(&self, module: usize, name: &str, under_way: &mut Vec<(usize, String)>) -> Found {
        let key = (module, name.to_owned());
        if under_way.contains(&key) {
            return Found::new();
        }
        under_way.push(key);
        let of = &self.tree.modules[module];
        let mut found = Found::new();
        for is in of.names.get(name).into_iter().flatten() {
            match is {
                Name::Module(index) => drop(found.insert((Place::Module(*index), BTreeSet::new()))),
                Name::Item => drop(found.insert((Place::Item(module), BTreeSet::new()))),
                Name::Import(path) => {
                    for (place, mut through) in self.places(module, path, under_way) {
                        through.insert(of.file.clone());
                        found.insert((place, through));
                    }
                }
            }
        }
        if found.is_empty() {
            for glob in &of.globs {
                for (place, through) in self.places(module, &glob.path, under_way) {
                    let Place::Module(index) = place else { continue };
                    for (place, more) in self.lookup(index, name, under_way) {
                        let mut through = &through | &more;
                        through.insert(of.file.clone());
                        found.insert((place, through));
                    }
                }
            }
        }
        under_way.pop();
        found
    }
}
