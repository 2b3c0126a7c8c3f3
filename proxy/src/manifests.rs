//! Manifests: those by digest are kept, tags are checked upstream once per `tag_ttl` for all callers together.
//!
//! The source's answer to a caller stands for that caller: 401, 403 and 404 are passed on even when an older answer is here.
//! Only when the source does not answer, or cannot, is the last known manifest of a tag served, with a `Warning`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use piecemeal_proto::{Digest, Reference};
use piecemeal_store::{Repository, Store};
use tracing::warn;

use crate::{
    BlobSizes, Item, List, ListQuery, Right, Rights, Source,
    callers::Standing,
    flights::{Boarding, Flights},
    lists::Lists,
    unchecked::UncheckedTags,
};
use piecemeal_upstream::{ANSWER_TIMEOUT, Caller, FetchedManifest, LiveDuration, MANIFEST_TIMEOUT, Note, PullError};

/// The manifests of a daemon.
#[derive(Clone)]
pub struct Manifests {
    pub(crate) store: Store,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) access: Arc<Rights>,
    sizes: BlobSizes,
    pub(crate) tag_ttl: LiveDuration,
    pub(crate) lists: Lists,
    /// By repository and reference.
    running: Flights<(Repository, String), FetchedManifest>,
    pub(crate) unchecked: UncheckedTags,
}

/// A tag as it was when it was looked up last.
struct Older {
    manifest: FetchedManifest,
    age: Duration,
}

impl Manifests {
    /// `tag_ttl`: how old the last check of a tag may be. Zero when the source itself remembers.
    pub fn new(
        store: Store,
        source: Arc<dyn Source>,
        access: Arc<Rights>,
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
            unchecked: UncheckedTags::default(),
        }
    }

    /// The manifest that `reference` names now.
    ///
    /// # Errors
    /// The source's error, or the refusal of the caller's right.
    pub async fn manifest(
        &self,
        caller: &Caller,
        at: &Repository,
        reference: &Reference,
    ) -> Result<FetchedManifest, PullError> {
        let manifest = match self.at_hand(at, reference).await? {
            Some(manifest) => Ok(manifest),
            None => self.current(caller, at, reference).await,
        };
        if let Err(error) = &manifest {
            self.access.refused(caller, at, error).await?;
        }
        let manifest = manifest?;
        self.access
            .require(caller, at, Item::Manifest(&manifest.digest))
            .await?;
        Ok(manifest)
    }

    /// A list of what the repository has: its tags, or what refers to a manifest.
    ///
    /// # Errors
    /// As [`Manifests::manifest`].
    pub async fn list(&self, caller: &Caller, at: &Repository, query: &ListQuery) -> Result<List, PullError> {
        // A registry may serve images to a caller and refuse it lists: a refusal revokes no right.
        match query {
            ListQuery::Tags { n, last } => self.tags(caller, at, *n, last.as_deref()).await,
            ListQuery::Referrers { subject, artifact_type } => {
                self.referrers(caller, at, subject, artifact_type.as_deref()).await
            }
        }
    }

    async fn resolve(self, right: Right, reference: Reference) -> Result<FetchedManifest, PullError> {
        let Right { at, caller } = right;
        match &reference {
            Reference::Digest(digest) => self.by_digest(&caller, &at, digest, &reference).await,
            Reference::Tag(tag) => self.by_tag(&caller, &at, tag, &reference).await,
        }
    }

    pub(crate) fn boarding(&self, caller: &Caller, at: &Repository) -> Boarding {
        Boarding {
            right: Right::new(caller, at),
            standing: match self.access.allows(caller, at) {
                true => Standing::Proven,
                false => Standing::Unknown,
            },
            public: self.access.allows(&Caller::default(), at),
        }
    }

    /// Looks it up together with all callers that ask for it now, and waits at most `patience`.
    async fn join(
        &self,
        caller: &Caller,
        at: &Repository,
        reference: &Reference,
        patience: Duration,
    ) -> Result<FetchedManifest, PullError> {
        let key = (at.clone(), reference.to_string());
        let (manifests, of_work) = (self.clone(), reference.clone());
        let work = move |right| manifests.clone().resolve(right, of_work.clone());
        let prove = async || self.source.head(caller, at, reference).await.map(drop);
        let joined = self.running.join(key, self.boarding(caller, at), work, prove);
        let joined = tokio::time::timeout(patience, joined).await.unwrap_or_else(|_| {
            let seconds = patience.as_secs();
            Err(PullError::Unavailable(format!("no manifest within {seconds} s")))
        });
        joined.map(|landed| landed.value)
    }

    /// The manifest that a tag named when it was looked up last.
    async fn older(&self, at: &Repository, reference: &Reference) -> Result<Option<Older>, PullError> {
        let Reference::Tag(tag) = reference else {
            return Ok(None);
        };
        let Some(known) = self.store.tag(at, tag).await? else {
            return Ok(None);
        };
        let manifest = self.stored(at, &known.digest).await?;
        Ok(manifest.map(|manifest| Older {
            manifest,
            age: known.age,
        }))
    }

    /// The manifest as the source has it now; while the source cannot say, the last known one.
    async fn current(
        &self,
        caller: &Caller,
        at: &Repository,
        reference: &Reference,
    ) -> Result<FetchedManifest, PullError> {
        let Some(older) = self.older(at, reference).await? else {
            return self.join(caller, at, reference, MANIFEST_TIMEOUT).await;
        };
        // With an older manifest to serve, the caller does not wait for a source that does not answer.
        match self.join(caller, at, reference, ANSWER_TIMEOUT).await {
            Err(error) if !error.is_verdict() => {
                warn!(upstream = at.upstream, repository = at.name, %error, "serving {reference} as it was {:?} ago: {error}", older.age);
                self.unchecked(at, reference, &error);
                Ok(FetchedManifest {
                    note: stale(&error),
                    ..older.manifest
                })
            }
            current => current,
        }
    }

    /// The manifest to answer with where the source need not be asked.
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
        let manifest = self.source.manifest(caller, at, reference).await?;
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
        // The waiting callers have an older manifest: do not wait for a source that does not answer.
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
        // Some registries hide repositories behind a 404: only for a caller that may pull does it mean that the tag is gone.
        if matches!(revalidated, Err(PullError::Unknown(_))) && self.access.allows(caller, at) {
            self.store.forget_tag(at, tag).await?;
        }
        revalidated
    }

    /// HEAD costs upstream less than GET, and some count only GETs against their limits. The source asks by GET where HEAD does not count.
    async fn revalidate(
        &self,
        caller: &Caller,
        at: &Repository,
        tag: &str,
        reference: &Reference,
        known: &Digest,
    ) -> Result<FetchedManifest, PullError> {
        let answer = self.source.head(caller, at, reference).await?;
        if answer.digest == *known
            && let Some(manifest) = self.stored(at, known).await?
        {
            self.checked(at, tag, known, &answer.note).await?;
            return Ok(FetchedManifest {
                note: answer.note,
                ..manifest
            });
        }
        match answer.manifest {
            Some(manifest) => self.take_tag(at, tag, manifest).await,
            None => self.fetch_tag(caller, at, tag, reference).await,
        }
    }

    async fn fetch_tag(
        &self,
        caller: &Caller,
        at: &Repository,
        tag: &str,
        reference: &Reference,
    ) -> Result<FetchedManifest, PullError> {
        let manifest = self.source.manifest(caller, at, reference).await?;
        self.take_tag(at, tag, manifest).await
    }

    /// Keeps the manifest that the source has for a tag.
    async fn take_tag(
        &self,
        at: &Repository,
        tag: &str,
        manifest: FetchedManifest,
    ) -> Result<FetchedManifest, PullError> {
        self.keep(at, &manifest).await?;
        self.checked(at, tag, &manifest.digest, &manifest.note).await?;
        Ok(manifest)
    }

    /// The source has told what a tag is. A manifest that the mirror itself calls stale is no check of the tag.
    async fn checked(&self, at: &Repository, tag: &str, digest: &Digest, note: &Note) -> Result<(), PullError> {
        if !note.is_stale {
            self.store.put_tag(at, tag, digest).await?;
            self.unchecked.checked(at, tag);
        }
        Ok(())
    }

    /// An older manifest of a tag is served instead of the source's answer.
    fn unchecked(&self, at: &Repository, reference: &Reference, error: &PullError) {
        let Reference::Tag(tag) = reference else { return };
        let age = self
            .unchecked
            .failed(at, tag, error, self.tag_ttl.get(), Instant::now());
        if let Some(age) = age {
            warn!(
                upstream = at.upstream, repository = at.name, %error,
                "the tag {tag} of {} could not be checked for {} s although {} answers; clients get the image that it named before: {error}",
                at.name, age.as_secs(), at.upstream
            );
        }
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
            note: Note::default(),
            fetched: false,
        }))
    }
}

/// The note beside a stale answer.
pub(crate) fn stale(error: &PullError) -> Note {
    Note {
        warning: Some(format!("299 - \"stale: {}\"", quotable(error))),
        is_stale: true,
    }
}

/// The error's text without characters that would end the quoted string of a `Warning`.
fn quotable(error: &PullError) -> String {
    error
        .to_string()
        .chars()
        .filter(|character| character.is_ascii_graphic() || *character == ' ')
        .filter(|c| !"\"\\".contains(*c))
        .take(200)
        .collect()
}
