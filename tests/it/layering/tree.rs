//! Modules of a crate, the names in each of them, and the paths that their code mentions.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, Spacing, Span, TokenStream, TokenTree};
use syn::{
    Attribute, File, ImplItem, Item, Macro, Meta, Path, Stmt, Token, TraitItem, UseTree,
    VisRestricted, punctuated::Punctuated, spanned::Spanned as _, visit, visit::Visit,
};

/// Source texts by path below `src`.
pub type Files = BTreeMap<String, String>;

/// A module: a file, or an inline `mod` block in one.
pub struct Module {
    pub file: String,
    /// The root of its crate: of the library or of the program.
    pub root: usize,
    pub parent: Option<usize>,
    pub names: BTreeMap<String, Vec<Name>>,
    pub globs: Vec<Mention>,
    pub mentions: Vec<Mention>,
}

/// What a name in a module stands for.
#[derive(Clone)]
pub enum Name {
    Module(usize),
    Item,
    Import(Vec<String>),
}

/// A path in the code.
#[derive(Clone, Debug)]
pub struct Mention {
    pub path: Vec<String>,
    pub line: usize,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Use,
    Glob,
    /// In an expression, a type, an attribute or a macro's tokens.
    Inline,
}

/// All modules, without `#[cfg(test)]` code.
#[derive(Default)]
pub struct Tree {
    pub modules: Vec<Module>,
    pub library: Option<usize>,
    /// Lines per file, without those of `#[cfg(test)]` items.
    pub lines: BTreeMap<String, usize>,
    /// Files that only tests use.
    pub test_files: BTreeSet<String>,
    pub failures: Vec<String>,
}

impl Tree {
    pub fn read(files: &Files) -> Self {
        let mut tree = Self::default();
        for root in ["lib.rs", "main.rs"].into_iter().filter(|root| files.contains_key(*root)) {
            let module = tree.add_file(files, root, None);
            if root == "lib.rs" {
                tree.library = Some(module);
            }
        }
        let known = |file: &&String| {
            tree.lines.contains_key(*file)
                || tree.test_files.contains(*file)
                || tree.test_files.iter().any(|test| file.starts_with(&folder_of(test)))
        };
        let unknown: Vec<_> = files.keys().filter(|file| !known(file)).collect();
        tree.failures.extend(unknown.iter().map(|file| format!("src/{file}: in no module")));
        tree
    }

    fn add_file(&mut self, files: &Files, file: &str, parent: Option<usize>) -> usize {
        let text = &files[file];
        let parsed: File = syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
        let module = self.add_module(file, parent);
        let mut test_lines = 0;
        self.add_items(files, module, &folder_of(file), &parsed.items, &mut test_lines);
        self.lines.insert(file.to_owned(), text.lines().count() - test_lines);
        module
    }

    fn add_module(&mut self, file: &str, parent: Option<usize>) -> usize {
        let index = self.modules.len();
        self.modules.push(Module {
            file: file.to_owned(),
            root: parent.map_or(index, |parent| self.modules[parent].root),
            parent,
            names: BTreeMap::new(),
            globs: Vec::new(),
            mentions: Vec::new(),
        });
        index
    }

    /// Adds the items of a module whose submodules live in `folder`.
    fn add_items(
        &mut self,
        files: &Files,
        module: usize,
        folder: &str,
        items: &[Item],
        test_lines: &mut usize,
    ) {
        for item in items {
            if is_test(attributes(item)) {
                *test_lines += lines_of(item);
                if let Item::Mod(declared) = item
                    && declared.content.is_none()
                {
                    let name = declared.ident.to_string();
                    self.test_files.extend(child_file(files, folder, &name));
                }
                continue;
            }
            match item {
                Item::Mod(declared) => {
                    let name = declared.ident.to_string();
                    let child = match &declared.content {
                        Some((_, items)) => {
                            let file = self.modules[module].file.clone();
                            let child = self.add_module(&file, Some(module));
                            let folder = format!("{folder}{name}/");
                            self.add_items(files, child, &folder, items, test_lines);
                            child
                        }
                        None => match child_file(files, folder, &name) {
                            Some(file) => self.add_file(files, &file, Some(module)),
                            None => {
                                let file = &self.modules[module].file;
                                self.failures.push(format!("src/{file}: no file for mod {name}"));
                                continue;
                            }
                        },
                    };
                    self.name(module, name, Name::Module(child));
                }
                item => {
                    if let Some(name) = name_of(item) {
                        self.name(module, name, Name::Item);
                    }
                    let mut mentions = Mentions(Vec::new());
                    mentions.visit_item(item);
                    for (mention, name) in mentions.0 {
                        if let Some(name) = name {
                            self.name(module, name, Name::Import(mention.path.clone()));
                        }
                        if mention.kind == Kind::Glob {
                            self.modules[module].globs.push(mention.clone());
                        }
                        self.modules[module].mentions.push(mention);
                    }
                }
            }
        }
    }

    fn name(&mut self, module: usize, name: String, is: Name) {
        self.modules[module].names.entry(name).or_default().push(is);
    }
}

/// The folder of a file's submodules, with a slash at its end unless it is the root.
fn folder_of(file: &str) -> String {
    let (folder, name) = file.rsplit_once('/').map_or(("", file), |(folder, name)| (folder, name));
    let folder = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    match name {
        "mod.rs" | "lib.rs" | "main.rs" => folder,
        name => format!("{folder}{}/", name.trim_end_matches(".rs")),
    }
}

fn child_file(files: &Files, folder: &str, name: &str) -> Option<String> {
    let paths = [format!("{folder}{name}.rs"), format!("{folder}{name}/mod.rs")];
    paths.into_iter().find(|path| files.contains_key(path))
}

/// The lines of an item and of its attributes.
fn lines_of(item: &Item) -> usize {
    item.span().end().line - item.span().start().line + 1
}

/// Whether these attributes leave an item to tests.
fn is_test(attributes: &[Attribute]) -> bool {
    fn implies_test(condition: &Meta) -> bool {
        let parts = |list: &syn::MetaList| {
            list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).unwrap()
        };
        match condition {
            Meta::Path(path) => path.is_ident("test"),
            Meta::List(list) if list.path.is_ident("all") => parts(list).iter().any(implies_test),
            Meta::List(list) if list.path.is_ident("any") => parts(list).iter().all(implies_test),
            _ => false,
        }
    }
    attributes.iter().any(|attribute| {
        let path = attribute.path();
        path.segments.last().is_some_and(|last| last.ident == "test")
            || path.is_ident("cfg")
                && attribute.parse_args::<Meta>().is_ok_and(|condition| implies_test(&condition))
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn name_of(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

/// Collects mentions; those of `use` declarations with the name that they bring into scope.
struct Mentions(Vec<(Mention, Option<String>)>);

impl Mentions {
    fn inline(&mut self, path: Vec<String>, span: Span) {
        if path.len() > 1 {
            let line = span.start().line;
            self.0.push((Mention { path, line, kind: Kind::Inline }, None));
        }
    }

    fn use_tree(&mut self, tree: &UseTree, mut path: Vec<String>) {
        let line = tree.span().start().line;
        match tree {
            UseTree::Path(tree) => {
                path.push(tree.ident.to_string());
                self.use_tree(&tree.tree, path);
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.use_tree(tree, path.clone()));
            }
            UseTree::Glob(_) => self.0.push((Mention { path, line, kind: Kind::Glob }, None)),
            UseTree::Name(tree) => {
                if tree.ident != "self" {
                    path.push(tree.ident.to_string());
                }
                let name = path.last().cloned();
                self.0.push((Mention { path, line, kind: Kind::Use }, name));
            }
            UseTree::Rename(tree) => {
                if tree.ident != "self" {
                    path.push(tree.ident.to_string());
                }
                let name = Some(tree.rename.to_string());
                self.0.push((Mention { path, line, kind: Kind::Use }, name));
            }
        }
    }

    /// Finds paths in tokens that need not be Rust; `prefix` stands before a group such as `a::{…}`.
    fn tokens(&mut self, tokens: TokenStream, prefix: &[String]) {
        let mut path: Vec<String> = prefix.to_vec();
        // Whether a separator has just been read, so that the next word goes on with the path.
        let mut goes_on = !prefix.is_empty();
        let mut span = Span::call_site();
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Ident(word) => {
                    if !goes_on {
                        self.inline(std::mem::take(&mut path), span);
                        path.clear();
                    }
                    span = word.span();
                    path.push(word.to_string());
                    goes_on = false;
                }
                TokenTree::Punct(colon)
                    if colon.as_char() == ':'
                        && colon.spacing() == Spacing::Joint
                        && matches!(tokens.peek(), Some(TokenTree::Punct(next)) if next.as_char() == ':') =>
                {
                    tokens.next();
                    goes_on = !path.is_empty();
                }
                TokenTree::Group(group) => {
                    let of_path = goes_on && group.delimiter() == Delimiter::Brace;
                    if of_path {
                        let prefix = std::mem::take(&mut path);
                        self.tokens(group.stream(), &prefix);
                    } else {
                        self.inline(std::mem::take(&mut path), span);
                        self.tokens(group.stream(), &[]);
                    }
                    goes_on = false;
                }
                TokenTree::Punct(comma) => {
                    self.inline(std::mem::take(&mut path), span);
                    goes_on = false;
                    if comma.as_char() == ',' && !prefix.is_empty() {
                        path = prefix.to_vec();
                        goes_on = true;
                    }
                }
                TokenTree::Literal(_) => {
                    self.inline(std::mem::take(&mut path), span);
                    goes_on = false;
                }
            }
        }
        self.inline(path, span);
    }

    /// Finds paths in an attribute's strings, as in `#[serde(with = "crate::duration")]`.
    fn strings(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.strings(group.stream()),
                TokenTree::Literal(literal) => {
                    let text = literal.to_string();
                    if let Ok(path) = syn::parse_str::<Path>(text.trim_matches('"')) {
                        self.inline(segments(&path), literal.span());
                    }
                }
                _ => {}
            }
        }
    }
}

fn segments(path: &Path) -> Vec<String> {
    path.segments.iter().map(|segment| segment.ident.to_string()).collect()
}

impl<'ast> Visit<'ast> for Mentions {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_test(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes: &[Attribute] = match item {
            ImplItem::Const(item) => &item.attrs,
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Type(item) => &item.attrs,
            ImplItem::Macro(item) => &item.attrs,
            _ => &[],
        };
        if !is_test(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        let attributes: &[Attribute] = match item {
            TraitItem::Const(item) => &item.attrs,
            TraitItem::Fn(item) => &item.attrs,
            TraitItem::Type(item) => &item.attrs,
            TraitItem::Macro(item) => &item.attrs,
            _ => &[],
        };
        if !is_test(attributes) {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !is_test(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        let attributes: &[Attribute] = match statement {
            Stmt::Local(local) => &local.attrs,
            Stmt::Macro(call) => &call.attrs,
            _ => &[],
        };
        if !is_test(attributes) {
            visit::visit_stmt(self, statement);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(&item.tree, Vec::new());
    }

    fn visit_path(&mut self, path: &'ast Path) {
        self.inline(segments(path), path.span());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone(), &[]);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if attribute.path().is_ident("doc") {
            return;
        }
        self.visit_path(attribute.path());
        if let Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone(), &[]);
            self.strings(list.tokens.clone());
        }
    }

    /// `pub(in path)` imports nothing.
    fn visit_vis_restricted(&mut self, _: &'ast VisRestricted) {}
}
