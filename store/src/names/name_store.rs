//! Names of a store: the rows of the index, a cache of them in memory, and last uses on their way to the index.
//!
//! Each change of a row is followed by the cache's, so that the cache never holds an older one.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use piecemeal_proto::{Digest, MANIFEST_BYTES_MAX, NodeId};

use super::{
    name_cache::NameCache,
    name_uses::NameUses,
    overflow::Overflow,
    values::{Manifest, Tag},
};
use crate::{
    index::{Durability, Index, ManifestRow, TagRow, manifests, name_caps, rights, sources, tags},
    values::{
        clock::Age,
        error::{IndexError, StoreError},
        repository::Repository,
        right::{Holder, NodeRight, Shown},
    },
};

/// Rows kept in each table of names: 30 MB of index at the most.
const NAMES_MAX: u64 = 100_000;
/// Rights kept: those of 10,000 nodes, each with five private repositories and eight credentials in each; 80 MB of index.
const RIGHTS_MAX: u64 = 10_000 * 5 * 8;
/// Refusals kept: those of 10,000 nodes with 40 credentials each; 50 MB of index.
const REFUSALS_MAX: u64 = 10_000 * 40;
/// The time for which a refusal is kept: longer than a site is without its uplink.
const REFUSED_LIFE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Manifests kept, in bytes: thousands of images.
const MANIFESTS_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The most manifests that are read to find what one says of a digest: an index names it too, and says less.
const NAMING_MAX: usize = 8;

/// All names of a store.
pub(crate) struct NameStore {
    index: Arc<Index>,
    /// What the disk does not take.
    overflow: Overflow,
    cache: Mutex<NameCache>,
    uses: Mutex<NameUses>,
}

impl NameStore {
    pub(crate) fn new(index: Arc<Index>) -> Self {
        Self {
            index,
            overflow: Overflow::default(),
            cache: Mutex::default(),
            uses: Mutex::default(),
        }
    }

    /// Keeps a manifest that has its digest, and its source.
    pub(crate) fn put_manifest(
        &self,
        at: &Repository,
        expected: Digest,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<(), StoreError> {
        check_manifest(expected, bytes)?;
        let (now, before) = (self.index.now(), self.cache.lock().epoch());
        self.overflow.write(&self.index, bytes.len(), |transaction| {
            manifests::put(transaction, &expected, media_type, bytes, now)?;
            sources::put(transaction, at, &expected, now)
        })?;
        let mut cache = self.cache.lock();
        cache.added_source(before, at, &expected);
        cache.changed_manifest(&expected);
        Ok(())
    }

    /// The manifest, if it is cached.
    pub(crate) fn cached_manifest(&self, at: &Repository, digest: &Digest) -> Option<Manifest> {
        let manifest = self.cache.lock().manifest(at, digest)?;
        self.use_manifest(at, digest);
        Some(manifest)
    }

    /// The manifest, from the index.
    pub(crate) fn manifest(&self, at: &Repository, digest: Digest) -> Result<Option<Manifest>, IndexError> {
        let read = self.cache.lock().epoch();
        let Some(row) = self.youngest(|index| index.manifest(at, &digest))? else {
            return Ok(None);
        };
        self.use_manifest(at, &digest);
        let manifest = Manifest {
            media_type: row.media_type,
            bytes: row.bytes.into(),
            digest,
        };
        self.cache.lock().keep_manifest(read, at, &manifest);
        Ok(Some(manifest))
    }

    /// Manifests of the repository whose text has the digest in it. No use of them.
    pub(crate) fn manifests_that_name(&self, at: &Repository, named: &Digest) -> Result<Vec<Manifest>, IndexError> {
        let rows = self.index.manifests_that_name(at, named, NAMING_MAX)?;
        let manifest = |(digest, row): (String, ManifestRow)| {
            Some(Manifest {
                digest: digest.parse().ok()?,
                media_type: row.media_type,
                bytes: row.bytes.into(),
            })
        };
        Ok(rows.into_iter().filter_map(manifest).collect())
    }

    pub(crate) fn put_tag(&self, at: &Repository, tag: &str, digest: Digest) -> Result<(), IndexError> {
        let checked = self.index.now();
        self.overflow.write(&self.index, 0, |transaction| {
            tags::put(transaction, at, tag, TagRow { digest, checked })
        })?;
        self.cache.lock().changed_tag(at, tag);
        Ok(())
    }

    /// The tag, if it is cached.
    pub(crate) fn cached_tag(&self, at: &Repository, tag: &str) -> Option<Tag> {
        let row = self.cache.lock().tag(at, tag)?;
        Some(self.use_tag(at, tag, row))
    }

    /// The tag, from the index.
    pub(crate) fn tag(&self, at: &Repository, tag: &str) -> Result<Option<Tag>, IndexError> {
        let read = self.cache.lock().epoch();
        let Some(row) = self.youngest(|index| index.tag(at, tag))? else {
            return Ok(None);
        };
        self.cache.lock().keep_tag(read, at, tag, row);
        Ok(Some(self.use_tag(at, tag, row)))
    }

    pub(crate) fn forget_tag(&self, at: &Repository, tag: &str) -> Result<(), IndexError> {
        self.overflow
            .write(&self.index, 0, |transaction| tags::delete(transaction, at, tag))?;
        self.cache.lock().changed_tag(at, tag);
        Ok(())
    }

    /// Tags in their order.
    pub(crate) fn tags(&self, at: &Repository) -> Result<Vec<String>, IndexError> {
        let mut tags = self.index.tags(at)?;
        if let Some(memory) = self.overflow.index() {
            tags.extend(memory.tags(at)?);
            tags.sort_unstable();
            tags.dedup();
        }
        Ok(tags)
    }

    pub(crate) fn put_source(&self, at: &Repository, digest: &Digest) -> Result<(), IndexError> {
        let (now, before) = (self.index.now(), self.cache.lock().epoch());
        self.overflow
            .write(&self.index, 0, |transaction| sources::put(transaction, at, digest, now))?;
        self.cache.lock().added_source(before, at, digest);
        Ok(())
    }

    /// Whether the source is cached.
    pub(crate) fn has_cached_source(&self, at: &Repository, digest: &Digest) -> bool {
        let is_known = self.cache.lock().has_source(at, digest);
        if is_known {
            self.use_source(at, digest);
        }
        is_known
    }

    /// Whether the index has the source.
    pub(crate) fn has_source(&self, at: &Repository, digest: &Digest) -> Result<bool, IndexError> {
        let read = self.cache.lock().epoch();
        let is_known = self.any(|index| index.has_source(at, digest))?;
        if is_known {
            self.use_source(at, digest);
            self.cache.lock().keep_source(read, at, digest);
        }
        Ok(is_known)
    }

    /// Whether any repository of the upstream is a source of the digest.
    pub(crate) fn has_upstream(&self, upstream: &str, digest: &Digest) -> Result<bool, IndexError> {
        self.any(|index| index.has_upstream(upstream, digest))
    }

    pub(crate) fn put_right(&self, at: &Repository, holder: Holder) -> Result<(), IndexError> {
        let (proven, row) = (self.index.now(), self.index.holder_row(holder));
        self.overflow.write(&self.index, 0, |transaction| {
            rights::put_right(transaction, at, &row, proven)
        })
    }

    pub(crate) fn put_refusal(&self, at: &Repository, holder: Holder) -> Result<(), IndexError> {
        let (refused, row) = (self.index.now(), self.index.holder_row(holder));
        self.overflow.write(&self.index, 0, |transaction| {
            rights::put_refusal(transaction, at, &row, refused)
        })
    }

    pub(crate) fn public_right(&self, at: &Repository) -> Result<Option<Duration>, IndexError> {
        let proven = self.youngest(|index| index.public_right(at))?;
        Ok(proven.map(|proven| self.index.now().since(proven)))
    }

    pub(crate) fn public_manifests(&self, max: usize) -> Result<Vec<(Repository, Digest)>, IndexError> {
        let rows = self.index.public_manifests(max)?;
        let known = |(at, digest): (Repository, String)| Some((at, digest.parse().ok()?));
        Ok(rows.into_iter().filter_map(known).collect())
    }

    pub(crate) fn node_right(
        &self,
        at: &Repository,
        node: NodeId,
        shown: Option<Shown>,
    ) -> Result<NodeRight, IndexError> {
        let row = match self.overflow.index() {
            // A refusal that the disk did not take ends what it has of the node.
            Some(memory) => {
                let young = memory.node_right(at, node, shown)?;
                match young.is_known && young.by_this.is_none() {
                    true => young,
                    false => young.or(self.index.node_right(at, node, shown)?),
                }
            }
            None => self.index.node_right(at, node, shown)?,
        };
        let now = self.index.now();
        Ok(NodeRight {
            by_any: row.by_any.map(|proven| now.since(proven)),
            by_this: row.by_this.map(|proven| now.since(proven)),
            is_known: row.is_known,
        })
    }

    /// Why names cannot be written to the disk, if they cannot.
    pub(crate) fn trouble(&self) -> Option<String> {
        let why = self.overflow.trouble()?;
        Some(format!(
            "tags, manifests and rights cannot be written to the disk ({why}) and are kept in memory"
        ))
    }

    /// What the indexes have of a name: that in memory is younger.
    fn youngest<T>(&self, read: impl Fn(&Index) -> Result<Option<T>, IndexError>) -> Result<Option<T>, IndexError> {
        if let Some(memory) = self.overflow.index()
            && let Some(row) = read(memory)?
        {
            return Ok(Some(row));
        }
        read(&self.index)
    }

    /// Whether one of the indexes has it.
    fn any(&self, has: impl Fn(&Index) -> Result<bool, IndexError>) -> Result<bool, IndexError> {
        if let Some(memory) = self.overflow.index()
            && has(memory)?
        {
            return Ok(true);
        }
        has(&self.index)
    }

    /// Names have changed in the index.
    pub(crate) fn changed(&self) {
        self.cache.lock().changed();
    }

    /// Removes what was last used at `unused_since` or before, and what is beyond the caps.
    pub(crate) fn expire(&self, unused_since: Option<Age>) -> Result<(), IndexError> {
        let refused = self.index.now().before(REFUSED_LIFE);
        self.index.write(Durability::Batched, |transaction| {
            if let Some(moment) = unused_since {
                name_caps::expire(transaction, moment)?;
                rights::expire(transaction)?;
            }
            if let Some(moment) = refused {
                rights::expire_refusals(transaction, moment)?;
            }
            rights::cap(transaction, RIGHTS_MAX, REFUSALS_MAX)?;
            let caps = name_caps::Caps {
                names: NAMES_MAX,
                manifest_bytes: MANIFESTS_BYTES_MAX,
            };
            name_caps::cap(transaction, &caps)
        })?;
        self.cache.lock().changed();
        Ok(())
    }

    /// The number of last uses that the index does not have.
    pub(crate) fn uses(&self) -> usize {
        self.uses.lock().len()
    }

    pub(crate) fn take_uses(&self) -> NameUses {
        std::mem::take(&mut *self.uses.lock())
    }

    pub(crate) fn give_back_uses(&self, uses: NameUses) {
        self.uses.lock().give_back(uses);
    }

    fn use_manifest(&self, at: &Repository, digest: &Digest) {
        let now = self.index.now();
        self.uses.lock().use_manifest(at, digest, now);
    }

    fn use_source(&self, at: &Repository, digest: &Digest) {
        let now = self.index.now();
        self.uses.lock().use_source(at, digest, now);
    }

    /// The tag as its row has it. Counts as a use.
    fn use_tag(&self, at: &Repository, tag: &str, row: TagRow) -> Tag {
        let now = self.index.now();
        self.uses.lock().use_tag(at, tag, now);
        Tag {
            digest: row.digest,
            age: now.since(row.checked),
        }
    }
}

fn check_manifest(expected: Digest, bytes: &Bytes) -> Result<(), StoreError> {
    if bytes.len() > MANIFEST_BYTES_MAX {
        return Err(StoreError::ManifestTooLarge {
            bytes: bytes.len() as u64,
            bytes_max: MANIFEST_BYTES_MAX as u64,
        });
    }
    if expected.matches_manifest(bytes) {
        return Ok(());
    }
    let mut hasher = expected.algorithm().hasher();
    hasher.update(bytes);
    let computed = hasher.finish();
    Err(StoreError::DigestMismatch {
        expected: Box::new(expected),
        computed: Box::new(computed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::clock::SystemClock;

    struct Story {
        names: NameStore,
        index: Arc<Index>,
        at: Repository,
        #[expect(dead_code, reason = "the index lies in it")]
        dir: tempfile::TempDir,
    }

    fn story() -> Story {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("index.db"), Arc::new(SystemClock::new())).unwrap();
        let index = Arc::new(index);
        Story {
            names: NameStore::new(Arc::clone(&index)),
            index,
            at: Repository {
                upstream: "a.test".to_owned(),
                name: "app".to_owned(),
            },
            dir,
        }
    }

    const NODE: NodeId = NodeId([3; 16]);
    const ALICE: Shown = Shown::Client([1; 32]);
    const BOB: Shown = Shown::Client([2; 32]);

    impl Story {
        fn manifest(&self, text: &str) -> (Digest, Bytes) {
            let bytes = Bytes::copy_from_slice(text.as_bytes());
            let digest = Digest::of(&bytes);
            self.names.put_manifest(&self.at, digest, "a/manifest", &bytes).unwrap();
            (digest, bytes)
        }

        fn knows(&self, digest: Digest) -> bool {
            // As after a sweep: from the indexes, not from the cache.
            self.names.changed();
            let found = self.names.manifest(&self.at, digest).unwrap();
            found.is_some() && self.names.has_source(&self.at, &digest).unwrap()
        }

        fn right(&self, shown: Shown) -> NodeRight {
            self.names.node_right(&self.at, NODE, Some(shown)).unwrap()
        }
    }

    #[test]
    fn names_that_the_disk_does_not_take_are_served_from_memory_and_later_ones_are_on_the_disk() {
        let story = story();
        let (old, _) = story.manifest("old");
        story.names.put_tag(&story.at, "v1", old).unwrap();
        story.index.set_read_only(true);
        let (new, _) = story.manifest("new");
        story.names.put_tag(&story.at, "v1", new).unwrap();
        story.names.put_tag(&story.at, "v2", new).unwrap();
        assert!(story.names.trouble().unwrap().contains("kept in memory"));
        assert!(story.knows(old) && story.knows(new));
        let tag = |tag: &str| story.names.tag(&story.at, tag).unwrap().map(|tag| tag.digest);
        assert_eq!((tag("v1"), tag("v2")), (Some(new), Some(new)));
        assert_eq!(story.names.tags(&story.at).unwrap(), ["v1", "v2"]);
        assert!(story.names.has_upstream("a.test", &new).unwrap());

        story.index.set_read_only(false);
        let (third, _) = story.manifest("third");
        assert_eq!(story.names.trouble(), None);
        story.names.put_tag(&story.at, "v1", third).unwrap();
        assert!(story.knows(third) && story.knows(new));
        assert_eq!(
            story.names.tag(&story.at, "v1").unwrap().map(|tag| tag.digest),
            Some(third)
        );
        assert!(
            story.index.manifest(&story.at, &third).unwrap().is_some(),
            "it is on the disk"
        );
        story.names.forget_tag(&story.at, "v2").unwrap();
        assert!(story.names.tag(&story.at, "v2").unwrap().is_none());
    }

    #[test]
    fn a_refusal_that_the_disk_does_not_take_ends_the_right_that_it_has() {
        let story = story();
        for shown in [ALICE, BOB] {
            story.names.put_right(&story.at, Holder::Node(NODE, shown)).unwrap();
        }
        story.index.set_read_only(true);
        story.names.put_refusal(&story.at, Holder::Node(NODE, ALICE)).unwrap();
        let alice = story.right(ALICE);
        assert!(alice.is_known && alice.by_this.is_none(), "{alice:?}");
        assert!(story.right(BOB).by_this.is_some());
        story.names.put_right(&story.at, Holder::Node(NODE, ALICE)).unwrap();
        assert!(story.right(ALICE).by_this.is_some(), "upstream has served it since");
        assert!(story.names.public_right(&story.at).unwrap().is_none());
        story.names.put_right(&story.at, Holder::Public).unwrap();
        assert!(story.names.public_right(&story.at).unwrap().is_some());
    }

    #[test]
    fn what_is_kept_in_memory_is_bounded_and_the_oldest_goes_first() {
        let story = story();
        story.index.set_read_only(true);
        let digests: Vec<Digest> = (0..30)
            .map(|count| story.manifest(&format!("{count}{}", "x".repeat(1_000_000))).0)
            .collect();
        let known = digests.iter().filter(|digest| story.knows(**digest)).count();
        assert!((4..20).contains(&known), "{known} of 30 MB");
        assert!(story.knows(digests[29]) && !story.knows(digests[0]));
    }
}
