//! Transfer of an image's blobs, three at once as containerd does, hashed as they come.
//!
//! Invariant: a blob counts only when its size and digest are right. Content that stands in the manifest is not fetched, and a foreign
//! layer that the registry does not have is left out.

use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use piecemeal_proto::{Descriptor, Digest, Hasher};
use reqwest::StatusCode;

use super::registry::{AnswerError, Registry};

/// Result of a transfer.
#[derive(Debug, Default)]
pub(super) struct Transferred {
    pub(super) bytes: u64,
    pub(super) blobs: usize,
    pub(super) first_byte: Option<Instant>,
    /// The image's config, where there is one.
    pub(super) config: Option<Vec<u8>>,
    /// Blobs that the registry need not have and does not have.
    pub(super) left_out: Vec<Digest>,
}

/// One blob, fetched.
#[derive(Default)]
struct Fetched {
    bytes: u64,
    first_byte: Option<Instant>,
    config: Option<Vec<u8>>,
    left_out: Option<Digest>,
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
    let fetched: Vec<Fetched> = stream::iter(fetches)
        .buffer_unordered(FETCHES_MAX)
        .try_collect()
        .await?;
    let left_out: Vec<Digest> = fetched.iter().filter_map(|blob| blob.left_out).collect();
    Ok(Transferred {
        bytes: fetched.iter().map(|blob| blob.bytes).sum(),
        blobs: blobs.len() - left_out.len(),
        first_byte: fetched.iter().filter_map(|blob| blob.first_byte).min(),
        left_out,
        config: fetched.into_iter().find_map(|blob| blob.config),
    })
}

async fn fetch(registry: &Registry, blob: &Descriptor, bar: ProgressBar) -> anyhow::Result<Fetched> {
    if let Some(content) = blob.inline() {
        bar.finish();
        return Ok(Fetched {
            config: is_config(blob).then_some(content),
            ..Fetched::default()
        });
    }
    let is_missing = |error: &anyhow::Error| {
        let answer = error.downcast_ref::<AnswerError>();
        answer.is_some_and(|answer| answer.status == StatusCode::NOT_FOUND)
    };
    match download(registry, blob, bar.clone()).await {
        Err(error) if blob.is_foreign && is_missing(&error) => {
            bar.finish_and_clear();
            Ok(Fetched {
                left_out: Some(blob.digest),
                ..Fetched::default()
            })
        }
        fetched => fetched,
    }
}

/// Whether it says which platform an image is for, and is small enough to be looked into.
fn is_config(blob: &Descriptor) -> bool {
    CONFIG_TYPES.contains(&&*blob.media_type) && blob.size <= CONFIG_BYTES_MAX
}

async fn download(registry: &Registry, blob: &Descriptor, bar: ProgressBar) -> anyhow::Result<Fetched> {
    let mut download = Download {
        blob,
        hasher: blob.digest.algorithm().hasher(),
        received: 0,
        first_byte: None,
        config: is_config(blob).then(Vec::new),
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
    Ok(Fetched {
        bytes: blob.size,
        first_byte: download.first_byte,
        config: download.config,
        left_out: None,
    })
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
    /// The bytes so far, of a config.
    config: Option<Vec<u8>>,
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
            if let Some(config) = &mut self.config {
                config.extend_from_slice(&bytes);
            }
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

/// OCI's and Docker's images.
const CONFIG_TYPES: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
/// The most bytes of a config that is looked into.
const CONFIG_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// containerd's `max_concurrent_downloads`.
const FETCHES_MAX: usize = 3;
/// Attempts in a row that bring nothing; containerd's number too.
const IDLE_ATTEMPTS_MAX: u32 = 3;
