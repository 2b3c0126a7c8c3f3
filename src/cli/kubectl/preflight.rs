//! `kubectl piecemeal preflight`: checks a cluster for each problem that an installation is known to have run into.

use std::collections::BTreeMap;

use anyhow::bail;
use clap::Args;
use k8s_openapi::{
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        core::v1::{Node, Pod},
    },
    apimachinery::pkg::version::Info,
};
use piecemeal_webhook::{Cluster, ClusterError, LABELS, P2P, accelerated_images};
use serde_json::{Value, json};

use super::{
    cluster::ClusterArgs,
    installation::{Installation, selector, text, workloads},
    status::Row,
};

#[derive(Args, Debug)]
pub(in crate::cli) struct PreflightArgs {
    /// Create a pod with this image as a dry run, in --rehearse-in [an image of a registry that needs no pull secret, if any]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// The namespace of that dry run
    #[arg(long, value_name = "NAMESPACE", default_value = "default")]
    rehearse_in: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    Good(String),
    /// It may be meant, or could not be looked at.
    Doubt(String),
    Bad(String),
}

use Finding::{Bad, Doubt, Good};

pub(super) async fn run(args: &PreflightArgs) -> anyhow::Result<()> {
    let cluster = args.cluster.connect().await?;
    let mut findings = vec![version(&cluster).await, nodes(&cluster).await];
    let installed = installed(&cluster, args.cluster.installed_in()).await;
    let is_installed = !matches!(installed.as_slice(), [Doubt(_)]);
    findings.extend(installed);
    if is_installed {
        findings.extend(webhook(&cluster, args).await);
    }
    findings.extend(misplaced_labels(&cluster).await);
    let mut bad = 0;
    for finding in &findings {
        match finding {
            Good(text) => say!("ok    {text}"),
            Doubt(text) => say!("?     {text}"),
            Bad(text) => {
                bad += 1;
                say!("WRONG {text}");
            }
        }
    }
    if bad > 0 {
        bail!("{bad} things are wrong");
    }
    Ok(())
}

async fn version(cluster: &Cluster) -> Finding {
    match cluster.version().await {
        Ok(version) => judge_version(&version),
        Err(error) => Bad(error.to_string()),
    }
}

fn judge_version(version: &Info) -> Finding {
    let told = &version.git_version;
    // Some say "30+".
    let minor: u32 = version
        .minor
        .trim_end_matches(|last: char| !last.is_ascii_digit())
        .parse()
        .unwrap_or(0);
    if minor >= MINOR_MIN {
        Good(format!("Kubernetes {told}"))
    } else {
        Bad(format!("Kubernetes {told}: 1.{MINOR_MIN} or newer is needed"))
    }
}

async fn nodes(cluster: &Cluster) -> Finding {
    match cluster.all_objects::<Node>().list("").await {
        Ok(nodes) => judge_nodes(&nodes),
        Err(error) => Doubt(format!("nodes: {error}")),
    }
}

fn judge_nodes(nodes: &[Value]) -> Finding {
    let mut runtimes: BTreeMap<String, usize> = BTreeMap::new();
    for node in nodes {
        *runtimes
            .entry(text(&node["status"]["nodeInfo"]["containerRuntimeVersion"]))
            .or_default() += 1;
    }
    let told: Vec<String> = runtimes
        .iter()
        .map(|(runtime, count)| format!("{count} with {runtime}"))
        .collect();
    let told = format!("{} nodes: {}", nodes.len(), told.join(", "));
    let is_known = |runtime: &str| {
        ["containerd://", "cri-o://", "docker://"]
            .iter()
            .any(|known| runtime.starts_with(known))
    };
    let unknown: Vec<&str> = runtimes
        .keys()
        .map(String::as_str)
        .filter(|runtime| !is_known(runtime))
        .collect();
    if nodes.is_empty() {
        Doubt("there are no nodes".to_owned())
    } else if unknown.is_empty() {
        Good(told)
    } else {
        Doubt(format!("{told}; node set-up does not know {}", unknown.join(", ")))
    }
}

/// A single doubt when nothing is installed.
async fn installed(cluster: &Cluster, namespace: Option<&str>) -> Vec<Finding> {
    let mut rows = Vec::new();
    for kind in workloads(cluster, namespace) {
        match kind.list(&selector(None)).await {
            Ok(found) => rows.extend(found.iter().map(Row::of)),
            Err(error) => return vec![Bad(error.to_string())],
        }
    }
    if rows.is_empty() {
        return vec![Doubt(
            "Piecemeal is not installed yet; this is what can be seen before".to_owned(),
        )];
    }
    rows.iter().map(judge_row).collect()
}

fn judge_row(row: &Row) -> Finding {
    let what = format!("{} {}", row.component, row.name);
    if row.wanted == 0 && row.component == "peer" {
        Bad(format!(
            "{what}: no node belongs to its pool; compare the pool's id and name with the labels of the nodes"
        ))
    } else if row.wanted == 0 && matches!(row.component.as_str(), "mirror" | "scheduler" | "webhook") {
        Bad(format!("{what}: it is scaled to none"))
    } else if row.ready < row.wanted {
        Bad(format!(
            "{what}: {} of {} are ready; `kubectl describe` it and its pods (peers and node set-up need pod-security.kubernetes.io/enforce=privileged on the namespace)",
            row.ready, row.wanted
        ))
    } else {
        Good(format!("{what}: {} of {} are ready", row.ready, row.wanted))
    }
}

/// Workloads that carry the label themselves, where it does nothing.
async fn misplaced_labels(cluster: &Cluster) -> Vec<Finding> {
    let mut findings = Vec::new();
    for workloads in workloads(cluster, None) {
        let kind = workloads.plural();
        for label in LABELS {
            let Ok(found) = workloads.list(&format!("{label}={P2P}")).await else {
                continue;
            };
            findings.extend(found.iter().filter(|workload| is_misplaced(workload)).map(|workload| {
                let metadata = &workload["metadata"];
                Doubt(format!(
                    "{kind}/{} in {} is labelled {label} itself and not on its pod template, where alone a label counts",
                    text(&metadata["name"]),
                    text(&metadata["namespace"])
                ))
            }));
        }
    }
    findings
}

fn is_misplaced(workload: &Value) -> bool {
    let labels = &workload["spec"]["template"]["metadata"]["labels"];
    LABELS.iter().all(|label| labels[*label] != P2P)
}

async fn webhook(cluster: &Cluster, args: &PreflightArgs) -> Vec<Finding> {
    let installation = match Installation::find(cluster, &args.cluster).await {
        Ok(installation) => installation,
        Err(error) => return vec![Doubt(format!("the webhook was not checked: {error:#}"))],
    };
    let name = &installation.webhook.configuration;
    let configurations = cluster.all_objects::<MutatingWebhookConfiguration>();
    let registered = match configurations.get(name).await {
        Ok(configuration) => judge_registration(name, configuration.as_ref()),
        Err(error) => Doubt(error.to_string()),
    };
    let first = installation.webhook.registries.named().next();
    let image = args
        .image
        .clone()
        .or_else(|| first.map(|registry| format!("{registry}/piecemeal/rehearsal:1")));
    let rehearsed = match image {
        Some(image) => rehearse(cluster, &args.rehearse_in, &image, args.image.is_some()).await,
        None => Doubt("no registry is named without a pattern: rehearse with --image".to_owned()),
    };
    vec![registered, rehearsed]
}

fn judge_registration(name: &str, configuration: Option<&Value>) -> Finding {
    let entries = configuration.and_then(|configuration| configuration["webhooks"].as_array());
    match entries {
        None => Bad(format!(
            "there is no MutatingWebhookConfiguration {name}: no pod is changed"
        )),
        Some(entries)
            if entries
                .iter()
                .any(|entry| text(&entry["clientConfig"]["caBundle"]).is_empty()) =>
        {
            Bad(format!(
                "MutatingWebhookConfiguration {name} has no CA yet, so that the API server does not trust the webhook: see the webhook's log"
            ))
        }
        Some(_) => Good(format!("MutatingWebhookConfiguration {name} has its CA")),
    }
}

/// As a dry run: nothing is stored. `is_sure`: the image was named for it.
async fn rehearse(cluster: &Cluster, namespace: &str, image: &str, is_sure: bool) -> Finding {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "piecemeal-rehearsal-", "namespace": namespace, "labels": {LABELS[0]: P2P}},
        "spec": {"containers": [{"name": "rehearsal", "image": image}], "automountServiceAccountToken": false},
    });
    match cluster.objects::<Pod>(namespace).create(&pod, true).await {
        Ok(created) if !accelerated_images(&created).is_empty() => Good(format!(
            "rehearsal: {image} becomes {}",
            text(&created["spec"]["containers"][0]["image"])
        )),
        Ok(_) if is_sure => Bad(format!(
            "rehearsal: {image} stays as it is in {namespace}; `kubectl piecemeal diff` says why"
        )),
        Ok(_) => Doubt(format!(
            "rehearsal: {image} stays as it is in {namespace}, perhaps for want of a pull secret; try --image"
        )),
        Err(ClusterError::Forbidden(why)) => Doubt(format!("the creation of a pod may not be rehearsed: {why}")),
        Err(error) => Doubt(format!("rehearsal: {error}")),
    }
}

const MINOR_MIN: u32 = 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_has_to_be_new_enough() {
        let version = |minor: &str| {
            judge_version(&Info {
                git_version: format!("v1.{minor}"),
                minor: minor.to_owned(),
                ..Info::default()
            })
        };
        assert!(matches!(version("30+"), Good(_)));
        assert!(matches!(version("35"), Good(_)));
        assert!(matches!(version("29"), Bad(_)));
        assert!(matches!(version(""), Bad(_)));
    }

    #[test]
    fn a_label_counts_on_the_pod_template_alone() {
        let workload = |labels: Value| json!({"spec": {"template": {"metadata": {"labels": labels}}}});
        assert!(is_misplaced(&workload(json!({"app": "x"}))));
        assert!(is_misplaced(&json!({})));
        assert!(!is_misplaced(&workload(json!({LABELS[0]: P2P}))));
        assert!(!is_misplaced(&workload(json!({LABELS[1]: P2P}))));
    }

    #[test]
    fn a_pool_without_nodes_is_wrong() {
        let row = |component: &str, wanted, ready| Row {
            component: component.to_owned(),
            pool: String::new(),
            name: "n/x".to_owned(),
            wanted,
            ready,
        };
        assert!(matches!(judge_row(&row("peer", 0, 0)), Bad(_)));
        assert!(matches!(judge_row(&row("node", 0, 0)), Good(_)));
        assert!(matches!(judge_row(&row("mirror", 1, 0)), Bad(_)));
    }

    #[test]
    fn a_registration_needs_a_ca_in_every_entry() {
        let with = |bundles: &[&str]| {
            let entries: Vec<Value> = bundles
                .iter()
                .map(|bundle| json!({"clientConfig": {"caBundle": bundle}}))
                .collect();
            judge_registration("x", Some(&json!({ "webhooks": entries })))
        };
        assert!(matches!(with(&["a", "b"]), Good(_)));
        assert!(matches!(with(&["a", ""]), Bad(_)));
        assert!(matches!(judge_registration("x", None), Bad(_)));
    }

    #[test]
    fn a_runtime_that_is_not_known_is_told() {
        let node = |runtime: &str| json!({"status": {"nodeInfo": {"containerRuntimeVersion": runtime}}});
        assert!(matches!(
            judge_nodes(&[node("containerd://2.1.4"), node("cri-o://1.33")]),
            Good(_)
        ));
        assert!(matches!(judge_nodes(&[node("mystery://1")]), Doubt(_)));
        assert!(matches!(judge_nodes(&[]), Doubt(_)));
    }
}
