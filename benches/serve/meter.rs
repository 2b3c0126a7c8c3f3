//! Measurements of processes and of the machine, and how samples are summarised.

use std::{fs, thread, time::Duration};

use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// Processor seconds, the kernel's included, that these processes have used so far with all of their threads. Comes in steps
/// of 10 ms, so what is measured has to take much longer.
pub(crate) fn cpu_seconds(pids: &[u32]) -> f64 {
    let ticks: u64 = pids.iter().map(|pid| cpu_ticks(*pid)).sum();
    ticks as f64 / TICKS_PER_SECOND
}

fn cpu_ticks(pid: u32) -> u64 {
    let stat = read(&format!("/proc/{pid}/stat"));
    // The name before it may hold anything, spaces and brackets too.
    let (_, fields) = stat.rsplit_once(')').expect("a process has a name in brackets");
    let numbers = fields.split_whitespace().skip(UTIME_FIELD).take(2);
    numbers
        .map(|number| number.parse::<u64>().expect("utime and stime are numbers"))
        .sum()
}

/// A size in /proc/PID/status, such as `VmRSS`, in MiB.
pub(crate) fn memory_mib(pid: u32, field: &str) -> f64 {
    let status = read(&format!("/proc/{pid}/status"));
    let kib = status.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let number = value.trim().strip_suffix(" kB")?.parse::<u32>().ok();
        number.filter(|_| name == field)
    });
    f64::from(kib.unwrap_or_else(|| panic!("process {pid} has no {field}"))) / 1024.0
}

/// Lets `VmHWM` count from now on.
pub(crate) fn forget_peak_memory(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("resetting the peak of a process's memory");
}

/// Binds all threads of these processes, and those that they will start, to one core; to all of them again when dropped.
pub(crate) struct Pinned {
    pids: Vec<u32>,
    before: CpuSet,
}

impl Pinned {
    pub(crate) fn new(pids: &[u32], core: usize) -> Self {
        let before = sched_getaffinity(None).expect("asking for one's own cores");
        let mut one = CpuSet::new();
        one.set(core);
        let pinned = Self {
            pids: pids.to_vec(),
            before,
        };
        pinned.bind(&one);
        pinned
    }

    fn bind(&self, cores: &CpuSet) {
        for pid in &self.pids {
            let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
                continue;
            };
            for thread in threads.flatten() {
                let id = thread
                    .file_name()
                    .to_str()
                    .and_then(|id| Pid::from_raw(id.parse().ok()?));
                // A thread may have ended meanwhile.
                let _ = sched_setaffinity(id, cores);
            }
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.bind(&self.before);
    }
}

/// Processor, memory and kernel in one line.
pub(crate) fn machine() -> String {
    let (cpuinfo, meminfo) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let value = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).map(str::to_owned);
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
    };
    let kib = value(&meminfo, "MemTotal").and_then(|total| total.split(' ').next()?.parse::<f64>().ok());
    format!(
        "{} × {}, {:.0} GiB, Linux {}",
        cores(),
        value(&cpuinfo, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        kib.expect("a machine has memory") / f64::from(1 << 20),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Says how much of the machine others use, before the bench or after it.
pub(crate) fn print_busy(when: &str) {
    let busy = busy_with_others();
    let comment = if busy > BUSY_MAX { ": too busy to count" } else { "" };
    println!(
        "Processor in use by others {when} the bench: {:.0} %{comment}.\n",
        busy * 100.0
    );
}

/// The share of the machine's processor time that is in use during the next second, while the bench itself does nothing.
fn busy_with_others() -> f64 {
    let before = machine_ticks();
    thread::sleep(Duration::from_secs(1));
    let after = machine_ticks();
    (after.0 - before.0) as f64 / (after.1 - before.1).max(1) as f64
}

/// Busy, and all.
fn machine_ticks() -> (u64, u64) {
    let stat = read("/proc/stat");
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    // The guests' time, at the end, is the user's once more.
    let all: u64 = ticks.iter().take(8).sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    (all - idle, all)
}

pub(crate) fn median(samples: impl IntoIterator<Item = f64>) -> f64 {
    quantile(samples, 0.5)
}

/// The sample that this share of them does not exceed.
pub(crate) fn quantile(samples: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut samples: Vec<f64> = samples.into_iter().collect();
    samples.sort_by(f64::total_cmp);
    assert!(!samples.is_empty(), "nothing was measured");
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the place of a sample"
    )]
    let place = (share * samples.len() as f64).ceil() as usize;
    samples[place.clamp(1, samples.len()) - 1]
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("reading {path}: {error}"))
}

/// The unit of /proc for programs, whatever the kernel itself counts in.
const TICKS_PER_SECOND: f64 = 100.0;
/// Of those after the name: proc(5) calls it the 14th.
const UTIME_FIELD: usize = 11;
/// Above this share the figures reflect the machine's other work more than the measured one.
const BUSY_MAX: f64 = 0.1;
