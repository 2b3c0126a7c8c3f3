//! Manifests: those by digest are kept, tags are checked upstream once per `tag_ttl` for everybody who asks.
//!
//! What the source says stands: 401, 403 and 404 are passed on even when an older answer is here. Only when the source does
//! not answer, or cannot, is the last known manifest of a tag served, with a `Warning`.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use piecemeal_proto::{Digest, Reference};
use piecemeal_store::{Repository, Store};
use tokio::sync::watch;
use tracing::warn;

use crate::{
    ANSWER_TIMEOUT, Access, BlobSizes, Caller, Credential, FetchedManifest, Item, List, ListAnswer, ListQuery,
    LiveDuration, MANIFEST_TIMEOUT, ManifestAnswer, PullError, Tags, Upstreams, lists::Lists,
};

/// Whom manifests are had from.
#[async_trait]
pub trait ManifestSource: Send + Sync {
    /// GETs a manifest, its digest verified.
    async fn fetch(
        &self,
        caller: &Caller,
        at: &Repository,
        reference: &Reference,
    ) -> Result<FetchedManifest, PullError>;
    /// HEADs a manifest.
    async fn head(&self, caller: &Caller, at: &Repository, reference: &Reference) -> Result<ManifestAnswer, PullError>;
    /// GETs a page of a list below the repository.
    async fn list(&self, caller: &Caller, at: &Repository, path: &str) -> Result<ListAnswer, PullError>;
}

#[async_trait]
impl ManifestSource for Upstreams {
    async fn fetch(
        &self,
        caller: &Caller,
        at: &Repository,
        reference: &Reference,
    ) -> Result<FetchedManifest, PullError> {
        self.get(&at.upstream)?.manifest(caller, at, reference).await
    }

    async fn head(&self, caller: &Caller, at: &Repository, reference: &Reference) -> Result<ManifestAnswer, PullError> {
        self.get(&at.upstream)?.head_manifest(caller, at, reference).await
    }

    async fn list(&self, caller: &Caller, at: &Repository, path: &str) -> Result<ListAnswer, PullError> {
        self.get(&at.upstream)?.list(caller, at, path).await
    }
}

/// The manifests of a daemon.
#[derive(Clone)]
pub struct Manifests {
    pub(crate) store: Store,
    pub(crate) source: Arc<dyn ManifestSource>,
    pub(crate) access: Arc<dyn Access>,
    sizes: BlobSizes,
    pub(crate) tag_ttl: LiveDuration,
    pub(crate) lists: Lists,
    running: Flights<Lookup, Result<FetchedManifest, PullError>>,
}

/// What is looked up, once for all who ask at the same time: by whoever asked first, or by one caller for itself alone.
type Lookup = (Repository, String, Option<Credential>);

impl Manifests {
    /// `tag_ttl`: how old the last check of a tag may be. Zero when the source itself remembers.
    pub fn new(
        store: Store,
        source: Arc<dyn ManifestSource>,
        access: Arc<dyn Access>,
        sizes: BlobSizes,
        tag_ttl: LiveDuration,
    ) -> Self {
        Self {
            store,
            source,
            access,
            sizes,
            tag_ttl,
            lists: Lists::default(),
            running: Flights::default(),
        }
    }

    async fn resolve(self, caller: Caller, at: Repository, reference: Reference) -> Result<FetchedManifest, PullError> {
        match &reference {
            Reference::Digest(digest) => self.by_digest(&caller, &at, digest, &reference).await,
            Reference::Tag(tag) => self.by_tag(&caller, &at, tag, &reference).await,
        }
    }

    async fn join(
        &self,
        own: Option<Credential>,
        caller: &Caller,
        at: &Repository,
        reference: &Reference,
    ) -> Result<FetchedManifest, PullError> {
        let key = (at.clone(), reference.to_string(), own);
        let work = || self.clone().resolve(caller.clone(), at.clone(), reference.clone());
        let joined = tokio::time::timeout(MANIFEST_TIMEOUT, self.running.join(key, work));
        joined.await.unwrap_or_else(|_| {
            Err(PullError::Unavailable(format!(
                "no manifest within {} s",
                MANIFEST_TIMEOUT.as_secs()
            )))
        })
    }

    /// What can be answered without asking the source.
    async fn at_hand(&self, at: &Repository, reference: &Reference) -> Result<Option<FetchedManifest>, PullError> {
        match reference {
            Reference::Digest(digest) => self.stored(at, digest).await,
            Reference::Tag(tag) => match self.store.tag(at, tag).await? {
                Some(known) if known.age < self.tag_ttl.get() => self.stored(at, &known.digest).await,
                _ => Ok(None),
            },
        }
    }

    async fn by_digest(
        &self,
        caller: &Caller,
        at: &Repository,
        digest: &Digest,
        reference: &Reference,
    ) -> Result<FetchedManifest, PullError> {
        if let Some(manifest) = self.stored(at, digest).await? {
            return Ok(manifest);
        }
        let manifest = self.source.fetch(caller, at, reference).await?;
        self.keep(at, &manifest).await?;
        Ok(manifest)
    }

    async fn by_tag(
        &self,
        caller: &Caller,
        at: &Repository,
        tag: &str,
        reference: &Reference,
    ) -> Result<FetchedManifest, PullError> {
        let known = self.store.tag(at, tag).await?;
        let Some(known) = known else {
            // Nothing to compare with: a GET brings digest and manifest in one round trip.
            return self.fetch_tag(caller, at, tag, reference).await;
        };
        if known.age < self.tag_ttl.get()
            && let Some(manifest) = self.stored(at, &known.digest).await?
        {
            return Ok(manifest);
        }
        // With something older to serve, nobody waits for a source that does not answer.
        let revalidated = tokio::time::timeout(
            ANSWER_TIMEOUT,
            self.revalidate(caller, at, tag, reference, &known.digest),
        );
        let revalidated = revalidated.await.unwrap_or_else(|_| {
            Err(PullError::Unavailable(format!(
                "{} does not answer in time",
                at.upstream
            )))
        });
        match revalidated {
            Err(error) if !error.is_verdict() => match self.stored(at, &known.digest).await? {
                Some(manifest) => {
                    warn!(upstream = at.upstream, repository = at.name, tag, %error, "serving {tag} as it was {:?} ago", known.age);
                    Ok(FetchedManifest {
                        warning: Some(stale(&error)),
                        ..manifest
                    })
                }
                None => Err(error),
            },
            // Some registries say 404 to those who may not know: only who may pull can tell that a tag is gone.
            Err(error @ PullError::Unknown(_)) if self.access.allows(caller, at) => {
                self.store.forget_tag(at, tag).await?;
                Err(error)
            }
            result => result,
        }
    }

    /// HEAD costs upstream less than GET, and some count only GETs against their limits.
    async fn revalidate(
        &self,
        caller: &Caller,
        at: &Repository,
        tag: &str,
        reference: &Reference,
        known: &Digest,
    ) -> Result<FetchedManifest, PullError> {
        let answer = self.source.head(caller, at, reference).await?;
        if answer.digest == Some(*known)
            && let Some(manifest) = self.stored(at, known).await?
        {
            if answer.warning.is_none() {
                self.store.put_tag(at, tag, known).await?;
            }
            return Ok(FetchedManifest {
                warning: answer.warning,
                ..manifest
            });
        }
        self.fetch_tag(caller, at, tag, reference).await
    }

    async fn fetch_tag(
        &self,
        caller: &Caller,
        at: &Repository,
        tag: &str,
        reference: &Reference,
    ) -> Result<FetchedManifest, PullError> {
        let manifest = self.source.fetch(caller, at, reference).await?;
        self.keep(at, &manifest).await?;
        // What the source itself calls old is not a check of the tag.
        if manifest.warning.is_none() {
            self.store.put_tag(at, tag, &manifest.digest).await?;
        }
        Ok(manifest)
    }

    async fn keep(&self, at: &Repository, manifest: &FetchedManifest) -> Result<(), PullError> {
        self.sizes
            .learn(at, &manifest.digest, &manifest.media_type, &manifest.bytes);
        Ok(self
            .store
            .put_manifest(at, &manifest.digest, &manifest.media_type, manifest.bytes.clone())
            .await?)
    }

    async fn stored(&self, at: &Repository, digest: &Digest) -> Result<Option<FetchedManifest>, PullError> {
        let Some(manifest) = self.store.manifest(at, digest).await? else {
            return Ok(None);
        };
        self.sizes.learn(at, digest, &manifest.media_type, &manifest.bytes);
        Ok(Some(FetchedManifest {
            digest: *digest,
            media_type: manifest.media_type,
            bytes: manifest.bytes,
            warning: None,
            fetched: false,
        }))
    }
}

#[async_trait]
impl Tags for Manifests {
    async fn manifest(
        &self,
        caller: &Caller,
        at: &Repository,
        reference: &Reference,
    ) -> Result<FetchedManifest, PullError> {
        let mut manifest = match self.at_hand(at, reference).await? {
            Some(manifest) => Ok(manifest),
            None => self.join(None, caller, at, reference).await,
        };
        if manifest.as_ref().is_err_and(PullError::is_verdict) {
            // It may have been said of another caller, whom this one has joined. The client itself remembers its own.
            manifest = self.join(caller.credential.clone(), caller, at, reference).await;
        }
        if let Err(error) = &manifest {
            self.access.refused(caller, at, error).await?;
        }
        let manifest = manifest?;
        self.access
            .require(caller, at, Item::Manifest(&manifest.digest))
            .await?;
        Ok(manifest)
    }

    async fn list(&self, caller: &Caller, at: &Repository, query: &ListQuery) -> Result<List, PullError> {
        let listed = match query {
            ListQuery::Tags { n, last } => self.tags(caller, at, *n, last.as_deref()).await,
            ListQuery::Referrers { subject, artifact_type } => {
                self.referrers(caller, at, subject, artifact_type.as_deref()).await
            }
        };
        if let Err(error) = &listed {
            self.access.refused(caller, at, error).await?;
        }
        listed
    }
}

/// The `Warning` that comes with what is old.
pub(crate) fn stale(error: &PullError) -> String {
    format!("299 - \"stale: {}\"", quotable(error))
}

/// A text without what would end the quoted string of a `Warning`.
fn quotable(error: &PullError) -> String {
    error
        .to_string()
        .chars()
        .filter(|character| character.is_ascii_graphic() || *character == ' ')
        .filter(|c| !"\"\\".contains(*c))
        .take(200)
        .collect()
}

/// Work that is done once for all who ask for it at the same time, and goes on when they leave.
struct Flights<K, V>(Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>);

impl<K, V> Clone for Flights<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, T, E> Flights<K, Result<T, E>>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + 'static + From<Interrupted>,
{
    async fn join<F>(&self, key: K, work: impl FnOnce() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let mut result = {
            let mut running = self.0.lock().expect("no holder of this lock panics");
            match running.get(&key) {
                Some(result) => result.clone(),
                None => {
                    let (sender, result) = watch::channel(None);
                    running.insert(key.clone(), result.clone());
                    let (flights, work) = (self.clone(), work());
                    tokio::spawn(async move {
                        let landed = tokio::spawn(work).await.unwrap_or_else(|_| Err(Interrupted.into()));
                        flights.0.lock().expect("no holder of this lock panics").remove(&key);
                        sender.send_replace(Some(landed));
                    });
                    result
                }
            }
        };
        let landed = result.wait_for(Option::is_some).await.map_err(|_| Interrupted)?;
        landed.clone().expect("waited until it is there")
    }
}

/// The work broke.
struct Interrupted;

impl From<Interrupted> for PullError {
    fn from(_: Interrupted) -> Self {
        Self::Store("the lookup broke".to_owned())
    }
}
