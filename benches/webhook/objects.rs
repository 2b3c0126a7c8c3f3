//! Pods as clusters have them, and their pull secrets.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

/// The registry that is accelerated.
pub(crate) const REGISTRY: &str = "reg.example.com";
/// One that is not.
pub(crate) const OTHER_REGISTRY: &str = "quay.io";
pub(crate) const LABEL: &str = "piecemeal.dev/mode";

/// A pod of about 8 KiB, as a Deployment of a service with a proxy beside it makes them.
pub(crate) fn pod(namespace: &str, name: &str, registry: &str, secret: &str) -> Value {
    let container = |name: &str, variables: usize| {
        let environment: Vec<Value> = (0..variables)
            .map(|number| json!({"name": format!("SETTING_NUMBER_{number}"), "value": format!("https://service-{number}.example.com/path")}))
            .collect();
        json!({
            "name": name, "image": format!("{registry}/team/{name}:1.2.3"), "imagePullPolicy": "IfNotPresent", "env": environment,
            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m", "memory": "256Mi"}},
            "livenessProbe": {"httpGet": {"path": "/livez", "port": "http", "scheme": "HTTP"}, "periodSeconds": 10, "timeoutSeconds": 1},
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http", "scheme": "HTTP"}, "periodSeconds": 10, "timeoutSeconds": 1},
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true},
            "volumeMounts": [{"name": "config", "mountPath": "/etc/service", "readOnly": true}],
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
        })
    };
    let mut agent = container("agent", 12);
    // A sidecar, as Kubernetes itself has them.
    agent["restartPolicy"] = json!("Always");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": namespace, "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8080"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "service-6d4cf56db6", "uid": format!("replicas-of-{namespace}"),
                "controller": true, "blockOwnerDeletion": true,
            }],
            "labels": {
                LABEL: "p2p", "app.kubernetes.io/name": "service", "app.kubernetes.io/instance": "production",
                "app.kubernetes.io/version": "1.2.3", "app.kubernetes.io/managed-by": "Helm", "pod-template-hash": "6d4cf56db6",
            },
        },
        "spec": {
            "initContainers": [agent],
            "containers": [container("service", 28), container("proxy", 12)],
            "volumes": [
                {"name": "config", "configMap": {"name": "service", "defaultMode": 420}},
                {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}},
            ],
            "imagePullSecrets": [{"name": secret}], "serviceAccountName": "default", "restartPolicy": "Always",
            "tolerations": [{"key": "edge", "operator": "Exists", "effect": "NoSchedule"}],
            "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
        },
    })
}

/// What the API server asks about `pod`.
pub(crate) fn review(pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "operation": "CREATE", "namespace": pod["metadata"]["namespace"],
            "name": pod["metadata"]["name"], "object": pod, "oldObject": null, "dryRun": false,
            "kind": {"group": "", "version": "v1", "kind": "Pod"}, "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "userInfo": {
                "username": "system:serviceaccount:kube-system:replicaset-controller", "uid": "a7e0ab33-5f29-11e8-8a3c-36e6bb280816",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"],
            },
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
        },
    })
}

pub(crate) fn pull_secret(namespace: &str, name: &str) -> Value {
    let auth = BASE64_STANDARD.encode(format!("{name}:password"));
    let content = json!({"auths": {REGISTRY: {"username": name, "password": "password", "auth": auth}}});
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": BASE64_STANDARD.encode(content.to_string())},
    })
}
