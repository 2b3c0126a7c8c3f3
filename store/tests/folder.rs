//! The store's folder: which ones are accepted, and its content after failures.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on fails")]

mod support;

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc};

use piecemeal_proto::FillId;
use piecemeal_store::{DiskFiles, Env, OpenStoreError, Store};
use support::{Content, DAY, FakeClock, config, env, open, read_all};

fn blob_path(dir: &std::path::Path, content: &Content) -> PathBuf {
    let hex = content.digest.hex();
    dir.join("store/blobs/sha256").join(&hex[..2]).join(hex)
}

fn refusal(dir: &std::path::Path) -> OpenStoreError {
    match Store::open(config(dir), Env::system()) {
        Ok(_) => panic!("it should have been refused"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_folder_has_one_process_and_keeps_its_node_id() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let store = open(dir.path(), &clock);
    let node_id = store.node_id();
    assert!(matches!(refusal(dir.path()), OpenStoreError::Locked { .. }));
    let mode = fs::metadata(dir.path().join("store")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    store.close().await;
    drop(store);
    assert_eq!(open(dir.path(), &clock).node_id(), node_id);
}

#[tokio::test]
async fn a_nodes_key_is_its_own_and_outlives_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let folder = dir.path().join("store");
    let key = folder.join("node.key");
    let store = open(dir.path(), &clock);
    let node_id = store.node_id();
    assert_eq!(node_id, store.node_key().id());
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    store.close().await;
    drop(store);

    // All but the key is removed by hand; half a key is left of a crash; a copy was made without care.
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap();
        } else if path != key {
            fs::remove_file(&path).unwrap();
        }
    }
    fs::write(folder.join("node.key.new"), "half").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let store = open(dir.path(), &clock);
    assert_eq!(store.node_id(), node_id);
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    store.close().await;
    drop(store);

    // A damaged key is never replaced by itself; a lost one makes a new node.
    let text = fs::read_to_string(&key).unwrap();
    fs::write(&key, &text[..30]).unwrap();
    let error = refusal(dir.path());
    assert!(matches!(error, OpenStoreError::NodeKey(_)), "{error}");
    assert_eq!(fs::read_to_string(&key).unwrap(), text[..30]);
    fs::remove_file(&key).unwrap();
    assert_ne!(open(dir.path(), &clock).node_id(), node_id);
}

#[test]
fn a_folder_of_something_else_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    fs::create_dir(&store).unwrap();
    fs::write(store.join("letters.txt"), "dear").unwrap();
    let error = refusal(dir.path());
    assert!(matches!(&error, OpenStoreError::Foreign { found, .. } if found == "letters.txt"));
    assert!(error.to_string().contains(store.to_str().unwrap()), "{error}");
    assert_eq!(fs::read_dir(&store).unwrap().count(), 1);

    fs::remove_file(store.join("letters.txt")).unwrap();
    fs::create_dir(store.join("lost+found")).unwrap();
    drop(Store::open(config(dir.path()), Env::system()).unwrap());
}

#[test]
fn what_is_no_folder_or_no_index_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    fs::write(&store, "a file").unwrap();
    assert!(matches!(refusal(dir.path()), OpenStoreError::NotAFolder { path } if path == store));
    let mut below = config(dir.path());
    below.dir = store.join("below");
    assert!(matches!(
        Store::open(below, Env::system()),
        Err(OpenStoreError::NotAFolder { .. })
    ));
    let mut system = config(dir.path());
    system.dir = PathBuf::from("/proc/piecemeal");
    assert!(matches!(
        Store::open(system, Env::system()),
        Err(OpenStoreError::Unwritable { .. })
    ));
    fs::remove_file(&store).unwrap();
    fs::create_dir(&store).unwrap();
    fs::write(
        store.join("index.db"),
        "no database at all, but long enough to be looked at",
    )
    .unwrap();
    assert!(matches!(refusal(dir.path()), OpenStoreError::Index { .. }));
}

#[test]
fn a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), &FakeClock::new()));
    let index = rusqlite::Connection::open(dir.path().join("store/index.db")).unwrap();
    let latest = support::old::schema_version(&index);
    index.pragma_update(None, "user_version", latest + 1).unwrap();
    drop(index);
    assert!(matches!(
        refusal(dir.path()),
        OpenStoreError::NewerSchema { found, known, .. } if (found, known) == (latest + 1, latest)
    ));
}

#[tokio::test]
async fn missing_and_truncated_files_are_misses_that_heal() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    let mut evictions = store.evictions();
    let (missing, truncated) = (Content::pieces(1, 3), Content::pieces(2, 3));
    for content in [&missing, &truncated] {
        content.publish(&store).await;
    }
    fs::remove_file(blob_path(dir.path(), &missing)).unwrap();
    let held = store.blob(&truncated.digest).await.unwrap().unwrap();
    fs::write(blob_path(dir.path(), &truncated), "short").unwrap();
    assert!(held.read(0..10).await.is_err(), "a handle notices too");
    for content in [&missing, &truncated] {
        assert!(store.blob(&content.digest).await.unwrap().is_none());
        let blob = content.publish(&store).await;
        assert_eq!(read_all(&blob).await, content.bytes);
    }
    assert_eq!(store.usage().await.unwrap().blobs, 2);
    assert_eq!(evictions.try_recv().unwrap(), truncated.digest);
    assert_eq!(evictions.try_recv().unwrap(), missing.digest);
}

#[tokio::test]
async fn a_flipped_byte_is_found_by_looking_again_and_only_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    let content = Content::pieces(1, 3);
    content.publish(&store).await;
    let file = blob_path(dir.path(), &content);
    let mut bytes = fs::read(&file).unwrap();
    bytes[0] ^= 1;
    fs::write(&file, bytes).unwrap();

    for whole in [1, 2, 99] {
        assert!(!store.recheck(&content.digest, whole).await.unwrap());
    }
    assert!(store.blob(&content.digest).await.unwrap().is_some());
    assert!(store.recheck(&content.digest, 0).await.unwrap());
    assert!(store.blob(&content.digest).await.unwrap().is_none());
    assert!(!store.recheck(&content.digest, 0).await.unwrap());
}

#[tokio::test]
async fn removing_a_blob_takes_it_away_and_readers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    let content = Content::pieces(1, 3);
    let blob = content.publish(&store).await;
    assert!(store.remove(&content.digest).await.unwrap());
    assert!(!store.remove(&content.digest).await.unwrap());
    assert!(store.blob(&content.digest).await.unwrap().is_none());
    assert_eq!(read_all(&blob).await, content.bytes);
    let again = content.publish(&store).await;
    drop(blob);
    assert_eq!(read_all(&again).await, content.bytes);
    let filling = Content::pieces(2, 3).begin(&store).await;
    assert!(
        !store.remove(filling.digest()).await.unwrap(),
        "a live fill is not removed"
    );
}

#[tokio::test]
async fn opening_brings_files_and_rows_together() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let store = open(dir.path(), &clock);
    let (kept, lost, short) = (Content::pieces(1, 3), Content::pieces(2, 3), Content::pieces(3, 3));
    for content in [&kept, &lost, &short] {
        content.publish(&store).await;
    }
    let partial = Content::pieces(4, 3);
    partial.write(&partial.begin(&store).await, 1).await;
    drop(store);
    fs::remove_file(blob_path(dir.path(), &lost)).unwrap();
    fs::write(blob_path(dir.path(), &short), "short").unwrap();
    let strays = ["blobs/sha256/00/stray", "blobs/sha256/stray", "partial/stray"];
    for stray in strays {
        let path = dir.path().join("store").join(stray);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "bytes").unwrap();
    }
    let index = rusqlite::Connection::open(dir.path().join("store/index.db")).unwrap();
    index
        .execute(
            "INSERT INTO blobs (digest, blob_bytes, piece_bytes, fill, piece_hashes, used_ms)
             VALUES ('sha256:nonsense', -1, 0, 0, x'00', 0)",
            [],
        )
        .unwrap();
    drop(index);

    let store = Store::open(config(dir.path()), env(&clock, Arc::new(DiskFiles))).unwrap();
    assert_eq!(store.complete_digests(), [kept.digest]);
    assert_eq!(store.partials(), [partial.digest]);
    for stray in strays {
        assert!(!dir.path().join("store").join(stray).exists(), "{stray}");
    }
    let resumed = partial.begin(&store).await;
    assert_eq!(resumed.have().iter().collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn a_crash_while_a_blob_is_published_loses_none_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let store = open(dir.path(), &clock);
    let content = Content::pieces(1, 3);
    let filling = content.begin(&store).await;
    for index in 0..3 {
        content.write(&filling, index).await;
    }
    store.flush().await;
    drop((filling, store));
    let partial = dir
        .path()
        .join(format!("store/partial/sha256-{}", content.digest.hex()));
    let blob = blob_path(dir.path(), &content);
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::rename(partial, &blob).unwrap();

    let store = open(dir.path(), &clock);
    assert!(!blob.exists(), "it has no row");
    assert_eq!(store.partials(), [content.digest]);
    let filling = content.begin(&store).await;
    assert_eq!(filling.have().count(), 3);
    assert_eq!(read_all(&filling.publish(&[]).await.unwrap()).await, content.bytes);
}

#[tokio::test]
async fn a_torn_piece_is_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let store = open(dir.path(), &clock);
    let content = Content::pieces(1, 4);
    let filling = content.begin(&store).await;
    for index in 0..3 {
        content.write(&filling, index).await;
    }
    drop((filling, store));
    let path = dir
        .path()
        .join(format!("store/partial/sha256-{}", content.digest.hex()));
    let mut bytes = fs::read(&path).unwrap();
    bytes[5000] ^= 0x10;
    fs::write(&path, bytes).unwrap();

    let store = open(dir.path(), &clock);
    let filling = content.begin(&store).await;
    assert_eq!(filling.have().iter().collect::<Vec<_>>(), [0, 2]);
    for index in [3, 1] {
        content.write(&filling, index).await;
    }
    assert_eq!(read_all(&filling.publish(&[]).await.unwrap()).await, content.bytes);
}

/// Damage to an index, or its loss.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Garbage,
    Empty,
    HalfAPage,
    SpoiltInTheMiddle,
    Gone,
    WithoutATable,
}

impl Loss {
    const ALL: [Self; 6] = [
        Self::Garbage,
        Self::Empty,
        Self::HalfAPage,
        Self::SpoiltInTheMiddle,
        Self::Gone,
        Self::WithoutATable,
    ];

    fn befall(self, index: &std::path::Path) {
        let write = |bytes: &[u8], offset| {
            let file = fs::OpenOptions::new().write(true).open(index).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset).unwrap();
        };
        match self {
            Self::Garbage => fs::write(index, [7; 100_000]).unwrap(),
            Self::Empty => fs::write(index, "").unwrap(),
            Self::HalfAPage => {
                let file = fs::OpenOptions::new().write(true).open(index).unwrap();
                file.set_len(2000).unwrap();
            }
            Self::SpoiltInTheMiddle => write(&[0xff; 3 * 4096], 8192),
            Self::Gone => fs::remove_file(index).unwrap(),
            Self::WithoutATable => {
                let index = rusqlite::Connection::open(index).unwrap();
                index.execute_batch("DROP TABLE store").unwrap();
            }
        }
    }
}

#[tokio::test]
async fn an_index_that_is_spoilt_or_lost_is_set_aside_and_what_is_here_is_found_again() {
    for loss in Loss::ALL {
        let (dir, clock) = (tempfile::tempdir().unwrap(), FakeClock::new());
        let [good, bad, unfinished] = [1, 2, 3].map(|seed| Content::pieces(seed, 4));
        let store = open(dir.path(), &clock);
        let node_id = store.node_id();
        good.publish(&store).await;
        bad.publish(&store).await;
        let filling = unfinished.begin(&store).await;
        unfinished.write(&filling, 0).await;
        drop(filling);
        store.close().await;
        drop(store);
        fs::write(blob_path(dir.path(), &bad), vec![1; bad.bytes.len()]).unwrap();
        let index = dir.path().join("store/index.db");
        loss.befall(&index);

        let store = open(dir.path(), &clock);
        assert_eq!(store.node_id(), node_id, "{loss:?}");
        assert!(store.index_lost().is_some(), "{loss:?}");
        assert_eq!(
            (store.trouble(), store.counts().indexes_lost),
            (None, 1),
            "nothing is wrong any more"
        );
        let aside = dir.path().join("store/index.db.spoilt");
        assert_eq!(aside.exists(), !matches!(loss, Loss::Empty | Loss::Gone), "{loss:?}");
        assert!(store.blob(&good.digest).await.unwrap().is_none(), "it is not proven");
        // Under whatever fill the mirror names.
        let filling = store.begin(&good.digest, good.map, Some(FillId(77))).await.unwrap();
        assert_eq!((filling.fill(), filling.have().count()), (FillId(77), good.map.count()));
        let blob = filling.publish(&[]).await.unwrap();
        assert!(read_all(&blob).await == good.bytes, "{loss:?}");
        assert!(
            bad.begin(&store).await.have().is_empty(),
            "its bytes are another blob's"
        );
        bad.publish(&store).await;
        unfinished.publish(&store).await;
        // Room is worth more than a spoilt index.
        store.set_limits(None, u64::MAX, DAY);
        store.sweep().await.unwrap();
        assert!(!aside.exists(), "{loss:?}");
        store.close().await;
        drop((blob, filling, store));
        assert_eq!(open(dir.path(), &clock).counts().indexes_lost, 0, "once");
    }
}

#[tokio::test]
async fn a_blob_that_was_found_survives_a_restart_before_a_caller_asks_for_it() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), FakeClock::new());
    let content = Content::pieces(1, 4);
    let store = open(dir.path(), &clock);
    content.publish(&store).await;
    store.close().await;
    drop(store);
    Loss::Gone.befall(&dir.path().join("store/index.db"));
    for _ in 0..2 {
        let store = open(dir.path(), &clock);
        assert_eq!((store.partials(), store.counts().partials), (vec![content.digest], 1));
        store.close().await;
    }
    let store = open(dir.path(), &clock);
    assert_eq!(content.begin(&store).await.have().count(), content.map.count());
}
