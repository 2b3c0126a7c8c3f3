//! Reconciler of the existing copies: they follow their sources, come back while a pod still needs them, and go when no pod has named
//! them for long.
//!
//! Events only say where to look. The objects themselves are read again each time, so that a missed event costs time and
//! nothing else.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{Stream, StreamExt, stream::select_all};
use k8s_openapi::{
    api::core::v1::{Pod, Secret},
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    copy::{COPY_LABEL, UNUSED_SINCE, registries_of, select_copies, source_of},
    ensure::{Copier, CopyRequest, NoCopyError},
    in_use::{CopiesInUse, CopyUse},
    unused::UnusedCopy,
    work_queue::WorkQueue,
};
use crate::{
    cluster::{ClusterError, Objects},
    decide::keyring::{Form, Keyring},
    metrics::CopyWrite,
};

const TICK: Duration = Duration::from_millis(250);
/// How often every namespace with a copy is looked at without an event, and pods are searched for others that miss one.
const EVERYTHING_EVERY: Duration = Duration::from_secs(10 * 60);
/// The same where unused copies are kept for less: no more often than this.
const EVERYTHING_EVERY_MIN: Duration = Duration::from_secs(1);
/// How long a namespace waits that could not be read.
const RETRY: Duration = Duration::from_secs(15);

/// Reconciler of the copies, at work while this replica leads.
pub(crate) struct CopyReconciler {
    pub copier: Copier,
    /// The namespaces whose secrets may be read; empty for all.
    pub namespaces: BTreeSet<String>,
    /// How long an unused copy stays.
    pub keep: Duration,
    pub leads: watch::Receiver<bool>,
}

impl CopyReconciler {
    /// Until told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let running = async {
            loop {
                if self.leads.wait_for(|leads| *leads).await.is_err() {
                    return;
                }
                let mut leads = self.leads.clone();
                tokio::select! {
                    () = self.reconcile_all() => {}
                    _ = leads.wait_for(|leads| !leads) => {}
                }
            }
        };
        stop.run_until_cancelled(running).await;
    }

    async fn reconcile_all(&self) {
        let mut events = self.watch();
        let mut queue = WorkQueue::default();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let round_every = self.keep.clamp(EVERYTHING_EVERY_MIN, EVERYTHING_EVERY);
        let (mut next_round, mut next_search) = (Instant::now() + round_every, Instant::now());
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => enqueue(&mut queue, &event),
                    Some(Err(error)) => debug!("the watch of secrets broke off and is resumed: {error}"),
                    None => return,
                },
                _ = ticks.tick() => {
                    let now = Instant::now();
                    if now >= next_search {
                        next_search = now + EVERYTHING_EVERY;
                        self.search(&mut queue).await;
                    }
                    if now >= next_round {
                        next_round = now + round_every;
                        queue.add_known(now);
                    }
                    while let Some(namespace) = queue.take_due(Instant::now()) {
                        self.reconcile_and_note(&namespace, &mut queue).await;
                    }
                    let lag = queue.lag(Instant::now()).as_secs();
                    self.copier.metrics.secret_lag_seconds.set(lag.try_into().unwrap_or(i64::MAX));
                }
            }
        }
    }

    /// The changes of pull secrets. There are other Secrets by the thousand.
    fn watch(&self) -> impl Stream<Item = Result<Event<PartialObjectMeta<Secret>>, watcher::Error>> + use<> {
        let client = || self.copier.cluster.client();
        let apis: Vec<Api<PartialObjectMeta<Secret>>> = if self.namespaces.is_empty() {
            vec![Api::all(client())]
        } else {
            let namespaces = self.namespaces.iter();
            namespaces.map(|name| Api::namespaced(client(), name)).collect()
        };
        let watches = apis.into_iter().flat_map(|api| {
            [Form::ConfigJson, Form::Config].map(|form| {
                let config = watcher::Config::default().fields(&format!("type={}", form.secret_type()));
                watcher(api.clone(), config).default_backoff().boxed()
            })
        });
        select_all(watches)
    }

    /// Adds the namespaces whose pods name copies. No event tells of a copy that was missing before this replica led, or of one
    /// that a pod names because a user copied its text from a pod that the webhook had changed.
    async fn search(&self, queue: &mut WorkQueue) {
        let mut namespaces: Vec<Option<&str>> = self.namespaces.iter().map(|name| Some(name.as_str())).collect();
        if namespaces.is_empty() {
            namespaces.push(None);
        }
        let now = Instant::now();
        for namespace in namespaces {
            let note = |pod: Value| {
                let mut needed = CopiesInUse::default();
                needed.add(&pod);
                if !needed.0.is_empty() {
                    queue.add(pod["metadata"]["namespace"].as_str().unwrap_or_default(), now);
                }
            };
            let pods = self.copier.cluster.objects_in::<Pod>(namespace);
            if let Err(error) = pods.each_metadata("", note).await {
                warn!("the pods without their copy of a pull secret cannot be listed: {error}");
            }
        }
    }

    async fn reconcile_and_note(&self, namespace: &str, queue: &mut WorkQueue) {
        match self.reconcile(namespace).await {
            Ok(has_copies) => queue.done(namespace, has_copies),
            Err(error) => {
                warn!(
                    "the copies of pull secrets in {namespace} could not be updated and will be tried again: {error}"
                );
                queue.add(namespace, Instant::now() + RETRY);
            }
        }
    }

    fn secrets(&self, namespace: &str) -> Objects {
        self.copier.cluster.objects::<Secret>(namespace)
    }

    /// Whether there is a copy, or should be.
    async fn reconcile(&self, namespace: &str) -> Result<bool, ClusterError> {
        let copies = self.secrets(namespace).list(&select_copies()).await?;
        let copies: Vec<Value> = copies.into_iter().filter(|copy| source_of(copy).is_some()).collect();
        let mut needed = CopiesInUse::default();
        let pods = self.copier.cluster.objects::<Pod>(namespace);
        pods.each_metadata("", |pod| needed.add(&pod)).await?;
        let mut needed = needed.0;
        if copies.is_empty() && needed.is_empty() {
            return Ok(false);
        }
        // A copy that fails holds up no other copy.
        let mut reconciled = Ok(true);
        for copy in &copies {
            let wanted = needed.remove(copy["metadata"]["name"].as_str().unwrap_or_default());
            reconciled = self.reconcile_one(namespace, copy, wanted).await.and(reconciled);
        }
        for (name, wanted) in needed {
            reconciled = self.bring_back(namespace, &name, &wanted).await.and(reconciled);
        }
        reconciled
    }

    /// `wanted`: the use that pods have for the copy; none when no pod names it.
    async fn reconcile_one(&self, namespace: &str, copy: &Value, wanted: Option<CopyUse>) -> Result<(), ClusterError> {
        let source = source_of(copy).unwrap_or_default();
        let name = copy["metadata"]["name"].as_str().unwrap_or_default();
        let secrets = self.secrets(namespace);
        let Some(wanted) = wanted else {
            return match UnusedCopy::decide(copy, self.keep, Timestamp::now()) {
                UnusedCopy::Keep => Ok(()),
                UnusedCopy::Mark => mark_unused(&secrets, name, copy).await,
                UnusedCopy::Delete => self.delete(namespace, copy, "no pod names it any more").await,
            };
        };
        // Not only by the copy's own annotations, which a user may have edited.
        let registries = registries_of(copy).union(&wanted.registries).cloned().collect();
        let Some(source) = secrets.get(source).await? else {
            // The garbage collector's, which knows its owner.
            return Ok(());
        };
        let Ok(keyring) = Keyring::of(&source) else {
            return self
                .delete(namespace, copy, "its source is no pull secret any more")
                .await;
        };
        let request = CopyRequest {
            namespace,
            source: &source,
            keyring: &keyring,
            registries: &registries,
        };
        // It has just been read: in a namespace with many, one request less for each.
        if self.copier.is_up_to_date(copy, &request) {
            return Ok(());
        }
        match self.copier.restore(name, &request).await {
            Ok(()) => Ok(()),
            Err(NoCopyError::Nothing(_)) => {
                let why = "its source is for no accelerated registry any more";
                self.delete(namespace, copy, why).await
            }
            Err(NoCopyError::Cluster(error)) => Err(error),
            Err(error) => {
                warn!("a copy in {namespace} stays unchanged: {error}");
                Ok(())
            }
        }
    }

    /// In the version that was read: a replica that has put the copy to use since has also written it.
    async fn delete(&self, namespace: &str, copy: &Value, why: &str) -> Result<(), ClusterError> {
        let source = source_of(copy).unwrap_or_default();
        let name = copy["metadata"]["name"].as_str().unwrap_or_default();
        info!("the copy of Secret {namespace}/{source} is deleted: {why}");
        match self.secrets(namespace).delete(name, Some(&copy["metadata"])).await {
            Ok(()) => self.copier.metrics.count_write(CopyWrite::Deleted),
            Err(ClusterError::Conflict(_)) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn bring_back(&self, namespace: &str, name: &str, wanted: &CopyUse) -> Result<(), ClusterError> {
        let Some(source) = self.secrets(namespace).get(&wanted.source).await? else {
            return Ok(());
        };
        let Ok(keyring) = Keyring::of(&source) else {
            return Ok(());
        };
        let request = CopyRequest {
            namespace,
            source: &source,
            keyring: &keyring,
            registries: &wanted.registries,
        };
        match self.copier.restore(name, &request).await {
            Ok(()) => info!("Secret {namespace}/{name}, which pods need, is restored"),
            Err(NoCopyError::Cluster(error)) => return Err(error),
            Err(error) => debug!("Secret {namespace}/{name}, which pods need, cannot be restored: {error}"),
        }
        Ok(())
    }
}

/// Marks `copy` as unused from now on, unless it has changed since it was read.
async fn mark_unused(secrets: &Objects, name: &str, copy: &Value) -> Result<(), ClusterError> {
    let mut marked = copy.clone();
    if let Some(annotations) = marked
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut)
    {
        annotations.insert(UNUSED_SINCE.to_owned(), json!(Timestamp::now().to_string()));
    }
    match secrets.replace(name, &marked).await {
        Ok(()) | Err(ClusterError::Conflict(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Queues the namespace of a changed Secret.
fn enqueue(queue: &mut WorkQueue, event: &Event<PartialObjectMeta<Secret>>) {
    let (Event::Apply(secret) | Event::Delete(secret) | Event::InitApply(secret)) = event else {
        return;
    };
    let namespace = secret.namespace().unwrap_or_default();
    let is_copy = secret.labels().get(COPY_LABEL).is_some_and(|value| value == "true");
    queue.note(&namespace, is_copy, Instant::now());
}
