//! Transfer of an image's blobs, three at once as containerd does, hashed as they come.
//!
//! Invariant: a blob counts only when its size and digest are right.

use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use piecemeal_proto::{Descriptor, Hasher};
use reqwest::StatusCode;

use super::registry::Registry;

/// Result of a transfer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Transferred {
    pub(super) bytes: u64,
    pub(super) blobs: usize,
    pub(super) first_byte: Option<Instant>,
}

/// Fetches every blob and checks its size and digest. Progress is drawn only on a terminal.
pub(super) async fn transfer(
    registry: &Registry,
    blobs: &[Descriptor],
    show_progress: bool,
) -> anyhow::Result<Transferred> {
    let target = if show_progress {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bars = MultiProgress::with_draw_target(target);
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {bytes:>10}/{total_bytes} {bytes_per_sec:>12}")
        .expect("the template is right");
    let fetches = blobs.iter().map(|blob| {
        let bar = bars.add(
            ProgressBar::new(blob.size)
                .with_style(style.clone())
                .with_prefix(blob.digest.hex()[..12].to_owned()),
        );
        fetch(registry, blob, bar)
    });
    let first_bytes: Vec<Option<Instant>> = stream::iter(fetches)
        .buffer_unordered(FETCHES_MAX)
        .try_collect()
        .await?;
    Ok(Transferred {
        bytes: blobs.iter().map(|blob| blob.size).sum(),
        blobs: blobs.len(),
        first_byte: first_bytes.into_iter().flatten().min(),
    })
}

/// Returns when its first byte came.
async fn fetch(registry: &Registry, blob: &Descriptor, bar: ProgressBar) -> anyhow::Result<Option<Instant>> {
    let mut download = Download {
        blob,
        hasher: blob.digest.algorithm().hasher(),
        received: 0,
        first_byte: None,
        bar,
    };
    let mut idle_attempts = 0;
    loop {
        let before = download.received;
        match download.attempt(registry).await {
            Ok(()) => break,
            Err(End::Failed(error)) => return Err(error),
            Err(End::Cut(error)) => {
                idle_attempts = if download.received > before {
                    0
                } else {
                    idle_attempts + 1
                };
                if idle_attempts == IDLE_ATTEMPTS_MAX {
                    return Err(error);
                }
            }
        }
    }
    let found = download.hasher.finish();
    if found != blob.digest {
        bail!(
            "{} sent a blob with the wrong digest: expected {}, got {found}",
            registry.host(),
            blob.digest
        );
    }
    download.bar.finish();
    Ok(download.first_byte)
}

/// Why an attempt did not bring the rest of a blob.
enum End {
    /// Asking again would bring the same.
    Failed(anyhow::Error),
    /// The body ended early: what is missing can be asked for.
    Cut(anyhow::Error),
}

struct Download<'a> {
    blob: &'a Descriptor,
    hasher: Hasher,
    received: u64,
    first_byte: Option<Instant>,
    bar: ProgressBar,
}

impl Download<'_> {
    async fn attempt(&mut self, registry: &Registry) -> Result<(), End> {
        let (digest, size) = (&self.blob.digest, self.blob.size);
        let mut answer = registry.blob(digest, self.received).await.map_err(End::Failed)?;
        // A registry that ignores the range sends from the beginning.
        let mut skip = if answer.status() == StatusCode::PARTIAL_CONTENT {
            0
        } else {
            self.received
        };
        let promised = answer.content_length().map(|length| length + self.received - skip);
        if let Some(promised) = promised.filter(|promised| *promised != size) {
            let problem = anyhow!(
                "{} promised {promised} bytes of {digest}, which has {size}",
                registry.host()
            );
            return Err(End::Failed(problem));
        }
        loop {
            let bytes = match answer.chunk().await.map_err(reqwest::Error::without_url) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break,
                Err(error) => {
                    return Err(End::Cut(
                        Err::<(), _>(error)
                            .with_context(|| self.cut(registry))
                            .expect_err("an error"),
                    ));
                }
            };
            let skipped = usize::try_from(skip).map_or(bytes.len(), |skip| skip.min(bytes.len()));
            skip -= skipped as u64;
            let bytes = bytes.slice(skipped..);
            if bytes.is_empty() {
                continue;
            }
            self.first_byte.get_or_insert_with(Instant::now);
            self.received += bytes.len() as u64;
            if self.received > size {
                return Err(End::Failed(anyhow!(
                    "{} sent more than the {size} bytes of {digest}",
                    registry.host()
                )));
            }
            self.hasher.update(&bytes);
            self.bar.set_position(self.received);
        }
        if self.received == size {
            Ok(())
        } else {
            Err(End::Cut(anyhow!(self.cut(registry))))
        }
    }

    fn cut(&self, registry: &Registry) -> String {
        let Descriptor { digest, size, .. } = self.blob;
        format!(
            "{} ended {digest} after {} of {size} bytes",
            registry.host(),
            self.received
        )
    }
}

/// containerd's `max_concurrent_downloads`.
const FETCHES_MAX: usize = 3;
/// Attempts in a row that bring nothing; containerd's number too.
const IDLE_ATTEMPTS_MAX: u32 = 3;
