//! JSON messages of the cache API. Both sides use these types, so that they cannot drift apart.
//!
//! Fields are only ever added. An answer that takes long is one object a line.

use piecemeal_proto::Digest;
use serde::{Deserialize, Serialize};

/// The answer to `GET /cache`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheList {
    pub images: Vec<CachedImage>,
    /// Blobs that no known manifest lists.
    pub unlisted: Vec<CachedBlob>,
    /// The bytes of all blobs, each counted once.
    pub total_bytes: u64,
}

/// An image in the cache, under its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedImage {
    /// `docker.io/library/alpine:3.20`, or `…@sha256:…` for what no tag names.
    pub name: String,
    pub digest: Digest,
    /// The bytes of its blobs that are here; a shared blob counts for each of its images.
    pub here_bytes: u64,
    /// Every blob of every manifest that was asked for is here. Other platforms of an index do not count.
    pub is_complete: bool,
    /// Of an index: the platforms whose manifest is here.
    pub platforms: Vec<String>,
    pub used_seconds_ago: u64,
    /// Seconds since the tag was last checked upstream.
    pub checked_seconds_ago: Option<u64>,
}

/// The part of a blob that is here: all, some or none of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlobState {
    Here,
    Partial,
    Absent,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedBlob {
    pub digest: Digest,
    pub blob_bytes: u64,
    pub here_bytes: u64,
    pub state: BlobState,
    pub used_seconds_ago: Option<u64>,
    /// Seconds since its bytes were last verified, after the download.
    pub verified_seconds_ago: Option<u64>,
    /// Repositories with a known manifest that lists it; or else those in which it was asked for.
    pub repositories: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedManifest {
    pub digest: Digest,
    pub media_type: String,
    pub manifest_bytes: u64,
    /// The platform that the index states.
    pub platform: Option<String>,
    /// False for a manifest that an index lists but that was not fetched.
    pub is_here: bool,
}

/// The answer to `GET /cache/item`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheItem {
    Image {
        image: CachedImage,
        /// The manifest that the name stands for, and those below it.
        manifests: Vec<CachedManifest>,
        blobs: Vec<CachedBlob>,
    },
    Blob(CachedBlob),
}

/// The answer to `DELETE /cache/item`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Names that were removed.
    pub names: Vec<String>,
    pub manifests: u64,
    pub blobs: u64,
    pub freed_bytes: u64,
    /// Blobs that stay since other images need them.
    pub shared_blobs: u64,
}

/// The body of `POST /cache/verify`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// Images and digests; none: everything.
    #[serde(default)]
    pub names: Vec<String>,
    /// The most bytes to read in a second.
    pub bytes_per_second: Option<u64>,
}

/// A line of the answer to `POST /cache/verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum VerifyEvent {
    Begin {
        blobs: u64,
        bytes: u64,
    },
    Progress {
        blobs: u64,
        bytes: u64,
    },
    /// The blob was dropped, and is fetched again when it is asked for.
    Damaged {
        digest: Digest,
        names: Vec<String>,
    },
    Failed {
        digest: Digest,
        error: String,
    },
    /// Always the last.
    End {
        good: u64,
        damaged: u64,
        failed: u64,
        /// Blobs that left the cache in the meantime.
        gone: u64,
        bytes: u64,
    },
}

/// The body of `POST /cache/warm`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmRequest {
    pub images: Vec<String>,
    /// `os/arch` or `os/arch/variant`; none: this machine's.
    #[serde(default)]
    pub platforms: Vec<String>,
    #[serde(default)]
    pub all_platforms: bool,
    /// Lets the peers of the mirror's pool have the images too.
    #[serde(default)]
    pub peers: bool,
}

/// A line of the answer to `POST /cache/warm`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum WarmEvent {
    /// The manifests are here, and tell what else is needed.
    Resolved {
        image: String,
        digest: Digest,
        blobs: u64,
        bytes: u64,
    },
    Progress {
        image: String,
        digest: Digest,
        blob_bytes: u64,
        here_bytes: u64,
    },
    /// `fetched`: it was not here before.
    Blob {
        image: String,
        digest: Digest,
        blob_bytes: u64,
        fetched: bool,
    },
    BlobFailed {
        image: String,
        digest: Digest,
        error: String,
    },
    /// The image is whole without it here: a client gets it elsewhere, or no daemon can fetch it.
    BlobLeftOut {
        image: String,
        /// As the manifest states it.
        digest: String,
        why: String,
    },
    /// The scheduler was told to let the peers of the pool have it. Whether they fetch it is not reported here.
    PeersTold {
        image: String,
    },
    Done {
        image: String,
        fetched_bytes: u64,
    },
    Failed {
        image: String,
        error: String,
    },
    /// Always the last.
    End {
        images: u64,
        failed: u64,
    },
}

/// Why the cache did not do it; its text is for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// 400.
    #[error("{0}")]
    Malformed(String),
    /// 404.
    #[error("{0}")]
    Unknown(String),
    /// 409: it is in use, or another verification or prefetch is under way.
    #[error("{0}")]
    Conflict(String),
    /// 500.
    #[error("the content store failed: {0}")]
    Store(String),
}

impl From<piecemeal_store::StoreError> for CacheError {
    fn from(error: piecemeal_store::StoreError) -> Self {
        Self::Store(error.to_string())
    }
}
