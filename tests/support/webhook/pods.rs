//! Pods and pull secrets, and readers of their fields.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};

use super::{super::registry::basic, LABEL};

/// A registry as the vendor names them, and its accelerated name.
pub const VENDOR: &str = "test-registry-vpc.cn-hangzhou.cr.aliyuncs.com";
pub const VENDOR_ACCELERATED: &str = "test-registry-vpc.distributed.cn-hangzhou.cr.aliyuncs.com:65001";

/// What every secret of the tests holds. No log may have it.
pub const PASSWORD: &str = "correct-horse-battery";

/// A pod that asks for acceleration, with a container `c0`, `c1`, … for each image.
pub fn pod(namespace: &str, images: &[&str], secrets: &[&str]) -> Value {
    let mut pod = unlabelled_pod(namespace, images, secrets);
    pod["metadata"]["labels"] = json!({LABEL: "p2p"});
    pod
}

pub fn unlabelled_pod(namespace: &str, images: &[&str], secrets: &[&str]) -> Value {
    let containers = images.iter().enumerate();
    let containers: Vec<Value> = containers
        .map(|(index, image)| json!({"name": format!("c{index}"), "image": image}))
        .collect();
    let secrets: Vec<Value> = secrets.iter().map(|name| json!({ "name": name })).collect();
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "app-", "namespace": namespace}, "spec": {"containers": containers},
    });
    if !secrets.is_empty() {
        pod["spec"]["imagePullSecrets"] = Value::Array(secrets);
    }
    pod
}

/// A pull secret with an entry for each key.
pub fn pull_secret(namespace: &str, name: &str, keys: &[&str]) -> Value {
    secret(
        namespace,
        name,
        "kubernetes.io/dockerconfigjson",
        &json!({"auths": entries(keys)}),
    )
}

/// A pull secret in the form that came before.
pub fn old_pull_secret(namespace: &str, name: &str, keys: &[&str]) -> Value {
    secret(namespace, name, "kubernetes.io/dockercfg", &entries(keys))
}

/// A secret whose content is no pull secret's, whatever it looks like.
pub fn opaque_secret(namespace: &str, name: &str, keys: &[&str]) -> Value {
    secret(namespace, name, "Opaque", &json!({"auths": entries(keys)}))
}

fn secret(namespace: &str, name: &str, secret_type: &str, content: &Value) -> Value {
    let field = if secret_type.ends_with("dockercfg") {
        ".dockercfg"
    } else {
        ".dockerconfigjson"
    };
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "type": secret_type,
        "data": {field: BASE64_STANDARD.encode(content.to_string())},
    })
}

/// The user of an entry is its key, so that one knows it again in a copy.
fn entries(keys: &[&str]) -> Value {
    let entries = keys.iter().map(|key| ((*key).to_owned(), entry(key)));
    Value::Object(entries.collect::<Map<_, _>>())
}

pub fn entry(user: &str) -> Value {
    let auth = basic(user, PASSWORD);
    let auth = auth.trim_start_matches("Basic ");
    json!({"username": user, "password": PASSWORD, "auth": auth})
}

/// The entries of a pull secret of either form.
pub fn auths(secret: &Value) -> Value {
    let (field, pointer) = match secret["type"].as_str() {
        Some("kubernetes.io/dockercfg") => (".dockercfg", ""),
        _ => (".dockerconfigjson", "/auths"),
    };
    let content = secret["data"][field].as_str().expect("the content of a pull secret");
    let content = BASE64_STANDARD.decode(content).expect("base64");
    let content: Value = serde_json::from_slice(&content).expect("JSON");
    content.pointer(pointer).expect("entries").clone()
}

/// Every image of a pod: of init containers, of containers, of volumes.
pub fn images(pod: &Value) -> Vec<String> {
    let lists = [
        ("initContainers", "/image"),
        ("containers", "/image"),
        ("volumes", "/image/reference"),
    ];
    let found = lists.iter().flat_map(|(list, within)| {
        let items = pod["spec"][*list].as_array().into_iter().flatten();
        items.filter_map(move |item| item.pointer(within)?.as_str().map(str::to_owned))
    });
    found.collect()
}

/// The names of a pod's pull secrets, in order.
pub fn pull_secrets(pod: &Value) -> Vec<String> {
    let secrets = pod["spec"]["imagePullSecrets"].as_array().into_iter().flatten();
    let names = secrets.map(|secret| secret["name"].as_str().unwrap_or_default().to_owned());
    names.collect()
}

/// What the webhook says it has done, in either label's words.
pub fn record(pod: &Value) -> Option<Value> {
    let annotations = &pod["metadata"]["annotations"];
    let texts = ["piecemeal.dev/config", "k8s.aliyun.com/p2p-config"].map(|name| annotations[name].as_str());
    let text = texts.into_iter().flatten().next()?;
    Some(serde_json::from_str(text).expect("the record is JSON"))
}

pub fn is_accelerated(pod: &Value) -> bool {
    record(pod).is_some() && images(pod).iter().any(|image| image.contains(":65001/"))
}

/// The pod is as it was sent, as far as the webhook is concerned.
///
/// # Panics
/// When it is not.
pub fn assert_untouched(sent: &Value, stored: &Value, case: &str) {
    assert_eq!(images(stored), images(sent), "{case}");
    assert_eq!(pull_secrets(stored), pull_secrets(sent), "{case}");
    assert_eq!(record(stored), None, "{case}");
    assert_eq!(stored["metadata"]["annotations"][LABEL], Value::Null, "{case}");
}
