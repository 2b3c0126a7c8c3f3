//! Which kinds of object the API server has, and under which path it keeps each: as it says itself.

use serde_json::Value;

/// What discovery told, its groups in the server's order: what Kubernetes had first comes first.
#[derive(Debug, Default)]
pub(super) struct Kinds(Vec<Kind>);

#[derive(Debug)]
struct Kind {
    kind: String,
    /// Empty for the oldest kinds.
    group: String,
    version: String,
    plural: String,
    namespaced: bool,
}

impl Kinds {
    /// Adds a list of groups, each in the version that the server prefers.
    pub(super) fn add(&mut self, discovered: &Value) {
        for group in elements(&discovered["items"]) {
            let name = group["metadata"]["name"].as_str().unwrap_or_default();
            for resource in elements(&group["versions"][0]["resources"]) {
                self.0.push(Kind {
                    kind: text(&resource["responseKind"]["kind"]),
                    group: name.to_owned(),
                    version: text(&group["versions"][0]["version"]),
                    plural: text(&resource["resource"]),
                    namespaced: resource["scope"] == "Namespaced",
                });
            }
        }
    }

    /// The path of a kind's objects. `namespace` is ignored for a kind that knows none; empty, it means all.
    pub(super) fn path(&self, kind: &str, namespace: &str) -> String {
        let found = self.0.iter().find(|known| known.kind == kind);
        let found = found.unwrap_or_else(|| panic!("the API server has no kind {kind}"));
        found.path(&found.version, namespace)
    }

    /// The path of an object's siblings, in the object's own version.
    pub(super) fn path_of(&self, object: &Value) -> String {
        let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let found = self.0.iter().find(|known| known.kind == kind && known.group == group);
        let found = found.unwrap_or_else(|| panic!("the API server has no kind {kind} in {group:?}"));
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
        found.path(version, namespace)
    }
}

impl Kind {
    fn path(&self, version: &str, namespace: &str) -> String {
        let api = match &*self.group {
            "" => format!("/api/{version}"),
            group => format!("/apis/{group}/{version}"),
        };
        if self.namespaced && !namespace.is_empty() {
            format!("{api}/namespaces/{namespace}/{}", self.plural)
        } else {
            format!("{api}/{}", self.plural)
        }
    }
}

fn elements(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
