//! The pull secrets of one pod, read from the API: its own, or its service account's.
//!
//! Invariant: at most [`SECRETS_MAX`] secrets are looked at, and none in a namespace whose secrets may not be read.

use futures_util::future::{join, join_all};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use serde_json::Value;

use super::copy::source_of;
use crate::{
    cluster::{Cluster, ClusterError, is_object_name},
    decide::{
        keyring::Keyring,
        plan::PlanDraft,
        pull_secret::{PullSecret, Unusable, names},
        rules::Rules,
    },
};

/// The most pull secrets of a pod that are looked at.
const SECRETS_MAX: usize = 64;
/// On a service account whose pods may use no secrets but those that it lists. The API server checks it after us, and refuses.
const ENFORCED: &str = "kubernetes.io/enforce-mountable-secrets";

/// The pull secrets of one pod.
#[derive(Debug)]
pub(crate) struct Sources {
    pub secrets: Vec<PullSecret>,
    /// The only Secrets that the pod may name, if its service account restricts it.
    pub allowed: Option<Vec<String>>,
}

/// The reader of the secrets. A Secret that may not be read is an error for the webhook, and a finding for a user's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    Webhook,
    User,
}

impl Sources {
    /// The pod's own secrets, or its service account's where it names none. The API server's own plugin copies the latter into the
    /// pod before we see it; this is for where it is off.
    pub(crate) async fn read(
        cluster: &Cluster,
        namespace: &str,
        draft: &PlanDraft,
        rules: &Rules,
        reader: Reader,
    ) -> Result<Self, ClusterError> {
        let own = draft.secrets.as_deref().unwrap_or_default();
        if !rules.secrets_namespaces.is_empty() && !rules.secrets_namespaces.contains(namespace) {
            let why = format!("the webhook may not read secrets of {namespace} (rbac.secretsScope)");
            let secrets = own
                .iter()
                .map(|name| unusable(name, Unusable::Perhaps(why.clone())))
                .collect();
            return Ok(Self { secrets, allowed: None });
        }
        let (account, mut secrets) = join(
            account(cluster, namespace, &draft.account, reader),
            read_all(cluster, namespace, own, reader),
        )
        .await;
        let account = account?;
        let listed = names(&account["imagePullSecrets"]);
        if draft.secrets.is_none() {
            secrets = read_all(cluster, namespace, &listed, reader).await;
        }
        let is_enforced = account["metadata"]["annotations"][ENFORCED] == "true";
        Ok(Self {
            secrets: secrets?,
            allowed: is_enforced.then_some(listed),
        })
    }
}

async fn account(cluster: &Cluster, namespace: &str, name: &str, reader: Reader) -> Result<Value, ClusterError> {
    if !is_object_name(name) {
        return Ok(Value::Null);
    }
    match cluster.objects::<ServiceAccount>(namespace).get_cached(name).await {
        Err(ClusterError::Forbidden(_)) if reader == Reader::User => Ok(Value::Null),
        account => account.map(Option::unwrap_or_default),
    }
}

async fn read_all(
    cluster: &Cluster,
    namespace: &str,
    names: &[String],
    reader: Reader,
) -> Result<Vec<PullSecret>, ClusterError> {
    let (looked_at, rest) = names.split_at(names.len().min(SECRETS_MAX));
    let read = join_all(looked_at.iter().map(|name| read(cluster, namespace, name, reader))).await;
    let too_many = |name: &String| {
        Ok(unusable(
            name,
            Unusable::Perhaps(format!("the webhook reads only {SECRETS_MAX}")),
        ))
    };
    read.into_iter().chain(rest.iter().map(too_many)).collect()
}

async fn read(cluster: &Cluster, namespace: &str, name: &str, reader: Reader) -> Result<PullSecret, ClusterError> {
    if !is_object_name(name) {
        return Ok(unusable(
            name,
            Unusable::Never("no Secret can have that name".to_owned()),
        ));
    }
    let secret = match cluster.objects::<Secret>(namespace).get_cached(name).await {
        Ok(Some(secret)) => secret,
        Ok(None) => {
            return Ok(unusable(
                name,
                Unusable::Perhaps("there is no such Secret yet".to_owned()),
            ));
        }
        Err(ClusterError::Forbidden(_)) if reader == Reader::User => {
            let why = "you may not read it, and the webhook may".to_owned();
            return Ok(unusable(name, Unusable::Perhaps(why)));
        }
        Err(error) => return Err(error),
    };
    // With entries for unrelated registries it would fit, and be copied again for every container that comes later.
    if source_of(&secret).is_some() {
        return Ok(unusable(name, Unusable::Never("it is a copy itself".to_owned())));
    }
    Ok(match Keyring::of(&secret) {
        Ok(keyring) => PullSecret {
            name: name.to_owned(),
            found: Ok((secret, keyring)),
        },
        Err(why) => unusable(name, Unusable::Never(why.to_string())),
    })
}

fn unusable(name: &str, why: Unusable) -> PullSecret {
    PullSecret {
        name: name.to_owned(),
        found: Err(why),
    }
}
