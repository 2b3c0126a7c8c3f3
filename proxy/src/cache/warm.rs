//! Prefetching of images, as a client would pull them: from the tag down to every blob of the wanted platforms.
//!
//! Content that is here is not fetched again, but the right to it is proven all the same, so that it can be served while the
//! upstream is unreachable. An image that cannot be fetched costs the others nothing.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream};
use piecemeal_proto::{
    Descriptor, Digest, Manifest, Platform, Reference, offered_platforms,
    wire::{self, report::Report},
};
use piecemeal_store::{FillFailure, Filling, Presence, Repository};
use tokio::time::{Instant, sleep, timeout};

use super::{
    CacheError, WarmEvent, WarmRequest,
    lines::{Gone, Out},
    name::CacheName,
    parts::CacheParts,
};
use crate::{OpenBlob, Progress, UpstreamNames};
use piecemeal_upstream::PullError;

/// Images of one request.
const IMAGES_MAX: usize = 1000;
const PLATFORMS_MAX: usize = 64;
/// Of one image: more platforms than any has, and more layers.
const MANIFESTS_MAX: usize = 256;
const BLOBS_MAX: usize = 10_000;
const INDEX_DEPTH_MAX: usize = 4;
/// Blobs on their way at once.
const BLOBS_AT_ONCE: usize = 4;
/// How long the source may take to answer at all.
const OPEN_PATIENCE: Duration = Duration::from_secs(30);
const OPEN_AGAIN: Duration = Duration::from_millis(500);
/// How long a blob may go without another whole piece: four at once, of 4 MiB, over half a megabit. A transfer that really
/// stands still ends by itself before.
const STALL_MAX: Duration = Duration::from_secs(300);
const TELL_EVERY: Duration = Duration::from_millis(250);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is to be fetched.
pub(super) struct Plan {
    images: Vec<Wanted>,
    /// `None`: all.
    platforms: Option<Vec<Platform>>,
    peers: bool,
}

struct Wanted {
    /// As it was asked for.
    name: String,
    at: Result<(Repository, Reference), CacheError>,
}

impl Plan {
    /// A malformed name fails alone, as an image that does not exist does.
    pub(super) fn read(request: &WarmRequest, names: &UpstreamNames) -> Result<Self, CacheError> {
        let malformed = |text: String| Err(CacheError::Malformed(text));
        if request.images.is_empty() {
            return malformed("no image is named".to_owned());
        }
        if request.images.len() > IMAGES_MAX {
            return malformed(format!("{} images are more than {IMAGES_MAX}", request.images.len()));
        }
        if request.platforms.len() > PLATFORMS_MAX {
            return malformed(format!("more than {PLATFORMS_MAX} platforms"));
        }
        let platforms: Vec<Platform> = request
            .platforms
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, _>>()
            .map_err(|error: piecemeal_proto::ParsePlatformError| CacheError::Malformed(error.to_string()))?;
        let platforms = match (request.all_platforms, platforms.is_empty()) {
            (true, true) => None,
            (true, false) => return malformed("give either all platforms or a list of platforms".to_owned()),
            (false, true) => Some(vec![Platform::this_machine()]),
            (false, false) => Some(platforms),
        };
        let wanted = |name: &String| Wanted {
            name: name.clone(),
            at: match CacheName::read(name, names) {
                Ok(CacheName::Image(at, reference)) => Ok((at, reference)),
                Ok(CacheName::Blob(_)) => Err(CacheError::Malformed(
                    "a digest alone names no image: write REPOSITORY@DIGEST".to_owned(),
                )),
                Err(error) => Err(error),
            },
        };
        Ok(Self {
            images: request.images.iter().map(wanted).collect(),
            platforms,
            peers: request.peers,
        })
    }
}

/// The manifests of an index that are wanted.
#[derive(Debug, PartialEq, Eq)]
struct Selected<'a> {
    manifests: Vec<&'a Descriptor>,
    blobs: Vec<&'a Descriptor>,
}

/// Chooses from an index. A manifest without a platform is for all platforms.
fn select<'a>(listed: &'a [Descriptor], platforms: Option<&[Platform]>) -> Result<Selected<'a>, String> {
    let chosen: Option<HashSet<Digest>> = match platforms {
        None => None,
        // An index without any platform is not an image index.
        Some(_) if listed.iter().all(|part| part.platform.is_none()) => None,
        Some(platforms) => {
            let choose = |platform: &Platform| {
                let chosen = platform.choose(listed).map(|part| part.digest);
                chosen.ok_or_else(|| {
                    let offered = offered_platforms(listed).join(", ");
                    format!("it does not exist for {platform}, only for {offered} (choose with --platform)")
                })
            };
            Some(platforms.iter().map(choose).collect::<Result<_, _>>()?)
        }
    };
    let is_wanted = |part: &&Descriptor| {
        let chosen = chosen.as_ref();
        part.platform.is_none() || chosen.is_none_or(|chosen| chosen.contains(&part.digest))
    };
    let (manifests, blobs) = listed
        .iter()
        .filter(is_wanted)
        .partition(|part: &&Descriptor| part.is_manifest());
    Ok(Selected { manifests, blobs })
}

/// An image's parts.
struct Resolved {
    digest: Digest,
    manifests: Vec<Digest>,
    blobs: Vec<Descriptor>,
}

pub(super) async fn run(parts: &CacheParts, plan: Plan, out: &Out) -> Result<(), Gone> {
    let mut failed = 0;
    for wanted in &plan.images {
        let image = wanted.name.clone();
        let warmed = match &wanted.at {
            Ok((at, reference)) => warm(parts, &plan, (&image, at, reference), out).await?,
            Err(error) => Err(error.to_string()),
        };
        match warmed {
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

/// The image that a blob is told of with, and where.
type Telling<'a> = Option<(&'a str, &'a Out)>;
type Named<'a> = (&'a str, &'a Repository, &'a Reference);

/// One image. Yields the bytes that came, or why it is not all here.
async fn warm(parts: &CacheParts, plan: &Plan, image: Named<'_>, out: &Out) -> Result<Result<u64, String>, Gone> {
    let (name, at, reference) = image;
    let resolved = match resolve(parts, plan, at, reference).await {
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
        for part in orders(at, reference, &resolved) {
            if let Err(error) = parts.tell_peers(Report::Warm(part)) {
                return Ok(Err(format!("it is here; {error}")));
            }
        }
        let image = name.to_owned();
        out.say(&WarmEvent::PeersTold { image }).await?;
    }
    Ok(Ok(fetched_bytes))
}

/// The orders to peers for an image, in messages of bounded size.
fn orders(at: &Repository, reference: &Reference, resolved: &Resolved) -> Vec<wire::Warm> {
    let blobs: Vec<String> = resolved.blobs.iter().map(|blob| blob.digest.to_string()).collect();
    let order = |blobs: &[String]| wire::Warm {
        upstream: at.upstream.clone(),
        repository: at.name.clone(),
        tag: match reference {
            Reference::Tag(tag) => tag.clone(),
            Reference::Digest(_) => String::new(),
        },
        manifests: resolved.manifests.iter().map(ToString::to_string).collect(),
        blobs: blobs.to_vec(),
    };
    if blobs.is_empty() {
        return vec![order(&[])];
    }
    blobs.chunks(wire::WARM_BLOBS_MAX).map(order).collect()
}

/// Follows indexes down to the wanted manifests.
async fn resolve(parts: &CacheParts, plan: &Plan, at: &Repository, reference: &Reference) -> Result<Resolved, String> {
    let (tags, caller) = (&parts.content.tags, &parts.caller);
    let mut ahead = VecDeque::from([(reference.clone(), 0)]);
    let (mut manifests, mut blobs) = (Vec::new(), Vec::<Descriptor>::new());
    let (mut seen, mut listed) = (HashSet::new(), HashSet::new());
    while let Some((next, depth)) = ahead.pop_front() {
        if depth > INDEX_DEPTH_MAX || manifests.len() == MANIFESTS_MAX {
            return Err(format!(
                "its indexes are deeper than {INDEX_DEPTH_MAX} or list more than {MANIFESTS_MAX} manifests"
            ));
        }
        let found = tags.manifest(caller, at, &next).await.map_err(|error| advice(&error))?;
        manifests.push(found.digest);
        let content = Manifest::read(&found.media_type, &found.bytes);
        let wanted: Vec<&Descriptor> = match &content {
            Manifest::Index { manifests } => {
                let selected = select(manifests, plan.platforms.as_deref())?;
                let fresh = selected.manifests.iter().filter(|part| seen.insert(part.digest));
                ahead.extend(fresh.map(|part| (Reference::Digest(part.digest), depth + 1)));
                selected.blobs
            }
            Manifest::Image { blobs } => blobs.iter().collect(),
            Manifest::Unknown if depth == 0 => {
                return Err(format!("its manifest is of an unknown kind ({})", found.media_type));
            }
            Manifest::Unknown => Vec::new(),
        };
        blobs.extend(wanted.into_iter().filter(|blob| listed.insert(blob.digest)).cloned());
        if blobs.len() > BLOBS_MAX {
            return Err(format!("it has more than {BLOBS_MAX} blobs"));
        }
    }
    let digest = *manifests.first().ok_or("it has no manifest")?;
    Ok(Resolved {
        digest,
        manifests,
        blobs,
    })
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

/// Waits until a blob is here, and tells how far it is.
pub(super) async fn fetch(
    parts: &CacheParts,
    at: &Repository,
    digest: &Digest,
    telling: Telling<'_>,
) -> Result<Result<(), String>, Gone> {
    let open = match open(parts, at, digest).await {
        Ok(open) => open,
        Err(error) => return Ok(Err(advice(&error))),
    };
    let filling = match open {
        OpenBlob::Complete(_) => return Ok(Ok(())),
        OpenBlob::Filling { filling, .. } => filling,
        OpenBlob::Starting { transfer, .. } => match timeout(OPEN_PATIENCE, transfer.started()).await {
            Ok(Progress::Open(filling)) => filling,
            Ok(Progress::Complete(_)) => return Ok(Ok(())),
            Ok(Progress::Failed(error)) => return Ok(Err(advice(&error))),
            Ok(Progress::Starting { .. }) | Err(_) => {
                return Ok(Err(format!("no answer within {} s", OPEN_PATIENCE.as_secs())));
            }
        },
    };
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
    let (mut told_bytes, mut told, mut moved) = (0, None::<Instant>, Instant::now());
    loop {
        if matches!(parts.store.presence(&digest), Presence::Complete { .. }) {
            return Ok(Ok(()));
        }
        if let Some(why) = filling.failure() {
            return Ok(Err(why.to_string()));
        }
        let here_bytes = (u64::from(filling.landed().count()) * map.piece_bytes()).min(map.blob_bytes());
        if here_bytes != told_bytes && told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            (told_bytes, told, moved) = (here_bytes, Some(Instant::now()), Instant::now());
            if let Some((image, out)) = telling {
                let event = WarmEvent::Progress {
                    image: image.to_owned(),
                    digest,
                    blob_bytes: map.blob_bytes(),
                    here_bytes,
                };
                out.say(&event).await?;
            }
        }
        if moved.elapsed() > STALL_MAX {
            return Ok(Err(format!("no bytes arrived for {} s", STALL_MAX.as_secs())));
        }
        // The end of a fill does not change its pieces, so it is polled as well.
        let _ = timeout(LOOK_EVERY, changes.changed()).await;
    }
}

/// What is wrong, and what to do about it where that is known.
fn advice(error: &PullError) -> String {
    match error {
        PullError::Denied { .. } => format!(
            "{error} to a request without a credential: the image does not exist, or is private. Give the mirror a credential of its own \
             (--credentials), or pull it on a node whose client has one"
        ),
        PullError::Withheld(_) => {
            format!("{error}; a credential is sent over https only, unless --allow-plain-credentials is set")
        }
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(text: &str, media_type: &str) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(text.as_bytes()),
            size: 1,
            platform: text.parse().ok(),
        }
    }

    fn platforms(texts: &[&str]) -> Vec<Platform> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn selected(listed: &[Descriptor], platforms: Option<&[Platform]>) -> Result<(usize, usize), String> {
        select(listed, platforms).map(|selected| (selected.manifests.len(), selected.blobs.len()))
    }

    #[test]
    fn only_the_platforms_that_are_asked_for_are_taken() {
        let index = ["linux/amd64", "linux/arm64/v8", "unknown/unknown"].map(|text| descriptor(text, ""));
        assert_eq!(selected(&index, Some(&platforms(&["linux/amd64"]))), Ok((1, 0)));
        assert_eq!(
            selected(&index, Some(&platforms(&["linux/amd64", "linux/arm64"]))),
            Ok((2, 0))
        );
        assert_eq!(selected(&index, None), Ok((3, 0)));
        let why = selected(&index, Some(&platforms(&["linux/s390x"]))).unwrap_err();
        assert!(why.contains("linux/s390x") && why.contains("linux/arm64/v8"), "{why}");
    }

    #[test]
    fn what_has_no_platform_is_for_all() {
        let cache = [
            descriptor("layer", "application/vnd.oci.image.layer.v1.tar+gzip"),
            descriptor("manifest", "application/vnd.oci.image.manifest.v1+json"),
        ];
        assert_eq!(selected(&cache, Some(&platforms(&["linux/amd64"]))), Ok((1, 1)));
        let mixed = [descriptor("linux/amd64", ""), descriptor("sbom", "")];
        assert_eq!(selected(&mixed, Some(&platforms(&["linux/amd64"]))), Ok((2, 0)));
    }

    fn plan(change: impl FnOnce(&mut WarmRequest)) -> Result<Plan, CacheError> {
        let mut request = WarmRequest {
            images: vec!["alpine".to_owned()],
            ..WarmRequest::default()
        };
        change(&mut request);
        Plan::read(&request, &UpstreamNames::default())
    }

    #[test]
    fn a_request_is_bounded_and_makes_sense() {
        assert_eq!(
            plan(|_| {}).ok().unwrap().platforms,
            Some(vec![Platform::this_machine()])
        );
        assert_eq!(
            plan(|request| request.all_platforms = true).ok().unwrap().platforms,
            None
        );
        type Change = fn(&mut WarmRequest);
        let wrong: [Change; 5] = [
            |request| request.images.clear(),
            |request| request.images = vec!["a".to_owned(); IMAGES_MAX + 1],
            |request| request.platforms = vec!["linux".to_owned()],
            |request| request.platforms = vec!["linux/amd64".to_owned(); PLATFORMS_MAX + 1],
            |request| {
                request.platforms = vec!["linux/amd64".to_owned()];
                request.all_platforms = true;
            },
        ];
        for change in wrong {
            assert!(matches!(plan(change), Err(CacheError::Malformed(_))));
        }
        let mixed = plan(|request| request.images = vec!["UPPER".to_owned(), "alpine".to_owned()])
            .ok()
            .unwrap();
        assert!(mixed.images[0].at.is_err() && mixed.images[1].at.is_ok());
    }

    #[test]
    fn peers_are_told_in_parts() {
        let at = Repository {
            upstream: "docker.io".to_owned(),
            name: "library/alpine".to_owned(),
        };
        let blob = |number: usize| descriptor(&number.to_string(), "");
        let resolved = |blobs: usize| Resolved {
            digest: Digest::of(b""),
            manifests: vec![Digest::of(b"")],
            blobs: (0..blobs).map(blob).collect(),
        };
        let tag: Reference = "3".parse().unwrap();
        let counts = |blobs| -> Vec<usize> {
            let orders = orders(&at, &tag, &resolved(blobs));
            assert!(
                orders
                    .iter()
                    .all(|order| order.tag == "3" && order.manifests.len() == 1)
            );
            orders.iter().map(|order| order.blobs.len()).collect()
        };
        assert_eq!((counts(0), counts(3)), (vec![0], vec![3]));
        assert_eq!(counts(wire::WARM_BLOBS_MAX + 1), [wire::WARM_BLOBS_MAX, 1]);
    }

    #[test]
    fn who_needs_a_credential_is_told_what_to_do() {
        let denied = PullError::Denied {
            upstream: "ghcr.io".to_owned(),
            status: 401,
            challenge: None,
        };
        let text = advice(&denied);
        assert!(
            text.starts_with("ghcr.io answered 401") && text.contains("--credentials"),
            "{text}"
        );
    }
}
