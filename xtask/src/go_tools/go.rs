//! Go's environment and flags, the same for every tool.
//!
//! Invariant: a build uses no C and no other Go than the one that is installed.

use std::path::Path;

use anyhow::{Context, Result};

use super::list::Tool;

/// No C, so that the programs run everywhere; and no other Go than the one that is installed.
pub(super) const ENVIRONMENT: [(&str, &str); 2] = [("CGO_ENABLED", "0"), ("GOTOOLCHAIN", "local")];

/// Its tags; and for the linker, no tables for debuggers, and the program's stamps.
pub(super) fn build_flags(tool: &Tool) -> [String; 2] {
    let stamps = tool.stamps.iter().map(|(name, value)| format!(" -X {name}={value}"));
    let ldflags = format!("-ldflags=-s -w{}", stamps.collect::<String>());
    [format!("-tags={}", tool.tags), ldflags]
}

pub(super) fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the cache folder's name is not text")
}
