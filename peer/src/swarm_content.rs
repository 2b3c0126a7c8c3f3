//! Content sources of a peer: the same traits as a mirror's, with the swarm behind them.

use async_trait::async_trait;
use piecemeal_proto::{Digest, Reference};
use piecemeal_proxy::{
    BlobSizes, Blobs, Item, Joining, Known, ManifestSource, OpenBlob, RightSource, Rights, Transfer, Transfers,
};
use piecemeal_store::{Holder, Repository, Shown};
use piecemeal_upstream::{
    ANSWER_TIMEOUT, Caller, FetchedManifest, ListAnswer, ManifestAnswer, PullError, Upstream, Upstreams,
};
use std::{sync::Arc, time::Duration};

use crate::{DirectFallback, download::Parts, mirror_client::MirrorClient};

/// Blobs from the swarm.
pub(crate) struct SwarmBlobs {
    pub(crate) parts: Parts,
    pub(crate) access: Arc<Rights>,
    pub(crate) source: Arc<MirrorFirst>,
    pub(crate) sizes: BlobSizes,
    pub(crate) transfers: Transfers,
}

#[async_trait]
impl Blobs for SwarmBlobs {
    async fn open(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<OpenBlob, PullError> {
        if let Some(blob) = self.parts.store.blob(digest).await? {
            self.access.require(caller, at, Item::Blob(digest)).await?;
            return Ok(OpenBlob::Complete(blob));
        }
        let (parts, digest_of_run) = (self.parts.clone(), *digest);
        let run = move |right, transfer: Arc<Transfer>| {
            let parts = parts.clone();
            async move {
                let arrived = parts
                    .clone()
                    .transfer(right, digest_of_run, Arc::clone(&transfer))
                    .await?;
                transfer.record_sources(&parts.store).await?;
                Ok(arrived)
            }
        };
        let prove = async || self.source.head_blob(caller, at, digest).await.map(drop);
        let joining = Joining {
            caller,
            at,
            digest,
            blob_bytes: self.sizes.get(at, digest),
            patience: ANSWER_TIMEOUT,
            access: &*self.access,
        };
        let opened = self.transfers.open(joining, run, prove).await;
        if let Err(error) = &opened {
            self.access.refused(caller, at, error).await?;
        }
        let (transfer, opened) = opened?;
        // A transfer of this very caller that has not started yet yields no byte before the mirror has given its verdict.
        let verdict_pending = matches!(opened, OpenBlob::Starting { .. }) && transfer.is_of(caller, at);
        if verdict_pending {
            return Ok(opened);
        }
        let verdict = self
            .access
            .require(caller, at, opened.item(&transfer, at, digest))
            .await;
        transfer.judged(caller, at, &verdict);
        verdict?;
        Ok(opened.proven())
    }

    async fn stat(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<u64, PullError> {
        if let Some(known) = self.transfers.known_here(&self.parts.store, at, digest).await? {
            self.access.require(caller, at, known.item(digest)).await?;
            return Ok(known.blob_bytes);
        }
        let stated = self.source.head_blob(caller, at, digest).await?;
        stated
            .or_else(|| self.sizes.get(at, digest))
            .ok_or_else(|| PullError::BadGateway(format!("neither the mirror nor a peer states the size of {digest}")))
    }
}

/// The mirror's registry; upstream itself when the mirror is lost and that is allowed.
pub(crate) struct MirrorFirst {
    /// A registry client per upstream, all of them at the mirror's URL.
    pub(crate) mirror: Option<(MirrorClient, Upstreams)>,
    pub(crate) upstreams: Upstreams,
    pub(crate) direct_fallback: DirectFallback,
}

impl MirrorFirst {
    /// How long a right counts that the mirror or an upstream has granted.
    pub(crate) fn set_verdict_ttl(&self, verdict_ttl: Duration) {
        self.upstreams.set_verdict_ttl(verdict_ttl);
        if let Some((_, registries)) = &self.mirror {
            registries.set_verdict_ttl(verdict_ttl);
        }
    }

    async fn ask<T, F>(&self, at: &Repository, ask: impl Fn(Arc<Upstream>) -> F) -> Result<T, PullError>
    where
        F: Future<Output = Result<T, PullError>>,
    {
        // An upstream that this peer does not configure is refused, even if the mirror would serve it.
        let upstream = self.upstreams.get(&at.upstream)?;
        let Some((mirror, registries)) = &self.mirror else {
            return ask(upstream).await;
        };
        let result = ask(registries.get(&at.upstream)?).await;
        mirror.saw(match &result {
            Err(error) if error.is_source_lost() => Err(error.to_string()),
            _ => Ok(()),
        });
        match result {
            Err(error) if error.is_source_lost() && self.direct_fallback == DirectFallback::Allowed => {
                ask(upstream).await
            }
            result => result,
        }
    }

    async fn head_blob(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<Option<u64>, PullError> {
        self.ask(at, async |registry: Arc<Upstream>| {
            registry.head_blob(caller, at, digest).await
        })
        .await
    }
}

#[async_trait]
impl RightSource for MirrorFirst {
    /// Asks the mirror, which itself compares what is `known`.
    async fn prove(
        &self,
        caller: &Caller,
        at: &Repository,
        item: Item<'_>,
        known: Option<Known>,
    ) -> Result<(), PullError> {
        match (item, known.and_then(|known| known.sample)) {
            (Item::Manifest(digest), _) => drop(self.head(caller, at, &Reference::Digest(*digest)).await?),
            (Item::Blob(digest), Some((start, sample))) => {
                let ask = async |registry: Arc<Upstream>| registry.has_sample(caller, at, digest, start, &sample).await;
                if !self.ask(at, ask).await? {
                    return Err(PullError::BadGateway(format!(
                        "{} says that it has a blob, and does not have its bytes, of {}",
                        at.upstream, at.name
                    )));
                }
            }
            (Item::Blob(_) | Item::Answered(_), _) => drop(self.head_blob(caller, at, item.digest()).await?),
        }
        Ok(())
    }

    fn allows(&self, caller: &Caller, at: &Repository) -> bool {
        let at_mirror = self.mirror.iter().map(|(_, registries)| registries);
        at_mirror
            .chain([&self.upstreams])
            .any(|registries| registries.allows(caller, at))
    }

    /// Without a credential, the mirror may have served this node alone: the right is kept for the node, not for the public.
    fn holder(&self, caller: &Caller, _at: &Repository) -> Option<Holder> {
        match &caller.credential {
            None if self.mirror.is_none() => Some(Holder::Public),
            None => Some(Holder::Node(caller.node?, Shown::Nothing)),
            Some(credential) => Some(Holder::Node(caller.node?, credential.shown())),
        }
    }

    /// While the mirror is there, its answers decide, for upstream too.
    async fn is_lost(&self, at: &Repository) -> bool {
        if let Some((_, registries)) = &self.mirror {
            if !registries.is_lost(at).await {
                return false;
            }
            if self.direct_fallback != DirectFallback::Allowed {
                return true;
            }
        }
        self.upstreams.is_lost(at).await
    }
}

#[async_trait]
impl ManifestSource for MirrorFirst {
    async fn fetch(
        &self,
        caller: &Caller,
        at: &Repository,
        reference: &Reference,
    ) -> Result<FetchedManifest, PullError> {
        self.ask(at, async |registry: Arc<Upstream>| {
            registry.manifest(caller, at, reference).await
        })
        .await
    }

    async fn head(&self, caller: &Caller, at: &Repository, reference: &Reference) -> Result<ManifestAnswer, PullError> {
        self.ask(at, async |registry: Arc<Upstream>| {
            registry.head_manifest(caller, at, reference).await
        })
        .await
    }

    async fn list(&self, caller: &Caller, at: &Repository, path: &str) -> Result<ListAnswer, PullError> {
        self.ask(at, async |registry: Arc<Upstream>| {
            registry.list(caller, at, path).await
        })
        .await
    }
}
