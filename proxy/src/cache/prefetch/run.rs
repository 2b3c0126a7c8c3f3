//! Run of a prefetch: image by image, with a line for each event.

use futures_util::{FutureExt, StreamExt, stream};
use piecemeal_proto::{Descriptor, Reference, wire::report::Report};
use piecemeal_store::{Presence, Repository};

use super::{
    blob::fetch,
    image::{peer_orders, resolve},
    plan::PrefetchPlan,
};
use crate::cache::{
    CacheParts, WarmEvent,
    lines::{Gone, Out},
};

/// Blobs on their way at once.
const BLOBS_AT_ONCE: usize = 4;

/// Prefetches the plan's images one after the other.
pub(in crate::cache) async fn run(parts: &CacheParts, plan: PrefetchPlan, out: &Out) -> Result<(), Gone> {
    let mut failed = 0;
    for wanted in &plan.images {
        let image = wanted.name.clone();
        let prefetched = match &wanted.at {
            Ok((at, reference)) => prefetch_image(parts, &plan, (&image, at, reference), out).await?,
            Err(error) => Err(error.to_string()),
        };
        match prefetched {
            Ok(fetched_bytes) => out.say(&WarmEvent::Done { image, fetched_bytes }).await?,
            Err(error) => {
                failed += 1;
                out.say(&WarmEvent::Failed { image, error }).await?;
            }
        }
    }
    let images = plan.images.len() as u64;
    out.say(&WarmEvent::End { images, failed }).await
}

type Named<'a> = (&'a str, &'a Repository, &'a Reference);

/// One image. Yields the bytes that came, or why it is not all here.
async fn prefetch_image(
    parts: &CacheParts,
    plan: &PrefetchPlan,
    image: Named<'_>,
    out: &Out,
) -> Result<Result<u64, String>, Gone> {
    let (name, at, reference) = image;
    let resolved = match resolve(parts, plan.platforms.as_deref(), at, reference).await {
        Ok(resolved) => resolved,
        Err(why) => return Ok(Err(why)),
    };
    out.say(&WarmEvent::Resolved {
        image: name.to_owned(),
        digest: resolved.digest,
        blobs: resolved.blobs.len() as u64,
        bytes: resolved.blobs.iter().fold(0, |sum, blob| blob.size.saturating_add(sum)),
    })
    .await?;
    let fetch = |blob| fetch_and_tell(parts, image, blob, out).boxed();
    let fetches: Vec<_> = resolved.blobs.iter().map(fetch).collect();
    let mut fetches = stream::iter(fetches).buffer_unordered(BLOBS_AT_ONCE);
    let (mut fetched_bytes, mut failed) = (0, 0);
    while let Some(fetched) = fetches.next().await {
        match fetched? {
            Some(bytes) => fetched_bytes += bytes,
            None => failed += 1,
        }
    }
    drop(fetches);
    if failed > 0 {
        return Ok(Err(format!(
            "{failed} of its {} blobs could not be fetched",
            resolved.blobs.len()
        )));
    }
    if plan.peers {
        for part in peer_orders(at, reference, &resolved) {
            if let Err(error) = parts.tell_peers(Report::Warm(part)) {
                return Ok(Err(format!("it is here; {error}")));
            }
        }
        let image = name.to_owned();
        out.say(&WarmEvent::PeersTold { image }).await?;
    }
    Ok(Ok(fetched_bytes))
}

/// The bytes of a blob that were fetched: 0 when it was here, `None` when it cannot be fetched.
async fn fetch_and_tell(
    parts: &CacheParts,
    image: Named<'_>,
    blob: &Descriptor,
    out: &Out,
) -> Result<Option<u64>, Gone> {
    let (name, at, _) = image;
    let (image, digest) = (name.to_owned(), blob.digest);
    let was_here = matches!(parts.store.presence(&digest), Presence::Complete { .. });
    match fetch(parts, at, &digest, Some((name, out))).await? {
        Ok(()) => {
            let (blob_bytes, fetched) = (blob.size, !was_here);
            out.say(&WarmEvent::Blob {
                image,
                digest,
                blob_bytes,
                fetched,
            })
            .await?;
            Ok(Some(if fetched { blob_bytes } else { 0 }))
        }
        Err(error) => {
            out.say(&WarmEvent::BlobFailed { image, digest, error }).await?;
            Ok(None)
        }
    }
}
