//! The webhook at a real API server: what the product promises about labelled pods, row by row.

mod support;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use support::{KubeApi, LABEL, Webhook};

const VENDOR: &str = "test-registry-vpc.cn-hangzhou.cr.aliyuncs.com";
const VENDOR_ACCELERATED: &str = "test-registry-vpc.distributed.cn-hangzhou.cr.aliyuncs.com:65001";

#[test]
fn a_labelled_pod_gets_annotations_accelerated_images_and_the_copied_secret() {
    let api = KubeApi::shared();
    let _webhook = Webhook::start(api, &["--registry", "cri-x", "--registry", "docker.io"]);
    let namespace = api.namespace("labelled");
    api.client()
        .create(&pull_secret(&namespace, "test-registry", VENDOR))
        .unwrap();
    let image = format!("{VENDOR}/docker-builder/nginx:latest");
    let created = api
        .client()
        .create(&pod(&namespace, "p", &image, &["test-registry"]))
        .unwrap();
    assert_eq!(
        created["spec"]["containers"][0]["image"],
        format!("{VENDOR_ACCELERATED}/docker-builder/nginx:latest"),
        "{created:#}"
    );
    let copy = api
        .client()
        .get("Secret", &namespace, "acr-credential-test-registry-p2p")
        .expect("the copy");
    println!("{copy:#}");
}

fn pod(namespace: &str, name: &str, image: &str, secrets: &[&str]) -> Value {
    let secrets: Vec<Value> = secrets.iter().map(|name| json!({ "name": name })).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {LABEL: "p2p"}},
        "spec": {"containers": [{"name": "app", "image": image}], "imagePullSecrets": secrets},
    })
}

fn pull_secret(namespace: &str, name: &str, registry: &str) -> Value {
    let content =
        json!({"auths": {registry: {"username": "u", "password": "p", "auth": BASE64_STANDARD.encode("u:p")}}});
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": BASE64_STANDARD.encode(content.to_string())},
    })
}
