//! Writer of copies: when [`Copier::ensure`] returns without an error, the copy exists and is right.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Weak},
    time::Duration,
};

use k8s_openapi::api::core::v1::Secret;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::copy::{Copy, CopySettings, registries_of, source_of};
use crate::{
    cluster::{Cluster, ClusterError, Objects},
    decide::{keyring::Keyring, registries::Registries},
    metrics::{CopyWrite, Metrics},
};

/// The most tries of a copy that another client writes at the same time.
const TRIES_MAX: u32 = 6;
const PAUSE: Duration = Duration::from_millis(20);

/// Writer of copies.
#[derive(Clone)]
pub(crate) struct Copier {
    pub cluster: Cluster,
    pub settings: CopySettings,
    /// The accelerated registries. No copy is for any other, whatever an earlier copy or a pod's record says.
    pub accelerated: Registries,
    /// The registries that the settings name without a pattern. Every copy is for all of them that its source is for, so that it
    /// hardly ever changes.
    pub named: BTreeSet<String>,
    pub metrics: Metrics,
    pub queues: WriteQueues,
}

/// The writers of each copy in this replica: one writes after the other, since each would undo the other's try. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct WriteQueues(Arc<Mutex<QueuesByCopy>>);

/// By the copy's namespace and name.
type QueuesByCopy = HashMap<(String, String), Weak<WriteQueue>>;

/// Dropped with the last writer that waits in it.
#[derive(Default)]
struct WriteQueue {
    turn: tokio::sync::Mutex<()>,
    registries: Mutex<BTreeSet<String>>,
}

impl WriteQueues {
    /// The queue of the copy `name`, in which `registries` are wanted too.
    fn join(&self, namespace: &str, name: &str, registries: &BTreeSet<String>) -> Arc<WriteQueue> {
        let mut queues = self.0.lock();
        queues.retain(|_, queue| queue.strong_count() > 0);
        let key = (namespace.to_owned(), name.to_owned());
        let queue = queues.get(&key).and_then(Weak::upgrade).unwrap_or_default();
        queues.insert(key, Arc::downgrade(&queue));
        let mut all = queue.registries.lock();
        all.extend(registries.iter().cloned());
        drop(all);
        queue
    }
}

impl WriteQueue {
    fn wanted(&self) -> BTreeSet<String> {
        self.registries.lock().clone()
    }
}

/// A request for the copy of a pull secret.
#[derive(Clone, Copy)]
pub(crate) struct CopyRequest<'a> {
    pub namespace: &'a str,
    /// The pull secret, and its entries.
    pub source: &'a Value,
    pub keyring: &'a Keyring,
    /// The registries of the images that need the copy.
    pub registries: &'a BTreeSet<String>,
}

impl<'a> CopyRequest<'a> {
    fn source_name(&self) -> &'a str {
        self.source["metadata"]["name"].as_str().unwrap_or_default()
    }
}

/// Why a copy cannot be written.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum NoCopyError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("{0} and its other name are both taken by Secrets that are not copies made by the webhook")]
    NamesTaken(String),
    #[error("{0} is a Secret that is not a copy made by the webhook")]
    NameTaken(String),
    #[error("another client keeps changing {0}")]
    Contended(String),
    #[error("{0} is for none of the accelerated registries any more")]
    Nothing(String),
}

impl Copier {
    /// The name of the requested copy, which is good for its registries and for what it was good for before. `is_dry_run`: nothing
    /// is written.
    pub(crate) async fn ensure(&self, request: &CopyRequest<'_>, is_dry_run: bool) -> Result<String, NoCopyError> {
        let source = request.source_name();
        let usual = self.settings.name.of(source);
        for name in [usual.clone(), self.settings.name.other(source)] {
            match self.ensure_as(&name, request, is_dry_run).await? {
                CopyOutcome::Exists => return Ok(name),
                CopyOutcome::NameTaken => self.metrics.count_write(CopyWrite::Conflict),
            }
        }
        Err(NoCopyError::NamesTaken(usual))
    }

    /// Like [`Copier::ensure`] for the copy that pods know as `name`: whatever it would be called today, they have no other name
    /// for it.
    pub(crate) async fn restore(&self, name: &str, request: &CopyRequest<'_>) -> Result<(), NoCopyError> {
        match self.ensure_as(name, request, false).await? {
            CopyOutcome::Exists => Ok(()),
            CopyOutcome::NameTaken => Err(NoCopyError::NameTaken(name.to_owned())),
        }
    }

    async fn ensure_as(
        &self,
        name: &str,
        request: &CopyRequest<'_>,
        is_dry_run: bool,
    ) -> Result<CopyOutcome, NoCopyError> {
        let secrets = self.cluster.objects::<Secret>(request.namespace);
        match self.state(&secrets, name, request, request.registries).await? {
            CopyState::NameTaken => return Ok(CopyOutcome::NameTaken),
            CopyState::UpToDate => return Ok(CopyOutcome::Exists),
            CopyState::Outdated { .. } if is_dry_run => return Ok(CopyOutcome::Exists),
            CopyState::Outdated { .. } => {}
        }
        let queue = self.queues.join(request.namespace, name, request.registries);
        let _turn = queue.turn.lock().await;
        for attempt in 0..TRIES_MAX {
            sleep(PAUSE * attempt).await;
            // The registries of the writers that wait are written too, so that nothing is left for them to write.
            let (copy, existing) = match self.state(&secrets, name, request, &queue.wanted()).await? {
                CopyState::NameTaken => return Ok(CopyOutcome::NameTaken),
                CopyState::UpToDate => return Ok(CopyOutcome::Exists),
                CopyState::Outdated { copy, existing } => (copy, existing),
            };
            let object = copy.object(request.namespace, name);
            match write(&secrets, name, &object, existing.as_ref()).await {
                Ok(written) => {
                    self.metrics.count_write(written);
                    return Ok(CopyOutcome::Exists);
                }
                Err(ClusterError::Conflict(_)) => {}
                Err(error) => {
                    self.metrics.count_write(CopyWrite::Failed);
                    return Err(error.into());
                }
            }
        }
        Err(NoCopyError::Contended(name.to_owned()))
    }

    /// Whether `existing`, as it was read, is what [`Copier::restore`] would leave there.
    pub(crate) fn is_up_to_date(&self, existing: &Value, request: &CopyRequest<'_>) -> bool {
        let copy = self.copy(request, request.registries, Some(existing));
        copy.is_some_and(|copy| copy.is(existing))
    }

    /// The copy for `registries`, for those that `existing` is for, and for those named in the settings.
    fn copy(&self, request: &CopyRequest<'_>, registries: &BTreeSet<String>, existing: Option<&Value>) -> Option<Copy> {
        let mut meant: BTreeSet<String> = registries.union(&self.named).cloned().collect();
        meant.extend(existing.map(registries_of).unwrap_or_default());
        meant.retain(|registry| self.accelerated.find(registry).is_some());
        Copy::of(request.source, request.keyring, &meant, &self.settings)
    }

    /// The Secret `name`, beside what it should be.
    async fn state(
        &self,
        secrets: &Objects,
        name: &str,
        request: &CopyRequest<'_>,
        registries: &BTreeSet<String>,
    ) -> Result<CopyState, NoCopyError> {
        let existing = secrets.get(name).await?;
        let is_foreign = |existing: &Value| source_of(existing) != Some(request.source_name());
        if existing.as_ref().is_some_and(is_foreign) {
            return Ok(CopyState::NameTaken);
        }
        let copy = self
            .copy(request, registries, existing.as_ref())
            .ok_or_else(|| NoCopyError::Nothing(request.source_name().to_owned()))?;
        Ok(match existing {
            Some(existing) if copy.is(&existing) => CopyState::UpToDate,
            existing => CopyState::Outdated { copy, existing },
        })
    }
}

/// Onto the version that was looked at, so that of two writers who know different registries neither undoes the other.
async fn write(
    secrets: &Objects,
    name: &str,
    object: &Value,
    existing: Option<&Value>,
) -> Result<CopyWrite, ClusterError> {
    match existing {
        None => {
            secrets.create(object, false).await?;
            Ok(CopyWrite::Created)
        }
        // A Secret's type cannot be changed, and nothing of an immutable one.
        Some(existing) if existing["type"] != object["type"] || existing["immutable"] == true => {
            secrets.delete(name, Some(&existing["metadata"])).await?;
            Err(ClusterError::Conflict("to be created again".to_owned()))
        }
        Some(existing) => {
            let mut object = object.clone();
            object["metadata"]["resourceVersion"] = json!(existing["metadata"]["resourceVersion"]);
            secrets.replace(name, &object).await?;
            Ok(CopyWrite::Updated)
        }
    }
}

/// A Secret with the copy's name, compared with the copy.
enum CopyState {
    /// It is a foreign Secret.
    NameTaken,
    UpToDate,
    /// There is none, or another version.
    Outdated {
        copy: Copy,
        existing: Option<Value>,
    },
}

/// The result of writing a copy under one name.
enum CopyOutcome {
    Exists,
    /// A foreign Secret has that name.
    NameTaken,
}
