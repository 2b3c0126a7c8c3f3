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
    metrics::{Metrics, Written},
};

/// How often a copy is tried again that another client writes at the same time.
const TRIES_MAX: u32 = 6;
const PAUSE: Duration = Duration::from_millis(20);

/// What copies are made with.
#[derive(Clone)]
pub(crate) struct Copier {
    pub cluster: Cluster,
    pub settings: CopySettings,
    /// No copy is for any other, whatever an earlier one or a pod's record says.
    pub accelerated: Registries,
    /// The registries that have a name in the settings: every copy is for all of them that its source is for, so that it hardly
    /// ever changes.
    pub named: BTreeSet<String>,
    pub metrics: Metrics,
    pub queues: Queues,
}

/// The writers of each copy in this replica: one writes after the other, since each would undo the other's try. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Queues(Arc<Mutex<QueuesByCopy>>);

/// By the copy's namespace and name.
type QueuesByCopy = HashMap<(String, String), Weak<Queue>>;

/// Dropped with the last writer that waits in it.
#[derive(Default)]
struct Queue {
    turn: tokio::sync::Mutex<()>,
    registries: Mutex<BTreeSet<String>>,
}

impl Queues {
    /// The queue of the copy `name`, in which `registries` are wanted too.
    fn join(&self, namespace: &str, name: &str, registries: &BTreeSet<String>) -> Arc<Queue> {
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

impl Queue {
    fn wanted(&self) -> BTreeSet<String> {
        self.registries.lock().clone()
    }
}

/// Why there is no copy.
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
        let wanted = Wanted::new(namespace, source, keyring, registries);
        let usual = self.settings.name.of(wanted.source_name);
        for name in [usual.clone(), self.settings.name.other(wanted.source_name)] {
            match self.ensure_as(&name, &wanted, is_dry_run).await? {
                Outcome::There => return Ok(name),
                Outcome::Taken => self.metrics.wrote(Written::Conflict),
            }
        }
        Err(NoCopyError::NamesTaken(usual))
    }

    /// The copy that pods know as `name` is good for `registries` and for what it was good for before: whatever it would be called
    /// today, they have no other name for it.
    pub(crate) async fn restore(
        &self,
        name: &str,
        namespace: &str,
        source: &Value,
        keyring: &Keyring,
        registries: &BTreeSet<String>,
    ) -> Result<(), NoCopyError> {
        let wanted = Wanted::new(namespace, source, keyring, registries);
        match self.ensure_as(name, &wanted, false).await? {
            Outcome::There => Ok(()),
            Outcome::Taken => Err(NoCopyError::NameTaken(name.to_owned())),
        }
    }

    async fn ensure_as(&self, name: &str, wanted: &Wanted<'_>, is_dry_run: bool) -> Result<Outcome, NoCopyError> {
        let secrets = self.cluster.objects::<Secret>(wanted.namespace);
        match self.look(&secrets, name, wanted, wanted.registries).await? {
            Look::Taken => return Ok(Outcome::Taken),
            Look::Right => return Ok(Outcome::There),
            Look::ToWrite { .. } if is_dry_run => return Ok(Outcome::There),
            Look::ToWrite { .. } => {}
        }
        let queue = self.queues.join(wanted.namespace, name, wanted.registries);
        let _turn = queue.turn.lock().await;
        for attempt in 0..TRIES_MAX {
            sleep(PAUSE * attempt).await;
            // The registries of the writers that wait are written too, so that nothing is left for them to write.
            let (copy, existing) = match self.look(&secrets, name, wanted, &queue.wanted()).await? {
                Look::Taken => return Ok(Outcome::Taken),
                Look::Right => return Ok(Outcome::There),
                Look::ToWrite { copy, existing } => (copy, existing),
            };
            let object = copy.object(wanted.namespace, name);
            match write(&secrets, name, &object, existing.as_ref()).await {
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

    /// Whether `existing`, as it was read, is what [`Copier::restore`] would leave there.
    pub(crate) fn is_right(
        &self,
        existing: &Value,
        source: &Value,
        keyring: &Keyring,
        registries: &BTreeSet<String>,
    ) -> bool {
        let copy = self.copy(source, keyring, registries, Some(existing));
        copy.is_some_and(|copy| copy.is(existing))
    }

    /// For `registries`, for what `existing` was for, and for whatever is accelerated by name.
    fn copy(
        &self,
        source: &Value,
        keyring: &Keyring,
        registries: &BTreeSet<String>,
        existing: Option<&Value>,
    ) -> Option<Copy> {
        let mut meant: BTreeSet<String> = registries.union(&self.named).cloned().collect();
        meant.extend(existing.map(registries_of).unwrap_or_default());
        meant.retain(|registry| self.accelerated.find(registry).is_some());
        Copy::of(source, keyring, &meant, &self.settings)
    }

    /// The Secret `name`, beside what it should be.
    async fn look(
        &self,
        secrets: &Objects,
        name: &str,
        wanted: &Wanted<'_>,
        registries: &BTreeSet<String>,
    ) -> Result<Look, NoCopyError> {
        let existing = secrets.get(name).await?;
        let is_foreign = |existing: &Value| source_of(existing) != Some(wanted.source_name);
        if existing.as_ref().is_some_and(is_foreign) {
            return Ok(Look::Taken);
        }
        let copy = self
            .copy(wanted.source, wanted.keyring, registries, existing.as_ref())
            .ok_or_else(|| NoCopyError::Nothing(wanted.source_name.to_owned()))?;
        Ok(match existing {
            Some(existing) if copy.is(&existing) => Look::Right,
            existing => Look::ToWrite { copy, existing },
        })
    }
}

/// Onto the version that was looked at, so that of two writers who know different registries neither undoes the other.
async fn write(
    secrets: &Objects,
    name: &str,
    object: &Value,
    existing: Option<&Value>,
) -> Result<Written, ClusterError> {
    match existing {
        None => {
            secrets.create(object, false).await?;
            Ok(Written::Created)
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
            Ok(Written::Updated)
        }
    }
}

/// A copy that a pod needs.
struct Wanted<'a> {
    namespace: &'a str,
    source: &'a Value,
    source_name: &'a str,
    keyring: &'a Keyring,
    registries: &'a BTreeSet<String>,
}

impl<'a> Wanted<'a> {
    fn new(namespace: &'a str, source: &'a Value, keyring: &'a Keyring, registries: &'a BTreeSet<String>) -> Self {
        Self {
            namespace,
            source,
            source_name: source["metadata"]["name"].as_str().unwrap_or_default(),
            keyring,
            registries,
        }
    }
}

enum Look {
    Taken,
    Right,
    ToWrite { copy: Copy, existing: Option<Value> },
}

enum Outcome {
    There,
    /// A foreign Secret has that name.
    Taken,
}
