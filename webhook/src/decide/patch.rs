//! The change of a pod as a JSON patch (RFC 6902) on what was sent: fields that this version does not know stay.

use serde_json::{Map, Value, json};

use super::{
    image_field::ImageField,
    mode::{LABELS, P2P},
    naming::NameStyle,
    plan::PodPlan,
};

/// The annotations with the record of a review, each in the words of its label in [`LABELS`].
const CONFIG_ANNOTATIONS: [&str; 2] = ["piecemeal.dev/config", "k8s.aliyun.com/p2p-config"];
const RECORD_VERSION: u32 = 1;
/// All keys and values of an object together. Source: `TotalAnnotationSizeLimitB` of Kubernetes.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// A pull secret of the pod and its copy, by name. The pod is to have both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecretCopy {
    pub source: String,
    pub copy: String,
}

/// The patch of `pod`. Each image is tested before it is replaced.
pub(crate) fn patch(pod: &Value, plan: &PodPlan, secrets: &[SecretCopy]) -> Vec<Value> {
    let mut ops = Vec::new();
    if plan.style != NameStyle::Mirror {
        for change in plan.changes.iter().filter(|change| !change.is_done) {
            let pointer = &change.field.pointer;
            ops.push(json!({"op": "test", "path": pointer, "value": change.original}));
            ops.push(json!({"op": "replace", "path": pointer, "value": change.accelerated}));
        }
    }
    ops.extend(add_secrets(pod, secrets));
    ops.extend(add_annotations(pod, &annotations(pod, plan, secrets)));
    ops
}

/// Whether the pod's annotations, together with those of `patch`, are no more than an API server takes: it would refuse the pod.
pub(crate) fn has_room(pod: &Value, patch: &[Value]) -> bool {
    let text = |value: &Value| value.as_str().map_or(0, str::len);
    let size = |annotations: &Value| -> usize {
        let annotations = annotations.as_object().into_iter().flatten();
        annotations.map(|(key, value)| key.len() + text(value)).sum()
    };
    let added = patch.iter().filter_map(|op| {
        let key = op["path"].as_str()?.strip_prefix("/metadata/annotations")?;
        Some(key.len() + text(&op["value"]) + size(&op["value"]))
    });
    size(&pod["metadata"]["annotations"]) + added.sum::<usize>() <= ANNOTATIONS_BYTES_MAX
}

/// The sources where the pod itself does not name them (they are its service account's), and the copies after all of them.
fn add_secrets(pod: &Value, secrets: &[SecretCopy]) -> Vec<Value> {
    let list = pod["spec"]["imagePullSecrets"].as_array();
    let mut names: Vec<&str> = list
        .into_iter()
        .flatten()
        .filter_map(|secret| secret["name"].as_str())
        .collect();
    let there = names.len();
    let sources = secrets.iter().map(|secret| secret.source.as_str());
    let copies = secrets.iter().map(|secret| secret.copy.as_str());
    for name in sources.chain(copies) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut added = names[there..].iter().map(|name| json!({ "name": name }));
    match list {
        Some(_) => added
            .map(|value| json!({"op": "add", "path": "/spec/imagePullSecrets/-", "value": value}))
            .collect(),
        None => {
            let Some(first) = added.next() else {
                return Vec::new();
            };
            let all: Vec<Value> = [first].into_iter().chain(added).collect();
            vec![json!({"op": "add", "path": "/spec/imagePullSecrets", "value": all})]
        }
    }
}

fn add_annotations(pod: &Value, wanted: &[(&'static str, String)]) -> Vec<Value> {
    match pod["metadata"]["annotations"].as_object() {
        None => {
            let all: Map<String, Value> = wanted
                .iter()
                .map(|(key, value)| ((*key).to_owned(), json!(value)))
                .collect();
            vec![json!({"op": "add", "path": "/metadata/annotations", "value": all})]
        }
        Some(there) => wanted
            .iter()
            .filter(|(key, value)| there.get(*key).and_then(Value::as_str) != Some(value))
            .map(|(key, value)| {
                let path = format!("/metadata/annotations/{}", key.replace('~', "~0").replace('/', "~1"));
                json!({"op": "add", "path": path, "value": value})
            })
            .collect(),
    }
}

/// The mode label and the record, in the words of the label that asks.
fn annotations(pod: &Value, plan: &PodPlan, secrets: &[SecretCopy]) -> [(&'static str, String); 2] {
    let label = plan.mode_label.name;
    let config = LABELS.iter().zip(CONFIG_ANNOTATIONS).find(|(name, _)| **name == label);
    let config = config.map_or(CONFIG_ANNOTATIONS[0], |(_, config)| config);
    let before = pod["metadata"]["annotations"][config].as_str();
    let before = before
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or(Value::Null);
    [
        (label, P2P.to_owned()),
        (config, record(&before, plan, secrets).to_string()),
    ]
}

/// The changed images, those left as they are, and the copies. An image that an earlier review has accelerated stays in the record.
fn record(before: &Value, plan: &PodPlan, secrets: &[SecretCopy]) -> Value {
    let mut images: Vec<Value> = before["images"].as_array().cloned().unwrap_or_default();
    for change in &plan.changes {
        let image = named(
            &change.field,
            &[("original", &change.original), ("image", &change.accelerated)],
        );
        let is_same = |earlier: &Value| earlier[change.field.kind] == *change.field.name;
        match images.iter().position(is_same) {
            Some(_) if change.is_done => {}
            Some(index) => images[index] = image,
            None => images.push(image),
        }
    }
    let untouched: Vec<Value> = plan
        .untouched
        .iter()
        .map(|untouched| {
            named(
                &untouched.field,
                &[("image", &untouched.image), ("why", &untouched.why)],
            )
        })
        .collect();
    let mut all = before["secrets"].as_object().cloned().unwrap_or_default();
    all.extend(secrets.iter().map(|secret| (secret.source.clone(), json!(secret.copy))));
    json!({
        "version": RECORD_VERSION, "webhook": env!("CARGO_PKG_VERSION"), "images": images, "untouched": untouched, "secrets": all,
    })
}

fn named(field: &ImageField, entries: &[(&str, &str)]) -> Value {
    let entries = entries.iter().map(|(name, value)| ((*name).to_owned(), json!(value)));
    [(field.kind.to_owned(), json!(field.name))]
        .into_iter()
        .chain(entries)
        .collect::<Map<_, _>>()
        .into()
}

/// The records of earlier reviews on `pod`, whose metadata is enough: none, one, or one in the words of each label.
pub(crate) fn records(pod: &Value) -> impl Iterator<Item = Value> {
    let annotations = pod["metadata"]["annotations"].as_object();
    CONFIG_ANNOTATIONS.iter().filter_map(move |name| {
        let text = annotations?.get(*name)?.as_str()?;
        serde_json::from_str(text).ok()
    })
}
