//! Kubernetes Events about reviews, on the controllers that create the pods: a pod does not exist yet when it is reviewed.
//!
//! No answer waits for an event, and an owner gets the same news once in a while, however many pods it creates.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use k8s_openapi::{api::core::v1::Event, jiff::Timestamp};
use lru::LruCache;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    cluster::{Cluster, is_object_name},
    decide::skip::Skip,
    metrics::Metrics,
};

/// Events that wait; more are dropped and counted.
const QUEUE: usize = 256;
/// The time within which the same news about an owner is not reported again, however many pods it creates.
const REPEAT_AFTER: Duration = Duration::from_secs(10 * 60);
/// The longest UID of an owner that is accepted, in bytes. The API server's own have 36.
const UID_BYTES_MAX: usize = 64;
/// The most reports that are remembered. Beyond that the oldest is forgotten, and may be repeated early.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(16 * 1024).unwrap();

/// Queue of events. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Events {
    queue: mpsc::Sender<Value>,
    reported: Arc<Mutex<Reported>>,
    metrics: Metrics,
}

impl Events {
    /// The queue, and its end for [`write()`].
    pub(crate) fn new(metrics: Metrics) -> (Self, mpsc::Receiver<Value>) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        (
            Self {
                queue,
                reported: Arc::default(),
                metrics,
            },
            waiting,
        )
    }

    pub(crate) fn accelerated(&self, namespace: &str, pod: &Value, images: usize) {
        let message = format!("{images} of the pod's images come through Piecemeal's swarm");
        self.report(namespace, pod, ["Normal", "Accelerated"], "Accelerated", &message);
    }

    /// Only the skips that a user who asked for acceleration would not expect.
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
            let message = format!(
                "{}: images are pulled from their registries, since {skip}",
                skip.reason()
            );
            self.report(
                namespace,
                pod,
                ["Warning", "AccelerationSkipped"],
                skip.reason(),
                &message,
            );
        }
    }

    /// `news`: the key by which a repetition is known.
    fn report(&self, namespace: &str, pod: &Value, [kind, reason]: [&str; 2], news: &'static str, message: &str) {
        let owners = pod["metadata"]["ownerReferences"].as_array();
        let Some(owner) = owners.and_then(|owners| owners.iter().find(|owner| owner["controller"] == true)) else {
            return;
        };
        let uid = owner["uid"].as_str().unwrap_or_default();
        let name = owner["name"].as_str().unwrap_or_default();
        // Both come unchecked from the pod, and are kept in memory.
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
        let mut reported = self.reported.lock();
        reported.is_news(uid, news, Instant::now())
    }
}

/// The reports of the last while: when, by the owner's UID and the news.
struct Reported(LruCache<(String, &'static str), Instant>);

impl Default for Reported {
    fn default() -> Self {
        Self(LruCache::new(REMEMBERED_MAX))
    }
}

impl Reported {
    /// Whether the news about the owner has not been reported within [`REPEAT_AFTER`]; notes it as reported.
    fn is_news(&mut self, uid: &str, news: &'static str, now: Instant) -> bool {
        let key = (uid.to_owned(), news);
        let is_old = |at: &Instant| now.duration_since(*at) < REPEAT_AFTER;
        // Looked at without being used: the one that was reported longest ago goes first.
        if self.0.peek(&key).is_some_and(is_old) {
            return false;
        }
        self.0.put(key, now);
        true
    }
}

/// Writes the events that wait, until told to stop.
pub(crate) async fn write(cluster: Cluster, mut waiting: mpsc::Receiver<Value>, stop: CancellationToken) {
    let writing = async {
        while let Some(event) = waiting.recv().await {
            let namespace = event["metadata"]["namespace"].as_str().unwrap_or_default();
            if let Err(error) = cluster.objects::<Event>(namespace).create(&event, false).await {
                debug!("an event could not be written: {error}");
            }
        }
    };
    stop.run_until_cancelled(writing).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_told_once_in_a_while_whatever_others_are_told() {
        let (mut reported, now) = (Reported::default(), Instant::now());
        assert!(reported.is_news("uid", "Accelerated", now));
        assert!(reported.is_news("uid", "Disabled", now));
        assert!(!reported.is_news("uid", "Accelerated", now + REPEAT_AFTER / 2));
        assert!(reported.is_news("uid", "Accelerated", now + REPEAT_AFTER));
    }

    #[test]
    fn one_owner_too_many_takes_the_place_of_the_one_told_longest_ago() {
        let (mut reported, now) = (Reported::default(), Instant::now());
        let count = REMEMBERED_MAX.get();
        for number in 0..=count {
            assert!(reported.is_news(&number.to_string(), "Accelerated", now));
        }
        for number in 1..=count {
            assert!(!reported.is_news(&number.to_string(), "Accelerated", now));
        }
        assert!(reported.is_news("0", "Accelerated", now));
    }
}
