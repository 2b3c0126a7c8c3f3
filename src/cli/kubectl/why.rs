//! `kubectl piecemeal why POD`.

use anyhow::Context;
use clap::Args;
use piecemeal_webhook::{Explanation, Skip, core_path, explain, is_recorded};
use serde_json::Value;

use super::{
    ClusterArgs,
    installation::{Installation, namespace_labels, text},
};

#[derive(Args, Debug)]
pub(in crate::cli) struct WhyArgs {
    /// The pod
    pod: String,
    /// Its namespace
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    namespace: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) async fn run(args: &WhyArgs) -> anyhow::Result<()> {
    let cluster = args.cluster.connect().await?;
    let pod = cluster.get(&core_path(&args.namespace, "pods", &args.pod)).await?;
    let pod = pod.with_context(|| format!("there is no pod {} in {}", args.pod, args.namespace))?;
    let installation = Installation::find(&cluster, &args.cluster).await?;
    let labels = namespace_labels(&cluster, &args.namespace).await?;
    let explanation = explain(&cluster, &installation.webhook, &pod, &args.namespace, labels.as_ref()).await?;
    print_steps(&explanation);
    println!("{}", conclusion(&pod, &explanation));
    Ok(())
}

pub(super) fn print_steps(explanation: &Explanation) {
    for step in &explanation.steps {
        println!(
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
