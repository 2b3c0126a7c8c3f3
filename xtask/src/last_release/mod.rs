//! The last release's binary, built from its commit once: the tests run its daemons beside this tree's.
//!
//! It lies outside the clone. A binary that is there is not built again, and none is found half built.

pub(crate) mod commit;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};

use self::commit::LAST_RELEASE;
use crate::shell;

/// Builds it where it is missing.
///
/// # Errors
/// Says what to do when this clone has not the release's commit.
pub(crate) fn install() -> Result<()> {
    let place = path()?;
    if place.is_file() {
        return Ok(());
    }
    let known = format!("{LAST_RELEASE}^{{commit}}");
    ensure!(
        shell::output("git", &["cat-file", "-e", &known]).is_ok(),
        "the tests run the last release beside this tree, and this clone has not its commit {LAST_RELEASE}: run `git fetch --unshallow`"
    );
    eprintln!("building the last release, {LAST_RELEASE}: minutes the first time, then never again");
    let folder = place.parent().context("the binary is in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // Built beside its place and then moved there.
    let scratch = tempfile::tempdir_in(folder).context("cannot make a folder among the tools")?;
    let tree = scratch.path().to_str().context("the cache folder's name is not text")?;
    let script = "git archive \"$1\" | tar --extract --directory \"$2\" && cd \"$2\" && cargo build --quiet --locked --target-dir target";
    shell::run("sh", &["-c", script, "sh", LAST_RELEASE, tree])?;
    fs::rename(scratch.path().join("target/debug/piecemeal"), &place)
        .with_context(|| format!("cannot move the binary to {}", place.display()))
}

fn path() -> Result<PathBuf> {
    Ok(shell::tools_dir()?.join(format!("bin/piecemeal-{LAST_RELEASE}")))
}
