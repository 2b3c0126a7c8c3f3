//! Cache of recently used names in memory: a popular manifest costs the index nothing.
//!
//! An entry always agrees with the index: every change of names there calls [`NameCache::changed`], and a row that was read before
//! that call is not cached after it.

use std::num::NonZeroUsize;

use lru::LruCache;
use piecemeal_proto::Digest;

use super::values::Manifest;
use crate::{index::TagRow, values::repository::Repository};

/// The most bytes of manifests, and the most entries of each kind. Beyond that the least recently used are dropped.
const MANIFESTS_BYTES_MAX: usize = 16 * 1024 * 1024;
const ENTRIES_MAX: NonZeroUsize = NonZeroUsize::new(16 * 1024).unwrap();

pub(crate) struct NameCache {
    epoch: u64,
    manifests: LruCache<Digest, Manifest>,
    manifests_bytes: usize,
    sources: LruCache<(Repository, Digest), ()>,
    tags: LruCache<(Repository, String), TagRow>,
}

impl Default for NameCache {
    fn default() -> Self {
        Self {
            epoch: 0,
            manifests: LruCache::new(ENTRIES_MAX),
            manifests_bytes: 0,
            sources: LruCache::new(ENTRIES_MAX),
            tags: LruCache::new(ENTRIES_MAX),
        }
    }
}

/// When something was read from the index.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

impl NameCache {
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    /// Names have changed in the index: nothing that was read before counts.
    pub(crate) fn changed(&mut self) {
        self.epoch += 1;
        self.manifests.clear();
        self.manifests_bytes = 0;
        self.sources.clear();
        self.tags.clear();
    }

    /// One tag has changed in the index.
    pub(crate) fn changed_tag(&mut self, at: &Repository, tag: &str) {
        self.epoch += 1;
        self.tags.pop(&(at.clone(), tag.to_owned()));
    }

    /// A manifest was written to the index, perhaps with another media type than before.
    pub(crate) fn changed_manifest(&mut self, digest: &Digest) {
        self.epoch += 1;
        if let Some(manifest) = self.manifests.pop(digest) {
            self.manifests_bytes -= manifest.bytes.len();
        }
    }

    /// A source was added to the index by a write that began at `before`.
    pub(crate) fn added_source(&mut self, before: Epoch, at: &Repository, digest: &Digest) {
        let alone = before == self.epoch();
        self.epoch += 1;
        // A later write may have removed it again.
        if alone {
            self.keep_source(self.epoch(), at, digest);
        }
    }

    pub(crate) fn manifest(&mut self, at: &Repository, digest: &Digest) -> Option<Manifest> {
        self.has_source(at, digest)
            .then(|| self.manifests.get(digest).cloned())?
    }

    pub(crate) fn has_source(&mut self, at: &Repository, digest: &Digest) -> bool {
        self.sources.get(&(at.clone(), *digest)).is_some()
    }

    pub(crate) fn tag(&mut self, at: &Repository, tag: &str) -> Option<TagRow> {
        self.tags.get(&(at.clone(), tag.to_owned())).copied()
    }

    /// Keeps what was read at that time.
    pub(crate) fn keep_manifest(&mut self, read: Epoch, at: &Repository, manifest: &Manifest) {
        if read != self.epoch() || manifest.bytes.len() > MANIFESTS_BYTES_MAX {
            return;
        }
        self.manifests_bytes += manifest.bytes.len();
        if let Some((_, out)) = self.manifests.push(manifest.digest, manifest.clone()) {
            self.manifests_bytes -= out.bytes.len();
        }
        while self.manifests_bytes > MANIFESTS_BYTES_MAX
            && let Some((_, out)) = self.manifests.pop_lru()
        {
            self.manifests_bytes -= out.bytes.len();
        }
        self.keep_source(read, at, &manifest.digest);
    }

    pub(crate) fn keep_source(&mut self, read: Epoch, at: &Repository, digest: &Digest) {
        if read == self.epoch() {
            self.sources.put((at.clone(), *digest), ());
        }
    }

    pub(crate) fn keep_tag(&mut self, read: Epoch, at: &Repository, tag: &str, row: TagRow) {
        if read == self.epoch() {
            self.tags.put((at.clone(), tag.to_owned()), row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::clock::Age;

    fn at(name: &str) -> Repository {
        Repository {
            upstream: "a.io".to_owned(),
            name: name.to_owned(),
        }
    }

    fn manifest(bytes: usize, seed: u8) -> Manifest {
        Manifest {
            digest: Digest::of(&[seed]),
            media_type: "application/json".to_owned(),
            bytes: vec![seed; bytes].into(),
        }
    }

    #[test]
    fn what_was_read_before_a_change_is_not_kept_after_it() {
        let (mut known, one) = (NameCache::default(), manifest(10, 1));
        let row = TagRow {
            digest: one.digest,
            checked: Age(1),
        };
        let before = known.epoch();
        known.keep_tag(before, &at("x"), "v1", row);
        known.changed_tag(&at("x"), "v1");
        known.keep_tag(before, &at("x"), "v1", row);
        known.keep_manifest(before, &at("x"), &one);
        assert_eq!(
            (known.tag(&at("x"), "v1"), known.manifest(&at("x"), &one.digest)),
            (None, None)
        );
        let now = known.epoch();
        known.keep_tag(now, &at("x"), "v1", row);
        known.keep_manifest(now, &at("x"), &one);
        assert_eq!(known.tag(&at("x"), "v1"), Some(row));
        assert_eq!(known.manifest(&at("x"), &one.digest), Some(one.clone()));
        assert_eq!(known.manifest(&at("y"), &one.digest), None, "another repository's");
        known.changed();
        assert!(!known.has_source(&at("x"), &one.digest));
    }

    #[test]
    fn a_write_is_known_unless_another_came_between() {
        let (mut known, digest) = (NameCache::default(), Digest::of(b"blob"));
        let before = known.epoch();
        known.added_source(before, &at("x"), &digest);
        assert!(known.has_source(&at("x"), &digest));
        let before = known.epoch();
        known.changed();
        known.added_source(before, &at("x"), &digest);
        assert!(!known.has_source(&at("x"), &digest), "it may have been taken back");
    }

    #[test]
    fn one_name_too_many_takes_the_place_of_the_one_used_longest_ago() {
        let (mut known, digest) = (NameCache::default(), Digest::of(b"blob"));
        let epoch = known.epoch();
        let row = TagRow {
            digest,
            checked: Age(1),
        };
        let count = ENTRIES_MAX.get();
        for number in 0..count {
            known.keep_tag(epoch, &at("x"), &number.to_string(), row);
            known.keep_source(epoch, &at(&number.to_string()), &digest);
        }
        assert!(
            known.tag(&at("x"), "0").is_some() && known.has_source(&at("0"), &digest),
            "used"
        );
        known.keep_tag(epoch, &at("x"), "one more", row);
        known.keep_source(epoch, &at("one more"), &digest);
        for number in (0..count).filter(|&number| number != 1) {
            let name = number.to_string();
            assert!(known.tag(&at("x"), &name).is_some(), "{name}");
            assert!(known.has_source(&at(&name), &digest), "{name}");
        }
        assert!(known.tag(&at("x"), "1").is_none() && !known.has_source(&at("1"), &digest));
    }

    #[test]
    fn manifests_that_are_too_large_together_go_one_by_one() {
        let mut known = NameCache::default();
        let epoch = known.epoch();
        let large = |seed| manifest(MANIFESTS_BYTES_MAX / 4, seed);
        for seed in 1..=4 {
            known.keep_manifest(epoch, &at("x"), &large(seed));
        }
        known.keep_manifest(epoch, &at("x"), &large(2));
        assert_eq!(known.manifests_bytes, MANIFESTS_BYTES_MAX, "kept twice, counted once");
        known.keep_manifest(epoch, &at("x"), &manifest(10, 5));
        let mut is_known = |seed| known.manifest(&at("x"), &large(seed).digest).is_some();
        assert_eq!([1, 2, 3, 4].map(&mut is_known), [false, true, true, true]);
        known.keep_manifest(epoch, &at("x"), &manifest(MANIFESTS_BYTES_MAX + 1, 6));
        assert!(known.manifests_bytes <= MANIFESTS_BYTES_MAX);
    }
}
