//! Check that a body has the form of a manifest, whatever its type says: a filter's page, an error or a cloud's secrets that come
//! with 200 under a tag are not kept as a manifest.
//!
//! Source: OCI image-spec, manifest and image index; Docker's image manifest, schema 2 and schema 1.

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IgnoredAny},
};

/// The members by which manifests are known.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Form {
    #[expect(dead_code, reason = "it has to be there, and to be a number")]
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default, deserialize_with = "present")]
    config: bool,
    #[serde(default, deserialize_with = "present")]
    layers: bool,
    #[serde(default, deserialize_with = "present")]
    manifests: bool,
    #[serde(default, deserialize_with = "present")]
    blobs: bool,
    #[serde(default, deserialize_with = "present")]
    fs_layers: bool,
}

/// Some registries write an empty list as null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// The media type of a manifest by its own fields; `None` when the bytes are no manifest.
pub(crate) fn manifest_type(bytes: &[u8]) -> Option<String> {
    let form: Form = object(bytes)?;
    let usual = match form {
        Form { manifests: true, .. } => "application/vnd.oci.image.index.v1+json",
        Form { config: true, .. } | Form { layers: true, .. } => "application/vnd.oci.image.manifest.v1+json",
        Form { blobs: true, .. } => "application/vnd.oci.artifact.manifest.v1+json",
        Form { fs_layers: true, .. } => "application/vnd.docker.distribution.manifest.v1+json",
        _ => return None,
    };
    let is_type = |text: &String| text.starts_with("application/") && text.bytes().all(|byte| byte.is_ascii_graphic());
    Some(form.media_type.filter(is_type).unwrap_or_else(|| usual.to_owned()))
}

/// The members by which lists of tags and of referrers are known.
#[derive(Deserialize)]
struct ListForm {
    #[serde(default, deserialize_with = "present")]
    name: bool,
    #[serde(default, deserialize_with = "present")]
    tags: bool,
    #[serde(default, deserialize_with = "present")]
    manifests: bool,
}

/// Whether the bytes have the form of a list. Some registries leave out the tags where there are none.
pub(crate) fn is_list(bytes: &[u8]) -> bool {
    object(bytes).is_some_and(|form: ListForm| form.name || form.tags || form.manifests)
}

/// Reads an object: an array of the same values would be taken for one.
fn object<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let is_object = bytes.trim_ascii_start().starts_with(b"{");
    is_object.then(|| serde_json::from_slice(bytes).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_known_by_their_members() {
        let cases = [
            (
                r#"{"schemaVersion":2,"config":{},"layers":[]}"#,
                Some("application/vnd.oci.image.manifest.v1+json"),
            ),
            (
                r#"{"schemaVersion":2,"config":{},"layers":null}"#,
                Some("application/vnd.oci.image.manifest.v1+json"),
            ),
            (
                r#"{"schemaVersion":2,"manifests":[]}"#,
                Some("application/vnd.oci.image.index.v1+json"),
            ),
            (
                r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","manifests":[]}"#,
                Some("application/vnd.docker.distribution.manifest.list.v2+json"),
            ),
            (
                r#"{"schemaVersion":1,"name":"a","tag":"b","fsLayers":[]}"#,
                Some("application/vnd.docker.distribution.manifest.v1+json"),
            ),
            (
                r#"{"schemaVersion":2,"mediaType":"text/html\n","manifests":[]}"#,
                Some("application/vnd.oci.image.index.v1+json"),
            ),
            (r#"{"schemaVersion":2}"#, None),
            (
                r#"{"schemaVersion":2,"layers":[]}"#,
                Some("application/vnd.oci.image.manifest.v1+json"),
            ),
            (
                r#"{"schemaVersion":2,"mediaType":"application/vnd.example.manifest.v1+json","blobs":[]}"#,
                Some("application/vnd.example.manifest.v1+json"),
            ),
            (r#"{"schemaVersion":"2","manifests":[]}"#, None),
            (r#"{"schemaVersion":2,"errors":[]}"#, None),
            (r#"{"errorCode":"SI3.1","message":"Blocked by policy"}"#, None),
            (r#"{"schemaVersion":2,"config":{},"layers":["#, None),
            (r#"{"config":{},"layers":[]}"#, None),
            (r#"{"errors":[{"code":"UNKNOWN"}]}"#, None),
            (r#"{"AccessKeyId":"x","Token":"y"}"#, None),
            ("[]", None),
            (r#"[2,"application/vnd.example.manifest.v1+json",{},[]]"#, None),
            ("null", None),
            ("", None),
            ("Access denied", None),
            ("<html></html>", None),
        ];
        for (text, media_type) in cases {
            assert_eq!(manifest_type(text.as_bytes()).as_deref(), media_type, "{text}");
        }
    }

    #[test]
    fn lists_are_known_by_their_members() {
        for text in [
            r#"{"name":"a","tags":["v1"]}"#,
            r#"{"tags":null}"#,
            r#"{"name":"a"}"#,
            r#"{"schemaVersion":2,"manifests":[]}"#,
        ] {
            assert!(is_list(text.as_bytes()), "{text}");
        }
        for text in [
            "{}",
            "[]",
            r#"["a"]"#,
            "",
            "Access denied",
            r#"{"errors":[]}"#,
            r#"{"tags":["#,
        ] {
            assert!(!is_list(text.as_bytes()), "{text}");
        }
    }
}
