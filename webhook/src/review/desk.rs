//! One review: the rules decide, the API gives the secrets, the copies are there before the answer is.

use std::{sync::Arc, time::Duration};

use futures_util::future::{join_all, try_join_all};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::message::Question;
use crate::{
    cluster::{Cluster, ClusterError, core_path, is_object_name},
    copies::{copy::source_of, ensure::Copier, keyring::Keyring},
    decide::{
        patch::{PulledWith, has_room, patch},
        plan::{CopyWish, Plan, PullSecret, Rules, Skip, Wish},
    },
    events::Events,
    hosts::Hosts,
    metrics::Metrics,
};

/// Everything that an answer needs. Well below the API server's own limit of 5 s.
const DECIDE_TIME_MAX: Duration = Duration::from_secs(2);
/// The most pull secrets of a pod that are looked at.
const SECRETS_MAX: usize = 64;

/// Where questions are answered. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Desk {
    pub rules: Arc<Rules>,
    pub copier: Arc<Copier>,
    pub events: Events,
    pub hosts: Hosts,
    pub metrics: Metrics,
}

/// What is done about a pod.
pub(crate) struct Decision {
    pub plan: Plan,
    pub patch: Vec<Value>,
}

impl Desk {
    /// `namespace_label`: one that the API server has found on the pod's namespace, with the value that asks for acceleration.
    pub(crate) async fn answer(&self, question: &Question, namespace_label: Option<&str>) -> Value {
        let began = Instant::now();
        let deciding = timeout(DECIDE_TIME_MAX, self.decide(question, namespace_label));
        let decided = deciding.await.unwrap_or_else(|_| {
            Err(Skip::Internal(format!(
                "it took more than {} s",
                DECIDE_TIME_MAX.as_secs()
            )))
        });
        self.metrics.reviewed(decided.as_ref().map(|_| ()), began.elapsed());
        let pod = question.pod.as_ref().unwrap_or(&Value::Null);
        match decided {
            Ok(decision) => {
                if !question.is_dry_run {
                    self.hosts
                        .met(decision.plan.changes.iter().map(|change| change.registry.as_str()));
                    self.events
                        .accelerated(&question.namespace, pod, decision.plan.changes.len());
                }
                question.answer(&decision.patch, None)
            }
            Err(skip) => {
                let reason = skip.reason();
                debug!(reason, namespace = question.namespace, "a pod stays as it is: {skip}");
                if !question.is_dry_run {
                    self.events.skipped(&question.namespace, pod, &skip);
                }
                let Skip::Internal(_) = skip else {
                    return question.answer(&[], None);
                };
                warn!(
                    namespace = question.namespace,
                    "a pod of {} is not accelerated: {skip}", question.namespace
                );
                question.answer(&[], Some(&format!("Piecemeal does not accelerate this pod: {skip}")))
            }
        }
    }

    async fn decide(&self, question: &Question, namespace_label: Option<&str>) -> Result<Decision, Skip> {
        let pod = question.pod.as_ref().ok_or(Skip::NotAPod)?;
        let namespace = &question.namespace;
        let labels = namespace_label.map(|label| Map::from_iter([(label.to_owned(), json!(crate::decide::mode::P2P))]));
        let wish = Wish::of(pod, namespace, labels.as_ref(), &self.rules)?;
        let secrets = pull_secrets(&self.copier.cluster, namespace, &wish)
            .await
            .map_err(internal)?;
        let plan = wish.with(&secrets)?;
        let ensured = plan
            .copies
            .iter()
            .map(|copy| self.ensure(namespace, copy, question.is_dry_run));
        let secrets = try_join_all(ensured).await?;
        let patch = patch(pod, &plan, &secrets);
        if !has_room(pod, &patch) {
            return Err(Skip::AnnotationsFull);
        }
        Ok(Decision { plan, patch })
    }

    async fn ensure(&self, namespace: &str, wish: &CopyWish, is_dry_run: bool) -> Result<PulledWith, Skip> {
        let CopyWish {
            source,
            keyring,
            registries,
            ..
        } = wish;
        let ensured = self.copier.ensure(namespace, source, keyring, registries, is_dry_run);
        let copy = ensured
            .await
            .map_err(|error| Skip::Internal(format!("the copy of Secret {}: {error}", wish.name)))?;
        Ok(PulledWith {
            source: wish.name.clone(),
            copy,
        })
    }
}

/// The secrets that count for the pod: its own, or its service account's where it has none. The API server's own plugin copies the
/// latter into the pod before we see it; this is for where it is off.
pub(crate) async fn pull_secrets(
    cluster: &Cluster,
    namespace: &str,
    wish: &Wish,
) -> Result<Vec<PullSecret>, ClusterError> {
    let mut names = wish.secrets.clone();
    if names.is_empty() && is_object_name(&wish.account) {
        let account = cluster
            .get(&core_path(namespace, "serviceaccounts", &wish.account))
            .await?;
        let listed = account
            .map(|mut account| account["imagePullSecrets"].take())
            .unwrap_or_default();
        let listed = listed.as_array().into_iter().flatten();
        names = listed
            .filter_map(|secret| secret["name"].as_str().map(ToOwned::to_owned))
            .collect();
    }
    names.truncate(SECRETS_MAX);
    let read = join_all(names.iter().map(|name| pull_secret(cluster, namespace, name))).await;
    read.into_iter().collect()
}

async fn pull_secret(cluster: &Cluster, namespace: &str, name: &str) -> Result<PullSecret, ClusterError> {
    let missing = || Err("there is no such Secret".to_owned());
    let found = if is_object_name(name) {
        match cluster.get(&core_path(namespace, "secrets", name)).await? {
            None => missing(),
            // With entries for unrelated registries it would fit, and be copied again for every container that comes later.
            Some(secret) if source_of(&secret).is_some() => Err("it is a copy itself".to_owned()),
            Some(secret) => match Keyring::of(&secret) {
                Ok(keyring) => Ok((secret, keyring)),
                Err(why) => Err(why.to_string()),
            },
        }
    } else {
        missing()
    };
    Ok(PullSecret {
        name: name.to_owned(),
        found,
    })
}

fn internal(error: ClusterError) -> Skip {
    Skip::Internal(error.to_string())
}
