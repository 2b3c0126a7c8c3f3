//! Finding blobs that the disk has damaged.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on fails")]

mod support;

use std::{os::unix::fs::FileExt as _, path::PathBuf, sync::Mutex};

use piecemeal_store::Verified;
use support::{Content, DAY, FakeClock, HOUR, open};

fn path(dir: &std::path::Path, content: &Content) -> PathBuf {
    let hex = content.digest.hex();
    dir.join("store/blobs/sha256").join(&hex[..2]).join(hex)
}

#[tokio::test]
async fn a_flipped_byte_anywhere_is_found_and_the_blob_dropped() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), FakeClock::new());
    let store = open(dir.path(), &clock);
    let contents: Vec<Content> = (0..3).map(|seed| Content::pieces(seed, 5)).collect();
    for content in &contents {
        content.publish(&store).await;
    }
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(path(dir.path(), &contents[1]))
        .unwrap();
    file.write_at(&[contents[1].bytes[9000] ^ 1], 9000).unwrap();
    std::fs::remove_file(path(dir.path(), &contents[2])).unwrap();

    let paced = Mutex::new(Vec::new());
    let mut found = Vec::new();
    for content in &contents {
        let pace = async |bytes| paced.lock().unwrap().push(bytes);
        found.push(store.verify(&content.digest, pace).await.unwrap());
    }
    assert_eq!(found, [Verified::Good, Verified::Damaged, Verified::Damaged]);
    assert_eq!(
        paced.into_inner().unwrap(),
        [4096, 4096, 4096, 4096, 3996, 4096, 4096, 4096],
        "no further than needed"
    );
    assert_eq!(store.complete_digests(), [contents[0].digest]);
    assert_eq!(
        store.verify(&contents[1].digest, async |_| {}).await.unwrap(),
        Verified::Gone
    );
    contents[1].publish(&store).await;
    assert_eq!(
        store.verify(&contents[1].digest, async |_| {}).await.unwrap(),
        Verified::Good
    );
}

#[tokio::test]
async fn what_cannot_be_opened_is_an_error_and_stays() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), FakeClock::new());
    let store = open(dir.path(), &clock);
    let content = Content::pieces(1, 2);
    content.publish(&store).await;
    let file = path(dir.path(), &content);
    std::fs::rename(&file, dir.path().join("aside")).unwrap();
    // A folder in place of the file cannot be opened as one.
    std::fs::create_dir(&file).unwrap();
    assert!(store.verify(&content.digest, async |_| {}).await.is_err());
    std::fs::remove_dir(&file).unwrap();
    std::fs::rename(dir.path().join("aside"), &file).unwrap();
    assert_eq!(
        store.verify(&content.digest, async |_| {}).await.unwrap(),
        Verified::Good
    );
}

#[tokio::test]
async fn the_scrub_begins_where_it_is_longest_ago_and_keeps_nothing_alive() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), FakeClock::new());
    let store = open(dir.path(), &clock);
    let contents: Vec<Content> = (0..3).map(|seed| Content::pieces(seed, 1)).collect();
    for content in &contents {
        content.publish(&store).await;
        clock.advance(HOUR);
    }
    assert!(store.unverified(12 * HOUR, 9).await.unwrap().is_empty());
    assert_eq!(
        store.unverified(2 * HOUR, 9).await.unwrap(),
        [contents[0].digest, contents[1].digest]
    );
    store.verify(&contents[0].digest, async |_| {}).await.unwrap();
    assert_eq!(store.unverified(HOUR, 1).await.unwrap(), [contents[1].digest]);
    clock.advance(DAY - HOUR);
    store.verify(&contents[2].digest, async |_| {}).await.unwrap();
    store.sweep().await.unwrap();
    assert!(store.complete_digests().is_empty(), "to be looked at is no use");
}
