//! Metrics of upstream requests: answers and latency.
//!
//! Invariant: labels are bounded: an upstream's name as it is configured, and a fixed set of answers.

use std::time::Duration;

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::PullError;

/// Counters of upstream requests by result. Cheap to clone.
#[derive(Clone)]
pub(crate) struct RequestMetrics {
    answers: Family<Labels, Counter>,
    seconds: Family<[(&'static str, String); 1], Histogram>,
    blob_requests: Family<[(&'static str, String); 1], Histogram>,
    surplus_bytes: Family<[(&'static str, String); 1], Counter>,
}

type Labels = [(&'static str, String); 2];

impl Default for RequestMetrics {
    fn default() -> Self {
        Self {
            answers: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15))),
            blob_requests: Family::new_with_constructor(|| Histogram::new(exponential_buckets(1.0, 2.0, 10))),
            surplus_bytes: Family::default(),
        }
    }
}

impl RequestMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("piecemeal_upstream");
        registry.register(
            "answers",
            "Answers of upstreams, by upstream and kind",
            self.answers.clone(),
        );
        registry.register_with_unit(
            "answer",
            "The time until an upstream's answer began",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register(
            "blob_requests",
            "Requests that one download of a blob made",
            self.blob_requests.clone(),
        );
        registry.register_with_unit(
            "surplus",
            "Bytes of bodies that came and were not needed",
            Unit::Bytes,
            self.surplus_bytes.clone(),
        );
    }

    pub(crate) fn note_blob_requests(&self, upstream: &str, requests: u32) {
        self.blob_requests
            .get_or_create(&[("upstream", upstream.to_owned())])
            .observe(requests.into());
        // From the first download on, so that a rate includes the first byte.
        self.note_surplus(upstream, 0);
    }

    pub(crate) fn note_surplus(&self, upstream: &str, bytes: u64) {
        self.surplus_bytes
            .get_or_create(&[("upstream", upstream.to_owned())])
            .inc_by(bytes);
    }

    /// `upstream`: as it is configured, so that a pattern is one label however many registries it stands for. `by_mirror`: the mirror
    /// has answered for it, whose failures are its own.
    pub(crate) fn note<T>(&self, upstream: &str, by_mirror: bool, took: Duration, result: &Result<T, PullError>) {
        let answer = match result {
            Err(error) if by_mirror && !error.is_refusal() => "mirror",
            // The mirror counts it.
            _ if by_mirror => return,
            result => kind(result),
        };
        self.answers
            .get_or_create(&[("upstream", upstream.to_owned()), ("answer", answer.to_owned())])
            .inc();
        self.seconds
            .get_or_create(&[("upstream", upstream.to_owned())])
            .observe(took.as_secs_f64());
    }
}

fn kind<T>(result: &Result<T, PullError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(PullError::Denied { .. } | PullError::Rejected { .. } | PullError::Withheld(_)) => "denied",
        Err(PullError::Unknown(_) | PullError::UnknownUpstream(_)) => "unknown",
        Err(PullError::TooManyRequests { .. }) => "too_many_requests",
        Err(PullError::Unreachable(_)) => "unreachable",
        Err(PullError::Unavailable(_)) => "unavailable",
        Err(_) => "bad",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_a_peer_hears_from_its_mirror_is_counted_as_the_mirrors_and_a_verdict_is_not() {
        let metrics = RequestMetrics::default();
        let results: [Result<(), PullError>; 5] = [
            Ok(()),
            Err(PullError::Unknown("a".to_owned())),
            Err(PullError::Unavailable("b".to_owned())),
            Err(PullError::Unreachable("c".to_owned())),
            Err(PullError::BadGateway("d".to_owned())),
        ];
        for result in &results {
            for by_mirror in [false, true] {
                metrics.note("a.io", by_mirror, Duration::ZERO, result);
            }
        }
        let count = |answer: &str| {
            let labels = [("upstream", "a.io".to_owned()), ("answer", answer.to_owned())];
            metrics.answers.get_or_create(&labels).get()
        };
        let counted = ["ok", "unknown", "unavailable", "unreachable", "bad", "mirror"].map(count);
        assert_eq!(counted, [1, 1, 1, 1, 1, 3]);
    }
}
