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
}

type Labels = [(&'static str, String); 2];

impl Default for RequestMetrics {
    fn default() -> Self {
        Self {
            answers: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15))),
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
