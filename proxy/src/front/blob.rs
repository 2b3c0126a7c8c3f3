//! Answers with a blob or a range of it, streamed as it lands, and sent from its file where the connection can. A failure after the first byte ends the body short of its
//! length, so that the client resumes.

use std::{net::IpAddr, ops::Range, time::Instant};

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use bytes::Bytes;
use futures_util::stream;
use piecemeal_http::SendfileQueue;
use piecemeal_proto::Digest;
use piecemeal_store::{CheckedBlob, Extent, ReadBlobError};
use tracing::debug;

use super::{
    budget::Budget,
    error::coded,
    range::{RequestedRange, asked},
    response::base,
};
use crate::{OpenBlob, Suspicions, pulls::BlobPull};

/// Source that a body is read from.
enum Source {
    /// A blob that is read as it is; a live fill is hashed as it comes.
    Open(OpenBlob),
    /// A complete blob that the client has received before.
    Suspect(CheckedBlob),
}

/// Delivery of a body's bytes to one client.
pub(super) struct Delivery {
    /// The connection's, unless it has TLS.
    pub(super) sendfile: Option<SendfileQueue>,
    /// The budget of bytes that are read into memory.
    pub(super) budget: Budget,
    pub(super) client: Option<IpAddr>,
    pub(super) suspicions: Suspicions,
    /// Records what goes out.
    pub(super) pull: BlobPull,
}

pub(super) fn respond_head(digest: &Digest, blob_bytes: u64) -> Response<Body> {
    headers(StatusCode::OK, digest, blob_bytes)
        .body(Body::empty())
        .expect("numbers and digests are header values")
}

pub(super) fn respond(
    open: OpenBlob,
    digest: &Digest,
    range: Option<&HeaderValue>,
    delivery: Delivery,
) -> Response<Body> {
    let blob_bytes = open.blob_bytes();
    let (status, range) = match asked(range.and_then(|value| value.to_str().ok()), blob_bytes) {
        RequestedRange::Whole => (StatusCode::OK, 0..blob_bytes),
        RequestedRange::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        // An open-ended range of nothing: containerd's chunked fetch asks so of every object, and gives up on a 416.
        RequestedRange::Unsatisfiable if blob_bytes == 0 => (StatusCode::OK, 0..0),
        RequestedRange::Unsatisfiable => return unsatisfiable(blob_bytes),
    };
    if let OpenBlob::Filling { filling, .. } = &open
        && filling.has_passed(range.start)
    {
        let message = "the blob does not fit into the cache, and its beginning has already passed; pull from the registry itself, or try again later";
        return coded(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message);
    }
    let source = delivery.source(open);
    let mut response = headers(status, digest, range.end - range.start);
    if status == StatusCode::PARTIAL_CONTENT {
        response = response.header(
            header::CONTENT_RANGE,
            format!("bytes {}-{}/{blob_bytes}", range.start, range.end - 1),
        );
    }
    response
        .body(body(source, *digest, range, delivery))
        .expect("numbers and digests are header values")
}

fn unsatisfiable(blob_bytes: u64) -> Response<Body> {
    let message = format!(
        "the blob has {blob_bytes} bytes; a range is bytes=first-last, bytes=first- or bytes=-length within it"
    );
    let mut response = coded(StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID", &message);
    if let Ok(value) = HeaderValue::from_str(&format!("bytes */{blob_bytes}")) {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    response
}

fn headers(status: StatusCode, digest: &Digest, length: u64) -> axum::http::response::Builder {
    base()
        .status(status)
        .header(header::CONTENT_LENGTH, length)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::ETAG, format!("\"{digest}\""))
        .header("docker-content-digest", digest.to_string())
}

fn body(source: Source, digest: Digest, range: Range<u64>, delivery: Delivery) -> Body {
    let sent = Sent::new(&delivery, digest);
    let parts = stream::try_unfold(
        (source, range, delivery, sent),
        move |(mut source, range, delivery, mut sent)| async move {
            if range.is_empty() {
                return Ok::<Option<(Bytes, _)>, ReadBlobError>(None);
            }
            let frame = delivery.next(&mut source, &range).await.inspect_err(|error| {
                debug!(blob.digest = %digest, %error, "a client's stream of {digest} ends early");
                if source.is_complete() {
                    delivery.suspicions.suspect(&digest, Instant::now());
                }
            })?;
            delivery.pull.sent(frame.len());
            sent.bytes += frame.len() as u64;
            let rest = range.start + frame.len() as u64..range.end;
            Ok(Some((frame, (source, rest, delivery, sent))))
        },
    );
    Body::from_stream(parts)
}

/// Bytes of a blob that a client gets, noted at the end of the body, wherever that is.
struct Sent {
    suspicions: Suspicions,
    client: Option<IpAddr>,
    digest: Digest,
    bytes: u64,
}

impl Sent {
    fn new(delivery: &Delivery, digest: Digest) -> Self {
        Self {
            suspicions: delivery.suspicions.clone(),
            client: delivery.client,
            digest,
            bytes: 0,
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Some(client) = self.client
            && self.bytes > 0
        {
            self.suspicions.has(client, &self.digest, self.bytes, Instant::now());
        }
    }
}

impl Source {
    fn is_complete(&self) -> bool {
        matches!(self, Self::Suspect(_) | Self::Open(OpenBlob::Complete(_)))
    }

    async fn extent(&mut self, range: Range<u64>) -> Result<Option<Extent>, ReadBlobError> {
        match self {
            Self::Open(open) => open.extent(range).await,
            Self::Suspect(blob) => blob.extent(range),
        }
    }

    async fn ready(&mut self, offset: u64) -> Result<(), ReadBlobError> {
        match self {
            Self::Open(open) => open.ready(offset).await,
            Self::Suspect(_) => Ok(()),
        }
    }

    async fn read(&mut self, range: Range<u64>) -> Result<Bytes, ReadBlobError> {
        match self {
            Self::Open(open) => open.read(range).await,
            Self::Suspect(blob) => blob.read(range).await,
        }
    }
}

impl Delivery {
    /// A client that asks again for what it has had gets it through the hashes of its pieces.
    fn source(&self, open: OpenBlob) -> Source {
        match (open, self.client) {
            (OpenBlob::Complete(blob), Some(client))
                if self
                    .suspicions
                    .asks(client, blob.digest(), blob.map().blob_bytes(), Instant::now()) =>
            {
                Source::Suspect(blob.checked())
            }
            (open, _) => Source::Open(open),
        }
    }

    /// The bytes to send next, from the start of `range`.
    async fn next(&self, source: &mut Source, range: &Range<u64>) -> Result<Bytes, ReadBlobError> {
        if let Some(sendfile) = &self.sendfile
            && sendfile.takes(range.end - range.start)
            && let Some(extent) = source.extent(range.clone()).await?
        {
            extent.make_resident().await?;
            return Ok(stand_in(sendfile, extent));
        }
        // Room is taken for bytes that are there: a stream that waits for bytes holds none.
        source.ready(range.start).await?;
        let room = self.budget.take();
        let end = range.end.min(range.start + room.bytes());
        let bytes = source.read(range.start..end).await?;
        Ok(room.hold(bytes))
    }
}

/// The stand-in that the body yields for a part of a file, which leaves from where it lies.
fn stand_in(sendfile: &SendfileQueue, mut extent: Extent) -> Bytes {
    sendfile.stand_in(extent.len(), move |socket, bytes_max| extent.send_to(socket, bytes_max))
}
