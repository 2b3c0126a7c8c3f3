//! Access control for content in the store: a caller gets what the source itself would serve it.
//!
//! Two conditions must hold. The source has answered for the digest under the repository: a manifest that lists the digest
//! proves nothing, since any user can push a manifest that lists a foreign digest. And the source has recently served the
//! caller from the repository. The source is asked about a condition that is not known to hold.
//!
//! When the source does not answer a caller's request, a public image that is here is still served. A private image is served only
//! while the source is lost, which the daemon establishes by a question of its own: an error that the caller's own request ran into,
//! such as a limit, does not count. A credential then has the rights that it earned within the grace. A caller without a
//! credential, or with a new one, has the rights that any credential of its node earned. A credential that was refused since has
//! none.

use std::{
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use piecemeal_proto::Reference;
use piecemeal_store::{Blob, Holder, NodeRight, Repository, Shown, Store};
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tracing::info;

use crate::{Item, Source};
use piecemeal_upstream::{Caller, LiveDuration, PullError};

/// A blob that is here.
struct Known {
    blob_bytes: u64,
    /// Some of its bytes from an offset on, for an upstream that has never served it. Without this check, a registry that
    /// merely claims to have a digest would open what another registry keeps private.
    sample: Option<(u64, Bytes)>,
}

/// The rights that a source has granted.
pub struct Rights {
    store: Store,
    source: Arc<dyn Source>,
    offline_grace: LiveDuration,
    /// The grace for repositories that the source served without a client's credential, perhaps to this node only; `None`: the
    /// source is the registry itself, and such a repository is public for as long as its content is here.
    public_grace: Option<LiveDuration>,
    /// Verdicts that were recently written to the store, so that not every blob writes them again.
    noted: Mutex<LruCache<(Holder, Repository), (Verdict, Instant)>>,
    verdicts: Family<[(&'static str, &'static str); 1], Counter>,
}

/// A verdict as the store keeps it for a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Served,
    Refused,
}

/// The right was known.
const REMEMBERED: &str = "remembered";
/// The source was asked, and granted it.
const PROVEN: &str = "proven";
/// The source did not answer, and had granted it before.
const OFFLINE: &str = "offline";
const REFUSED: &str = "refused";
/// The size of the sample that an upstream must match, in bytes.
const SAMPLE_BYTES: u64 = 1024;
/// The age up to which a note in the store counts.
const NOTED_LIFE: Duration = Duration::from_secs(60);
/// Of 10,000 nodes, six private repositories each.
const NOTED_MAX: NonZeroUsize = NonZeroUsize::new(64 * 1024).expect("it is not zero");

impl Rights {
    /// `offline_grace`: how long an earlier proof counts while the source is lost. `public_grace`: the same for repositories that
    /// the source served without a credential; `None`: they are public, for as long as their content is here.
    pub fn new(
        store: Store,
        source: Arc<dyn Source>,
        offline_grace: LiveDuration,
        public_grace: Option<LiveDuration>,
    ) -> Self {
        Self {
            store,
            source,
            offline_grace,
            public_grace,
            noted: Mutex::new(LruCache::sparse(NOTED_MAX)),
            verdicts: Family::default(),
        }
    }

    /// Registers the counters of verdicts on content that is here, all from zero on.
    pub fn register(&self, registry: &mut Registry) {
        for verdict in [REMEMBERED, PROVEN, OFFLINE, REFUSED] {
            self.verdict(verdict, 0);
        }
        registry.sub_registry_with_prefix("piecemeal").register(
            "verdicts",
            "Access decisions about cached content, by how they were made",
            self.verdicts.clone(),
        );
    }

    fn verdict(&self, verdict: &'static str, count: u64) {
        self.verdicts.get_or_create(&[("verdict", verdict)]).inc_by(count);
    }

    /// Whether this caller may pull content that is here already. For other content the fetch itself proves the right.
    ///
    /// # Errors
    /// The source's own verdict, or why there is none.
    pub async fn require(&self, caller: &Caller, at: &Repository, item: Item<'_>) -> Result<(), PullError> {
        let digest = item.digest();
        if self.source.allows(caller, at) && self.has_source(at, item).await? {
            self.verdict(REMEMBERED, 1);
            return self.note(caller, at, Verdict::Served).await;
        }
        match self.prove(caller, at, item).await {
            Ok(is_here) => {
                self.verdict(PROVEN, 1);
                if is_here {
                    self.store.record_source(at, digest).await?;
                }
                self.note(caller, at, Verdict::Served).await
            }
            Err(error) if error.is_verdict() => {
                self.verdict(REFUSED, 1);
                // Of what it once served.
                if matches!(error, PullError::Denied { .. }) {
                    self.note(caller, at, Verdict::Refused).await?;
                }
                Err(error)
            }
            Err(error) if self.holds_unanswered(caller, at, item, &error).await? => {
                self.verdict(OFFLINE, 1);
                info!(upstream = at.upstream, repository = at.name, %error, "serving cached content: {error}");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The source has just refused another request of the caller: its recorded right to the repository ends.
    ///
    /// # Errors
    /// [`PullError::Store`].
    pub async fn refused(&self, caller: &Caller, at: &Repository, error: &PullError) -> Result<(), PullError> {
        if matches!(error, PullError::Denied { .. }) {
            self.note(caller, at, Verdict::Refused).await?;
        }
        Ok(())
    }

    /// Whether it is known already, without asking the source, that the caller may pull from the repository.
    pub fn allows(&self, caller: &Caller, at: &Repository) -> bool {
        self.source.allows(caller, at)
    }

    /// Asks the source, which has to know what it says that it has. Says whether it was compared with what is here: until then an
    /// answer is a word, and a source is written down for no word.
    async fn prove(&self, caller: &Caller, at: &Repository, item: Item<'_>) -> Result<bool, PullError> {
        let known = match item {
            Item::Manifest(_) | Item::Answered(_) => None,
            Item::Blob(digest) => match self.store.blob(digest).await? {
                Some(blob) => Some(self.known(at, blob).await?),
                None => None,
            },
        };
        let is_here = known.is_some() || matches!(item, Item::Manifest(_));
        self.compare(caller, at, item, known).await?;
        Ok(is_here)
    }

    /// Asks for the item with the caller's own right. The source's answer has to agree with what is `known`.
    async fn compare(
        &self,
        caller: &Caller,
        at: &Repository,
        item: Item<'_>,
        known: Option<Known>,
    ) -> Result<(), PullError> {
        let lied = |what: &str| Err(PullError::BadGateway(format!("{} {what} of {}", at.upstream, at.name)));
        // The size that a mirror states may be a manifest's claim, and it has compared what it has.
        let (digest, compares) = (item.digest(), !self.source.has_mirror_in_front());
        if let Item::Manifest(_) = item {
            let stated = self.source.head(caller, at, &Reference::Digest(*digest)).await?;
            return match stated.digest == *digest || !compares {
                true => Ok(()),
                false => lied("answered with another manifest"),
            };
        }
        if let Some(Known {
            sample: Some((start, sample)),
            ..
        }) = known
        {
            return match self.source.has_sample(caller, at, digest, start, &sample).await? {
                true => Ok(()),
                false => lied("says that it has a blob, and does not have its bytes,"),
            };
        }
        match (self.source.stat(caller, at, digest).await?, known) {
            (Some(stated), Some(known)) if stated != known.blob_bytes && compares => {
                lied("states another size for a blob")
            }
            _ => Ok(()),
        }
    }

    /// The size of the blob that an upstream has to agree with, and a sample of its bytes unless the upstream has served it before.
    async fn known(&self, at: &Repository, blob: Blob) -> Result<Known, PullError> {
        let blob_bytes = blob.map().blob_bytes();
        if blob_bytes == 0 || self.store.has_upstream(&at.upstream, blob.digest()).await? {
            return Ok(Known {
                blob_bytes,
                sample: None,
            });
        }
        let start = self.store.random_u64() % blob_bytes;
        let bytes = blob.read(start..blob_bytes.min(start + SAMPLE_BYTES)).await;
        let bytes = bytes.map_err(|error| PullError::Unavailable(error.to_string()))?;
        Ok(Known {
            blob_bytes,
            sample: Some((start, bytes)),
        })
    }

    /// Records a verdict for the time when the source is lost. A refusal revokes the right of exactly this holder.
    async fn note(&self, caller: &Caller, at: &Repository, verdict: Verdict) -> Result<(), PullError> {
        let Some(holder) = self.source.holder(caller, at) else {
            return Ok(());
        };
        let (key, now) = ((holder, at.clone()), Instant::now());
        {
            let mut noted = self.noted();
            let is_young = |at: Instant| now.saturating_duration_since(at) < NOTED_LIFE;
            if noted
                .get(&key)
                .is_some_and(|&(known, at)| known == verdict && is_young(at))
            {
                return Ok(());
            }
            noted.put(key, (verdict, now));
        }
        match verdict {
            Verdict::Served => self.store.record_right(at, holder).await?,
            Verdict::Refused => self.store.record_refusal(at, holder).await?,
        }
        Ok(())
    }

    fn noted(&self) -> MutexGuard<'_, LruCache<(Holder, Repository), (Verdict, Instant)>> {
        self.noted.lock()
    }

    /// Whether the source itself has answered for the item under the repository.
    async fn has_source(&self, at: &Repository, item: Item<'_>) -> Result<bool, PullError> {
        Ok(matches!(item, Item::Answered(_)) || self.store.has_source(at, item.digest()).await?)
    }

    /// Whether the caller may have what is here although the source has answered its request with `error`, which is no verdict.
    async fn holds_unanswered(
        &self,
        caller: &Caller,
        at: &Repository,
        item: Item<'_>,
        error: &PullError,
    ) -> Result<bool, PullError> {
        if !self.has_source(at, item).await? {
            return Ok(false);
        }
        let public = self.store.public_right(at).await?;
        if public.is_some() && self.public_grace.is_none() {
            return Ok(true);
        }
        // A source that answers 429 is not lost.
        let (Some(node), false) = (caller.node, matches!(error, PullError::TooManyRequests { .. })) else {
            return Ok(false);
        };
        let is_young = |age: Duration| self.public_grace.as_ref().is_some_and(|grace| age <= grace.get());
        let shown = caller.credential.as_ref().map(piecemeal_upstream::Credential::shown);
        let right = self.store.node_right(at, node, shown).await?;
        let earned = offline_age(shown, &right).is_some_and(|age| age <= self.offline_grace.get());
        Ok((earned || public.is_some_and(is_young)) && self.source.is_lost(at).await)
    }
}

/// The age of the proof that counts for a caller of a node while the source is lost.
fn offline_age(shown: Option<Shown>, right: &NodeRight) -> Option<Duration> {
    match shown {
        Some(_) if right.is_known => right.by_this,
        // A site that is cut off gets no new token, and a client sends no credential before it is challenged.
        Some(_) | None => right.by_any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_credential_has_what_it_has_earned_and_others_have_what_their_node_has() {
        let age = |seconds| Some(Duration::from_secs(seconds));
        let shown = Some(Shown::Client([1; 32]));
        let right = |by_this, is_known| NodeRight {
            by_any: age(5),
            by_this,
            is_known,
        };
        assert_eq!(offline_age(None, &right(None, false)), age(5), "it shows nothing");
        assert_eq!(offline_age(shown, &right(None, false)), age(5), "it is new");
        assert_eq!(
            offline_age(shown, &right(age(9), true)),
            age(9),
            "it has earned its own"
        );
        assert_eq!(
            offline_age(shown, &right(None, true)),
            None,
            "it was refused, or never asked here"
        );
        assert_eq!(offline_age(None, &NodeRight::default()), None);
    }
}
