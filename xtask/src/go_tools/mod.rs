//! Programs that Debian does not have, or has too old: built by Go from pinned versions, once.
//!
//! They lie outside the clone. A tool that is there is not built again, and none is found half built.

mod go;
mod list;
mod own_module;
pub(crate) mod versions;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

pub(crate) use self::list::{CLIENTS, KUBERNETES, Tool};
use self::{
    go::{ENVIRONMENT, build_flags, text},
    list::BuildMethod,
};
use crate::shell;

/// Builds those of the tools that are missing.
///
/// # Errors
/// Says what to install when there is no Go.
pub(crate) fn install<'a>(tools: impl IntoIterator<Item = &'a Tool>) -> Result<()> {
    let bin = bin_dir()?;
    fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    for tool in tools {
        if !path(tool)?.is_file() {
            build(tool).with_context(|| format!("cannot build {} {}", tool.name, tool.version))?;
        }
    }
    Ok(())
}

/// The path at which [`install`] puts a tool.
pub(crate) fn path(tool: &Tool) -> Result<PathBuf> {
    Ok(bin_dir()?.join(format!("{}-{}", tool.name, tool.version)))
}

/// Like [`path`], for the client of this name.
pub(crate) fn client(name: &str) -> Result<PathBuf> {
    let client = CLIENTS.iter().find(|tool| tool.name == name);
    path(client.with_context(|| format!("no client is named {name}"))?)
}

fn bin_dir() -> Result<PathBuf> {
    Ok(shell::tools_dir()?.join("bin"))
}

fn build(tool: &Tool) -> Result<()> {
    ensure!(
        shell::has("go"),
        "the end-to-end tests use programs that are built with Go, and there is no `go` on the PATH: install Go 1.26 or newer and run this again"
    );
    eprintln!(
        "building {} {}: minutes the first time, then never again",
        tool.name, tool.version
    );
    // Built beside its place and then moved there: a build that is cut off leaves nothing that looks like a tool.
    let scratch = tempfile::tempdir_in(bin_dir()?).context("cannot make a folder among the tools")?;
    let built = match &tool.method {
        BuildMethod::Install => install_into(scratch.path(), tool)?,
        BuildMethod::OwnModule { module, siblings } => own_module::build(scratch.path(), tool, module, *siblings)?,
    };
    fs::rename(&built, path(tool)?).with_context(|| format!("go has built no {}", built.display()))
}

fn install_into(folder: &Path, tool: &Tool) -> Result<PathBuf> {
    let [tags, ldflags] = build_flags(tool);
    let package = format!("{}@{}", tool.package, tool.version);
    let environment = [("GOBIN", text(folder)?), ENVIRONMENT[0], ENVIRONMENT[1]];
    shell::run_with("go", &["install", "-trimpath", &tags, &ldflags, &package], &environment)?;
    // What Go calls the program.
    let name = tool.package.rsplit('/').next().unwrap_or(tool.name);
    Ok(folder.join(name))
}
