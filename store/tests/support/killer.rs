//! A process that kills itself where it is told to.
//!
//! The production code does not know of it: every call of the file layer and every reading of the clock is a step that can be
//! the last one, and a write is cut in half. A write transaction of the index reads the clock right before it begins, and the
//! task that waits for it goes on with the next step, so that processes die before and after transactions. Within one, the
//! system kills them: a limit on the size of files ends the process at any byte of what SQLite appends to its log, with a signal
//! that nothing catches (SIGXFSZ). That, too, leaves no chance to clean up.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use piecemeal_store::{Clock, DiskFiles, FileEntry, Files, OpenFile};
use rustix::process::{Resource, Rlimit, Signal, getpid, getrlimit, kill_process, setrlimit};

/// The parts of the story.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// The first opening of a folder that is empty or of an older schema.
    Migrate,
    /// The first opening of a folder that was killed before.
    Recover,
    Fill,
    Publish,
    Evict,
    Remove,
    Restart,
    Finish,
}

impl Phase {
    pub(crate) const ALL: [Self; 8] = [
        Self::Migrate,
        Self::Recover,
        Self::Fill,
        Self::Publish,
        Self::Evict,
        Self::Remove,
        Self::Restart,
        Self::Finish,
    ];
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for Phase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|phase| phase.to_string() == text);
        found.ok_or_else(|| format!("{text} is no phase"))
    }
}

/// Count that ends the process, from the beginning of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum How {
    /// So many calls of the file layer and looks at the clock.
    Steps,
    /// So many lines; the parent kills.
    Lines,
    /// So many microseconds.
    Micros,
    /// So many bytes beyond what SQLite's files have by then.
    Bytes,
}

impl How {
    pub(crate) const ALL: [Self; 4] = [Self::Steps, Self::Lines, Self::Micros, Self::Bytes];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) phase: Phase,
    pub(crate) how: How,
    pub(crate) count: u64,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {}", self.phase, self.how, self.count)
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(' ');
        let mut word = || words.next().ok_or_else(|| format!("{text} is no plan"));
        let (phase, how, count) = (word()?.parse()?, word()?, word()?);
        let how = How::ALL.into_iter().find(|known| format!("{known:?}") == how);
        Ok(Self {
            phase,
            how: how.ok_or_else(|| format!("{text} is no plan"))?,
            count: count.parse().map_err(|_| format!("{text} is no plan"))?,
        })
    }
}

/// The counts of each kind in a phase that ran to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) steps: u64,
    pub(crate) micros: u64,
    pub(crate) bytes: u64,
}

/// Counts, and kills.
pub(crate) struct Killer {
    plan: Option<Plan>,
    dir: PathBuf,
    /// The place of the phase in [`Phase::ALL`].
    phase: AtomicUsize,
    steps: AtomicU64,
}

/// When a phase began.
pub(crate) struct Begun {
    at: Instant,
    file_bytes: u64,
}

impl Killer {
    /// For a store in `dir`. Without a plan it only counts.
    pub(crate) fn new(dir: &Path, plan: Option<Plan>) -> Arc<Self> {
        if plan.is_some() {
            // A process that the system ends for its files' size would leave its memory behind.
            limit(Resource::Core, 0);
        }
        Arc::new(Self {
            plan,
            dir: dir.to_owned(),
            phase: AtomicUsize::new(0),
            steps: AtomicU64::new(0),
        })
    }

    pub(crate) fn begin(&self, phase: Phase) -> Begun {
        let place = Phase::ALL.iter().position(|known| *known == phase).unwrap();
        self.phase.store(place, Ordering::SeqCst);
        self.steps.store(0, Ordering::SeqCst);
        let file_bytes = self.file_bytes();
        match self.plan.filter(|plan| plan.phase == phase) {
            Some(Plan {
                how: How::Micros,
                count,
                ..
            }) => {
                thread::spawn(move || {
                    let end = Instant::now() + Duration::from_micros(count);
                    while Instant::now() < end {
                        thread::yield_now();
                    }
                    die();
                });
            }
            Some(Plan {
                how: How::Bytes, count, ..
            }) => limit(Resource::Fsize, file_bytes + count),
            _ => {}
        }
        Begun {
            at: Instant::now(),
            file_bytes,
        }
    }

    pub(crate) fn end(&self, begun: &Begun) -> Extent {
        Extent {
            steps: self.steps.load(Ordering::SeqCst),
            micros: u64::try_from(begun.at.elapsed().as_micros()).unwrap(),
            bytes: self.file_bytes().saturating_sub(begun.file_bytes),
        }
    }

    /// The longest file that the phase may write without being noticed: SQLite's log, or its shared memory, or a blob.
    fn file_bytes(&self) -> u64 {
        let log = fs::metadata(self.dir.join("index.db-wal"));
        log.map_or(0, |log| log.len()).max(SHARED_MEMORY_BYTES)
    }

    /// Whether this step is the last one.
    fn is_last(&self) -> bool {
        let step = self.steps.fetch_add(1, Ordering::SeqCst);
        let phase = Phase::ALL[self.phase.load(Ordering::SeqCst)];
        self.plan
            == Some(Plan {
                phase,
                how: How::Steps,
                count: step,
            })
    }

    fn step(&self) {
        if self.is_last() {
            die();
        }
    }
}

/// SQLite makes it before it writes anything; no blob of the story is longer.
const SHARED_MEMORY_BYTES: u64 = 32 * 1024;

fn limit(resource: Resource, bytes: u64) {
    let Rlimit { maximum, .. } = getrlimit(resource);
    let current = Some(maximum.map_or(bytes, |maximum| bytes.min(maximum)));
    setrlimit(resource, Rlimit { current, maximum }).unwrap();
}

fn die() -> ! {
    kill_process(getpid(), Signal::KILL).unwrap();
    unreachable!("no process survives SIGKILL");
}

/// The operating system's files, up to the last step.
#[derive(Clone)]
pub(crate) struct KilledFiles(pub(crate) Arc<Killer>);

impl KilledFiles {
    fn file(&self, file: Arc<dyn OpenFile>) -> Arc<dyn OpenFile> {
        Arc::new(KilledFile {
            killer: Arc::clone(&self.0),
            file,
        })
    }
}

impl Files for KilledFiles {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn OpenFile>> {
        self.0.step();
        DiskFiles.open(path).map(|file| self.file(file))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn OpenFile>> {
        self.0.step();
        DiskFiles.create(path).map(|file| self.file(file))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.step();
        DiskFiles.create_dir(path)
    }

    /// Does nothing: what a process wrote survives its death without.
    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        self.0.step();
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.step();
        DiskFiles.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.step();
        DiskFiles.remove(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<FileEntry>> {
        self.0.step();
        DiskFiles.list(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.0.step();
        DiskFiles.free_bytes(path)
    }
}

struct KilledFile {
    killer: Arc<Killer>,
    file: Arc<dyn OpenFile>,
}

impl OpenFile for KilledFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.killer.step();
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        if self.killer.is_last() {
            let _ = self.file.write_at(&bytes[..bytes.len() / 2], offset);
            die();
        }
        self.file.write_at(bytes, offset)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.killer.step();
        self.file.set_len(bytes)
    }

    /// Does nothing, as [`KilledFiles::sync_dir`].
    fn sync(&self) -> io::Result<()> {
        self.killer.step();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.killer.step();
        self.file.len()
    }
}

/// Another clock, up to the last step.
pub(crate) struct KilledClock {
    pub(crate) killer: Arc<Killer>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Clock for KilledClock {
    fn monotonic(&self) -> Duration {
        self.killer.step();
        self.clock.monotonic()
    }

    fn wall(&self) -> SystemTime {
        self.killer.step();
        self.clock.wall()
    }
}
