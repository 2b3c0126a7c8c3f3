//! Who may have what is here already: for now, whoever upstream itself would serve anonymously.

use async_trait::async_trait;
use piecemeal_proto::Digest;
use piecemeal_store::{Repository, Store};

use crate::{Access, Caller, PullError, Upstreams};

/// Content may be had under a repository once upstream itself has answered for it there without credentials. That a
/// manifest lists it proves nothing: anybody can push a manifest that lists another's digest.
pub struct AnonymousAccess {
    store: Store,
    upstreams: Upstreams,
}

impl AnonymousAccess {
    pub fn new(store: Store, upstreams: Upstreams) -> Self {
        Self { store, upstreams }
    }
}

#[async_trait]
impl Access for AnonymousAccess {
    async fn require(&self, _caller: &Caller, at: &Repository, digest: &Digest) -> Result<(), PullError> {
        if self.store.has_source(at, digest).await? {
            return Ok(());
        }
        self.upstreams.get(&at.upstream)?.head_blob(at, digest).await?;
        Ok(self.store.record_source(at, digest).await?)
    }
}
