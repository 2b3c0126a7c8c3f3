//! The cluster that a command asks, by the kubeconfig's context.

use clap::Args;
use piecemeal_webhook::Cluster;

/// The cluster.
#[derive(Args, Clone, Debug)]
pub(in crate::cli) struct ClusterArgs {
    /// The kubeconfig's context [the current one]
    #[arg(long, value_name = "NAME", global = true)]
    pub(super) context: Option<String>,
    /// The namespace of Piecemeal [found by its labels]
    #[arg(long, value_name = "NAMESPACE", global = true)]
    pub(super) system_namespace: Option<String>,
}

impl ClusterArgs {
    /// The namespace of Piecemeal. None: it is looked for in all.
    pub(super) fn installed_in(&self) -> Option<&str> {
        self.system_namespace.as_deref().filter(|name| !name.is_empty())
    }

    pub(super) async fn connect(&self) -> anyhow::Result<Cluster> {
        match &self.context {
            Some(context) => Ok(Cluster::connect_to(context).await?),
            None => Ok(Cluster::connect().await?),
        }
    }
}
