//! The sizes of blobs, as the manifests that went through here state them.
//!
//! A hint only: it lets a client be answered before the source has, and shows an answer of another size to be wrong. The
//! digest alone says what is right, and what the manifests of one repository say means nothing in another.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex},
};

use piecemeal_proto::{Digest, Manifest};
use piecemeal_store::Repository;

/// The most blobs remembered: the layers of a thousand images.
const SIZES_MAX: usize = 32 * 1024;

/// Sizes in bytes by repository and digest, the oldest forgotten first.
#[derive(Clone, Default)]
pub struct BlobSizes(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    sizes: HashMap<(Repository, Digest), u64>,
    order: VecDeque<(Repository, Digest)>,
    /// Manifests that were read, by repository and digest: to read one again would tell nothing. Forgotten when sizes are.
    read: HashSet<(Repository, Digest)>,
}

impl BlobSizes {
    /// Remembers what a manifest of the repository says.
    pub fn learn(&self, at: &Repository, digest: &Digest, media_type: &str, manifest: &[u8]) {
        let read = (at.clone(), *digest);
        if self
            .0
            .lock()
            .expect("no holder of this lock panics")
            .read
            .contains(&read)
        {
            return;
        }
        let manifest = Manifest::read(media_type, manifest);
        let mut table = self.0.lock().expect("no holder of this lock panics");
        for blob in manifest.blobs() {
            let key = (at.clone(), blob.digest);
            if table.sizes.insert(key.clone(), blob.size).is_none() {
                table.order.push_back(key);
            }
            if table.order.len() > SIZES_MAX
                && let Some(oldest) = table.order.pop_front()
            {
                table.sizes.remove(&oldest);
                table.read.clear();
            }
        }
        if table.read.len() >= SIZES_MAX {
            table.read.clear();
        }
        table.read.insert(read);
    }

    /// The size of a blob, when a manifest of the repository has told it.
    pub fn get(&self, at: &Repository, digest: &Digest) -> Option<u64> {
        self.0
            .lock()
            .expect("no holder of this lock panics")
            .sizes
            .get(&(at.clone(), *digest))
            .copied()
    }
}
