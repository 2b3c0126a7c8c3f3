//! The crates stand as docs/ARCHITECTURE.md draws them: each may know those below it, and no other. Within a crate no file imports one
//! that imports it.

mod imports;

use std::{collections::BTreeMap, fs, path::Path};

use imports::circles;

/// Each crate, and the crates of this workspace that it may depend on.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("tls", &["proto"]),
    ("store", &["proto"]),
    ("http", &["proto", "tls"]),
    ("swarm", &["http", "proto", "store", "tls"]),
    ("upstream", &["proto", "store", "swarm", "tls"]),
    ("proxy", &["http", "proto", "store", "swarm", "tls", "upstream"]),
    (
        "mirror",
        &["http", "proto", "proxy", "store", "swarm", "tls", "upstream"],
    ),
    ("peer", &["http", "proto", "proxy", "store", "swarm", "tls", "upstream"]),
    ("scheduler", &["http", "proto", "tls"]),
    ("webhook", &["http", "proto", "tls"]),
    ("runtimes", &["proto"]),
];

#[test]
fn no_crate_knows_one_that_it_may_not() {
    let may_know: BTreeMap<&str, &[&str]> = MAY_KNOW.iter().copied().collect();
    for (name, known) in &may_know {
        for other in dependencies(&format!("{name}/Cargo.toml")) {
            assert!(known.contains(&other.as_str()), "{name} depends on {other}");
        }
    }
}

#[test]
fn every_crate_of_the_workspace_has_its_place() {
    let manifest: toml::Table = read("Cargo.toml").parse().expect("the workspace's Cargo.toml");
    let members = manifest["workspace"]["members"].as_array().expect("a list of members");
    for member in members
        .iter()
        .filter_map(toml::Value::as_str)
        .filter(|name| *name != "xtask")
    {
        assert!(
            MAY_KNOW.iter().any(|(name, _)| *name == member),
            "{member} has no place in {}",
            file!()
        );
    }
}

#[test]
fn no_file_imports_one_that_imports_it() {
    let crates = MAY_KNOW.iter().map(|(name, _)| format!("{name}/src"));
    let found: Vec<String> = crates
        .chain(["src".to_owned(), "xtask/src".to_owned()])
        .flat_map(|src| {
            let circles = circles(&Path::new(env!("CARGO_MANIFEST_DIR")).join(&src));
            circles.into_iter().map(move |circle| format!("{src}: {circle}"))
        })
        .collect();
    assert!(
        found.is_empty(),
        "files import each other in a circle:\n{}",
        found.join("\n")
    );
}

#[test]
fn a_circle_is_found_through_a_reexport_a_path_in_code_and_a_module_of_others() {
    let src = tempfile::tempdir().expect("a folder");
    for (file, text) in [
        ("lib.rs", "mod a;\nmod b;\nmod c;\nmod d;\npub use b::B;\n"),
        ("a.rs", "use crate::B;\npub struct A(B);\n"),
        ("b.rs", "pub struct B;\nfn b() { crate::c::inner::c() }\n"),
        ("c/mod.rs", "pub mod inner;\n"),
        ("c/inner.rs", "use super::super::a::A;\npub fn c() {}\n"),
        (
            "d.rs",
            "use crate::a::A;\n#[cfg(test)]\nmod tests { use crate::d::D; }\npub struct D(A);\n",
        ),
    ] {
        let path = src.path().join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
    let found = circles(src.path());
    assert_eq!(
        found,
        [
            "a.rs imports b.rs",
            "b.rs imports c/inner.rs",
            "c/inner.rs imports a.rs"
        ]
    );
}

/// The crates of this workspace in a manifest's `[dependencies]`.
fn dependencies(manifest: &str) -> Vec<String> {
    let table: toml::Table = read(manifest)
        .parse()
        .unwrap_or_else(|error| panic!("{manifest}: {error}"));
    let names = table["dependencies"].as_table().expect("dependencies").keys();
    names
        .filter_map(|name| name.strip_prefix("piecemeal-").map(str::to_owned))
        .collect()
}

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
