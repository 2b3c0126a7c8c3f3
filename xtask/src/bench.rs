//! The benchmarks. They print figures beside the bound or the rival measured in the same run, and assert nothing. `soak` alone
//! has a verdict, takes twenty minutes to reach it, and so runs only when it is named.

use anyhow::{Result, bail};

use crate::{packages, shell};

/// Name, package, cargo's bench target.
const BENCHES: [(&str, &str, &str); 3] = [
    ("leases", "piecemeal-scheduler", "leases"),
    ("cold", "piecemeal", "cold"),
    ("soak", "piecemeal", "soak"),
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
        .filter(|(name, ..)| names.contains(name) || (names.is_empty() && *name != "soak"))
    {
        shell::run("cargo", &["bench", "--locked", "--package", package, "--bench", target])?;
    }
    Ok(())
}
