//! Metrics of the webhook, as `piecemeal_webhook_…`.
//!
//! Invariant: labels have fixed values only, and failures count from zero on, so that the first one shows as a rise.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::decide::skip::Skip;

type Label = [(&'static str, &'static str); 1];

/// Handles to the counters: clones count into the same ones.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    reviews: Family<Label, Counter>,
    skips: Family<Label, Counter>,
    review_seconds: Histogram,
    secret_writes: Family<Label, Counter>,
    pub secret_lag_seconds: Gauge,
    pub events_dropped: Counter,
    pub leader: Gauge,
    pub certificate_expiry: Gauge,
    pub ca_expiry: Gauge,
}

/// One write of a copy, by its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyWrite {
    Created,
    Updated,
    Deleted,
    /// A foreign Secret had the usual name.
    Conflict,
    Failed,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            reviews: Family::default(),
            skips: Family::default(),
            review_seconds: Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0]),
            secret_writes: Family::default(),
            secret_lag_seconds: Gauge::default(),
            events_dropped: Counter::default(),
            leader: Gauge::default(),
            certificate_expiry: Gauge::default(),
            ca_expiry: Gauge::default(),
        }
    }

    pub(crate) fn reviewed(&self, outcome: Result<(), &Skip>, took: Duration) {
        self.review_seconds.observe(took.as_secs_f64());
        let result = match outcome {
            Ok(()) => "mutated",
            Err(Skip::Internal(_)) => "failed",
            Err(_) => "skipped",
        };
        self.reviews.get_or_create(&[("result", result)]).inc();
        if let Err(skip) = outcome {
            self.skips.get_or_create(&[("reason", skip.reason())]).inc();
        }
    }

    pub(crate) fn count_write(&self, write: CopyWrite) {
        let result = match write {
            CopyWrite::Created => "created",
            CopyWrite::Updated => "updated",
            CopyWrite::Deleted => "deleted",
            CopyWrite::Conflict => "conflict",
            CopyWrite::Failed => "failed",
        };
        self.secret_writes.get_or_create(&[("result", result)]).inc();
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        // From zero on, so that the first failure shows as a rise.
        for result in ["mutated", "skipped", "failed"] {
            self.reviews.get_or_create(&[("result", result)]).inc_by(0);
        }
        self.skips.get_or_create(&[("reason", "Internal")]).inc_by(0);
        self.secret_writes.get_or_create(&[("result", "failed")]).inc_by(0);
        let registry = registry.sub_registry_with_prefix("piecemeal_webhook");
        registry.register(
            "reviews",
            "Pods that the API server sent for review, by result",
            self.reviews.clone(),
        );
        registry.register("skips", "Pods that stayed unchanged, by reason", self.skips.clone());
        registry.register(
            "review_seconds",
            "Time from a review's request to its answer",
            self.review_seconds.clone(),
        );
        registry.register(
            "secret_writes",
            "Writes of pull secrets' copies, by result",
            self.secret_writes.clone(),
        );
        registry.register(
            "secret_lag_seconds",
            "How long the oldest change that may concern a copy has waited to be processed",
            self.secret_lag_seconds.clone(),
        );
        registry.register(
            "events_dropped",
            "Events that were dropped because too many were waiting",
            self.events_dropped.clone(),
        );
        registry.register(
            "leader",
            "1 at the replica that maintains copies and certificates",
            self.leader.clone(),
        );
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "Expiry of the webhook's certificate, in seconds since 1970",
            self.certificate_expiry.clone(),
        );
        registry.register(
            "ca_expiry_timestamp_seconds",
            "Expiry of the CA that signs it, in seconds since 1970; 0 if the webhook has no CA of its own",
            self.ca_expiry.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn the_documented_metrics_are_those_that_the_webhook_has() {
        let mut registry = Registry::default();
        Metrics::new().register(&mut registry);
        let mut exposition = String::new();
        encode(&mut exposition, &registry).unwrap();
        let types = exposition
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let exposed: BTreeSet<String> = types
            .map(|(name, kind)| {
                if kind == "counter" {
                    format!("{name}_total")
                } else {
                    name.to_owned()
                }
            })
            .collect();

        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md")).unwrap();
        let rows = text
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        let documented = rows
            .map(|(name, _)| name.to_owned())
            .filter(|name| name.starts_with("piecemeal_webhook_"));
        assert_eq!(exposed, documented.collect());
    }
}
