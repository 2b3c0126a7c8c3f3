//! `piecemeal cache`: lists, removes, verifies and prefetches what a running mirror or peer stores.
//!
//! The daemon does the work; this command asks its admin port and shows the answers.

mod client;
mod list;
mod remove;
mod show;
mod table;
mod verify;
mod warm;

use clap::Subcommand;

use crate::cli::http::runtime;

#[derive(Debug, Subcommand)]
pub(super) enum CacheCommand {
    /// List the cached images
    Ls(list::ListArgs),
    /// Show the manifests and blobs of an image, or the images of a blob
    Show(show::ShowArgs),
    /// Remove images with the blobs that no other image needs, or single blobs
    Rm(remove::RemoveArgs),
    /// Verify cached content against its digests, and remove what is damaged
    Verify(verify::VerifyArgs),
    /// Fetch images ahead of their first pull
    Warm(warm::WarmArgs),
}

pub(super) fn run(command: CacheCommand) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let done = runtime.block_on(async {
        match command {
            CacheCommand::Ls(args) => list::run(&args).await,
            CacheCommand::Show(args) => show::run(&args).await,
            CacheCommand::Rm(args) => remove::run(&args).await,
            CacheCommand::Verify(args) => verify::run(&args).await,
            CacheCommand::Warm(args) => warm::run(&args).await,
        }
    });
    runtime.shutdown_background();
    done
}
