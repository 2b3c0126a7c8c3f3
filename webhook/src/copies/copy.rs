//! The copy of a pull secret: the same credentials under the names that accelerated images have.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine, prelude::BASE64_STANDARD};
use piecemeal_proto::Digest;
use serde_json::{Map, Value, json};

use crate::{
    cluster::is_object_name,
    decide::{
        keyring::{Form, Keyring},
        naming::Naming,
    },
};

/// The label, and its value, on everything that the webhook makes in a namespace.
pub(crate) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "piecemeal-webhook");
/// The label on copies of pull secrets, which are found by it with the value `true`.
pub const COPY_LABEL: &str = "piecemeal.dev/copy";
const SOURCE: &str = "piecemeal.dev/copy-of";
const REGISTRIES: &str = "piecemeal.dev/copy-registries";
/// The annotation with the hash, in hexadecimal, of the content that the copy was made with.
const CONTENT_HASH: &str = "piecemeal.dev/copy-hash";
/// The label selector of all copies, for [`crate::Objects::list`].
pub fn select_copies() -> String {
    format!("{COPY_LABEL}=true")
}

/// Since when no pod names the copy, RFC 3339. A copy that is taken into use again is written without it.
pub(crate) const UNUSED_SINCE: &str = "piecemeal.dev/copy-unused-since";
/// The longest name of a Secret in Kubernetes, in bytes.
const NAME_BYTES_MAX: usize = 253;
/// The place of the source's name in a template.
const PLACE: &str = "{secret}";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CopySettings {
    pub naming: Naming,
    pub name: CopyName,
    /// Whether entries that are for no accelerated registry are carried along.
    pub keep_unrelated: bool,
}

/// Template of the names of copies, made from those of their sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyName(String);

impl CopyName {
    /// `template`: a Secret's name in which `{secret}` stands for the source's.
    ///
    /// # Errors
    /// A template that does not make a name.
    pub fn parse(template: &str) -> Result<Self, String> {
        let (before, after) = template.split_once(PLACE).unwrap_or(("", ""));
        let example = format!("{before}x{after}");
        let is_name = example
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
            && !example.starts_with(['-', '.'])
            && !example.ends_with(['-', '.']);
        if template.matches(PLACE).count() == 1 && is_name && example.len() > 1 && example.len() < NAME_BYTES_MAX / 2 {
            Ok(Self(template.to_owned()))
        } else {
            Err(format!(
                "{template:?} makes no Secret's name: write {PLACE} once, and lower-case letters, digits, '-' and '.' around it"
            ))
        }
    }

    /// The copy's usual name. A long one is cut, and a hash keeps it apart from others.
    pub(crate) fn of(&self, source: &str) -> String {
        let name = self.0.replace(PLACE, source);
        if name.len() <= NAME_BYTES_MAX {
            name
        } else {
            self.other(source)
        }
    }

    /// Its name where a foreign Secret has the usual one.
    pub(crate) fn other(&self, source: &str) -> String {
        let name = self.0.replace(PLACE, source);
        let hash = &Digest::of(name.as_bytes()).hex()[..8];
        let kept: String = name.chars().take(NAME_BYTES_MAX - 1 - hash.len()).collect();
        format!("{}-{hash}", kept.trim_end_matches(['-', '.']))
    }
}

/// A copy that is to be there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Copy {
    source_name: String,
    source_uid: String,
    form: Form,
    /// Base64, never to be logged.
    content: String,
    registries: BTreeSet<String>,
}

impl Copy {
    /// `registries`: the originals whose accelerated names the copy is for. None when nothing in `source` is for them.
    pub(crate) fn of(
        source: &Value,
        keyring: &Keyring,
        registries: &BTreeSet<String>,
        settings: &CopySettings,
    ) -> Option<Self> {
        let mut entries: BTreeMap<String, &Value> = BTreeMap::new();
        let mut meant = BTreeSet::new();
        for registry in registries {
            let Some(prefix) = settings.naming.prefix(registry) else {
                continue;
            };
            for (key, entry) in keyring.entries_for(registry) {
                meant.insert(registry.clone());
                // A key's path fits whatever begins with it, another registry too.
                let end = if key.path.is_empty() && prefix.contains('/') {
                    "/"
                } else {
                    ""
                };
                // The kubelet would take the first of them.
                entries.entry(format!("{prefix}{}{end}", key.path)).or_insert(entry);
            }
        }
        if entries.is_empty() {
            return None;
        }
        let mut all: Map<String, Value> = if settings.keep_unrelated {
            keyring.entries().clone()
        } else {
            Map::new()
        };
        all.extend(entries.into_iter().map(|(key, entry)| (key, entry.clone())));
        let content = match keyring.form {
            Form::ConfigJson => json!({ "auths": all }),
            Form::Config => Value::Object(all),
        };
        Some(Self {
            source_name: text(&source["metadata"]["name"]),
            source_uid: text(&source["metadata"]["uid"]),
            form: keyring.form,
            content: BASE64_STANDARD.encode(content.to_string()),
            registries: meant,
        })
    }

    /// The Secret object. Its owner is the source, so that it goes when the source does.
    pub(crate) fn object(&self, namespace: &str, name: &str) -> Value {
        let registries: Vec<&str> = self.registries.iter().map(String::as_str).collect();
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": { MANAGED_BY.0: MANAGED_BY.1, COPY_LABEL: "true" },
                "annotations": { SOURCE: self.source_name, REGISTRIES: registries.join(","), CONTENT_HASH: self.hash() },
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Secret", "name": self.source_name, "uid": self.source_uid, "controller": false,
                    "blockOwnerDeletion": false,
                }],
            },
            "type": self.form.secret_type(),
            "data": { self.form.field(): self.content },
        })
    }

    /// Whether `existing` is this copy already, by content and not only by what it says of itself.
    pub(crate) fn is(&self, existing: &Value) -> bool {
        let metadata = &existing["metadata"];
        existing["type"] == self.form.secret_type()
            && existing["data"][self.form.field()] == *self.content
            && existing["data"].as_object().is_some_and(|data| data.len() == 1)
            && metadata["annotations"].get(UNUSED_SINCE).is_none()
            && metadata["annotations"][CONTENT_HASH] == *self.hash()
            && metadata["annotations"][REGISTRIES].as_str().map(split).as_ref() == Some(&self.registries)
            && metadata["labels"][COPY_LABEL] == "true"
            && metadata["ownerReferences"][0]["uid"] == *self.source_uid
    }

    fn hash(&self) -> String {
        Digest::of(self.content.as_bytes()).hex()
    }
}

/// The Secret that `secret` says to be a copy of; none for one that is not ours.
pub(crate) fn source_of(secret: &Value) -> Option<&str> {
    let metadata = &secret["metadata"];
    let is_ours = metadata["labels"][MANAGED_BY.0] == MANAGED_BY.1 && metadata["labels"][COPY_LABEL] == "true";
    metadata["annotations"][SOURCE]
        .as_str()
        .filter(|source| is_ours && is_object_name(source))
}

/// The registries that a copy is for.
pub(crate) fn registries_of(copy: &Value) -> BTreeSet<String> {
    copy["metadata"]["annotations"][REGISTRIES]
        .as_str()
        .map(split)
        .unwrap_or_default()
}

fn split(registries: &str) -> BTreeSet<String> {
    registries
        .split(',')
        .filter(|registry| !registry.is_empty())
        .map(ToOwned::to_owned)
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decide::naming::NameStyle;

    fn settings() -> CopySettings {
        CopySettings {
            naming: Naming {
                style: NameStyle::Rename,
                peer_port: 65001,
            },
            name: CopyName::parse("acr-credential-{secret}-p2p").unwrap(),
            keep_unrelated: false,
        }
    }

    fn source(auths: &Value) -> Value {
        let content = BASE64_STANDARD.encode(json!({ "auths": auths }).to_string());
        json!({
            "metadata": {"name": "test-registry", "uid": "u-1"},
            "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": content},
        })
    }

    fn copy(source: &Value, registries: &[&str], settings: &CopySettings) -> Option<Copy> {
        let registries = registries.iter().map(|registry| (*registry).to_owned()).collect();
        Copy::of(source, &Keyring::of(source).unwrap(), &registries, settings)
    }

    fn auths(copy: &Copy) -> Value {
        let object = copy.object("n", "x");
        let content = BASE64_STANDARD
            .decode(object["data"][".dockerconfigjson"].as_str().unwrap())
            .unwrap();
        serde_json::from_slice::<Value>(&content).unwrap()["auths"].clone()
    }

    const VENDOR: &str = "test-registry-vpc.cn-hangzhou.cr.aliyuncs.com";
    const VENDOR_ACCELERATED: &str = "test-registry-vpc.distributed.cn-hangzhou.cr.aliyuncs.com:65001";

    #[test]
    fn a_copy_differs_from_its_source_in_the_registry_alone() {
        let entry =
            json!({"username": "u", "password": "p", "auth": "dTpw", "email": "e", "identitytoken": "t", "extra": 1});
        let copy = copy(
            &source(&json!({ VENDOR: entry, "quay.io": {"auth": "x"} })),
            &[VENDOR],
            &settings(),
        )
        .unwrap();
        assert_eq!(auths(&copy), json!({ VENDOR_ACCELERATED: entry }));
        assert_eq!(copy.object("n", "x")["type"], "kubernetes.io/dockerconfigjson");
    }

    #[test]
    fn keys_keep_their_paths_and_lose_scheme_version_and_patterns() {
        let team = json!({"auth": "team"});
        let all = json!({"auth": "all"});
        let source = source(&json!({
            "https://reg.io/v2/": all, "reg.io/team": team, "*.cn-hangzhou.cr.aliyuncs.com": all, "https://index.docker.io/v1/": all,
        }));
        let copy = copy(&source, &["reg.io", VENDOR, "docker.io"], &settings()).unwrap();
        let expected = json!({
            "reg.io.piecemeal.internal:65001": all,
            "reg.io.piecemeal.internal:65001/team": team,
            VENDOR_ACCELERATED: all,
            "docker.io.piecemeal.internal:65001": all,
        });
        assert_eq!(auths(&copy), expected);
    }

    #[test]
    fn the_entry_that_the_kubelet_would_take_is_the_one_that_is_copied() {
        let copy = copy(
            &source(&json!({"*.io": {"auth": "wild"}, "reg.io": {"auth": "own"}})),
            &["reg.io"],
            &settings(),
        )
        .unwrap();
        assert_eq!(
            auths(&copy),
            json!({"reg.io.piecemeal.internal:65001": {"auth": "own"}})
        );
    }

    #[test]
    fn on_localhost_the_path_keeps_registries_apart() {
        let mut settings = settings();
        settings.naming.style = NameStyle::Localhost;
        let source = source(&json!({"a.io": {"auth": "a"}, "b.io:5000/team": {"auth": "b"}}));
        let copy = copy(&source, &["a.io", "b.io:5000"], &settings).unwrap();
        let expected =
            json!({"127.0.0.1:65001/a.io/": {"auth": "a"}, "127.0.0.1:65001/b.io__5000/team": {"auth": "b"}});
        assert_eq!(auths(&copy), expected);
    }

    #[test]
    fn unrelated_entries_come_along_on_request() {
        let mut settings = settings();
        settings.keep_unrelated = true;
        let copy = copy(
            &source(&json!({"a.io": {"auth": "a"}, "b.io": {"auth": "b"}})),
            &["a.io"],
            &settings,
        )
        .unwrap();
        let expected =
            json!({"a.io": {"auth": "a"}, "b.io": {"auth": "b"}, "a.io.piecemeal.internal:65001": {"auth": "a"}});
        assert_eq!(auths(&copy), expected);
    }

    #[test]
    fn there_is_no_copy_of_what_is_for_none_of_the_registries() {
        assert_eq!(copy(&source(&json!({"a.io": {}})), &["b.io"], &settings()), None);
    }

    #[test]
    fn a_copy_is_known_again_until_anything_of_it_changes() {
        let source = source(&json!({"a.io": {"auth": "a"}}));
        let copy = copy(&source, &["a.io"], &settings()).unwrap();
        let object = copy.object("n", "x");
        assert!(copy.is(&object));
        assert_eq!(source_of(&object), Some("test-registry"));
        assert_eq!(registries_of(&object), BTreeSet::from(["a.io".to_owned()]));
        for pointer in [
            "/data/.dockerconfigjson",
            "/type",
            "/metadata/annotations/piecemeal.dev~1copy-hash",
            "/metadata/annotations/piecemeal.dev~1copy-registries",
            "/metadata/labels/piecemeal.dev~1copy",
            "/metadata/ownerReferences/0/uid",
        ] {
            let mut changed = object.clone();
            *changed.pointer_mut(pointer).unwrap() = json!("changed");
            assert!(!copy.is(&changed), "{pointer}");
        }
        let mut more = object;
        more["data"]["more"] = json!("eA==");
        assert!(!copy.is(&more));
    }

    #[test]
    fn a_foreign_secret_is_no_copy() {
        let object = json!({"metadata": {"labels": {COPY_LABEL: "true"}, "annotations": {SOURCE: "x"}}});
        assert_eq!(source_of(&object), None);
        let labels = json!({COPY_LABEL: "true", MANAGED_BY.0: MANAGED_BY.1});
        let forged = json!({"metadata": {"labels": labels, "annotations": {SOURCE: "../../other/secrets/x"}}});
        assert_eq!(source_of(&forged), None);
    }

    #[test]
    fn a_copy_s_name_follows_the_template_and_is_always_a_name() {
        let name = settings().name;
        assert_eq!(name.of("test-registry"), "acr-credential-test-registry-p2p");
        let long = "x".repeat(NAME_BYTES_MAX);
        assert!(name.of(&long).len() <= NAME_BYTES_MAX);
        assert_ne!(name.of(&long), name.of(&"x".repeat(NAME_BYTES_MAX - 1)));
        assert_ne!(name.other("test-registry"), name.of("test-registry"));
        for bad in [
            "",
            "x",
            "{secret}{secret}",
            "A-{secret}",
            "{secret}-",
            "-{secret}",
            "{secret}",
            "{secret}_p2p",
        ] {
            assert!(CopyName::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_pod_may_pull_an_accelerated_image_exactly_when_it_may_pull_the_original(
            keys in prop::collection::btree_set(r"(https://)?(\*|reg|a)\.(io|\*)(/v2/|/team|/team/a)?", 1..5),
            registry in r"(reg|a|b)\.(io|com)",
            repository in r"(team|other)(/a|/b)?",
        ) {
            let entries: Map<String, Value> = keys.iter().map(|key| (key.clone(), json!({"auth": key}))).collect();
            let source = source(&Value::Object(entries));
            let original = Keyring::of(&source).unwrap();
            let naming = settings().naming;
            let may = copy(&source, &[&registry], &settings()).is_some_and(|copy| {
                let copied = Keyring::of(&copy.object("n", "x")).unwrap();
                let accelerated = naming.prefix(&registry).unwrap();
                copied.is_for(&accelerated, &repository)
            });
            prop_assert_eq!(may, original.is_for(&registry, &repository));
        }
    }
}
