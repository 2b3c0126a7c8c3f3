//! The benchmarks. They print figures beside the bound or the rival measured in the same run, and assert nothing.

use anyhow::{Result, bail};

use crate::{packages, shell};

/// Name, package, cargo's bench target.
const BENCHES: [(&str, &str, &str); 2] = [
    ("leases", "piecemeal-scheduler", "leases"),
    ("cold", "piecemeal", "cold"),
];

pub(crate) fn run(names: &[&str]) -> Result<()> {
    if let Some(unknown) = names
        .iter()
        .find(|name| !BENCHES.iter().any(|(known, ..)| known == *name))
    {
        bail!(
            "there is no benchmark {unknown}; there are: {}",
            BENCHES.map(|(name, ..)| name).join(", ")
        );
    }
    packages::install()?;
    for (_, package, target) in BENCHES
        .iter()
        .filter(|(name, ..)| names.is_empty() || names.contains(name))
    {
        shell::run("cargo", &["bench", "--locked", "--package", package, "--bench", target])?;
    }
    Ok(())
}
