//! `piecemeal chart stay`: keeps a pod whose work is done running, and thereby ready. One that ended would be restarted, and do its
//! work again.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

pub(super) async fn run() -> anyhow::Result<()> {
    // The first process of a container gets no signal for which it has no handler.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    say!("done; staying until SIGTERM");
    terminate.recv().await;
    Ok(())
}
