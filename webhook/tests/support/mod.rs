//! A webhook in a fake cluster, and a client that asks it as an API server does.

#![expect(unreachable_pub, reason = "a module of a test binary has no other users")]

#[expect(dead_code, reason = "the benchmark uses the rest")]
pub mod fake_api;
pub mod log;

use std::{collections::BTreeSet, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use kube::{Client, Config};
use piecemeal_webhook::{
    CertificateSource, Cluster, CopyName, NameStyle, Naming, POD_PATH, Registries, RequiresSecret, Webhook,
    WebhookConfig,
};
use reqwest::Certificate;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use self::fake_api::FakeApi;

/// The namespace of the pods that are asked about.
pub const TEAM: &str = "/api/v1/namespaces/team";
/// Their pull secrets.
pub const SECRETS: &str = "/api/v1/namespaces/team/secrets";
/// The copy of the pull secret `regcred`.
pub const COPY_NAME: &str = "acr-credential-regcred-p2p";
pub const COPY: &str = "/api/v1/namespaces/team/secrets/acr-credential-regcred-p2p";
const REGISTRY: &str = "reg.example.com";
const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const OWN: &str = "piecemeal";
const START_TIME_MAX: Duration = Duration::from_secs(30);

/// A running webhook, and the cluster that it has.
pub struct Stand {
    pub api: FakeApi,
    /// The same, as the webhook has it.
    pub cluster: Cluster,
    webhook: Webhook,
    http: reqwest::Client,
}

/// The webhook's verdict on a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub patch: Vec<Value>,
    pub warnings: Vec<String>,
}

impl Stand {
    /// A webhook that is ready, and a pull secret `regcred` for the registry of [`pod`].
    pub async fn start() -> Self {
        let api = FakeApi::new();
        let client = Client::new(api.router(), "default");
        Self::start_at(api, client).await
    }

    /// The same, with a client that reaches the API over HTTP at `url`.
    pub async fn start_over_http(api: FakeApi, url: &str) -> Self {
        let config = Config::new(url.parse().expect("a URL"));
        let client = Client::try_from(config).expect("a client");
        Self::start_at(api, client).await
    }

    async fn start_at(api: FakeApi, client: Client) -> Self {
        // Once for the process: later calls fail and change nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let entries = ["pod.piecemeal.dev", "namespace.piecemeal.dev"];
        let entries = entries.map(|name| json!({"name": name, "clientConfig": {"url": "https://127.0.0.1"}}));
        api.put(
            CONFIGURATIONS,
            json!({"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": OWN}, "webhooks": entries}),
        );
        api.put(SECRETS, pull_secret("p"));
        let cluster = Cluster::new(client);
        let webhook = Webhook::start_in(config(), cluster.clone()).await.expect("it starts");
        let configuration = format!("{CONFIGURATIONS}/{OWN}");
        until("the webhook is ready", async || {
            webhook.readiness().await.iter().all(|(_, problem)| problem.is_none())
        })
        .await;
        let published = api.get(&configuration).expect("the configuration");
        let bundle = published["webhooks"][0]["clientConfig"]["caBundle"].as_str();
        let bundle = BASE64_STANDARD.decode(bundle.expect("a CA")).expect("base64");
        let http = reqwest::Client::builder()
            .tls_certs_only(Certificate::from_pem_bundle(&bundle).expect("certificates"))
            .no_proxy()
            .build()
            .expect("a client");
        Self {
            api,
            cluster,
            webhook,
            http,
        }
    }

    /// Asks about the creation of `pod`.
    ///
    /// # Panics
    /// When the answer is not that the pod is allowed, or when it has a patch that names a secret that is not there.
    pub async fn ask(&self, pod: &Value) -> Verdict {
        let verdict = self.review(pod, false).await;
        for secret in secrets_of(&patched(pod, &verdict)) {
            let path = format!("{SECRETS}/{secret}");
            let is_own = secrets_of(pod).contains(&secret);
            assert!(
                is_own || self.api.get(&path).is_some(),
                "{secret} is not there: {verdict:?}"
            );
        }
        verdict
    }

    /// Stores `pod` as it will be, so that its copy counts as used from the first moment on.
    pub async fn store(&self, pod: &Value) {
        let verdict = self.ask_dry(pod).await;
        self.api.put(&format!("{TEAM}/pods"), patched(pod, &verdict));
    }

    /// The same as [`Self::ask`] for a dry run, whose copies need not be there.
    pub async fn ask_dry(&self, pod: &Value) -> Verdict {
        self.review(pod, true).await
    }

    async fn review(&self, pod: &Value, is_dry_run: bool) -> Verdict {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "review-1", "operation": "CREATE", "namespace": "team", "dryRun": is_dry_run, "object": pod,
                "resource": {"group": "", "version": "v1", "resource": "pods"},
            },
        });
        let url = format!("https://{}{POD_PATH}", self.webhook.address());
        let answer = self
            .http
            .post(url)
            .body(review.to_string())
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 200);
        let answer: Value = serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("JSON");
        let response = &answer["response"];
        assert_eq!(response["allowed"], true, "{answer}");
        assert_eq!(response["uid"], "review-1", "{answer}");
        let patch = response["patch"].as_str().map(|text| {
            let patch = BASE64_STANDARD.decode(text).expect("base64");
            serde_json::from_slice(&patch).expect("a patch")
        });
        let warnings = response["warnings"].as_array().into_iter().flatten();
        Verdict {
            patch: patch.unwrap_or_default(),
            warnings: warnings.filter_map(|text| text.as_str().map(str::to_owned)).collect(),
        }
    }
}

impl Verdict {
    /// The pod stays as it is, and the client that creates it is told so.
    pub fn is_warned_and_unchanged(&self) -> bool {
        self.patch.is_empty() && self.warnings.len() == 1
    }
}

/// A pod that asks for acceleration, with the pull secret `regcred`.
pub fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"piecemeal.dev/mode": "p2p"}},
        "spec": {
            "containers": [{"name": "app", "image": format!("{REGISTRY}/team/app:1")}],
            "imagePullSecrets": [{"name": "regcred"}], "serviceAccountName": "default",
        },
    })
}

/// The pull secret `regcred`.
pub fn pull_secret(password: &str) -> Value {
    let auth = BASE64_STANDARD.encode(format!("u:{password}"));
    let content = json!({"auths": {REGISTRY: {"username": "u", "password": password, "auth": auth}}});
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "regcred"}, "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": BASE64_STANDARD.encode(content.to_string())},
    })
}

/// `pod` as the API server would store it.
pub fn patched(pod: &Value, verdict: &Verdict) -> Value {
    let mut pod = pod.clone();
    let patch: json_patch::Patch = serde_json::from_value(json!(verdict.patch)).expect("a JSON patch");
    json_patch::patch(&mut pod, &patch).expect("it applies");
    pod
}

pub fn secrets_of(pod: &Value) -> Vec<String> {
    let secrets = pod["spec"]["imagePullSecrets"].as_array().into_iter().flatten();
    secrets
        .filter_map(|secret| secret["name"].as_str().map(str::to_owned))
        .collect()
}

/// Polls until a condition holds.
///
/// # Panics
/// When it does not come true.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + START_TIME_MAX;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not within {START_TIME_MAX:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn config() -> WebhookConfig {
    WebhookConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        registries: Registries::parse(&[REGISTRY.to_owned()], "").expect("a registry"),
        naming: Naming {
            style: NameStyle::Rename,
            peer_port: 65001,
        },
        requires_secret: RequiresSecret::Always,
        secret_name: CopyName::parse("acr-credential-{secret}-p2p").expect("a template"),
        keep_unrelated: false,
        secrets_keep: Duration::from_secs(24 * 3600),
        secrets_namespaces: BTreeSet::new(),
        excluded_namespaces: BTreeSet::new(),
        namespace: OWN.to_owned(),
        release: OWN.to_owned(),
        configuration: OWN.to_owned(),
        hosts_config_map: "piecemeal-hosts".to_owned(),
        certificates: CertificateSource::Own,
        certificate_announce: Duration::from_secs(60),
        certificate_names: vec!["127.0.0.1".to_owned()],
        identity: "replica-1".to_owned(),
    }
}
