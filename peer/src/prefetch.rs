//! Prefetching: pulls the images that the mirror names for this node, one after the other.
//!
//! It goes the same way as a client's pull, in this node's own name and without a client's credential. Nothing waits for it or
//! depends on it: an image that there is no room for is skipped and logged.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::{StreamExt, stream};
use piecemeal_proto::{Digest, Manifest, Reference, wire};
use piecemeal_proxy::{Cache, Manifests};
use piecemeal_store::{Counts, Presence, Repository, Store};
use piecemeal_upstream::Caller;
use tokio::sync::mpsc;
use tracing::{info, warn};

/// Blobs that wait to be fetched.
const BLOBS_MAX: usize = 1000;
/// Images that wait, most of which may be here already.
const IMAGES_MAX: usize = 1000;
/// Blobs on their way at once.
const BLOBS_AT_ONCE: usize = 4;

/// Queue of the images that the mirror names. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Prefetcher {
    queue: mpsc::Sender<QueuedImage>,
    store: Store,
    waiting: Arc<AtomicUsize>,
}

/// An image that waits, and the number of its blobs that were not here.
struct QueuedImage {
    image: wire::Warm,
    missing: usize,
}

/// The task that fetches the queued images.
struct PrefetchWorker {
    store: Store,
    manifests: Manifests,
    cache: Cache,
    caller: Caller,
}

impl Prefetcher {
    /// Also returns the worker's future, which never ends by itself.
    pub(crate) fn new(store: Store, manifests: Manifests, cache: Cache) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, mut received) = mpsc::channel::<QueuedImage>(IMAGES_MAX);
        let waiting = Arc::new(AtomicUsize::new(0));
        let worker = PrefetchWorker {
            caller: Caller {
                node: Some(store.node_id()),
                ..Caller::default()
            },
            store: store.clone(),
            manifests,
            cache,
        };
        let done = Arc::clone(&waiting);
        let work = async move {
            while let Some(QueuedImage { image, missing }) = received.recv().await {
                worker.prefetch(&image).await;
                done.fetch_sub(missing, Ordering::Relaxed);
            }
        };
        (Self { queue, store, waiting }, work)
    }

    /// Queues an image, or drops it when too many wait already. Never blocks.
    pub(crate) fn enqueue(&self, image: wire::Warm) {
        let name = name(&image);
        let missing = missing(&self.store, &digests(&image.blobs)).len();
        let waiting = self.waiting.load(Ordering::Relaxed);
        if !has_place(waiting, missing) {
            warn!(
                image = name,
                "{name} is not fetched ahead: {waiting} blobs are already waiting"
            );
            return;
        }
        self.waiting.fetch_add(missing, Ordering::Relaxed);
        if self.queue.try_send(QueuedImage { image, missing }).is_err() {
            self.waiting.fetch_sub(missing, Ordering::Relaxed);
            warn!(
                image = name,
                "{name} is not fetched ahead: {IMAGES_MAX} images are already waiting"
            );
        }
    }

    /// For `piecemeal status`.
    pub(crate) fn status(&self) -> serde_json::Value {
        let images = IMAGES_MAX - self.queue.capacity();
        serde_json::json!({ "blobs": self.waiting.load(Ordering::Relaxed), "images_waiting": images })
    }
}

impl PrefetchWorker {
    async fn prefetch(&self, image: &wire::Warm) {
        let name = name(image);
        match self.try_prefetch(image).await {
            Ok(fetched) => info!(
                image = name,
                blobs = fetched,
                "fetched {name} ahead: {fetched} blobs were missing"
            ),
            Err(why) => warn!(image = name, "{name} is not fetched ahead: {why}"),
        }
    }

    async fn try_prefetch(&self, image: &wire::Warm) -> Result<usize, String> {
        let at = Repository {
            upstream: image.upstream.clone(),
            name: image.repository.clone(),
        };
        // The tag is asked for as a client does, so that it is known here.
        let tag = Some(&image.tag)
            .filter(|tag| !tag.is_empty())
            .cloned()
            .map(Reference::Tag);
        let manifests = digests(&image.manifests).into_iter().map(Reference::Digest);
        let missing = missing(&self.store, &digests(&image.blobs));
        let mut missing_bytes = 0_u64;
        let mut sized = Vec::new();
        for reference in tag.into_iter().chain(manifests) {
            let found = self.manifests.manifest(&self.caller, &at, &reference).await;
            let found = found.map_err(|error| error.to_string())?;
            for blob in Manifest::read(&found.media_type, &found.bytes).blobs() {
                if missing.contains(&blob.digest) && !sized.contains(&blob.digest) {
                    sized.push(blob.digest);
                    missing_bytes = missing_bytes.saturating_add(blob.size);
                }
            }
        }
        if !has_room(&self.store.counts(), missing_bytes) {
            return Err(format!("there is no room for its {missing_bytes} bytes"));
        }
        let mut fetches = stream::iter(digests(&image.blobs))
            .map(|digest| {
                let at = &at;
                async move {
                    self.cache
                        .hold(at, &digest)
                        .await
                        .map_err(|why| format!("{digest}: {why}"))
                }
            })
            .buffer_unordered(BLOBS_AT_ONCE);
        while let Some(fetched) = fetches.next().await {
            fetched?;
        }
        Ok(missing.len())
    }
}

fn name(image: &wire::Warm) -> String {
    let (upstream, repository) = (&image.upstream, &image.repository);
    match (image.tag.as_str(), image.manifests.first()) {
        ("", Some(digest)) => format!("{upstream}/{repository}@{digest}"),
        (tag, _) => format!("{upstream}/{repository}:{tag}"),
    }
}

/// Parses digests that were checked on arrival.
fn digests(texts: &[String]) -> Vec<Digest> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn missing(store: &Store, blobs: &[Digest]) -> Vec<Digest> {
    let is_here = |digest: &Digest| matches!(store.presence(digest), Presence::Complete { .. });
    blobs.iter().copied().filter(|digest| !is_here(digest)).collect()
}

/// Whether so many more may wait.
fn has_place(waiting: usize, missing: usize) -> bool {
    missing == 0 || waiting.saturating_add(missing) <= BLOBS_MAX
}

/// Whether they would fit, even if all else had to go for them.
fn has_room(counts: &Counts, missing_bytes: u64) -> bool {
    let could_be_free = counts.free_bytes.saturating_add(counts.blob_bytes);
    missing_bytes <= counts.quota_bytes.unwrap_or(u64::MAX).min(could_be_free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded() {
        assert!(has_place(0, BLOBS_MAX) && has_place(BLOBS_MAX, 0) && has_place(BLOBS_MAX - 5, 5));
        assert!(!has_place(BLOBS_MAX - 5, 6) && !has_place(BLOBS_MAX, 1));
    }

    #[test]
    fn what_could_never_fit_is_left() {
        let counts = |quota_bytes| Counts {
            quota_bytes,
            free_bytes: 100,
            blob_bytes: 50,
            ..Counts::default()
        };
        assert!(has_room(&counts(None), 150) && !has_room(&counts(None), 151));
        assert!(has_room(&counts(Some(80)), 80) && !has_room(&counts(Some(80)), 81));
        // An image that is here needs no room.
        assert!(has_room(&Counts::default(), 0));
    }

    #[test]
    fn an_image_is_called_as_people_do() {
        let digest = Digest::of(b"x").to_string();
        let mut image = wire::Warm {
            upstream: "docker.io".into(),
            repository: "library/alpine".into(),
            tag: "3".into(),
            manifests: vec![digest.clone()],
            blobs: Vec::new(),
        };
        assert_eq!(name(&image), "docker.io/library/alpine:3");
        image.tag.clear();
        assert_eq!(name(&image), format!("docker.io/library/alpine@{digest}"));
    }
}
