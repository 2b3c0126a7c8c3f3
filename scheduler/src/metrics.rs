//!
//! Metrics of the scheduler, as `piecemeal_scheduler_…`.
//!
//! Invariant: labels have few fixed values, never a node or a digest.

use std::time::Duration;

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::brain::{Outcome, Role, Status};

type Label = [(&'static str, &'static str); 1];

/// Handles to the metrics: clones count into the same ones.
#[derive(Clone)]
pub(crate) struct Metrics {
    sessions: Family<Label, Gauge>,
    sessions_ended: Family<Label, Counter>,
    refused: Family<Label, Counter>,
    swarms: Gauge,
    wants: Gauge,
    leases_in_flight: Gauge,
    leases: Family<Label, Counter>,
    leases_ended: Family<Label, Counter>,
    event_seconds: Histogram,
    brain_restarts: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            sessions: Family::default(),
            sessions_ended: Family::default(),
            refused: Family::default(),
            swarms: Gauge::default(),
            wants: Gauge::default(),
            leases_in_flight: Gauge::default(),
            leases: Family::default(),
            leases_ended: Family::default(),
            event_seconds: Histogram::new(exponential_buckets(1e-6, 4.0, 10)),
            brain_restarts: Counter::default(),
        }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        // Registered at zero, so that the first refusal shows as a rise.
        self.refused.get_or_create(&[("reason", "proof")]).inc_by(0);
        let registry = registry.sub_registry_with_prefix("piecemeal_scheduler");
        registry.register("sessions", "Daemons with a session", self.sessions.clone());
        registry.register(
            "sessions_ended",
            "Sessions that ended, by cause",
            self.sessions_ended.clone(),
        );
        registry.register(
            "refused",
            "Hellos, wants and reports that were not accepted, by reason",
            self.refused.clone(),
        );
        registry.register("swarms", "Blobs that at least one peer wants", self.swarms.clone());
        registry.register("wants", "Blobs wanted, summed over peers", self.wants.clone());
        registry.register("leases_in_flight", "Leases in flight", self.leases_in_flight.clone());
        registry.register(
            "leases",
            "Leases given, by the kind of their source",
            self.leases.clone(),
        );
        registry.register(
            "leases_ended",
            "Leases that their receiver ended, by outcome",
            self.leases_ended.clone(),
        );
        registry.register(
            "event_seconds",
            "Time that placement took for one event",
            self.event_seconds.clone(),
        );
        registry.register(
            "brain_restarts",
            "Restarts of placement after a failure; report each as a defect",
            self.brain_restarts.clone(),
        );
    }

    /// Sets the sessions to none.
    pub(crate) fn reset_sessions(&self) {
        for role in [Role::Peer, Role::Mirror] {
            self.sessions.get_or_create(&[("role", role_name(role))]).set(0);
        }
    }

    pub(crate) fn session_began(&self, role: Role) {
        self.sessions.get_or_create(&[("role", role_name(role))]).inc();
    }

    pub(crate) fn session_ended(&self, role: Role) {
        self.sessions.get_or_create(&[("role", role_name(role))]).dec();
    }

    pub(crate) fn session_ended_by(&self, cause: &'static str) {
        self.sessions_ended.get_or_create(&[("cause", cause)]).inc();
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }

    pub(crate) fn leased(&self, source: &'static str) {
        self.leases.get_or_create(&[("source", source)]).inc();
    }

    pub(crate) fn lease_ended(&self, outcome: &Outcome) {
        let name = match outcome {
            Outcome::Done => "done",
            Outcome::Unreachable => "unreachable",
            Outcome::Stalled => "stalled",
            Outcome::Corrupt { .. } => "corrupt",
            Outcome::Missing { .. } => "missing",
            Outcome::Refused => "refused",
            Outcome::Cancelled => "cancelled",
        };
        self.leases_ended.get_or_create(&[("outcome", name)]).inc();
    }

    pub(crate) fn event_took(&self, time: Duration) {
        self.event_seconds.observe(time.as_secs_f64());
    }

    pub(crate) fn brain_restarted(&self) {
        self.brain_restarts.inc();
    }

    pub(crate) fn surveyed(&self, status: &Status) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.swarms.set(gauge(status.swarms.len()));
        self.wants
            .set(status.swarms.iter().map(|swarm| i64::from(swarm.wanting)).sum());
        self.leases_in_flight.set(gauge(status.leases));
    }
}

pub(crate) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Peer => "peer",
        Role::Mirror => "mirror",
    }
}
