//! Registries as a peer asks them: at the mirror, and at the upstream itself while the mirror is lost and that is allowed.
//!
//! An upstream that the peer does not configure is refused, even if the mirror would serve it.

use std::{sync::Arc, time::Duration};

use piecemeal_store::Repository;
use piecemeal_upstream::{Caller, PullError, Upstream, Upstreams};

use crate::{DirectFallback, mirror_client::MirrorClient};

/// The mirror's registry, in front of the upstreams.
pub(crate) struct MirrorFirst {
    /// A registry client per upstream, all of them at the mirror's URL.
    pub(crate) mirror: Option<(MirrorClient, Upstreams)>,
    pub(crate) upstreams: Upstreams,
    pub(crate) direct_fallback: DirectFallback,
}

impl MirrorFirst {
    /// Asks the mirror, or the upstream instead.
    pub(crate) async fn ask<T, F>(&self, at: &Repository, ask: impl Fn(Arc<Upstream>) -> F) -> Result<T, PullError>
    where
        F: Future<Output = Result<T, PullError>>,
    {
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

    /// As the mirror answers a ping of the upstream, or the upstream itself where there is no mirror.
    pub(crate) async fn ping(&self, caller: &Caller, upstream: &str) -> Result<(), PullError> {
        let registries = self
            .mirror
            .as_ref()
            .map_or(&self.upstreams, |(_, registries)| registries);
        registries.get(upstream)?.ping(caller).await
    }

    /// Whether the mirror or the upstream has recently served the caller from the repository.
    pub(crate) fn allows(&self, caller: &Caller, at: &Repository) -> bool {
        let at_mirror = self.mirror.iter().map(|(_, registries)| registries);
        at_mirror
            .chain([&self.upstreams])
            .any(|registries| registries.allows(caller, at))
    }

    /// Whether neither answers. While the mirror is there, its answers decide, for upstream too.
    pub(crate) async fn is_lost(&self, at: &Repository) -> bool {
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

    /// Changes how long a right counts that the mirror has granted.
    pub(crate) fn set_verdict_ttl(&self, verdict_ttl: Duration) {
        if let Some((_, registries)) = &self.mirror {
            registries.set_verdict_ttl(verdict_ttl);
        }
    }
}
