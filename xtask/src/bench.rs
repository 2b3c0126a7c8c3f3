//! The benchmarks. They print figures beside the bound or the rival measured in the same run, and assert nothing. `soak` alone
//! has a verdict, takes twenty minutes to reach it, and so runs only when it is named.

use anyhow::{Result, bail};

use crate::{packages, shell};

/// Name, package, cargo's bench target.
const BENCHES: [(&str, &str, &str); 6] = [
    ("leases", "piecemeal-scheduler", "leases"),
    ("open", "piecemeal-store", "open"),
    ("cold", "piecemeal", "cold"),
    ("serve", "piecemeal", "serve"),
    ("soak", "piecemeal", "soak"),
    ("webhook", "piecemeal", "webhook"),
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
        .filter(|(name, ..)| names.contains(name) || (names.is_empty() && *name != "soak"))
    {
        let bench = ["bench", "--locked", "--package", package, "--bench", target];
        shell::run("cargo", &[&bench, told].concat())?;
    }
    Ok(())
}
