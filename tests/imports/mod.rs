//! Imports between the files of a crate, as its source states them.
//!
//! An import of a name counts as an import of the file that defines it: a `mod.rs` or `lib.rs` that only re-exports is transparent.
//! Unit tests do not count.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{Item, UseTree, visit::Visit};

/// The names of a module, from the crate's root on.
type Names = Vec<String>;

/// How many re-exports are followed from a name to its definition.
const REEXPORTS_MAX: usize = 16;

/// One file of a crate.
#[derive(Default)]
struct Module {
    file: PathBuf,
    /// The names of items that the file itself defines.
    defined: BTreeSet<String>,
    /// The names that `use` binds, and the paths that they stand for.
    bound: BTreeMap<String, Names>,
    /// The modules whose every name is imported.
    globs: Vec<Names>,
    /// The paths of code and imports, from the crate's root on.
    paths: BTreeSet<Names>,
}

/// The circles of files below `src`: each file that imports itself by way of others, with those that lead on towards it.
pub(crate) fn circles(src: &Path) -> Vec<String> {
    let modules = modules(src);
    let mut imports: BTreeMap<&Path, BTreeSet<&Path>> = modules
        .values()
        .map(|module| (module.file.as_path(), imported(&modules, module)))
        .collect();
    // Files that import none that is left are in no circle.
    while let Some(leaf) = imports.iter().find(|(_, to)| to.is_empty()).map(|(file, _)| *file) {
        imports.remove(leaf);
        for to in imports.values_mut() {
            to.remove(leaf);
        }
    }
    let reached = |from: &'_ Path| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(file) = next.pop() {
            let to = imports.get(file.as_path()).into_iter().flatten();
            next.extend(
                to.map(|file| file.to_path_buf())
                    .filter(|file| seen.insert(file.clone())),
            );
        }
        seen
    };
    let relative = |file: &Path| file.strip_prefix(src).unwrap_or(file).display().to_string();
    imports
        .iter()
        .filter(|(file, _)| reached(file).contains(**file))
        .map(|(file, to)| {
            let back = to.iter().filter(|to| reached(to).contains(*file));
            let back: Vec<String> = back.map(|to| relative(to)).collect();
            format!("{} imports {}", relative(file), back.join(", "))
        })
        .collect()
}

fn imported<'a>(modules: &'a BTreeMap<Names, Module>, module: &'a Module) -> BTreeSet<&'a Path> {
    let files = module
        .paths
        .iter()
        .filter_map(|path| definition(modules, path, REEXPORTS_MAX));
    files.filter(|file| *file != module.file).collect()
}

/// The file that defines the item at `path`; `None` for a module that only holds others, and for names of other crates.
fn definition<'a>(modules: &'a BTreeMap<Names, Module>, path: &[String], reexports: usize) -> Option<&'a Path> {
    let depth = (0..=path.len())
        .rev()
        .find(|&depth| modules.contains_key(&path[..depth]))?;
    let (at, module) = (&path[..depth], &modules[&path[..depth]]);
    let Some(item) = path.get(depth) else {
        return (!module.defined.is_empty()).then_some(module.file.as_path());
    };
    if module.defined.contains(item) {
        return Some(&module.file);
    }
    if let Some(target) = module.bound.get(item).filter(|_| reexports > 0) {
        let target = [target, &path[depth + 1..]].concat();
        return definition(modules, &target, reexports - 1);
    }
    let globbed = module.globs.iter().find_map(|glob| {
        let target = [glob, &path[depth..]].concat();
        let found = (reexports > 0 && glob.as_slice() != at).then(|| definition(modules, &target, reexports - 1));
        found.flatten()
    });
    globbed.or_else(|| (!module.defined.is_empty()).then_some(module.file.as_path()))
}

fn modules(src: &Path) -> BTreeMap<Names, Module> {
    let mut modules = BTreeMap::new();
    let mut folders = vec![src.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("an entry of a folder").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = module_name(path.strip_prefix(src).expect("it is in the folder"));
                modules.insert(name.clone(), read(path, name));
            }
        }
    }
    modules
}

fn module_name(file: &Path) -> Names {
    let names = file.with_extension("");
    let mut names: Names = names.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    let last = names.last().map(String::as_str);
    if matches!(last, Some("lib" | "mod")) || (names.len() == 1 && last == Some("main")) {
        names.pop();
    }
    names
}

fn read(file: PathBuf, name: Names) -> Module {
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut reader = Reader {
        name,
        module: Module {
            file,
            ..Module::default()
        },
    };
    reader.items(&parsed.items);
    reader.visit_file(&parsed);
    reader.module
}

/// Reader of one file.
struct Reader {
    name: Names,
    module: Module,
}

impl Reader {
    /// What the file defines, declares and binds at its top.
    fn items(&mut self, items: &[Item]) {
        for item in items.iter().filter(|item| !is_test(attributes(item))) {
            match item {
                Item::Use(item) => {
                    // Before code is read, so that a path of code may begin with what is bound here.
                    let is_private = matches!(item.vis, syn::Visibility::Inherited);
                    self.bind(&mut Vec::new(), &item.tree, is_private);
                }
                Item::Mod(item) if item.content.is_none() => {
                    let module = [self.name.as_slice(), &[item.ident.to_string()]].concat();
                    self.module.bound.insert(item.ident.to_string(), module);
                }
                item => self.module.defined.extend(defined(item)),
            }
        }
    }

    /// An import, which counts as one unless it is a re-export.
    fn bind(&mut self, path: &mut Names, tree: &UseTree, is_private: bool) {
        match tree {
            UseTree::Path(tree) => {
                path.push(tree.ident.to_string());
                self.bind(path, &tree.tree, is_private);
                path.pop();
            }
            UseTree::Name(tree) if tree.ident == "self" => {
                let name = path.last().cloned().unwrap_or_default();
                self.bind_name(name, path.clone(), is_private);
            }
            UseTree::Name(tree) => {
                let target = [path.as_slice(), &[tree.ident.to_string()]].concat();
                self.bind_name(tree.ident.to_string(), target, is_private);
            }
            UseTree::Rename(tree) => {
                let target = [path.as_slice(), &[tree.ident.to_string()]].concat();
                self.bind_name(tree.rename.to_string(), target, is_private);
            }
            UseTree::Glob(_) => {
                let absolute = self.absolute(path);
                self.module.globs.extend(absolute);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.bind(path, tree, is_private);
                }
            }
        }
    }

    fn bind_name(&mut self, name: String, path: Names, is_private: bool) {
        let Some(path) = self.absolute(&path) else { return };
        if is_private {
            self.module.paths.insert(path.clone());
        }
        self.module.bound.insert(name, path);
    }

    /// The path from the crate's root on; `None` for one of another crate.
    fn absolute(&self, path: &[String]) -> Option<Names> {
        let (first, rest) = path.split_first()?;
        let base = match first.as_str() {
            "crate" => Vec::new(),
            "self" => self.name.clone(),
            "super" => self.name.split_last()?.1.to_vec(),
            first => self.module.bound.get(first)?.clone(),
        };
        let supers = rest.iter().take_while(|name| *name == "super").count();
        let base = &base[..base.len().checked_sub(supers)?];
        Some([base, &rest[supers..]].concat())
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_test(attributes(item)) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, _: &'ast syn::ItemUse) {}

    /// `pub(in crate::module)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Names = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if names.len() > 1 {
            let absolute = self.absolute(&names);
            self.module.paths.extend(absolute);
        }
        syn::visit::visit_path(self, path);
    }
}

fn defined(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Mod(item) => &item.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

fn attributes(item: &Item) -> &[syn::Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether the item is compiled for tests or for the fuzzer alone.
fn is_test(attributes: &[syn::Attribute]) -> bool {
    let conditions = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg"));
    conditions
        .filter_map(|attribute| attribute.meta.require_list().ok())
        .map(|list| list.tokens.to_string())
        .any(|condition| condition == "test" || condition == "fuzzing" || condition.starts_with("any (test"))
}
