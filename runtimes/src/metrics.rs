//! Metrics of node set-up, as the last reconciliation found the node.
//!
//! Invariant: a runtime that is left out on purpose has no `runtime_ready`, so that it raises no alert.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::report::{FileOutcome, Report};

#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    ready: Family<[(&'static str, &'static str); 1], Gauge>,
    files: Gauge,
    repairs: Counter,
    /// Reconciliations that ended with an error.
    pub errors: Counter,
}

impl Metrics {
    pub(crate) fn register(self, registry: &mut Registry) {
        let Self {
            ready,
            files,
            repairs,
            errors,
        } = self;
        let registry = registry.sub_registry_with_prefix("piecemeal_node");
        registry.register(
            "runtime_ready",
            "Whether a runtime reads the files that are written for it",
            ready,
        );
        registry.register("files", "Files of node set-up on the node", files);
        registry.register(
            "repairs",
            "Files that were repaired after another program changed or removed them",
            repairs,
        );
        registry.register("errors", "Checks of the node that ended with an error", errors);
    }

    pub(crate) fn take(&self, report: &Report) {
        for runtime in &report.runtimes {
            let labels = [("runtime", runtime.runtime.name())];
            if runtime.aside.is_some() {
                // A runtime that is left out on purpose must raise no alert.
                self.ready.remove(&labels);
            } else {
                self.ready.get_or_create(&labels).set(runtime.ready.into());
            }
        }
        let is_there = |outcome| {
            matches!(
                outcome,
                FileOutcome::Unchanged | FileOutcome::Written | FileOutcome::Restored
            )
        };
        let files = report.files.iter().filter(|file| is_there(file.outcome)).count();
        self.files.set(i64::try_from(files).unwrap_or(i64::MAX));
        self.repairs.inc_by(report.repairs);
    }
}
