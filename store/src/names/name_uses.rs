//! Last uses of names that the index does not have yet.
//!
//! They are hints: a crash loses the last second of them, and a name looks a little older.

use std::collections::HashMap;

use piecemeal_proto::Digest;
use rusqlite::Transaction;

use crate::{
    index::{manifests, sources, tags},
    values::{clock::Age, repository::Repository},
};

/// The last use of each name since the last batch.
#[derive(Default)]
pub(crate) struct NameUses {
    manifests: HashMap<Digest, Age>,
    sources: HashMap<(Digest, Repository), Age>,
    tags: HashMap<(Repository, String), Age>,
}

impl NameUses {
    pub(crate) fn len(&self) -> usize {
        self.manifests.len() + self.sources.len() + self.tags.len()
    }

    pub(crate) fn use_manifest(&mut self, at: &Repository, digest: &Digest, now: Age) {
        self.manifests.insert(*digest, now);
        self.use_source(at, digest, now);
    }

    pub(crate) fn use_source(&mut self, at: &Repository, digest: &Digest, now: Age) {
        self.sources.insert((*digest, at.clone()), now);
    }

    pub(crate) fn use_tag(&mut self, at: &Repository, tag: &str, now: Age) {
        self.tags.insert((at.clone(), tag.to_owned()), now);
    }

    pub(crate) fn write(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        for (digest, used) in &self.manifests {
            manifests::touch(transaction, digest, *used)?;
        }
        for ((digest, at), used) in &self.sources {
            sources::touch(transaction, at, digest, *used)?;
        }
        for ((at, tag), used) in &self.tags {
            tags::touch(transaction, at, tag, *used)?;
        }
        Ok(())
    }

    /// Takes uses back that could not be written. A use since then is younger and stays.
    pub(crate) fn give_back(&mut self, older: Self) {
        for (digest, used) in older.manifests {
            self.manifests.entry(digest).or_insert(used);
        }
        for (key, used) in older.sources {
            self.sources.entry(key).or_insert(used);
        }
        for (key, used) in older.tags {
            self.tags.entry(key).or_insert(used);
        }
    }
}
