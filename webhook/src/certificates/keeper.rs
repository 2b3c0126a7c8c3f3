//! Keeps a certificate to show, and API servers knowing its CA.

use std::{path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use k8s_openapi::jiff::Timestamp;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    authority::{Authority, CertificateError, Leaf, Lives},
    files::Files,
};
use crate::{
    cluster::{Cluster, ClusterError, core_path},
    metrics::Metrics,
};

/// How often everything is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The same until there is a certificate that API servers trust.
const LOOK_AT_START: Duration = Duration::from_secs(1);

/// Where certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateSource {
    /// A CA of our own, kept in a Secret and published in the webhook's configuration.
    Own,
    /// `tls.crt` and `tls.key` of a folder. Whoever renews them also tells the API server their CA.
    Files(PathBuf),
}

/// What is kept, and for whom.
#[derive(Clone)]
pub(crate) struct Keeper {
    pub cluster: Cluster,
    pub source: CertificateSource,
    pub namespace: String,
    /// The Secret of the CA.
    pub secret: String,
    /// The MutatingWebhookConfiguration.
    pub configuration: String,
    /// What the certificate is for.
    pub names: Vec<String>,
    pub lives: Lives,
    pub leads: watch::Receiver<bool>,
    pub metrics: Metrics,
}

/// What new connections are shown, and what is still wrong with it.
pub(crate) struct Shown {
    pub tls: watch::Sender<Option<Arc<ServerConfig>>>,
    pub problem: watch::Sender<Option<String>>,
}

/// What one replica remembers.
#[derive(Default)]
struct Memory {
    authority: Option<Authority>,
    leaf: Option<Leaf>,
    files: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Files(#[from] std::io::Error),
    #[error("{0}")]
    Waiting(String),
}

impl Keeper {
    /// Until told to stop.
    pub(crate) async fn run(self, shown: Shown, stop: CancellationToken) {
        let mut memory = Memory::default();
        let keeping = async {
            loop {
                let problem = match self.look(&mut memory, &shown).await {
                    Ok(()) => None,
                    Err(error) => Some(error.to_string()),
                };
                let is_well = problem.is_none();
                let before = shown.problem.send_replace(problem.clone());
                if let Some(problem) = problem.filter(|problem| before.as_ref() != Some(problem)) {
                    warn!("the certificate is not as it should be: {problem}");
                }
                sleep(if is_well { LOOK_EVERY } else { LOOK_AT_START }).await;
            }
        };
        stop.run_until_cancelled(keeping).await;
    }

    async fn look(&self, memory: &mut Memory, shown: &Shown) -> Result<(), KeepError> {
        match &self.source {
            CertificateSource::Files(dir) => {
                let files = Files::read(dir)?;
                if memory.files.as_ref() != Some(&files.content) {
                    self.show(shown, files.chain, files.key, files.ends)?;
                    memory.files = Some(files.content);
                }
                Ok(())
            }
            CertificateSource::Own => {
                let authority = self.authority(memory).await?;
                let now = Timestamp::now();
                let is_good = memory
                    .leaf
                    .as_ref()
                    .is_some_and(|leaf| now < leaf.renew_at && authority.has_signed(leaf));
                if !is_good {
                    let leaf = authority.issue(&self.names, now, self.lives)?;
                    self.show(
                        shown,
                        vec![leaf.certificate.clone()],
                        leaf.key.clone_key(),
                        Some(leaf.ends),
                    )?;
                    memory.leaf = Some(leaf);
                }
                self.metrics.ca_expiry.set(authority.ends().as_second());
                let published = self.publish(&authority.bundle()).await;
                memory.authority = Some(authority);
                published
            }
        }
    }

    fn show(
        &self,
        shown: &Shown,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        ends: Option<Timestamp>,
    ) -> Result<(), rustls::Error> {
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        shown.tls.send_replace(Some(Arc::new(config)));
        let ends = ends.map_or(0, |ends| ends.as_second());
        self.metrics.certificate_expiry.set(ends);
        info!(certificate.ends = ends, "another certificate is shown from now on");
        Ok(())
    }

    /// The CA as the Secret has it. The leader makes it, and takes it a step further when that is due.
    async fn authority(&self, memory: &Memory) -> Result<Authority, KeepError> {
        let path = core_path(&self.namespace, "secrets", &self.secret);
        let leads = *self.leads.borrow();
        let now = Timestamp::now();
        let Some(secret) = self.cluster.get(&path).await? else {
            if !leads {
                return Err(KeepError::Waiting(format!(
                    "waiting for the leader to make Secret {}",
                    self.secret
                )));
            }
            // Lost, not new: what is shown now has to be trusted until the new CA is known everywhere.
            let authority = match &memory.authority {
                Some(known) => known.renew(now, self.lives)?,
                None => Authority::new(now, self.lives)?,
            };
            self.cluster
                .create(
                    &core_path(&self.namespace, "secrets", ""),
                    &self.object(&authority),
                    false,
                )
                .await?;
            info!("Secret {} has a new CA", self.secret);
            return Ok(authority);
        };
        let stored = Authority::read(&secret);
        let stepped = match (&stored, &memory.authority) {
            (Ok(authority), _) => authority.step(now, self.lives)?,
            (Err(_), Some(known)) => Some(known.renew(now, self.lives)?),
            (Err(_), None) => Some(Authority::new(now, self.lives)?),
        };
        match stepped {
            Some(authority) if leads => {
                let mut object = self.object(&authority);
                object["metadata"]["resourceVersion"] = secret["metadata"]["resourceVersion"].clone();
                self.cluster.replace(&path, &object).await?;
                info!("Secret {} has another CA", self.secret);
                Ok(authority)
            }
            _ => Ok(stored?),
        }
    }

    fn object(&self, authority: &Authority) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {
                "name": self.secret, "namespace": self.namespace, "labels": {"app.kubernetes.io/managed-by": "piecemeal-webhook"},
            },
            "data": authority.data(),
        })
    }

    /// Sees to it that every entry of the webhook's configuration has `bundle`. Only the leader writes.
    async fn publish(&self, bundle: &str) -> Result<(), KeepError> {
        let name = &self.configuration;
        let path = format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}");
        let Some(configuration) = self.cluster.get(&path).await? else {
            return Err(KeepError::Waiting(format!(
                "there is no MutatingWebhookConfiguration {name}"
            )));
        };
        let bundle = BASE64_STANDARD.encode(bundle);
        let entries: Vec<&Value> = configuration["webhooks"].as_array().into_iter().flatten().collect();
        if entries.iter().all(|entry| entry["clientConfig"]["caBundle"] == *bundle) {
            return Ok(());
        }
        if !*self.leads.borrow() {
            return Err(KeepError::Waiting(
                "waiting for the leader to publish the CA".to_owned(),
            ));
        }
        let entries: Vec<Value> = entries
            .iter()
            .map(|entry| json!({"name": entry["name"], "clientConfig": {"caBundle": bundle}}))
            .collect();
        let applied = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": name}, "webhooks": entries,
        });
        self.cluster.apply(&path, &applied).await?;
        info!("MutatingWebhookConfiguration {name} has the CA");
        Ok(())
    }
}
