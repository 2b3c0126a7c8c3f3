//! A build of a program whose own module replaces others: in an empty module that requires it, and that replaces as it does.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    go::{ENVIRONMENT, build_flags, text},
    list::Tool,
};
use crate::shell;

/// Builds the program in `folder`, which is empty, and says where it is.
pub(super) fn build(folder: &Path, tool: &Tool, module: &str, siblings: Option<&str>) -> Result<PathBuf> {
    let here = text(folder)?;
    let go = |arguments: &[&str]| shell::run_with("go", &[&["-C", here], arguments].concat(), &ENVIRONMENT);
    go(&["mod", "init", "local/tool"])?;
    if let Some(version) = siblings {
        let replaced = replaced_by_folders(module, tool.version)?;
        let flags = replaced.iter().map(|path| format!("-replace={path}={path}@{version}"));
        let flags: Vec<String> = flags.collect();
        let edit = ["mod", "edit"].into_iter().chain(flags.iter().map(String::as_str));
        go(&edit.collect::<Vec<&str>>())?;
    }
    go(&["get", "-tool", &format!("{}@{}", tool.package, tool.version)])?;
    let [tags, ldflags] = build_flags(tool);
    let built = folder.join(tool.name);
    go(&["build", "-trimpath", &tags, &ldflags, "-o", text(&built)?, tool.package])?;
    Ok(built)
}

/// The modules that a module takes from folders of its own source tree.
fn replaced_by_folders(module: &str, version: &str) -> Result<Vec<String>> {
    eprintln!("downloading {module} {version}");
    let download = json(&["mod", "download", "-json", &format!("{module}@{version}")])?;
    let go_mod = download["GoMod"].as_str().context("go has downloaded no go.mod")?;
    let described = json(&["mod", "edit", "-json", go_mod])?;
    let replaces = described["Replace"].as_array().into_iter().flatten();
    Ok(replaces
        .filter(|replace| {
            replace["New"]["Path"]
                .as_str()
                .is_some_and(|path| path.starts_with('.'))
        })
        .filter_map(|replace| replace["Old"]["Path"].as_str().map(str::to_owned))
        .collect())
}

fn json(arguments: &[&str]) -> Result<Value> {
    let output = shell::output("go", arguments)?;
    serde_json::from_str(&output).with_context(|| format!("go {} printed no JSON", arguments.join(" ")))
}
