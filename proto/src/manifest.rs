//! Descriptors read out of manifests and indexes, whose bytes are never changed.
//!
//! Invariant: reading never fails; a manifest that cannot be read is [`Manifest::Unknown`], and passes through byte for byte.

use serde::Deserialize;

use crate::Digest;

/// The most bytes a manifest may have: what registries accept (4 MB) with room to spare.
pub const MANIFEST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The media types asked for upstream: everything we know, then anything.
pub const MANIFEST_ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*";

const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// Descriptor of one piece of content, as a manifest states it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// Only in an index.
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// Whether this is a manifest or an index, as far as its media type tells. The indexes of build caches list layers too.
    pub fn is_manifest(&self) -> bool {
        let kind = &self.media_type;
        kind.is_empty() || kind.contains(".manifest.") || kind.contains(".index.")
    }
}

/// The platform that an index names for a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: String,
}

/// The blobs and manifests that a manifest refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manifest {
    /// An OCI image manifest or Docker schema 2: the config first, then the layers.
    Image { blobs: Vec<Descriptor> },
    /// An OCI index or Docker manifest list.
    Index { manifests: Vec<Descriptor> },
    /// Any other kind, or a body that is not as its kind says: passed through byte for byte.
    Unknown,
}

impl Manifest {
    /// Reads `bytes`, by the kind that `media_type` says or else that the body shows. Never fails: what cannot be read is [`Manifest::Unknown`].
    pub fn read(media_type: &str, bytes: &[u8]) -> Self {
        let Ok(raw) = serde_json::from_slice::<Raw>(bytes) else {
            return Self::Unknown;
        };
        let is_index =
            INDEX_TYPES.contains(&media_type) || raw.media_type.is_some_and(|kind| INDEX_TYPES.contains(&&*kind));
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), _, _) if is_index => Self::Index { manifests },
            (None, Some(config), layers) => Self::Image {
                blobs: std::iter::once(config).chain(layers.unwrap_or_default()).collect(),
            },
            (Some(manifests), None, None) => Self::Index { manifests },
            _ => Self::Unknown,
        }
    }

    /// The blobs that it names, with their sizes; none for an index.
    pub fn blobs(&self) -> &[Descriptor] {
        match self {
            Self::Image { blobs } => blobs,
            Self::Index { .. } | Self::Unknown => &[],
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(content: &str) -> String {
        format!(
            r#"{{"mediaType":"x","digest":"{}","size":{},"annotations":{{"a":"b"}}}}"#,
            Digest::of(content.as_bytes()),
            content.len()
        )
    }

    #[test]
    fn an_image_manifest_names_its_config_and_layers() {
        for media_type in [
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.v2+json",
            "",
        ] {
            let json = format!(
                r#"{{"schemaVersion":2,"config":{},"layers":[{},{}]}}"#,
                descriptor("config"),
                descriptor("one"),
                descriptor("two")
            );
            let manifest = Manifest::read(media_type, json.as_bytes());
            let sizes: Vec<u64> = manifest.blobs().iter().map(|blob| blob.size).collect();
            assert_eq!(sizes, [6, 3, 3], "{media_type}");
            assert_eq!(manifest.blobs()[1].digest, Digest::of(b"one"));
        }
    }

    #[test]
    fn an_index_names_manifests_with_platforms() {
        let json = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{{"mediaType":"m","digest":"{}","size":7,"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}}]}}"#,
            INDEX_TYPES[1],
            Digest::of(b"m")
        );
        let Manifest::Index { manifests } = Manifest::read("", json.as_bytes()) else {
            panic!("not read as an index");
        };
        assert_eq!(
            manifests[0].platform.as_ref().map(|platform| &*platform.architecture),
            Some("arm64")
        );
        assert_eq!(
            Manifest::read(INDEX_TYPES[0], json.as_bytes()),
            Manifest::Index { manifests }
        );
    }

    #[test]
    fn what_cannot_be_read_is_passed_through() {
        for body in [
            "",
            "{}",
            "[]",
            "<html>",
            r#"{"config":{"digest":"md5:0","size":1}}"#,
            r#"{"layers":[]}"#,
            "\u{0}",
        ] {
            assert_eq!(
                Manifest::read("application/vnd.oci.image.manifest.v1+json", body.as_bytes()),
                Manifest::Unknown,
                "{body}"
            );
        }
    }
}
