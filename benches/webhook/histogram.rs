//! A histogram in Prometheus's text, between two moments.

use std::fmt;

/// How many samples do not exceed each bound, in the order of the bounds.
#[derive(Clone, Debug)]
pub(crate) struct Histogram(Vec<(f64, u64)>);

impl Histogram {
    /// `of`: what the labels of the lines that count contain; empty for all. Several lines of a bound are added up.
    pub(crate) fn read(text: &str, name: &str, of: &str) -> Self {
        let mut bounds: Vec<(f64, u64)> = Vec::new();
        let prefix = format!("{name}_bucket{{");
        let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
        for (labels, count) in lines.filter_map(|line| line.rsplit_once("} ")) {
            let bound = labels.split_once("le=\"").and_then(|(_, rest)| rest.split_once('"'));
            let bound = bound.and_then(|(bound, _)| bound.parse().ok());
            if let (Some(bound), Ok(count), true) = (bound, count.trim().parse::<u64>(), labels.contains(of)) {
                match bounds.iter_mut().find(|(known, _)| *known == bound) {
                    Some((_, sum)) => *sum += count,
                    None => bounds.push((bound, count)),
                }
            }
        }
        Self(bounds)
    }

    /// What has come since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let grown = |&(bound, count): &(f64, u64)| (bound, count - before.within(bound));
        Self(self.0.iter().map(grown).collect())
    }

    /// The share of the samples that do not exceed `bound`, which is one of the histogram's own.
    pub(crate) fn share_within(&self, bound: f64) -> f64 {
        self.within(bound) as f64 / self.within(f64::INFINITY).max(1) as f64
    }

    fn within(&self, bound: f64) -> u64 {
        let found = self.0.iter().find(|(known, _)| *known == bound);
        found.map_or(0, |(_, count)| *count)
    }
}

/// `600 samples; ≤ 5 ms: 99.1 %, …`, up to the bound that all keep.
impl fmt::Display for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.within(f64::INFINITY);
        write!(f, "{all} samples")?;
        for (number, &(bound, within)) in self.0.iter().filter(|(bound, _)| bound.is_finite()).enumerate() {
            let comma = if number == 0 { ';' } else { ',' };
            write!(
                f,
                "{comma} ≤ {} ms: {:.1} %",
                bound * 1e3,
                100.0 * self.share_within(bound)
            )?;
            if within == all {
                break;
            }
        }
        Ok(())
    }
}
