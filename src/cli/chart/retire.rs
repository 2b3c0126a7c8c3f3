//! `piecemeal chart retire`: first takes the webhook out of the way of new pods, then deletes the objects that are no longer
//! needed.

use std::{collections::BTreeSet, time::Duration};

use anyhow::bail;
use clap::Args;
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    core::v1::{Pod, Secret},
};
use piecemeal_webhook::{COPY_LABEL, Cluster, ClusterError, accelerated_images, select_copies};
use serde_json::Value;
use tokio::time::sleep;

#[derive(Args, Debug)]
pub(in crate::cli) struct RetireArgs {
    /// The webhook's MutatingWebhookConfiguration
    #[arg(long, value_name = "NAME")]
    webhook_configuration: String,
    /// A namespace that may have copies of pull secrets; absent: all; may be repeated
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    secrets_namespaces: Vec<String>,
    /// Refuse while a pod still names an accelerated image
    #[arg(long)]
    strict: bool,
}

pub(super) async fn run(args: &RetireArgs) -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    if args.strict {
        let still = look_at_pods(&cluster).await?.still;
        if still > 0 {
            bail!(
                "{still} pods still name accelerated images, and nothing was removed: recreate them without the label and uninstall again, or \
                 `helm rollback` and `helm upgrade --set uninstall.strict=false` before"
            );
        }
    }
    cluster
        .all_objects::<MutatingWebhookConfiguration>()
        .delete(&args.webhook_configuration, None)
        .await?;
    say!("new pods are no longer changed");
    // Those that were asked about before are stored by then.
    sleep(SETTLE).await;
    let pods = look_at_pods(&cluster).await?;
    delete_copies(&cluster, args, &pods.needed).await
}

/// What the pods of the cluster still need.
#[derive(Default)]
struct Pods {
    /// How many name accelerated images.
    still: usize,
    /// The Secrets that they are pulled with, as namespace and name.
    needed: BTreeSet<(String, String)>,
}

/// Page by page: there may be a hundred thousand.
async fn look_at_pods(cluster: &Cluster) -> anyhow::Result<Pods> {
    let mut pods = Pods::default();
    let look = |pod: Value| {
        let is_over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if is_over || accelerated_images(&pod).is_empty() {
            return;
        }
        let text = |name: &str| pod["metadata"][name].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        match pods.still {
            0..TOLD_MAX => say!("{namespace}/{name} still names accelerated images"),
            TOLD_MAX => say!("… and more"),
            _ => {}
        }
        pods.still += 1;
        let secrets = pod["spec"]["imagePullSecrets"].as_array().into_iter().flatten();
        let secrets = secrets.filter_map(|secret| secret["name"].as_str().map(ToOwned::to_owned));
        pods.needed.extend(secrets.map(|secret| (namespace.clone(), secret)));
    };
    cluster.all_objects::<Pod>().each("", look).await?;
    Ok(pods)
}

/// A copy that a pod needs stays, and goes with its source.
async fn delete_copies(
    cluster: &Cluster,
    args: &RetireArgs,
    needed: &BTreeSet<(String, String)>,
) -> anyhow::Result<()> {
    let namespaces = match args.secrets_namespaces.as_slice() {
        [] => vec![None],
        namespaces => namespaces
            .iter()
            .map(|name| Some(name.as_str()).filter(|name| !name.is_empty()))
            .collect(),
    };
    let (mut deleted, mut kept) = (0, 0);
    for namespace in namespaces {
        let mut copies = Vec::new();
        let note = |mut copy: Value| copies.push(copy["metadata"].take());
        cluster
            .objects_in::<Secret>(namespace)
            .each_metadata(&select_copies(), note)
            .await?;
        for copy in copies {
            let text = |name: &str| copy[name].as_str().unwrap_or_default().to_owned();
            let (namespace, name) = (text("namespace"), text("name"));
            if needed.contains(&(namespace.clone(), name.clone())) {
                kept += 1;
                continue;
            }
            match cluster.objects::<Secret>(&namespace).delete(&name, Some(&copy)).await {
                Ok(()) => deleted += 1,
                Err(ClusterError::Conflict(_)) => kept += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }
    say!("{deleted} copies of pull secrets are deleted, {kept} are still needed");
    if kept > 0 {
        say!("once those pods are gone: kubectl delete secrets --all-namespaces --selector {COPY_LABEL}=true");
    }
    Ok(())
}

/// Longer than an API server asks a webhook.
const SETTLE: Duration = Duration::from_secs(6);
const TOLD_MAX: usize = 50;
