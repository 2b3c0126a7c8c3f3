//! Operations that meet in the middle of each other. A clock stands for the other thread: it runs a step of the test when the store
//! asks it for the time, which is between two locks.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on fails")]

mod support;

use std::{
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use parking_lot::Mutex;
use piecemeal_store::{BeginFillError, Clock, DiskFiles, Env, Files, Filling, Repository, Store};
use support::{Content, DAY, FakeClock, PIECE_BYTES, config, disk::FaultyDisk};
use tokio::runtime::Handle;

/// The longest wait of a step for another one that may have to wait for it in turn.
const STEP_MAX: Duration = Duration::from_millis(500);

type Step = Box<dyn FnOnce() + Send>;

/// A clock that runs one step when it is asked for the time, and one when it is asked for the date: a write that is about to begin
/// asks for both.
struct MeddlingClock {
    inner: Arc<FakeClock>,
    at_time: Mutex<Option<Step>>,
    at_date: Mutex<Option<Step>>,
}

impl MeddlingClock {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: FakeClock::new(),
            at_time: Mutex::default(),
            at_date: Mutex::default(),
        })
    }
}

fn run(step: &Mutex<Option<Step>>) {
    let step = step.lock().take();
    if let Some(step) = step {
        step();
    }
}

impl Clock for MeddlingClock {
    fn monotonic(&self) -> Duration {
        run(&self.at_time);
        self.inner.monotonic()
    }

    fn wall(&self) -> SystemTime {
        run(&self.at_date);
        self.inner.wall()
    }
}

fn open(dir: &Path, clock: &Arc<MeddlingClock>, files: Arc<dyn Files>) -> Store {
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    Store::open(config(dir), Env { clock, files, seed: 7 }).unwrap()
}

fn here(filling: &Filling) -> Vec<u32> {
    filling.have().iter().collect()
}

#[tokio::test]
async fn a_fill_that_is_taken_up_again_beside_a_batch_shares_no_space_with_another() {
    let (dir, clock, disk) = (tempfile::tempdir().unwrap(), MeddlingClock::new(), FaultyDisk::new(1));
    disk.set_capacity(10 * PIECE_BYTES);
    let store = open(dir.path(), &clock, Arc::new(disk));
    let (first, second) = (Content::pieces(1, 8), Content::pieces(2, 8));
    let filling = first.begin(&store).await;
    first.write(&filling, 0).await;
    drop(filling);

    let (sender, results) = mpsc::channel();
    let (runtime, other, content) = (Handle::current(), store.clone(), second);
    let begin_second = move || {
        runtime.block_on(async {
            other.flush().await;
            let begun = other.begin(&content.digest, content.map, None).await;
            sender.send(begun).unwrap();
        });
    };
    *clock.at_time.lock() = Some(Box::new(begin_second));
    let first = store.begin(&first.digest, first.map, None).await;
    let late = clock.at_time.lock().take();
    if let Some(late) = late {
        tokio::task::spawn_blocking(late).await.unwrap();
    }
    let second = results.recv().unwrap();
    assert!(
        matches!(
            (&first, &second),
            (Ok(_), Err(BeginFillError::NoSpace { .. })) | (Err(BeginFillError::NoSpace { .. }), Ok(_))
        ),
        "there is room for one: {:?} and {:?}",
        first.err(),
        second.err()
    );
}

#[tokio::test]
async fn pieces_of_a_batch_that_failed_are_kept_although_another_batch_was_due_meanwhile() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), MeddlingClock::new());
    let store = open(dir.path(), &clock, Arc::new(DiskFiles));
    let content = Content::pieces(3, 4);
    let filling = content.begin(&store).await;
    content.write(&filling, 2).await;
    drop(filling);

    let index = rusqlite::Connection::open(dir.path().join("store/index.db")).unwrap();
    let index = Arc::new(Mutex::new(index));
    let fails = "CREATE TRIGGER fails BEFORE UPDATE ON partials BEGIN SELECT RAISE(ABORT, 'by the test'); END";
    let (runtime, other, broken, time) = (Handle::current(), store.clone(), Arc::clone(&index), Arc::clone(&clock));
    *clock.at_date.lock() = Some(Box::new(move || {
        time.inner.advance(DAY);
        let at = Repository {
            upstream: "a.io".to_owned(),
            name: "app".to_owned(),
        };
        // An operation that finds a batch due.
        runtime.block_on(other.has_source(&at, &content.digest)).unwrap();
        broken.lock().execute_batch(fails).unwrap();
    }));
    store.flush().await;
    assert!(clock.at_date.lock().is_none());
    index.lock().execute_batch("DROP TRIGGER fails").unwrap();
    store.close().await;
    drop(store);

    let store = open(dir.path(), &clock, Arc::new(DiskFiles));
    let content = Content::pieces(3, 4);
    assert_eq!(here(&content.begin(&store).await), [2]);
}

#[tokio::test]
async fn a_piece_that_is_taken_back_beside_a_batch_is_missing_after_a_restart() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), MeddlingClock::new());
    let store = open(dir.path(), &clock, Arc::new(DiskFiles));
    let content = Content::pieces(4, 4);
    let filling = content.begin(&store).await;
    content.write(&filling, 0).await;
    let forged = Bytes::from(vec![0x41; content.piece(1).len()]);
    filling.write_piece(1, forged, None).await.unwrap();

    let (sender, results) = mpsc::channel();
    let runtime = Handle::current();
    *clock.at_date.lock() = Some(Box::new(move || {
        let (begun, taken) = mpsc::channel();
        runtime.spawn(async move {
            let result = filling.take_back(vec![1]).await;
            let _ = begun.send(());
            drop(filling);
            sender.send(result).unwrap();
        });
        // It may wait for the batch.
        let _ = taken.recv_timeout(STEP_MAX);
    }));
    store.flush().await;
    let result = tokio::task::spawn_blocking(move || results.recv().unwrap())
        .await
        .unwrap();
    result.unwrap();
    store.close().await;
    drop(store);

    let store = open(dir.path(), &clock, Arc::new(DiskFiles));
    assert_eq!(here(&content.begin(&store).await), [0]);
}
