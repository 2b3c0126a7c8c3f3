//! Copies that the pods of a namespace need, by the records that reviews have left on the pods. Pure.
//!
//! A user may have written a record: whatever in it could not be an object's name is passed over.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{
    cluster::is_object_name,
    decide::{image::Image, patch::records},
};

/// The most images and secrets of one pod's record that are looked at.
const PER_POD_MAX: usize = 64;

/// The source and the registries of a copy that pods name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct CopyUse {
    pub source: String,
    pub registries: BTreeSet<String>,
}

/// The copies that pods need, by name, as the pods' annotations record it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct CopiesInUse(pub BTreeMap<String, CopyUse>);

impl CopiesInUse {
    /// Of `pod` the metadata is enough. A user who may create pods may write anything there, and these become paths.
    pub(super) fn add(&mut self, pod: &Value) {
        for record in records(pod) {
            self.add_record(&record);
        }
    }

    fn add_record(&mut self, record: &Value) {
        let images = record["images"].as_array().into_iter().flatten();
        let originals = images.filter_map(|image| image["original"].as_str()?.parse::<Image>().ok());
        let registries: BTreeSet<String> = originals.take(PER_POD_MAX).map(|image| image.registry).collect();
        for (source, copy) in record["secrets"].as_object().into_iter().flatten().take(PER_POD_MAX) {
            let Some(copy) = copy
                .as_str()
                .filter(|copy| is_object_name(copy) && is_object_name(source))
            else {
                continue;
            };
            let entry = self.0.entry(copy.to_owned()).or_default();
            entry.source.clone_from(source);
            entry.registries.extend(registries.iter().cloned());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_pods_need_is_read_from_their_annotations() {
        let record = json!({
            "images": [{"container": "c", "original": "a.io/x:1", "image": "y"}, {"container": "d", "original": "nginx", "image": "z"}],
            "secrets": {"s": "acr-credential-s-p2p", "../../other/secrets/t": "acr-credential-t-p2p", "u": "../x"},
        });
        let pods = [
            json!({"metadata": {"annotations": {"k8s.aliyun.com/p2p-config": record.to_string()}}}),
            json!({"metadata": {"annotations": {"piecemeal.dev/config": "no JSON"}}}),
            json!({"metadata": {}}),
        ];
        let registries = BTreeSet::from(["a.io".to_owned(), "docker.io".to_owned()]);
        let expected = CopyUse {
            source: "s".to_owned(),
            registries,
        };
        let mut needed = CopiesInUse::default();
        for pod in &pods {
            needed.add(pod);
        }
        assert_eq!(
            needed.0,
            BTreeMap::from([("acr-credential-s-p2p".to_owned(), expected)])
        );
    }
}
