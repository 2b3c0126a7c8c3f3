//! The sizes of blobs, as the manifests that went through here state them.
//!
//! A hint only: it lets a client be answered before the source has, and shows an answer of another size to be wrong. The
//! digest alone says what is right, and what the manifests of one repository say means nothing in another.
//!
//! Invariant: of a manifest that counts as read, every size is known. What was forgotten, as by a restart, is found again in the
//! manifests of the store.

use std::{num::NonZeroUsize, sync::Arc};

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use piecemeal_proto::{Digest, Manifest};
use piecemeal_store::{Repository, Store, StoreError};

/// The most blobs remembered, and the most manifests: the layers of a thousand images.
const SIZES_MAX: NonZeroUsize = NonZeroUsize::new(32 * 1024).unwrap();

/// Sizes in bytes by repository and digest. A full table drops those that were stated longest ago.
#[derive(Clone, Default)]
pub struct BlobSizes(Arc<Mutex<Table>>);

struct Table {
    sizes: LruCache<(Repository, Digest), Told>,
    /// Manifests that were read, and when: reading one again would add nothing.
    read: LruCache<(Repository, Digest), Turn>,
    turn: Turn,
    /// The last turn of which a size was forgotten: a manifest that was read then or before may lack some.
    forgotten: Turn,
}

/// Counts the manifests that were read.
type Turn = u64;

struct Told {
    blob_bytes: u64,
    /// When the size was last stated.
    turn: Turn,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            sizes: LruCache::new(SIZES_MAX),
            read: LruCache::new(SIZES_MAX),
            turn: 0,
            forgotten: 0,
        }
    }
}

impl BlobSizes {
    /// Remembers what a manifest of the repository says.
    pub fn learn(&self, at: &Repository, digest: &Digest, media_type: &str, manifest: &[u8]) {
        let key = (at.clone(), *digest);
        if self.lock().is_read(&key) {
            return;
        }
        let manifest = Manifest::read(media_type, manifest);
        let mut table = self.lock();
        table.turn += 1;
        for blob in manifest.blobs() {
            table.tell((at.clone(), blob.digest), blob.size);
        }
        let turn = table.turn;
        table.read.put(key, turn);
    }

    /// The size of a blob, when a manifest of the repository has told it.
    pub fn get(&self, at: &Repository, digest: &Digest) -> Option<u64> {
        // To be asked for does not keep it: its turn stays what it was.
        self.lock()
            .sizes
            .peek(&(at.clone(), *digest))
            .map(|told| told.blob_bytes)
    }

    /// The size of a blob, if need be from the manifests of the repository in `store`. Slower: for an upstream that states none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn find(&self, store: &Store, at: &Repository, digest: &Digest) -> Result<Option<u64>, StoreError> {
        if let Some(blob_bytes) = self.get(at, digest) {
            return Ok(Some(blob_bytes));
        }
        for manifest in store.manifests_that_name(at, digest).await? {
            let named = Manifest::read(&manifest.media_type, &manifest.bytes);
            if let Some(blob) = named.blobs().iter().find(|blob| blob.digest == *digest) {
                self.learn(at, &manifest.digest, &manifest.media_type, &manifest.bytes);
                return Ok(Some(blob.size));
            }
        }
        Ok(None)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock()
    }
}

impl Table {
    fn is_read(&mut self, manifest: &(Repository, Digest)) -> bool {
        let forgotten = self.forgotten;
        self.read.get(manifest).is_some_and(|&turn| turn > forgotten)
    }

    fn tell(&mut self, key: (Repository, Digest), blob_bytes: u64) {
        let told = Told {
            blob_bytes,
            turn: self.turn,
        };
        if let Some((out, old)) = self.sizes.push(key.clone(), told)
            && out != key
        {
            self.forgotten = old.turn;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

    fn at() -> Repository {
        Repository {
            upstream: "a.io".to_owned(),
            name: "app".to_owned(),
        }
    }

    fn blob(number: usize) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    /// A manifest of a config and one layer.
    fn manifest(blobs: [usize; 2]) -> (Digest, String) {
        let [config, layer] = blobs.map(|number| {
            let media_type = "application/octet-stream";
            format!(
                r#"{{"mediaType":"{media_type}","digest":"{}","size":{number}}}"#,
                blob(number)
            )
        });
        let text = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI}","config":{config},"layers":[{layer}]}}"#);
        (Digest::of(text.as_bytes()), text)
    }

    fn learn(sizes: &BlobSizes, blobs: [usize; 2]) {
        let (digest, text) = manifest(blobs);
        sizes.learn(&at(), &digest, OCI, text.as_bytes());
    }

    fn small(count: usize) -> BlobSizes {
        let count = NonZeroUsize::new(count).unwrap();
        BlobSizes(Arc::new(Mutex::new(Table {
            sizes: LruCache::new(count),
            read: LruCache::new(count),
            turn: 0,
            forgotten: 0,
        })))
    }

    #[test]
    fn one_size_too_many_takes_the_place_of_the_one_told_longest_ago() {
        let sizes = small(4);
        learn(&sizes, [1, 2]);
        learn(&sizes, [3, 4]);
        learn(&sizes, [1, 5]);
        let known = |number| sizes.get(&at(), &blob(number)).is_some();
        assert_eq!([1, 2, 3, 4, 5].map(known), [true, false, true, true, true]);
        learn(&sizes, [1, 2]);
        assert_eq!(sizes.get(&at(), &blob(2)), Some(2), "its manifest was read again");
    }

    #[test]
    fn what_was_just_learnt_is_known_and_the_table_is_bounded() {
        for seed in 0..100_u32 {
            let sizes = small(5);
            for step in 0..30_u32 {
                let drawn = Digest::of(&[seed.to_le_bytes(), step.to_le_bytes()].concat());
                let draw =
                    |digits: std::ops::Range<usize>| usize::from_str_radix(&drawn.hex()[digits], 16).unwrap() % 12;
                let blobs = [draw(0..4), draw(4..8)];
                learn(&sizes, blobs);
                for number in blobs {
                    assert_eq!(sizes.get(&at(), &blob(number)), Some(number as u64), "seed {seed}");
                }
                assert!(sizes.lock().sizes.len() <= 5 && sizes.lock().read.len() <= 5);
            }
        }
    }
}
