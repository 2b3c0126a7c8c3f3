//! `kubectl piecemeal uninstall-check`.

use std::collections::BTreeSet;

use anyhow::bail;
use clap::Args;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Pod, Secret},
};
use piecemeal_webhook::{accelerated_images, recorded_copies, select_copies};
use serde_json::Value;

use super::{
    cluster::ClusterArgs,
    installation::{selector, text},
    status::Row,
};

#[derive(Args, Debug)]
pub(in crate::cli) struct UninstallCheckArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) async fn run(args: &UninstallCheckArgs) -> anyhow::Result<()> {
    let cluster = args.cluster.connect().await?;
    let pods = cluster.all_objects::<Pod>().list("").await?;
    let name = |object: &Value| {
        format!(
            "{}/{}",
            text(&object["metadata"]["namespace"]),
            text(&object["metadata"]["name"])
        )
    };
    let still: Vec<String> = pods
        .iter()
        .filter(|pod| !accelerated_images(pod).is_empty())
        .map(name)
        .collect();
    say!(
        "{} pods name accelerated images{}",
        still.len(),
        if still.is_empty() { "" } else { ":" }
    );
    for pod in &still {
        say!("  {pod}");
    }

    let needed: BTreeSet<String> = pods
        .iter()
        .flat_map(|pod| {
            let namespace = text(&pod["metadata"]["namespace"]);
            recorded_copies(pod)
                .into_iter()
                .map(move |copy| format!("{namespace}/{copy}"))
        })
        .collect();
    let (mut copies, mut in_use) = (0, 0);
    let count = |copy: Value| {
        copies += 1;
        in_use += u32::from(needed.contains(&name(&copy)));
    };
    cluster
        .all_objects::<Secret>()
        .each_metadata(&select_copies(), count)
        .await?;
    say!("{copies} copies of pull secrets, {in_use} of them needed by those pods");

    let namespace = args.cluster.installed_in();
    let mut away = 0;
    for set in cluster.objects_in::<DaemonSet>(namespace).list(&selector(None)).await? {
        let row = Row::of(&set);
        if row.component == "node" {
            away += row.wanted - row.ready;
        }
    }
    say!("{away} nodes do not answer, and would keep their files, which lead to the registries themselves");
    if still.is_empty() {
        say!("nothing holds up an uninstallation");
        return Ok(());
    }
    bail!(
        "take the label off their pod templates and namespaces and recreate those pods first; on a node that keeps its fallback files they \
         would still be pulled, from the registries themselves"
    )
}
