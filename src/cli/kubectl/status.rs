//! `kubectl piecemeal status`.

use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use piecemeal_webhook::Cluster;
use serde_json::Value;

use super::{
    cluster::ClusterArgs,
    installation::{selector, text, workloads},
};
use crate::cli::status::render;

#[derive(Args, Debug)]
pub(in crate::cli) struct StatusArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) async fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let cluster = args.cluster.connect().await?;
    let namespace = args.cluster.installed_in();
    let mut rows = Vec::new();
    for kind in workloads(&cluster, namespace) {
        rows.extend(kind.list(&selector(None)).await?.iter().map(Row::of));
    }
    if rows.is_empty() {
        anyhow::bail!("Piecemeal is not installed in this cluster");
    }
    rows.sort_by(|one, other| (&one.component, &one.pool).cmp(&(&other.component, &other.pool)));
    say!("{:<12} {:<20} {:>9}  NAMESPACE/NAME", "COMPONENT", "POOL", "READY");
    for row in &rows {
        let ready = format!("{}/{}", row.ready, row.wanted);
        say!("{:<12} {:<20} {ready:>9}  {}", row.component, row.pool, row.name);
    }
    for (component, port) in [("mirror", 65013), ("scheduler", 65014)] {
        let pods = cluster.objects_in::<Pod>(namespace);
        for pod in pods.list(&selector(Some(component))).await? {
            say!("\n{}", daemon(&cluster, &pod, port).await.trim_end());
        }
    }
    Ok(())
}

/// What a workload wants, and has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub component: String,
    pub pool: String,
    pub name: String,
    pub wanted: i64,
    pub ready: i64,
}

impl Row {
    pub(super) fn of(workload: &Value) -> Self {
        let metadata = &workload["metadata"];
        let number = |pointer: &str| workload.pointer(pointer).and_then(Value::as_i64);
        Self {
            component: text(&metadata["labels"]["app.kubernetes.io/component"]),
            pool: text(&metadata["labels"]["piecemeal.dev/pool"]),
            name: format!("{}/{}", text(&metadata["namespace"]), text(&metadata["name"])),
            wanted: number("/status/desiredNumberScheduled")
                .or_else(|| number("/spec/replicas"))
                .unwrap_or(0),
            ready: number("/status/numberReady")
                .or_else(|| number("/status/readyReplicas"))
                .unwrap_or(0),
        }
    }
}

/// What a daemon says of itself, asked through the API server.
async fn daemon(cluster: &Cluster, pod: &Value, port: u16) -> String {
    let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
    match cluster.daemon_status(&namespace, &name, port).await {
        Ok(Some(value)) => render(&format!("{namespace}/{name}"), &value),
        Ok(None) => format!("{namespace}/{name}: it has no status"),
        Err(error) => {
            format!("{namespace}/{name}: not reached through the API server, as edge nodes often are not: {error}")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_workload_says_how_many_are_ready_by_its_kind() {
        let labels = json!({"app.kubernetes.io/component": "peer", "piecemeal.dev/pool": "a"});
        let metadata = json!({"namespace": "n", "name": "x", "labels": labels});
        let set = json!({"metadata": metadata, "status": {"desiredNumberScheduled": 3, "numberReady": 2}});
        let row = Row::of(&set);
        assert_eq!(
            (row.component.as_str(), row.pool.as_str(), row.wanted, row.ready),
            ("peer", "a", 3, 2)
        );
        let deployment = json!({"metadata": metadata, "spec": {"replicas": 2}, "status": {}});
        let row = Row::of(&deployment);
        assert_eq!((row.wanted, row.ready), (2, 0));
    }
}
