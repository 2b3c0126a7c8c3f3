//! The benchmarks. They print figures beside the bound or the rival measured in the same run, and assert nothing.

use anyhow::{Result, bail};

use crate::{packages, shell};

/// Name, package, cargo's bench target.
const BENCHES: [(&str, &str, &str); 3] = [
    ("leases", "piecemeal-scheduler", "leases"),
    ("cold", "piecemeal", "cold"),
    ("serve", "piecemeal", "serve"),
];

/// Names of benchmarks; after `--`, what those are told themselves.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let end = arguments.iter().position(|argument| *argument == "--");
    let (names, told) = arguments.split_at(end.unwrap_or(arguments.len()));
    if let Some(unknown) = names
        .iter()
        .find(|name| !BENCHES.iter().any(|(known, ..)| known == *name))
    {
        bail!(
            "there is no benchmark {unknown}; there are: {}",
            BENCHES.map(|(name, ..)| name).join(", ")
        );
    }
    packages::install_for_benches()?;
    for (_, package, target) in BENCHES
        .iter()
        .filter(|(name, ..)| names.is_empty() || names.contains(name))
    {
        let bench = ["bench", "--locked", "--package", package, "--bench", target];
        shell::run("cargo", &[&bench, told].concat())?;
    }
    Ok(())
}
