//! `piecemeal chart`: what the Helm chart's hooks run, with the rights of a service account of their own.

mod keys;
mod own;
mod retire;
mod stay;
mod wait;

use clap::Subcommand;

use crate::cli::http::runtime;

#[derive(Debug, Subcommand)]
pub(super) enum ChartCommand {
    /// Create the site's keys as Secrets, if they are missing
    Keys(keys::KeysArgs),
    /// Change the owner of a host folder to the daemon's user
    Own(own::OwnArgs),
    /// Before an uninstallation: remove the webhook's configuration, and delete the copies of pull secrets that no pod needs
    Retire(retire::RetireArgs),
    /// Wait for SIGTERM
    Stay,
    /// After an uninstallation: wait until every reachable node is clean
    Wait(wait::WaitArgs),
}

pub(super) fn run(command: ChartCommand) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        match command {
            ChartCommand::Keys(args) => keys::run(&args).await,
            ChartCommand::Own(args) => own::run(&args),
            ChartCommand::Stay => stay::run().await,
            ChartCommand::Retire(args) => retire::run(&args).await,
            ChartCommand::Wait(args) => wait::run(&args).await,
        }
    })
}
