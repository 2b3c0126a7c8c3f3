//! The Debian packages that the end-to-end tests, the benchmarks and packaging use: real registries, runtimes, networks and rivals.

use anyhow::{Result, bail};

use crate::shell;

/// A program and the package that has it.
const NEEDED: [(&str, &str); 8] = [
    ("docker-registry", "docker-registry"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("skopeo", "skopeo"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    ("curl", "curl"),
];

/// What the benchmarks need besides. Where there is systemd, the package of nginx also starts one of its own, on port 80.
const NEEDED_BY_BENCHES: [(&str, &str); 3] = [("nginx", "nginx-light"), ("wrk", "wrk"), ("taskset", "util-linux")];

/// Installs what the end-to-end tests miss, where that is possible.
///
/// # Errors
/// Names what is missing when it cannot be installed here.
pub(crate) fn install() -> Result<()> {
    install_for("the end-to-end tests need", &NEEDED)
}

/// Like [`install`], for the benchmarks.
///
/// # Errors
/// Names what is missing when it cannot be installed here.
pub(crate) fn install_for_benches() -> Result<()> {
    let needed = [&NEEDED[..], &NEEDED_BY_BENCHES].concat();
    install_for("the benchmarks need", &needed)
}

/// Installs the programs that are missing, each from the package beside it. `need` begins the sentence that names the packages.
///
/// # Errors
/// Names what is missing when it cannot be installed here.
pub(crate) fn install_for(need: &str, programs: &[(&str, &'static str)]) -> Result<()> {
    let mut missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| !shell::has(program))
        .map(|(_, package)| *package)
        .collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if !shell::has("apt-get") {
        bail!("{need} {}; install them and run this again", missing.join(", "));
    }
    let quiet = [("DEBIAN_FRONTEND", "noninteractive")];
    let arguments: Vec<&str> = ["install", "--yes", "--no-install-recommends"]
        .into_iter()
        .chain(missing.iter().copied())
        .collect();
    shell::run_with("apt-get", &["update"], &quiet)
        .and_then(|()| shell::run_with("apt-get", &arguments, &quiet))
        .map_err(|error| {
            error.context(format!(
                "{need} {}; run this as root, or install them",
                missing.join(", ")
            ))
        })
}
