//! Rights by node and credential: which credentials are remembered, what a refusal revokes, and what the disk holds of it.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on fails")]

mod support;

use std::{fs, path::Path, time::Duration};

use piecemeal_proto::{Digest, NodeId};
use piecemeal_store::{Holder, NodeRight, Repository, Shown, Store};
use support::{DAY, FakeClock, HOUR, config, env, old, open};

const NODE: NodeId = NodeId([1; 16]);
const OTHER: NodeId = NodeId([2; 16]);
/// The bounds, as `store/src/index/rights.rs` has them.
const SERVED_MAX: u16 = 64;
const REFUSED_MAX: u16 = 256;
const ALICE: Shown = Shown::Client([0xa1; 32]);
const BOB: Shown = Shown::Client([0xb0; 32]);

fn repository(name: &str) -> Repository {
    Repository {
        upstream: "a.test".to_owned(),
        name: name.to_owned(),
    }
}

async fn served(store: &Store, name: &str, shown: Shown) {
    store
        .record_right(&repository(name), Holder::Node(NODE, shown))
        .await
        .unwrap();
}

async fn refused(store: &Store, name: &str, shown: Shown) {
    store
        .record_refusal(&repository(name), Holder::Node(NODE, shown))
        .await
        .unwrap();
}

async fn right(store: &Store, node: NodeId, name: &str, shown: Option<Shown>) -> NodeRight {
    store.node_right(&repository(name), node, shown).await.unwrap()
}

#[tokio::test]
async fn a_refusal_takes_what_that_credential_of_that_node_had_earned_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    served(&store, "app", ALICE).await;
    served(&store, "app", BOB).await;
    refused(&store, "app", BOB).await;

    let now = Some(Duration::ZERO);
    let alice = right(&store, NODE, "app", Some(ALICE)).await;
    assert_eq!((alice.by_this, alice.by_any, alice.is_known), (now, now, true));
    let bob = right(&store, NODE, "app", Some(BOB)).await;
    assert_eq!((bob.by_this, bob.by_any, bob.is_known), (None, now, true));
    let stranger = right(&store, NODE, "app", Some(Shown::Client([3; 32]))).await;
    assert_eq!((stranger.by_this, stranger.is_known), (None, false));
    assert_eq!(right(&store, NODE, "app", None).await.by_any, now);
    assert_eq!(right(&store, OTHER, "app", Some(ALICE)).await, NodeRight::default());
    let elsewhere = right(&store, NODE, "other", Some(ALICE)).await;
    assert_eq!((elsewhere.by_any, elsewhere.is_known), (None, true));

    // A credential that is accepted again has its right again; once all are refused, the node has no right.
    served(&store, "app", BOB).await;
    assert_eq!(right(&store, NODE, "app", Some(BOB)).await.by_this, now);
    for shown in [ALICE, BOB] {
        refused(&store, "app", shown).await;
    }
    assert_eq!(right(&store, NODE, "app", None).await, NodeRight::default());
}

#[tokio::test]
async fn a_refusal_is_known_although_it_came_before_any_right() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    refused(&store, "app", BOB).await;
    served(&store, "app", ALICE).await;
    assert!(right(&store, NODE, "app", Some(BOB)).await.is_known);
}

#[tokio::test]
async fn public_access_is_a_right_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, at) = (FakeClock::new(), repository("app"));
    let store = open(dir.path(), &clock);
    store.record_right(&at, Holder::Public).await.unwrap();
    clock.advance(HOUR);
    assert_eq!(store.public_right(&at).await.unwrap(), Some(HOUR));
    refused(&store, "app", ALICE).await;
    assert!(store.public_right(&at).await.unwrap().is_some());
    store.record_refusal(&at, Holder::Public).await.unwrap();
    assert_eq!(store.public_right(&at).await.unwrap(), None);
}

#[tokio::test]
async fn a_credential_that_was_served_in_one_repository_has_no_right_in_another_by_its_node() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    served(&store, "app", ALICE).await;
    served(&store, "other", BOB).await;
    let alice = right(&store, NODE, "other", Some(ALICE)).await;
    assert!(alice.is_known && alice.by_this.is_none() && alice.by_any.is_some());
    refused(&store, "app", ALICE).await;
    assert!(right(&store, NODE, "other", Some(ALICE)).await.is_known);
    // Another registry knows nothing of it.
    let elsewhere = Repository {
        upstream: "b.test".to_owned(),
        name: "other".to_owned(),
    };
    assert!(!store.node_right(&elsewhere, NODE, Some(ALICE)).await.unwrap().is_known);
}

#[tokio::test]
async fn what_other_credentials_of_a_node_do_takes_no_right_and_no_refusal() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let store = open(dir.path(), &clock);
    let other = |number: u16| {
        let mut fingerprint = [7; 32];
        fingerprint[..2].copy_from_slice(&number.to_be_bytes());
        Shown::Client(fingerprint)
    };
    served(&store, "app", ALICE).await;
    served(&store, "quiet", ALICE).await;
    refused(&store, "app", BOB).await;
    let mut number = 0;
    for (count, is_kept) in [(SERVED_MAX - 1, true), (SERVED_MAX, false)] {
        while number < count {
            clock.advance(Duration::from_secs(1));
            served(&store, "app", other(number)).await;
            number += 1;
        }
        let alice = right(&store, NODE, "app", Some(ALICE)).await;
        assert_eq!(alice.by_this.is_some(), is_kept);
        // What made room falls back on the node's.
        assert!(alice.by_any.is_some() && alice.is_known == is_kept);
        assert!(right(&store, NODE, "app", Some(BOB)).await.is_known);
    }
    assert!(right(&store, NODE, "quiet", Some(ALICE)).await.by_this.is_some());
    for number in 1000..1000 + REFUSED_MAX + 50 {
        let stranger = right(&store, NODE, "app", Some(other(9999))).await;
        assert_eq!(stranger.is_known, number >= 1000 + REFUSED_MAX - 1, "{number}");
        clock.advance(Duration::from_secs(1));
        refused(&store, "app", other(number)).await;
        let bob = right(&store, NODE, "app", Some(BOB)).await;
        assert!(bob.is_known && bob.by_this.is_none(), "{number}");
    }
    // To be served again makes no room for what was forgotten.
    served(&store, "app", other(1100)).await;
    assert!(right(&store, NODE, "app", Some(BOB)).await.is_known);
    assert!(right(&store, NODE, "app", None).await.by_any.is_some());
    assert!(!right(&store, OTHER, "app", Some(BOB)).await.is_known);

    let index = rusqlite::Connection::open(dir.path().join("store/index.db")).unwrap();
    for (table, rows) in [("rights", SERVED_MAX + 1), ("refusals", REFUSED_MAX)] {
        let count: u16 = index
            .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))
            .unwrap();
        assert_eq!(count, rows, "{table}");
    }
}

#[tokio::test]
async fn a_refusal_is_known_for_a_month_also_where_nothing_was_here_yet() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let store = open(dir.path(), &clock);
    refused(&store, "app", BOB).await;
    for (days, is_known) in [(0, true), (29, true), (1, false)] {
        clock.advance(DAY * days);
        store.sweep().await.unwrap();
        let bob = right(&store, NODE, "app", Some(BOB)).await;
        assert_eq!(bob.is_known, is_known, "after {days} days more");
    }
}

#[tokio::test]
async fn no_credential_is_on_the_disk_and_two_stores_write_different_hashes() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut rows = Vec::new();
    for dir in &dirs {
        let store = open(dir.path(), &FakeClock::new());
        served(&store, "app", ALICE).await;
        refused(&store, "app", BOB).await;
        store.close().await;
        drop(store);
        for file in fs::read_dir(dir.path().join("store")).unwrap() {
            let bytes = fs::read(file.unwrap().path()).unwrap_or_default();
            assert!(
                !bytes
                    .windows(32)
                    .any(|window| window == [0xa1; 32] || window == [0xb0; 32])
            );
        }
        let index = rusqlite::Connection::open(dir.path().join("store/index.db")).unwrap();
        let row: Vec<u8> = index
            .query_row("SELECT credential FROM rights", [], |row| row.get(0))
            .unwrap();
        rows.push(row);
    }
    assert_ne!(rows[0], rows[1]);
    // The same store knows the credential again after a restart.
    let store = open(dirs[0].path(), &FakeClock::new());
    assert!(right(&store, NODE, "app", Some(ALICE)).await.by_this.is_some());
}

#[tokio::test]
async fn a_right_that_an_earlier_version_kept_by_node_is_one_by_an_unknown_credential() {
    let dir = tempfile::tempdir().unwrap();
    let at = old::repository();
    prepare_old(dir.path(), &at);
    let store = Store::open(
        config(dir.path()),
        env(&FakeClock::new(), std::sync::Arc::new(piecemeal_store::DiskFiles)),
    )
    .unwrap();
    let right = async |shown| store.node_right(&at, NODE, shown).await.unwrap();
    for shown in [None, Some(ALICE), Some(Shown::Site)] {
        let right = right(shown).await;
        assert!(right.by_any.is_some() && right.by_this.is_none() && !right.is_known);
    }
    // It was another credential's, as far as anything is known.
    store.record_refusal(&at, Holder::Node(NODE, BOB)).await.unwrap();
    assert!(right(None).await.by_any.is_some());
    assert!(store.public_right(&at).await.unwrap().is_some());
}

fn prepare_old(dir: &Path, at: &Repository) {
    let store = dir.join("store");
    fs::create_dir(&store).unwrap();
    old::make_index(&store, 1, old::Left::Closed);
    let index = rusqlite::Connection::open(store.join("index.db")).unwrap();
    index
        .execute(
            "INSERT INTO rights VALUES (?1, ?2, ?3, 110000)",
            (&at.upstream, &at.name, &NODE.0[..]),
        )
        .unwrap();
}

async fn manifest(store: &Store, at: &Repository, text: &str) -> Digest {
    let digest = Digest::of(text.as_bytes());
    store
        .put_manifest(at, &digest, "application/json", text.to_owned().into())
        .await
        .unwrap();
    digest
}

#[tokio::test]
async fn what_was_public_before_a_restart_is_known_after_it_with_a_manifest() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), FakeClock::new());
    let store = open(dir.path(), &clock);
    for name in ["one", "two", "three", "four"] {
        manifest(&store, &repository(name), name).await;
        store.record_right(&repository(name), Holder::Public).await.unwrap();
        clock.advance(HOUR);
    }
    // No manifest of it is here, and the other is not public.
    store.record_right(&repository("empty"), Holder::Public).await.unwrap();
    manifest(&store, &repository("private"), "private").await;
    served(&store, "private", ALICE).await;
    store.close().await;
    drop(store);
    let store = open(dir.path(), &clock);
    let known = store.public_manifests(3).await.unwrap();
    let mut names: Vec<_> = known.iter().map(|(at, digest)| (&*at.name, *digest)).collect();
    names.sort_unstable();
    let digest = |name: &'static str| (name, Digest::of(name.as_bytes()));
    assert_eq!(names, ["four", "three", "two"].map(digest));
}

#[tokio::test]
async fn a_manifest_is_found_by_what_it_names_within_its_own_repository() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), FakeClock::new());
    let store = open(dir.path(), &clock);
    let layer = Digest::of(b"layer");
    let text = format!(r#"{{"layers":[{{"digest":"{layer}","size":5}}]}}"#);
    let naming = manifest(&store, &repository("app"), &text).await;
    manifest(&store, &repository("app"), "{}").await;
    store.close().await;
    drop(store);
    let store = open(dir.path(), &clock);
    let found = |name: &'static str, digest| {
        let store = store.clone();
        async move { store.manifests_that_name(&repository(name), &digest).await.unwrap() }
    };
    let manifests = found("app", layer).await;
    assert_eq!(manifests.iter().map(|found| found.digest).collect::<Vec<_>>(), [naming]);
    assert_eq!(manifests[0].bytes, text);
    assert!(
        found("other", layer).await.is_empty(),
        "it says nothing of another repository"
    );
    assert!(found("app", Digest::of(b"other")).await.is_empty());
}
