//! `kubectl piecemeal diff`: shows changes and writes nothing. kubectl itself resolves files and names, so that both mean what they
//! mean in its other commands.

use std::process::Command;

use anyhow::{Context, bail};
use clap::Args;
use piecemeal_webhook::explain;
use serde_json::{Value, json};

use super::{
    cluster::ClusterArgs,
    installation::{Installation, namespace_labels, text},
    why::print_steps,
};

#[derive(Args, Debug)]
pub(in crate::cli) struct DiffArgs {
    /// An existing object, as kubectl names it: deployment/web
    #[arg(required_unless_present = "filename", conflicts_with = "filename")]
    objects: Vec<String>,
    /// A file with objects, or - for standard input
    #[arg(long, short, value_name = "FILE")]
    filename: Option<String>,
    /// The namespace of objects that name none [the context's]
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) async fn run(args: &DiffArgs) -> anyhow::Result<()> {
    let cluster = args.cluster.connect().await?;
    let installation = Installation::find(&cluster, &args.cluster).await?;
    let objects = read(args)?;
    let mut pods = 0;
    for object in &objects {
        let Some(pod) = pod_of(object) else {
            continue;
        };
        pods += 1;
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .or(args.namespace.as_deref())
            .unwrap_or(cluster.default_namespace());
        say!(
            "{} {namespace}/{}",
            text(&object["kind"]),
            text(&object["metadata"]["name"])
        );
        let labels = namespace_labels(&cluster, namespace).await?;
        let explanation = explain(&cluster, &installation.webhook, &pod, namespace, labels.as_ref()).await?;
        match &explanation.outcome {
            Ok(preview) => {
                for (original, accelerated) in &preview.images {
                    say!("- image: {original}\n+ image: {accelerated}");
                }
                for (source, copy) in &preview.secrets {
                    say!("+ imagePullSecret: {copy} (a copy of {source})");
                }
            }
            Err(skip) => {
                say!("  stays as it is: {skip}");
                print_steps(&explanation);
            }
        }
    }
    if pods == 0 {
        bail!(
            "there is neither a pod nor a pod template among {} objects",
            objects.len()
        );
    }
    Ok(())
}

/// Through kubectl, which also turns YAML into JSON.
fn read(args: &DiffArgs) -> anyhow::Result<Vec<Value>> {
    let mut kubectl = Command::new("kubectl");
    if let Some(context) = &args.cluster.context {
        kubectl.args(["--context", context]);
    }
    match &args.filename {
        Some(file) => kubectl.args([
            "create",
            "--dry-run=client",
            "--validate=false",
            "--output=json",
            "--filename",
            file,
        ]),
        None => kubectl.args(["get", "--output=json"]).args(&args.objects),
    };
    if let Some(namespace) = &args.namespace {
        kubectl.args(["--namespace", namespace]);
    }
    let output = kubectl
        .output()
        .context("kubectl cannot be run; it has to be on the PATH")?;
    if !output.status.success() {
        bail!("kubectl: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    // One object, a List of them, or one after the other.
    let mut objects = Vec::new();
    for value in serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>() {
        let value = value.context("kubectl's answer")?;
        match value["items"].as_array() {
            Some(items) => objects.extend(items.iter().cloned()),
            None => objects.push(value),
        }
    }
    Ok(objects)
}

/// The pod itself, or what a workload would create.
fn pod_of(object: &Value) -> Option<Value> {
    if object["kind"] == "Pod" {
        return Some(object.clone());
    }
    let template = ["/spec/template", "/spec/jobTemplate/spec/template"]
        .iter()
        .find_map(|path| object.pointer(path))?;
    Some(json!({"metadata": template["metadata"], "spec": template["spec"]}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_have_their_pods_in_templates() {
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}});
        let deployment = json!({"kind": "Deployment", "spec": {"template": template}});
        let cron_job = json!({"kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": template}}}});
        for object in [deployment, cron_job] {
            assert_eq!(pod_of(&object), Some(template.clone()));
        }
        assert_eq!(pod_of(&json!({"kind": "Service", "spec": {}})), None);
    }
}
