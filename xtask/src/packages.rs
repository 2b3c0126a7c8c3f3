//! The Debian packages that the end-to-end tests and the benchmarks use: real registries, runtimes, networks and rivals.

use anyhow::{Result, bail};

use crate::shell;

/// A program and the package that has it.
const NEEDED: [(&str, &str); 7] = [
    ("docker-registry", "docker-registry"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("skopeo", "skopeo"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
];

/// What the benchmarks need besides. Where there is systemd, the package of nginx also starts one of its own, on port 80.
const NEEDED_BY_BENCHES: [(&str, &str); 3] = [("nginx", "nginx-light"), ("wrk", "wrk"), ("taskset", "util-linux")];

/// Installs what is missing for the end-to-end tests, where that is possible.
///
/// # Errors
/// Names what is missing when it cannot be installed here.
pub(crate) fn install() -> Result<()> {
    install_all(&NEEDED)
}

/// Like [`install`], for the benchmarks.
///
/// # Errors
/// Names what is missing when it cannot be installed here.
pub(crate) fn install_for_benches() -> Result<()> {
    install_all(&[&NEEDED[..], &NEEDED_BY_BENCHES].concat())
}

fn install_all(needed: &[(&str, &'static str)]) -> Result<()> {
    let mut missing: Vec<&str> = needed
        .iter()
        .filter(|(program, _)| !shell::has(program))
        .map(|(_, package)| *package)
        .collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if !shell::has("apt-get") {
        bail!("this needs {}; install them and run it again", missing.join(", "));
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
                "this needs {}; run it as root, or install them",
                missing.join(", ")
            ))
        })
}
