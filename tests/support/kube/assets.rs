//! Where the programs of Kubernetes are: in the folder that `KUBEBUILDER_ASSETS` names, or else among the built ones.

use std::{env, path::PathBuf};

use super::super::tools::go_tool;

/// One of those that `cargo xtask kube-assets` builds.
///
/// # Panics
/// When it is not there, with the command that builds it.
pub(super) fn program(name: &str) -> PathBuf {
    let given = env::var_os("KUBEBUILDER_ASSETS").map(|folder| PathBuf::from(folder).join(name));
    given.filter(|file| file.is_file()).unwrap_or_else(|| go_tool(name))
}
