//! Piece port: the server of pieces to other members of the swarm.
//!
//! Invariant: a digest is no permission. Every request carries a token of the authority for its blob: a ticket or, where it is
//! accepted, a grant. Only with a grant does an answer wait for pieces that are not here yet.

use std::{net::SocketAddr, ops::Range, str::FromStr, sync::Arc};

use axum::{
    Extension, Router,
    body::Body,
    extract::{ConnectInfo, Path, State},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use piecemeal_http::{SendfileQueue, Share, Slot};
use piecemeal_proto::{AuthorityPublic, CheckTokenError, Digest, FillId, Grant, NodeId, PIECE_COUNT_MAX, Ticket};
use piecemeal_store::{Store, StoreError};
use tokio::time::Duration;
use tracing::{debug, warn};

use super::{
    body::{PieceBody, ReadPieceError},
    content::Content,
    headers::{FILL, HASHES, HASHES_MAX, PIECE_BYTES, SCHEME, write_hashes},
    part::Part,
    uploads::{Upload, Uploads},
};
use crate::{AuthorityClock, Limiter};

/// A piece port's content, authorization and limits.
#[derive(Clone)]
pub struct PiecePort {
    pub store: Store,
    /// The authority whose tickets are accepted.
    pub authority: AuthorityPublic,
    /// The clock by which tickets and grants expire.
    pub clock: AuthorityClock,
    /// The limiter of all bytes that are sent to other hosts.
    pub limiter: Limiter,
    /// Whether grants are accepted, too; with a grant the answer waits for pieces. True at the mirror.
    pub accept_grants: bool,
    /// Whether a node is revoked, whatever its tickets and grants say. Only the mirror knows.
    pub is_revoked: Arc<dyn Fn(&NodeId) -> bool + Send + Sync>,
    /// Called with the number of bytes that are sent.
    pub served: Arc<dyn Fn(u64) + Send + Sync>,
    /// Most requests that are answered at once.
    pub requests_max: usize,
    /// Share of these requests, and of the port's connections, that one address may have once they are nearly all taken.
    pub address_share: Share,
}

/// The only route of a piece port. A request without [`ConnectInfo`] counts as another host's.
pub fn piece_router(port: PiecePort) -> Router {
    let uploads = Uploads::new(port.requests_max, port.address_share);
    Router::new()
        .route("/piece/v1/{digest}/{fill}/{pieces}", get(serve))
        .with_state(Arc::new(Served { port, uploads }))
}

struct Served {
    port: PiecePort,
    uploads: Uploads,
}

async fn serve(
    State(served): State<Arc<Served>>,
    Path((digest, fill, pieces)): Path<(String, String, String)>,
    remote: Option<Extension<ConnectInfo<SocketAddr>>>,
    sendfile: Option<Extension<SendfileQueue>>,
    slot: Option<Extension<Slot>>,
    headers: HeaderMap,
) -> Result<Response, ServePiecesError> {
    let path = PiecesPath::parse(&digest, &fill, &pieces).ok_or(ServePiecesError::Malformed)?;
    let claims = served.port.check_token(&headers, &path.digest)?;
    if let Some(Extension(slot)) = slot {
        slot.belongs_to(claims.node);
    }
    let address = remote.map(|Extension(ConnectInfo(remote))| remote.ip());
    let upload = served
        .uploads
        .take(claims.node, address)
        .ok_or(ServePiecesError::Busy)?;
    let limiter = match address {
        Some(address) => served.port.limiter.for_address(address),
        None => served.port.limiter.clone(),
    };
    let sendfile = sendfile.map(|Extension(sendfile)| sendfile);
    served
        .port
        .answer(&path, claims.may_wait, limiter, sendfile, upload)
        .await
}

/// The content of a request's token.
struct TokenClaims {
    node: NodeId,
    /// Whether the answer may wait for pieces.
    may_wait: bool,
}

/// A well-formed path of a request.
struct PiecesPath {
    digest: Digest,
    fill: FillId,
    pieces: Range<u32>,
}

impl PiecesPath {
    fn parse(digest: &str, fill: &str, pieces: &str) -> Option<Self> {
        let is_fill = fill.len() == 16 && fill.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let fill = is_fill.then(|| u64::from_str_radix(fill, 16).ok())??;
        let (first, last) = pieces.split_once('-')?;
        let (first, last) = (index(first)?, index(last)?);
        (first <= last).then_some(Self {
            digest: Digest::from_str(digest).ok()?,
            fill: FillId(fill),
            pieces: first..last + 1,
        })
    }
}

/// An index: digits alone, and below the most pieces of a blob.
fn index(text: &str) -> Option<u32> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    is_number
        .then(|| text.parse().ok())?
        .filter(|&index| index < PIECE_COUNT_MAX)
}

impl PiecePort {
    fn check_token(&self, headers: &HeaderMap, digest: &Digest) -> Result<TokenClaims, ServePiecesError> {
        let unauthorized = ServePiecesError::Unauthorized;
        let header = headers
            .get(header::AUTHORIZATION)
            .ok_or(unauthorized("a ticket is needed"))?;
        let (scheme, token) = header
            .to_str()
            .ok()
            .and_then(|text| text.split_once(' '))
            .ok_or(unauthorized("the Authorization header is malformed"))?;
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(unauthorized("the Authorization scheme must be Piecemeal"));
        }
        let now = self.clock.now();
        let ticket = Ticket::check(token, &self.authority, now).map(|ticket| (ticket.digest, ticket.node, false));
        // A grant does not parse as a ticket.
        let checked = match ticket {
            Err(CheckTokenError::Malformed) if self.accept_grants => {
                Grant::check(token, &self.authority, now).map(|grant| (grant.digest, grant.node, true))
            }
            ticket => ticket,
        };
        match checked {
            Ok((_, node, _)) if (self.is_revoked)(&node) => {
                Err(unauthorized("the token is of a node that is shut out"))
            }
            Ok((of, node, may_wait)) if of == *digest => Ok(TokenClaims { node, may_wait }),
            Ok(_) => Err(unauthorized("the token is for another blob")),
            Err(CheckTokenError::Malformed) => Err(unauthorized(
                "the token is malformed or of a kind that is not accepted here",
            )),
            Err(CheckTokenError::Signature) => Err(unauthorized("the token is not signed by this site's authority")),
            Err(CheckTokenError::Expired) => Err(unauthorized("the token has expired")),
        }
    }

    async fn answer(
        &self,
        path: &PiecesPath,
        may_wait: bool,
        limiter: Limiter,
        sendfile: Option<SendfileQueue>,
        upload: Upload,
    ) -> Result<Response, ServePiecesError> {
        let content = Content::find(&self.store, &path.digest, path.fill)
            .await?
            .ok_or(ServePiecesError::Missing("the blob, or this fill of it, is not here"))?;
        let (map, fill) = (content.map(), content.fill());
        if path.pieces.end > map.count() {
            return Err(ServePiecesError::Missing("the blob has no such piece"));
        }
        if content.hashes(path.pieces.clone()).is_none() && !may_wait {
            return Err(ServePiecesError::Missing("a piece is not here"));
        }
        let start = map.range(path.pieces.start).start;
        let end = map.range(path.pieces.end - 1).end;
        let mut body = PieceBody {
            content,
            pieces: path.pieces.clone(),
            patience: may_wait.then_some(PIECE_WAIT_MAX),
            limiter,
            served: Arc::clone(&self.served),
            ready: Part::Bytes(Bytes::new()),
            sendfile,
            position: start,
            upload,
        };
        // A missing piece must be reported before the answer's head goes out.
        body.fill().await?;
        // A piece that the answer waited for has a hash only now.
        let hashes = body.content.hashes(path.pieces.clone());
        let mut response = Response::builder()
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, end - start)
            .header(FILL, fill.to_string())
            .header(PIECE_BYTES, map.piece_bytes());
        if let Some(hashes) = hashes.filter(|_| path.pieces.end - path.pieces.start <= HASHES_MAX) {
            response = response.header(HASHES, write_hashes(&hashes));
        }
        let response = response.body(Body::from_stream(body.into_stream()));
        Ok(response.expect("hexadecimal digits and numbers are header values"))
    }
}

/// Why a request gets no pieces. The texts are fixed: they need no escaping, and repeat nothing of the request.
#[derive(Debug, thiserror::Error)]
enum ServePiecesError {
    #[error("the path must be /piece/v1/<digest>/<fill, 16 hexadecimal digits>/<first>-<last>")]
    Malformed,
    #[error("{0}")]
    Unauthorized(&'static str),
    #[error("too many requests are in flight")]
    Busy,
    #[error("{0}")]
    Missing(&'static str),
    /// The local disk failed: for the receiver the same as missing.
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error("a piece is not here, or cannot be read")]
    Read(#[from] ReadPieceError),
}

impl IntoResponse for ServePiecesError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Missing(_) => StatusCode::NOT_FOUND,
            Self::Store(error) => {
                warn!(
                    error = error as &dyn std::error::Error,
                    "a piece could not be served: {error}"
                );
                StatusCode::NOT_FOUND
            }
            Self::Read(error) => {
                debug!("a piece could not be served: {error}");
                StatusCode::NOT_FOUND
            }
        };
        let body = format!("{{\"error\":\"{self}\"}}");
        let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        let extra = match status {
            StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, SCHEME)),
            StatusCode::SERVICE_UNAVAILABLE => Some((header::RETRY_AFTER, "1")),
            _ => None,
        };
        if let Some((name, value)) = extra {
            response
                .headers_mut()
                .insert(name, http::HeaderValue::from_static(value));
        }
        response
    }
}

/// Longest wait for one piece from the WAN with a grant: shorter than the client waits.
const PIECE_WAIT_MAX: Duration = Duration::from_secs(25);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_paths_are_looked_at() {
        let digest = Digest::of(b"blob").to_string();
        let fill = "00000000000000ff";
        let path = PiecesPath::parse(&digest, fill, "3-4").unwrap();
        assert_eq!((path.fill, path.pieces), (FillId(255), 3..5));
        for (digest, fill, pieces) in [
            ("sha256:..", fill, "0-0"),
            (&digest, "ff", "0-0"),
            (&digest, "+0000000000000ff", "0-0"),
            (&digest, "00000000000000FF", "0-0"),
            (&digest, fill, "0"),
            (&digest, fill, "4-3"),
            (&digest, fill, "-3"),
            (&digest, fill, "+1-3"),
            (&digest, fill, "0-1048576"),
            (&digest, fill, "0-99999999999"),
        ] {
            assert!(
                PiecesPath::parse(digest, fill, pieces).is_none(),
                "{digest} {fill} {pieces}"
            );
        }
    }
}
