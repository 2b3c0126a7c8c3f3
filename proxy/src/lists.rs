//! Lists of a repository: its tags, and what refers to a manifest.
//!
//! Registries differ in how much of the specification they implement, so the mirror makes both lists from what a registry has:
//! tags are sorted and cut into pages, referrers are filtered, and come from the fallback tag where there is no list of them.
//!
//! Source: OCI distribution-spec, "Listing Tags" and "Listing Referrers".

use std::{
    net::IpAddr,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use lru::LruCache;
use parking_lot::Mutex;
use piecemeal_proto::Digest;
use piecemeal_store::Repository;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Right, flights::Flights};
use piecemeal_upstream::{Caller, FILTERS_APPLIED, Note, Places, PullError};

/// The time limit for one list.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// The most lists of one upstream that are put together at a time, and how long others wait. One that takes longer than
/// [`LIST_SLOW`] is given up when a caller waits that has no place in its repository.
const LISTING_MAX: usize = 4;
const LIST_SLOW: Duration = Duration::from_secs(1);
const LISTING_WAIT: Duration = piecemeal_upstream::ANSWER_TIMEOUT;
/// The most upstreams with places of their own. The lists of all others, as long as there are others, share those of one.
const ROOMS_MAX: NonZeroUsize = NonZeroUsize::new(512).expect("it is not zero");
/// The most tags that are remembered, of all lists together.
const REMEMBERED_TAGS_MAX: usize = 500_000;
/// The most lists that are remembered.
const LISTS_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("it is not zero");

pub(crate) const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// Query for a list of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListQuery {
    /// `n` at the most, after `last`.
    Tags { n: Option<usize>, last: Option<String> },
    Referrers {
        subject: Digest,
        artifact_type: Option<String>,
    },
}

/// A list as a client is to have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// `None`: tags.
    pub referrers: Option<Vec<u8>>,
    pub tags: Vec<String>,
    /// The tag after which the next page begins.
    pub next: Option<String>,
    /// Whether the list was filtered as asked.
    pub filtered: bool,
    pub note: Note,
}

/// The lists that are being put together, and the tags of repositories as upstream had them not long ago. Full tables forget
/// their oldest.
#[derive(Clone)]
pub(crate) struct Lists {
    known: Arc<Mutex<LruCache<Repository, Listed>>>,
    /// By upstream, so that one that is slow costs the others nothing. The callers of its repositories share its places.
    rooms: Arc<Mutex<LruCache<String, Places>>>,
    /// That of the upstreams without one.
    others: Places,
    pub(crate) running: Flights<Repository, Tagged>,
    /// By caller too: what each may see is its own.
    pub(crate) referring: Flights<(Right, Digest, Option<String>), Referrers>,
}

/// All tags of a repository, and the note beside them.
pub(crate) type Tagged = (Arc<Vec<String>>, Note);
/// The referrers of a manifest, whether they are filtered as asked, and the note beside them.
pub(crate) type Referrers = (Index, bool, Note);

struct Listed {
    tags: Arc<Vec<String>>,
    at: Instant,
}

impl Default for Lists {
    fn default() -> Self {
        Self {
            known: Arc::new(Mutex::new(LruCache::new(LISTS_MAX))),
            rooms: Arc::new(Mutex::new(LruCache::unbounded())),
            others: Places::giving_up(LISTING_MAX, LIST_SLOW),
            running: Flights::default(),
            referring: Flights::default(),
        }
    }
}

impl Lists {
    pub(crate) fn get(&self, at: &Repository, age_max: Duration) -> Option<Arc<Vec<String>>> {
        let mut lists = self.known.lock();
        lists
            .get(at)
            .filter(|listed| listed.at.elapsed() < age_max)
            .map(|listed| Arc::clone(&listed.tags))
    }

    pub(crate) fn put(&self, at: &Repository, tags: Arc<Vec<String>>) {
        let mut lists = self.known.lock();
        lists.pop(at);
        if tags.len() > REMEMBERED_TAGS_MAX {
            return;
        }
        let remembered =
            |lists: &LruCache<Repository, Listed>| -> usize { lists.iter().map(|(_, listed)| listed.tags.len()).sum() };
        while remembered(&lists) + tags.len() > REMEMBERED_TAGS_MAX {
            lists.pop_lru();
        }
        let listed = Listed {
            tags,
            at: Instant::now(),
        };
        lists.put(at.clone(), listed);
    }

    fn room(&self, upstream: &str) -> Places {
        let mut rooms = self.rooms.lock();
        if let Some(room) = rooms.get(upstream) {
            return room.clone();
        }
        // One that is in use is not forgotten: its places would count twice.
        if rooms.len() >= ROOMS_MAX.get() {
            let idle = rooms.iter().rev().find(|(_, room)| room.is_idle());
            let Some(idle) = idle.map(|(upstream, _)| upstream.clone()) else {
                return self.others.clone();
            };
            rooms.pop(&idle);
        }
        let room = Places::giving_up(LISTING_MAX, LIST_SLOW);
        rooms.put(upstream.to_owned(), room.clone());
        room
    }

    /// Carries out `work` when there is room for it, for so long and no longer. `is_served`: the source has served the caller not long
    /// ago.
    pub(crate) async fn bounded<T>(
        &self,
        right: &Right,
        is_served: bool,
        work: impl Future<Output = Result<T, PullError>>,
    ) -> Result<T, PullError> {
        let at = &right.at;
        let room = self.room(&at.upstream);
        let caller = sharer(&right.caller, is_served);
        let name = format!("{}/{} {caller}", at.upstream, at.name);
        let place = tokio::time::timeout(LISTING_WAIT, room.take_for(&caller, &name)).await;
        let Ok(Ok(place)) = place else {
            return Err(PullError::Unavailable(format!(
                "{} is being asked for too many lists at a time; try again",
                at.upstream
            )));
        };
        let unsent = |why: String| {
            Err(PullError::Unavailable(format!(
                "{} has not sent the whole list of {} {why}",
                at.upstream, at.name
            )))
        };
        tokio::select! {
            listed = work => listed,
            () = place.given_up() => unsent("while lists of other repositories wait; try again".to_owned()),
            () = tokio::time::sleep(LIST_TIMEOUT) => unsent(format!("within {} s", LIST_TIMEOUT.as_secs())),
        }
    }
}

/// The name under which a caller shares the places: its node, or an address that shows none. A name that a caller could make up
/// does not count. Of an address that many use, callers that the source has served are apart from those that it has not.
fn sharer(caller: &Caller, is_served: bool) -> String {
    let address = caller.address.map(|address| match address.to_canonical() {
        // A host chooses its address from these.
        IpAddr::V6(address) => address.to_bits() >> 64,
        IpAddr::V4(address) => u128::from(address.to_bits()),
    });
    format!("{:?} {address:?} {is_served}", caller.node)
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    #[serde(default = "schema_version")]
    pub(crate) schema_version: u32,
    #[serde(default = "index_type")]
    pub(crate) media_type: String,
    /// Descriptors as they came.
    #[serde(default)]
    pub(crate) manifests: Vec<Box<RawValue>>,
}

impl Index {
    pub(crate) fn empty() -> Self {
        Self {
            schema_version: schema_version(),
            media_type: index_type(),
            manifests: Vec::new(),
        }
    }
}

fn schema_version() -> u32 {
    2
}

fn index_type() -> String {
    INDEX_TYPE.to_owned()
}

/// The header that says that a list was filtered as asked.
pub(crate) const FILTERS_HEADER: &str = FILTERS_APPLIED;

#[cfg(test)]
mod tests {
    use piecemeal_proto::NodeId;

    use super::*;

    fn at(name: &str) -> Repository {
        Repository {
            upstream: "a.test".to_owned(),
            name: name.to_owned(),
        }
    }

    fn right(at: &Repository, address: u8) -> Right {
        let caller = Caller {
            address: Some([10, 0, 0, address].into()),
            ..Caller::default()
        };
        Right::new(&caller, at)
    }

    /// One whose upstream never answers.
    fn hang(lists: &Lists, name: &str) -> tokio::task::JoinHandle<Result<(), PullError>> {
        hang_at(lists, right(&at(name), 1))
    }

    fn hang_at(lists: &Lists, right: Right) -> tokio::task::JoinHandle<Result<(), PullError>> {
        let lists = lists.clone();
        tokio::spawn(async move { lists.bounded(&right, true, std::future::pending()).await })
    }

    async fn list(lists: &Lists, right: &Right) -> Result<(), PullError> {
        lists.bounded(right, true, async { Ok(()) }).await
    }

    #[tokio::test(start_paused = true)]
    async fn slow_lists_of_one_repository_keep_no_other_repository_waiting() {
        let lists = Lists::default();
        let slow: Vec<_> = (0..20).map(|_| hang(&lists, "strangers/slow")).collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let began = tokio::time::Instant::now();
        list(&lists, &right(&at("library/app"), 1)).await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        slow.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_lists_of_many_repositories_give_way_one_at_a_time_and_end() {
        let lists = Lists::default();
        let began = tokio::time::Instant::now();
        let slow: Vec<_> = (0..LISTING_MAX)
            .map(|number| hang(&lists, &format!("strangers/{number}")))
            .collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        list(&lists, &right(&at("library/app"), 1)).await.unwrap();
        assert!(began.elapsed() <= LIST_SLOW + Duration::from_millis(10));
        assert_eq!(slow.iter().filter(|list| list.is_finished()).count(), 1);
        for list in slow {
            assert!(matches!(list.await.unwrap(), Err(PullError::Unavailable(_))));
        }
        assert!(began.elapsed() <= LIST_TIMEOUT + Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn lists_that_one_caller_asks_for_keep_no_other_caller_of_the_repository_waiting() {
        let lists = Lists::default();
        let at = at("library/app");
        let flood: Vec<_> = (0..60).map(|_| hang_at(&lists, right(&at, 1))).collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let began = tokio::time::Instant::now();
        list(&lists, &right(&at, 2)).await.unwrap();
        let node = Caller {
            node: Some(NodeId([1; 16])),
            ..right(&at, 1).caller
        };
        list(&lists, &Right::new(&node, &at)).await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        // What the same address makes up is its own, and so is what it shows that the source has not served.
        let stranger = lists.bounded(&right(&at, 1), false, async { Ok(()) }).await;
        assert!(stranger.is_ok() && began.elapsed() <= LIST_SLOW * 2);
        flood.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_makes_up_repositories_holds_up_its_own_lists_alone() {
        let lists = Lists::default();
        let flood: Vec<_> = (0..60)
            .map(|number| hang(&lists, &format!("strangers/{number}")))
            .collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let began = tokio::time::Instant::now();
        list(&lists, &right(&at("library/app"), 2)).await.unwrap();
        assert!(began.elapsed() <= LIST_SLOW * 2, "{:?}", began.elapsed());
        flood.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test(start_paused = true)]
    async fn the_places_of_an_upstream_are_bounded_however_many_upstreams_there_are() {
        let lists = Lists::default();
        let of = |upstream: String| {
            let name = "app".to_owned();
            right(&Repository { upstream, name }, 1)
        };
        let first = hang_at(&lists, of("first.test".to_owned()));
        tokio::time::sleep(Duration::from_millis(1)).await;
        for number in 0..ROOMS_MAX.get() * 2 {
            list(&lists, &of(format!("{number}.test"))).await.unwrap();
        }
        assert!(
            !lists.room("first.test").is_idle(),
            "it is not forgotten while it is in use"
        );
        assert_eq!(lists.rooms.lock().len(), ROOMS_MAX.get());
        let busy: Vec<_> = (0..ROOMS_MAX.get() * 2)
            .map(|number| hang_at(&lists, of(format!("{number}.test"))))
            .collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(lists.rooms.lock().len(), ROOMS_MAX.get());
        assert!(!lists.others.is_idle());
        first.abort();
        busy.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
