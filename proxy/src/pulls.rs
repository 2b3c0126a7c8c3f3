//! Pulls of OCI clients: their metrics, and one log line for each.
//!
//! A client requests manifests and blobs, not pulls. One client's requests to one repository without a pause are one pull.
//! The table is pure: time comes in as an argument.

use std::{
    net::IpAddr,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use piecemeal_proto::Reference;
use piecemeal_store::Repository;
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tracing::info;

use crate::{Destination, Origin, Traffic};
use piecemeal_upstream::{FetchedManifest, PullError};

/// Without a request for so long, a pull is over.
const QUIET: Duration = Duration::from_secs(3);
/// The most pulls that are followed at a time: one of each of 10,000 nodes, and then some. Beyond that the pull that was quiet
/// for longest gets no log line.
const PULLS_MAX: NonZeroUsize = NonZeroUsize::new(16 * 1024).unwrap();

/// Counts and tells what clients pull. Cheap to clone.
#[derive(Clone)]
pub struct Pulls {
    traffic: Traffic,
    requests: Family<Answer, Counter>,
    table: Arc<Mutex<PullTable>>,
}

type Answer = [(&'static str, &'static str); 2];
type Key = (IpAddr, Repository);

/// The kind of item that a client pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PullKind {
    Manifest,
    Blob,
    List,
}

/// PullOutcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PullOutcome {
    /// It was here.
    Hit,
    /// It had to be fetched from the source.
    Miss,
    /// The client may not have it, or it does not exist.
    Refused,
    Failed,
}

impl PullKind {
    const ALL: [Self; 3] = [Self::Manifest, Self::Blob, Self::List];

    fn label(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::List => "list",
        }
    }
}

impl PullOutcome {
    const ALL: [Self; 4] = [Self::Hit, Self::Miss, Self::Refused, Self::Failed];

    fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }

    pub(crate) fn of(error: &PullError) -> Self {
        if error.is_verdict() {
            Self::Refused
        } else {
            Self::Failed
        }
    }
}

impl Pulls {
    pub fn new(traffic: Traffic) -> Self {
        Self {
            traffic,
            requests: Family::default(),
            table: Arc::default(),
        }
    }

    /// Adds the counters, all of them from zero on.
    pub fn register(&self, registry: &mut Registry) {
        for kind in PullKind::ALL {
            for outcome in PullOutcome::ALL {
                self.requests.get_or_create(&answer(kind, outcome)).inc_by(0);
            }
        }
        registry.sub_registry_with_prefix("piecemeal").register(
            "requests",
            "Requests of OCI clients, by kind and outcome",
            self.requests.clone(),
        );
    }

    pub(crate) fn count(&self, kind: PullKind, outcome: PullOutcome) {
        self.requests.get_or_create(&answer(kind, outcome)).inc();
    }

    /// A manifest was asked for.
    pub(crate) fn manifest(
        &self,
        client: Option<IpAddr>,
        at: &Repository,
        reference: &Reference,
        found: &Result<FetchedManifest, PullError>,
    ) {
        let outcome = match found {
            Ok(manifest) if manifest.fetched => PullOutcome::Miss,
            Ok(_) => PullOutcome::Hit,
            Err(error) => PullOutcome::of(error),
        };
        self.count(PullKind::Manifest, outcome);
        if let Some(client) = client.filter(|_| found.is_ok()) {
            self.table().name((client, at.clone()), reference, Instant::now());
        }
    }

    /// A blob's body begins. `local`: it was complete here.
    pub(crate) fn blob(&self, client: Option<IpAddr>, at: &Repository, local: bool) -> BlobPull {
        self.count(PullKind::Blob, if local { PullOutcome::Hit } else { PullOutcome::Miss });
        let key = client.map(|client| (client, at.clone()));
        if let Some(key) = &key {
            self.table().begin(key.clone(), Instant::now());
        }
        BlobPull {
            pulls: self.clone(),
            key,
            local,
        }
    }

    /// Writes a line for each pull that has ended. To be called every second or so.
    pub fn tell(&self) {
        let ended = self.table().ended(Instant::now());
        for ((client, at), pull) in ended {
            let seconds = (pull.last - pull.began).as_secs_f64();
            info!(
                pull.client = %client, upstream = at.upstream, repository = at.name, reference = pull.reference,
                pull.blobs = pull.blobs, pull.bytes = pull.bytes, pull.bytes_local = pull.local_bytes, pull.seconds = seconds,
                "{client} pulled {}/{}{}: {} blobs, {} bytes ({} of them were here) in {seconds:.1} s",
                at.upstream, at.name, pull.suffix(), pull.blobs, pull.bytes, pull.local_bytes
            );
        }
    }

    fn table(&self) -> MutexGuard<'_, PullTable> {
        self.table.lock()
    }
}

fn answer(kind: PullKind, outcome: PullOutcome) -> Answer {
    [("kind", kind.label()), ("outcome", outcome.label())]
}

/// One body on its way to a client; over when it is dropped.
pub(crate) struct BlobPull {
    pulls: Pulls,
    key: Option<Key>,
    local: bool,
}

impl BlobPull {
    pub(crate) fn sent(&self, bytes: usize) {
        let origin = if self.local { Origin::Local } else { Origin::Transfer };
        let bytes = bytes as u64;
        self.pulls.traffic.count(origin, Destination::Client, bytes);
        if let Some(key) = &self.key {
            self.pulls.table().sent(key, bytes, self.local, Instant::now());
        }
    }
}

impl Drop for BlobPull {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            self.pulls.table().end(key, Instant::now());
        }
    }
}

struct PullTable(LruCache<Key, Pull>);

impl Default for PullTable {
    fn default() -> Self {
        Self(LruCache::new(PULLS_MAX))
    }
}

struct Pull {
    /// The reference that the client asked for: the tag, if there was one.
    reference: String,
    is_tag: bool,
    began: Instant,
    last: Instant,
    /// Bodies on their way.
    open: u32,
    blobs: u64,
    bytes: u64,
    local_bytes: u64,
}

impl PullTable {
    fn entry(&mut self, key: Key, now: Instant) -> &mut Pull {
        let pull = self.0.get_or_insert_mut(key, || Pull {
            reference: String::new(),
            is_tag: false,
            began: now,
            last: now,
            open: 0,
            blobs: 0,
            bytes: 0,
            local_bytes: 0,
        });
        pull.last = now;
        pull
    }

    fn name(&mut self, key: Key, reference: &Reference, now: Instant) {
        let pull = self.entry(key, now);
        let is_tag = matches!(reference, Reference::Tag(_));
        if pull.reference.is_empty() || (is_tag && !pull.is_tag) {
            pull.reference = reference.to_string();
            pull.is_tag = is_tag;
        }
    }

    fn begin(&mut self, key: Key, now: Instant) {
        let pull = self.entry(key, now);
        pull.open += 1;
        pull.blobs += 1;
    }

    fn sent(&mut self, key: &Key, bytes: u64, local: bool, now: Instant) {
        if let Some(pull) = self.0.get_mut(key) {
            pull.last = now;
            pull.bytes += bytes;
            pull.local_bytes += if local { bytes } else { 0 };
        }
    }

    fn end(&mut self, key: &Key, now: Instant) {
        if let Some(pull) = self.0.get_mut(key) {
            pull.last = now;
            pull.open = pull.open.saturating_sub(1);
        }
    }

    /// Takes out the pulls that are over. One without a blob is none: the client had everything, or only looked.
    fn ended(&mut self, now: Instant) -> Vec<(Key, Pull)> {
        let is_over = |pull: &Pull| pull.open == 0 && now.saturating_duration_since(pull.last) >= QUIET;
        let over: Vec<Key> = self
            .0
            .iter()
            .filter(|(_, pull)| is_over(pull))
            .map(|(key, _)| key.clone())
            .collect();
        let out = over.iter().filter_map(|key| self.0.pop_entry(key));
        out.filter(|(_, pull)| pull.blobs > 0).collect()
    }
}

impl Pull {
    /// The reference as it follows a repository's name.
    fn suffix(&self) -> String {
        match (self.reference.as_str(), self.is_tag) {
            ("", _) => String::new(),
            (tag, true) => format!(":{tag}"),
            (digest, false) => format!("@{digest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(client: u8, name: &str) -> Key {
        let at = Repository {
            upstream: "docker.io".to_owned(),
            name: name.to_owned(),
        };
        ([10, 0, 0, client].into(), at)
    }

    fn tag(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn what_one_client_takes_without_a_pause_is_one_pull() {
        let (mut table, start) = (PullTable::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let digest: Reference = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        table.name(key(1, "app"), &digest, at(0));
        table.name(key(1, "app"), &tag("v1"), at(0));
        table.begin(key(1, "app"), at(1));
        table.begin(key(1, "app"), at(1));
        table.begin(key(2, "app"), at(1));
        table.sent(&key(1, "app"), 70, true, at(2));
        table.end(&key(1, "app"), at(2));
        table.end(&key(2, "app"), at(2));
        assert!(table.ended(at(4)).is_empty());
        let ended = table.ended(at(60));
        assert_eq!(ended.len(), 1, "the other's second body is still on its way");
        table.sent(&key(1, "app"), 30, false, at(61));
        table.end(&key(1, "app"), at(61));
        let [(_, pull)] = &table.ended(at(64))[..] else {
            panic!("one pull");
        };
        assert_eq!((pull.blobs, pull.bytes, pull.local_bytes), (2, 100, 70));
        assert_eq!(
            (pull.suffix().as_str(), pull.last - pull.began),
            (":v1", Duration::from_secs(61))
        );
        assert!(table.0.is_empty());
    }

    #[test]
    fn to_look_at_a_manifest_is_no_pull() {
        let (mut table, start) = (PullTable::default(), Instant::now());
        table.name(key(1, "app"), &tag("v1"), start);
        assert!(table.ended(start + QUIET).is_empty() && table.0.is_empty());
    }

    #[test]
    fn one_pull_too_many_takes_the_place_of_the_one_that_was_silent_for_longest() {
        let (mut table, start) = (PullTable::default(), Instant::now());
        let count = PULLS_MAX.get();
        for number in 0..count {
            table.begin(key(1, &number.to_string()), start);
        }
        table.sent(&key(1, "0"), 1, true, start);
        table.begin(key(1, "one more"), start);
        let is_followed = |number: usize| table.0.contains(&key(1, &number.to_string()));
        assert!(!is_followed(1) && (0..count).filter(|&number| number != 1).all(is_followed));
        table.sent(&key(1, "1"), 1, true, start);
        table.end(&key(1, "1"), start);
        assert_eq!(table.0.len(), count);
    }
}
