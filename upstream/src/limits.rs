//! Limits on what one upstream may make the mirror hold at a time.
//!
//! Each has limits of its own, so that one that is slow, or means harm, costs the others nothing. Within them no repository, and of the
//! registries that a pattern stands for no registry, holds more than half. A wait for room ends, and so many wait at a time.

use std::time::Duration;

use futures_util::FutureExt as _;
use piecemeal_store::Repository;

use crate::{
    Caller, PullError,
    places::{CrowdedError, Place, Places},
};

/// Fills that run. Each holds a piece or more.
const FILLS_MAX: usize = 256;
const FILL_WAIT: Duration = Duration::from_secs(600);
/// Fills for which no client waits and that therefore take no place of [`FILLS_MAX`]. Of these no caller holds more than half; those beyond
/// keep their place among the others.
const UNATTENDED_MAX: usize = 128;
/// Blobs of unstated size, each held in memory as a whole.
const UNSIZED_MAX: usize = 2;
const UNSIZED_WAIT: Duration = Duration::from_secs(60);
/// One that takes longer is given up when a repository, or a registry of a pattern, without a place waits.
const UNSIZED_SLOW: Duration = Duration::from_secs(30);
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
    unattended: Places,
    unsized_blobs: Places,
    large_bodies: Places,
}

/// The names that share the room.
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
            unattended: Places::new(UNATTENDED_MAX),
            unsized_blobs: Places::giving_up(UNSIZED_MAX, UNSIZED_SLOW),
            large_bodies: Places::new(LARGE_BODIES_MAX),
        }
    }

    /// # Errors
    /// [`PullError::Unavailable`], as of all of these: there was no room in time, or too many wait for it.
    pub async fn fill(&self, at: &Repository) -> Result<Place, PullError> {
        self.room(&self.fills, at, FILL_WAIT, "downloads").await
    }

    /// A place for a fill that no client waits for, if there is one at once. `caller`: for whom it was begun.
    pub fn unattended(&self, caller: &Caller) -> Option<Place> {
        let name = match (caller.node, caller.address) {
            (Some(node), _) => node.to_string(),
            (None, Some(address)) => address.to_string(),
            (None, None) => String::new(),
        };
        self.unattended.take(&name).now_or_never()?.ok()
    }

    /// Reads one when there is room for it, until it has to give way.
    ///
    /// # Errors
    /// As [`Limits::fill`], and those of `read`.
    pub async fn unsized_blob<T>(
        &self,
        at: &Repository,
        read: impl Future<Output = Result<T, PullError>>,
    ) -> Result<T, PullError> {
        let room = self.room(&self.unsized_blobs, at, UNSIZED_WAIT, "downloads of unknown size");
        let room = room.await?;
        tokio::select! {
            read = read => read,
            () = room.given_up() => Err(PullError::Unavailable(format!(
                "{} has not sent the whole blob, whose size it does not tell, while others wait; try again",
                at.upstream
            ))),
        }
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
        match tokio::time::timeout(wait, places.take(name)).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(CrowdedError)) | Err(_) => Err(PullError::Unavailable(format!(
                "{} has too many {what} at a time here; try again",
                at.upstream
            ))),
        }
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

    #[test]
    fn of_the_places_of_unattended_fills_one_caller_leaves_half_to_others() {
        let limits = Limits::of_registry();
        let caller = |last| Caller {
            address: Some(std::net::Ipv4Addr::new(10, 0, 0, last).into()),
            ..Caller::default()
        };
        let take_all = |caller: &Caller| std::iter::from_fn(|| limits.unattended(caller)).collect::<Vec<_>>();
        let one = take_all(&caller(1));
        assert_eq!(one.len(), UNATTENDED_MAX / 2);
        assert_eq!(take_all(&caller(2)).len(), UNATTENDED_MAX / 4);
        drop(one);
        assert_eq!(take_all(&caller(1)).len(), UNATTENDED_MAX / 2);
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
    }

    #[tokio::test(start_paused = true)]
    async fn two_registries_that_never_end_a_blob_of_unknown_size_give_way_to_a_third() {
        let limits = Limits::of_pattern();
        let hang = |upstream: &str| {
            let (limits, at) = (limits.clone(), at(upstream, "a"));
            tokio::spawn(async move { limits.unsized_blob(&at, std::future::pending::<Result<(), _>>()).await })
        };
        let hanging = ["one.test", "two.test"].map(hang);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let began = tokio::time::Instant::now();
        let honest = at("honest.test", "app");
        limits.unsized_blob(&honest, async { Ok(()) }).await.unwrap();
        assert!(began.elapsed() <= UNSIZED_SLOW, "{:?}", began.elapsed());
        let [one, two] = hanging;
        assert!(matches!(one.await.unwrap(), Err(PullError::Unavailable(_))));
        assert!(!two.is_finished(), "one at a time");
    }

    #[tokio::test(start_paused = true)]
    async fn downloads_beyond_those_that_may_wait_hear_of_it_at_once() {
        let limits = Limits::of_registry();
        let _taken = fills(&limits, &at("a.test", "strangers"), FILLS_MAX).await;
        let ask = || {
            let (limits, at) = (limits.clone(), at("a.test", "strangers"));
            tokio::spawn(async move { limits.fill(&at).await.map(drop) })
        };
        let asked: Vec<_> = (0..5000).map(|_| ask()).collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let waiting = asked.iter().filter(|ask| !ask.is_finished()).count();
        assert!((1..=1024).contains(&waiting), "{waiting} wait");
        assert!(limits.fill(&at("a.test", "library/app")).await.is_ok());
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
