//! Fields of a pod that name an image: of its init containers, its containers and its image volumes.
//!
//! Invariant: a field's pointer leads to its image in the pod that it was read from.

use serde_json::Value;

/// The field of a pod that names an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageField {
    /// A JSON pointer to the image's text.
    pub pointer: String,
    /// `container` or `volume`, for people.
    pub kind: &'static str,
    pub name: String,
}

impl ImageField {
    /// The policy stands beside the image.
    pub(super) fn is_never_pulled(&self, pod: &Value) -> bool {
        let beside = self.pointer.rsplit_once('/').and_then(|(item, _)| pod.pointer(item));
        beside.is_some_and(|item| item["imagePullPolicy"] == "Never" || item["pullPolicy"] == "Never")
    }
}

/// Every image of a pod, in the order of its fields.
pub(crate) fn images(pod: &Value) -> Vec<(ImageField, String)> {
    let lists = [
        ("container", "initContainers", "/image"),
        ("container", "containers", "/image"),
        ("volume", "volumes", "/image/reference"),
    ];
    let mut found = Vec::new();
    for (kind, list, within) in lists {
        for (index, item) in pod["spec"][list].as_array().into_iter().flatten().enumerate() {
            let Some(text) = item
                .pointer(within)
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
            else {
                continue;
            };
            let name = item["name"].as_str().unwrap_or_default().to_owned();
            let pointer = format!("/spec/{list}/{index}{within}");
            found.push((ImageField { pointer, kind, name }, text.to_owned()));
        }
    }
    found
}
