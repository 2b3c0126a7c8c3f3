//! Who may have what is here already: whoever the source itself would serve.
//!
//! Two things have to hold. The source has answered for the digest under the repository: that a manifest lists it proves
//! nothing, since anybody can push a manifest that lists another's digest. And it has served the caller from the repository
//! not long ago. What is not known is asked.
//!
//! While the source cannot be asked, an image that it served to anybody is served on, and a private one to the nodes that
//! proved their right within the grace.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use piecemeal_proto::{Digest, Reference};
use piecemeal_store::{Holder, Repository, Store};
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tracing::info;

use crate::{ANSWER_TIMEOUT, Access, Caller, Item, LiveDuration, OpenBlob, PullError, Upstreams, upstream::Who};

/// Whom rights are had from.
#[async_trait]
pub trait RightSource: Send + Sync {
    /// Asks for the item with the caller's own right. `known`: what a blob that is here has to agree with.
    async fn prove(
        &self,
        caller: &Caller,
        at: &Repository,
        item: Item<'_>,
        known: Option<Known>,
    ) -> Result<(), PullError>;

    /// Whether it has served the caller from the repository not long ago.
    fn allows(&self, caller: &Caller, at: &Repository) -> bool;

    /// In whose name the caller's right may be kept for the time when nobody can be asked; `None`: in nobody's.
    fn holder(&self, caller: &Caller, at: &Repository) -> Option<Holder>;
}

/// A blob that is here.
pub struct Known {
    pub blob_bytes: u64,
    /// Some of its bytes from an offset on, for an upstream that has never served it: anybody can say of any digest that he has
    /// it, and would be believed to have what another registry keeps private.
    pub sample: Option<(u64, Bytes)>,
}

#[async_trait]
impl RightSource for Upstreams {
    async fn prove(
        &self,
        caller: &Caller,
        at: &Repository,
        item: Item<'_>,
        known: Option<Known>,
    ) -> Result<(), PullError> {
        let upstream = self.get(&at.upstream)?;
        let lied = |what: &str| PullError::BadGateway(format!("{} {what} of {}", at.upstream, at.name));
        match (item, known) {
            (Item::Manifest(digest), _) => {
                let stated = upstream.head_manifest(caller, at, &Reference::Digest(*digest)).await?;
                if stated.digest.is_some_and(|stated| stated != *digest) {
                    return Err(lied("answered with another manifest"));
                }
            }
            (
                Item::Blob(_) | Item::Filling(_),
                Some(Known {
                    sample: Some((start, sample)),
                    ..
                }),
            ) => {
                if !upstream.has_sample(caller, at, item.digest(), start, &sample).await? {
                    return Err(lied("says that it has a blob, and does not have its bytes,"));
                }
            }
            (Item::Blob(_) | Item::Filling(_), known) => {
                let stated = upstream.head_blob(caller, at, item.digest()).await?;
                if let (Some(stated), Some(known)) = (stated, known)
                    && stated != known.blob_bytes
                {
                    return Err(lied("states another size for a blob"));
                }
            }
        }
        Ok(())
    }

    fn allows(&self, caller: &Caller, at: &Repository) -> bool {
        self.get(&at.upstream).is_ok_and(|upstream| upstream.allows(caller, at))
    }

    fn holder(&self, caller: &Caller, at: &Repository) -> Option<Holder> {
        match self.get(&at.upstream).ok()?.who(caller) {
            Who::Anybody => Some(Holder::Anybody),
            Who::Holder(_) | Who::Site => caller.node.map(Holder::Node),
        }
    }
}

/// The rights that a source has granted.
pub struct Rights {
    store: Store,
    source: Arc<dyn RightSource>,
    offline_grace: LiveDuration,
    /// The same for what the source serves to everybody; `None`: for as long as it is here.
    public_grace: Option<LiveDuration>,
    /// What was written down lately, so that it is not written again for every blob.
    noted: Mutex<HashMap<(Holder, Repository), Instant>>,
    verdicts: Family<[(&'static str, &'static str); 1], Counter>,
}

/// The right was known.
const REMEMBERED: &str = "remembered";
/// The source was asked, and granted it.
const PROVEN: &str = "proven";
/// The source could not be asked, and had granted it before.
const OFFLINE: &str = "offline";
const REFUSED: &str = "refused";
/// How much of a blob an upstream has to show.
const SAMPLE_BYTES: u64 = 1024;
/// Where in one that is still on its way.
const SAMPLE_WITHIN: u64 = 64 * 1024;
/// How long a note in the store is fresh enough.
const NOTED_LIFE: Duration = Duration::from_secs(60);
const NOTED_MAX: usize = 4096;

impl Rights {
    /// `offline_grace`: how long a node that proved its right is served while the source cannot be asked. `public_grace`: the
    /// same for what the source serves to everybody; `None`: for as long as it is here.
    pub fn new(
        store: Store,
        source: Arc<dyn RightSource>,
        offline_grace: LiveDuration,
        public_grace: Option<LiveDuration>,
    ) -> Self {
        Self {
            store,
            source,
            offline_grace,
            public_grace,
            noted: Mutex::default(),
            verdicts: Family::default(),
        }
    }

    /// Adds the count of verdicts on what is here, all of them from zero on.
    pub fn register(&self, registry: &mut Registry) {
        for verdict in [REMEMBERED, PROVEN, OFFLINE, REFUSED] {
            self.verdict(verdict, 0);
        }
        registry.sub_registry_with_prefix("piecemeal").register(
            "verdicts",
            "Verdicts on who may have what is here, by how they came about",
            self.verdicts.clone(),
        );
    }

    fn verdict(&self, verdict: &'static str, count: u64) {
        self.verdicts.get_or_create(&[("verdict", verdict)]).inc_by(count);
    }

    /// Asks the source, which has to know what it says that it has.
    async fn prove(&self, caller: &Caller, at: &Repository, item: Item<'_>) -> Result<(), PullError> {
        let known = match item {
            Item::Manifest(_) => None,
            Item::Blob(digest) => self.store.blob(digest).await?.map(OpenBlob::Complete),
            Item::Filling(filling) => Some(OpenBlob::Filling(filling.clone())),
        };
        let known = match known {
            Some(blob) => Some(self.known(at, item.digest(), blob).await?),
            None => None,
        };
        self.source.prove(caller, at, item, known).await
    }

    /// What an upstream has to agree with.
    async fn known(&self, at: &Repository, digest: &Digest, mut blob: OpenBlob) -> Result<Known, PullError> {
        let blob_bytes = blob.blob_bytes();
        if blob_bytes == 0 || self.store.has_upstream(&at.upstream, digest).await? {
            return Ok(Known {
                blob_bytes,
                sample: None,
            });
        }
        let start = match &blob {
            // Its beginning comes first.
            OpenBlob::Filling(_) => self.store.random_u64() % blob_bytes.min(SAMPLE_WITHIN),
            _ => self.store.random_u64() % blob_bytes,
        };
        let read = blob.read(start..blob_bytes.min(start + SAMPLE_BYTES));
        let bytes = match tokio::time::timeout(ANSWER_TIMEOUT, read).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return Err(PullError::Unavailable(error.to_string())),
            Err(_) => {
                return Err(PullError::Unavailable(format!(
                    "{digest} is on its way from another registry, and nothing of it is here yet; try again"
                )));
            }
        };
        Ok(Known {
            blob_bytes,
            sample: Some((start, bytes)),
        })
    }

    /// For the time when the source cannot be asked.
    async fn remember(&self, caller: &Caller, at: &Repository) -> Result<(), PullError> {
        let Some(holder) = self.source.holder(caller, at) else {
            return Ok(());
        };
        let key = (holder, at.clone());
        {
            let mut noted = self.noted.lock().expect("no holder of this lock panics");
            if noted.get(&key).is_some_and(|at| at.elapsed() < NOTED_LIFE) {
                return Ok(());
            }
            if noted.len() >= NOTED_MAX {
                noted.clear();
            }
            noted.insert(key, Instant::now());
        }
        Ok(self.store.record_right(at, holder).await?)
    }

    /// 401 and 403 are the source's truth: what was remembered of this caller is not. That a client shows nothing at first
    /// says nothing of its node's right.
    async fn forget(&self, caller: &Caller, at: &Repository) -> Result<(), PullError> {
        match self.source.holder(caller, at) {
            Some(Holder::Node(_)) if caller.credential.is_none() => Ok(()),
            None => Ok(()),
            Some(holder) => {
                self.noted
                    .lock()
                    .expect("no holder of this lock panics")
                    .remove(&(holder, at.clone()));
                Ok(self.store.forget_right(at, holder).await?)
            }
        }
    }

    async fn holds_offline(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<bool, PullError> {
        if !self.store.has_source(at, digest).await? {
            return Ok(false);
        }
        let public = self.store.right_age(at, Holder::Anybody).await?;
        if public.is_some_and(|age| self.public_grace.as_ref().is_none_or(|grace| age <= grace.get())) {
            return Ok(true);
        }
        let Some(node) = caller.node else {
            return Ok(false);
        };
        let age = self.store.right_age(at, Holder::Node(node)).await?;
        Ok(age.is_some_and(|age| age <= self.offline_grace.get()))
    }
}

#[async_trait]
impl Access for Rights {
    async fn require(&self, caller: &Caller, at: &Repository, item: Item<'_>) -> Result<(), PullError> {
        let digest = item.digest();
        if self.source.allows(caller, at) && self.store.has_source(at, digest).await? {
            self.verdict(REMEMBERED, 1);
            return self.remember(caller, at).await;
        }
        match self.prove(caller, at, item).await {
            Ok(()) => {
                self.verdict(PROVEN, 1);
                self.store.record_source(at, digest).await?;
                self.remember(caller, at).await
            }
            Err(error) if error.is_verdict() => {
                self.verdict(REFUSED, 1);
                // Of what it once served.
                if matches!(error, PullError::Denied { .. }) {
                    self.forget(caller, at).await?;
                }
                Err(error)
            }
            Err(error) if self.holds_offline(caller, at, digest).await? => {
                self.verdict(OFFLINE, 1);
                info!(upstream = at.upstream, repository = at.name, %error, "serving what is here: {error}");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn refused(&self, caller: &Caller, at: &Repository, error: &PullError) -> Result<(), PullError> {
        if matches!(error, PullError::Denied { .. }) {
            self.forget(caller, at).await?;
        }
        Ok(())
    }

    fn allows(&self, caller: &Caller, at: &Repository) -> bool {
        self.source.allows(caller, at)
    }
}
