//! The webhook's rights and its registration, as the chart creates them.

use std::net::SocketAddr;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{super::kube::KubeApi, LABEL, NEUTRAL_LABEL};

/// The label of namespaces, with the webhook's name as its value, that the webhook is asked about.
pub(super) const SCOPE: &str = "tests.piecemeal.dev/webhook";

/// What the chart gives.
pub(super) fn grant(api: &KubeApi, namespace: &str, configuration: &str) {
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

/// The four entries of the chart: labels of the pod and of its namespace, in either words. Only the scope is the tests' own.
/// `ca`: of certificates that the test signs; none: the webhook has a CA of its own.
pub(super) fn register(api: &KubeApi, name: &str, listen: SocketAddr, ca: Option<&str>) {
    let neutral = NEUTRAL_LABEL;
    let absent = |label: &str| json!({"key": label, "operator": "DoesNotExist"});
    let asks = |label: &str| {
        let declines = json!({"key": label, "operator": "NotIn", "values": ["disabled"]});
        vec![json!({"key": label, "operator": "Exists"}), declines]
    };
    let excluded = json!({"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [name, "kube-system"]});
    let scope = json!({"key": SCOPE, "operator": "In", "values": [name]});
    let entry = |name: &str, path: &str, namespace: Value, object: Value| {
        let mut client = json!({"url": format!("https://{listen}{path}")});
        if let Some(ca) = ca {
            client["caBundle"] = json!(BASE64_STANDARD.encode(ca));
        }
        json!({
            "name": name, "clientConfig": client,
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"], "scope": "Namespaced"}],
            "failurePolicy": "Ignore", "matchPolicy": "Equivalent", "reinvocationPolicy": "IfNeeded", "sideEffects": "NoneOnDryRun",
            "timeoutSeconds": 5, "admissionReviewVersions": ["v1"],
            "namespaceSelector": namespace, "objectSelector": object,
        })
    };
    let anywhere = json!({"matchExpressions": [excluded, scope]});
    let within = |label: &str, more: Vec<Value>| {
        let mut expressions = vec![excluded.clone(), scope.clone()];
        expressions.extend(more);
        json!({"matchLabels": {label: "p2p"}, "matchExpressions": expressions})
    };
    let unlabelled = json!({"matchExpressions": [absent(neutral), absent(LABEL)]});
    let alias = [asks(LABEL), vec![absent(neutral)]].concat();
    let webhooks = [
        entry(
            "pod.piecemeal.dev",
            "/mutate/pod",
            anywhere.clone(),
            json!({"matchExpressions": asks(neutral)}),
        ),
        entry(
            "pod.alias.piecemeal.dev",
            "/mutate/pod",
            anywhere.clone(),
            json!({"matchExpressions": alias}),
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
