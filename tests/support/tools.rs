//! The system programs that the end-to-end tests drive.
//!
//! A missing program is a failed test that names the package to install, never a silent skip: a suite that skips itself
//! proves nothing.

#[path = "../../xtask/src/go_tools/versions.rs"]
mod versions;

#[path = "../../xtask/src/last_release/commit.rs"]
mod commit;

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
};

/// Panics, naming program and Debian package, when something that the tests run is not installed.
pub fn require_tools() {
    let missing: Vec<String> = TOOLS
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(program, package)| format!("{program} (apt-get install {package})"))
        .collect();
    assert!(missing.is_empty(), "the end-to-end tests need: {}", missing.join(", "));
    assert!(
        rustix::process::geteuid().is_root(),
        "the end-to-end tests make network namespaces: run them as root"
    );
}

/// Runs a command to its end and returns its standard output.
///
/// # Panics
/// With the command and what it said on standard error, when it fails.
pub fn run(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A program that `cargo xtask` has built, in the version pinned there.
///
/// # Panics
/// When it is not there.
pub fn go_tool(name: &str) -> PathBuf {
    let (version, command) = match name {
        "crane" => (versions::CRANE, "test"),
        "oras" => (versions::ORAS, "test"),
        "regctl" => (versions::REGCTL, "test"),
        "containerd" | "ctr" => (versions::CONTAINERD, "test"),
        "kubectl" | "kubelet" => (versions::KUBERNETES, "kube-assets"),
        component if component.starts_with("kube-") => (versions::KUBERNETES, "kube-assets"),
        "coredns" => (versions::COREDNS, "kube-assets"),
        "etcd" => (versions::ETCD, "kube-assets"),
        "helm" => (versions::HELM, "kube-assets"),
        "crictl" => (versions::CRICTL, "kube-assets"),
        other => panic!("no version of {other} is pinned"),
    };
    tool(&format!("{name}-{version}"), command)
}

/// The binary of the last release, which `cargo xtask test` has built.
///
/// # Panics
/// When it is not there.
pub fn last_release() -> PathBuf {
    tool(&format!("piecemeal-{}", commit::LAST_RELEASE), "test")
}

/// `command` of `cargo xtask` builds it.
fn tool(name: &str, command: &str) -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = cache.or_else(home).expect("XDG_CACHE_HOME or HOME is set");
    let file = cache.join(format!("piecemeal/tools/bin/{name}"));
    assert!(
        file.is_file(),
        "{} is missing: `cargo xtask {command}` builds it",
        file.display()
    );
    file
}

fn find_program(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

const TOOLS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    ("docker-registry", "docker-registry"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("skopeo", "skopeo"),
    ("podman", "podman"),
    ("buildah", "buildah"),
    ("dockerd", "docker.io"),
];
