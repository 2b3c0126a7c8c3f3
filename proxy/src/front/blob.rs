//! Answers with a blob or ranges of it, streamed as it lands, and sent from its file where the connection can. A failure after the first byte ends the body short of its
//! length, so that the client resumes.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use piecemeal_http::SendfileQueue;
use piecemeal_proto::Digest;
use piecemeal_store::{CheckedBlob, Extent, ReadBlobError, ReadRange};
use tokio::time::timeout;
use tracing::debug;

use super::{
    budget::Budget,
    error::coded,
    multipart::{OCTETS, Section, Sections, content_range, content_type},
    range::{RequestedRange, asked},
    response::base,
};
use crate::{OpenBlob, Suspicions, pulls::BlobPull};

/// The longest that a status line waits for the first bytes of a body.
const FIRST_FRAME_WAIT: Duration = Duration::from_secs(1);

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

/// The answer, whose status line waits a while for the first bytes.
pub(super) async fn respond(
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
    let sections = Sections::of(ranges, digest, blob_bytes);
    let mut response = headers(status, digest, sections.bytes());
    response = match sections.only() {
        Some(range) if status == StatusCode::PARTIAL_CONTENT => response
            .header(header::CONTENT_TYPE, OCTETS)
            .header(header::CONTENT_RANGE, content_range(range, blob_bytes)),
        Some(_) => response.header(header::CONTENT_TYPE, OCTETS),
        None => response.header(header::CONTENT_TYPE, content_type(digest)),
    };
    let mut frames = Frames::new(delivery.source(open), *digest, sections, delivery);
    // A failure before the first byte is an error that sends the client to its next host. Later ones end the body short.
    let first = match timeout(FIRST_FRAME_WAIT, frames.next()).await {
        Ok(Ok(first)) => first,
        Ok(Err(error)) => return unreadable(digest, &error),
        Err(_) => None,
    };
    response
        .body(frames.body(first))
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

/// A blob that cannot be read from its first byte on.
fn unreadable(digest: &Digest, error: &ReadBlobError) -> Response<Body> {
    let reason = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    let message = format!("{digest} cannot be read now: {reason}");
    coded(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", &message)
}

/// The frames of one body.
struct Frames {
    source: Source,
    digest: Digest,
    /// What is still to be sent.
    sections: Sections,
    delivery: Delivery,
    sent: Sent,
}

impl Frames {
    fn new(source: Source, digest: Digest, sections: Sections, delivery: Delivery) -> Self {
        Self {
            source,
            digest,
            sections,
            sent: Sent::new(&delivery, digest),
            delivery,
        }
    }

    /// The next frame; `None` at the end. Cancel safe.
    async fn next(&mut self) -> Result<Option<Bytes>, ReadBlobError> {
        let range = match self.sections.next() {
            None => return Ok(None),
            Some(Section::Text(text)) => return Ok(Some(text)),
            Some(Section::Blob(range)) => range,
        };
        // A caller that stops waiting for the frame loses nothing.
        self.sections.put_back(range.clone());
        let frame = self.delivery.next(&mut self.source, &range).await;
        let frame = frame.inspect_err(|error| {
            let digest = self.digest;
            debug!(blob.digest = %digest, %error, "a client's stream of {digest} ends early");
            if self.source.is_complete() {
                self.delivery.suspicions.suspect(&digest, Instant::now());
            }
        })?;
        self.delivery.pull.sent(frame.len());
        self.sent.bytes += frame.len() as u64;
        self.sections.advance(frame.len() as u64);
        Ok(Some(frame))
    }

    /// The body that begins with a frame that was read before.
    fn body(self, first: Option<Bytes>) -> Body {
        let rest = stream::try_unfold(self, async |mut frames| {
            let frame = frames.next().await?;
            Ok::<_, ReadBlobError>(frame.map(|frame| (frame, frames)))
        });
        Body::from_stream(stream::iter(first.map(Ok)).chain(rest))
    }
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

#[cfg(test)]
mod tests {
    use piecemeal_proto::PieceMap;
    use piecemeal_store::{Env, FillFailure, Filling, Store, StoreConfig};

    use super::*;
    use crate::{Pulls, Traffic};

    const BYTES: &[u8] = b"0123456789";

    fn store(dir: &std::path::Path) -> Store {
        let config = StoreConfig {
            dir: dir.join("store"),
            quota_bytes: None,
            free_bytes_min: 0,
            ttl: Duration::from_secs(3600),
        };
        Store::open(config, Env::system()).unwrap()
    }

    fn delivery() -> Delivery {
        let at = piecemeal_store::Repository {
            upstream: "a.test".to_owned(),
            name: "app".to_owned(),
        };
        Delivery {
            sendfile: None,
            budget: Budget::default(),
            client: None,
            suspicions: Suspicions::new().0,
            pull: Pulls::new(Traffic::default()).blob(None, &at, false),
        }
    }

    fn open(filling: &Filling) -> OpenBlob {
        OpenBlob::filling(filling.clone())
    }

    async fn begin(store: &Store) -> Filling {
        let map = PieceMap::new(BYTES.len() as u64, 4).unwrap();
        store.begin(&Digest::of(BYTES), map, None).await.unwrap()
    }

    async fn write(filling: &Filling, piece: u32) {
        let start = piece as usize * 4;
        let bytes = Bytes::copy_from_slice(&BYTES[start..BYTES.len().min(start + 4)]);
        filling.write_piece(piece, bytes, None).await.unwrap();
    }

    /// After `late`, `act` happens to a fill of which nothing has landed: the status, and the body, if all of it came.
    async fn answer<A: Future<Output = ()>>(
        late: Duration,
        range: Option<&str>,
        act: impl FnOnce(Filling) -> A,
    ) -> (StatusCode, Option<Bytes>) {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let filling = begin(&store).await;
        let range = range.map(|range| HeaderValue::from_str(range).unwrap());
        let answered = async {
            let digest = Digest::of(BYTES);
            let answer = respond(open(&filling), &digest, range.as_ref(), delivery()).await;
            let status = answer.status();
            (status, axum::body::to_bytes(answer.into_body(), 1000).await.ok())
        };
        let acting = async {
            tokio::time::sleep(late).await;
            act(filling.clone()).await;
        };
        let (answer, ()) = tokio::join!(answered, acting);
        store.close().await;
        answer
    }

    async fn fail(filling: Filling) {
        filling.abandon(FillFailure::Upstream("it broke off".to_owned())).await;
    }

    #[tokio::test]
    async fn a_blob_that_fails_before_its_first_byte_is_an_error_with_the_reason() {
        for range in [None, Some("bytes=5-"), Some("bytes=-3")] {
            let (status, body) = answer(FIRST_FRAME_WAIT / 4, range, fail).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{range:?}");
            let body = String::from_utf8(body.unwrap().to_vec()).unwrap();
            assert!(body.contains("it broke off") && body.contains("UNAVAILABLE"), "{body}");
        }
    }

    #[tokio::test]
    async fn one_that_fails_later_has_a_status_line_and_ends_short() {
        let (status, body) = answer(FIRST_FRAME_WAIT + FIRST_FRAME_WAIT / 4, None, fail).await;
        assert_eq!((status, body), (StatusCode::OK, None));
        let begun = |filling: Filling| async move {
            write(&filling, 0).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            fail(filling).await;
        };
        let (status, body) = answer(Duration::ZERO, None, begun).await;
        assert_eq!((status, body), (StatusCode::OK, None));
    }

    #[tokio::test]
    async fn one_that_comes_late_or_at_once_is_whole_and_no_byte_is_lost_on_the_way() {
        for late in [
            Duration::ZERO,
            FIRST_FRAME_WAIT / 4,
            FIRST_FRAME_WAIT + FIRST_FRAME_WAIT / 4,
        ] {
            let come = |filling: Filling| async move {
                for piece in 0..3 {
                    write(&filling, piece).await;
                }
                filling.publish(&[]).await.unwrap();
            };
            let (status, body) = answer(late, None, come).await;
            assert_eq!((status, body.as_deref()), (StatusCode::OK, Some(BYTES)), "{late:?}");
        }
    }
}
