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

    /// `upstream`: as it is configured, so that a pattern is one label however many registries it stands for.
    pub(crate) fn note<T>(&self, upstream: &str, took: Duration, result: &Result<T, PullError>) {
        let answer = match result {
            Ok(_) => "ok",
            Err(PullError::Denied { .. } | PullError::Rejected { .. } | PullError::Withheld(_)) => "denied",
            Err(PullError::Unknown(_) | PullError::UnknownUpstream(_)) => "unknown",
            Err(PullError::TooManyRequests { .. }) => "too_many_requests",
            Err(PullError::Unreachable(_)) => "unreachable",
            Err(PullError::Unavailable(_)) => "unavailable",
            Err(_) => "bad",
        };
        self.answers
            .get_or_create(&[("upstream", upstream.to_owned()), ("answer", answer.to_owned())])
            .inc();
        self.seconds
            .get_or_create(&[("upstream", upstream.to_owned())])
            .observe(took.as_secs_f64());
    }
}
