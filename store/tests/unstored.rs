//! Blobs that the disk has no room for: their pieces pass through memory.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on fails")]

mod support;

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use piecemeal_proto::{Digest, PieceMap};
use piecemeal_store::{
    BeginFillError, DiskFiles, FillFailure, Filling, Offer, PublishBlobError, ReadBlobError, Store, StoreConfig,
};
use support::{FakeClock, config, env};

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
