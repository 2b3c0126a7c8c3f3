//! Folders that former versions left behind.
//!
//! Each schema that was ever released has its dump in `tests/old/`: a store of that version that held two complete blobs and
//! one partial, with names and rights. It was made with `sqlite3 index.db .dump`, the two pragmas of its header added. The
//! files of its blobs follow from [`contents`].

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use piecemeal_proto::Digest;
use piecemeal_store::{Repository, Store};
use rusqlite::Connection;

use super::{Content, DAY};

/// The dumps of the schemas 1, 2 and so on.
const DUMPS: &[&str] = &[include_str!("../old/v1.sql"), include_str!("../old/v2.sql")];

/// The node that owned the old stores.
pub(crate) const NODE_ID: &str = "8357dc39635ca5462250128fac3a04c3";
/// Pieces of the partial; of piece 1 there is a tail.
pub(crate) const PIECES: [u32; 2] = [0, 2];
pub(crate) const TAIL_BYTES: usize = 1000;

/// In which state the old process left its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Left {
    /// All of it is in the database file.
    Closed,
    /// All of it is in SQLite's log.
    Crashed,
}

/// Two that were complete, and one that was not.
pub(crate) fn contents() -> [Content; 3] {
    [
        Content::counted(0, 3 * 4096 - 100),
        Content::counted(1, 700),
        Content::counted(2, 4 * 4096 - 100),
    ]
}

/// The schemas of which there is a dump.
pub(crate) fn versions() -> impl Iterator<Item = i64> {
    (1..).zip(DUMPS).map(|(version, _)| version)
}

/// The files below the store's folder.
pub(crate) fn files() -> Vec<(PathBuf, Bytes)> {
    let [first, second, partial] = contents();
    let mut found = vec![0; partial.bytes.len()];
    for piece in PIECES {
        let (start, bytes) = (piece as usize * 4096, partial.piece(piece));
        found[start..][..bytes.len()].copy_from_slice(&bytes);
    }
    found[4096..][..TAIL_BYTES].copy_from_slice(&partial.piece(1)[..TAIL_BYTES]);
    vec![
        (blob_path(&first.digest), first.bytes),
        (blob_path(&second.digest), second.bytes),
        (partial_path(&partial.digest), found.into()),
    ]
}

/// Below the store's folder.
pub(crate) fn blob_path(digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    ["blobs", "sha256", &hex[..2], &hex].iter().collect()
}

/// Below the store's folder.
pub(crate) fn partial_path(digest: &Digest) -> PathBuf {
    Path::new("partial").join(format!("sha256-{}", digest.hex()))
}

/// Makes the index of that version in `dir`, which exists.
pub(crate) fn make_index(dir: &Path, version: i64, left: Left) {
    let place = usize::try_from(version - 1).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let connection = Connection::open(scratch.path().join("index.db")).unwrap();
    connection
        .query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
        .unwrap();
    connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    connection.execute_batch(DUMPS[place]).unwrap();
    assert_eq!(schema_version(&connection), version, "the dump is in its place");
    if left == Left::Closed {
        connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .unwrap();
    }
    // While it is open, as after a crash.
    for name in ["index.db", "index.db-wal"] {
        match fs::copy(scratch.path().join(name), dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }
}

pub(crate) fn schema_version(connection: &Connection) -> i64 {
    connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap()
}

pub(crate) fn repository() -> Repository {
    Repository {
        upstream: "docker.io".to_owned(),
        name: "library/alpine".to_owned(),
    }
}

pub(crate) fn manifest() -> Bytes {
    Bytes::from_static(b"{\"schemaVersion\":2}")
}

/// Names that were known are known still; none of them was older than a few hours.
pub(crate) async fn check_names(store: &Store) {
    let (at, bytes) = (repository(), manifest());
    let digest = Digest::of(&bytes);
    let manifest = store.manifest(&at, &digest).await.unwrap().unwrap();
    assert_eq!(manifest.bytes, bytes);
    assert_eq!(store.tag(&at, "latest").await.unwrap().unwrap().digest, digest);
    // Which upstream has a blob was written down too early.
    assert!(!store.has_source(&at, &contents()[0].digest).await.unwrap());
    assert!(store.public_right(&at).await.unwrap().unwrap() < DAY);
}
