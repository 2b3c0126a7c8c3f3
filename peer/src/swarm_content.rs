//! Content sources of a peer: the same traits as a mirror's, with the swarm behind them.

use async_trait::async_trait;
use piecemeal_proto::{Digest, Reference};
use piecemeal_proxy::{Arrived, Item, Known, ManifestSource, Right, RightSource, Source, Transfer};
use piecemeal_store::{Holder, Repository, Shown};
use piecemeal_upstream::{Caller, FetchedManifest, ListAnswer, ManifestAnswer, PullError, Upstream, Upstreams};
use std::{sync::Arc, time::Duration};

use crate::{DirectFallback, download::Parts, mirror_client::MirrorClient};

/// Blobs from the swarm.
pub(crate) struct SwarmBlobs {
    pub(crate) parts: Parts,
    pub(crate) source: Arc<MirrorFirst>,
}

#[async_trait]
impl Source for SwarmBlobs {
    async fn transfer(&self, right: Right, digest: Digest, transfer: Arc<Transfer>) -> Result<Arrived, PullError> {
        self.parts.clone().transfer(right, digest, transfer).await
    }

    async fn head_blob(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<Option<u64>, PullError> {
        self.source.head_blob(caller, at, digest).await
    }

    fn answers_early(&self) -> bool {
        true
    }

    fn states_no_size(&self, _at: &Repository, digest: &Digest) -> PullError {
        PullError::BadGateway(format!("neither the mirror nor a peer states the size of {digest}"))
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
