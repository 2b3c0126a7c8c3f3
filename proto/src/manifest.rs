//! Descriptors read out of manifests and indexes, whose bytes are never changed.
//!
//! Invariant: reading never fails; a manifest that cannot be read is [`Manifest::Unknown`], and passes through byte for byte. A
//! descriptor that cannot be read, as one of an unknown algorithm, spoils no other.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::value::RawValue;

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
    /// Whether it is a foreign layer, which has `urls` outside the registry: the registry need not have it.
    #[serde(default, rename = "urls", deserialize_with = "is_list")]
    pub is_foreign: bool,
    /// The content itself, in base64.
    #[serde(default, deserialize_with = "text")]
    pub data: Option<String>,
}

impl Descriptor {
    /// The content, where the descriptor has it in itself and it is right.
    pub fn inline(&self) -> Option<Vec<u8>> {
        let content = STANDARD.decode(self.data.as_ref()?).ok()?;
        (content.len() as u64 == self.size && self.digest.matches(&content)).then_some(content)
    }

    /// Whether an image is whole without it at the registry: a client gets it elsewhere.
    pub fn is_elsewhere(&self) -> bool {
        self.is_foreign || self.inline().is_some()
    }

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
        let Ok(raw) = serde_json::from_slice::<Raw<'_>>(bytes) else {
            return Self::Unknown;
        };
        let is_index =
            INDEX_TYPES.contains(&media_type) || raw.media_type.is_some_and(|kind| INDEX_TYPES.contains(&&*kind));
        match (raw.manifests, raw.config, raw.layers.or(raw.blobs)) {
            (Some(manifests), _, _) if is_index => Self::index(&manifests),
            (Some(manifests), None, None) => Self::index(&manifests),
            (Some(_), _, _) | (None, None, None) => Self::Unknown,
            (None, config, contents) => Self::image(config.into_iter().chain(contents.unwrap_or_default())),
        }
    }

    fn index(manifests: &[&RawValue]) -> Self {
        Self::Index {
            manifests: manifests.iter().filter_map(|entry| read_descriptor(entry)).collect(),
        }
    }

    fn image<'a>(blobs: impl Iterator<Item = &'a RawValue>) -> Self {
        let blobs: Vec<Descriptor> = blobs.filter_map(read_descriptor).collect();
        if blobs.is_empty() {
            return Self::Unknown;
        }
        Self::Image { blobs }
    }

    /// The digests that a manifest states and that cannot be read, as they stand there: those of an unknown algorithm.
    pub fn unreadable(bytes: &[u8]) -> Vec<String> {
        let Ok(raw) = serde_json::from_slice::<Raw<'_>>(bytes) else {
            return Vec::new();
        };
        let lists = [raw.manifests, raw.layers, raw.blobs].into_iter().flatten().flatten();
        let unread = raw
            .config
            .into_iter()
            .chain(lists)
            .filter(|entry| read_descriptor(entry).is_none());
        unread
            .map(|entry| {
                serde_json::from_str::<StatedDigest>(entry.get())
                    .map_or_else(|_| "no digest".to_owned(), |stated| stated.digest)
            })
            .collect()
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
struct Raw<'a> {
    media_type: Option<String>,
    #[serde(borrow)]
    manifests: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    config: Option<&'a RawValue>,
    #[serde(borrow)]
    layers: Option<Vec<&'a RawValue>>,
    /// Of an artifact manifest, which OCI 1.1 has dropped.
    #[serde(borrow)]
    blobs: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct StatedDigest {
    digest: String,
}

fn read_descriptor(entry: &RawValue) -> Option<Descriptor> {
    serde_json::from_str(entry.get()).ok()
}

/// Whether it is a list with something in it. Anything else is not worth a descriptor.
fn is_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let raw = Box::<RawValue>::deserialize(deserializer)?;
    Ok(serde_json::from_str::<Vec<IgnoredAny>>(raw.get()).is_ok_and(|list| !list.is_empty()))
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let raw = Box::<RawValue>::deserialize(deserializer)?;
    Ok(serde_json::from_str(raw.get()).ok())
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

    fn image(layers: &[String]) -> String {
        let config = descriptor("config");
        format!(
            r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#,
            layers.join(",")
        )
    }

    #[test]
    fn a_descriptor_that_cannot_be_read_spoils_no_other() {
        let odd = [
            r#"{"digest":"blake3:aa","size":1}"#,
            r#"{"digest":"sha256:1","size":1}"#,
            r#"{"size":1}"#,
            r#"{"digest":7}"#,
            "7",
            "null",
        ];
        let entries: Vec<String> = odd
            .iter()
            .map(|text| (*text).to_owned())
            .chain([descriptor("one")])
            .collect();
        let text = image(&entries);
        let sizes: Vec<u64> = Manifest::read("", text.as_bytes())
            .blobs()
            .iter()
            .map(|blob| blob.size)
            .collect();
        assert_eq!(sizes, [6, 3]);
        assert_eq!(
            Manifest::unreadable(text.as_bytes()),
            [
                "blake3:aa",
                "sha256:1",
                "no digest",
                "no digest",
                "no digest",
                "no digest"
            ]
        );
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        let Manifest::Index { manifests } = Manifest::read("", index.as_bytes()) else {
            panic!("not read as an index");
        };
        assert_eq!(manifests.len(), 1);
        // A config of an unknown algorithm takes no layer with it.
        let text = format!(r#"{{"config":{},"layers":[{}]}}"#, odd[0], descriptor("one"));
        assert_eq!(Manifest::read("", text.as_bytes()).blobs().len(), 1);
    }

    #[test]
    fn content_that_stands_in_the_manifest_counts_only_if_it_is_right() {
        let with = |data: &str| {
            let digest = Digest::of(b"{}");
            let text = image(&[format!(r#"{{"digest":"{digest}","size":2,"data":{data}}}"#)]);
            Manifest::read("", text.as_bytes()).blobs()[1].clone()
        };
        let right = with(r#""e30=""#);
        assert_eq!(right.inline().as_deref(), Some(&b"{}"[..]));
        assert!(right.is_elsewhere());
        for wrong in [r#""e30""#, r#""""#, r#""e31=""#, r#""!""#, "null", "7", "[]"] {
            let descriptor = with(wrong);
            assert!(descriptor.inline().is_none() && !descriptor.is_elsewhere(), "{wrong}");
        }
    }

    #[test]
    fn a_layer_with_urls_is_foreign() {
        let with = |urls: &str| {
            let digest = Digest::of(b"x");
            let text = image(&[format!(r#"{{"digest":"{digest}","size":2,"urls":{urls}}}"#)]);
            Manifest::read("", text.as_bytes()).blobs()[1].is_foreign
        };
        assert!(with(r#"["https://a.test/layer"]"#));
        for none in ["[]", "null", r#""https://a.test/layer""#, "{}"] {
            assert!(!with(none), "{none}");
        }
    }

    #[test]
    fn an_artifact_manifest_names_its_blobs() {
        let text = format!(
            r#"{{"artifactType":"x","blobs":[{},{}]}}"#,
            descriptor("a"),
            descriptor("b")
        );
        assert_eq!(Manifest::read("", text.as_bytes()).blobs().len(), 2);
    }
}
