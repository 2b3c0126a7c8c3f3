//! Parts of a daemon that the administration of its cache works with.
//!
//! Invariant: a look through the index runs off the runtime, and is given up after [`LOOK_TIME_MAX`].

use std::time::Duration;

use piecemeal_proto::{Digest, wire};
use piecemeal_store::Store;
use piecemeal_swarm::Session;
use piecemeal_upstream::Caller;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{CacheError, name::CacheName, view::View};
use crate::{Content, UpstreamNames};

/// The longest time to look through the index: a full one takes well below a second.
pub(super) const LOOK_TIME_MAX: Duration = Duration::from_secs(30);

/// The parts of a [`super::Cache`].
pub(crate) struct CacheParts {
    pub store: Store,
    pub content: Content,
    pub names: UpstreamNames,
    /// The caller for which content is fetched: this node, without a client's credential.
    pub caller: Caller,
    /// Passes on to peers what they should have; `None` where there are no peers.
    pub session: Option<Session>,
    /// Stops the work that is under way.
    pub stop: CancellationToken,
}

impl CacheParts {
    /// Reads the whole catalogue, off the runtime: sorting a full index takes a while.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View) -> T + Send + 'static,
    ) -> Result<T, CacheError> {
        let looking = async {
            let catalog = self.store.catalog().await?;
            let looked = tokio::task::spawn_blocking(move || look(&View::new(catalog))).await;
            looked.map_err(|error| CacheError::Store(error.to_string()))
        };
        timeout(LOOK_TIME_MAX, looking).await.map_err(|_| too_slow())?
    }

    pub(super) fn read_name(&self, name: &str) -> Result<CacheName, CacheError> {
        CacheName::read(name, &self.names)
    }

    /// The images that need a blob.
    pub(super) async fn images_with(&self, digest: Digest) -> Vec<String> {
        // Only shown beside a digest.
        self.look(move |view| view.images_with(&digest))
            .await
            .unwrap_or_default()
    }

    pub(super) fn tell_peers(&self, report: wire::report::Report) -> Result<(), CacheError> {
        self.require_scheduler()?.report(report);
        Ok(())
    }

    pub(super) fn require_scheduler(&self) -> Result<&Session, CacheError> {
        let Some(session) = &self.session else {
            let why = "this mirror has no scheduler (--scheduler), through which it would tell peers";
            return Err(CacheError::Conflict(why.to_owned()));
        };
        match session.problem() {
            Some(why) => Err(CacheError::Conflict(format!(
                "the peers cannot be told: the scheduler is {why}"
            ))),
            None => Ok(session),
        }
    }
}

pub(super) fn too_slow() -> CacheError {
    CacheError::Store(format!("no answer within {} s", LOOK_TIME_MAX.as_secs()))
}
