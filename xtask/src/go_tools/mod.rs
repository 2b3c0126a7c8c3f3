//! Clients and a test suite that Debian does not have, or has too old: built by Go from pinned versions, once.
//!
//! They lie outside the clone. A tool that is there is not built again, and none is found half built.

mod versions;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell;

/// A program and how it is built.
struct Tool {
    name: &'static str,
    /// The package of its `main`, whose last element is what Go calls the program.
    package: &'static str,
    version: &'static str,
    tags: &'static str,
}

const TOOLS: [Tool; 5] = [
    Tool {
        name: "crane",
        package: "github.com/google/go-containerregistry/cmd/crane",
        version: versions::CRANE,
        tags: "",
    },
    Tool {
        name: "oras",
        package: "oras.land/oras/cmd/oras",
        version: versions::ORAS,
        tags: "",
    },
    Tool {
        name: "containerd",
        package: "github.com/containerd/containerd/v2/cmd/containerd",
        version: versions::CONTAINERD,
        tags: CONTAINERD_TAGS,
    },
    Tool {
        name: "ctr",
        package: "github.com/containerd/containerd/v2/cmd/ctr",
        version: versions::CONTAINERD,
        tags: CONTAINERD_TAGS,
    },
    Tool {
        name: "oci-conformance",
        package: "github.com/opencontainers/distribution-spec/conformance",
        version: versions::OCI_CONFORMANCE,
        tags: "",
    },
];

/// Without the snapshotters that need devices or C libraries.
const CONTAINERD_TAGS: &str = "no_btrfs,no_devmapper,no_zfs";

/// Builds what is missing.
///
/// # Errors
/// Says what to install when there is no Go.
pub(crate) fn install() -> Result<()> {
    let bin = bin_dir()?;
    fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    for tool in TOOLS {
        if !path(tool.name)?.is_file() {
            build(&tool)?;
        }
    }
    Ok(())
}

/// Where [`install`] puts a tool.
pub(crate) fn path(name: &str) -> Result<PathBuf> {
    let tool = TOOLS.iter().find(|tool| tool.name == name);
    let version = tool.with_context(|| format!("no tool is named {name}"))?.version;
    Ok(bin_dir()?.join(format!("{name}-{version}")))
}

fn bin_dir() -> Result<PathBuf> {
    Ok(shell::tools_dir()?.join("bin"))
}

fn build(tool: &Tool) -> Result<()> {
    if !shell::has("go") {
        bail!(
            "the end-to-end tests build {} with Go, and there is no `go` on the PATH: install Go 1.26 or newer and run this again",
            TOOLS.map(|tool| tool.name).join(", ")
        );
    }
    // Built beside its place and then moved there: a build that is cut off leaves nothing that looks like a tool.
    let scratch = tempfile::tempdir_in(bin_dir()?).context("cannot make a folder among the tools")?;
    let gobin = scratch.path().to_str().context("the cache folder's name is not text")?;
    let package = format!("{}@{}", tool.package, tool.version);
    let tags = format!("-tags={}", tool.tags);
    shell::run_with(
        "go",
        &["install", "-trimpath", "-ldflags=-s -w", &tags, &package],
        &[("GOBIN", gobin), ("CGO_ENABLED", "0")],
    )?;
    let built = tool.package.rsplit('/').next().unwrap_or(tool.name);
    fs::rename(scratch.path().join(built), path(tool.name)?).with_context(|| format!("go has built no {built}"))
}
