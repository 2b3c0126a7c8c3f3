//! Events on what creates the pods, where `kubectl describe` shows them. The pod itself does not exist yet.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    cluster::{Cluster, core_path, is_object_name},
    decide::plan::Skip,
    metrics::Metrics,
};

/// Events that wait; more are dropped and counted.
const QUEUE: usize = 256;
/// An owner is told the same once in that time, however many pods it creates.
const REPEAT_AFTER: Duration = Duration::from_secs(10 * 60);
/// What the API server makes has 36.
const UID_BYTES_MAX: usize = 64;
/// Owners that are remembered for it.
const REMEMBERED_MAX: usize = 4096;

/// Tells owners what became of their pods, without anybody waiting for it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Events {
    queue: mpsc::Sender<Value>,
    told: Arc<Mutex<HashMap<(String, &'static str), Instant>>>,
    metrics: Metrics,
}

impl Events {
    /// With what is to be told from now on.
    pub(crate) fn new(metrics: Metrics) -> (Self, mpsc::Receiver<Value>) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        (
            Self {
                queue,
                told: Arc::default(),
                metrics,
            },
            waiting,
        )
    }

    pub(crate) fn accelerated(&self, namespace: &str, pod: &Value, images: usize) {
        let message = format!("{images} of the pod's images come through Piecemeal's swarm");
        self.tell(namespace, pod, ["Normal", "Accelerated"], "Accelerated", &message);
    }

    /// Only what somebody who has asked for acceleration would not expect.
    pub(crate) fn skipped(&self, namespace: &str, pod: &Value, skip: &Skip) {
        let is_expected = matches!(
            skip,
            Skip::NotLabelled
                | Skip::Disabled
                | Skip::ExcludedNamespace(_)
                | Skip::MirrorPod
                | Skip::NoAcceleratedImage
                | Skip::AlreadyAccelerated
                | Skip::NotAPod
        );
        if !is_expected {
            let message = format!("{}: images are pulled as ever, since {skip}", skip.reason());
            self.tell(
                namespace,
                pod,
                ["Warning", "AccelerationSkipped"],
                skip.reason(),
                &message,
            );
        }
    }

    /// `news`: what an owner is not told again for a while.
    fn tell(&self, namespace: &str, pod: &Value, [kind, reason]: [&str; 2], news: &'static str, message: &str) {
        let owners = pod["metadata"]["ownerReferences"].as_array();
        let Some(owner) = owners.and_then(|owners| owners.iter().find(|owner| owner["controller"] == true)) else {
            return;
        };
        let uid = owner["uid"].as_str().unwrap_or_default();
        let name = owner["name"].as_str().unwrap_or_default();
        // Nobody has checked them yet, and they are kept.
        if uid.len() > UID_BYTES_MAX || !is_object_name(name) || !self.is_news(uid, news) {
            return;
        }
        let now = Timestamp::now().to_string();
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"generateName": "piecemeal-", "namespace": namespace},
            "involvedObject": {
                "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["name"], "uid": uid, "namespace": namespace,
            },
            "type": kind, "reason": reason, "message": message, "count": 1, "firstTimestamp": now, "lastTimestamp": now,
            "source": {"component": "piecemeal-webhook"},
        });
        if self.queue.try_send(event).is_err() {
            self.metrics.events_dropped.inc();
        }
    }

    fn is_news(&self, uid: &str, news: &'static str) -> bool {
        let now = Instant::now();
        let mut told = self.told.lock().expect("no holder of this lock panics");
        if told.len() >= REMEMBERED_MAX {
            // To be told twice is better than never.
            told.clear();
        }
        let key = (uid.to_owned(), news);
        let is_news = told.get(&key).is_none_or(|at| now.duration_since(*at) >= REPEAT_AFTER);
        if is_news {
            told.insert(key, now);
        }
        is_news
    }
}

/// Writes the events that wait, until told to stop.
pub(crate) async fn write(cluster: Cluster, mut waiting: mpsc::Receiver<Value>, stop: CancellationToken) {
    let writing = async {
        while let Some(event) = waiting.recv().await {
            let namespace = event["metadata"]["namespace"].as_str().unwrap_or_default();
            let path = core_path(namespace, "events", "");
            if let Err(error) = cluster.create(&path, &event, false).await {
                debug!("an event could not be written: {error}");
            }
        }
    };
    stop.run_until_cancelled(writing).await;
}
