//! `piecemeal chart wait`: Helm waits for Jobs, and not for the DaemonSet that cleans nodes.
//!
//! Invariant: nodes that do not answer within the timeout are named, and are no error.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Pod};
use piecemeal_webhook::Cluster;
use serde_json::Value;
use tokio::time::{Instant, sleep};

#[derive(Args, Debug)]
pub(in crate::cli) struct WaitArgs {
    /// The namespace of the DaemonSet
    #[arg(long, value_name = "NAME")]
    namespace: String,
    /// The DaemonSet whose pod is ready once its node is clean
    #[arg(long, value_name = "NAME")]
    daemonset: String,
    /// The time to wait for nodes that do not answer [default: 2m]
    #[arg(long, value_name = "DURATION", default_value = "2m", hide_default_value = true, value_parser = humantime::parse_duration)]
    timeout: Duration,
}

pub(super) async fn run(args: &WaitArgs) -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    let sets = cluster.objects::<DaemonSet>(&args.namespace);
    let deadline = Instant::now() + args.timeout;
    loop {
        let is_late = Instant::now() >= deadline;
        match sets.get(&args.daemonset).await {
            Ok(None) => bail!("there is no DaemonSet {}", args.daemonset),
            Ok(Some(set)) => match left(&set) {
                Some(0) => {
                    say!("every node is clean");
                    return Ok(());
                }
                left if is_late => return tell(&cluster, args, &set, left).await,
                _ => {}
            },
            Err(error) if is_late => return Err(error.into()),
            Err(_) => {}
        }
        sleep(POLL).await;
    }
}

/// The number of nodes that are still to become ready; none while that is not known.
fn left(set: &Value) -> Option<i64> {
    let status = &set["status"];
    let is_current = status["observedGeneration"].as_i64() >= set["metadata"]["generation"].as_i64();
    let count = |name: &str| status[name].as_i64().unwrap_or(0);
    is_current.then(|| count("desiredNumberScheduled") - count("numberReady"))
}

/// Nodes at the edge may be away for days. The files that they keep say what they are and do no harm.
async fn tell(cluster: &Cluster, args: &WaitArgs, set: &Value, left: Option<i64>) -> anyhow::Result<()> {
    let Some(left) = left else {
        bail!(
            "the cluster does not act on the DaemonSet {}; is its controller manager running?",
            args.daemonset
        );
    };
    let labels = set["spec"]["selector"]["matchLabels"].as_object();
    let labels: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
        .collect();
    let pods = cluster.objects::<Pod>(&args.namespace).list(&labels.join(",")).await?;
    say!("{left} nodes have not answered, and keep files that point to their registries:");
    for pod in pods.iter().filter(|pod| !is_ready(pod)) {
        say!(
            "  {}",
            pod["spec"]["nodeName"]
                .as_str()
                .unwrap_or("(a node that has no pod yet)")
        );
    }
    say!("clean one later with `piecemeal node remove` on it");
    Ok(())
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| {
        all.iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    })
}

const POLL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_are_left_until_all_that_are_wanted_are_ready() {
        let set = |observed: i64, desired: i64, ready: i64| {
            let status =
                json!({"observedGeneration": observed, "desiredNumberScheduled": desired, "numberReady": ready});
            json!({"metadata": {"generation": 2}, "status": status})
        };
        assert_eq!(left(&set(1, 0, 0)), None);
        assert_eq!(left(&set(2, 3, 1)), Some(2));
        assert_eq!(left(&set(2, 3, 3)), Some(0));
        assert_eq!(left(&json!({"metadata": {"generation": 1}})), None);
    }
}
