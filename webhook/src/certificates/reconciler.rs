//! Reconciler of the webhook's certificate: renews it in time, and publishes its CA to the API servers.
//!
//! No certificate is served before the CA that signed it is published.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use k8s_openapi::{
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
    jiff::Timestamp,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    authority::{Authority, CertificateError, Leaf, Lifetimes},
    files::Files,
};
use crate::{
    cluster::{Cluster, ClusterError, Objects},
    metrics::Metrics,
};

/// How often the certificate is reconciled.
const RECONCILE_EVERY: Duration = Duration::from_secs(5);
/// How often it is reconciled until there is a certificate that API servers trust.
const RECONCILE_AT_START: Duration = Duration::from_secs(1);

/// Where certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateSource {
    /// The webhook's own CA, stored in a Secret and published in the webhook's configuration.
    Own,
    /// `tls.crt` and `tls.key` of a folder. The tool that renews them also publishes their CA to the API server.
    Files(PathBuf),
}

/// Reconciler of the certificate of one webhook.
#[derive(Clone)]
pub(crate) struct CertificateReconciler {
    pub cluster: Cluster,
    pub source: CertificateSource,
    pub namespace: String,
    /// The Secret of the CA.
    pub secret: String,
    /// The MutatingWebhookConfiguration.
    pub configuration: String,
    /// The DNS names and addresses that the certificate is for.
    pub names: Vec<String>,
    pub lifetimes: Lifetimes,
    pub leads: watch::Receiver<bool>,
    pub metrics: Metrics,
}

/// Where the reconciler hands over the certificate of new connections, and its problem if it has one.
pub(crate) struct ServedCertificate {
    pub tls: watch::Sender<Option<Arc<ServerConfig>>>,
    pub problem: watch::Sender<Option<String>>,
}

/// The state of one replica from one round to the next.
#[derive(Default)]
struct ReplicaState {
    authority: Option<Authority>,
    leaf: Option<Leaf>,
    files: Option<(Vec<u8>, Vec<u8>)>,
    /// End of the certificate that is served and trusted.
    ends: Option<Timestamp>,
    /// The next CA, PEM, and the moment since which this replica has seen it published.
    next_seen: Option<(String, Instant)>,
}

#[derive(Debug, thiserror::Error)]
enum ReconcileError {
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

impl CertificateReconciler {
    /// Until told to stop.
    pub(crate) async fn run(self, served: ServedCertificate, stop: CancellationToken) {
        let mut state = ReplicaState::default();
        let mut told = None;
        let reconciling = async {
            loop {
                let problem = self
                    .reconcile(&mut state, &served)
                    .await
                    .err()
                    .map(|error| error.to_string());
                if let Some(problem) = problem.as_ref().filter(|problem| told.as_ref() != Some(*problem)) {
                    warn!("the certificate cannot be used as it is: {problem}");
                }
                told.clone_from(&problem);
                // With a certificate that is still valid the webhook can answer, and the next round mends what this one has found.
                let is_trusted = state.ends.is_some_and(|ends| Timestamp::now() < ends);
                let lacking = problem.unwrap_or_else(|| "the certificate has ended".to_owned());
                served.problem.send_replace((!is_trusted).then_some(lacking));
                sleep(if is_trusted {
                    RECONCILE_EVERY
                } else {
                    RECONCILE_AT_START
                })
                .await;
            }
        };
        stop.run_until_cancelled(reconciling).await;
    }

    async fn reconcile(&self, state: &mut ReplicaState, served: &ServedCertificate) -> Result<(), ReconcileError> {
        match &self.source {
            CertificateSource::Files(dir) => self.reconcile_files(dir, state, served),
            CertificateSource::Own => self.reconcile_own(state, served).await,
        }
    }

    fn reconcile_files(
        &self,
        dir: &Path,
        state: &mut ReplicaState,
        served: &ServedCertificate,
    ) -> Result<(), ReconcileError> {
        let files = Files::read(dir)?;
        if state.files.as_ref() != Some(&files.content) {
            self.serve(served, files.chain, files.key, files.ends)?;
            state.files = Some(files.content);
            state.ends = Some(files.ends.unwrap_or(Timestamp::MAX));
        }
        Ok(())
    }

    /// A certificate is served only once its CA is published; until then the one before it is.
    async fn reconcile_own(&self, state: &mut ReplicaState, served: &ServedCertificate) -> Result<(), ReconcileError> {
        // Without its configuration the API server sends no reviews, and the Secret of the CA is not created again after an
        // uninstallation.
        let configuration = self.configuration().await?;
        let published = published(&configuration);
        state.note_next(&published);
        let authority = self.authority(state, &published).await?;
        self.metrics.ca_expiry.set(authority.ends().as_second());
        let bundle = authority.bundle();
        let published = if published == bundle {
            Ok(published)
        } else {
            self.publish(&configuration, &bundle).await.map(|()| bundle)
        };
        let is_known = match &published {
            Ok(bundle) => bundle.contains(authority.signing()),
            Err(_) => false,
        };
        let now = Timestamp::now();
        let leaf = state.leaf.as_ref();
        let is_good = leaf.is_some_and(|leaf| now < leaf.renew_at && authority.has_signed(leaf));
        if is_known && !is_good {
            let leaf = authority.issue(&self.names, now, self.lifetimes)?;
            let (chain, key) = (vec![leaf.certificate.clone()], leaf.key.clone_key());
            self.serve(served, chain, key, Some(leaf.ends))?;
            state.ends = Some(leaf.ends);
            state.leaf = Some(leaf);
        }
        state.authority = Some(authority);
        published.map(|_| ())
    }

    fn serve(
        &self,
        served: &ServedCertificate,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        ends: Option<Timestamp>,
    ) -> Result<(), rustls::Error> {
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        served.tls.send_replace(Some(Arc::new(config)));
        let ends = ends.map_or(0, |ends| ends.as_second());
        self.metrics.certificate_expiry.set(ends);
        info!(
            certificate.ends = ends,
            "the webhook uses another certificate from now on"
        );
        Ok(())
    }

    /// The CA as the Secret has it. The leader makes it, and steps its rotation when that is due. `published`: the CAs that API
    /// servers have.
    async fn authority(&self, state: &ReplicaState, published: &str) -> Result<Authority, ReconcileError> {
        let secrets = self.cluster.objects::<Secret>(&self.namespace);
        let leads = *self.leads.borrow();
        let Some(secret) = secrets.get(&self.secret).await? else {
            if !leads {
                return Err(ReconcileError::Waiting(format!(
                    "waiting for the leader to make Secret {}",
                    self.secret
                )));
            }
            let authority = self.renewed(state)?;
            secrets.create(&self.object(&authority), false).await?;
            info!("Secret {} has a new CA", self.secret);
            return Ok(authority);
        };
        let stored = Authority::read(&secret);
        let wanted = match (&stored, &state.authority) {
            (Err(_), _) => Some(self.renewed(state)?),
            (Ok(stored), Some(known))
                if !known.bundle().contains(stored.signing()) && !published.contains(stored.signing()) =>
            {
                Some(known.adopt(stored))
            }
            (Ok(stored), _) => stored.step(Timestamp::now(), state.announced(stored), self.lifetimes)?,
        };
        match wanted {
            Some(authority) if leads => {
                // A chart's labels are on it, and stay.
                let mut object = secret.clone();
                if let Some(fields) = object.as_object_mut() {
                    fields.insert("data".to_owned(), authority.data());
                }
                secrets.replace(&self.secret, &object).await?;
                info!("Secret {} has another CA", self.secret);
                Ok(authority)
            }
            _ => Ok(stored?),
        }
    }

    /// A CA in place of one that is lost. The served certificate has to be trusted until the new CA is known everywhere.
    fn renewed(&self, state: &ReplicaState) -> Result<Authority, CertificateError> {
        match &state.authority {
            Some(known) => known.renew(Timestamp::now(), self.lifetimes),
            None => Authority::new(Timestamp::now(), self.lifetimes),
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

    async fn configuration(&self) -> Result<Value, ReconcileError> {
        let configuration = self.configurations().get(&self.configuration).await?;
        let missing = || {
            ReconcileError::Waiting(format!(
                "there is no MutatingWebhookConfiguration {}",
                self.configuration
            ))
        };
        configuration.ok_or_else(missing)
    }

    fn configurations(&self) -> Objects {
        self.cluster.all_objects::<MutatingWebhookConfiguration>()
    }

    /// Writes `bundle` into every entry of the webhook's configuration. Only the leader does, and onto what it has read.
    async fn publish(&self, configuration: &Value, bundle: &str) -> Result<(), ReconcileError> {
        if !*self.leads.borrow() {
            return Err(ReconcileError::Waiting(
                "waiting for the leader to publish the CA".to_owned(),
            ));
        }
        let bundle = BASE64_STANDARD.encode(bundle);
        let entries: Vec<Value> = entries(configuration)
            .map(|entry| json!({"name": entry["name"], "clientConfig": {"caBundle": bundle}}))
            .collect();
        let name = &self.configuration;
        let version = &configuration["metadata"]["resourceVersion"];
        let applied = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": name, "resourceVersion": version}, "webhooks": entries,
        });
        self.configurations().apply(name, &applied).await?;
        info!("MutatingWebhookConfiguration {name} has the CA");
        Ok(())
    }
}

fn entries(configuration: &Value) -> impl Iterator<Item = &Value> {
    configuration["webhooks"].as_array().into_iter().flatten()
}

/// The CAs that every entry of the webhook's configuration has, PEM; empty when the entries differ.
fn published(configuration: &Value) -> String {
    let mut bundles =
        entries(configuration).map(|entry| entry["clientConfig"]["caBundle"].as_str().unwrap_or_default());
    let first = bundles.next().unwrap_or_default();
    if !bundles.all(|bundle| bundle == first) {
        return String::new();
    }
    let bytes = BASE64_STANDARD.decode(first).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

impl ReplicaState {
    /// Looks whether the CA that comes next is published.
    fn note_next(&mut self, published: &str) {
        let next = self.authority.as_ref().and_then(Authority::next);
        let next = next.filter(|next| published.contains(next));
        if self.next_seen.as_ref().map(|(seen, _)| seen.as_str()) != next {
            self.next_seen = next.map(|next| (next.to_owned(), Instant::now()));
        }
    }

    /// For how long the CA that comes next in `authority` has been published.
    fn announced(&self, authority: &Authority) -> Duration {
        let seen = self
            .next_seen
            .as_ref()
            .filter(|(seen, _)| Some(seen.as_str()) == authority.next());
        seen.map(|(_, since)| since.elapsed()).unwrap_or_default()
    }
}
