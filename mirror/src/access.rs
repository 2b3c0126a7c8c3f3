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
use piecemeal_proto::{Digest, Reference};
use piecemeal_store::{Holder, Repository, Store};
use tracing::info;

use crate::{Access, Caller, Item, PullError, Upstreams, upstream::Who};

/// Whom rights are had from.
#[async_trait]
pub trait RightSource: Send + Sync {
    /// Asks for the item with the caller's own right.
    async fn prove(&self, caller: &Caller, at: &Repository, item: Item<'_>) -> Result<(), PullError>;

    /// Whether it has served the caller from the repository not long ago.
    fn allows(&self, caller: &Caller, at: &Repository) -> bool;

    /// In whose name the caller's right may be kept for the time when nobody can be asked; `None`: in nobody's.
    fn holder(&self, caller: &Caller, at: &Repository) -> Option<Holder>;
}

#[async_trait]
impl RightSource for Upstreams {
    async fn prove(&self, caller: &Caller, at: &Repository, item: Item<'_>) -> Result<(), PullError> {
        let upstream = self.get(&at.upstream)?;
        match item {
            Item::Manifest(digest) => drop(upstream.head_manifest(caller, at, &Reference::Digest(*digest)).await?),
            Item::Blob(digest) => drop(upstream.head_blob(caller, at, digest).await?),
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
    offline_grace: Duration,
    /// The same for what the source serves to everybody; `None`: for as long as it is here.
    public_grace: Option<Duration>,
    /// What was written down lately, so that it is not written again for every blob.
    noted: Mutex<HashMap<(Holder, Repository), Instant>>,
}

/// How long a note in the store is fresh enough.
const NOTED_LIFE: Duration = Duration::from_secs(60);
const NOTED_MAX: usize = 4096;

impl Rights {
    /// `offline_grace`: how long a node that proved its right is served while the source cannot be asked. `public_grace`: the
    /// same for what the source serves to everybody; `None`: for as long as it is here.
    pub fn new(
        store: Store,
        source: Arc<dyn RightSource>,
        offline_grace: Duration,
        public_grace: Option<Duration>,
    ) -> Self {
        Self {
            store,
            source,
            offline_grace,
            public_grace,
            noted: Mutex::default(),
        }
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
        if public.is_some_and(|age| self.public_grace.is_none_or(|grace| age <= grace)) {
            return Ok(true);
        }
        let Some(node) = caller.node else {
            return Ok(false);
        };
        let age = self.store.right_age(at, Holder::Node(node)).await?;
        Ok(age.is_some_and(|age| age <= self.offline_grace))
    }
}

#[async_trait]
impl Access for Rights {
    async fn require(&self, caller: &Caller, at: &Repository, item: Item<'_>) -> Result<(), PullError> {
        let (Item::Manifest(digest) | Item::Blob(digest)) = item;
        if self.source.allows(caller, at) && self.store.has_source(at, digest).await? {
            return self.remember(caller, at).await;
        }
        match self.source.prove(caller, at, item).await {
            Ok(()) => {
                self.store.record_source(at, digest).await?;
                self.remember(caller, at).await
            }
            Err(error) if error.is_verdict() => {
                self.refused(caller, at, &error).await?;
                Err(error)
            }
            Err(error) if self.holds_offline(caller, at, digest).await? => {
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
