//! A histogram in Prometheus's text, between two moments.

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

    /// The shares of the samples since `before`, as `≤ 5 ms: 99.1 %`.
    pub(crate) fn since(&self, before: &Self) -> String {
        let count = |bounds: &[(f64, u64)], bound: f64| {
            let found = bounds.iter().find(|(known, _)| *known == bound);
            found.map_or(0, |(_, count)| *count)
        };
        let grown = |bound| count(&self.0, bound) - count(&before.0, bound);
        let all = grown(f64::INFINITY).max(1);
        let mut shares = Vec::new();
        for &(bound, _) in self.0.iter().filter(|(bound, _)| bound.is_finite()) {
            let within = grown(bound);
            shares.push(format!(
                "≤ {} ms: {:.1} %",
                bound * 1e3,
                100.0 * within as f64 / all as f64
            ));
            if within == all {
                break;
            }
        }
        format!("{} samples; {}", grown(f64::INFINITY), shares.join(", "))
    }
}
