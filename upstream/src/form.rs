//! Check that a body has the form of a manifest, whatever its type says: a filter's page, an error or a cloud's secrets that come
//! with 200 under a tag are not kept as a manifest.
//!
//! Source: OCI image-spec, manifest and image index; Docker's image manifest, schema 2 and schema 1.

use serde::{Deserialize, Deserializer, de::IgnoredAny};

/// The members by which manifests are known.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Form {
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
    fs_layers: bool,
}

/// Some registries write an empty list as null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// The media type of a manifest by its own fields; `None` when the bytes are no manifest.
pub(crate) fn manifest_type(bytes: &[u8]) -> Option<String> {
    let form: Form = serde_json::from_slice(bytes).ok()?;
    let usual = match form.schema_version {
        2 if form.manifests => "application/vnd.oci.image.index.v1+json",
        2 if form.config && form.layers => "application/vnd.oci.image.manifest.v1+json",
        1 if form.fs_layers => "application/vnd.docker.distribution.manifest.v1+json",
        _ => return None,
    };
    let is_type = |text: &String| text.starts_with("application/") && text.bytes().all(|byte| byte.is_ascii_graphic());
    Some(form.media_type.filter(is_type).unwrap_or_else(|| usual.to_owned()))
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
            (r#"{"schemaVersion":2,"layers":[]}"#, None),
            (r#"{"schemaVersion":3,"manifests":[]}"#, None),
            (r#"{"schemaVersion":2,"config":{},"layers":["#, None),
            (r#"{"config":{},"layers":[]}"#, None),
            (r#"{"errors":[{"code":"UNKNOWN"}]}"#, None),
            (r#"{"AccessKeyId":"x","Token":"y"}"#, None),
            ("[]", None),
            ("null", None),
            ("", None),
            ("Access denied", None),
            ("<html></html>", None),
        ];
        for (text, media_type) in cases {
            assert_eq!(manifest_type(text.as_bytes()).as_deref(), media_type, "{text}");
        }
    }
}
