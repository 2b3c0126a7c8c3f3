//! `piecemeal chart`: what the Helm chart's hooks run, with the rights of a service account of their own.

mod keys;
mod own;
mod retire;
mod stay;
mod wait;

use clap::Subcommand;

use super::runtime;

#[derive(Debug, Subcommand)]
pub(super) enum ChartCommand {
    /// Make the site's keys as Secrets, where they are missing
    Keys(keys::KeysArgs),
    /// Give a folder of the host to a daemon that is not root
    Own(own::OwnArgs),
    /// Before an uninstallation: take the webhook out of the way of new pods, and delete what nobody needs any more
    Retire(retire::RetireArgs),
    /// Do nothing until SIGTERM
    Stay,
    /// After an uninstallation: wait until every node that can be reached is clean
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
