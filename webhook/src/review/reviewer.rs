//! Handler of one review: the rules decide, the API supplies the secrets, and the copies exist before the answer is sent.

use std::{sync::Arc, time::Duration};

use futures_util::future::try_join_all;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::message::AdmissionRequest;
use crate::{
    copies::{
        ensure::Copier,
        sources::{Reader, Sources},
    },
    decide::{
        patch::{SecretCopy, has_room, patch},
        plan::{NeededCopy, PlanDraft, PodPlan},
        rules::Rules,
        skip::Skip,
    },
    events::Events,
    hosts::Hosts,
    metrics::Metrics,
};

/// The time to decide on one pod, with every request to the API. Well below the API server's own limit of 5 s.
const DECIDE_TIME_MAX: Duration = Duration::from_secs(2);

/// Reviewer of pods. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reviewer {
    pub rules: Arc<Rules>,
    pub copier: Arc<Copier>,
    pub events: Events,
    pub hosts: Hosts,
    pub metrics: Metrics,
}

/// The plan for a pod, and the patch that carries it out.
pub(crate) struct Decision {
    pub plan: PodPlan,
    pub patch: Vec<Value>,
}

impl Reviewer {
    /// `namespace_label`: one that the API server has found on the pod's namespace, with the value that asks for acceleration.
    pub(crate) async fn answer(&self, request: &AdmissionRequest, namespace_label: Option<&str>) -> Value {
        let began = Instant::now();
        let deciding = timeout(DECIDE_TIME_MAX, self.decide(request, namespace_label));
        let decided = deciding.await.unwrap_or_else(|_| {
            Err(Skip::Internal(format!(
                "it took more than {} s",
                DECIDE_TIME_MAX.as_secs()
            )))
        });
        self.metrics.reviewed(decided.as_ref().map(|_| ()), began.elapsed());
        let pod = request.pod.as_ref().unwrap_or(&Value::Null);
        match decided {
            Ok(decision) => {
                if !request.is_dry_run {
                    self.hosts
                        .met(decision.plan.changes.iter().map(|change| change.registry.as_str()));
                    self.events
                        .accelerated(&request.namespace, pod, decision.plan.changes.len());
                }
                request.answer(&decision.patch, None)
            }
            Err(skip) => {
                let reason = skip.reason();
                debug!(reason, namespace = request.namespace, "a pod stays as it is: {skip}");
                if !request.is_dry_run {
                    self.events.skipped(&request.namespace, pod, &skip);
                }
                let Skip::Internal(_) = skip else {
                    return request.answer(&[], None);
                };
                warn!(
                    namespace = request.namespace,
                    "a pod of {} is not accelerated: {skip}", request.namespace
                );
                request.answer(&[], Some(&format!("Piecemeal does not accelerate this pod: {skip}")))
            }
        }
    }

    async fn decide(&self, request: &AdmissionRequest, namespace_label: Option<&str>) -> Result<Decision, Skip> {
        let pod = request.pod.as_ref().ok_or(Skip::NotAPod)?;
        let namespace = &request.namespace;
        let labels = namespace_label.map(|label| Map::from_iter([(label.to_owned(), json!(crate::decide::mode::P2P))]));
        let draft = PlanDraft::of(pod, namespace, labels.as_ref(), &self.rules)?;
        let cluster = &self.copier.cluster;
        let sources = Sources::read(cluster, namespace, &draft, &self.rules, Reader::Webhook);
        let sources = sources.await.map_err(|error| Skip::Internal(error.to_string()))?;
        let plan = draft.with_secrets(&sources.secrets)?;
        if let Some(allowed) = &sources.allowed {
            let name_of = |copy: &NeededCopy| self.copier.settings.name.of(&copy.name);
            if !plan.copies.iter().all(|copy| allowed.contains(&name_of(copy))) {
                return Err(Skip::SecretsEnforced);
            }
        }
        let new = plan.changes.iter().filter(|change| !change.is_done);
        if !self.hosts.have_room_for(new.map(|change| change.registry.as_str())) {
            return Err(Skip::TooManyRegistries);
        }
        let ensured = plan
            .copies
            .iter()
            .map(|copy| self.ensure(namespace, copy, request.is_dry_run));
        let secrets = try_join_all(ensured).await?;
        let patch = patch(pod, &plan, &secrets);
        if !has_room(pod, &patch) {
            return Err(Skip::AnnotationsFull);
        }
        Ok(Decision { plan, patch })
    }

    async fn ensure(&self, namespace: &str, needed: &NeededCopy, is_dry_run: bool) -> Result<SecretCopy, Skip> {
        let NeededCopy {
            source,
            keyring,
            registries,
            ..
        } = needed;
        let ensured = self.copier.ensure(namespace, source, keyring, registries, is_dry_run);
        let copy = ensured
            .await
            .map_err(|error| Skip::Internal(format!("the copy of Secret {}: {error}", needed.name)))?;
        Ok(SecretCopy {
            source: needed.name.clone(),
            copy,
        })
    }
}
