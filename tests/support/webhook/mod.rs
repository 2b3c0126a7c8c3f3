//! The real webhook beside a real API server, with a service account's rights and no more.
//!
//! A webhook of the tests is only asked about the namespaces that [`Webhook::namespace`] makes, so that several stand beside each
//! other at one API server.

mod balancer;
mod load;
pub mod pods;
mod registration;

use std::{
    net::{SocketAddr, TcpListener},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::Certificate;
use serde_json::{Value, json};

use super::{
    http::{Request, Response},
    kube::{Identity, KubeApi, runtime, wait_until},
    piecemeal::PIECEMEAL,
    process::Process,
};

pub use load::Load;

/// The label, in the vendor's words.
pub const LABEL: &str = "k8s.aliyun.com/image-accelerate-mode";
/// The label in our own.
pub const NEUTRAL_LABEL: &str = "piecemeal.dev/mode";

/// A registered webhook of one replica or more.
#[derive(Debug)]
pub struct Webhook<'a> {
    pub replicas: Vec<Replica>,
    /// Its own.
    pub namespace: String,
    /// Of its MutatingWebhookConfiguration.
    pub configuration: String,
    identity: Identity,
    api: &'a KubeApi,
}

/// One process of it.
#[derive(Debug)]
pub struct Replica {
    pub process: Process,
    listen: SocketAddr,
    admin: SocketAddr,
}

/// How a webhook is started.
#[derive(Clone, Copy, Debug)]
pub struct WebhookOptions<'a> {
    pub arguments: &'a [&'a str],
    pub replicas: usize,
    pub log: &'a str,
    /// The CA of certificates that are not its own, PEM.
    pub ca: Option<&'a str>,
}

impl Default for WebhookOptions<'_> {
    fn default() -> Self {
        Self {
            arguments: &[],
            replicas: 1,
            log: "info,piecemeal_webhook=debug",
            ca: None,
        }
    }
}

impl Webhook<'static> {
    /// The one that most tests of a binary share, at the API server that they share.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Webhook<'static>> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(KubeApi::shared(), &REGISTRIES))
    }
}

impl<'a> Webhook<'a> {
    /// One replica.
    pub fn start(api: &'a KubeApi, arguments: &[&str]) -> Self {
        let options = WebhookOptions {
            arguments,
            ..WebhookOptions::default()
        };
        Self::start_with(api, &options)
    }

    /// Gives rights, registers, starts, and waits until the API server asks it.
    pub fn start_with(api: &'a KubeApi, options: &WebhookOptions<'_>) -> Self {
        let namespace = api.namespace("piecemeal");
        let identity = api.service_account(&namespace, "webhook");
        let configuration = namespace.clone();
        registration::grant(api, &namespace, &configuration);
        let replicas: Vec<Replica> = (0..options.replicas)
            .map(|number| Replica::start(api, &namespace, &identity, options, number))
            .collect();
        let listen = match &*replicas {
            [only] => only.listen,
            several => balancer::balance(several.iter().map(|replica| replica.listen).collect()),
        };
        registration::register(api, &configuration, listen, options.ca);
        let webhook = Self {
            replicas,
            namespace,
            configuration,
            identity,
            api,
        };
        for replica in &webhook.replicas {
            replica.wait_until_ready();
        }
        webhook.wait_until_asked();
        webhook
    }

    /// A namespace that it is asked about, with labels.
    pub fn namespace(&self, labels: &[(&str, &str)]) -> String {
        let mut all = json!({ registration::SCOPE: self.configuration });
        for (label, value) in labels {
            all[*label] = json!(value);
        }
        self.api.labelled_namespace("team", &all)
    }

    /// Until the API server has heard of its CA, which nothing else tells.
    pub fn wait_until_asked(&self) {
        let namespace = self.namespace(&[]);
        let probe = pods::pod(&namespace, &["probe.invalid/probe"], &[]);
        let before = self.reviews();
        wait_until("the API server asks the webhook", || {
            self.api
                .client()
                .dry_run_create(&probe)
                .expect("a pod is always admitted");
            (self.reviews() > before).then_some(())
        });
    }

    fn reviews(&self) -> f64 {
        let counts = self.replicas.iter().filter_map(Replica::try_metrics);
        counts
            .map(|text| sample_sum(&text, "piecemeal_webhook_reviews_total"))
            .sum()
    }

    /// The sum of a metric's samples, of all replicas; `sample` is a name, or a name with the beginning of its labels.
    pub fn metric(&self, sample: &str) -> f64 {
        self.replicas.iter().map(|replica| replica.metric(sample)).sum()
    }

    /// Waits until exactly one replica leads, and says which.
    pub fn wait_for_leader(&self) -> usize {
        wait_until("one replica leads", || {
            let leaders: Vec<usize> = (0..self.replicas.len())
                .filter(|number| self.replicas[*number].leads())
                .collect();
            (leaders.len() == 1).then(|| leaders[0])
        })
    }

    /// What is published in its registration: PEM. Every entry has the same.
    pub fn ca_bundle(&self) -> String {
        let configuration = self
            .api
            .client()
            .get("MutatingWebhookConfiguration", "", &self.configuration)
            .expect("the registration");
        let entries = configuration["webhooks"].as_array().expect("its entries");
        let bundles: Vec<&Value> = entries.iter().map(|entry| &entry["clientConfig"]["caBundle"]).collect();
        assert!(
            bundles.iter().all(|bundle| *bundle == bundles[0]),
            "entries differ: {configuration:#}"
        );
        let bundle = bundles[0].as_str().unwrap_or_default();
        String::from_utf8(BASE64_STANDARD.decode(bundle).expect("base64")).expect("PEM is text")
    }

    /// Posts to the first replica as the API server does, trusting what it trusts. The answer's status and text; 0 where none
    /// was heard.
    pub fn post(&self, path: &str, body: Vec<u8>) -> (u16, String) {
        let url = format!("https://{}{path}", self.replicas[0].listen);
        let bundle = self.ca_bundle();
        let certificates = Certificate::from_pem_bundle(bundle.as_bytes()).expect("certificates");
        let client = reqwest::Client::builder()
            .tls_certs_only(certificates)
            .no_proxy()
            .timeout(Duration::from_secs(30))
            .build()
            .expect("building an HTTP client");
        runtime().block_on(async {
            match client.post(url).body(body).send().await {
                Ok(answer) => (answer.status().as_u16(), answer.text().await.unwrap_or_default()),
                Err(error) => (0, format!("{error:?}")),
            }
        })
    }

    /// What it shows the API server as a client.
    pub fn token(&self) -> &str {
        self.identity.token()
    }
}

impl Drop for Webhook<'_> {
    /// Removes the registration, so that the API server does not ask a webhook that is gone.
    fn drop(&mut self) {
        let _ = self
            .api
            .client()
            .delete("MutatingWebhookConfiguration", "", &self.configuration);
    }
}

impl Replica {
    fn start(api: &KubeApi, namespace: &str, identity: &Identity, options: &WebhookOptions<'_>, number: usize) -> Self {
        let (listen, admin) = (free_address(), free_address());
        let mut command = Command::new(PIECEMEAL);
        command
            .arg("webhook")
            .args(["--listen", &listen.to_string(), "--admin-listen", &admin.to_string()])
            .args(["--namespace", namespace, "--webhook-configuration", namespace])
            .args(["--certificate-name", "127.0.0.1"])
            .args(options.arguments)
            .env("KUBECONFIG", identity.kubeconfig())
            .env("PIECEMEAL_LOG", options.log);
        api.look_after(&mut command);
        let log = api.folder(namespace).join(format!("webhook-{number}.log"));
        Self {
            process: Process::start("webhook", command, &log),
            listen,
            admin,
        }
    }

    pub fn wait_until_ready(&self) {
        wait_until("the webhook is ready", || {
            let answer = Request::get(self.admin, "/readyz").send().ok()?;
            (answer.status == 200).then_some(())
        });
    }

    pub fn admin(&self, path: &str) -> Response {
        Request::get(self.admin, path)
            .send()
            .expect("the webhook's admin port answers")
    }

    pub fn leads(&self) -> bool {
        self.try_metrics()
            .is_some_and(|text| sample_sum(&text, "piecemeal_webhook_leader") > 0.0)
    }

    fn metric(&self, sample: &str) -> f64 {
        sample_sum(&self.admin("/metrics").text(), sample)
    }

    fn try_metrics(&self) -> Option<String> {
        Request::get(self.admin, "/metrics")
            .send()
            .ok()
            .map(|answer| answer.text())
    }
}

fn sample_sum(metrics: &str, sample: &str) -> f64 {
    let values = metrics
        .lines()
        .filter(|line| line.starts_with(sample))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum()
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("it has one")
}

/// What the shared webhook accelerates. Others beside it take the same: each tends the copies of all.
pub const REGISTRIES: [&str; 8] = [
    "--registry",
    "cri-x",
    "--registry",
    "docker.io",
    "--registry",
    "reg.example.com:5000",
    "--registry",
    "*.corp.example",
];
