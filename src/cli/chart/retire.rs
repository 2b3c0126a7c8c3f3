//! `piecemeal chart retire`: first nothing new gets an accelerated name, then what nobody needs goes.

use std::collections::BTreeSet;

use anyhow::bail;
use clap::Args;
use piecemeal_webhook::{COPY_LABEL, Cluster, ClusterError, accelerated_images, core_path, recorded_copies};
use serde_json::Value;

#[derive(Args, Debug)]
pub(in crate::cli) struct RetireArgs {
    /// The webhook's own namespace
    #[arg(long, value_name = "NAME")]
    namespace: String,
    /// Its MutatingWebhookConfiguration
    #[arg(long, value_name = "NAME")]
    webhook_configuration: String,
    /// What the names of its own objects begin with
    #[arg(long, value_name = "NAME")]
    release: String,
    /// A namespace that may have copies of pull secrets; none: all; may repeat
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    secrets_namespaces: Vec<String>,
    /// Refuse while a pod still names an accelerated image
    #[arg(long)]
    strict: bool,
}

pub(super) async fn run(args: &RetireArgs) -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    let pods = cluster.list("/api/v1/pods", "").await?;
    let still: Vec<&Value> = pods.iter().filter(|pod| !accelerated_images(pod).is_empty()).collect();
    tell(&still);
    if args.strict && !still.is_empty() {
        bail!(
            "{} pods still name accelerated images, and nothing was removed: recreate them without the label first, or uninstall with \
             uninstall.strict=false",
            still.len()
        );
    }
    let configurations = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    cluster
        .delete(&format!("{configurations}/{}", args.webhook_configuration), None)
        .await?;
    println!("new pods are created as they are written, from now on");
    delete_copies(&cluster, args, &pods).await?;
    let secret = format!("{}-webhook-ca", args.release);
    cluster
        .delete(&core_path(&args.namespace, "secrets", &secret), None)
        .await?;
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", args.namespace);
    cluster
        .delete(&format!("{leases}/{}-webhook", args.release), None)
        .await?;
    Ok(())
}

fn tell(pods: &[&Value]) {
    for pod in pods.iter().take(TOLD_MAX) {
        let metadata = &pod["metadata"];
        let text = |name: &str| metadata[name].as_str().unwrap_or_default();
        println!("{}/{} still names accelerated images", text("namespace"), text("name"));
    }
    if pods.len() > TOLD_MAX {
        println!("… and {} more", pods.len() - TOLD_MAX);
    }
}

/// A copy that a pod needs stays, and goes with its source.
async fn delete_copies(cluster: &Cluster, args: &RetireArgs, pods: &[Value]) -> anyhow::Result<()> {
    let needed: BTreeSet<(String, String)> = pods
        .iter()
        .flat_map(|pod| {
            let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
            recorded_copies(pod)
                .into_iter()
                .map(move |copy| (namespace.clone(), copy))
        })
        .collect();
    let lists: Vec<String> = match args.secrets_namespaces.as_slice() {
        [] => vec!["/api/v1/secrets".to_owned()],
        namespaces => namespaces
            .iter()
            .map(|namespace| core_path(namespace, "secrets", ""))
            .collect(),
    };
    let (mut deleted, mut kept) = (0, 0);
    for list in lists {
        let selector = format!("labelSelector={}%3Dtrue", COPY_LABEL.replace('/', "%2F"));
        for copy in cluster.list(&list, &selector).await? {
            let text = |name: &str| copy["metadata"][name].as_str().unwrap_or_default().to_owned();
            let (namespace, name) = (text("namespace"), text("name"));
            if needed.contains(&(namespace.clone(), name.clone())) {
                kept += 1;
                continue;
            }
            match cluster
                .delete(&core_path(&namespace, "secrets", &name), Some(&copy["metadata"]))
                .await
            {
                Ok(()) => deleted += 1,
                Err(ClusterError::Conflict(_)) => kept += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }
    println!("{deleted} copies of pull secrets are deleted, {kept} are still needed");
    if kept > 0 {
        println!("once those pods are gone: kubectl delete secrets --all-namespaces --selector {COPY_LABEL}=true");
    }
    Ok(())
}

const TOLD_MAX: usize = 50;
