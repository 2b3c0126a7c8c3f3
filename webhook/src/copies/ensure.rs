//! A copy is there, and is right, when this returns.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    copy::{Copy, CopySettings, registries_of, source_of},
    keyring::Keyring,
};
use crate::{
    cluster::{Cluster, ClusterError, core_path},
    metrics::{Metrics, Written},
};

/// How often one that somebody else writes at the same time is tried again.
const TRIES_MAX: u32 = 6;
const PAUSE: Duration = Duration::from_millis(20);

/// What copies are made with.
#[derive(Clone)]
pub(crate) struct Copier {
    pub cluster: Cluster,
    pub settings: CopySettings,
    /// The registries that have a name in the settings: every copy is for all of them that its source is for, so that it hardly
    /// ever changes.
    pub named: BTreeSet<String>,
    pub metrics: Metrics,
}

/// A copy that there is not.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum NoCopyError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("{0} and its other name are both taken by Secrets that are no copies of ours")]
    NamesTaken(String),
    #[error("{0} is written by somebody else all the time")]
    Contended(String),
    #[error("{0} is for none of the accelerated registries any more")]
    Nothing(String),
}

impl Copier {
    /// The name of the copy of `source`, which is good for `registries` and for what it was good for before. `is_dry_run`: nothing
    /// is written.
    pub(crate) async fn ensure(
        &self,
        namespace: &str,
        source: &Value,
        keyring: &Keyring,
        registries: &BTreeSet<String>,
        is_dry_run: bool,
    ) -> Result<String, NoCopyError> {
        let source_name = source["metadata"]["name"].as_str().unwrap_or_default();
        let usual = self.settings.name.of(source_name);
        for name in [usual.clone(), self.settings.name.other(source_name)] {
            match self
                .ensure_as(&name, namespace, source, keyring, registries, is_dry_run)
                .await?
            {
                Outcome::There => return Ok(name),
                Outcome::Taken => self.metrics.wrote(Written::Conflict),
            }
        }
        Err(NoCopyError::NamesTaken(usual))
    }

    /// Whether `copy`, as it was read, is what [`Copier::ensure`] would leave there.
    pub(crate) fn is_right(&self, copy: &Value, source: &Value, keyring: &Keyring) -> bool {
        let wanted = self.wanted(source, keyring, registries_of(copy));
        wanted.is_some_and(|wanted| wanted.is(copy))
    }

    fn wanted(&self, source: &Value, keyring: &Keyring, mut registries: BTreeSet<String>) -> Option<Copy> {
        registries.extend(self.named.iter().cloned());
        Copy::of(source, keyring, &registries, &self.settings)
    }

    async fn ensure_as(
        &self,
        name: &str,
        namespace: &str,
        source: &Value,
        keyring: &Keyring,
        registries: &BTreeSet<String>,
        is_dry_run: bool,
    ) -> Result<Outcome, NoCopyError> {
        let source_name = source["metadata"]["name"].as_str().unwrap_or_default();
        let path = core_path(namespace, "secrets", name);
        for attempt in 0..TRIES_MAX {
            if attempt > 0 {
                sleep(PAUSE * attempt).await;
            }
            let existing = self.cluster.get(&path).await?;
            if existing
                .as_ref()
                .is_some_and(|existing| source_of(existing) != Some(source_name))
            {
                return Ok(Outcome::Taken);
            }
            let mut meant = existing.as_ref().map(registries_of).unwrap_or_default();
            meant.extend(registries.iter().cloned());
            let copy = self
                .wanted(source, keyring, meant)
                .ok_or_else(|| NoCopyError::Nothing(source_name.to_owned()))?;
            if is_dry_run || existing.as_ref().is_some_and(|existing| copy.is(existing)) {
                return Ok(Outcome::There);
            }
            match self
                .write(&path, &copy.object(namespace, name), existing.as_ref())
                .await
            {
                Ok(written) => {
                    self.metrics.wrote(written);
                    return Ok(Outcome::There);
                }
                Err(ClusterError::Conflict(_)) => {}
                Err(error) => {
                    self.metrics.wrote(Written::Failed);
                    return Err(error.into());
                }
            }
        }
        Err(NoCopyError::Contended(name.to_owned()))
    }

    /// Onto the version that was looked at, so that of two writers who know different registries neither undoes the other.
    async fn write(&self, path: &str, object: &Value, existing: Option<&Value>) -> Result<Written, ClusterError> {
        match existing {
            None => {
                let list = path.rsplit_once('/').map_or(path, |(list, _)| list);
                self.cluster.create(list, object, false).await?;
                Ok(Written::Created)
            }
            // A Secret's type cannot be changed, and of fields that others have added only a replacement knows nothing.
            Some(existing) if existing["type"] != object["type"] => {
                self.cluster.delete(path, Some(&existing["metadata"])).await?;
                Err(ClusterError::Conflict("to be created anew".to_owned()))
            }
            Some(existing) => {
                let mut object = object.clone();
                object["metadata"]["resourceVersion"] = json!(existing["metadata"]["resourceVersion"]);
                self.cluster.replace(path, &object).await?;
                Ok(Written::Updated)
            }
        }
    }
}

enum Outcome {
    There,
    /// Somebody else has a Secret of that name.
    Taken,
}
