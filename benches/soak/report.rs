//! The tables, and how a memory figure is judged.

use std::time::Duration;

use crate::watched::{DAMAGED, EVICTED, FAILED, KEPT, PASSED, Sample, UPSTREAM_BYTES, Watched};

/// The first minutes of a daemon's life, in which caches fill and pools grow.
const WARM_UP: Duration = Duration::from_secs(180);
/// The shortest life over which a slope is meaningful.
const LIFE_MIN: Duration = Duration::from_secs(120);
/// A minute.
const RSS_KIB_NOTICEABLE: f64 = 64.0;
const DESCRIPTORS_NOTICEABLE: f64 = 0.2;

pub(crate) fn print_table(daemons: &[Watched], slice: Duration) {
    println!("RSS in MiB and descriptors: first/median/last/max of each slice; threads: max");
    println!(
        "{:<10} {:>11}  {:<29} {:<21} threads",
        "daemon", "minutes", "RSS", "descriptors"
    );
    for watched in daemons {
        let slices = watched.samples.chunk_by(|a, b| number(a, slice) == number(b, slice));
        for samples in slices {
            let from = slice.as_secs_f64() / 60.0 * f64::from(number(&samples[0], slice));
            let mib = |samples: &[Sample]| figures(samples, |sample| sample.rss_kib as f64 / 1024.0, 1);
            println!(
                "{:<10} {:>5.1}-{:<5.1}  {:<29} {:<21} {}",
                watched.name,
                from,
                from + slice.as_secs_f64() / 60.0,
                mib(samples),
                figures(samples, |sample| sample.descriptors as f64, 0),
                samples.iter().map(|sample| sample.threads).max().unwrap_or_default()
            );
        }
    }
}

fn number(sample: &Sample, slice: Duration) -> u32 {
    u32::try_from(sample.at.as_millis() / slice.as_millis()).unwrap_or(u32::MAX)
}

fn figures(samples: &[Sample], of: impl Fn(&Sample) -> f64, decimals: usize) -> String {
    let values: Vec<f64> = samples.iter().map(of).collect();
    let mut sorted = values.clone();
    sorted.sort_by(f64::total_cmp);
    let all = [
        values[0],
        sorted[sorted.len() / 2],
        values[values.len() - 1],
        sorted[sorted.len() - 1],
    ];
    all.map(|value| format!("{value:.decimals$}")).join(" / ")
}

/// Slopes over the present life of each daemon, without its first minutes; returns those that grew.
pub(crate) fn print_slopes(daemons: &[Watched], never_ended: &[&str], end: Duration) -> Vec<&'static str> {
    let mut grew = Vec::new();
    println!(
        "slopes by least squares over the last life, without its first {} s",
        WARM_UP.as_secs()
    );
    for watched in daemons {
        let life = end.saturating_sub(watched.born);
        let from = watched.born + WARM_UP;
        let samples: Vec<&Sample> = watched.samples.iter().filter(|sample| sample.at >= from).collect();
        let kind = if never_ended.contains(&watched.name) {
            "never ended"
        } else {
            "last life"
        };
        if life < WARM_UP + LIFE_MIN {
            println!("  {:<10} {kind}, {} s: too short", watched.name, life.as_secs());
            continue;
        }
        let points = |of: fn(&Sample) -> u64| samples.iter().map(|sample| (sample.at, of(sample) as f64)).collect();
        let rss = Slope::of(points(|sample| sample.rss_kib));
        let descriptors = Slope::of(points(|sample| sample.descriptors));
        if rss.grows(RSS_KIB_NOTICEABLE) || descriptors.grows(DESCRIPTORS_NOTICEABLE) {
            grew.push(watched.name);
        }
        println!(
            "  {:<10} {kind}, {} s: RSS {:+.0} KiB/min (error {:.0}): {}; descriptors {:+.2}/min (error {:.2}): {}",
            watched.name,
            life.as_secs(),
            rss.per_minute,
            rss.error,
            rss.in_words(RSS_KIB_NOTICEABLE),
            descriptors.per_minute,
            descriptors.error,
            descriptors.in_words(DESCRIPTORS_NOTICEABLE)
        );
    }
    grew
}

/// What a minute adds, by least squares, and the standard error of that.
struct Slope {
    per_minute: f64,
    error: f64,
}

impl Slope {
    fn of(points: Vec<(Duration, f64)>) -> Self {
        let points: Vec<(f64, f64)> = points
            .into_iter()
            .map(|(at, value)| (at.as_secs_f64() / 60.0, value))
            .collect();
        let count = points.len() as f64;
        let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
        let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
        let covariance: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
        let variance: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
        let per_minute = covariance / variance;
        let misses = points
            .iter()
            .map(|(x, y)| (y - mean_y - per_minute * (x - mean_x)).powi(2));
        let error = (misses.sum::<f64>() / (count - 2.0) / variance).sqrt();
        Self { per_minute, error }
    }

    /// Above `noticeable` by more than chance explains, or not.
    fn grows(&self, noticeable: f64) -> bool {
        self.per_minute - 2.0 * self.error > noticeable
    }

    fn in_words(&self, noticeable: f64) -> &'static str {
        if self.grows(noticeable) { "GROWS" } else { "flat" }
    }
}

pub(crate) fn print_counters(daemons: &[Watched]) {
    println!(
        "{:<10} {:>5} {:>8} {:>8} {:>8} {:>8} {:>8} {:>12} {:>14}",
        "daemon", "lives", "evicted", "kept", "passed", "failed", "damaged", "upstream MiB", "disk/quota MiB"
    );
    for watched in daemons {
        let mib = |bytes: u64| bytes >> 20;
        println!(
            "{:<10} {:>5} {:>8} {:>8} {:>8} {:>8} {:>8} {:>12.0} {:>14}",
            watched.name,
            watched.lives,
            watched.counted(EVICTED),
            watched.counted(KEPT),
            watched.counted(PASSED),
            watched.counted(FAILED),
            watched.counted(DAMAGED),
            watched.counted(UPSTREAM_BYTES) / f64::from(1 << 20),
            watched.quota_bytes.map_or_else(String::new, |quota| {
                format!("{}/{}", mib(watched.disk_bytes_max), mib(quota))
            })
        );
    }
}

/// What the log said, most often first, and only the most frequent.
pub(crate) fn print_complaints(watched: &Watched) {
    const SHOWN: usize = 15;
    let (_, complaints) = watched.read_log();
    let mut complaints: Vec<(String, usize)> = complaints.into_iter().collect();
    complaints.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (text, count) in complaints.iter().take(SHOWN) {
        println!("  {count:6} {}: {text}", watched.name);
    }
    if complaints.len() > SHOWN {
        println!(
            "         {}: and {} other sentences",
            watched.name,
            complaints.len() - SHOWN
        );
    }
}
