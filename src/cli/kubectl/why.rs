//! `kubectl piecemeal why POD`: explains why a pod is accelerated or not.
//!
//! Invariant: it only reads; the steps are those of the webhook's own decision.

use anyhow::{Context, bail};
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use piecemeal_webhook::{Explanation, Skip, explain, is_object_name, is_recorded};
use serde_json::Value;

use super::{
    cluster::ClusterArgs,
    installation::{Installation, namespace_labels, text},
};

#[derive(Args, Debug)]
pub(in crate::cli) struct WhyArgs {
    /// The pod
    pod: String,
    /// The pod's namespace [the context's]
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) async fn run(args: &WhyArgs) -> anyhow::Result<()> {
    let cluster = args.cluster.connect().await?;
    let namespace = args.namespace.as_deref().unwrap_or(cluster.default_namespace());
    if !is_object_name(&args.pod) {
        bail!("{:?} is not a pod's name", args.pod);
    }
    let pod = cluster.objects::<Pod>(namespace).get(&args.pod).await?;
    let pod = pod.with_context(|| format!("there is no pod {} in {}", args.pod, namespace))?;
    let installation = Installation::find(&cluster, &args.cluster).await?;
    let labels = namespace_labels(&cluster, namespace).await?;
    let explanation = explain(&cluster, &installation.webhook, &pod, namespace, labels.as_ref()).await?;
    print_steps(&explanation);
    say!("{}", conclusion(&pod, &explanation));
    Ok(())
}

pub(super) fn print_steps(explanation: &Explanation) {
    for step in &explanation.steps {
        say!(
            "{} {}: {}",
            if step.is_good { "+" } else { "-" },
            step.about,
            step.finding
        );
    }
}

fn conclusion(pod: &Value, explanation: &Explanation) -> String {
    let name = text(&pod["metadata"]["name"]);
    match &explanation.outcome {
        Err(Skip::AlreadyAccelerated) => format!("{name} is accelerated."),
        Err(skip) if is_recorded(pod) => format!("{name} is accelerated; created today it would not be: {skip}."),
        Err(skip) => format!("{name} is not accelerated: {skip}. ({})", skip.reason()),
        Ok(preview) if preview.patch.is_empty() => format!("{name} is accelerated."),
        Ok(_) if is_recorded(pod) => format!("{name} is accelerated in part; created again it would be as above."),
        Ok(_) => format!(
            "{name} is not accelerated, and would be if it were created again: only new pods are changed. It may be older than its label \
             or than the webhook, or the webhook was away when it was created; its owner's events tell. `kubectl rollout restart` its \
             workload."
        ),
    }
}
