//! A release: the folder of its files, their time and their version.
//!
//! Invariant: its time is that of the commit, or `SOURCE_DATE_EPOCH`.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::shell;

pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The folder of the results, and the time that they bear.
pub(super) struct Release {
    pub(super) out: PathBuf,
    /// Seconds since 1970.
    pub(super) epoch: u64,
}

impl Release {
    /// Copies what was checked to where releases go.
    pub(super) fn keep(&self, from: &Path, name: &str) -> Result<()> {
        let to = self.out.join(name);
        fs::copy(from, &to).with_context(|| format!("cannot write {}", to.display()))?;
        Ok(())
    }
}

/// When what is packaged was committed.
pub(super) fn epoch() -> Result<u64> {
    let text = match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => shell::output("git", &["log", "-1", "--format=%ct"])
            .context("this is no clone to take the time from; set SOURCE_DATE_EPOCH")?,
    };
    text.trim()
        .parse()
        .with_context(|| format!("SOURCE_DATE_EPOCH is seconds since 1970, and not {:?}", text.trim()))
}

/// A path as an argument.
pub(super) fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not text", path.display()))
}
