//! `piecemeal cache warm`: lets a daemon fetch images before they are pulled.
//!
//! Invariant: arguments that make no sense are found before the daemon is asked; it succeeds only when every image is here.

use std::{collections::HashMap, fs, path::PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use piecemeal_proto::{Digest, ImageReference, Platform};
use piecemeal_proxy::{WarmEvent, WarmRequest};

use super::client::{Admin, AdminArgs};
use crate::cli::{error::WrongArgumentError, status::format_bytes};

#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(in crate::cli) struct WarmArgs {
    /// Images, such as docker.io/library/alpine:3.20
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    admin: AdminArgs,
    /// Also read images from this file: one per line, comments after #
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The platform to fetch of a multi-platform image; may be repeated [linux and the architecture of the daemon's machine]
    #[arg(long = "platform", value_name = "OS/ARCH[/VARIANT]")]
    platforms: Vec<String>,
    /// Fetch every platform
    #[arg(long, conflicts_with = "platforms")]
    all_platforms: bool,
    /// Also make every peer of the mirror's pool fetch them, from each other
    #[arg(long)]
    peers: bool,
    /// Print the daemon's progress, one JSON object per line
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
The site's own credentials are used, or none: an image that takes a client's credential is reported, and the others go on.";

pub(super) async fn run(args: &WarmArgs) -> anyhow::Result<()> {
    let request = request(args)?;
    let admin = Admin::new(&args.admin)?;
    let mut lines = admin.begin("/cache/warm", &request).await?;
    let mut screen = Screen::new(args.json);
    let mut end = None;
    while let Some(line) = lines.next().await? {
        if args.json {
            println!("{line}");
        }
        // A line that only a later release's client understands is passed over.
        let Ok(event) = serde_json::from_str::<WarmEvent>(&line) else {
            continue;
        };
        screen.show(&event);
        if let WarmEvent::End { images, failed } = event {
            end = Some((images, failed));
        }
    }
    let told = screen.finish();
    let (images, failed) = end.context("the daemon ended its answer before it was done")?;
    if told > 0 && !args.json {
        println!(
            "the scheduler was told to let the peers of the mirror's pool fetch {told} images. This does not wait for them, nor \
             know how many there are: `piecemeal status` on a node shows what it is warming, and its log what it has left"
        );
    }
    if failed > 0 {
        bail!("{failed} of {images} images are not all here");
    }
    Ok(())
}

/// The request to the daemon. Errors in the arguments alone are found here, before the daemon is asked.
fn request(args: &WarmArgs) -> anyhow::Result<WarmRequest> {
    let mut images = args.images.clone();
    if let Some(file) = &args.file {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()));
        images.extend(images_in(
            &text.map_err(|error| WrongArgumentError(crate::cli::describe(&error)))?,
        ));
    }
    if images.is_empty() {
        return Err(WrongArgumentError("no image is named".to_owned()).into());
    }
    for image in &images {
        let parsed: Result<ImageReference, _> = image.parse();
        parsed.map_err(|error| WrongArgumentError(format!("{image:?} names no image: {error}")))?;
    }
    for platform in &args.platforms {
        let parsed: Result<Platform, _> = platform.parse();
        parsed.map_err(|error| WrongArgumentError(error.to_string()))?;
    }
    Ok(WarmRequest {
        images,
        platforms: args.platforms.clone(),
        all_platforms: args.all_platforms,
        peers: args.peers,
    })
}

/// An image a line; what follows a # is for people. No image's name has one.
fn images_in(text: &str) -> Vec<String> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Bars on a terminal; lines everywhere; nothing where the lines are the daemon's own.
struct Screen {
    is_silent: bool,
    bars: MultiProgress,
    style: ProgressStyle,
    blobs: HashMap<(String, Digest), ProgressBar>,
    told: u64,
}

impl Screen {
    fn new(is_silent: bool) -> Self {
        let target = if is_silent {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        Self {
            is_silent,
            bars: MultiProgress::with_draw_target(target),
            style: ProgressStyle::with_template("{prefix} {wide_bar} {bytes:>10}/{total_bytes} {bytes_per_sec:>12}")
                .expect("the template is right"),
            blobs: HashMap::new(),
            told: 0,
        }
    }

    fn show(&mut self, event: &WarmEvent) {
        match event {
            WarmEvent::Progress {
                image,
                digest,
                blob_bytes,
                here_bytes,
            } => {
                let (bars, style) = (&self.bars, &self.style);
                let bar = self.blobs.entry((image.clone(), *digest)).or_insert_with(|| {
                    let bar = ProgressBar::new(*blob_bytes).with_style(style.clone());
                    bars.add(bar.with_prefix(digest.hex()[..12].to_owned()))
                });
                bar.set_position(*here_bytes);
            }
            WarmEvent::Blob { image, digest, .. } | WarmEvent::BlobFailed { image, digest, .. } => {
                if let Some(bar) = self.blobs.remove(&(image.clone(), *digest)) {
                    bar.finish_and_clear();
                    self.bars.remove(&bar);
                }
            }
            WarmEvent::PeersTold { .. } => self.told += 1,
            WarmEvent::BlobLeftOut { .. } => {}
            WarmEvent::Resolved { .. } | WarmEvent::Done { .. } | WarmEvent::Failed { .. } | WarmEvent::End { .. } => {}
        }
        if let Some(text) = text(event).filter(|_| !self.is_silent) {
            self.bars.suspend(|| println!("{text}"));
        }
    }

    /// The images that peers were told of.
    fn finish(self) -> u64 {
        // An error is a terminal that is gone.
        let _ = self.bars.clear();
        self.told
    }
}

fn text(event: &WarmEvent) -> Option<String> {
    match event {
        WarmEvent::Resolved {
            image,
            digest,
            blobs,
            bytes,
        } => Some(format!("{image}: {digest}, {blobs} blobs, {}", format_bytes(*bytes))),
        WarmEvent::Blob {
            digest,
            blob_bytes,
            fetched: true,
            ..
        } => Some(format!("  {digest}: {} fetched", format_bytes(*blob_bytes))),
        WarmEvent::BlobLeftOut { digest, why, .. } => Some(format!("  {digest}: left out: {why}")),
        WarmEvent::BlobFailed { digest, error, .. } => Some(format!("  {digest}: failed: {error}")),
        WarmEvent::Done {
            image,
            fetched_bytes: 0,
        } => Some(format!("{image}: was here already")),
        WarmEvent::Done { image, fetched_bytes } => {
            Some(format!("{image}: is here, {} fetched", format_bytes(*fetched_bytes)))
        }
        WarmEvent::Failed { image, error } => Some(format!("{image}: failed: {error}")),
        WarmEvent::Progress { .. }
        | WarmEvent::Blob { fetched: false, .. }
        | WarmEvent::PeersTold { .. }
        | WarmEvent::End { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_an_image_a_line_and_comments() {
        let text = "# what the till needs\ndocker.io/library/alpine:3.20\n\n  ghcr.io/a/b:1  # pinned\n#x\n";
        assert_eq!(images_in(text), ["docker.io/library/alpine:3.20", "ghcr.io/a/b:1"]);
        assert!(images_in("").is_empty());
    }

    #[test]
    fn what_came_and_what_did_not_is_said() {
        let image = || "docker.io/library/alpine:3".to_owned();
        let done = |fetched_bytes| {
            text(&WarmEvent::Done {
                image: image(),
                fetched_bytes,
            })
        };
        assert_eq!(done(0).as_deref(), Some("docker.io/library/alpine:3: was here already"));
        assert_eq!(
            done(1500).as_deref(),
            Some("docker.io/library/alpine:3: is here, 1.5 kB fetched")
        );
        let failed = text(&WarmEvent::Failed {
            image: image(),
            error: "why".to_owned(),
        });
        assert_eq!(failed.as_deref(), Some("docker.io/library/alpine:3: failed: why"));
    }
}
