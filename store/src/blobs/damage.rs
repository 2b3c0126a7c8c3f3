//! Damaged blobs: a complete blob whose file is missing or wrong becomes a partial again.
//!
//! Its good pieces stay, and the next fill adds the rest.

use std::io;

use tracing::warn;

use super::{
    blob_store::BlobStore,
    digest_lock::DigestGuard,
    entry::{EntryKind, Generation},
};
use crate::{
    index::{Durability, Progress, blobs, partials},
    values::error::StoreError,
};

/// Drops the blob of that generation, if it is still the one that is here.
pub(crate) fn discard_damaged(store: &BlobStore, lock: &DigestGuard, generation: Generation) -> io::Result<()> {
    let digest = lock.digest();
    let entry = store.inventory.ledger().get(digest).copied();
    if entry.is_none_or(|entry| entry.generation != generation) {
        return Ok(());
    }
    warn!(blob.digest = %digest, "the file of {digest} is missing or damaged; dropped, the wrong parts will be fetched again");
    match demote(store, lock) {
        Ok(true) => {}
        Ok(false) => _ = store.evictor.discard(lock)?,
        Err(error) => {
            warn!(blob.digest = %digest, error = &error as &dyn std::error::Error, "no part of {digest} can be kept");
            store.evictor.discard(lock)?;
        }
    }
    store.evictor.counters.damaged_blobs.add(1);
    Ok(())
}

/// Makes a partial of a complete blob, with all its pieces as hints: the next fill hashes each, and fetches those that are
/// wrong. `false` when it has no file. The row comes first: after a crash the file is taken back from the blob's name.
fn demote(store: &BlobStore, lock: &DigestGuard) -> Result<bool, StoreError> {
    let digest = lock.digest();
    let Some(row) = store.index.blob(digest)? else {
        return Ok(false);
    };
    if store.files.open_blob(digest)?.is_none() {
        return Ok(false);
    }
    // Finding it damaged does not count as a use.
    let used = store.inventory.ledger().get(digest).map(|entry| entry.used);
    let used = used.unwrap_or_else(|| store.index.now());
    let progress = Progress {
        pieces: (0..row.map.count()).zip(row.piece_hashes.iter().copied()).collect(),
        partial_pieces: Vec::new(),
    };
    store.index.write(Durability::Synced, |transaction| {
        blobs::delete(transaction, &digest.to_string())?;
        let id = partials::insert(transaction, digest, row.map, row.fill, used)?;
        partials::save(transaction, id, &progress, used)
    })?;
    store.files.demote(digest)?;
    store
        .inventory
        .ledger()
        .insert(*digest, EntryKind::Partial, row.map.blob_bytes(), used);
    store.evictor.tell(digest);
    Ok(true)
}
