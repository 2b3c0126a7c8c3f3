//! Messages between a node and its mirror that open a blob for the node's swarm.
//!
//! One round trip brings the verdict, the size, the piece size, the fill and the grant, and starts the fill; a small blob
//! comes along whole.

use std::net::SocketAddr;

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use bytes::Bytes;
use piecemeal_proto::{Digest, FillId, PieceMap};
use piecemeal_store::Repository;
use serde::{Deserialize, Serialize};

/// Blobs up to this size come along in the answer, without a swarm.
pub const INLINE_BYTES_MAX: u64 = 64 * 1024;
/// The answer to a node that may pull a blob.
#[derive(Debug, Serialize, Deserialize)]
pub struct NodeBlob {
    pub blob_bytes: u64,
    pub piece_bytes: u64,
    /// 16 hexadecimal digits; empty when no pieces are served, since the blob passes through.
    pub fill: String,
    /// Opaque to the node.
    pub grant: String,
    /// There was no room to keep the blob: it passes through the mirror, and has to be read from its registry port while it does.
    #[serde(default)]
    pub passing: bool,
    /// The mirror's addresses for pieces.
    pub piece_addresses: Vec<SocketAddr>,
    /// The authority's clock, by which grants expire.
    pub unix_seconds: u64,
    /// The blob itself, base64, up to [`INLINE_BYTES_MAX`].
    pub content: Option<String>,
}

impl NodeBlob {
    /// The blob's piece map; `None` when the stated sizes are invalid.
    pub fn map(&self) -> Option<PieceMap> {
        PieceMap::new(self.blob_bytes, self.piece_bytes).ok()
    }

    pub fn fill_id(&self) -> Option<FillId> {
        u64::from_str_radix(&self.fill, 16).ok().map(FillId)
    }

    /// The inlined blob, when it is there and has `digest`.
    pub fn content(&self, digest: &Digest) -> Option<Bytes> {
        let content = BASE64.decode(self.content.as_deref()?).ok()?;
        digest.matches(&content).then(|| content.into())
    }
}

/// The path and query of a node's request.
///
/// `suspect`: a piece that arrived damaged, so that the mirror verifies its own copy.
pub fn open_path(at: &Repository, digest: &Digest, suspect: Option<u32>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("ns", &at.upstream).append_pair("name", &at.name);
    if let Some(piece) = suspect {
        query.append_pair("suspect", &piece.to_string());
    }
    format!("/piecemeal/v1/blobs/{digest}?{}", query.finish())
}
