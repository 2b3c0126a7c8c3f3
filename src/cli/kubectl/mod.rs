//! `kubectl piecemeal …`: the same binary under the name `kubectl-piecemeal`, or `piecemeal kubectl …`.
//!
//! The verdicts on pods come from the webhook's own code and the webhook's own settings, read from the cluster.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "these docs are the text of --help, where brackets hold the defaults"
)]

mod cluster;
mod diff;
mod installation;
mod node;
mod pods;
mod preflight;
mod status;
mod uninstall_check;
mod warm;
mod why;

use clap::Subcommand;

use crate::cli::http::runtime;

/// The name under which kubectl finds this binary.
pub(super) const PLUGIN: &str = "kubectl-piecemeal";

#[derive(Debug, Subcommand)]
pub(super) enum KubectlCommand {
    /// Show the components of each pool
    Status(status::StatusArgs),
    /// Explain why a pod's images are accelerated, or why not
    Why(why::WhyArgs),
    /// Check the cluster, before an installation or after it
    Preflight(preflight::PreflightArgs),
    /// Show the files that node set-up wrote for a node's container runtime
    Node(node::NodeArgs),
    /// List pods whose images are accelerated, or would be if they were created again
    Pods(pods::PodsArgs),
    /// Make a pool's mirror fetch an image ahead of its first pull
    Warm(warm::WarmArgs),
    /// Show what the webhook would change in pods, pod templates or files
    Diff(diff::DiffArgs),
    /// Check what an uninstallation would leave behind
    UninstallCheck(uninstall_check::UninstallCheckArgs),
}

/// The command line under that name.
pub(super) fn plugin() -> clap::Command {
    let command = clap::Command::new(PLUGIN)
        .bin_name("kubectl piecemeal")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Looks at Piecemeal in a cluster, and at its pods.")
        .subcommand_required(true)
        .arg_required_else_help(true);
    KubectlCommand::augment_subcommands(command)
}

pub(super) fn run(command: KubectlCommand) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        match command {
            KubectlCommand::Status(args) => status::run(&args).await,
            KubectlCommand::Why(args) => why::run(&args).await,
            KubectlCommand::Preflight(args) => preflight::run(&args).await,
            KubectlCommand::Node(args) => node::run(&args).await,
            KubectlCommand::Pods(args) => pods::run(&args).await,
            KubectlCommand::Warm(args) => warm::run(&args).await,
            KubectlCommand::Diff(args) => diff::run(&args).await,
            KubectlCommand::UninstallCheck(args) => uninstall_check::run(&args).await,
        }
    })
}
