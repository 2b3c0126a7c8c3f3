//! Names that were used of late, kept in memory: a manifest that everybody asks for costs the index nothing.
//!
//! What is here is what the index says, or it is not here: whatever changes names there calls [`Known::changed`], and what was
//! read before that is not kept after it.

use std::collections::{HashMap, HashSet};

use piecemeal_proto::Digest;

use crate::{Manifest, Repository, index::TagRow};

/// The most bytes of manifests, and the most entries of each other kind. Beyond that all is forgotten, and found again.
const MANIFESTS_BYTES_MAX: usize = 16 * 1024 * 1024;
const ENTRIES_MAX: usize = 8192;

#[derive(Default)]
pub(crate) struct Known {
    epoch: u64,
    manifests: HashMap<Digest, Manifest>,
    manifests_bytes: usize,
    sources: HashMap<Digest, HashSet<Repository>>,
    sources_count: usize,
    tags: HashMap<Repository, HashMap<String, TagRow>>,
    tags_count: usize,
}

/// When something was read from the index.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

impl Known {
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    /// Names have changed in the index: nothing that was read before counts.
    pub(crate) fn changed(&mut self) {
        *self = Self {
            epoch: self.epoch + 1,
            ..Self::default()
        };
    }

    /// One tag has changed in the index.
    pub(crate) fn changed_tag(&mut self, at: &Repository, tag: &str) {
        self.epoch += 1;
        if let Some(tags) = self.tags.get_mut(at)
            && tags.remove(tag).is_some()
        {
            self.tags_count -= 1;
        }
    }

    /// One source was taken back in the index.
    pub(crate) fn changed_source(&mut self, at: &Repository, digest: &Digest) {
        self.epoch += 1;
        if let Some(repositories) = self.sources.get_mut(digest)
            && repositories.remove(at)
        {
            self.sources_count -= 1;
        }
    }

    /// A manifest was written to the index, perhaps with another media type than before.
    pub(crate) fn changed_manifest(&mut self, digest: &Digest) {
        self.epoch += 1;
        if let Some(manifest) = self.manifests.remove(digest) {
            self.manifests_bytes -= manifest.bytes.len();
        }
    }

    /// A source was added to the index by a write that began at `before`.
    pub(crate) fn added_source(&mut self, before: Epoch, at: &Repository, digest: &Digest) {
        let alone = before == self.epoch();
        self.epoch += 1;
        // Another write may have come after this one, and taken it back.
        if alone {
            self.keep_source(self.epoch(), at, digest);
        }
    }

    pub(crate) fn manifest(&self, at: &Repository, digest: &Digest) -> Option<Manifest> {
        self.has_source(at, digest)
            .then(|| self.manifests.get(digest).cloned())?
    }

    pub(crate) fn has_source(&self, at: &Repository, digest: &Digest) -> bool {
        self.sources
            .get(digest)
            .is_some_and(|repositories| repositories.contains(at))
    }

    pub(crate) fn tag(&self, at: &Repository, tag: &str) -> Option<TagRow> {
        self.tags.get(at)?.get(tag).copied()
    }

    /// Keeps what was read at that time.
    pub(crate) fn keep_manifest(&mut self, read: Epoch, at: &Repository, manifest: &Manifest) {
        if read != self.epoch() || manifest.bytes.len() > MANIFESTS_BYTES_MAX {
            return;
        }
        if self.manifests_bytes + manifest.bytes.len() > MANIFESTS_BYTES_MAX || self.manifests.len() >= ENTRIES_MAX {
            self.manifests.clear();
            self.manifests_bytes = 0;
        }
        if self.manifests.insert(manifest.digest, manifest.clone()).is_none() {
            self.manifests_bytes += manifest.bytes.len();
        }
        self.keep_source(read, at, &manifest.digest);
    }

    pub(crate) fn keep_source(&mut self, read: Epoch, at: &Repository, digest: &Digest) {
        if read != self.epoch() {
            return;
        }
        if self.sources_count >= ENTRIES_MAX {
            self.sources.clear();
            self.sources_count = 0;
        }
        if self.sources.entry(*digest).or_default().insert(at.clone()) {
            self.sources_count += 1;
        }
    }

    pub(crate) fn keep_tag(&mut self, read: Epoch, at: &Repository, tag: &str, row: TagRow) {
        if read != self.epoch() {
            return;
        }
        if self.tags_count >= ENTRIES_MAX {
            self.tags.clear();
            self.tags_count = 0;
        }
        let tags = self.tags.entry(at.clone()).or_default();
        if tags.insert(tag.to_owned(), row).is_none() {
            self.tags_count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Age;

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
        let (mut known, one) = (Known::default(), manifest(10, 1));
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
        let (mut known, digest) = (Known::default(), Digest::of(b"blob"));
        let before = known.epoch();
        known.added_source(before, &at("x"), &digest);
        assert!(known.has_source(&at("x"), &digest));
        let before = known.epoch();
        known.changed();
        known.added_source(before, &at("x"), &digest);
        assert!(!known.has_source(&at("x"), &digest), "it may have been taken back");
    }

    #[test]
    fn memory_is_bounded() {
        let mut known = Known::default();
        for round in 0..50_u32 {
            let epoch = known.epoch();
            known.keep_manifest(epoch, &at("x"), &manifest(1 << 20, u8::try_from(round).unwrap()));
            for number in 0..500 {
                let (name, row) = (
                    format!("{round}/{number}"),
                    TagRow {
                        digest: Digest::of(b""),
                        checked: Age(0),
                    },
                );
                known.keep_tag(epoch, &at(&name), "v1", row);
                known.keep_source(epoch, &at(&name), &Digest::of(b""));
            }
            assert!(known.manifests_bytes <= MANIFESTS_BYTES_MAX);
            assert!(known.tags.len() <= ENTRIES_MAX && known.sources_count <= ENTRIES_MAX);
        }
    }
}
