//! Piece client: fetches pieces from one source at a time.
//!
//! Invariant: the limiter is paid before bytes are read, so that TCP holds back the sender while the rate is spent. Pieces are
//! not verified here: the store does that before it keeps one.

use std::net::SocketAddr;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{Stream, TryStreamExt as _, stream};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use piecemeal_proto::{Digest, FillId, PieceHash, PieceMap};
use tokio::time::{Duration, timeout};

use super::{
    headers::{HASHES, PIECE_BYTES, SCHEME, read_hashes},
    pool::{Connection, Pool, connect},
};
use crate::Limiter;

/// Longest silence of a source before it counts as stalled.
pub const STALL: Duration = Duration::from_secs(1);
/// Longest silence for a patient request: the source itself waits 25 s for a piece from the WAN.
pub const PATIENT_STALL: Duration = Duration::from_secs(30);

/// Pieces to fetch, and their source.
#[derive(Clone, Debug)]
pub struct PieceRequest {
    /// Addresses of the source, the best first.
    pub addresses: Vec<SocketAddr>,
    pub digest: Digest,
    pub fill: FillId,
    pub map: PieceMap,
    /// Pieces `first`, `first + 1`, …, `count` of them, all of which the map has.
    pub first: u32,
    pub count: u32,
    /// The ticket or grant.
    pub token: String,
    /// Whether the source may be silent for [`PATIENT_STALL`] instead of [`STALL`]: it waits for the WAN.
    pub patient: bool,
}

/// A piece as it was received, not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedPiece {
    pub index: u32,
    pub bytes: Bytes,
    /// The hash that the source states, as trustworthy as the source.
    pub hash: Option<PieceHash>,
}

/// Why a source sent no pieces, or no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchPiecesError {
    /// No address could be connected to within a second.
    #[error("the source cannot be connected to")]
    Unreachable,
    /// The source is connected and sends nothing.
    #[error("the source sends nothing")]
    Stalled,
    /// The source does not have a piece, or not of this fill.
    #[error("the source does not have the pieces")]
    Missing,
    /// The source does not accept the token. Ask for a new one.
    #[error("the source does not accept the ticket")]
    Refused,
    /// The source has no place free: ask again in a moment, or ask another source.
    #[error("the source is busy")]
    Busy,
    /// The source broke the answer off, or does not speak the protocol.
    #[error("the source broke off: {0}")]
    Broken(String),
}

/// Fetches pieces. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct PieceClient {
    limiter: Limiter,
    pool: Pool,
}

impl PieceClient {
    /// A client whose transfers from other hosts go through `limiter`.
    pub fn new(limiter: Limiter) -> Self {
        Self {
            limiter,
            pool: Pool::new(IDLE_MAX, IDLE_TIMEOUT),
        }
    }

    /// Yields the pieces in order. It ends after the first error; dropped before its end, it closes its connection.
    pub fn fetch(
        &self,
        request: PieceRequest,
    ) -> impl Stream<Item = Result<FetchedPiece, FetchPiecesError>> + Send + use<> {
        let client = self.clone();
        stream::once(async move { client.open(request).await })
            .map_ok(|answer| {
                stream::try_unfold(answer, |mut answer| async move {
                    Ok(answer.next_piece().await?.map(|piece| (piece, answer)))
                })
            })
            .try_flatten()
    }

    async fn open(&self, request: PieceRequest) -> Result<PiecesResponse, FetchPiecesError> {
        if request.count == 0 {
            return Err(FetchPiecesError::Missing);
        }
        let stall = if request.patient { PATIENT_STALL } else { STALL };
        let rate_of = |address: SocketAddr| self.limiter.for_address(address.ip()).rate();
        // The source may have closed a kept connection in the meantime: that does not count as a failure.
        while let Some(connection) = self.pool.take(&request.addresses, rate_of) {
            if let Some(response) = ask(connection, &request, stall).await? {
                return self.read(request, response, stall);
            }
        }
        let connection = connect(&request.addresses, rate_of)
            .await
            .ok_or(FetchPiecesError::Unreachable)?;
        match ask(connection, &request, stall).await? {
            Some(response) => self.read(request, response, stall),
            None => Err(FetchPiecesError::Broken("it closed the connection".into())),
        }
    }

    fn read(
        &self,
        request: PieceRequest,
        (connection, response): (Connection, Response<Incoming>),
        stall: Duration,
    ) -> Result<PiecesResponse, FetchPiecesError> {
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(FetchPiecesError::Missing),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(FetchPiecesError::Refused),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => return Err(FetchPiecesError::Busy),
            status => return Err(FetchPiecesError::Broken(format!("it answered {status}"))),
        }
        let headers = response.headers();
        let (map, end) = (request.map, request.first.saturating_add(request.count));
        if number(headers, PIECE_BYTES).is_some_and(|bytes| bytes != map.piece_bytes()) {
            // The source's blob came by another fill, with other pieces.
            return Err(FetchPiecesError::Missing);
        }
        let left = map.range(end.saturating_sub(1)).end - map.range(request.first).start;
        if number(headers, header::CONTENT_LENGTH) != Some(left) {
            return Err(FetchPiecesError::Broken(
                "the answer has another length than the pieces".into(),
            ));
        }
        let hashes = headers.get(HASHES).and_then(|text| text.to_str().ok());
        Ok(PiecesResponse {
            hashes: hashes
                .and_then(|text| read_hashes(text, request.count))
                .unwrap_or_default(),
            limiter: self.limiter.for_address(connection.address.ip()),
            pool: self.pool.clone(),
            connection: Some(connection),
            body: response.into_body(),
            received: Bytes::new(),
            paid: 0,
            left,
            stall,
            map,
            first: request.first,
            next: request.first,
            end,
        })
    }
}

fn number(headers: &HeaderMap, name: header::HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// `None`: the connection was closed before the answer began.
async fn ask(
    mut connection: Connection,
    request: &PieceRequest,
    stall: Duration,
) -> Result<Option<(Connection, Response<Incoming>)>, FetchPiecesError> {
    let last = request.first.saturating_add(request.count - 1);
    let path = format!("/piece/v1/{}/{}/{}-{last}", request.digest, request.fill, request.first);
    let message = Request::get(path)
        .header(header::HOST, connection.address.to_string())
        .header(header::AUTHORIZATION, format!("{SCHEME} {}", request.token))
        .body(Empty::<Bytes>::new())
        // A token that is no header value is no token either.
        .map_err(|_| FetchPiecesError::Refused)?;
    let answered = timeout(stall, async {
        connection.sender.ready().await?;
        connection.sender.send_request(message).await
    });
    match answered.await {
        Ok(Ok(response)) => Ok(Some((connection, response))),
        Ok(Err(error)) if error.is_parse() => Err(FetchPiecesError::Broken(error.to_string())),
        Ok(Err(_)) => Ok(None),
        Err(_) => Err(FetchPiecesError::Stalled),
    }
}

/// An answer while its body is read.
struct PiecesResponse {
    connection: Option<Connection>,
    pool: Pool,
    body: Incoming,
    limiter: Limiter,
    /// Bytes that were received and are not part of a piece yet.
    received: Bytes,
    /// Bytes that the limiter was paid for and that were not received yet.
    paid: usize,
    /// Bytes of the answer that were not received yet.
    left: u64,
    stall: Duration,
    map: PieceMap,
    hashes: Vec<PieceHash>,
    first: u32,
    next: u32,
    end: u32,
}

impl PiecesResponse {
    async fn next_piece(&mut self) -> Result<Option<FetchedPiece>, FetchPiecesError> {
        if self.next == self.end {
            return Ok(None);
        }
        let index = self.next;
        let bytes = self
            .read_bytes(usize::try_from(self.map.len(index)).unwrap_or(usize::MAX))
            .await?;
        self.next += 1;
        if self.next == self.end {
            self.finish().await?;
        }
        let place = usize::try_from(index - self.first).unwrap_or(usize::MAX);
        Ok(Some(FetchedPiece {
            index,
            bytes,
            hash: self.hashes.get(place).copied(),
        }))
    }

    async fn read_bytes(&mut self, len: usize) -> Result<Bytes, FetchPiecesError> {
        if self.received.is_empty() {
            self.receive().await?;
        }
        if self.received.len() >= len {
            return Ok(self.received.split_to(len));
        }
        let mut bytes = BytesMut::with_capacity(len);
        loop {
            let part = self.received.len().min(len - bytes.len());
            bytes.extend_from_slice(&self.received[..part]);
            self.received.advance(part);
            if bytes.len() == len {
                return Ok(bytes.freeze());
            }
            self.receive().await?;
        }
    }

    /// Receives some bytes that the limiter was paid for.
    async fn receive(&mut self) -> Result<(), FetchPiecesError> {
        if self.paid == 0 {
            let left = usize::try_from(self.left).unwrap_or(usize::MAX);
            let slice = self.limiter.slice_bytes().min(left);
            self.limiter.take(slice).await;
            self.paid = slice;
        }
        let bytes = self.next_frame().await?.ok_or_else(|| broken("it ended early"))?;
        // Bytes beyond the paid ones are paid for before anything else is read.
        self.limiter.take(bytes.len().saturating_sub(self.paid)).await;
        self.paid = self.paid.saturating_sub(bytes.len());
        let len = u64::try_from(bytes.len()).expect("a frame is small");
        self.left = self.left.checked_sub(len).ok_or_else(|| broken("it sent too much"))?;
        self.received = bytes;
        Ok(())
    }

    /// `None` at the end.
    async fn next_frame(&mut self) -> Result<Option<Bytes>, FetchPiecesError> {
        let frame = timeout(self.stall, self.body.frame()).await;
        match frame.map_err(|_| FetchPiecesError::Stalled)? {
            Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
            Some(Err(error)) => Err(broken(&error.to_string())),
            None => Ok(None),
        }
    }

    /// Reads the end of the answer, after which the connection can be used again.
    async fn finish(&mut self) -> Result<(), FetchPiecesError> {
        if self.next_frame().await?.is_some() {
            return Err(broken("it sent too much"));
        }
        if let Some(connection) = self.connection.take() {
            self.pool.put(connection);
        }
        Ok(())
    }
}

fn broken(why: &str) -> FetchPiecesError {
    FetchPiecesError::Broken(why.to_owned())
}

/// Idle connections to one address: at most two leases are in flight from one source; the others are for the mirror in direct
/// mode.
const IDLE_MAX: usize = 8;
/// Longest time that an idle connection is kept: shorter than the piece port keeps it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
