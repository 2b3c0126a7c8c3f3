//! `kubectl piecemeal warm IMAGE`: runs `piecemeal cache warm` in the mirror's pod through `kubectl exec`, since a mirror accepts
//! such requests from its own machine only.

use std::process::Command;

use anyhow::{Context, bail};
use clap::Args;
use k8s_openapi::api::core::v1::Pod;

use super::{
    cluster::ClusterArgs,
    installation::{selector, text},
};

#[derive(Args, Debug)]
pub(in crate::cli) struct WarmArgs {
    /// The images
    #[arg(required = true)]
    images: Vec<String>,
    /// The pool whose mirror fetches them [all]
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// Also make the pool's peers fetch them
    #[arg(long)]
    peers: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) async fn run(args: &WarmArgs) -> anyhow::Result<()> {
    let cluster = args.cluster.connect().await?;
    let namespace = args.cluster.installed_in();
    let mirrors = cluster
        .objects_in::<Pod>(namespace)
        .list(&selector(Some("mirror")))
        .await?;
    let wanted: Vec<_> = mirrors
        .iter()
        .filter(|mirror| {
            args.pool
                .as_ref()
                .is_none_or(|pool| mirror["metadata"]["labels"][POOL_LABEL] == *pool.as_str())
        })
        .collect();
    if wanted.is_empty() {
        let pools: Vec<String> = mirrors
            .iter()
            .map(|mirror| text(&mirror["metadata"]["labels"][POOL_LABEL]))
            .collect();
        bail!("there is no mirror for that; pools with one: {}", pools.join(", "));
    }
    let mut failed = 0;
    for mirror in wanted {
        let (namespace, name) = (
            text(&mirror["metadata"]["namespace"]),
            text(&mirror["metadata"]["name"]),
        );
        say!("{namespace}/{name}:");
        let mut kubectl = Command::new("kubectl");
        if let Some(context) = &args.cluster.context {
            kubectl.args(["--context", context]);
        }
        kubectl.args([
            "exec",
            "--namespace",
            &namespace,
            &name,
            "--",
            IN_IMAGE,
            "cache",
            "warm",
        ]);
        kubectl.args(["--admin", MIRROR_ADMIN]);
        if args.peers {
            kubectl.arg("--peers");
        }
        kubectl.args(&args.images);
        let status = kubectl
            .status()
            .context("kubectl cannot be run; it has to be on the PATH")?;
        failed += u32::from(!status.success());
    }
    if failed > 0 {
        bail!("{failed} mirrors could not fetch everything");
    }
    Ok(())
}

/// On the pods of the chart.
const POOL_LABEL: &str = "piecemeal.dev/pool";
/// Where the image has its binary.
const IN_IMAGE: &str = "/piecemeal";
const MIRROR_ADMIN: &str = "http://127.0.0.1:65013";
