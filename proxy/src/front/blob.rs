//! Answers with a blob or ranges of it, streamed as it lands, and sent from its file where the connection can. A failure after the first byte ends the body short of its
//! length, so that the client resumes.

use std::{net::IpAddr, time::Instant};

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use bytes::Bytes;
use futures_util::stream;
use piecemeal_http::SendfileQueue;
use piecemeal_proto::Digest;
use piecemeal_store::{CheckedBlob, Extent, ReadBlobError, ReadRange};
use tracing::debug;

use super::{
    budget::Budget,
    error::coded,
    multipart::{OCTETS, Section, Sections, content_range, content_type},
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
        .header(header::CONTENT_TYPE, OCTETS)
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
    let (status, ranges) = match asked(range.and_then(|value| value.to_str().ok()), blob_bytes) {
        RequestedRange::Whole => (StatusCode::OK, vec![(0..blob_bytes).into()]),
        RequestedRange::Part(range) => (StatusCode::PARTIAL_CONTENT, vec![range]),
        RequestedRange::Parts(ranges) => (StatusCode::PARTIAL_CONTENT, ranges),
        // An open-ended range of nothing: containerd's chunked fetch asks so of every object, and gives up on a 416.
        RequestedRange::Unsatisfiable if blob_bytes == 0 => (StatusCode::OK, vec![(0..0).into()]),
        RequestedRange::Unsatisfiable => return unsatisfiable(blob_bytes),
    };
    if let OpenBlob::Filling { filling, .. } = &open
        && ranges.iter().any(|range| filling.has_passed(range.bytes.start))
    {
        let message = "the blob does not fit into the cache, and its beginning has already passed; pull from the registry itself, or try again later";
        return coded(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message);
    }
    let source = delivery.source(open);
    let sections = Sections::of(ranges, digest, blob_bytes);
    let mut response = headers(status, digest, sections.bytes());
    response = match sections.only() {
        Some(range) if status == StatusCode::PARTIAL_CONTENT => response
            .header(header::CONTENT_TYPE, OCTETS)
            .header(header::CONTENT_RANGE, content_range(range, blob_bytes)),
        Some(_) => response.header(header::CONTENT_TYPE, OCTETS),
        None => response.header(header::CONTENT_TYPE, content_type(digest)),
    };
    response
        .body(body(source, *digest, sections, delivery))
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
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::ETAG, format!("\"{digest}\""))
        .header("docker-content-digest", digest.to_string())
}

fn body(source: Source, digest: Digest, sections: Sections, delivery: Delivery) -> Body {
    let sent = Sent::new(&delivery, digest);
    let frames = stream::try_unfold(
        (source, sections, delivery, sent),
        move |(mut source, mut sections, delivery, mut sent)| async move {
            let frame = match sections.next() {
                None => return Ok::<Option<(Bytes, _)>, ReadBlobError>(None),
                Some(Section::Text(text)) => text,
                Some(Section::Blob(mut range)) => {
                    let frame = delivery.next(&mut source, &range).await.inspect_err(|error| {
                        debug!(blob.digest = %digest, %error, "a client's stream of {digest} ends early");
                        if source.is_complete() {
                            delivery.suspicions.suspect(&digest, Instant::now());
                        }
                    })?;
                    delivery.pull.sent(frame.len());
                    sent.bytes += frame.len() as u64;
                    range.bytes.start += frame.len() as u64;
                    sections.put_back(range);
                    frame
                }
            };
            Ok(Some((frame, (source, sections, delivery, sent))))
        },
    );
    Body::from_stream(frames)
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

    async fn extent(&mut self, range: ReadRange) -> Result<Option<Extent>, ReadBlobError> {
        match self {
            Self::Open(open) => open.extent(range).await,
            Self::Suspect(blob) => blob.extent(range.bytes),
        }
    }

    async fn ready(&mut self, range: ReadRange) -> Result<(), ReadBlobError> {
        match self {
            Self::Open(open) => open.ready(range).await,
            Self::Suspect(_) => Ok(()),
        }
    }

    async fn read(&mut self, range: ReadRange) -> Result<Bytes, ReadBlobError> {
        match self {
            Self::Open(open) => open.read(range).await,
            Self::Suspect(blob) => blob.read(range.bytes).await,
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
    async fn next(&self, source: &mut Source, range: &ReadRange) -> Result<Bytes, ReadBlobError> {
        let ReadRange { bytes, is_early } = range.clone();
        if let Some(sendfile) = &self.sendfile
            && sendfile.takes(bytes.end - bytes.start)
            && let Some(extent) = source.extent(range.clone()).await?
        {
            extent.make_resident().await?;
            return Ok(stand_in(sendfile, extent));
        }
        // Room is taken for bytes that are there: a stream that waits for bytes holds none.
        source.ready(range.clone()).await?;
        let room = self.budget.take();
        let bytes = bytes.start..bytes.end.min(bytes.start + room.bytes());
        let bytes = source.read(ReadRange { bytes, is_early }).await?;
        Ok(room.hold(bytes))
    }
}

/// The stand-in that the body yields for a part of a file, which leaves from where it lies.
fn stand_in(sendfile: &SendfileQueue, mut extent: Extent) -> Bytes {
    sendfile.stand_in(extent.len(), move |socket, bytes_max| extent.send_to(socket, bytes_max))
}
