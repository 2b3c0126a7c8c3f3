//! What admitted nodes ask a mirror: to open a blob for their swarm.
//!
//! One round trip brings the verdict, the size, the piece size, the fill and the grant, and starts the fill; a small blob
//! comes along whole. Both sides of it are here, so that they cannot drift apart.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, Method, Response, StatusCode, Uri},
    response::IntoResponse,
    routing::get,
};
use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use bytes::Bytes;
use piecemeal_proto::{AuthorityKey, Digest, FillId, Grant, NodeId, ParseReferenceError, PieceMap, RepositoryName};
use piecemeal_store::{Repository, Store};
use piecemeal_swarm::Slot;
use serde::{Deserialize, Serialize};

use crate::{
    ANSWER_TIMEOUT, Blobs, Caller, Nodes, OpenBlob, PullError, UpstreamNames, error_response,
    nodes::{self, Admitted},
};

/// Blobs up to this size come along in the answer, without a swarm.
pub const INLINE_BYTES_MAX: u64 = 64 * 1024;
/// The life of a grant: longer than any pull, shorter than a day.
const GRANT_LIFE: Duration = Duration::from_secs(6 * 3600);

/// What a node is told of a blob that it may have.
#[derive(Debug, Serialize, Deserialize)]
pub struct NodeBlob {
    pub blob_bytes: u64,
    pub piece_bytes: u64,
    /// 16 hexadecimal digits; empty when there are no pieces to be had, since the blob passes through.
    pub fill: String,
    /// Opaque to the node.
    pub grant: String,
    /// There was no room to keep the blob: it passes through the mirror, and has to be read from its registry port while it does.
    #[serde(default)]
    pub passing: bool,
    /// Where the mirror serves pieces.
    pub piece_addresses: Vec<SocketAddr>,
    /// The authority's clock, which grants are judged by.
    pub unix_seconds: u64,
    /// The blob itself, base64, up to [`INLINE_BYTES_MAX`].
    pub content: Option<String>,
}

impl NodeBlob {
    /// How the blob is cut; `None` when the mirror states nonsense.
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
/// `suspect`: a piece that came wrong, so that the mirror looks whether its own is.
pub fn open_path(at: &Repository, digest: &Digest, suspect: Option<u32>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("ns", &at.upstream).append_pair("name", &at.name);
    if let Some(piece) = suspect {
        query.append_pair("suspect", &piece.to_string());
    }
    format!("/piecemeal/v1/blobs/{digest}?{}", query.finish())
}

/// The mirror's side.
pub struct NodePort {
    pub store: Store,
    pub blobs: Arc<dyn Blobs>,
    pub names: UpstreamNames,
    pub authority: Arc<AuthorityKey>,
    /// Who may ask.
    pub nodes: Arc<Nodes>,
    pub piece_addresses: Vec<SocketAddr>,
    /// Seconds since 1970.
    pub now: fn() -> u64,
}

#[derive(Deserialize)]
struct OpenQuery {
    ns: String,
    name: String,
    suspect: Option<u32>,
}

/// The route that nodes ask.
pub fn node_router(port: Arc<NodePort>) -> Router {
    Router::new()
        .route("/piecemeal/v1/blobs/{digest}", get(open))
        .with_state(port)
}

async fn open(
    State(port): State<Arc<NodePort>>,
    slot: Option<Extension<Slot>>,
    Path(digest): Path<String>,
    Query(query): Query<OpenQuery>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    let opened = match port.nodes.admit(&headers, &method, &uri) {
        Ok(Some(admitted)) => {
            if let Some(Extension(slot)) = slot {
                slot.belongs_to(admitted.holder);
            }
            port.open(&digest, query, admitted, &headers).await
        }
        Ok(None) => Err(OpenError::NotANode),
        Err(refusal) => return nodes::respond(refusal),
    };
    match opened {
        Ok(blob) => Json(blob).into_response(),
        Err(OpenError::NotANode) => (
            StatusCode::UNAUTHORIZED,
            "this is for nodes that hold the site's join.key (`piecemeal keygen`) and sign with their own\n",
        )
            .into_response(),
        Err(OpenError::Pull(error)) => error_response(&error, "BLOB_UNKNOWN"),
    }
}

enum OpenError {
    NotANode,
    Pull(PullError),
}

impl<E: Into<PullError>> From<E> for OpenError {
    fn from(error: E) -> Self {
        Self::Pull(error.into())
    }
}

impl NodePort {
    async fn open(
        &self,
        digest: &str,
        query: OpenQuery,
        node: Admitted,
        headers: &HeaderMap,
    ) -> Result<NodeBlob, OpenError> {
        let caller = Caller::of_request(headers, Some(node.holder), None);
        let digest: Digest = digest
            .parse()
            .map_err(|error| PullError::Malformed(ParseReferenceError::Digest(error)))?;
        let at = Repository {
            upstream: query.ns,
            name: query.name,
        };
        at.name.parse::<RepositoryName>().map_err(PullError::from)?;
        self.names.require(&at.upstream)?;
        let mut open = self.blobs.open(&caller, &at, &digest).await?;
        if let Some(piece) = query.suspect
            && self.store.recheck(&digest, piece).await.map_err(PullError::from)?
        {
            open = self.blobs.open(&caller, &at, &digest).await?;
        }
        Ok(self.describe(node.id, digest, open).await?)
    }

    async fn describe(&self, node: NodeId, digest: Digest, mut open: OpenBlob) -> Result<NodeBlob, PullError> {
        let (map, fill, passing) = match &open {
            OpenBlob::Complete(blob) => (blob.map(), blob.fill(), false),
            OpenBlob::Filling { filling, .. } => (filling.map(), filling.fill(), filling.is_passing()),
            OpenBlob::Starting { .. } => {
                return Err(PullError::Unavailable("upstream has not answered yet".to_owned()));
            }
        };
        let content = inline(&mut open).await.map(|content| BASE64.encode(content));
        let now = (self.now)();
        let grant = Grant {
            node,
            digest,
            map,
            fill,
            expires: now + GRANT_LIFE.as_secs(),
        };
        Ok(NodeBlob {
            blob_bytes: map.blob_bytes(),
            piece_bytes: map.piece_bytes(),
            // An older peer would ask for pieces that nobody will have: this it cannot use, and says so at once.
            fill: if passing && content.is_none() {
                String::new()
            } else {
                fill.to_string()
            },
            passing,
            grant: grant.sign(&self.authority),
            piece_addresses: self.piece_addresses.clone(),
            unix_seconds: now,
            content,
        })
    }
}

/// The whole of a small blob, if it is proven soon; otherwise the node takes it as pieces.
async fn inline(open: &mut OpenBlob) -> Option<Vec<u8>> {
    let blob_bytes = open.blob_bytes();
    if blob_bytes > INLINE_BYTES_MAX {
        return None;
    }
    let read_all = async {
        let mut content = Vec::new();
        while (content.len() as u64) < blob_bytes {
            content.extend_from_slice(&open.read(content.len() as u64..blob_bytes).await.ok()?);
        }
        Some(content)
    };
    tokio::time::timeout(ANSWER_TIMEOUT, read_all).await.ok().flatten()
}
