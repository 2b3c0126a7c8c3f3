//! Reads of a blob that are checked by its piece hashes, and the treatment of a damaged one.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on fails")]

mod support;

use std::{fs, os::unix::fs::FileExt as _, path::Path, sync::Arc, time::Duration};

use piecemeal_proto::PieceMap;
use piecemeal_store::{CheckedBlob, DiskFiles, Files, ReadBlobError, Store};
use proptest::prelude::*;
use support::{Content, FakeClock, config, disk::FaultyDisk, env, old::blob_path, open, read_all};

const PIECE_BYTES: u64 = 64 * 1024;

/// Three pieces of several blocks each; the last of either is short.
fn content() -> Content {
    let mut content = Content::new(5, 3 * 65_536 - 5000);
    content.map = PieceMap::new(content.map.blob_bytes(), PIECE_BYTES).unwrap();
    content
}

fn spoil(dir: &Path, content: &Content, offset: u64) {
    let path = config(dir).dir.join(blob_path(&content.digest));
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

async fn checked(store: &Store, content: &Content) -> CheckedBlob {
    store.blob(&content.digest).await.unwrap().unwrap().checked()
}

/// The bytes that a client gets of a range, and the piece at which it ends short.
async fn read(blob: &mut CheckedBlob, range: std::ops::Range<u64>) -> (Vec<u8>, Option<u32>) {
    let mut bytes = Vec::new();
    let mut at = range.start;
    while at < range.end {
        match blob.read(at..range.end.min(at + 20_000)).await {
            Ok(read) => {
                assert!(!read.is_empty());
                at += read.len() as u64;
                bytes.extend_from_slice(&read);
            }
            Err(ReadBlobError::Damaged { piece, .. }) => return (bytes, Some(piece)),
            Err(error) => panic!("{error}"),
        }
    }
    (bytes, None)
}

/// The pieces that are left of a blob that was dropped, by which it is filled up again.
async fn fill_up(store: &Store, content: &Content) -> Vec<u32> {
    assert!(store.blob(&content.digest).await.unwrap().is_none());
    assert_eq!(store.partials(), [content.digest]);
    let filling = content.begin(store).await;
    let left: Vec<u32> = filling.have().iter().collect();
    for piece in filling.have().missing() {
        content.write(&filling, piece).await;
    }
    assert_eq!(read_all(&filling.publish(&[]).await.unwrap()).await, content.bytes);
    left
}

#[tokio::test]
async fn a_piece_that_is_spoilt_ends_the_body_before_its_first_byte_and_is_all_that_is_fetched_again() {
    let content = content();
    for (offset, piece, left) in [(0, 0, [1, 2]), (100_000, 1, [0, 2]), (191_607, 2, [0, 1])] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), &FakeClock::new());
        let mut evictions = store.evictions();
        let fill = content.publish(&store).await.fill();
        spoil(dir.path(), &content, offset);
        let mut blob = checked(&store, &content).await;
        let whole = read(&mut blob, 0..content.map.blob_bytes()).await;
        let good = usize::try_from(u64::from(piece) * PIECE_BYTES).unwrap();
        assert_eq!(whole, (content.bytes[..good].to_vec(), Some(piece)));
        assert_eq!(evictions.try_recv().unwrap(), content.digest, "others are told");
        assert_eq!(fill_up(&store, &content).await, left);
        let again = store.blob(&content.digest).await.unwrap().unwrap();
        assert_eq!(again.fill(), fill, "peers keep what they have of it");
    }
}

#[tokio::test]
async fn a_file_that_is_too_short_or_too_long_keeps_what_is_good_of_it() {
    let content = content();
    for (bytes, left) in [(70_000, vec![0]), (250_000, vec![0, 1, 2])] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), &FakeClock::new());
        content.publish(&store).await;
        let mut reading = checked(&store, &content).await;
        let path = config(dir.path()).dir.join(blob_path(&content.digest));
        fs::OpenOptions::new()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(bytes)
            .unwrap();
        let (got, ended) = read(&mut reading, 0..content.map.blob_bytes()).await;
        assert_eq!(
            got,
            content.bytes[..got.len()],
            "a reader that had it open gets nothing wrong"
        );
        assert_eq!(ended.is_some(), bytes < content.map.blob_bytes());
        drop(reading);
        assert_eq!(fill_up(&store, &content).await, left, "{bytes} bytes");
    }
}

#[tokio::test]
async fn what_changes_between_the_look_and_the_reading_is_never_sent() {
    let (dir, content) = (tempfile::tempdir().unwrap(), content());
    let store = open(dir.path(), &FakeClock::new());
    content.publish(&store).await;
    let mut blob = checked(&store, &content).await;
    assert_eq!(blob.read(0..10).await.unwrap(), content.bytes[..10]);
    spoil(dir.path(), &content, 40_000);
    let (bytes, ended) = read(&mut blob, 10..PIECE_BYTES).await;
    assert_eq!(ended, Some(0));
    assert_eq!(bytes, content.bytes[10..10 + bytes.len()]);
    assert!(bytes.len() < 40_000);
}

#[tokio::test]
async fn a_piece_that_was_just_found_good_is_sent_from_where_it_lies_until_its_file_is_written_to() {
    let (dir, clock, content) = (tempfile::tempdir().unwrap(), FakeClock::new(), content());
    let store = open(dir.path(), &clock);
    content.publish(&store).await;
    let lies = async || {
        let blob = checked(&store, &content).await;
        blob.extent(0..content.map.blob_bytes())
            .unwrap()
            .map(|extent| extent.len())
    };
    assert_eq!(lies().await, None, "no reader has looked yet");
    let mut blob = checked(&store, &content).await;
    read(&mut blob, 0..10).await;
    assert_eq!(
        blob.extent(0..10).unwrap().map(|extent| extent.len()),
        None,
        "the body goes on as it began"
    );
    assert_eq!(lies().await, Some(PIECE_BYTES), "no further than the piece");
    clock.advance(Duration::from_secs(61));
    assert_eq!(lies().await, None);
    read(&mut checked(&store, &content).await, 0..10).await;
    spoil(dir.path(), &content, 5);
    assert_eq!(lies().await, None);
    assert_eq!(
        read(&mut checked(&store, &content).await, 0..10).await,
        (Vec::new(), Some(0))
    );
}

#[tokio::test]
async fn what_is_left_of_a_damaged_blob_survives_a_restart_and_a_missing_file_leaves_nothing() {
    let (dir, clock, content) = (tempfile::tempdir().unwrap(), FakeClock::new(), content());
    let store = open(dir.path(), &clock);
    content.publish(&store).await;
    spoil(dir.path(), &content, 70_000);
    assert!(store.recheck(&content.digest, 1).await.unwrap());
    store.close().await;
    drop(store);
    let store = open(dir.path(), &clock);
    assert_eq!(fill_up(&store, &content).await, [0, 2]);
    fs::remove_file(config(dir.path()).dir.join(blob_path(&content.digest))).unwrap();
    assert!(store.blob(&content.digest).await.unwrap().is_none());
    assert!(store.partials().is_empty());
}

#[tokio::test]
async fn a_crash_between_the_row_and_the_name_loses_nothing() {
    let (dir, clock, content) = (tempfile::tempdir().unwrap(), FakeClock::new(), content());
    let store = open(dir.path(), &clock);
    content.publish(&store).await;
    spoil(dir.path(), &content, 0);
    assert!(store.recheck(&content.digest, 0).await.unwrap());
    store.close().await;
    drop(store);
    let folder = config(dir.path()).dir;
    fs::rename(
        folder.join(support::old::partial_path(&content.digest)),
        folder.join(blob_path(&content.digest)),
    )
    .unwrap();
    assert_eq!(fill_up(&open(dir.path(), &clock), &content).await, [1, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_checked_reader_gets_what_it_asks_for_on_any_disk(start in 0_u64..191_608, len in 0_u64..100_000, on_disk: bool) {
        let content = content();
        let end = (start + len).min(content.map.blob_bytes());
        let files: Arc<dyn Files> = if on_disk { Arc::new(DiskFiles) } else { Arc::new(FaultyDisk::new(1)) };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (bytes, ended) = runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(config(dir.path()), env(&FakeClock::new(), files)).unwrap();
            content.publish(&store).await;
            read(&mut checked(&store, &content).await, start..end).await
        });
        let at = |offset| usize::try_from(offset).unwrap();
        prop_assert_eq!(bytes, content.bytes[at(start)..at(end)].to_vec());
        prop_assert_eq!(ended, None);
    }
}
