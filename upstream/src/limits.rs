//! Limits on what one upstream may make the mirror hold at a time.
//!
//! Each upstream has its own limits, so that a slow or hostile one costs the others nothing. Within them no repository holds more
//! than half, and of the registries that a pattern stands for no registry. Each wait for room has a time limit.

use std::time::Duration;

use piecemeal_store::Repository;

use crate::{
    PullError,
    places::{Place, Places},
};

/// Fills that run. Each holds a piece or more.
const FILLS_MAX: usize = 256;
const FILL_WAIT: Duration = Duration::from_secs(600);
/// Blobs of unstated size, each held in memory as a whole.
const UNSIZED_MAX: usize = 2;
const UNSIZED_WAIT: Duration = Duration::from_secs(60);
/// Manifests and pages of lists beyond [`SMALL_BODY_BYTES`], each held as a whole.
const LARGE_BODIES_MAX: usize = 16;
/// Hardly any manifest is larger.
pub(crate) const SMALL_BODY_BYTES: usize = 64 * 1024;
/// As long as a caller waits for a manifest.
const LARGE_BODY_WAIT: Duration = crate::MANIFEST_TIMEOUT;

/// The room that there is. Clones share it.
#[derive(Clone)]
pub struct Limits {
    sharing: Sharing,
    fills: Places,
    unsized_blobs: Places,
    large_bodies: Places,
}

/// What the room is shared between.
#[derive(Clone, Copy)]
enum Sharing {
    Repositories,
    Registries,
}

impl Limits {
    /// Those of one registry.
    pub(crate) fn of_registry() -> Self {
        Self::shared_by(Sharing::Repositories)
    }

    /// Those of all registries that a pattern stands for, together: an attacker may own one.
    pub(crate) fn of_pattern() -> Self {
        Self::shared_by(Sharing::Registries)
    }

    fn shared_by(sharing: Sharing) -> Self {
        Self {
            sharing,
            fills: Places::new(FILLS_MAX),
            unsized_blobs: Places::new(UNSIZED_MAX),
            large_bodies: Places::new(LARGE_BODIES_MAX),
        }
    }

    /// # Errors
    /// [`PullError::Unavailable`], as for all of these: there was no room in time.
    pub async fn fill(&self, at: &Repository) -> Result<Place, PullError> {
        self.room(&self.fills, at, FILL_WAIT, "downloads").await
    }

    /// As [`Limits::fill`], for a blob of unknown size.
    ///
    /// # Errors
    /// [`PullError::Unavailable`].
    pub async fn unsized_blob(&self, at: &Repository) -> Result<Place, PullError> {
        self.room(&self.unsized_blobs, at, UNSIZED_WAIT, "downloads of unknown size")
            .await
    }

    pub(crate) async fn large_body(&self, at: &Repository) -> Result<Place, PullError> {
        self.room(&self.large_bodies, at, LARGE_BODY_WAIT, "large manifests")
            .await
    }

    async fn room(&self, places: &Places, at: &Repository, wait: Duration, what: &str) -> Result<Place, PullError> {
        let name = match self.sharing {
            Sharing::Repositories => &at.name,
            Sharing::Registries => &at.upstream,
        };
        let place = tokio::time::timeout(wait, places.take(name)).await;
        place.map_err(|_| {
            PullError::Unavailable(format!("{} has too many {what} at a time here; try again", at.upstream))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(upstream: &str, name: &str) -> Repository {
        Repository {
            upstream: upstream.to_owned(),
            name: name.to_owned(),
        }
    }

    /// All that a repository gets for its fills, and not more than `most`.
    async fn fills(limits: &Limits, at: &Repository, most: usize) -> Vec<Place> {
        let mut fills = Vec::new();
        while fills.len() < most {
            let fill = tokio::time::timeout(Duration::from_millis(1), limits.fill(at)).await;
            let Ok(Ok(fill)) = fill else { break };
            fills.push(fill);
        }
        fills
    }

    #[tokio::test(start_paused = true)]
    async fn one_registry_of_a_pattern_leaves_room_to_the_others() {
        let limits = Limits::of_pattern();
        let mut taken = Vec::new();
        for number in 0..FILLS_MAX {
            taken.extend(fills(&limits, &at("strangers.test", &number.to_string()), 1).await);
        }
        assert_eq!(taken.len(), FILLS_MAX / 2, "all its repositories together");
        assert!(limits.fill(&at("honest.test", "app")).await.is_ok());
        let _unsized = limits.unsized_blob(&at("strangers.test", "a")).await;
        assert!(limits.unsized_blob(&at("honest.test", "app")).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn one_repository_of_a_registry_leaves_room_to_the_others_and_who_finds_none_hears_of_it() {
        let limits = Limits::of_registry();
        let _taken = fills(&limits, &at("a.test", "strangers"), FILLS_MAX).await;
        assert!(limits.fill(&at("a.test", "library/app")).await.is_ok());
        let refused = limits.fill(&at("a.test", "strangers")).await;
        assert!(matches!(refused, Err(PullError::Unavailable(_))));
    }
}
