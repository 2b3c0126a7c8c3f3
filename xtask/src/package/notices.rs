//! The notices and licences of the code that is linked into the binary: most of them must be distributed with it.
//!
//! Invariant: a crate that is only used while building or testing has no notice.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::target::Target;
use crate::shell;

/// The beginnings of the names of files that a crate's author wants to be passed on.
const NAMES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
const HEAD: &str = "\
Piecemeal is licensed under the Apache License, Version 2.0. Linked into its binary are the crates below, each under the licence that
stands beside its name, with the files that its authors ship about that, and the Rust standard library (MIT OR Apache-2.0).
";
const HEAD_GLIBC: &str = "\
It is linked with the GNU C library (LGPL-2.1-or-later) of the machine that built it. Piecemeal's sources are all that it takes to link it
with another.
";

/// The text for one target.
pub(super) fn collect(target: &Target) -> Result<String> {
    let arguments = [
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--filter-platform",
        target.triple,
    ];
    let metadata: Value =
        serde_json::from_str(&shell::output("cargo", &arguments)?).context("what cargo metadata printed")?;
    let mut text = HEAD.to_owned();
    if !target.is_musl() {
        text += HEAD_GLIBC;
    }
    let mut told = HashMap::new();
    for package in linked(&metadata)? {
        // Ours have no registry.
        if !package["source"].is_null() {
            text += &notice(package, &mut told)?;
        }
    }
    Ok(text)
}

/// The packages that the binary is linked from, by name.
fn linked(metadata: &Value) -> Result<Vec<&Value>> {
    let packages = index(&metadata["packages"]);
    let nodes = index(&metadata["resolve"]["nodes"]);
    let root = packages
        .iter()
        .find(|(_, package)| package["name"] == "piecemeal")
        .context("cargo metadata does not know piecemeal")?;
    let mut found = BTreeSet::new();
    let mut open = vec![*root.0];
    while let Some(id) = open.pop() {
        if found.insert(id) {
            let dependencies = nodes[id]["deps"].as_array().into_iter().flatten();
            open.extend(
                dependencies
                    .filter(|dependency| is_linked(dependency))
                    .filter_map(|dependency| dependency["pkg"].as_str()),
            );
        }
    }
    let mut found: Vec<&Value> = found.into_iter().map(|id| packages[id]).collect();
    found.sort_by_key(|package| (package["name"].as_str(), package["version"].as_str()));
    Ok(found)
}

/// A list of objects by their ids.
fn index(list: &Value) -> HashMap<&str, &Value> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(|item| Some((item["id"].as_str()?, item))).collect()
}

/// Not only used while building or testing.
fn is_linked(dependency: &Value) -> bool {
    let kinds = dependency["dep_kinds"].as_array();
    kinds.into_iter().flatten().any(|kind| kind["kind"].is_null())
}

/// `told`: the files so far, by their text, with where each is. Most are the same few licences word for word.
fn notice(package: &Value, told: &mut HashMap<String, String>) -> Result<String> {
    let field = |name: &str| package[name].as_str().unwrap_or("(none stated)");
    let mut text = format!(
        "\n{RULE}\n{} {}: {}\n",
        field("name"),
        field("version"),
        field("license")
    );
    let dir = Path::new(field("manifest_path"))
        .parent()
        .context("a manifest lies in a folder")?;
    let mut files: Vec<_> = fs::read_dir(dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file() && is_notice(path))
        .collect();
    files.sort();
    for file in files {
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let content = String::from_utf8_lossy(&content).trim().to_owned();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        match told.get(&content) {
            Some(place) => text += &format!("\n{name}: the same text as {place}\n"),
            None => {
                text += &format!("\n{name}:\n\n{content}\n");
                told.insert(content, format!("{name} of {} {}", field("name"), field("version")));
            }
        }
    }
    Ok(text)
}

fn is_notice(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
    NAMES.iter().any(|start| name.starts_with(start))
}

const RULE: &str = "--------------------------------------------------------------------------------";
