//! A daemon under observation: its resources, its metrics, and the files that it leaves behind.

use std::{
    collections::BTreeMap,
    fs, io,
    ops::DerefMut,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use crate::support::Daemon;

/// Counted by the daemons themselves, summed over their lives.
const COUNTERS: [&str; 9] = [
    EVICTED,
    KEPT,
    PASSED,
    FAILED,
    DAMAGED,
    UPSTREAM_BYTES,
    r#"piecemeal_blob_bytes_total{from="mirror",to="store"}"#,
    r#"piecemeal_blob_bytes_total{from="peer",to="store"}"#,
    r#"piecemeal_scheduler_brain_restarts_total"#,
];
pub(crate) const EVICTED: &str = "piecemeal_store_evicted_blobs_total";
pub(crate) const KEPT: &str = r#"piecemeal_transfers_total{outcome="kept"}"#;
pub(crate) const PASSED: &str = r#"piecemeal_transfers_total{outcome="passed"}"#;
pub(crate) const FAILED: &str = r#"piecemeal_transfers_total{outcome="failed"}"#;
pub(crate) const DAMAGED: &str = "piecemeal_damaged_blobs_total";
pub(crate) const UPSTREAM_BYTES: &str = r#"piecemeal_blob_bytes_total{from="upstream",to="store"}"#;
pub(crate) const BRAIN_RESTARTS: &str = "piecemeal_scheduler_brain_restarts_total";
const UNDER_WAY: &str = "piecemeal_transfers_under_way";
/// A walk through a folder is no snapshot: a blob that goes while another comes may be counted with it.
const WALKS_MAX: usize = 20;

pub(crate) struct Watched {
    pub(crate) name: &'static str,
    pub(crate) daemon: Box<dyn DerefMut<Target = Daemon>>,
    /// `None` for one that keeps nothing.
    pub(crate) quota_bytes: Option<u64>,
    pub(crate) samples: Vec<Sample>,
    /// Of earlier lives, and of this one.
    counters: BTreeMap<&'static str, (f64, f64)>,
    /// When this life began.
    pub(crate) born: Duration,
    pub(crate) lives: usize,
    pub(crate) disk_bytes_max: u64,
}

/// What a daemon uses at one moment of the run.
pub(crate) struct Sample {
    pub(crate) at: Duration,
    pub(crate) rss_kib: u64,
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
}

/// What lies in a store's folder.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Folder {
    pub(crate) blobs: u64,
    pub(crate) blob_bytes: u64,
    pub(crate) partials: u64,
    /// Of blobs and partials, written or not: a partial is sparse.
    written_bytes: u64,
}

impl Watched {
    pub(crate) fn new(
        name: &'static str,
        daemon: Box<dyn DerefMut<Target = Daemon>>,
        quota_bytes: Option<u64>,
    ) -> Self {
        Self {
            name,
            daemon,
            quota_bytes,
            samples: Vec::new(),
            counters: BTreeMap::new(),
            born: Duration::ZERO,
            lives: 1,
            disk_bytes_max: 0,
        }
    }

    /// Looks at a daemon that runs; what is amiss is returned.
    pub(crate) fn sample(&mut self, at: Duration) -> Vec<String> {
        let mut amiss = Vec::new();
        match usage(self.daemon.pid(), at) {
            Ok(sample) => self.samples.push(sample),
            Err(error) => amiss.push(format!("{}: cannot be looked at: {error}", self.name)),
        }
        if let Err(error) = self.read_counters() {
            amiss.push(format!("{}: its metrics cannot be read: {error}", self.name));
        }
        amiss.extend(self.check_disk());
        amiss
    }

    /// Reads what it has counted so far in this life.
    fn read_counters(&mut self) -> io::Result<()> {
        let metrics = self.metrics()?;
        for name in COUNTERS {
            let (_, now) = self.counters.entry(name).or_default();
            *now = metric(&metrics, name).unwrap_or_default();
        }
        Ok(())
    }

    /// To be called after a last look at this life.
    pub(crate) fn begin_life(&mut self, at: Duration) {
        for (before, now) in self.counters.values_mut() {
            *before += std::mem::take(now);
        }
        self.born = at;
        self.lives += 1;
    }

    /// A count over all lives; what came between the last look and a kill is lost.
    pub(crate) fn counted(&self, name: &str) -> f64 {
        self.counters.get(name).map_or(0.0, |(before, now)| before + now)
    }

    fn metrics(&self) -> io::Result<String> {
        Ok(self.daemon.try_admin("/metrics")?.text())
    }

    /// Waits until nothing is on its way to it.
    pub(crate) fn settle(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            let under_way = self.metrics().ok().and_then(|metrics| metric(&metrics, UNDER_WAY));
            if under_way.is_none_or(|count| count == 0.0) {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The quota, as the daemon's figures have it and as the disk has it.
    fn check_disk(&mut self) -> Option<String> {
        let quota_bytes = self.quota_bytes?;
        let metrics = self.metrics().ok()?;
        let counted: f64 = ["piecemeal_store_blob_bytes", "piecemeal_store_reserved_bytes"]
            .iter()
            .filter_map(|name| metric(&metrics, name))
            .sum();
        if counted > quota_bytes as f64 {
            return Some(format!(
                "{}: counts {counted} bytes over a quota of {quota_bytes}",
                self.name
            ));
        }
        let dir = self.daemon.cache_dir();
        let least = (0..WALKS_MAX)
            .map(|_| walk(&dir).written_bytes)
            .find(|&bytes| bytes <= quota_bytes);
        match least {
            Some(bytes) => {
                self.disk_bytes_max = self.disk_bytes_max.max(bytes);
                None
            }
            None => Some(format!(
                "{}: the disk holds more than the quota of {quota_bytes} bytes",
                self.name
            )),
        }
    }

    /// Stops it in good order, and compares what it leaves with what it had counted.
    pub(crate) fn stop(&mut self) -> Vec<String> {
        let mut amiss = Vec::new();
        let name = self.name;
        if !self.settle(Duration::from_secs(60)) {
            amiss.push(format!(
                "{name}: transfers are under way a minute after the last client"
            ));
        }
        let counted = self.metrics().ok().map(|metrics| {
            let count = |name| metric(&metrics, name).unwrap_or_default();
            [
                count("piecemeal_store_blobs"),
                count("piecemeal_store_blob_bytes"),
                count("piecemeal_store_partials"),
            ]
        });
        if let Ok(rest) = usage(self.daemon.pid(), Duration::ZERO) {
            println!(
                "{name}: at rest RSS {:.1} MiB, {} descriptors",
                rest.rss_kib as f64 / 1024.0,
                rest.descriptors
            );
        }
        let ended = self.daemon.terminate();
        if !ended.success() {
            amiss.push(format!("{name}: ended with {ended} after SIGTERM"));
        }
        if self.quota_bytes.is_some() {
            let dir = self.daemon.cache_dir();
            let left = walk(&dir);
            let found = [left.blobs, left.blob_bytes, left.partials].map(|count| count as f64);
            println!("{name}: left {left:?}");
            if counted != Some(found) {
                amiss.push(format!(
                    "{name}: blobs, bytes and partials left are {found:?}, counted were {counted:?}"
                ));
            }
            amiss.extend(strays(&dir).into_iter().map(|stray| format!("{name}: left {stray}")));
        }
        amiss
    }

    /// Panics in its log, and what it said at the levels of error and warning.
    pub(crate) fn read_log(&self) -> (Vec<String>, BTreeMap<String, usize>) {
        let log = self.daemon.log_text();
        let panics = log
            .lines()
            .filter(|line| line.contains("panicked at"))
            .map(|line| format!("{}: {line}", self.name))
            .collect();
        let mut complaints = BTreeMap::new();
        for line in log.lines() {
            if let Some((level, text)) = ["ERROR", "WARN"]
                .iter()
                .find_map(|level| Some((level, line.split_once(&format!(" {level} "))?.1)))
            {
                *complaints
                    .entry(format!("{level} {}", without_numbers(text)))
                    .or_default() += 1;
            }
        }
        (panics, complaints)
    }
}

/// Equal for lines that differ in digests, addresses and counts.
pub(crate) fn without_numbers(text: &str) -> String {
    let words = text.split_inclusive([' ', '/', ':', '=', ',', '"']).map(|word| {
        if word.bytes().any(|byte| byte.is_ascii_digit()) {
            let end = word.chars().last().filter(|end| !end.is_alphanumeric());
            format!("#{}", end.map_or_else(String::new, String::from))
        } else {
            word.to_owned()
        }
    });
    words.collect::<String>().chars().take(240).collect()
}

fn metric(metrics: &str, sample: &str) -> Option<f64> {
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.trim().parse().ok())
}

fn usage(pid: u32, at: Duration) -> io::Result<Sample> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name));
        let number = value.and_then(|value| value.split_whitespace().next()?.parse().ok());
        number.ok_or_else(|| io::Error::other(format!("no {name}")))
    };
    Ok(Sample {
        at,
        rss_kib: field("VmRSS:")?,
        threads: field("Threads:")?,
        descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64,
    })
}

/// Files go while this looks: those are not there.
fn walk(dir: &Path) -> Folder {
    let mut folder = Folder::default();
    for file in files_below(&dir.join("blobs")) {
        folder.blobs += 1;
        folder.blob_bytes += file.len();
        folder.written_bytes += file.len().min(file.blocks() * 512);
    }
    for file in files_below(&dir.join("partial")) {
        folder.partials += 1;
        folder.written_bytes += file.len().min(file.blocks() * 512);
    }
    folder
}

fn files_below(dir: &Path) -> Vec<fs::Metadata> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => files_below(&entry.path()),
            metadata => metadata.into_iter().collect(),
        })
        .collect()
}

/// Files that a closed store must not leave.
fn strays(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !matches!(name.as_str(), "lock" | "blobs" | "partial") && !name.starts_with("index.db"))
        .collect()
}
