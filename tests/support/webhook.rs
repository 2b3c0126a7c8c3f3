//! The real webhook beside a real API server, with a service account's rights and no more.

use std::{
    net::{SocketAddr, TcpListener},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    http::{Request, Response},
    kube::{Identity, KubeApi, wait_until},
    piecemeal::PIECEMEAL,
    process::Process,
    scratch::ScratchDir,
};

/// The label, in the vendor's words.
pub const LABEL: &str = "k8s.aliyun.com/image-accelerate-mode";

/// A running webhook, and its registration.
#[derive(Debug)]
pub struct Webhook {
    pub process: Process,
    pub namespace: String,
    pub identity: Identity,
    pub configuration: String,
    listen: SocketAddr,
    admin: SocketAddr,
    _dir: ScratchDir,
}

impl Webhook {
    /// Registers for the whole cluster, starts, and waits until the API server trusts it.
    pub fn start(api: &KubeApi, arguments: &[&str]) -> Self {
        let namespace = api.namespace("piecemeal");
        let identity = api.service_account(&namespace, "webhook");
        let configuration = namespace.clone();
        let (listen, admin) = (free_address(), free_address());
        grant(api, &namespace, &configuration);
        register(api, &configuration, listen, &[&namespace, "kube-system"]);
        let dir = ScratchDir::new();
        let mut command = Command::new(PIECEMEAL);
        command
            .arg("webhook")
            .args(["--listen", &listen.to_string(), "--admin-listen", &admin.to_string()])
            .args(["--namespace", &namespace, "--webhook-configuration", &configuration])
            .args(["--certificate-name", "127.0.0.1"])
            .args(arguments)
            .env("KUBECONFIG", identity.kubeconfig())
            .env("PIECEMEAL_LOG", "info,piecemeal_webhook=debug");
        let process = Process::start("webhook", command, &dir.path().join("webhook.log"));
        let webhook = Self {
            process,
            namespace,
            identity,
            configuration,
            listen,
            admin,
            _dir: dir,
        };
        webhook.wait_until_ready();
        webhook
    }

    /// Until it says so, and until the API server has heard of its CA.
    pub fn wait_until_ready(&self) {
        wait_until("the webhook is ready", || {
            let answer = Request::get(self.admin, "/readyz").send().ok()?;
            (answer.status == 200).then_some(())
        });
        // The API server learns of a configuration by a watch; nothing says when.
        std::thread::sleep(Duration::from_secs(1));
    }

    pub fn admin(&self, path: &str) -> Response {
        Request::get(self.admin, path)
            .send()
            .expect("the webhook's admin port answers")
    }
}

/// What the chart gives.
fn grant(api: &KubeApi, namespace: &str, configuration: &str) {
    let subjects = json!([{"kind": "ServiceAccount", "name": "webhook", "namespace": namespace}]);
    let rbac = "rbac.authorization.k8s.io";
    let role = |kind: &str, metadata: Value, rules: Value| json!({"apiVersion": format!("{rbac}/v1"), "kind": kind, "metadata": metadata, "rules": rules});
    let binding = |kind: &str, metadata: Value, role: &str, name: &str| {
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": kind, "metadata": metadata, "subjects": subjects,
            "roleRef": {"apiGroup": rbac, "kind": role, "name": name},
        })
    };
    let cluster_rules = json!([
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch", "create", "update", "delete"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
        {
            "apiGroups": ["admissionregistration.k8s.io"], "resources": ["mutatingwebhookconfigurations"],
            "resourceNames": [configuration], "verbs": ["get", "patch"],
        },
    ]);
    let own_rules = json!([
        {"apiGroups": [""], "resources": ["secrets", "configmaps"], "verbs": ["get", "create", "update"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
    ]);
    let own = json!({"name": "webhook", "namespace": namespace});
    for object in [
        role("ClusterRole", json!({"name": namespace}), cluster_rules),
        binding(
            "ClusterRoleBinding",
            json!({"name": namespace}),
            "ClusterRole",
            namespace,
        ),
        role("Role", own.clone(), own_rules),
        binding("RoleBinding", own, "Role", "webhook"),
    ] {
        api.client().create(&object).expect("rights for the webhook");
    }
}

/// The four entries of the chart: labels of the pod and of its namespace, in either words.
fn register(api: &KubeApi, name: &str, listen: SocketAddr, excluded: &[&str]) {
    let neutral = "piecemeal.dev/mode";
    let absent = |label: &str| json!({"key": label, "operator": "DoesNotExist"});
    let excluded = json!({"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": excluded});
    let entry = |name: &str, path: &str, namespace: Value, object: Value| {
        json!({
            "name": name, "clientConfig": {"url": format!("https://{listen}{path}")},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"], "scope": "Namespaced"}],
            "failurePolicy": "Ignore", "matchPolicy": "Equivalent", "reinvocationPolicy": "IfNeeded", "sideEffects": "NoneOnDryRun",
            "timeoutSeconds": 5, "admissionReviewVersions": ["v1"],
            "namespaceSelector": namespace, "objectSelector": object,
        })
    };
    let anywhere = json!({"matchExpressions": [excluded]});
    let within = |label: &str, more: Vec<Value>| {
        let mut expressions = vec![excluded.clone()];
        expressions.extend(more);
        json!({"matchLabels": {label: "p2p"}, "matchExpressions": expressions})
    };
    let unlabelled = json!({"matchExpressions": [absent(neutral), absent(LABEL)]});
    let webhooks = [
        entry(
            "pod.piecemeal.dev",
            "/mutate/pod",
            anywhere.clone(),
            json!({"matchLabels": {neutral: "p2p"}}),
        ),
        entry(
            "pod.alias.piecemeal.dev",
            "/mutate/pod",
            anywhere.clone(),
            json!({"matchLabels": {LABEL: "p2p"}, "matchExpressions": [absent(neutral)]}),
        ),
        entry(
            "namespace.piecemeal.dev",
            &format!("/mutate/namespace/{neutral}"),
            within(neutral, vec![]),
            unlabelled.clone(),
        ),
        entry(
            "namespace.alias.piecemeal.dev",
            &format!("/mutate/namespace/{LABEL}"),
            within(LABEL, vec![absent(neutral)]),
            unlabelled,
        ),
    ];
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": name},
        "webhooks": webhooks,
    });
    api.client().create(&configuration).expect("the webhook's registration");
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("it has one")
}
