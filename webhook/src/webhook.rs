//! The webhook daemon: its server, and the background tasks for certificates, copies, hosts and events.

use std::{collections::BTreeSet, io, net::SocketAddr, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    WebhookConfig,
    certificates::{
        authority::Lifetimes,
        reconciler::{CertificateReconciler, ServedCertificate},
    },
    cluster::{Cluster, ClusterError},
    copies::{
        copy::CopySettings,
        ensure::{Copier, WriteQueues},
        reconciler::CopyReconciler,
    },
    events::{self, Events},
    hosts::Hosts,
    leader::{self, Candidate},
    metrics::Metrics,
    review::{reviewer::Reviewer, server},
};

/// A running webhook.
#[derive(Debug)]
pub struct Webhook {
    tasks: JoinSet<()>,
    /// Ends the lead, then the server, then the background tasks.
    stop_lead: CancellationToken,
    stop_port: CancellationToken,
    stop_rest: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    problem: watch::Receiver<Option<String>>,
    leads: watch::Receiver<bool>,
    config: WebhookConfig,
    address: SocketAddr,
    metrics: Metrics,
}

/// Why a webhook does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

impl Webhook {
    /// Starts answering as soon as there is a certificate, which [`Webhook::readiness`] tells.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: WebhookConfig) -> Result<Self, StartError> {
        let cluster = Cluster::connect().await?;
        Self::start_in(config, cluster).await
    }

    /// Like [`Webhook::start`], in a cluster that is at hand.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_in(config: WebhookConfig, cluster: Cluster) -> Result<Self, StartError> {
        let (listener, address) = bind(config.listen).await?;
        let metrics = Metrics::new();
        let (events, waiting_events) = Events::new(metrics.clone());
        let hosts = Hosts::new(config.registries.named().map(ToOwned::to_owned));
        let reviewer = reviewer(&config, &cluster, events, hosts.clone(), &metrics);
        let (stop_port, stop_rest) = (CancellationToken::new(), CancellationToken::new());
        let stop_lead = stop_rest.child_token();
        let stop = || stop_rest.clone();
        let (lead, leads) = watch::channel(false);
        let (tls, served_tls) = watch::channel(None);
        let (problem_sender, problem) = watch::channel(Some("no certificate yet".to_owned()));
        let served = ServedCertificate {
            tls,
            problem: problem_sender,
        };

        let mut tasks = JoinSet::new();
        let election = leader::run(
            cluster.clone(),
            candidate(&config),
            lead,
            metrics.clone(),
            stop_lead.clone(),
        );
        tasks.spawn(election);
        tasks.spawn(certificates(&config, &cluster, &leads, &metrics).run(served, stop()));
        tasks.spawn(copies(&config, &reviewer, &leads).run(stop()));
        tasks.spawn(events::write(cluster.clone(), waiting_events, stop()));
        let (namespace, config_map) = (config.namespace.clone(), config.hosts_config_map.clone());
        tasks.spawn(hosts.record(cluster, namespace, config_map, stop()));
        let ends = [stop_lead.clone(), stop_port.clone()];
        let serving = tokio::spawn(server::serve(listener, reviewer, served_tls, ends));
        Ok(Self {
            tasks,
            stop_lead,
            stop_port,
            stop_rest,
            serving,
            problem,
            leads,
            config,
            address,
            metrics,
        })
    }

    /// The address that it listens on, with the port that the system chose where the setting was 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Each dependency, with its problem if it has one.
    pub async fn readiness(&self) -> Vec<(String, Option<String>)> {
        vec![("certificate".to_owned(), self.problem.borrow().clone())]
    }

    pub async fn status(&self) -> Value {
        let leads = *self.leads.borrow();
        json!({"leader": leads, "certificate_problem": *self.problem.borrow(), "configuration": self.config.configuration})
    }

    /// Hands over the lead, goes on answering until the API servers have found another replica, and lets the last answers end.
    pub async fn shutdown(mut self) {
        self.stop_lead.cancel();
        sleep(FAREWELL).await;
        self.stop_port.cancel();
        let _ = self.serving.await;
        self.stop_rest.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The time for which connections are still answered, each for the last time. One that is closed without an answer may lose a
/// request.
const FAREWELL: Duration = Duration::from_secs(3);

/// The listener, and its address with the port that the system chose.
async fn bind(listen: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |error| StartError::Listen(listen, error);
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

fn copies(config: &WebhookConfig, reviewer: &Reviewer, leads: &watch::Receiver<bool>) -> CopyReconciler {
    CopyReconciler {
        copier: (*reviewer.copier).clone(),
        namespaces: config.secrets_namespaces.clone(),
        keep: config.secrets_keep,
        leads: leads.clone(),
    }
}

fn reviewer(config: &WebhookConfig, cluster: &Cluster, events: Events, hosts: Hosts, metrics: &Metrics) -> Reviewer {
    let rules = config.rules();
    let settings = CopySettings {
        naming: config.naming,
        name: config.secret_name.clone(),
        keep_unrelated: config.keep_unrelated,
    };
    let named: BTreeSet<String> = config.registries.named().map(ToOwned::to_owned).collect();
    let copier = Copier {
        cluster: cluster.clone(),
        settings,
        accelerated: config.registries.clone(),
        named,
        metrics: metrics.clone(),
        queues: WriteQueues::default(),
    };
    Reviewer {
        rules: Arc::new(rules),
        copier: Arc::new(copier),
        events,
        hosts,
        metrics: metrics.clone(),
    }
}

fn candidate(config: &WebhookConfig) -> Candidate {
    Candidate {
        namespace: config.namespace.clone(),
        lease: format!("{}-webhook", config.release),
        identity: config.identity.clone(),
    }
}

fn certificates(
    config: &WebhookConfig,
    cluster: &Cluster,
    leads: &watch::Receiver<bool>,
    metrics: &Metrics,
) -> CertificateReconciler {
    CertificateReconciler {
        cluster: cluster.clone(),
        source: config.certificates.clone(),
        namespace: config.namespace.clone(),
        secret: format!("{}-webhook-ca", config.release),
        configuration: config.configuration.clone(),
        names: config.certificate_names.clone(),
        lifetimes: Lifetimes {
            announce: config.certificate_announce,
            ..Lifetimes::USUAL
        },
        leads: leads.clone(),
        metrics: metrics.clone(),
    }
}
