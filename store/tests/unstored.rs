//! Blobs that the disk has no room for: their pieces pass through memory.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on fails")]

mod support;

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use piecemeal_proto::{Digest, PieceMap};
use piecemeal_store::{
    BeginFillError, DiskFiles, FillFailure, Filling, Offer, PublishBlobError, ReadBlobError, Store, StoreConfig,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use support::{Content, FakeClock, config, disk::FaultyDisk, env, read_all, read_filling};

const PIECE: u64 = 256 * 1024;
/// More than the window, and than the quota.
const BLOB_BYTES: u64 = 200 * PIECE - 77;
const WINDOW_PIECES: u32 = 128;

struct Story {
    dir: tempfile::TempDir,
    store: Store,
    clock: Arc<FakeClock>,
    content: Bytes,
    digest: Digest,
    map: PieceMap,
}

impl Story {
    fn new() -> Self {
        let (dir, clock) = (tempfile::tempdir().unwrap(), FakeClock::new());
        let config = StoreConfig {
            quota_bytes: Some(1_000_000),
            ..config(dir.path())
        };
        let content: Vec<u8> = (0..BLOB_BYTES)
            .map(|at| (at / 5 % 251).to_le_bytes()[0] ^ (at >> 18).to_le_bytes()[0])
            .collect();
        Self {
            store: Store::open(config, env(&clock, Arc::new(DiskFiles))).unwrap(),
            dir,
            clock,
            digest: Digest::of(&content),
            content: content.into(),
            map: PieceMap::new(BLOB_BYTES, PIECE).unwrap(),
        }
    }

    async fn begin(&self) -> Filling {
        let refused = self.store.begin(&self.digest, self.map, None).await;
        assert!(matches!(refused, Err(BeginFillError::NoSpace { .. })));
        self.store
            .begin_unstored(&self.digest, self.map, None, Offer::Pieces)
            .await
            .unwrap()
    }

    fn piece(&self, index: u32) -> Bytes {
        let range = self.map.range(index);
        self.content
            .slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap())
    }

    /// All pieces, each two before its neighbour, as several connections would bring them.
    fn write_all(&self, filling: &Filling) -> tokio::task::JoinHandle<()> {
        let mut order: Vec<u32> = (0..self.map.count()).collect();
        order.chunks_mut(3).for_each(<[u32]>::reverse);
        let pieces: Vec<(u32, Bytes)> = order.into_iter().map(|index| (index, self.piece(index))).collect();
        let filling = filling.clone();
        tokio::spawn(async move {
            for (index, piece) in pieces {
                filling.write_piece(index, piece, None).await.unwrap();
            }
            filling.finish_unstored().await.unwrap();
        })
    }
}

async fn read_from(filling: &Filling, start: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while start + (bytes.len() as u64) < BLOB_BYTES {
        let at = start + bytes.len() as u64;
        bytes.extend_from_slice(&filling.read(at..BLOB_BYTES.min(at + 100_000)).await.unwrap());
    }
    bytes
}

#[tokio::test]
async fn readers_of_a_blob_that_is_too_large_get_all_of_it_and_nothing_is_kept() {
    let story = Story::new();
    let filling = story.begin().await;
    // Seats are taken by the first read.
    let readers: Vec<Filling> = (0..3).map(|_| filling.clone()).collect();
    let reading: Vec<_> = readers
        .into_iter()
        .zip([0, 12_345, 3 * PIECE])
        .map(|(reader, start)| tokio::spawn(async move { (start, read_from(&reader, start).await) }))
        .collect();
    tokio::task::yield_now().await;
    let writing = story.write_all(&filling);
    for reader in reading {
        let (start, bytes) = reader.await.unwrap();
        assert!(
            bytes == story.content[usize::try_from(start).unwrap()..],
            "the reader from {start} on"
        );
    }
    writing.await.unwrap();
    assert!(filling.is_proven() && filling.landed().is_full());
    assert!(filling.have().count() <= WINDOW_PIECES, "memory is bounded");
    drop(filling);
    assert!(story.store.filling(&story.digest).is_none());
    assert_eq!(story.store.usage().await.unwrap(), piecemeal_store::Usage::default());
    let left: Vec<_> = std::fs::read_dir(story.dir.path().join("store/partial"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn what_has_passed_is_refused_and_what_is_in_the_window_is_offered() {
    let story = Story::new();
    let filling = story.begin().await;
    let reader = filling.clone();
    let writing = story.write_all(&filling);
    let start = 100 * PIECE;
    let mut at = start;
    while at < BLOB_BYTES - PIECE {
        at += reader.read(at..BLOB_BYTES).await.unwrap().len() as u64;
    }
    writing.await.unwrap();
    let late = filling.clone();
    assert!(late.has_passed(0) && !late.has_passed(BLOB_BYTES - 1));
    assert!(matches!(late.read(0..10).await, Err(ReadBlobError::Passed)));
    assert_eq!(filling.read_piece(0).await.unwrap(), None);
    let first = filling.have().iter().next().unwrap();
    assert!(filling.have().count() <= WINDOW_PIECES && first > 0);
    let piece = story.store.filling(&story.digest);
    assert!(piece.is_none(), "a pull that comes now starts another fill");
    assert_eq!(filling.read_piece(first).await.unwrap().unwrap(), story.piece(first));
    assert!(
        filling.extent(at..BLOB_BYTES).await.unwrap().is_none(),
        "nothing of it lies in a file"
    );
}

#[tokio::test]
async fn without_a_reader_a_passing_fill_takes_its_window_and_no_more() {
    let story = Story::new();
    let filling = story.begin().await;
    let writing = story.write_all(&filling);
    let mut changes = filling.changes();
    while filling.landed().count() < WINDOW_PIECES - 2 {
        changes.changed().await.unwrap();
    }
    assert!(!filling.has_readers() && !writing.is_finished());
    assert!(filling.landed().count() <= WINDOW_PIECES);
    filling.abandon(FillFailure::Stopped).await;
    assert!(writing.await.is_err(), "its writer is told");
    assert!(matches!(
        filling.read(0..1).await,
        Err(ReadBlobError::Abandoned(FillFailure::Stopped))
    ));
}

#[tokio::test]
async fn a_reader_that_lost_its_seat_is_told_so_and_does_not_wait_for_ever() {
    let story = Story::new();
    let filling = story.begin().await;
    let (slow, fast, writer) = (filling.clone(), filling.clone(), filling.clone());
    let pieces: Vec<Bytes> = (0..story.map.count()).map(|index| story.piece(index)).collect();
    let writing = tokio::spawn(async move {
        for (index, piece) in (0..).zip(pieces) {
            writer.write_piece(index, piece, None).await.unwrap();
        }
        writer.finish_unstored().await.unwrap();
    });
    assert!(!slow.read(0..10).await.unwrap().is_empty());
    let mut at = 0;
    while at < u64::from(WINDOW_PIECES) * PIECE {
        at += fast.read(at..BLOB_BYTES).await.unwrap().len() as u64;
    }
    // The fast one has read all that there is room for, and the other reads nothing.
    story.clock.advance(Duration::from_secs(31));
    let rest = tokio::spawn(async move {
        while at < BLOB_BYTES {
            at += fast.read(at..BLOB_BYTES).await.unwrap().len() as u64;
        }
    });
    rest.await.unwrap();
    writing.await.unwrap();
    assert!(matches!(slow.read(10..20).await, Err(ReadBlobError::Passed)));
}

#[tokio::test]
async fn a_piece_that_lands_last_in_its_window_holds_up_no_later_piece() {
    let story = Story::new();
    let filling = story.begin().await;
    let reader = filling.clone();
    let reading = tokio::spawn(async move { read_from(&reader, 0).await });
    // All of the window but its first piece, then that, and no further write until there is room.
    for index in (1..WINDOW_PIECES).chain([0]) {
        filling.write_piece(index, story.piece(index), None).await.unwrap();
    }
    let mut changes = filling.changes();
    let all = 0..story.map.count();
    while filling.window().unwrap().start < WINDOW_PIECES - 1 {
        changes.changed().await.unwrap();
    }
    assert_eq!(
        filling.window().unwrap().end,
        all.end,
        "the window tells what there is room for"
    );
    for index in WINDOW_PIECES..all.end {
        filling.write_piece(index, story.piece(index), None).await.unwrap();
    }
    filling.finish_unstored().await.unwrap();
    assert!(reading.await.unwrap() == story.content);
}

#[tokio::test]
async fn a_passing_blob_with_another_digest_keeps_its_end_back() {
    let story = Story::new();
    let wrong = Digest::of(b"something else");
    let small = PieceMap::new(3 * PIECE, PIECE).unwrap();
    let filling = story
        .store
        .begin_unstored(&wrong, small, None, Offer::Nothing)
        .await
        .unwrap();
    assert!(
        story.store.filling(&wrong).is_none(),
        "it is not offered to other pulls"
    );
    for index in 0..3 {
        filling.write_piece(index, story.piece(index), None).await.unwrap();
    }
    let reader = filling.clone();
    assert_eq!(reader.read(0..3 * PIECE).await.unwrap().len() as u64, 2 * PIECE);
    assert!(matches!(
        filling.finish_unstored().await,
        Err(PublishBlobError::DigestMismatch { .. })
    ));
    assert!(matches!(
        reader.read(2 * PIECE..3 * PIECE).await,
        Err(ReadBlobError::Abandoned(_))
    ));
}

#[tokio::test]
async fn there_are_only_so_many_passing_fills_and_the_next_waits_for_a_place() {
    let story = Story::new();
    let mut fillings = Vec::new();
    let begin = async |seed: u8| {
        story
            .store
            .begin_unstored(&Digest::of(&[seed]), story.map, None, Offer::Nothing)
            .await
    };
    for seed in 0..4 {
        fillings.push(begin(seed).await.unwrap());
    }
    let mut next = pin!(begin(9));
    // Long enough for one that does not wait.
    let others = async {
        for _ in 0..100 {
            story.store.usage().await.unwrap();
        }
    };
    tokio::select! {
        begun = &mut next => panic!("there was no place for {:?}", begun.map(|filling| *filling.digest())),
        () = others => {}
    }
    fillings.pop();
    fillings.push(next.await.unwrap());
}

/// A disk that runs full in the middle of a fill, by seed: which pieces have landed, in which order the others come, and how many readers there
/// are.
#[tokio::test]
async fn a_fill_goes_on_when_its_disk_runs_full_with_all_that_has_landed_and_under_its_id() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let (dir, clock, disk) = (tempfile::tempdir().unwrap(), FakeClock::new(), FaultyDisk::new(seed));
        let store = Store::open(config(dir.path()), env(&clock, Arc::new(disk.clone()))).unwrap();
        let content = Content::pieces(seed, 40);
        let filling = content.begin(&store).await;
        let id = filling.fill();
        let mut order: Vec<u32> = (0..40).collect();
        order.chunks_mut(8).for_each(|pieces| pieces.shuffle(&mut random));
        let landed = random.random_range(0..40);
        for &piece in &order[..landed] {
            content.write(&filling, piece).await;
        }
        let whole = 0..content.map.blob_bytes();
        let readers: Vec<_> = (0..random.random_range(1..4))
            .map(|_| {
                let (filling, whole) = (filling.clone(), whole.clone());
                tokio::spawn(async move { read_filling(&filling, whole).await })
            })
            .collect();
        tokio::task::yield_now().await;
        disk.set_capacity(disk.used());
        for &piece in &order[landed..] {
            content.write(&filling, piece).await;
            assert!(filling.is_unstored() && filling.have().contains(piece));
        }
        assert_eq!(filling.fill(), id);
        assert!(
            store.trouble().unwrap().contains("does not take"),
            "{:?}",
            store.trouble()
        );
        filling.finish_unstored().await.unwrap();
        for reader in readers {
            assert!(reader.await.unwrap() == content.bytes, "seed {seed}");
        }
        store.sweep().await.unwrap();
        assert!(store.trouble().is_some(), "the disk is still full");
        drop(filling);

        // There is room again: what has landed on the disk need not come again.
        disk.set_capacity(u64::MAX);
        store.sweep().await.unwrap();
        assert_eq!(store.trouble(), None);
        let again = content.begin(&store).await;
        assert!(!again.is_unstored());
        let had: Vec<u32> = again.have().iter().collect();
        let mut first = order[..landed].to_vec();
        first.sort_unstable();
        assert_eq!(had, first, "seed {seed}");
        for piece in 0..40 {
            content.write(&again, piece).await;
        }
        let blob = again.publish(&[]).await.unwrap();
        assert!(read_all(&blob).await == content.bytes);
        store.close().await;
    }
}

/// Nodes that took pieces need a moment to find out that they have to read the rest.
#[tokio::test]
async fn what_passes_after_the_disk_ran_full_waits_for_readers_that_come_a_moment_later() {
    let (dir, clock, disk) = (tempfile::tempdir().unwrap(), FakeClock::new(), FaultyDisk::new(1));
    let store = Store::open(config(dir.path()), env(&clock, Arc::new(disk.clone()))).unwrap();
    let story = Story::new();
    let filling = store.begin(&story.digest, story.map, None).await.unwrap();
    for piece in 0..10 {
        filling.write_piece(piece, story.piece(piece), None).await.unwrap();
    }
    disk.set_capacity(disk.used());
    let read = || {
        let filling = filling.clone();
        tokio::spawn(async move { read_from(&filling, 0).await })
    };
    let first = read();
    let pieces: Vec<(u32, Bytes)> = (10..story.map.count())
        .map(|index| (index, story.piece(index)))
        .collect();
    let writer = filling.clone();
    let writing = tokio::spawn(async move {
        for (index, piece) in pieces {
            writer.write_piece(index, piece, None).await.unwrap();
        }
        writer.finish_unstored().await.unwrap();
    });
    while filling.have().count() < 10 + WINDOW_PIECES {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(filling.have().count(), 10 + WINDOW_PIECES, "nothing has gone");
    let second = read();
    tokio::time::sleep(Duration::from_millis(50)).await;
    clock.advance(Duration::from_secs(5));
    writing.await.unwrap();
    for reader in [first, second] {
        assert!(reader.await.unwrap() == story.content);
    }
}

/// Room for what is missing is not there: what the disk has need not come again all the same.
#[tokio::test]
async fn an_unstored_fill_begins_with_what_an_earlier_one_has_left_on_the_disk() {
    let (dir, clock, disk) = (tempfile::tempdir().unwrap(), FakeClock::new(), FaultyDisk::new(1));
    let store = Store::open(config(dir.path()), env(&clock, Arc::new(disk.clone()))).unwrap();
    let content = Content::pieces(1, 6);
    let filling = content.begin(&store).await;
    for piece in [0, 1, 4] {
        content.write(&filling, piece).await;
    }
    let id = filling.fill();
    filling.abandon(FillFailure::Stopped).await;
    drop(filling);
    store.set_limits(None, u64::MAX, Duration::from_secs(3600));
    let refused = store.begin(&content.digest, content.map, None).await;
    assert!(matches!(refused, Err(BeginFillError::NoSpace { .. })));
    let again = store.begin_unstored(&content.digest, content.map, None, Offer::Nothing);
    let again = again.await.unwrap();
    assert!(again.is_unstored() && again.has_overflowed());
    assert_eq!(
        (again.fill(), again.have().iter().collect::<Vec<_>>()),
        (id, vec![0, 1, 4])
    );
    for piece in [2, 3, 5] {
        content.write(&again, piece).await;
    }
    again.prove_unstored().await.unwrap();
    assert!(read_filling(&again, 0..content.map.blob_bytes()).await == content.bytes);
    assert!(
        store.filling(&content.digest).is_some(),
        "its pieces are here until it ends"
    );
    again.finish_unstored().await.unwrap();
    assert!(store.filling(&content.digest).is_none());
    assert_eq!(
        (store.usage().await.unwrap().blobs, store.partials()),
        (0, vec![content.digest])
    );
}

/// The last piece is here, and the disk fails to sync, to rename or to write the row: its readers have all of it.
#[tokio::test]
async fn a_blob_that_cannot_be_published_is_read_to_its_end_and_may_be_begun_again() {
    let (dir, clock, disk) = (tempfile::tempdir().unwrap(), FakeClock::new(), FaultyDisk::new(1));
    let store = Store::open(config(dir.path()), env(&clock, Arc::new(disk.clone()))).unwrap();
    let content = Content::pieces(1, 5);
    let filling = content.begin(&store).await;
    for piece in 0..5 {
        content.write(&filling, piece).await;
    }
    disk.fail_sync_and_removal();
    assert!(filling.publish(&[]).await.is_err());
    assert!(filling.is_proven() && store.trouble().is_some());
    assert!(read_filling(&filling, 0..content.map.blob_bytes()).await == content.bytes);
    content.publish(&store).await;
    assert_eq!(store.trouble(), None, "it was taken");
}

/// Wrong bytes that came before and after the disk was full are revoked on the disk and in memory.
#[tokio::test]
async fn a_fill_that_ran_out_of_disk_and_proves_wrong_leaves_nothing() {
    let (dir, clock, disk) = (tempfile::tempdir().unwrap(), FakeClock::new(), FaultyDisk::new(1));
    let store = Store::open(config(dir.path()), env(&clock, Arc::new(disk.clone()))).unwrap();
    let (content, other) = (Content::pieces(1, 5), Content::pieces(2, 5));
    let filling = content.begin(&store).await;
    other.write(&filling, 0).await;
    disk.set_capacity(disk.used());
    for piece in 1..5 {
        content.write(&filling, piece).await;
    }
    let wrong = filling.finish_unstored().await;
    assert!(matches!(wrong, Err(PublishBlobError::DigestMismatch { .. })));
    filling.abandon(FillFailure::Revoked).await;
    drop(filling);
    disk.set_capacity(u64::MAX);
    assert!(content.begin(&store).await.have().is_empty());
    content.publish(&store).await;
}

#[tokio::test]
async fn folders_that_were_removed_under_a_running_store_are_made_again() {
    for gone in ["store/partial", "store/blobs", "store"] {
        let (dir, clock) = (tempfile::tempdir().unwrap(), FakeClock::new());
        let store = Store::open(config(dir.path()), env(&clock, Arc::new(DiskFiles))).unwrap();
        let [first, second, third] = [1, 2, 3].map(|seed| Content::pieces(seed, 3));
        first.publish(&store).await;
        let filling = second.begin(&store).await;
        second.write(&filling, 0).await;
        std::fs::remove_dir_all(dir.path().join(gone)).unwrap();
        for piece in 1..3 {
            second.write(&filling, piece).await;
        }
        // Its file may be gone: then its readers have it, and the next fill keeps it.
        let published = filling.publish(&[]).await;
        assert!(published.is_ok() || filling.is_proven(), "{gone}");
        assert!(read_filling(&filling, 0..second.map.blob_bytes()).await == second.bytes);
        drop((published, filling));
        for content in [&second, &third] {
            if store.blob(&content.digest).await.unwrap().is_none() {
                content.publish(&store).await;
            }
        }
        let kept = store.blob(&third.digest).await.unwrap().unwrap();
        assert!(read_all(&kept).await == third.bytes, "{gone}");
        drop(kept);
        store.close().await;
        drop(store);
        // It starts again with what is in the folder.
        drop(Store::open(config(dir.path()), env(&clock, Arc::new(DiskFiles))).unwrap());
    }
}
