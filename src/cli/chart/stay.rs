//! `piecemeal chart stay`: a pod whose work is done stays ready for it. One that ended would be started again, and do it again.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

pub(super) async fn run() -> anyhow::Result<()> {
    // As the first process of a container it gets no signal that it does not ask for.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    say!("done; staying until SIGTERM");
    terminate.recv().await;
    Ok(())
}
