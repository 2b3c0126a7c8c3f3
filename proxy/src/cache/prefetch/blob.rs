//! Fetch of one blob into the store, through the same transfer as a client's.
//!
//! It reads nothing of the blob, so that clients' pieces keep their priority.

use std::time::Duration;

use piecemeal_proto::Digest;
use piecemeal_store::{FillFailure, Filling, Presence, Repository};
use piecemeal_upstream::PullError;
use tokio::time::{Instant, sleep, timeout};

use super::{
    advice::advice,
    progress::{BlobProgress, STALL_MAX},
};
use crate::{
    OpenBlob, Progress,
    cache::{
        CacheParts, WarmEvent,
        lines::{Gone, Out},
    },
};

/// How long the source may take to answer at all.
const OPEN_PATIENCE: Duration = Duration::from_secs(30);
const OPEN_AGAIN: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The image that a blob is told of with, and where.
type Telling<'a> = Option<(&'a str, &'a Out)>;

/// Waits until a blob is here, and tells how far it is.
pub(in crate::cache) async fn fetch(
    parts: &CacheParts,
    at: &Repository,
    digest: &Digest,
    telling: Telling<'_>,
) -> Result<Result<(), String>, Gone> {
    let open = match open(parts, at, digest).await {
        Ok(open) => open,
        Err(error) => return Ok(Err(advice(&error))),
    };
    let (filling, reader) = match open {
        OpenBlob::Complete(_) => return Ok(Ok(())),
        OpenBlob::Filling { filling, transfer, .. } => (filling, transfer),
        OpenBlob::Starting { transfer, .. } => match timeout(OPEN_PATIENCE, transfer.started()).await {
            Ok(Progress::Open(filling)) => (filling, Some(transfer)),
            Ok(Progress::Complete(_)) => return Ok(Ok(())),
            Ok(Progress::Failed(error)) => return Ok(Err(advice(&error))),
            Ok(Progress::Starting { .. }) | Err(_) => {
                return Ok(Err(format!("no answer within {} s", OPEN_PATIENCE.as_secs())));
            }
        },
    };
    // What is fetched ahead of its use gives way to what clients wait for. An administrator who looks on is one of them.
    let _reader = reader.filter(|_| telling.is_some());
    follow(parts, filling, telling).await
}

/// Opens a blob, waiting for a source that has not answered yet.
async fn open(parts: &CacheParts, at: &Repository, digest: &Digest) -> Result<OpenBlob, PullError> {
    let started = Instant::now();
    loop {
        let opened = parts.content.open(&parts.caller, at, digest).await;
        match opened {
            Err(PullError::Unavailable(_)) if started.elapsed() < OPEN_PATIENCE => sleep(OPEN_AGAIN).await,
            opened => return opened,
        }
    }
}

/// Waits until all of a blob is here. The transfer runs by itself: nothing is read, so that clients' pieces keep their priority.
async fn follow(parts: &CacheParts, filling: Filling, telling: Telling<'_>) -> Result<Result<(), String>, Gone> {
    if filling.is_unstored() {
        // An unstored fill without a reader gives its place to one that has readers.
        if !filling.has_readers() {
            filling.abandon(FillFailure::Stopped).await;
        }
        return Ok(Err(
            "there is no room to keep it (--cache-quota, --cache-min-free)".to_owned()
        ));
    }
    let (digest, map) = (*filling.digest(), filling.map());
    let mut changes = filling.changes();
    let begun = Instant::now();
    let mut progress = BlobProgress::new(Duration::ZERO);
    loop {
        if matches!(parts.store.presence(&digest), Presence::Complete { .. }) {
            return Ok(Ok(()));
        }
        if let Some(why) = filling.failure() {
            return Ok(Err(why.to_string()));
        }
        let here_bytes = (u64::from(filling.landed().count()) * map.piece_bytes()).min(map.blob_bytes());
        let is_news = progress.handle_bytes(here_bytes, begun.elapsed());
        if let Some((image, out)) = telling
            && is_news
        {
            let event = WarmEvent::Progress {
                image: image.to_owned(),
                digest,
                blob_bytes: map.blob_bytes(),
                here_bytes,
            };
            out.say(&event).await?;
        }
        if progress.is_stalled(begun.elapsed()) {
            return Ok(Err(format!("no bytes arrived for {} s", STALL_MAX.as_secs())));
        }
        // The end of a fill does not change its pieces, so it is polled as well.
        let _ = timeout(LOOK_EVERY, changes.changed()).await;
    }
}
