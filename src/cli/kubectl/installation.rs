//! Piecemeal as it is installed in a cluster.

use std::io::Write;

use anyhow::{Context, bail};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    core::v1::{ConfigMap, Namespace},
};
use piecemeal_webhook::{Cluster, ClusterError, Objects, WebhookConfig};
use serde_json::{Map, Value};

use super::cluster::ClusterArgs;
use crate::{
    cli::settings::read_settings,
    config::{Layers, RawWebhook},
};

/// What the installed webhook was told.
pub(super) struct Installation {
    pub webhook: WebhookConfig,
}

impl Installation {
    /// # Errors
    /// There is none, or more than one, or it cannot be read.
    pub(super) async fn find(cluster: &Cluster, args: &ClusterArgs) -> anyhow::Result<Self> {
        let namespace = args.installed_in();
        let config_maps = cluster.objects_in::<ConfigMap>(namespace);
        let found = config_maps
            .list(&selector(Some("webhook")))
            .await
            .map_err(|error| match error {
                ClusterError::Forbidden(_) => {
                    anyhow::anyhow!("{error}\nsay where Piecemeal is installed with --system-namespace")
                }
                error => error.into(),
            })?;
        let config_map = match found.as_slice() {
            [config_map] => config_map,
            [] => bail!("no webhook of Piecemeal is installed in this cluster; see `kubectl piecemeal preflight`"),
            many => {
                let places: Vec<String> = many.iter().map(|one| text(&one["metadata"]["namespace"])).collect();
                bail!(
                    "there are several webhooks, in {}; choose one with --system-namespace",
                    places.join(", ")
                )
            }
        };
        let namespace = text(&config_map["metadata"]["namespace"]);
        let settings = config_map["data"][WEBHOOK_TOML].as_str();
        let settings = settings.with_context(|| format!("its ConfigMap in {namespace} has no {WEBHOOK_TOML}"))?;
        Ok(Self {
            webhook: read(settings, &namespace)?,
        })
    }
}

/// The webhook's settings, as the webhook itself reads them.
fn read(settings: &str, namespace: &str) -> anyhow::Result<WebhookConfig> {
    let mut file = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    file.write_all(settings.as_bytes())?;
    let layers = Layers {
        file: Some(file.path().to_owned()),
        env: vec![("PIECEMEAL_NAMESPACE".into(), namespace.into())],
        flags: RawWebhook::default(),
    };
    let (_, settings, _) = read_settings(&layers, RawWebhook::validate).context("the webhook's settings")?;
    Ok(settings.config)
}

/// The workloads of each kind that the chart has, of one namespace or, where none is named, of all.
pub(super) fn workloads(cluster: &Cluster, namespace: Option<&str>) -> [Objects; 3] {
    [
        cluster.objects_in::<DaemonSet>(namespace),
        cluster.objects_in::<StatefulSet>(namespace),
        cluster.objects_in::<Deployment>(namespace),
    ]
}

/// The label selector of what is installed. `component`: all when absent.
pub(super) fn selector(component: Option<&str>) -> String {
    let component = component.map(|component| format!(",app.kubernetes.io/component={component}"));
    format!("app.kubernetes.io/name=piecemeal{}", component.unwrap_or_default())
}

/// The labels of a namespace.
pub(super) async fn namespace_labels(
    cluster: &Cluster,
    namespace: &str,
) -> Result<Option<Map<String, Value>>, ClusterError> {
    let object = cluster.all_objects::<Namespace>().get(namespace).await?;
    Ok(object.and_then(|object| object["metadata"]["labels"].as_object().cloned()))
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The field of the ConfigMap of the chart.
const WEBHOOK_TOML: &str = "webhook.toml";
