//! The node API of a mirror: an admitted node opens a blob for the swarm.
//!
//! One round trip brings the verdict, the size, the piece size, the fill and the grant, and starts the fill; a small blob
//! comes along whole. The words of it are in `piecemeal_proxy`, which the peer knows too.

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
use piecemeal_http::Slot;
use piecemeal_proto::{AuthorityKey, Digest, Grant, NodeId, ParseReferenceError};
use piecemeal_proxy::{
    AdmittedNode, Content, INLINE_BYTES_MAX, NodeBlob, Nodes, OpenBlob, UpstreamNames, error_response, node_refusal,
};
use piecemeal_store::Store;
use piecemeal_upstream::{ANSWER_TIMEOUT, Caller, PullError};
use serde::Deserialize;

/// The life of a grant: longer than any pull, shorter than a day.
const GRANT_LIFE: Duration = Duration::from_secs(6 * 3600);

/// The mirror's side.
pub(crate) struct NodePort {
    pub store: Store,
    pub content: Content,
    pub names: UpstreamNames,
    pub authority: Arc<AuthorityKey>,
    /// The nodes that may ask.
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
pub(crate) fn node_router(port: Arc<NodePort>) -> Router {
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
        Err(refusal) => return node_refusal(refusal),
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
        node: AdmittedNode,
        headers: &HeaderMap,
    ) -> Result<NodeBlob, OpenError> {
        let caller = Caller::of_request(headers, Some(node.holder), None);
        let digest: Digest = digest
            .parse()
            .map_err(|error| PullError::Malformed(ParseReferenceError::Digest(error)))?;
        let at = self.names.repository(&query.ns, &query.name)?;
        let mut open = self.content.open(&caller, &at, &digest).await?;
        if let Some(piece) = query.suspect
            && self.store.recheck(&digest, piece).await.map_err(PullError::from)?
        {
            open = self.content.open(&caller, &at, &digest).await?;
        }
        Ok(self.describe(node.id, digest, open).await?)
    }

    async fn describe(&self, node: NodeId, digest: Digest, mut open: OpenBlob) -> Result<NodeBlob, PullError> {
        let (map, fill, passing) = match &open {
            OpenBlob::Complete(blob) => (blob.map(), blob.fill(), false),
            OpenBlob::Filling { filling, .. } => (filling.map(), filling.fill(), filling.is_unstored()),
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
            // An older peer would ask for pieces of an unstored fill that are gone by then. It rejects an empty fill id at once.
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
