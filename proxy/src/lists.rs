//! Lists of a repository: its tags, and what refers to a manifest.
//!
//! Registries differ in how much of the specification they implement, so the mirror makes both lists from what a registry has:
//! tags are sorted and cut into pages, referrers are filtered, and come from the fallback tag where there is no list of them.
//!
//! Source: OCI distribution-spec, "Listing Tags" and "Listing Referrers".

use std::{
    collections::BTreeSet,
    net::IpAddr,
    num::NonZeroUsize,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use lru::LruCache;
use piecemeal_proto::{Digest, Reference};
use piecemeal_store::Repository;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tracing::warn;
use url::Url;

use crate::{Item, Right, flights::Flights, manifests::Manifests};
use piecemeal_upstream::{Caller, FILTERS_APPLIED, ListAnswer, Places, PullError};

/// Page size of requests to upstream, in tags: some registries refuse more.
const PAGE_TAGS: usize = 1000;
/// The same when only the caller's right is in question.
const PROOF_TAGS: usize = 1;
/// The most pages of one list: a million tags.
const PAGES_MAX: usize = 1000;
/// The most bytes of all its pages together.
const LIST_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The time limit for one list.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// The most lists of one upstream that are put together at a time, and how long others wait. One that takes longer than
/// [`LIST_SLOW`] is given up when a caller waits that has no place in its repository.
const LISTING_MAX: usize = 4;
const LIST_SLOW: Duration = Duration::from_secs(1);
const LISTING_WAIT: Duration = piecemeal_upstream::ANSWER_TIMEOUT;
/// The most upstreams with places of their own. The lists of all others, as long as there are others, share those of one.
const ROOMS_MAX: NonZeroUsize = NonZeroUsize::new(512).expect("it is not zero");
/// The most tags that are sent when a client does not say how many it wants, or too many.
const TAGS_MAX: usize = 100_000;
/// The most tags that are remembered, of all lists together.
const REMEMBERED_TAGS_MAX: usize = 500_000;
/// The most lists that are remembered.
const LISTS_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("it is not zero");

pub(crate) const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// Which list.
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
    /// Where the next page begins: after this tag.
    pub next: Option<String>,
    /// Whether the list was filtered as asked.
    pub filtered: bool,
    pub warning: Option<String>,
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
    running: Flights<Repository, Tagged>,
    /// By caller too: what each may see is its own.
    referring: Flights<(Right, Digest, Option<String>), Referrers>,
}

/// All tags of a repository, and the `Warning` that came along.
type Tagged = (Arc<Vec<String>>, Option<String>);
/// What refers to a manifest, whether it is filtered as asked, and the `Warning` that came along.
type Referrers = (Index, bool, Option<String>);

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
    fn get(&self, at: &Repository, age_max: Duration) -> Option<Arc<Vec<String>>> {
        let mut lists = self.known.lock().expect("no holder of this lock panics");
        lists
            .get(at)
            .filter(|listed| listed.at.elapsed() < age_max)
            .map(|listed| Arc::clone(&listed.tags))
    }

    fn put(&self, at: &Repository, tags: Arc<Vec<String>>) {
        let mut lists = self.known.lock().expect("no holder of this lock panics");
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
        let mut rooms = self.rooms.lock().expect("no holder of this lock panics");
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
    async fn bounded<T>(
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

/// Who shares the places: a node, or an address that shows none. What a caller could make up does not count. Of an address that many use
/// those that the source has served are apart from those that it has not.
fn sharer(caller: &Caller, is_served: bool) -> String {
    let address = caller.address.map(|address| match address.to_canonical() {
        // A host chooses its address from these.
        IpAddr::V6(address) => address.to_bits() >> 64,
        IpAddr::V4(address) => u128::from(address.to_bits()),
    });
    format!("{:?} {address:?} {is_served}", caller.node)
}

/// The pages of one list so far.
#[derive(Default)]
struct Pages {
    count: usize,
    bytes: usize,
}

impl Pages {
    fn add(&mut self, at: &Repository, page: &ListAnswer) -> Result<(), PullError> {
        self.count += 1;
        self.bytes += page.bytes.len();
        if self.count > PAGES_MAX || self.bytes > LIST_BYTES_MAX {
            return Err(PullError::BadGateway(format!(
                "a list of {} has more than {PAGES_MAX} pages or {LIST_BYTES_MAX} bytes: ask {} for it page by page",
                at.name, at.upstream
            )));
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct TagsAnswer {
    /// Some registries say `null` for none.
    tags: Option<Vec<String>>,
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    #[serde(default = "schema_version")]
    schema_version: u32,
    #[serde(default = "index_type")]
    media_type: String,
    /// Descriptors as they came.
    #[serde(default)]
    manifests: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArtifactType {
    artifact_type: Option<String>,
}

fn schema_version() -> u32 {
    2
}

fn index_type() -> String {
    INDEX_TYPE.to_owned()
}

impl Manifests {
    pub(crate) async fn tags(
        &self,
        caller: &Caller,
        at: &Repository,
        n: Option<usize>,
        last: Option<&str>,
    ) -> Result<List, PullError> {
        let known = self
            .lists
            .get(at, self.tag_ttl.get())
            .filter(|_| self.access.allows(caller, at));
        let (tags, warning) = match known {
            Some(tags) => (tags, None),
            None => match self.listed_tags(caller, at).await {
                Ok(tagged) => tagged,
                Err(error) if error.is_verdict() => return Err(error),
                Err(error) => self.tags_here(caller, at, error).await?,
            },
        };
        Ok(List {
            warning,
            ..page(&tags, n, last)
        })
    }

    /// Put together once for all callers that ask for it now. One that the source has not answered itself shows its right first.
    async fn listed_tags(&self, caller: &Caller, at: &Repository) -> Result<Tagged, PullError> {
        let prove = async || {
            let path = format!("tags/list?n={PROOF_TAGS}");
            self.source.list(caller, at, &path).await.map(drop)
        };
        let manifests = self.clone();
        let work = move |right: Right| {
            let manifests = manifests.clone();
            async move {
                let Right { at, caller } = &right;
                let is_served = manifests.access.allows(caller, at);
                let tags = manifests.all_tags(caller, at);
                manifests.lists.bounded(&right, is_served, tags).await
            }
        };
        let joined = self
            .lists
            .running
            .join(at.clone(), self.boarding(caller, at), work, prove);
        let landed = joined.await?;
        if !landed.own && !self.access.allows(caller, at) {
            prove().await?;
        }
        Ok(landed.value)
    }

    async fn all_tags(&self, caller: &Caller, at: &Repository) -> Result<Tagged, PullError> {
        let (mut tags, mut warning, mut pages) = (BTreeSet::new(), None, Pages::default());
        let mut path = Some(format!("tags/list?n={PAGE_TAGS}"));
        while let Some(asked) = path {
            let answer = self.source.list(caller, at, &asked).await?;
            pages.add(at, &answer)?;
            let read: TagsAnswer = read(at, &answer.bytes)?;
            let before = tags.len();
            tags.extend(read.tags.unwrap_or_default());
            warning = warning.or(answer.warning.clone());
            // A page that brings nothing new would be followed for ever.
            path = next_path(&answer, "tags/list").filter(|_| tags.len() > before);
        }
        let tags = Arc::new(tags.into_iter().collect::<Vec<_>>());
        if warning.is_none() {
            self.lists.put(at, Arc::clone(&tags));
        }
        Ok((tags, warning))
    }

    /// The tags that are known here, for a caller that may pull one of them.
    async fn tags_here(&self, caller: &Caller, at: &Repository, error: PullError) -> Result<Tagged, PullError> {
        let tags = self.store.tags(at).await?;
        let Some(first) = tags.first() else {
            return Err(error);
        };
        let Some(known) = self.store.tag(at, first).await? else {
            return Err(error);
        };
        self.access.require(caller, at, Item::Manifest(&known.digest)).await?;
        warn!(upstream = at.upstream, repository = at.name, %error, "listing the tags that are here: {error}");
        Ok((Arc::new(tags), Some(super::manifests::stale(&error))))
    }

    pub(crate) async fn referrers(
        &self,
        caller: &Caller,
        at: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<List, PullError> {
        let key = (Right::new(caller, at), *subject, artifact_type.map(str::to_owned));
        let manifests = self.clone();
        let (of_subject, of_type) = (*subject, artifact_type.map(str::to_owned));
        let work = move |right| {
            let (manifests, of_type) = (manifests.clone(), of_type.clone());
            async move { manifests.all_referrers(right, of_subject, of_type.as_deref()).await }
        };
        // All of a flight have the same right: what is said to one is said to each.
        let prove = std::future::pending::<Result<(), PullError>>;
        let joined = self.lists.referring.join(key, self.boarding(caller, at), work, prove);
        let (mut index, filtered, warning) = joined.await?.value;
        if let Some(wanted) = artifact_type.filter(|_| !filtered) {
            index
                .manifests
                .retain(|descriptor| artifact_type_of(descriptor).as_deref() == Some(wanted));
        }
        let referrers = serde_json::to_vec(&index).map_err(|error| PullError::BadGateway(error.to_string()))?;
        Ok(List {
            referrers: Some(referrers),
            filtered: artifact_type.is_some(),
            warning,
            ..List::default()
        })
    }

    async fn all_referrers(
        &self,
        right: Right,
        subject: Digest,
        artifact_type: Option<&str>,
    ) -> Result<Referrers, PullError> {
        let Right { at, caller } = &right;
        let listed = self.listed_referrers(caller, at, &subject, artifact_type);
        let is_served = self.access.allows(caller, at);
        match self.lists.bounded(&right, is_served, listed).await {
            // Such a registry knows no lists of referrers: clients keep them under a tag.
            Err(PullError::Unknown(_)) => self.tagged_referrers(caller, at, &subject).await,
            listed => listed,
        }
    }

    async fn listed_referrers(
        &self,
        caller: &Caller,
        at: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Referrers, PullError> {
        let resource = format!("referrers/{subject}");
        let query = artifact_type.map(|wanted| {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.append_pair("artifactType", wanted).finish()
        });
        let mut path = Some(query.map_or(resource.clone(), |query| format!("{resource}?{query}")));
        let mut index = empty_index();
        let (mut filtered, mut warning, mut pages) = (artifact_type.is_some(), None, Pages::default());
        while let Some(asked) = path {
            let answer = self.source.list(caller, at, &asked).await?;
            pages.add(at, &answer)?;
            let read: Index = read(at, &answer.bytes)?;
            path = next_path(&answer, &resource).filter(|_| !read.manifests.is_empty());
            index.manifests.extend(read.manifests);
            filtered &= answer.filters.is_some();
            warning = warning.or(answer.warning);
        }
        Ok((index, filtered, warning))
    }

    /// Source: the specification's "Referrers Tag Schema".
    async fn tagged_referrers(
        &self,
        caller: &Caller,
        at: &Repository,
        subject: &Digest,
    ) -> Result<Referrers, PullError> {
        let subject = subject.to_string();
        let (algorithm, hex) = subject.split_once(':').unwrap_or_default();
        let tag = format!("{:.32}-{:.64}", algorithm, hex);
        let found = self.manifest(caller, at, &Reference::Tag(tag)).await;
        match found {
            Ok(manifest) => Ok((read(at, &manifest.bytes)?, false, manifest.warning)),
            Err(PullError::Unknown(_)) => Ok((empty_index(), false, None)),
            Err(error) => Err(error),
        }
    }
}

fn artifact_type_of(descriptor: &RawValue) -> Option<String> {
    let read: Option<ArtifactType> = serde_json::from_str(descriptor.get()).ok();
    read?.artifact_type
}

fn empty_index() -> Index {
    Index {
        schema_version: schema_version(),
        media_type: index_type(),
        manifests: Vec::new(),
    }
}

fn read<'a, T: Deserialize<'a>>(at: &Repository, bytes: &'a [u8]) -> Result<T, PullError> {
    serde_json::from_slice(bytes)
        .map_err(|error| PullError::BadGateway(format!("{} sent a list that cannot be read: {error}", at.upstream)))
}

/// The path of the next page. Of upstream's own `Link` only the query counts: it leads nowhere else.
fn next_path(answer: &ListAnswer, resource: &str) -> Option<String> {
    let link = answer.next.as_deref()?;
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    if !parameters.replace(['"', ' '], "").contains("rel=next") {
        return None;
    }
    // Relative to anything: the host does not count.
    let url = Url::parse("http://registry.invalid/").ok()?.join(target).ok()?;
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(url.query_pairs().filter(|(key, _)| key != "ns"));
    Some(format!("{resource}?{}", query.finish()))
}

/// At most `n` tags after `last`.
fn page(tags: &[String], n: Option<usize>, last: Option<&str>) -> List {
    let first = last.map_or(0, |last| tags.partition_point(|tag| tag.as_str() <= last));
    let rest = &tags[first..];
    let count = n.unwrap_or(usize::MAX).min(TAGS_MAX).min(rest.len());
    let next = (count > 0 && count < rest.len()).then(|| rest[count - 1].clone());
    List {
        tags: rest[..count].to_vec(),
        next,
        ..List::default()
    }
}

/// The header that says that a list was filtered as asked.
pub(crate) const FILTERS_HEADER: &str = FILTERS_APPLIED;

#[cfg(test)]
mod tests {
    use piecemeal_proto::NodeId;

    use super::*;

    #[test]
    fn pages_begin_after_the_last_tag_and_end_without_a_next() {
        let tags = ["a", "b", "c", "d"].map(str::to_owned);
        type Case<'a> = (Option<usize>, Option<&'a str>, &'a [&'a str], Option<&'a str>);
        let cases: [Case<'_>; 8] = [
            (None, None, &["a", "b", "c", "d"], None),
            (Some(2), None, &["a", "b"], Some("b")),
            (Some(2), Some("b"), &["c", "d"], None),
            (Some(0), None, &[], None),
            (Some(10_000), Some("c"), &["d"], None),
            (None, Some("bb"), &["c", "d"], None),
            (None, Some("d"), &[], None),
            (Some(usize::MAX), Some(""), &["a", "b", "c", "d"], None),
        ];
        for (n, last, expected, next) in cases {
            let page = page(&tags, n, last);
            assert_eq!(page.tags, expected, "{n:?} {last:?}");
            assert_eq!(page.next.as_deref(), next, "{n:?} {last:?}");
        }
    }

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
        assert_eq!(lists.rooms.lock().unwrap().len(), ROOMS_MAX.get());
        let busy: Vec<_> = (0..ROOMS_MAX.get() * 2)
            .map(|number| hang_at(&lists, of(format!("{number}.test"))))
            .collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(lists.rooms.lock().unwrap().len(), ROOMS_MAX.get());
        assert!(!lists.others.is_idle());
        first.abort();
        busy.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[test]
    fn a_link_leads_to_the_same_list_only() {
        let answer = |link: &str| ListAnswer {
            bytes: Vec::new().into(),
            next: Some(link.to_owned()),
            filters: None,
            warning: None,
        };
        let cases = [
            (
                r#"</v2/a/tags/list?n=2&last=b>; rel="next""#,
                Some("tags/list?n=2&last=b"),
            ),
            (
                r"<https://evil.io/x?last=b&ns=evil.io>; rel=next",
                Some("tags/list?last=b"),
            ),
            (r#"<?n=2&last=x%26y>; rel="next""#, Some("tags/list?n=2&last=x%26y")),
            (r#"</v2/a/tags/list?n=2>; rel="prev""#, None),
            ("nonsense", None),
        ];
        for (link, path) in cases {
            assert_eq!(next_path(&answer(link), "tags/list").as_deref(), path, "{link}");
        }
    }
}
