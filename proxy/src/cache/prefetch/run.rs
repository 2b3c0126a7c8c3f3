//! Run of a prefetch: image by image, with a line for each event.

use std::collections::HashSet;

use futures_util::{FutureExt, StreamExt, stream};
use piecemeal_proto::{Descriptor, Digest, Reference, wire::report::Report};
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
    let mut resolved = match resolve(parts, plan.platforms.as_deref(), at, reference).await {
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
    for digest in &resolved.unreadable {
        let why = "it is of an unknown algorithm";
        out.say(&left_out(name, digest, why)).await?;
    }
    let fetch = |blob| fetch_and_tell(parts, image, blob, out).boxed();
    let fetches: Vec<_> = resolved.blobs.iter().map(fetch).collect();
    let mut fetches = stream::iter(fetches).buffer_unordered(BLOBS_AT_ONCE);
    let (mut fetched_bytes, mut failed) = (0, 0);
    let mut elsewhere = HashSet::new();
    while let Some(fetched) = fetches.next().await {
        match fetched? {
            Fetched::Here { fetched_bytes: bytes } => fetched_bytes += bytes,
            Fetched::LeftOut(digest) => drop(elsewhere.insert(digest)),
            Fetched::Failed => failed += 1,
        }
    }
    drop(fetches);
    if failed > 0 {
        return Ok(Err(format!(
            "{failed} of its {} blobs could not be fetched",
            resolved.blobs.len()
        )));
    }
    resolved.blobs.retain(|blob| !elsewhere.contains(&blob.digest));
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

/// One blob, as it is after its fetch.
enum Fetched {
    /// 0 bytes were fetched where it was here before.
    Here {
        fetched_bytes: u64,
    },
    LeftOut(Digest),
    Failed,
}

async fn fetch_and_tell(parts: &CacheParts, image: Named<'_>, blob: &Descriptor, out: &Out) -> Result<Fetched, Gone> {
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
            Ok(Fetched::Here {
                fetched_bytes: if fetched { blob_bytes } else { 0 },
            })
        }
        // A registry need not have it. What it has is fetched, for clients that look nowhere else.
        Err(error) if blob.is_elsewhere() => {
            let why = if blob.is_foreign {
                format!("it is a foreign layer, which a client fetches from the URLs in the manifest ({error})")
            } else {
                format!("it stands in the manifest itself ({error})")
            };
            out.say(&left_out(name, &digest.to_string(), &why)).await?;
            Ok(Fetched::LeftOut(digest))
        }
        Err(error) => {
            out.say(&WarmEvent::BlobFailed { image, digest, error }).await?;
            Ok(Fetched::Failed)
        }
    }
}

fn left_out(image: &str, digest: &str, why: &str) -> WarmEvent {
    WarmEvent::BlobLeftOut {
        image: image.to_owned(),
        digest: digest.to_owned(),
        why: why.to_owned(),
    }
}
