//! Real processes that die in the middle of their work.
//!
//! The test runs itself again as a child, which drives a store through a story in parts and says on a pipe what it has done.
//! It is killed at a step, at a line, after some time, or at a byte of what SQLite writes: see `support/killer.rs`. Then
//! everything that it has said must hold, and the story must go on to its end from what it left.
//!
//! What a killed process wrote is all there, unlike after a power cut: `crash.rs` has those.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on fails")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{self, Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use piecemeal_proto::Digest;
use piecemeal_store::{BeginFillError, Env, FillFailure, Filling, Store, StoreConfig};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use rusqlite::Connection;
use rustix::process::{Signal, set_parent_process_death_signal};
use support::{
    Content, DAY, FakeClock, HOUR, PIECE_BYTES, config,
    killer::{Begun, Extent, How, KilledClock, KilledFiles, Killer, Phase, Plan},
    known::{Known, Line},
    old::{self, Left, blob_path, partial_path},
    read_all,
};

/// By turns. The migration twice: little of it can be killed by steps.
const PHASES: [Phase; 9] = [
    Phase::Migrate,
    Phase::Recover,
    Phase::Fill,
    Phase::Publish,
    Phase::Evict,
    Phase::Remove,
    Phase::Migrate,
    Phase::Restart,
    Phase::Finish,
];
/// How a phase ends, by turns.
const HOWS: [How; 8] = [
    How::Steps,
    How::Bytes,
    How::Micros,
    How::Steps,
    How::Lines,
    How::Steps,
    How::Bytes,
    How::Micros,
];
const CASES: u64 = 45 * HOWS.len() as u64;
/// Most of the time a case waits for the disk, where the index is.
const THREADS: u64 = 8;
/// What a phase writes at least, for those that cut the log back in the end.
const BYTES_MIN: u64 = 16 * 1024;
/// By SIGKILL.
const KILLS_MIN: u64 = 200;

/// Room for every blob of the story.
const QUOTA_BYTES: u64 = 100_000;
/// Room for the blob that is held, the one that is used, and one more.
const TIGHT_BYTES: u64 = 60_000;

/// What a child must know.
const PLAN: &str = "STORE_KILL_PLAN";
const DIR: &str = "STORE_KILL_DIR";
const FIRST: &str = "STORE_KILL_FIRST";
const SEED: &str = "STORE_KILL_SEED";
const TEST: &str = "a_store_keeps_its_promises_through_kill_9";
/// What a child says starts with this; the rest is the test harness.
const MARK: &str = "story: ";
const CHILD_MAX: Duration = Duration::from_secs(60);

fn contents() -> Vec<Content> {
    // None is longer than what the killer takes for granted.
    let new = [(3, 6), (4, 5), (5, 0), (6, 3), (7, 2)];
    let new = new.map(|(seed, pieces): (usize, usize)| Content::counted(seed, (pieces * 4096).saturating_sub(100)));
    old::contents().into_iter().chain(new).collect()
}

/// A folder before the story begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Start {
    Nothing,
    /// The process before died when SQLite had made its file: schema 0.
    EmptyIndex,
    Old(i64, Left),
}

impl Start {
    fn all() -> Vec<Self> {
        let lefts = [Left::Closed, Left::Crashed];
        let old = old::versions().flat_map(|version| lefts.map(|left| Self::Old(version, left)));
        [Self::Nothing, Self::EmptyIndex].into_iter().chain(old).collect()
    }

    /// What the old process had promised.
    fn known(self) -> Known {
        let Self::Old(..) = self else {
            return Known::default();
        };
        let saved: BTreeSet<_> = old::PIECES.into_iter().map(|piece| (2, piece)).collect();
        let tails = BTreeMap::from([((2, 1), old::TAIL_BYTES)]);
        Known {
            // The old store's id was a mere claim; from now on the id is derived from the key.
            node: None,
            published: BTreeSet::from([0, 1]),
            wrote: saved.clone(),
            saved,
            tails: tails.clone(),
            saved_tails: tails,
            names: true,
            ..Known::default()
        }
    }

    fn make(self, dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        match self {
            Self::Nothing => {}
            Self::EmptyIndex => fs::write(dir.join("index.db"), "").unwrap(),
            Self::Old(version, left) => {
                old::make_index(dir, version, left);
                for (path, bytes) in old::files() {
                    fs::create_dir_all(dir.join(&path).parent().unwrap()).unwrap();
                    fs::write(dir.join(path), bytes).unwrap();
                }
            }
        }
    }
}

/// Taken while a child process is spawned: for a moment it has a copy of every open file of the parent, and would keep a folder
/// locked that another thread has just closed and opens again.
static SPAWNING: Mutex<()> = Mutex::new(());

/// The store's life, told in one process or by turns in several. Every part begins with whatever a former one left.
struct Story {
    dir: PathBuf,
    seed: u64,
    killer: Arc<Killer>,
    clock: Arc<FakeClock>,
    contents: Vec<Content>,
    known: Known,
    /// Where a parent listens.
    piped: bool,
}

impl Story {
    fn new(dir: &Path, seed: u64, known: Known) -> Self {
        let dir = dir.to_owned();
        Self {
            killer: Killer::new(&dir, None),
            dir,
            seed,
            clock: FakeClock::new(),
            contents: contents(),
            known,
            piped: false,
        }
    }

    fn say(&mut self, line: &Line) {
        self.known.hear(line);
        if self.piped {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{MARK}{line}").unwrap();
        }
    }

    fn begin_phase(&mut self, phase: Phase) -> Begun {
        self.say(&Line::Phase(phase));
        self.killer.begin(phase)
    }

    fn end_phase(&mut self, phase: Phase, begun: &Begun) {
        let Extent { steps, micros, bytes } = self.killer.end(begun);
        self.say(&Line::Ended(phase, steps, micros, bytes));
    }

    fn config(&self) -> StoreConfig {
        StoreConfig {
            dir: self.dir.clone(),
            quota_bytes: Some(QUOTA_BYTES),
            ..config(&self.dir)
        }
    }

    fn open(&mut self) -> Store {
        let env = Env {
            clock: Arc::new(KilledClock {
                killer: Arc::clone(&self.killer),
                clock: Arc::clone(&self.clock) as _,
            }),
            files: Arc::new(KilledFiles(Arc::clone(&self.killer))),
            seed: self.seed,
        };
        self.seed += 1;
        drop(SPAWNING.lock());
        let store = Store::open(self.config(), env).unwrap();
        self.say(&Line::Opened(store.node_id().to_string()));
        store
    }

    /// From the opening to the end.
    async fn tell(&mut self, first: Phase) {
        let begun = self.begin_phase(first);
        let mut store = self.open();
        self.end_phase(first, &begun);

        let begun = self.begin_phase(Phase::Fill);
        self.fill(&store).await;
        self.end_phase(Phase::Fill, &begun);

        let begun = self.begin_phase(Phase::Publish);
        self.publish(&store, &[0, 1, 2, 3, 4, 5, 7]).await;
        self.end_phase(Phase::Publish, &begun);

        let begun = self.begin_phase(Phase::Evict);
        self.evict(&store).await;
        self.end_phase(Phase::Evict, &begun);

        let begun = self.begin_phase(Phase::Remove);
        self.remove(&store).await;
        self.end_phase(Phase::Remove, &begun);

        let begun = self.begin_phase(Phase::Restart);
        store = self.restart(store).await;
        self.end_phase(Phase::Restart, &begun);

        let begun = self.begin_phase(Phase::Finish);
        let all: Vec<_> = (0..self.contents.len()).collect();
        self.publish(&store, &all).await;
        store.close().await;
        self.end_phase(Phase::Finish, &begun);
        self.say(&Line::Done);
    }

    /// `None` when the blob is complete.
    async fn begin(&mut self, store: &Store, blob: usize) -> Option<Filling> {
        self.say(&Line::Beginning(blob));
        let content = &self.contents[blob];
        match store.begin(&content.digest, content.map, None).await {
            Ok(filling) => Some(filling),
            Err(BeginFillError::AlreadyComplete) => {
                let blob = store.blob(&content.digest).await.unwrap().unwrap();
                assert!(read_all(&blob).await == content.bytes);
                None
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    async fn write(&mut self, filling: &Filling, blob: usize, piece: u32) {
        let content = &self.contents[blob];
        content.write(filling, piece).await;
        self.clock.advance(Duration::from_millis(3));
        self.say(&Line::Wrote(blob, piece));
    }

    /// A tail in two steps.
    async fn write_partial_piece(&mut self, filling: &Filling, blob: usize, piece: u32) {
        let bytes = self.contents[blob].piece(piece);
        let (first, second) = (bytes.len() / 3, bytes.len() / 2);
        for (start, end) in [(0, first), (first, second)] {
            let part = bytes.slice(start..end);
            filling.write_partial_piece(piece, start as u64, part).await.unwrap();
            self.clock.advance(Duration::from_millis(6));
            self.say(&Line::Tail(blob, piece, end));
        }
    }

    /// Out of order, all but the second piece, of which there is a tail.
    async fn write_most(&mut self, filling: &Filling, blob: usize) {
        let missing: Vec<u32> = filling.have().missing().collect();
        for piece in missing.into_iter().rev() {
            match piece {
                1 if filling.partial_piece(piece).await.is_some() => {}
                1 => self.write_partial_piece(filling, blob, piece).await,
                _ => self.write(filling, blob, piece).await,
            }
        }
    }

    async fn fill(&mut self, store: &Store) {
        let mut held = Vec::new();
        for blob in [3, 4, 5] {
            if let Some(filling) = self.begin(store, blob).await {
                self.write_most(&filling, blob).await;
                held.push(filling);
            }
        }
        store.flush().await;
        self.say(&Line::Saved);
        if let Some(filling) = held.first() {
            filling.abandon(FillFailure::Stopped).await;
        }
        drop(held);
        if let Some(filling) = self.begin(store, 6).await {
            self.write_most(&filling, 6).await;
            self.say(&Line::Removing(6));
            filling.abandon(FillFailure::Revoked).await;
            self.say(&Line::Removed(6));
        }
    }

    async fn publish(&mut self, store: &Store, blobs: &[usize]) {
        for &blob in blobs {
            if let Some(filling) = self.begin(store, blob).await {
                let missing: Vec<u32> = filling.have().missing().collect();
                for piece in missing {
                    self.write(&filling, blob, piece).await;
                }
                let published = filling.publish(&[]).await.unwrap();
                assert!(read_all(&published).await == self.contents[blob].bytes);
            }
            self.say(&Line::Published(blob));
        }
    }

    /// Under the quota, for a new blob, and by the TTL.
    async fn evict(&mut self, store: &Store) {
        let held = store.blob(&self.contents[3].digest).await.unwrap().unwrap();
        self.say(&Line::Held(3));
        self.clock.advance(HOUR);
        drop(store.blob(&self.contents[4].digest).await.unwrap().unwrap());
        let mut evictions = store.evictions();
        store.set_limits(Some(TIGHT_BYTES), 0, DAY);

        self.say(&Line::Evicting);
        assert_ne!(store.sweep().await.unwrap().bytes, 0);
        self.tell_evictions(&mut evictions);
        self.say(&Line::Evicting);
        let begun = self.begin(store, 6).await;
        self.tell_evictions(&mut evictions);
        if let Some(filling) = begun {
            for piece in 0..filling.map().count() {
                self.write(&filling, 6, piece).await;
            }
            filling.publish(&[]).await.unwrap();
        }
        self.say(&Line::Published(6));
        store.set_limits(Some(QUOTA_BYTES), 0, DAY);
        if let Some(filling) = self.begin(store, 7).await {
            self.write_most(&filling, 7).await;
        }

        self.clock.advance(25 * HOUR);
        self.say(&Line::NamesExpire);
        self.say(&Line::Evicting);
        store.sweep().await.unwrap();
        self.tell_evictions(&mut evictions);
        let left = store.complete_digests();
        assert_eq!(left, [self.contents[3].digest], "the one that is held");
        drop(held);
    }

    fn tell_evictions(&mut self, evictions: &mut tokio::sync::broadcast::Receiver<Digest>) {
        while let Ok(digest) = evictions.try_recv() {
            let blob = self.contents.iter().position(|content| content.digest == digest);
            self.say(&Line::Evicted(blob.unwrap()));
        }
        self.say(&Line::Swept);
    }

    /// A complete blob, and a partial.
    async fn remove(&mut self, store: &Store) {
        self.publish(store, &[0, 1]).await;
        if let Some(filling) = self.begin(store, 2).await {
            self.write_most(&filling, 2).await;
        }
        for blob in [0, 2] {
            self.say(&Line::Removing(blob));
            assert!(store.remove(&self.contents[blob].digest).await.unwrap());
            self.say(&Line::Removed(blob));
        }
    }

    /// Into a folder that needs recovery, and into one that was closed.
    async fn restart(&mut self, store: Store) -> Store {
        self.publish(&store, &[4]).await;
        if let Some(filling) = self.begin(&store, 2).await {
            self.write_most(&filling, 2).await;
        }
        store.flush().await;
        self.say(&Line::Saved);
        drop(store);
        let strays = ["partial/stray", "blobs/sha256/stray"].map(|stray| self.dir.join(stray));
        for stray in &strays {
            fs::write(stray, "bytes").unwrap();
        }
        self.say(&Line::Removing(1));
        fs::remove_file(self.dir.join(blob_path(&self.contents[1].digest))).unwrap();
        self.say(&Line::Removed(1));
        let store = self.open();
        assert!(!strays.iter().any(|stray| stray.exists()));
        store.close().await;
        drop(store);
        self.open()
    }

    /// Everything that must hold of a folder whose process died; leaves the store closed, or dropped.
    async fn check(&mut self, closing: bool) {
        let store = self.open();
        let (complete, partials) = (store.complete_digests(), store.partials());
        self.check_files(&complete, &partials);
        self.check_rows(&complete, &partials);
        let usage = store.usage().await.unwrap();
        assert!(usage.blob_bytes + usage.reserved_bytes <= QUOTA_BYTES, "{usage:?}");
        for blob in 0..self.contents.len() {
            let digest = self.contents[blob].digest;
            let (is_complete, is_partial) = (complete.contains(&digest), partials.contains(&digest));
            assert!(is_complete || !self.known.must_have(blob), "blob {blob} was published");
            let is_gone = self.known.gone.contains(&blob);
            assert!(!is_gone || !(is_complete || is_partial), "blob {blob} was taken away");
            if is_complete {
                let held = store.blob(&digest).await.unwrap().unwrap();
                assert!(
                    read_all(&held).await == self.contents[blob].bytes,
                    "blob {blob} is damaged"
                );
                self.known.hear(&Line::Published(blob));
            } else {
                self.check_partial(&store, blob, is_partial).await;
            }
        }
        if self.known.names {
            old::check_names(&store).await;
        }
        let now = (store.complete_digests(), store.partials());
        assert_eq!(now, (complete, partials));
        self.check_files(&now.0, &now.1);
        self.known.evicting = false;
        if closing {
            store.close().await;
        }
    }

    async fn check_partial(&mut self, store: &Store, blob: usize, is_partial: bool) {
        let content = self.contents[blob].clone();
        let filling = match is_partial {
            true => Some(content.begin(store).await),
            false => None,
        };
        for piece in 0..content.map.count() {
            let bytes = match &filling {
                Some(filling) => filling.read_piece(piece).await.unwrap(),
                None => None,
            };
            let tail = match &filling {
                Some(filling) => filling.partial_piece(piece).await,
                None => None,
            };
            let tail_bytes = tail.as_ref().map_or(0, |tail| tail.len());
            assert!(bytes.iter().all(|bytes| *bytes == content.piece(piece)));
            assert!(tail.iter().all(|tail| content.piece(piece).starts_with(tail)));
            let must = self.known.must_have_piece(blob, piece);
            assert!(bytes.is_some() || !must, "piece {piece} of blob {blob} was saved");
            let tail_min = self.known.tail_min(blob, piece);
            assert!(
                bytes.is_some() || tail_bytes >= tail_min,
                "a tail of blob {blob} was saved"
            );
        }
        if !is_partial {
            self.known.published.remove(&blob);
            self.known.forget(blob);
        }
    }

    fn check_files(&self, complete: &[Digest], partials: &[Digest]) {
        let files = complete.iter().map(blob_path).chain(partials.iter().map(partial_path));
        let expected: BTreeSet<PathBuf> = files.map(|path| self.dir.join(path)).collect();
        let mut found = BTreeSet::new();
        let mut dirs = vec![self.dir.join("blobs"), self.dir.join("partial")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                match entry.file_type().unwrap().is_dir() {
                    true => dirs.push(entry.path()),
                    false => _ = found.insert(entry.path()),
                }
            }
        }
        assert_eq!(found, expected, "the disk holds what the store lists");
        let ours = [
            "blobs",
            "index.db",
            "index.db-shm",
            "index.db-wal",
            "lock",
            "node.key",
            "partial",
        ];
        for entry in fs::read_dir(&self.dir).unwrap().map(Result::unwrap) {
            assert!(
                ours.iter().any(|name| entry.file_name() == *name),
                "{entry:?} was left behind"
            );
        }
    }

    fn check_rows(&self, complete: &[Digest], partials: &[Digest]) {
        let index = Connection::open(self.dir.join("index.db")).unwrap();
        assert_eq!(old::schema_version(&index), latest_version());
        let text = |query| -> Vec<String> {
            let mut statement = index.prepare(query).unwrap();
            let rows = statement.query_map([], |row| row.get(0)).unwrap();
            rows.map(Result::unwrap).collect()
        };
        assert_eq!(text("PRAGMA integrity_check"), ["ok"]);
        let digests = |digests: &[Digest]| -> Vec<String> { digests.iter().map(Digest::to_string).collect() };
        assert_eq!(text("SELECT digest FROM blobs ORDER BY digest"), digests(complete));
        assert_eq!(text("SELECT digest FROM partials ORDER BY digest"), digests(partials));
    }
}

/// The schema that this version writes.
fn latest_version() -> i64 {
    static LATEST: OnceLock<i64> = OnceLock::new();
    *LATEST.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        drop(support::open(dir.path(), &FakeClock::new()));
        old::schema_version(&Connection::open(dir.path().join("store/index.db")).unwrap())
    })
}

fn block_on(future: impl Future<Output = ()>) {
    // One thread of each kind: the same steps in the same order each time.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(future);
}

/// The life of a child. Never returns.
fn be_a_child() -> ! {
    // The child dies with its parent, and also when the story does not end.
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    thread::spawn(|| {
        thread::park_timeout(CHILD_MAX);
        eprintln!("the story does not end");
        process::exit(3);
    });
    let text = |name| env::var(name).unwrap();
    let dir = PathBuf::from(text(DIR));
    let plan = env::var(PLAN).ok().map(|plan| plan.parse().unwrap());
    let mut story = Story::new(&dir, text(SEED).parse().unwrap(), Known::default());
    story.killer = Killer::new(&dir, plan);
    story.piped = true;
    block_on(story.tell(text(FIRST).parse().unwrap()));
    process::exit(0);
}

/// Reaped whatever happens.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One part of a case: a child, and what it said.
struct Told {
    status: ExitStatus,
    lines: Vec<Line>,
}

fn run_child(dir: &Path, first: Phase, plan: Option<Plan>, seed: u64) -> Told {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([TEST, "--exact", "--nocapture"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
        .env(DIR, dir)
        .env(FIRST, first.to_string())
        .env(SEED, seed.to_string());
    command.env_remove(PLAN);
    if let Some(plan) = plan {
        command.env(PLAN, plan.to_string());
    }
    let spawning = SPAWNING.lock();
    let mut child = Reaped(command.spawn().unwrap());
    let mut said = BufReader::new(child.0.stdout.take().unwrap()).lines();
    // The first line is the test harness's: by now the child holds no file of the parent.
    said.next().unwrap().unwrap();
    drop(spawning);
    let mut lines: Vec<Line> = Vec::new();
    let mut until_kill = None;
    for text in said {
        let text = text.unwrap();
        let Some(line) = text.strip_prefix(MARK) else { continue };
        let line: Line = line.parse().unwrap();
        if let Some(Plan {
            phase,
            how: How::Lines,
            count,
        }) = plan
            && line == Line::Phase(phase)
        {
            until_kill = Some(count);
        }
        lines.push(line);
        match until_kill {
            Some(0) => {
                // It goes on meanwhile, and what it says until it dies counts.
                child.0.kill().unwrap();
                until_kill = None;
            }
            Some(count) => until_kill = Some(count - 1),
            None => {}
        }
    }
    let status = child.0.wait().unwrap();
    let ended = status.success() == (lines.last() == Some(&Line::Done));
    let signals = [Signal::KILL, Signal::XFSZ].map(|signal| Some(signal.as_raw()));
    let killed = signals.contains(&status.signal());
    assert!(
        status.success() && ended || killed && plan.is_some(),
        "a child failed: {status}"
    );
    Told { status, lines }
}

/// How far each phase goes without a kill.
type Extents = BTreeMap<(Start, Phase), BTreeMap<How, u64>>;

fn measure(starts: &[Start]) -> Extents {
    let mut extents = Extents::new();
    for &start in starts {
        let dir = tempfile::tempdir().unwrap();
        start.make(dir.path());
        for first in [Phase::Migrate, Phase::Recover] {
            let told = run_child(dir.path(), first, None, 1);
            let mut lines = 0;
            for line in &told.lines {
                lines += 1;
                match line {
                    Line::Phase(_) => lines = 0,
                    Line::Ended(phase, steps, micros, bytes) => {
                        let hows = [
                            (How::Steps, *steps),
                            (How::Lines, lines),
                            (How::Micros, *micros),
                            (How::Bytes, *bytes),
                        ];
                        extents.entry((start, *phase)).or_insert_with(|| hows.into());
                    }
                    _ => {}
                }
            }
        }
    }
    extents
}

/// How many children died, by phase and by how.
#[derive(Default)]
struct Tally {
    kills: Mutex<BTreeMap<(Phase, How), u64>>,
    /// Children that were through before they could be killed.
    missed: AtomicU64,
}

struct Case<'a> {
    number: u64,
    random: StdRng,
    start: Start,
    plans: Vec<Plan>,
    phase: Phase,
    how: How,
    extents: &'a Extents,
    tally: &'a Tally,
}

impl<'a> Case<'a> {
    fn new(number: u64, starts: &[Start], extents: &'a Extents, tally: &'a Tally) -> Self {
        let mut random = StdRng::seed_from_u64(number);
        let place = |number: u64, len: usize| usize::try_from(number % len as u64).unwrap();
        Self {
            number,
            start: *starts.choose(&mut random).unwrap(),
            random,
            plans: Vec::new(),
            phase: PHASES[place(number, PHASES.len())],
            how: HOWS[place(number / PHASES.len() as u64, HOWS.len())],
            extents,
            tally,
        }
    }

    fn plan(&mut self, phase: Phase, how: How) -> Plan {
        let extent = self.extents[&(self.start, phase)][&how];
        let extent = if how == How::Bytes {
            extent.max(BYTES_MIN)
        } else {
            extent
        };
        let count = self.random.random_range(0..extent);
        Plan { phase, how, count }
    }

    /// Runs a child that is to die; what it said is known.
    fn kill(&mut self, dir: &Path, first: Phase, plan: Plan, known: &mut Known) {
        self.plans.push(plan);
        let told = run_child(dir, first, Some(plan), self.random.random_range(0..1 << 40));
        for line in &told.lines {
            known.hear(line);
        }
        match (told.status.success(), known.phase) {
            (false, Some(phase)) => *self.tally.kills.lock().unwrap().entry((phase, plan.how)).or_default() += 1,
            _ => _ = self.tally.missed.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn run(&mut self) {
        let dir = tempfile::tempdir().unwrap();
        self.start.make(dir.path());
        let mut known = self.start.known();
        let mut first = Phase::Migrate;
        if self.phase == Phase::Recover {
            // Somewhere, so that there is something to recover; and then while it recovers.
            let before = *Phase::ALL[2..].choose(&mut self.random).unwrap();
            let plan = self.plan(before, How::Steps);
            self.kill(dir.path(), Phase::Migrate, plan, &mut known);
            first = Phase::Recover;
        }
        let plan = self.plan(self.phase, self.how);
        self.kill(dir.path(), first, plan, &mut known);
        let mut story = Story::new(dir.path(), self.random.random_range(0..1 << 40), known);
        let closing = self.random.random();
        block_on(async {
            story.check(closing).await;
            story.tell(Phase::Recover).await;
            let all: BTreeSet<usize> = (0..story.contents.len()).collect();
            assert_eq!(story.known.published, all);
            story.check(true).await;
        });
    }
}

fn run(mut case: Case<'_>) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case.run()));
    if let Err(panic) = outcome {
        eprintln!(
            "failed with case {}: {:?} from {:?}",
            case.number, case.plans, case.start
        );
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_store_keeps_its_promises_through_kill_9() {
    if env::var_os(DIR).is_some() {
        be_a_child();
    }
    let starts = Start::all();
    let extents = measure(&starts);
    let tally = Tally::default();
    let case = |number| Case::new(number, &starts, &extents, &tally);
    // One case: STORE_KILL_CASE=N cargo test -p piecemeal-store --test kill
    if let Ok(only) = env::var("STORE_KILL_CASE") {
        return run(case(only.parse().unwrap()));
    }
    thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                (0..CASES)
                    .filter(|number| number % THREADS == thread)
                    .for_each(|number| run(case(number)))
            });
        }
    });
    let kills = tally.kills.into_inner().unwrap();
    let total = |by: &[How]| -> u64 {
        kills
            .iter()
            .filter(|((_, how), _)| by.contains(how))
            .map(|(_, kills)| kills)
            .sum()
    };
    let by_sigkill = total(&[How::Steps, How::Lines, How::Micros]);
    let (all, missed) = (total(&How::ALL), tally.missed.into_inner());
    println!("{all} kills, {by_sigkill} by SIGKILL; {missed} children were through before");
    for phase in Phase::ALL {
        let by_how = How::ALL.map(|how| (how, kills.get(&(phase, how)).copied().unwrap_or(0)));
        println!(
            "{phase}: {} of {by_how:?}",
            by_how.iter().map(|(_, kills)| kills).sum::<u64>()
        );
        assert!(by_how.iter().any(|(_, kills)| *kills > 0), "none in {phase}");
    }
    assert!(by_sigkill >= KILLS_MIN);
}

#[test]
fn every_schema_but_the_newest_has_its_dump() {
    let versions: Vec<i64> = old::versions().collect();
    let wanted: Vec<i64> = (1..latest_version().max(2)).collect();
    assert_eq!(
        versions[..wanted.len().min(versions.len())],
        wanted,
        "see tests/support/old.rs"
    );
    assert_eq!(PIECE_BYTES, 4096, "as in the dumps");
}
