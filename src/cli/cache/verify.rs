//! `piecemeal cache verify`: lets a daemon hash its blobs again.
//!
//! Invariant: it succeeds only when no blob was damaged and none failed to be read.

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use piecemeal_proxy::{VerifyEvent, VerifyRequest};

use super::client::{Admin, AdminArgs};
use crate::{
    cli::{WrongArgumentError, status::format_bytes},
    config::parse_size,
};

#[derive(Args, Debug)]
pub(in crate::cli) struct VerifyArgs {
    /// Images, or the digests of blobs; absent: everything
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    admin: AdminArgs,
    /// The read limit in bytes per second, such as 20M [no limit]
    #[arg(long, value_name = "SIZE")]
    rate: Option<String>,
    /// Print the daemon's progress, one JSON object per line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &VerifyArgs) -> anyhow::Result<()> {
    let rate = args.rate.as_deref().map(|text| match parse_size(text) {
        Ok(0) => Err(WrongArgumentError("--rate 0: give a positive rate".to_owned())),
        Ok(rate) => Ok(rate),
        Err(error) => Err(WrongArgumentError(format!("--rate {text:?}: {error}"))),
    });
    let request = VerifyRequest {
        names: args.names.clone(),
        bytes_per_second: rate.transpose()?,
    };
    let admin = Admin::new(&args.admin)?;
    let mut lines = admin.begin("/cache/verify", &request).await?;
    let target = if args.json {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let style = ProgressStyle::with_template("verifying {wide_bar} {bytes:>10}/{total_bytes} {bytes_per_sec:>12}")
        .expect("the template is right");
    let bar = ProgressBar::with_draw_target(Some(0), target).with_style(style);
    let mut end = None;
    while let Some(line) = lines.next().await? {
        if args.json {
            println!("{line}");
        }
        // A line that only a later release's client understands is passed over.
        let Ok(event) = serde_json::from_str::<VerifyEvent>(&line) else {
            continue;
        };
        match &event {
            VerifyEvent::Begin { bytes, .. } => bar.set_length(*bytes),
            VerifyEvent::Progress { bytes, .. } => bar.set_position(*bytes),
            VerifyEvent::End { .. } => end = Some(event.clone()),
            VerifyEvent::Damaged { .. } | VerifyEvent::Failed { .. } => {}
        }
        if let Some(text) = text(&event).filter(|_| !args.json) {
            bar.suspend(|| println!("{text}"));
        }
    }
    bar.finish_and_clear();
    let end = end.context("the daemon ended its answer before it was done")?;
    verdict(&end)
}

fn text(event: &VerifyEvent) -> Option<String> {
    match event {
        VerifyEvent::Begin { .. } | VerifyEvent::Progress { .. } => None,
        VerifyEvent::Damaged { digest, names } if names.is_empty() => Some(format!("damaged: {digest}")),
        VerifyEvent::Damaged { digest, names } => Some(format!("damaged: {digest} (of {})", names.join(", "))),
        VerifyEvent::Failed { digest, error } => Some(format!("not verified: {digest}: {error}")),
        VerifyEvent::End { good, gone, bytes, .. } => {
            let gone = match gone {
                0 => String::new(),
                count => format!("; {count} have left the cache meanwhile"),
            };
            Some(format!("{good} blobs are good; {} read{gone}", format_bytes(*bytes)))
        }
    }
}

fn verdict(end: &VerifyEvent) -> anyhow::Result<()> {
    let VerifyEvent::End { damaged, failed, .. } = end else {
        return Ok(());
    };
    match (damaged, failed) {
        (0, 0) => Ok(()),
        (_, 0) => bail!("{damaged} blobs were damaged and dropped; they are fetched again when they are asked for"),
        _ => bail!("{failed} blobs could not be verified, and {damaged} were damaged and dropped"),
    }
}

#[cfg(test)]
mod tests {
    use piecemeal_proto::Digest;

    use super::*;

    fn end(damaged: u64, failed: u64) -> VerifyEvent {
        VerifyEvent::End {
            good: 3,
            damaged,
            failed,
            gone: 0,
            bytes: 2000,
        }
    }

    #[test]
    fn what_is_damaged_is_named_and_an_error() {
        let digest = Digest::of(b"x");
        let damaged = VerifyEvent::Damaged {
            digest,
            names: vec!["docker.io/a/b:1".to_owned()],
        };
        assert_eq!(text(&damaged), Some(format!("damaged: {digest} (of docker.io/a/b:1)")));
        assert!(verdict(&end(0, 0)).is_ok());
        assert!(verdict(&end(1, 0)).is_err() && verdict(&end(0, 1)).is_err() && verdict(&end(2, 1)).is_err());
        assert_eq!(text(&end(0, 0)).as_deref(), Some("3 blobs are good; 2.0 kB read"));
    }
}
