//! Eviction by TTL, quota and the free-space floor, and the content that eviction must never touch.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on fails")]

mod support;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use piecemeal_proto::Digest;
use piecemeal_store::{BeginFillError, FillFailure, PublishBlobError, Repository, Store, StoreError, WritePieceError};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use support::{Content, DAY, FakeClock, HOUR, config, disk::FaultyDisk, env, open};

const MINUTE: Duration = Duration::from_secs(60);

fn alpine() -> Repository {
    Repository {
        upstream: "docker.io".to_owned(),
        name: "library/alpine".to_owned(),
    }
}

#[tokio::test]
async fn a_use_renews_the_ttl_and_a_changed_ttl_applies_to_everything() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let store = open(dir.path(), &clock);
    let (used, unused, partial) = (Content::pieces(1, 2), Content::pieces(2, 2), Content::pieces(3, 2));
    used.publish(&store).await;
    unused.publish(&store).await;
    drop(partial.begin(&store).await);
    clock.advance(20 * HOUR);
    assert_eq!(store.sweep().await.unwrap().blobs, []);
    drop(store.blob(&used.digest).await.unwrap());
    clock.advance(4 * HOUR);
    let mut evictions = store.evictions();
    let swept = store.sweep().await.unwrap();
    assert_eq!(swept.blobs, [unused.digest]);
    assert_eq!(swept.bytes, unused.map.blob_bytes() + partial.map.blob_bytes());
    assert_eq!(evictions.try_recv().unwrap(), unused.digest);
    assert!(store.partials().is_empty(), "stale partials go too");
    store.set_limits(None, 0, HOUR);
    assert_eq!(store.sweep().await.unwrap().blobs, [used.digest]);
    assert_eq!(store.usage().await.unwrap(), piecemeal_store::Usage::default());
}

#[tokio::test]
async fn what_is_held_is_never_evicted_and_its_use_lasts_until_it_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let store = open(dir.path(), &clock);
    let (blob, filling) = (Content::pieces(1, 2), Content::pieces(2, 2));
    let held_blob = blob.publish(&store).await;
    let held_filling = filling.begin(&store).await;
    clock.advance(30 * DAY);
    store.set_limits(Some(0), u64::MAX, DAY);
    assert_eq!(store.sweep().await.unwrap(), piecemeal_store::Swept::default());
    store.set_limits(None, 0, DAY);
    drop((held_blob, held_filling));
    assert_eq!(store.sweep().await.unwrap(), piecemeal_store::Swept::default());
    clock.advance(DAY);
    assert_eq!(store.sweep().await.unwrap().blobs, [blob.digest]);
}

#[tokio::test]
async fn a_clock_that_jumps_evicts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let content = Content::pieces(1, 2);
    let store = open(dir.path(), &clock);
    content.publish(&store).await;
    store.put_tag(&alpine(), "latest", &content.digest).await.unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
    for wall in [SystemTime::UNIX_EPOCH, then, then + 400 * DAY, SystemTime::UNIX_EPOCH] {
        clock.set_wall(wall);
        assert_eq!(store.sweep().await.unwrap().blobs, []);
    }
    drop(store);
    // Booted in 1970; learnt the date; rebooted in the far future: an hour at the most for each restart.
    for (boots, wall) in (1_u32..).zip([SystemTime::UNIX_EPOCH, then, then + 1000 * DAY]) {
        clock.set_wall(wall);
        let store = open(dir.path(), &clock);
        assert_eq!(store.sweep().await.unwrap().blobs, []);
        let age = store.tag(&alpine(), "latest").await.unwrap().unwrap().age;
        assert!(age <= boots * HOUR, "{age:?} after {boots} restarts");
        store.close().await;
    }
}

#[tokio::test]
async fn a_stopped_process_ages_its_content_by_the_wall_clock() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let content = Content::pieces(1, 2);
    let store = open(dir.path(), &clock);
    content.publish(&store).await;
    clock.advance(23 * HOUR + 30 * MINUTE);
    assert_eq!(store.sweep().await.unwrap().blobs, []);
    drop(store);
    clock.advance(29 * MINUTE);
    let store = open(dir.path(), &clock);
    assert_eq!(store.sweep().await.unwrap().blobs, []);
    clock.advance(MINUTE);
    assert_eq!(store.sweep().await.unwrap().blobs, [content.digest]);
}

#[tokio::test]
async fn the_quota_is_kept_by_evicting_the_least_recently_used() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let store = open(dir.path(), &clock);
    store.set_limits(Some(3 * 8192), 0, DAY);
    let content: Vec<Content> = (0..5).map(|seed| Content::new(seed, 8192)).collect();
    for content in &content[..3] {
        content.publish(&store).await;
        clock.advance(MINUTE);
    }
    drop(store.blob(&content[0].digest).await.unwrap());
    let pinned = store.blob(&content[1].digest).await.unwrap().unwrap();
    clock.advance(MINUTE);
    content[3].publish(&store).await;
    let here = |index: usize| store.complete_digests().contains(&content[index].digest);
    assert!(here(0) && here(1) && !here(2) && here(3));
    let second = store.blob(&content[3].digest).await.unwrap().unwrap();
    let third = store.blob(&content[0].digest).await.unwrap().unwrap();
    let refused = store.begin(&content[4].digest, content[4].map, None).await;
    assert!(matches!(refused, Err(BeginFillError::NoSpace { needed: 8192, .. })));
    assert_eq!(store.usage().await.unwrap().blobs, 3, "nothing went in vain");
    drop((pinned, second, third));
    let reserved = content[4].begin(&store).await;
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.blob_bytes, usage.reserved_bytes), (2 * 8192, 8192));
    let too_large = Content::new(9, 4 * 8192);
    assert!(matches!(
        store.begin(&too_large.digest, too_large.map, None).await,
        Err(BeginFillError::NoSpace { .. })
    ));
    assert_eq!(store.usage().await.unwrap(), usage);
    drop(reserved);
}

#[tokio::test]
async fn the_free_space_floor_is_kept_and_promises_count() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let disk = FaultyDisk::new(1);
    disk.set_capacity(5 * 8192);
    let store = Store::open(config(dir.path()), env(&clock, Arc::new(disk.clone()))).unwrap();
    store.set_limits(None, 8192, DAY);
    let content: Vec<Content> = (0..6).map(|seed| Content::new(seed, 8192)).collect();
    content[0].publish(&store).await;
    clock.advance(MINUTE);
    content[1].publish(&store).await;
    // 3 x 8192 free, one of them the floor.
    let first = content[2].begin(&store).await;
    let second = content[3].begin(&store).await;
    assert_eq!(store.usage().await.unwrap().blobs, 2);
    let third = content[4].begin(&store).await;
    assert_eq!(store.complete_digests(), [content[1].digest]);
    for (filling, content) in [&first, &second, &third].into_iter().zip(&content[2..]) {
        for index in 0..2 {
            content.write(filling, index).await;
        }
        filling.publish(&[]).await.unwrap();
    }
}

#[tokio::test]
async fn a_disk_without_room_is_told_of_until_there_is_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    let content = Content::new(1, 8192);
    store.set_limits(Some(4096), 0, DAY);
    assert!(store.begin(&content.digest, content.map, None).await.is_err());
    assert_eq!(store.trouble(), None, "it is the blob that is too large");
    store.set_limits(None, u64::MAX, DAY);
    assert!(store.begin(&content.digest, content.map, None).await.is_err());
    assert!(
        store
            .trouble()
            .unwrap()
            .contains("no space for 8192 bytes (quota none, ")
    );
    store.set_limits(None, 0, DAY);
    content.publish(&store).await;
    assert_eq!(store.trouble(), None);
}

#[tokio::test]
async fn names_are_kept_by_source_and_expire_with_the_ttl() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let store = open(dir.path(), &clock);
    let bytes = Bytes::from_static(b"{\"schemaVersion\":2}");
    let digest = Digest::of(&bytes);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let other = Repository {
        name: "library/busybox".to_owned(),
        ..alpine()
    };
    store
        .put_manifest(&alpine(), &digest, media_type, bytes.clone())
        .await
        .unwrap();
    let manifest = store.manifest(&alpine(), &digest).await.unwrap().unwrap();
    assert_eq!((manifest.media_type.as_str(), &manifest.bytes), (media_type, &bytes));
    assert_eq!(store.manifest(&other, &digest).await.unwrap(), None, "no source there");
    store.record_source(&other, &digest).await.unwrap();
    assert!(store.manifest(&other, &digest).await.unwrap().is_some());
    assert!(matches!(
        store
            .put_manifest(&alpine(), &digest, media_type, Bytes::from_static(b"else"))
            .await,
        Err(StoreError::DigestMismatch { .. })
    ));
    let large = Bytes::from(vec![0; 8 * 1024 * 1024 + 1]);
    assert!(matches!(
        store.put_manifest(&alpine(), &digest, media_type, large).await,
        Err(StoreError::ManifestTooLarge { .. })
    ));

    store.put_tag(&alpine(), "3", &digest).await.unwrap();
    store.put_tag(&alpine(), "2", &digest).await.unwrap();
    clock.advance(20 * HOUR);
    let tag = store.tag(&alpine(), "3").await.unwrap().unwrap();
    assert_eq!((tag.digest, tag.age), (digest, 20 * HOUR));
    assert!(store.has_source(&alpine(), &digest).await.unwrap());
    assert!(store.manifest(&alpine(), &digest).await.unwrap().is_some());
    clock.advance(4 * HOUR);
    store.sweep().await.unwrap();
    assert!(store.tag(&alpine(), "3").await.unwrap().is_some());
    assert!(store.tag(&alpine(), "2").await.unwrap().is_none());
    assert!(store.has_source(&alpine(), &digest).await.unwrap());
    assert!(!store.has_source(&other, &digest).await.unwrap());
    assert!(store.manifest(&alpine(), &digest).await.unwrap().is_some());
    store.forget_tag(&alpine(), "3").await.unwrap();
    assert!(store.tag(&alpine(), "3").await.unwrap().is_none());
}

/// Eight pullers of twelve blobs in the space of five: everything that was promised holds all the while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_in_a_tight_quota_neither_hangs_nor_loses_count() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let store = open(dir.path(), &clock);
    let quota_bytes = 5 * 8192;
    store.set_limits(Some(quota_bytes), 0, DAY);
    let contents: Arc<Vec<Content>> = Arc::new((0..12).map(|seed| Content::new(seed, 8192)).collect());
    let pullers: Vec<_> = (0..8)
        .map(|seed| {
            let (store, contents, clock) = (store.clone(), Arc::clone(&contents), Arc::clone(&clock));
            tokio::spawn(async move {
                let mut random = StdRng::seed_from_u64(seed);
                for _ in 0..100 {
                    pull(&store, contents.choose(&mut random).unwrap(), &mut random).await;
                    clock.advance(Duration::from_secs(1));
                    let usage = store.usage().await.unwrap();
                    assert!(usage.blob_bytes + usage.reserved_bytes <= quota_bytes, "{usage:?}");
                }
            })
        })
        .collect();
    for puller in pullers {
        tokio::time::timeout(Duration::from_secs(60), puller)
            .await
            .expect("no puller hangs")
            .unwrap();
    }
    let usage = store.usage().await.unwrap();
    store.close().await;
    drop(store);
    let store = open(dir.path(), &clock);
    assert_eq!(store.usage().await.unwrap(), usage, "memory and disk agree");
}

async fn pull(store: &Store, content: &Content, random: &mut StdRng) {
    if let Some(blob) = store.blob(&content.digest).await.unwrap() {
        assert!(support::read_all(&blob).await == content.bytes);
        if random.random_range(0..8) == 0 {
            store.remove(&content.digest).await.unwrap();
        }
        return;
    }
    let filling = match store.begin(&content.digest, content.map, None).await {
        Ok(filling) => filling,
        Err(BeginFillError::AlreadyComplete | BeginFillError::NoSpace { .. }) => return,
        Err(error) => panic!("{error:?}"),
    };
    for index in 0..content.map.count() {
        let written = filling.write_piece(index, content.piece(index), None).await;
        match (random.random_range(0..12), written) {
            (0, _) => filling.abandon(FillFailure::Revoked).await,
            (1, _) => filling.abandon(FillFailure::Stopped).await,
            (2, _) => return,
            (_, Err(WritePieceError::Abandoned(_)) | Ok(_)) => {}
            (_, Err(error)) => panic!("{error:?}"),
        }
    }
    match filling.publish(&[]).await {
        Ok(blob) => assert!(support::read_all(&blob).await == content.bytes),
        // Removed by another puller between its publishing and ours.
        Err(PublishBlobError::Abandoned(_) | PublishBlobError::Io(_)) => {}
        Err(error) => panic!("{error:?}"),
    }
}
