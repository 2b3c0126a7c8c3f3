//! `kubectl piecemeal pods --rewritten|--eligible`.

use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use piecemeal_webhook::{accelerated_images, explain, is_recorded};
use serde_json::Value;

use super::{
    cluster::ClusterArgs,
    installation::{Installation, namespace_labels, text},
};

#[derive(Args, Debug)]
#[group(id = "which", required = true, multiple = false)]
pub(in crate::cli) struct PodsArgs {
    /// List pods whose images are accelerated
    #[arg(long, group = "which")]
    rewritten: bool,
    /// List pods that would be accelerated if they were created again
    #[arg(long, group = "which")]
    eligible: bool,
    /// List only the pods of this namespace
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) async fn run(args: &PodsArgs) -> anyhow::Result<()> {
    let cluster = args.cluster.connect().await?;
    let namespace = args.namespace.as_deref().filter(|name| !name.is_empty());
    let pods = cluster.objects_in::<Pod>(namespace).list("").await?;
    let mut found = 0;
    if args.rewritten {
        for pod in pods
            .iter()
            .filter(|pod| is_recorded(pod) || !accelerated_images(pod).is_empty())
        {
            found += 1;
            print(pod, &accelerated_images(pod).into_iter().collect::<Vec<_>>());
        }
    } else {
        let installation = Installation::find(&cluster, &args.cluster).await?;
        let mut labels = std::collections::BTreeMap::new();
        for pod in &pods {
            let namespace = text(&pod["metadata"]["namespace"]);
            if !labels.contains_key(&namespace) {
                labels.insert(namespace.clone(), namespace_labels(&cluster, &namespace).await?);
            }
            let explained = explain(
                &cluster,
                &installation.webhook,
                pod,
                &namespace,
                labels[&namespace].as_ref(),
            )
            .await?;
            if let Ok(preview) = explained.outcome.as_ref()
                && !preview.patch.is_empty()
            {
                found += 1;
                print(
                    pod,
                    &preview
                        .images
                        .iter()
                        .map(|(original, _)| original.clone())
                        .collect::<Vec<_>>(),
                );
            }
        }
    }
    say!("{found} of {} pods", pods.len());
    Ok(())
}

fn print(pod: &Value, images: &[String]) {
    let metadata = &pod["metadata"];
    say!(
        "{}/{}  {}",
        text(&metadata["namespace"]),
        text(&metadata["name"]),
        images.join(" ")
    );
}
