//! Reconciler of the existing copies: they follow their sources, come back while a pod still needs them, and go when no pod has named
//! them for long.
//!
//! Events only say where to look. The objects themselves are read again each time, so that a missed event costs time and
//! nothing else.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use futures_util::{StreamExt, stream::select_all};
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
    ensure::{Copier, NoCopyError},
};
use crate::{
    cluster::{ClusterError, Objects, is_object_name},
    decide::{
        image::Image,
        keyring::{Form, Keyring},
        patch::records,
    },
    metrics::CopyWrite,
};

/// Changes that come together are looked at once.
const SETTLE: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(250);
/// How often every namespace with a copy is looked at without an event, and pods are searched for others that miss one.
const EVERYTHING_EVERY: Duration = Duration::from_secs(10 * 60);
/// The same where unused copies are kept for less: no more often than this.
const EVERYTHING_EVERY_MIN: Duration = Duration::from_secs(1);
/// The most images and secrets of one pod's record that are looked at.
const PER_POD_MAX: usize = 64;
/// How old a copy is before it can be unused.
const GRACE: Duration = Duration::from_secs(60);
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

/// Namespaces to reconcile, and when.
#[derive(Debug, Default)]
struct WorkQueue {
    due: HashMap<String, Instant>,
    /// The moment of the earliest change that waits, by namespace.
    since: HashMap<String, Instant>,
    /// The namespaces where copies are, or should be.
    known: BTreeSet<String>,
}

impl WorkQueue {
    fn add(&mut self, namespace: &str, at: Instant) {
        self.due.entry(namespace.to_owned()).or_insert(at);
    }

    fn changed(&mut self, namespace: &str, now: Instant) {
        self.since.entry(namespace.to_owned()).or_insert(now);
        self.add(namespace, now + SETTLE);
    }

    fn take_due(&mut self, now: Instant) -> Option<String> {
        let namespace = self.due.iter().find(|(_, at)| **at <= now)?.0.clone();
        self.due.remove(&namespace);
        Some(namespace)
    }

    fn lag(&self, now: Instant) -> Duration {
        let waits = self.since.values().map(|since| now.duration_since(*since));
        waits.max().unwrap_or_default()
    }
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
        // Of all secrets only those that are pull secrets: there are others by the thousand.
        let watches = self.watched().into_iter().flat_map(|api| {
            [Form::ConfigJson, Form::Config].map(|form| {
                let config = watcher::Config::default().fields(&format!("type={}", form.secret_type()));
                watcher(api.clone(), config).default_backoff().boxed()
            })
        });
        let mut events = select_all(watches);
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
                        for namespace in queue.known.clone() {
                            queue.add(&namespace, now);
                        }
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

    fn watched(&self) -> Vec<Api<PartialObjectMeta<Secret>>> {
        let client = || self.copier.cluster.client();
        if self.namespaces.is_empty() {
            return vec![Api::all(client())];
        }
        self.namespaces
            .iter()
            .map(|namespace| Api::namespaced(client(), namespace))
            .collect()
    }

    /// Adds the namespaces whose pods name copies. No event tells of a copy that was missing before this replica led, or of one
    /// that a pod names because a user copied its text from a pod that the webhook had changed.
    async fn search(&self, queue: &mut WorkQueue) {
        let mut namespaces: Vec<&str> = self.namespaces.iter().map(String::as_str).collect();
        if namespaces.is_empty() {
            namespaces.push("");
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
            let pods = self.copier.cluster.objects::<Pod>(namespace);
            if let Err(error) = pods.each_metadata("", note).await {
                warn!("the pods without their copy of a pull secret cannot be listed: {error}");
            }
        }
    }

    async fn reconcile_and_note(&self, namespace: &str, queue: &mut WorkQueue) {
        match self.reconcile(namespace).await {
            Ok(has_copies) => {
                queue.since.remove(namespace);
                if has_copies {
                    queue.known.insert(namespace.to_owned());
                } else {
                    queue.known.remove(namespace);
                }
            }
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
        let delete = async |why: &str| {
            info!("the copy of Secret {namespace}/{source} is deleted: {why}");
            // In the version that was looked at: a replica that has put the copy to use since has also written it.
            match secrets.delete(name, Some(&copy["metadata"])).await {
                Ok(()) => self.copier.metrics.count_write(CopyWrite::Deleted),
                Err(ClusterError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        };
        let Some(wanted) = wanted else {
            return match unused_for(copy, Timestamp::now()) {
                // The pod that it was made for may not be stored yet.
                None if age(copy, Timestamp::now()) < GRACE.min(self.keep) => Ok(()),
                None => mark_unused(&secrets, name, copy).await,
                Some(unused) if unused >= self.keep => delete("no pod names it any more").await,
                Some(_) => Ok(()),
            };
        };
        // Not only by the copy's own annotations, which a user may have edited.
        let registries = registries_of(copy).union(&wanted.registries).cloned().collect();
        let Some(source) = secrets.get(source).await? else {
            // The garbage collector's, which knows its owner.
            return Ok(());
        };
        let Ok(keyring) = Keyring::of(&source) else {
            return delete("its source is no pull secret any more").await;
        };
        // It has just been read: in a namespace with many, one request less for each.
        if self.copier.is_up_to_date(copy, &source, &keyring, &registries) {
            return Ok(());
        }
        match self
            .copier
            .restore(name, namespace, &source, &keyring, &registries)
            .await
        {
            Ok(()) => Ok(()),
            Err(NoCopyError::Nothing(_)) => delete("its source is for no accelerated registry any more").await,
            Err(NoCopyError::Cluster(error)) => Err(error),
            Err(error) => {
                warn!("a copy in {namespace} stays unchanged: {error}");
                Ok(())
            }
        }
    }

    async fn bring_back(&self, namespace: &str, name: &str, wanted: &CopyUse) -> Result<(), ClusterError> {
        let Some(source) = self.secrets(namespace).get(&wanted.source).await? else {
            return Ok(());
        };
        let Ok(keyring) = Keyring::of(&source) else {
            return Ok(());
        };
        match self
            .copier
            .restore(name, namespace, &source, &keyring, &wanted.registries)
            .await
        {
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

/// The source and the registries of a copy that pods name.
#[derive(Debug, Default, PartialEq, Eq)]
struct CopyUse {
    source: String,
    registries: BTreeSet<String>,
}

/// The copies that pods need, by name, as the pods' annotations record it.
#[derive(Debug, Default, PartialEq, Eq)]
struct CopiesInUse(BTreeMap<String, CopyUse>);

impl CopiesInUse {
    /// Of `pod` the metadata is enough. A user who may create pods may write anything there, and these become paths.
    fn add(&mut self, pod: &Value) {
        for record in records(pod) {
            self.add_record(&record);
        }
    }

    fn add_record(&mut self, record: &Value) {
        let images = record["images"].as_array().into_iter().flatten();
        let originals = images.filter_map(|image| image["original"].as_str()?.parse::<Image>().ok());
        let registries: BTreeSet<String> = originals.take(PER_POD_MAX).map(|image| image.registry).collect();
        for (source, copy) in record["secrets"].as_object().into_iter().flatten().take(PER_POD_MAX) {
            let Some(copy) = copy
                .as_str()
                .filter(|copy| is_object_name(copy) && is_object_name(source))
            else {
                continue;
            };
            let entry = self.0.entry(copy.to_owned()).or_default();
            entry.source.clone_from(source);
            entry.registries.extend(registries.iter().cloned());
        }
    }
}

/// None for a copy that is not marked.
fn unused_for(copy: &Value, now: Timestamp) -> Option<Duration> {
    let since: Timestamp = copy["metadata"]["annotations"][UNUSED_SINCE].as_str()?.parse().ok()?;
    Some(Duration::try_from(now.duration_since(since)).unwrap_or_default())
}

fn age(copy: &Value, now: Timestamp) -> Duration {
    let created = copy["metadata"]["creationTimestamp"]
        .as_str()
        .and_then(|text| text.parse::<Timestamp>().ok());
    created.map_or(Duration::MAX, |created| {
        Duration::try_from(now.duration_since(created)).unwrap_or_default()
    })
}

/// Queues the namespace of every copy, and of every pull secret beside copies.
fn enqueue(queue: &mut WorkQueue, event: &Event<PartialObjectMeta<Secret>>) {
    let (Event::Apply(secret) | Event::Delete(secret) | Event::InitApply(secret)) = event else {
        return;
    };
    let namespace = secret.namespace().unwrap_or_default();
    let is_copy = secret.labels().get(COPY_LABEL).is_some_and(|value| value == "true");
    if is_copy {
        queue.known.insert(namespace.clone());
    }
    if is_copy || queue.known.contains(&namespace) {
        queue.changed(&namespace, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pods_need_is_read_from_their_annotations() {
        let record = json!({
            "images": [{"container": "c", "original": "a.io/x:1", "image": "y"}, {"container": "d", "original": "nginx", "image": "z"}],
            "secrets": {"s": "acr-credential-s-p2p", "../../other/secrets/t": "acr-credential-t-p2p", "u": "../x"},
        });
        let pods = [
            json!({"metadata": {"annotations": {"k8s.aliyun.com/p2p-config": record.to_string()}}}),
            json!({"metadata": {"annotations": {"piecemeal.dev/config": "no JSON"}}}),
            json!({"metadata": {}}),
        ];
        let registries = BTreeSet::from(["a.io".to_owned(), "docker.io".to_owned()]);
        let expected = CopyUse {
            source: "s".to_owned(),
            registries,
        };
        let mut needed = CopiesInUse::default();
        for pod in &pods {
            needed.add(pod);
        }
        assert_eq!(
            needed.0,
            BTreeMap::from([("acr-credential-s-p2p".to_owned(), expected)])
        );
    }

    #[test]
    fn changes_that_come_together_are_looked_at_once() {
        let mut queue = WorkQueue::default();
        let now = Instant::now();
        queue.changed("a", now);
        queue.changed("a", now + SETTLE / 2);
        assert_eq!(queue.take_due(now + SETTLE / 2), None);
        assert_eq!(queue.take_due(now + SETTLE), Some("a".to_owned()));
        assert_eq!(queue.take_due(now + SETTLE), None);
        assert_eq!(queue.lag(now + 2 * SETTLE), 2 * SETTLE);
    }

    #[test]
    fn an_unused_copy_has_its_time() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let copy = |since: &str| json!({"metadata": {"annotations": {UNUSED_SINCE: since}}});
        assert_eq!(
            unused_for(&copy("2026-01-01T00:00:00Z"), now),
            Some(Duration::from_secs(24 * 3600))
        );
        assert_eq!(unused_for(&copy("2026-01-03T00:00:00Z"), now), Some(Duration::ZERO));
        assert_eq!(unused_for(&json!({}), now), None);
    }
}
