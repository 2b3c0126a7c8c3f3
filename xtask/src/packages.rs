//! The Debian packages that the end-to-end tests, the benchmarks and packaging use: real registries, runtimes, networks and rivals.
//!
//! Invariant: an error names the packages that cannot be installed here.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::shell;

/// A program and the package that has it.
const NEEDED: [(&str, &str); 13] = [
    ("docker-registry", "docker-registry"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("skopeo", "skopeo"),
    ("podman", "podman"),
    ("buildah", "buildah"),
    ("dockerd", "docker.io"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    // It and its like are on no PATH.
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("curl", "curl"),
    // A clock of 1970, of one process.
    ("faketime", "faketime"),
];

/// The packages that only the benchmarks need. Where there is systemd, the package of nginx also starts one of its own, on port 80.
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
    add(need, &missing)
}

/// Installs packages. `need` begins the sentence that names them.
///
/// # Errors
/// Names them when they cannot be installed here.
pub(crate) fn add(need: &str, packages: &[&str]) -> Result<()> {
    if !shell::has("apt-get") {
        bail!("{need} {}; install them and run this again", packages.join(", "));
    }
    let quiet = [("DEBIAN_FRONTEND", "noninteractive")];
    let arguments = [&["install", "--yes", "--no-install-recommends"], packages].concat();
    shell::run_with("apt-get", &["update"], &quiet)
        .and_then(|()| shell::run_with("apt-get", &arguments, &quiet))
        .map_err(|error| {
            error.context(format!(
                "{need} {}; run this as root, or install them",
                packages.join(", ")
            ))
        })
}

/// Takes one file out of a package without installing it, since an installation may start a service. Needs no root.
///
/// # Errors
/// Names the package when it cannot be fetched here.
pub(crate) fn extract(need: &str, package: &str, file: &str, to: &Path) -> Result<()> {
    if !shell::has("apt-get") {
        bail!("{need}; put it on the PATH and run this again");
    }
    let folder = to.parent().context("the file is in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // Beside its place, and then moved there: what is cut off leaves nothing that looks like it.
    let scratch = tempfile::tempdir_in(folder).context("cannot make a folder among the tools")?;
    let here = scratch.path().to_str().context("the cache folder's name is not text")?;
    // apt-get downloads into the folder that it runs in.
    shell::run(
        "sh",
        &[
            "-c",
            "cd \"$1\" && apt-get download \"$2\" && dpkg-deb --extract ./*.deb .",
            "sh",
            here,
            package,
        ],
    )
    .map_err(|error| {
        error.context(format!(
            "{need}, which is in the package {package}; run apt-get update, or put it on the PATH"
        ))
    })?;
    fs::rename(scratch.path().join(file), to).with_context(|| format!("{package} has no {file}"))
}
