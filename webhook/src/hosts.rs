//! Record of the registries whose images have been accelerated: a ConfigMap that node set-up follows, since a runtime's configuration
//! knows no patterns.
//!
//! A registry that is recorded stays.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::cluster::{Cluster, ClusterError, Objects};

/// The field of the ConfigMap: one registry a line, sorted.
const HOSTS_FIELD: &str = "hosts";
/// The most registries that are recorded: a user who may create pods can name new ones without end.
const HOSTS_MAX: usize = 1000;
/// Pause after a write that failed.
const RETRY: Duration = Duration::from_secs(5);
/// The interval at which the ConfigMap is compared without a change: a user may have deleted it.
const COMPARE_EVERY: Duration = Duration::from_secs(60);

/// The record's registries. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Hosts(Arc<Shared>);

struct Shared {
    met: Mutex<BTreeSet<String>>,
    changed: Notify,
}

impl Hosts {
    /// `named`: the registries that are recorded before an image of theirs is accelerated.
    pub(crate) fn new(named: impl IntoIterator<Item = String>) -> Self {
        let shared = Shared {
            met: Mutex::new(named.into_iter().collect()),
            changed: Notify::new(),
        };
        shared.changed.notify_one();
        Self(Arc::new(shared))
    }

    /// Whether `registries` are recorded, or can be. Nodes would not know the names of others.
    pub(crate) fn have_room_for<'a>(&self, registries: impl Iterator<Item = &'a str>) -> bool {
        let met = self.0.met.lock();
        let new: BTreeSet<&str> = registries.filter(|registry| !met.contains(*registry)).collect();
        met.len() + new.len() <= HOSTS_MAX
    }

    /// Records `registries`, as far as there is room.
    pub(crate) fn add<'a>(&self, registries: impl Iterator<Item = &'a str>) {
        let mut met = self.0.met.lock();
        let mut is_new = false;
        for registry in registries {
            if met.len() < HOSTS_MAX && !met.contains(registry) {
                met.insert(registry.to_owned());
                is_new = true;
            }
        }
        if is_new {
            self.0.changed.notify_one();
        }
    }

    /// Writes the record into the ConfigMap, until told to stop.
    pub(crate) async fn record(self, cluster: Cluster, namespace: String, config_map: String, stop: CancellationToken) {
        let config_maps = cluster.objects::<ConfigMap>(&namespace);
        let recording = async {
            loop {
                let _ = timeout(COMPARE_EVERY, self.0.changed.notified()).await;
                while let Err(error) = self.write(&config_maps, &namespace, &config_map).await {
                    if !matches!(error, ClusterError::Conflict(_)) {
                        warn!("ConfigMap {config_map} could not be written, and is tried again: {error}");
                    }
                    sleep(RETRY).await;
                }
            }
        };
        stop.run_until_cancelled(recording).await;
    }

    async fn write(&self, config_maps: &Objects, namespace: &str, name: &str) -> Result<(), ClusterError> {
        let met = self.0.met.lock().clone();
        match config_maps.get(name).await? {
            None => {
                let config_map = json!({
                    "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace},
                    "data": {HOSTS_FIELD: lines(&met)},
                });
                config_maps.create(&config_map, false).await?;
            }
            Some(mut there) => {
                // What another replica has recorded takes room too, and nothing that is recorded ever goes.
                let all = {
                    let mut met = self.0.met.lock();
                    met.extend(read(&there));
                    met.clone()
                };
                if all == read(&there) {
                    return Ok(());
                }
                if let Some(object) = there.as_object_mut() {
                    object.insert("data".to_owned(), json!({HOSTS_FIELD: lines(&all)}));
                }
                config_maps.replace(name, &there).await?;
            }
        }
        Ok(())
    }
}

fn lines(hosts: &BTreeSet<String>) -> String {
    hosts.iter().map(|host| format!("{host}\n")).collect()
}

fn read(config_map: &Value) -> BTreeSet<String> {
    let text = config_map["data"][HOSTS_FIELD].as_str().unwrap_or_default();
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(ToOwned::to_owned)
        .collect()
}
