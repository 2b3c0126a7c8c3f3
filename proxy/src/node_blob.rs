//! Messages between a node and its mirror that open a blob for the node's swarm.
//!
//! One round trip brings the verdict, the size, the piece size, the fill and the grant, and starts the fill; a small blob
//! comes along whole.

use std::net::SocketAddr;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use bytes::Bytes;
use piecemeal_proto::{Digest, FillId, PieceMap};
use piecemeal_store::Repository;
use piecemeal_upstream::PullError;
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

/// Header of a mirror's answer to a node that says why the blob is not open. The mirror writes the whole answer itself: no upstream can
/// set it. A mirror of the last release does not.
const UNOPENED: HeaderName = HeaderName::from_static("piecemeal-unopened");

/// Why a mirror has not opened a blob for a node, as far as the node does something else for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnopenedReason {
    /// Upstream has not answered, and the request is still under way.
    Pending,
    /// Upstream does not answer the mirror at all.
    UpstreamLost,
}

impl UnopenedReason {
    /// `None` for an error that says all by itself.
    pub fn of(error: &PullError) -> Option<Self> {
        match error {
            PullError::Pending(_) => Some(Self::Pending),
            PullError::Unreachable(_) => Some(Self::UpstreamLost),
            _ => None,
        }
    }

    /// The reason that an answer states.
    pub fn stated(headers: &HeaderMap) -> Option<Self> {
        let stated = headers.get(UNOPENED)?;
        let known = [Self::Pending, Self::UpstreamLost];
        known
            .into_iter()
            .find(|reason| reason.word().as_bytes() == stated.as_bytes())
    }

    /// States it in an answer.
    pub fn state(self, headers: &mut HeaderMap) {
        headers.insert(UNOPENED, HeaderValue::from_static(self.word()));
    }

    fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::UpstreamLost => "upstream-lost",
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_a_mirror_states_is_read_by_a_node_and_any_other_is_none() {
        for (error, reason) in [
            (PullError::Pending(String::new()), Some(UnopenedReason::Pending)),
            (
                PullError::Unreachable(String::new()),
                Some(UnopenedReason::UpstreamLost),
            ),
            (PullError::Unavailable(String::new()), None),
            (PullError::Unknown(String::new()), None),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(reason) = UnopenedReason::of(&error) {
                reason.state(&mut headers);
            }
            assert_eq!(UnopenedReason::stated(&headers), reason, "{error:?}");
        }
        let mut later = HeaderMap::new();
        later.insert(UNOPENED, HeaderValue::from_static("a-later-word"));
        assert_eq!(UnopenedReason::stated(&later), None);
    }
}
