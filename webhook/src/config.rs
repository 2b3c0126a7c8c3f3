//! Configuration of the webhook.

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
    /// Where the API server asks, over HTTPS.
    pub listen: SocketAddr,
    pub registries: Registries,
    pub naming: Naming,
    pub requires_secret: RequiresSecret,
    pub secret_name: CopyName,
    /// Whether copies carry entries for registries that are not accelerated.
    pub keep_unrelated: bool,
    /// How long a copy stays that no pod names.
    pub secrets_keep: Duration,
    /// The namespaces whose secrets may be read; empty for all.
    pub secrets_namespaces: BTreeSet<String>,
    /// Namespaces whose pods are left alone, besides our own.
    pub excluded_namespaces: BTreeSet<String>,
    /// Our own namespace.
    pub namespace: String,
    /// Begins the names of our Lease and Secret.
    pub release: String,
    /// Our MutatingWebhookConfiguration.
    pub configuration: String,
    /// Where accelerated registries are recorded.
    pub hosts_config_map: String,
    pub certificates: CertificateSource,
    /// What our own certificates are for.
    pub certificate_names: Vec<String>,
    /// How long a new CA of our own is published before it signs.
    pub certificate_announce: Duration,
    /// Unlike every other replica's.
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
