//! The catalogue, and removal of parts of it.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on fails")]

mod support;

use std::time::Duration;

use piecemeal_proto::{Digest, Manifest};
use piecemeal_store::{KnownBlob, Presence, Removal, RemoveContentError, Repository, Store};
use support::{Content, FakeClock, HOUR, open};

fn at(name: &str) -> Repository {
    Repository {
        upstream: "docker.io".to_owned(),
        name: name.to_owned(),
    }
}

async fn blob(store: &Store, content: &Content) -> Option<KnownBlob> {
    let catalog = store.catalog().await.unwrap();
    catalog.blobs.into_iter().find(|blob| blob.digest == content.digest)
}

#[tokio::test]
async fn everything_is_listed_with_its_age_and_looking_is_no_use() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), FakeClock::new());
    let store = open(dir.path(), &clock);
    let (whole, half) = (Content::pieces(1, 3), Content::pieces(2, 3));
    whole.publish(&store).await;
    let filling = half.begin(&store).await;
    half.write(&filling, 0).await;
    let manifest = format!(
        r#"{{"config":{{"digest":"{}","size":{}}}}}"#,
        whole.digest,
        whole.bytes.len()
    );
    let digest = Digest::of(manifest.as_bytes());
    store
        .put_manifest(&at("app"), &digest, "m", manifest.into())
        .await
        .unwrap();
    store.put_tag(&at("app"), "v1", &digest).await.unwrap();
    clock.advance(HOUR);
    for _ in 0..2 {
        let catalog = store.catalog().await.unwrap();
        let [known] = &catalog.manifests[..] else {
            panic!("one manifest")
        };
        assert!(matches!(&known.content, Manifest::Image { blobs } if blobs[0].digest == whole.digest));
        let [tag] = &catalog.tags[..] else { panic!("one tag") };
        assert_eq!((&*tag.tag, tag.digest, tag.checked), ("v1", digest, HOUR));
        assert_eq!(catalog.sources, [(digest, at("app"))]);
        assert_eq!(catalog.blobs.len(), 2);
        let known = blob(&store, &whole).await.unwrap();
        assert_eq!(
            (known.is_complete, known.here_bytes, known.used),
            (true, whole.bytes.len() as u64, HOUR)
        );
        let known = blob(&store, &half).await.unwrap();
        assert_eq!((known.is_complete, known.here_bytes), (false, 4096));
    }
    assert_eq!(
        store.presence(&half.digest),
        Presence::Partial {
            blob_bytes: half.bytes.len() as u64
        }
    );
    assert_eq!(store.presence(&digest), Presence::Absent);
}

#[tokio::test]
async fn what_is_read_or_filled_stays_with_all_that_was_to_go_with_it() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), FakeClock::new());
    let store = open(dir.path(), &clock);
    let (idle, read, filled) = (Content::pieces(1, 2), Content::pieces(2, 2), Content::pieces(3, 2));
    idle.publish(&store).await;
    let handle = read.publish(&store).await;
    let filling = filled.begin(&store).await;
    store.put_tag(&at("app"), "v1", &idle.digest).await.unwrap();
    let removal = || Removal {
        tags: vec![(at("app"), "v1".to_owned())],
        blobs: vec![idle.digest, read.digest, filled.digest],
        ..Removal::default()
    };
    let refused = store.take_out(removal()).await.unwrap_err();
    assert!(
        matches!(&refused, RemoveContentError::InUse(blobs) if *blobs == [read.digest, filled.digest]),
        "{refused:?}"
    );
    assert!(store.blob(&idle.digest).await.unwrap().is_some());
    assert!(store.tag(&at("app"), "v1").await.unwrap().is_some());
    drop((handle, filling));
    let mut evictions = store.evictions();
    let swept = store.take_out(removal()).await.unwrap();
    assert_eq!(swept.blobs, [idle.digest, read.digest]);
    assert_eq!(evictions.try_recv().unwrap(), idle.digest, "who offers it is told");
    assert!(store.catalog().await.unwrap().blobs.is_empty());
    assert!(store.tag(&at("app"), "v1").await.unwrap().is_none());
    // It can come again.
    idle.publish(&store).await;
    assert!(store.take_out(removal()).await.is_ok());
    assert!(
        store.take_out(removal()).await.unwrap().blobs.is_empty(),
        "nothing is left"
    );
}

#[tokio::test]
async fn a_manifest_goes_with_the_last_repository_that_has_it() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), FakeClock::new());
    let store = open(dir.path(), &clock);
    let digest = Digest::of(b"{}");
    for name in ["one", "other"] {
        store.put_manifest(&at(name), &digest, "m", "{}".into()).await.unwrap();
    }
    let from = |name| Removal {
        manifests: vec![(at(name), digest)],
        ..Removal::default()
    };
    store.take_out(from("one")).await.unwrap();
    assert!(store.manifest(&at("one"), &digest).await.unwrap().is_none());
    assert!(store.manifest(&at("other"), &digest).await.unwrap().is_some());
    store.take_out(from("other")).await.unwrap();
    assert!(store.catalog().await.unwrap().manifests.is_empty());
}

#[tokio::test]
async fn what_was_verified_is_told_once_it_was() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), FakeClock::new());
    let store = open(dir.path(), &clock);
    let content = Content::pieces(1, 1);
    clock.advance(HOUR);
    content.publish(&store).await;
    clock.advance(Duration::from_secs(5));
    assert_eq!(
        blob(&store, &content).await.unwrap().verified,
        Some(Duration::from_secs(5)),
        "it was when it came"
    );
    store.verify(&content.digest, async |_| {}).await.unwrap();
    assert_eq!(blob(&store, &content).await.unwrap().verified, Some(Duration::ZERO));
}
