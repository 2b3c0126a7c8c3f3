//! `kubectl piecemeal node NODE`.

use anyhow::Context;
use clap::Args;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::Value;

use super::{
    cluster::ClusterArgs,
    installation::{selector, text},
};
use crate::cli::status::render;

#[derive(Args, Debug)]
pub(in crate::cli) struct NodeArgs {
    /// The node
    node: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) async fn run(args: &NodeArgs) -> anyhow::Result<()> {
    let cluster = args.cluster.connect().await?;
    let node = cluster.all_objects::<Node>().get(&args.node).await?;
    let node = node.with_context(|| format!("there is no node {}", args.node))?;
    say!(
        "{}: {}",
        args.node,
        text(&node["status"]["nodeInfo"]["containerRuntimeVersion"])
    );
    let namespace = args.cluster.installed_in();
    let pods = cluster.objects_in::<Pod>(namespace).list(&selector(None)).await?;
    let here: Vec<&Value> = pods
        .iter()
        .filter(|pod| pod["spec"]["nodeName"] == *args.node.as_str())
        .collect();
    if here.is_empty() {
        say!(
            "no component of Piecemeal runs on it: its runtime does not know accelerated names, unless it was configured by hand"
        );
        return Ok(());
    }
    for pod in here {
        let component = text(&pod["metadata"]["labels"]["app.kubernetes.io/component"]);
        let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
        say!("{component}: {namespace}/{name} is {}", text(&pod["status"]["phase"]));
        if component != "node" {
            continue;
        }
        match cluster.daemon_status(&namespace, &name, NODE_ADMIN_PORT).await {
            Ok(Some(value)) => say!("{}", render(&args.node, &value).trim_end()),
            Ok(None) => say!("  it has no status"),
            Err(error) => {
                say!("  not reached through the API server ({error}); on the node itself: piecemeal node status");
            }
        }
    }
    Ok(())
}

const NODE_ADMIN_PORT: u16 = 65017;
