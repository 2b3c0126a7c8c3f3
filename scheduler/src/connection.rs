//!
//! Connection of a daemon, as the HTTP/2 server sees it.
//!
//! Invariant: it is closed when its slot is given to another, or when too many bytes come over it without a session.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use piecemeal_http::{Slot, Watched};
use piecemeal_tls::SiteStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

pub(crate) struct Connection {
    stream: Watched<SiteStream>,
    origin: Origin,
    closed: CancellationToken,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Bytes that came since the last session.
    idle_bytes: usize,
}

/// Origin of a request: its connection's address and slot.
#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) remote: SocketAddr,
    pub(crate) slot: Slot,
}

impl Connection {
    pub(crate) fn new(stream: SiteStream, origin: Origin) -> Self {
        let closed = origin.slot.closed().clone();
        Self {
            stream: Watched::new(stream, origin.slot.clone()),
            origin,
            closing: Box::pin(closed.clone().cancelled_owned()),
            closed,
            idle_bytes: 0,
        }
    }

    /// An error when the connection has to be closed; wakes the task when that happens later.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.closed.is_cancelled() || self.closing.as_mut().poll(cx).is_ready() {
            let why = "the connection was late, or gave way to another";
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why));
        }
        Ok(())
    }

    /// Counts bytes. Frames without a request cost time, too: a connection without a session may send only few of them.
    fn count(&mut self, bytes: usize) -> io::Result<()> {
        if self.origin.slot.is_busy() {
            self.idle_bytes = 0;
            return Ok(());
        }
        self.idle_bytes += bytes;
        if self.idle_bytes > IDLE_BYTES_MAX {
            let why = "too many bytes arrived without a session";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        self.origin.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.count(buffer.filled().len() - before)?;
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Bytes without a session. A preface, settings, the head of a request and a hello take a few kilobytes.
const IDLE_BYTES_MAX: usize = 64 * 1024;
