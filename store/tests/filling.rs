//! One blob, many writers and readers.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on fails")]

mod support;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use piecemeal_proto::{FillId, PieceMap, piece_hash};
use piecemeal_store::{
    BeginFillError, DiskFiles, Files as _, FillFailure, Filling, PublishBlobError, ReadBlobError, ReadRange,
    Repository, Store, WritePieceError,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use support::{Content, FakeClock, PIECE_BYTES, env, open, read_all, read_filling};
use tokio::task::JoinHandle;

fn spawn_read(filling: &Filling, range: std::ops::Range<u64>) -> JoinHandle<Result<Bytes, ReadBlobError>> {
    let filling = filling.clone();
    tokio::spawn(async move { filling.read(range).await })
}

/// Returns once that many readers of the filling wait.
async fn until_wanted(filling: &Filling, piece: u32) {
    while filling.wanted() != Some(piece) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_peer_that_waits_for_a_piece_is_a_reader_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    let filling = Content::pieces(1, 5).begin(&store).await;
    let waiting = {
        let filling = filling.clone();
        tokio::spawn(async move { filling.wait_piece(3).await })
    };
    until_wanted(&filling, 3).await;
    filling.note_wait_elsewhere(4);
    filling.note_wait_elsewhere(5);
    let first_ones = || {
        filling
            .waited_for()
            .into_iter()
            .map(|pieces| pieces.start)
            .collect::<Vec<_>>()
    };
    assert_eq!(first_ones(), [3, 4], "there is no piece 5");
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    assert_eq!(first_ones(), [4]);
}

#[tokio::test]
async fn each_reader_waits_only_for_its_own_piece() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let store = open(dir.path(), &clock);
    let content = Content::pieces(1, 5);
    let filling = content.begin(&store).await;
    let third = spawn_read(&filling, 2 * PIECE_BYTES + 7..4 * PIECE_BYTES);
    until_wanted(&filling, 2).await;
    clock.advance(Duration::from_secs(3));
    let second = spawn_read(&filling, PIECE_BYTES..2 * PIECE_BYTES);
    until_wanted(&filling, 1).await;
    assert_eq!(filling.longest_wait(), Some((2, Duration::from_secs(3))));

    content.write(&filling, 2).await;
    assert_eq!(
        third.await.unwrap().unwrap(),
        content.piece(2).slice(7..),
        "as much as is contiguous"
    );
    assert_eq!(filling.wanted(), Some(1));
    assert_eq!(filling.longest_wait(), Some((1, Duration::ZERO)));
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    assert_eq!(
        (filling.wanted(), filling.longest_wait()),
        (None, None),
        "a reader that left wants nothing"
    );
    assert!(filling.have().contains(2) && filling.have().count() == 1);
    let hash = piece_hash(&content.piece(2));
    assert_eq!((filling.hash(2), filling.hash(1)), (Some(hash), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_finds_a_blob_finds_its_sources() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    let at = Repository {
        upstream: "registry.test".to_owned(),
        name: "app".to_owned(),
    };
    for seed in 0..32 {
        let content = Content::pieces(seed, 1);
        let filling = content.begin(&store).await;
        content.write(&filling, 0).await;
        let sources = [at.clone()];
        let publishing = tokio::spawn(async move { filling.publish(&sources).await });
        while store.blob(&content.digest).await.unwrap().is_none() {
            tokio::task::yield_now().await;
        }
        assert!(store.has_source(&at, &content.digest).await.unwrap(), "{seed}");
        publishing.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_reader_of_a_small_part_gets_the_final_piece_once_it_has_landed_and_nothing_of_a_bad_blob() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    let content = Content::pieces(2, 3);
    let filling = content.begin(&store).await;
    let end = content.map.blob_bytes();
    let early = ReadRange {
        bytes: end - 51..end,
        is_early: true,
    };
    let (reader, range) = (filling.clone(), early.clone());
    let footer = tokio::spawn(async move { reader.read(range).await });
    until_wanted(&filling, 2).await;
    assert_eq!(filling.waited_for(), [2..3]);
    content.write(&filling, 2).await;
    assert_eq!(
        footer.await.unwrap().unwrap(),
        content.bytes.slice(content.bytes.len() - 51..)
    );
    assert_eq!(filling.waited_for(), []);
    let whole = spawn_read(&filling, end - 51..end);
    while filling.longest_wait().is_none() {
        tokio::task::yield_now().await;
    }
    assert!(!whole.is_finished() && !filling.is_proven());
    // Others that wait need as much as they read.
    let middle = spawn_read(&filling, 7..2 * PIECE_BYTES + 1);
    until_wanted(&filling, 0).await;
    assert_eq!(filling.waited_for(), [0..3]);
    middle.abort();
    filling.abandon(FillFailure::Revoked).await;
    assert!(whole.await.unwrap().is_err());
    let late = filling.read(early).await;
    assert!(
        matches!(late, Err(ReadBlobError::Abandoned(FillFailure::Revoked))),
        "the blob is bad"
    );
}

#[tokio::test]
async fn the_final_piece_is_withheld_from_clients_until_the_blob_is_proven() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    let content = Content::pieces(2, 3);
    let filling = content.begin(&store).await;
    for index in 0..3 {
        content.write(&filling, index).await;
    }
    let end = content.map.blob_bytes();
    assert_eq!(
        filling.read(0..end).await.unwrap().len() as u64,
        2 * PIECE_BYTES,
        "all but the final piece"
    );
    assert_eq!(
        filling.read_piece(2).await.unwrap(),
        Some(content.piece(2)),
        "peers have it at once"
    );
    let last = spawn_read(&filling, end - 1..end);
    while filling.longest_wait().is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(filling.wanted(), None, "it waits for the proof, not for a piece");
    assert!(!filling.is_proven() && !last.is_finished());
    let blob = filling.publish(&[]).await.unwrap();
    assert_eq!(
        last.await.unwrap().unwrap(),
        content.bytes.slice(content.bytes.len() - 1..)
    );
    assert!(filling.is_proven());
    assert_eq!(read_all(&blob).await, content.bytes);
    assert_eq!(
        read_filling(&filling, 0..end).await,
        content.bytes,
        "the filling's readers go on"
    );
    assert_eq!(blob.fill(), filling.fill());
    assert_eq!(blob.piece_hashes().len(), 3);
}

#[tokio::test]
async fn abandoning_wakes_every_reader_and_the_blob_can_be_begun_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    let content = Content::pieces(3, 8);
    let filling = content.begin(&store).await;
    content.write(&filling, 0).await;
    let readers: Vec<_> = (1..8)
        .map(|index| spawn_read(&filling, index * PIECE_BYTES..index * PIECE_BYTES + 1))
        .collect();
    until_wanted(&filling, 1).await;
    let why = FillFailure::Upstream("connection reset".to_owned());
    filling.abandon(why.clone()).await;
    for reader in readers {
        assert!(matches!(reader.await.unwrap(), Err(ReadBlobError::Abandoned(got)) if got == why));
    }
    assert_eq!(filling.failure(), Some(why));
    assert!(store.filling(&content.digest).is_none());
    assert!(matches!(
        filling.write_piece(1, content.piece(1), None).await,
        Err(WritePieceError::Abandoned(_))
    ));
    assert!(matches!(
        filling.publish(&[]).await,
        Err(PublishBlobError::Abandoned(_))
    ));
    assert!(matches!(filling.wait_piece(5).await, Err(ReadBlobError::Abandoned(_))));

    let resumed = content.begin(&store).await;
    assert_eq!(resumed.fill(), filling.fill(), "a resumed fill keeps its id");
    assert!(resumed.have().contains(0));
    resumed.abandon(FillFailure::Revoked).await;
    assert!(store.partials().is_empty());
    let afresh = content.begin(&store).await;
    assert_ne!(afresh.fill(), filling.fill());
    assert!(afresh.have().is_empty());
    drop((filling, resumed));
    assert_eq!(store.usage().await.unwrap().reserved_bytes, content.map.blob_bytes());
}

#[tokio::test]
async fn bad_pieces_are_refused_and_good_ones_are_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    let content = Content::pieces(4, 3);
    let filling = content.begin(&store).await;
    let good = content.piece(1);
    let hash = piece_hash(&good);
    let mut bad = good.to_vec();
    bad[9] ^= 1;
    let bad = Bytes::from(bad);
    assert!(matches!(
        filling.write_piece(3, good.clone(), None).await,
        Err(WritePieceError::NoSuchPiece { index: 3, count: 3 })
    ));
    assert!(matches!(
        filling.write_piece(2, good.clone(), None).await,
        Err(WritePieceError::WrongLength { index: 2, .. })
    ));
    assert!(matches!(
        filling.write_piece(1, bad.clone(), Some(hash)).await,
        Err(WritePieceError::Mismatch { expected, .. }) if expected == hash
    ));
    assert!(filling.have().is_empty());
    assert_eq!(filling.write_piece(1, good.clone(), Some(hash)).await.unwrap(), hash);
    assert_eq!(
        filling.write_piece(1, bad, None).await.unwrap(),
        hash,
        "a piece that is there stays as it is"
    );
    assert_eq!(filling.read_piece(1).await.unwrap(), Some(good));
    assert!(matches!(
        filling.publish(&[]).await,
        Err(PublishBlobError::Incomplete { missing: 2 })
    ));
    assert!(matches!(
        filling.read(std::ops::Range { start: 5, end: 4 }).await,
        Err(ReadBlobError::OutOfRange { .. })
    ));
    assert!(matches!(
        filling.read(0..content.map.blob_bytes() + 1).await,
        Err(ReadBlobError::OutOfRange { .. })
    ));
    assert!(filling.read(7..7).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_the_same_piece_race_safely() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    for seed in 0..20 {
        let content = Content::pieces(seed, 2);
        let filling = content.begin(&store).await;
        // Without an expected hash the first writer decides; hash and bytes must agree.
        let writers: Vec<_> = (0..8_u8)
            .map(|writer| {
                let filling = filling.clone();
                tokio::spawn(async move {
                    let bytes = Bytes::from(vec![writer; 4096]);
                    filling.write_piece(0, bytes, None).await.unwrap()
                })
            })
            .collect();
        let mut hashes = Vec::new();
        for writer in writers {
            hashes.push(writer.await.unwrap());
        }
        let bytes = filling.read_piece(0).await.unwrap().unwrap();
        let hash = piece_hash(&bytes);
        assert!(hashes.iter().all(|returned| *returned == hash), "seed {seed}");
        content.write(&filling, 1).await;
        assert!(matches!(
            filling.publish(&[]).await,
            Err(PublishBlobError::DigestMismatch { .. })
        ));
        assert_eq!(filling.failure(), Some(FillFailure::DigestMismatch));
        filling.abandon(FillFailure::DigestMismatch).await;
        assert!(store.partials().is_empty());
    }
}

#[tokio::test]
async fn a_fill_is_joined_by_its_id_and_map_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    let content = Content::pieces(5, 4);
    let begin = |fill, map| store.begin(&content.digest, map, fill);
    let (one, two) = (Some(FillId(1)), Some(FillId(2)));
    let filling = begin(one, content.map).await.unwrap();
    content.write(&filling, 0).await;
    assert!(begin(None, content.map).await.unwrap().have().contains(0), "joined");
    assert!(begin(one, content.map).await.unwrap().have().contains(0), "joined");
    assert!(matches!(
        begin(two, content.map).await,
        Err(BeginFillError::Conflict { fill: FillId(1), .. })
    ));
    let other_map = PieceMap::new(content.map.blob_bytes(), 8192).unwrap();
    assert!(matches!(
        begin(None, other_map).await,
        Err(BeginFillError::Conflict { .. })
    ));
    drop(filling);
    assert!(store.filling(&content.digest).is_none());
    let rejoined = begin(None, content.map).await.unwrap();
    assert_eq!((rejoined.fill(), rejoined.have().count()), (FillId(1), 1));
    drop(rejoined);
    let other = begin(two, content.map).await.unwrap();
    assert_eq!(
        (other.fill(), other.have().count()),
        (FillId(2), 0),
        "the partial of another fill is discarded"
    );
    drop(other);
    store.flush().await;
    let other = begin(None, other_map).await.unwrap();
    assert!(other.fill() != FillId(0) && other.have().is_empty());
    drop(other);
    content.publish(&store).await;
    assert!(matches!(
        begin(None, content.map).await,
        Err(BeginFillError::AlreadyComplete)
    ));
}

#[tokio::test]
async fn blobs_of_no_bytes_and_of_sha512_are_blobs_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    let empty = Content::new(0, 0);
    let filling = empty.begin(&store).await;
    assert!(filling.read(0..0).await.unwrap().is_empty());
    let blob = filling.publish(&[]).await.unwrap();
    assert!(blob.read(0..0).await.unwrap().is_empty());
    assert_eq!(
        *filling.publish(&[]).await.unwrap().digest(),
        empty.digest,
        "again is fine"
    );

    let mut content = Content::pieces(6, 3);
    let mut hasher = piecemeal_proto::Algorithm::Sha512.hasher();
    hasher.update(&content.bytes);
    content.digest = hasher.finish();
    content.publish(&store).await;
    let blob = store.blob(&content.digest).await.unwrap().unwrap();
    assert_eq!(read_all(&blob).await, content.bytes);
}

/// Whatever order the pieces come in, every reader gets its range.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_readers_of_random_ranges_all_finish() {
    for seed in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let mut environment = env(&FakeClock::new(), Arc::new(DiskFiles));
        environment.seed = seed;
        let store = Store::open(support::config(dir.path()), environment).unwrap();
        let content = Content::pieces(seed, 40);
        let filling = content.begin(&store).await;
        let mut random = StdRng::seed_from_u64(seed);
        let blob_bytes = content.map.blob_bytes();
        let readers: Vec<_> = (0..50)
            .map(|_| {
                let start = random.random_range(0..blob_bytes);
                let end = random.random_range(start + 1..=blob_bytes);
                let (filling, content) = (filling.clone(), content.clone());
                tokio::spawn(async move {
                    let read = read_filling(&filling, start..end).await;
                    let at = |offset| usize::try_from(offset).unwrap();
                    assert_eq!(read, content.bytes.slice(at(start)..at(end)), "seed {seed}");
                })
            })
            .collect();
        let mut order: Vec<u32> = (0..content.map.count()).collect();
        order.shuffle(&mut random);
        for index in order {
            content.write(&filling, index).await;
        }
        filling.publish(&[]).await.unwrap();
        for reader in readers {
            let done = tokio::time::timeout(Duration::from_secs(30), reader).await;
            done.unwrap_or_else(|_| panic!("seed {seed}: a reader hangs")).unwrap();
        }
    }
}

/// A store as a killed process leaves it: what is only in memory is gone.
struct Killed {
    dir: tempfile::TempDir,
    content: Content,
    clock: Arc<FakeClock>,
}

impl Killed {
    /// Dies after a batch in which 3000 bytes of piece 1 were its tail.
    async fn with_a_tail() -> Self {
        let (dir, clock, content) = (tempfile::tempdir().unwrap(), FakeClock::new(), Content::pieces(9, 3));
        let store = open(dir.path(), &clock);
        let filling = content.begin(&store).await;
        content.write(&filling, 0).await;
        filling
            .write_partial_piece(1, 0, content.piece(1).slice(..1000))
            .await
            .unwrap();
        clock.advance(Duration::from_millis(20));
        filling
            .write_partial_piece(1, 1000, content.piece(1).slice(1000..3000))
            .await
            .unwrap();
        Self { dir, content, clock }
    }

    async fn resume(&self) -> Filling {
        self.content.begin(&open(self.dir.path(), &self.clock)).await
    }

    fn flip_a_byte(&self, offset: u64) {
        let path = format!("store/partial/sha256-{}", self.content.digest.hex());
        let file = DiskFiles.open(&self.dir.path().join(path)).unwrap();
        let mut byte = [0];
        file.read_at(&mut byte, offset).unwrap();
        file.write_at(&[byte[0] ^ 1], offset).unwrap();
    }
}

#[tokio::test]
async fn a_tail_outlives_the_process() {
    let killed = Killed::with_a_tail().await;
    let filling = killed.resume().await;
    let piece = killed.content.piece(1);
    assert_eq!(filling.partial_piece(1).await, Some(piece.slice(..3000)));
    assert_eq!(filling.have().iter().collect::<Vec<_>>(), [0]);
    assert_eq!(filling.read_piece(1).await.unwrap(), None, "peers do not see it");
    filling
        .write_partial_piece(1, 3000, piece.slice(3000..3500))
        .await
        .unwrap();
    assert_eq!(filling.partial_piece(1).await, Some(piece.slice(..3500)), "it grows on");

    killed.content.write(&filling, 1).await;
    assert_eq!(filling.partial_piece(1).await, None, "the whole piece is here");
    killed.clock.advance(Duration::from_millis(20));
    filling.write_partial_piece(1, 0, piece.slice(..10)).await.unwrap();
    assert_eq!(
        filling.partial_piece(1).await,
        None,
        "a piece that is here is not written again"
    );
    killed.content.write(&filling, 2).await;
    filling.publish(&[]).await.unwrap();
}

#[tokio::test]
async fn the_first_bytes_of_a_fill_wake_those_that_wait_for_any() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    let content = Content::pieces(9, 3);
    let filling = content.begin(&store).await;
    let waiting = filling.clone();
    let waiting = tokio::spawn(async move { waiting.wait_arrived().await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished(), "nothing is here");
    let bytes = content.piece(1).slice(..100);
    filling.write_partial_piece(1, 0, bytes).await.unwrap();
    waiting.await.unwrap().unwrap();
    filling.abandon(FillFailure::Stopped).await;
    filling.wait_arrived().await.unwrap();
}

#[tokio::test]
async fn a_fill_that_fails_without_a_byte_wakes_those_that_wait_for_any() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    let filling = Content::pieces(9, 3).begin(&store).await;
    let waiting = filling.clone();
    let waiting = tokio::spawn(async move { waiting.wait_arrived().await });
    filling.abandon(FillFailure::Stopped).await;
    assert!(matches!(
        waiting.await.unwrap(),
        Err(ReadBlobError::Abandoned(FillFailure::Stopped))
    ));
}

#[tokio::test]
async fn a_damaged_tail_is_none() {
    let killed = Killed::with_a_tail().await;
    let filling = killed.resume().await;
    killed.flip_a_byte(PIECE_BYTES + 2999);
    assert_eq!(filling.partial_piece(1).await, None, "while it is being filled");
    drop(filling);
    let filling = killed.resume().await;
    assert_eq!(filling.partial_piece(1).await, None, "after a restart");
    filling
        .write_partial_piece(1, 0, killed.content.piece(1).slice(..7))
        .await
        .unwrap();
    assert_eq!(filling.partial_piece(1).await, Some(killed.content.piece(1).slice(..7)));
}

#[tokio::test]
async fn a_tail_is_only_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &FakeClock::new());
    let content = Content::pieces(9, 3);
    let filling = content.begin(&store).await;
    let bytes = content.piece(1).slice(..100);
    filling.write_partial_piece(1, 0, bytes.clone()).await.unwrap();
    for (piece, offset) in [(1, 99), (1, 101), (0, 100)] {
        let refused = filling.write_partial_piece(piece, offset, bytes.clone()).await;
        assert!(
            matches!(refused, Err(WritePieceError::NoSuchPartialPiece { .. })),
            "{refused:?}"
        );
    }
    let whole = filling.write_partial_piece(1, 0, content.piece(1)).await;
    assert!(matches!(
        whole,
        Err(WritePieceError::WrongLength { got: PIECE_BYTES, .. })
    ));
    let beyond = filling.write_partial_piece(3, 0, bytes.clone()).await;
    assert!(matches!(beyond, Err(WritePieceError::NoSuchPiece { .. })));
    assert_eq!(filling.partial_piece(1).await, Some(bytes.clone()));
}

#[tokio::test]
async fn each_of_sixteen_pieces_has_a_tail_of_its_own() {
    let (dir, clock, content) = (tempfile::tempdir().unwrap(), FakeClock::new(), Content::pieces(9, 18));
    let tail_of = |piece: u32| content.piece(piece).slice(..100 + piece as usize);
    {
        let store = open(dir.path(), &clock);
        let filling = content.begin(&store).await;
        for piece in 0..16 {
            filling.write_partial_piece(piece, 0, tail_of(piece)).await.unwrap();
        }
        // Grows on, which makes piece 1 the one that has not grown for longest.
        filling.write_partial_piece(0, 0, tail_of(0)).await.unwrap();
        filling.write_partial_piece(17, 0, tail_of(17)).await.unwrap();
        content.write(&filling, 5).await;
        clock.advance(Duration::from_millis(20));
        filling.write_partial_piece(7, 0, tail_of(7)).await.unwrap();
    }
    let filling = content.begin(&open(dir.path(), &clock)).await;
    for piece in 0..18 {
        let kept = ![1, 5, 16].contains(&piece);
        assert_eq!(
            filling.partial_piece(piece).await,
            kept.then(|| tail_of(piece)),
            "piece {piece}"
        );
    }
}

#[tokio::test]
async fn a_piece_that_was_taken_back_is_written_again_and_the_blob_is_proven() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let store = open(dir.path(), &clock);
    let content = Content::pieces(7, 5);
    let filling = content.begin(&store).await;
    for index in [0, 2, 3, 4] {
        content.write(&filling, index).await;
    }
    let forged = Bytes::from(vec![0x41; content.piece(1).len()]);
    filling.write_piece(1, forged, None).await.unwrap();
    let (misled, within, late) = (filling.clone(), filling.clone(), filling.clone());
    misled.read(0..PIECE_BYTES).await.unwrap();
    let half = PIECE_BYTES + PIECE_BYTES / 2;
    assert_eq!(within.read(PIECE_BYTES..half).await.unwrap()[0], 0x41);
    assert_eq!(read_filling(&misled, PIECE_BYTES..2 * PIECE_BYTES).await[0], 0x41);

    filling.take_back(vec![1]).await.unwrap();
    assert!(!filling.have().contains(1) && filling.landed().count() == 4);
    content.write(&filling, 1).await;
    let on = misled.read(2 * PIECE_BYTES..3 * PIECE_BYTES).await;
    assert!(
        matches!(on, Err(ReadBlobError::Abandoned(FillFailure::Revoked))),
        "what it has read is not the blob: {on:?}"
    );
    let on = within.read(half..2 * PIECE_BYTES).await;
    assert!(
        matches!(on, Err(ReadBlobError::Abandoned(FillFailure::Revoked))),
        "it has read the beginning of another piece: {on:?}"
    );
    let read = read_filling(&late, 0..4 * PIECE_BYTES).await;
    assert_eq!(
        read[..],
        content.bytes[..read.len()],
        "who reads from now on reads the blob"
    );
    let blob = filling.publish(&[]).await.unwrap();
    assert_eq!(read_all(&blob).await[..], content.bytes[..]);
}

#[tokio::test]
async fn what_was_taken_back_is_missing_after_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let content = Content::pieces(8, 5);
    let store = open(dir.path(), &clock);
    let filling = content.begin(&store).await;
    for index in 0..4 {
        content.write(&filling, index).await;
    }
    filling.take_back(vec![2, 3]).await.unwrap();
    drop(filling);
    store.close().await;
    drop(store);
    let store = open(dir.path(), &clock);
    let filling = content.begin(&store).await;
    assert_eq!(filling.have().iter().collect::<Vec<_>>(), [0, 1]);
}
