//! Configuration of the webhook.
//!
//! Invariant: the webhook's own namespace is always among the excluded ones.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use crate::{
    certificates::reconciler::CertificateSource,
    copies::copy::CopyName,
    decide::{
        naming::Naming,
        registries::Registries,
        rules::{RequiresSecret, Rules},
    },
};

/// The settings of a webhook.
#[derive(Clone, Debug)]
pub struct WebhookConfig {
    /// The address at which the API server sends its reviews, over HTTPS.
    pub listen: SocketAddr,
    pub registries: Registries,
    pub naming: Naming,
    pub requires_secret: RequiresSecret,
    pub secret_name: CopyName,
    /// Whether copies carry entries for registries that are not accelerated.
    pub keep_unrelated: bool,
    /// The time for which a copy stays that no pod names.
    pub secrets_keep: Duration,
    /// The namespaces whose secrets may be read; empty for all.
    pub secrets_namespaces: BTreeSet<String>,
    /// Namespaces whose pods are left alone, besides the webhook's own.
    pub excluded_namespaces: BTreeSet<String>,
    /// The webhook's own namespace.
    pub namespace: String,
    /// Name of the Helm release, with which the names of the Lease and of the CA's Secret begin.
    pub release: String,
    /// Name of the MutatingWebhookConfiguration.
    pub configuration: String,
    /// Name of the ConfigMap in which accelerated registries are recorded.
    pub hosts_config_map: String,
    pub certificates: CertificateSource,
    /// The DNS names and addresses that the webhook's own certificates are for.
    pub certificate_names: Vec<String>,
    /// The time for which a new CA of the webhook's own is published before it signs.
    pub certificate_announce: Duration,
    /// Identity of this replica as a leader, unlike every other replica's.
    pub identity: String,
}

impl WebhookConfig {
    pub(crate) fn rules(&self) -> Rules {
        let mut excluded_namespaces = self.excluded_namespaces.clone();
        excluded_namespaces.insert(self.namespace.clone());
        Rules {
            registries: self.registries.clone(),
            naming: self.naming,
            requires_secret: self.requires_secret,
            secrets_namespaces: self.secrets_namespaces.clone(),
            excluded_namespaces,
        }
    }
}
