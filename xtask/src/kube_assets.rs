//! A Kubernetes for the tests: etcd, the API server, the controllers, what nodes run, and the programs of its operators.
//!
//! `KUBEBUILDER_ASSETS`, as other projects' tests know it, names a folder whose programs replace those built here. By that
//! convention it has an etcd, a kube-apiserver and a kubectl; what else the tests run is built all the same.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    go_tools::{self, KUBERNETES, Tool, versions},
    shell,
};

/// Installs everything and says how to let others use it.
pub(crate) fn run() -> Result<()> {
    install()?;
    let folder = match given() {
        Some(folder) => folder,
        None => link_all()?,
    };
    println!("export KUBEBUILDER_ASSETS={}", folder.display());
    Ok(())
}

/// Builds what neither `KUBEBUILDER_ASSETS` nor an earlier run has.
///
/// # Errors
/// Says what to install when there is no Go, and what a folder lacks that was given.
pub(crate) fn install() -> Result<()> {
    let given = given();
    let is_given = |tool: &&Tool| given.as_ref().is_some_and(|folder| folder.join(tool.name).is_file());
    if let Some(folder) = &given {
        let names: Vec<&str> = KUBERNETES.iter().filter(is_given).map(|tool| tool.name).collect();
        ensure!(
            CONVENTION.iter().all(|name| names.contains(name)),
            "KUBEBUILDER_ASSETS names {}, which has not all of {}: name another folder, or unset it and they are built",
            folder.display(),
            CONVENTION.join(", ")
        );
        eprintln!(
            "from {}, as KUBEBUILDER_ASSETS says: {}",
            folder.display(),
            names.join(", ")
        );
    }
    go_tools::install(KUBERNETES.iter().filter(|tool| !is_given(tool)))
}

/// The folder that the variable names. Set to nothing it counts as unset.
fn given() -> Option<PathBuf> {
    let folder = env::var_os("KUBEBUILDER_ASSETS").filter(|folder| !folder.is_empty());
    folder.map(PathBuf::from)
}

/// The folder of this Kubernetes, in which every program has its plain name, as the convention wants it.
fn link_all() -> Result<PathBuf> {
    let folder = shell::tools_dir()?.join(format!("kubernetes-{}", versions::KUBERNETES));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for tool in &KUBERNETES {
        link(&go_tools::path(tool)?, &folder, tool.name)?;
    }
    Ok(folder)
}

/// Makes the link, or lets it point to the pinned version again. It is never absent meanwhile: tests may be starting it.
fn link(program: &Path, folder: &Path, name: &str) -> Result<()> {
    let place = folder.join(name);
    let scratch = tempfile::tempdir_in(folder).context("cannot make a folder among the tools")?;
    let new = scratch.path().join(name);
    symlink(program, &new)
        .and_then(|()| fs::rename(&new, &place))
        .with_context(|| format!("cannot make the link {}", place.display()))
}

/// The programs that `KUBEBUILDER_ASSETS` has to have.
const CONVENTION: [&str; 3] = ["etcd", "kube-apiserver", "kubectl"];
