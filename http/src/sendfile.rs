//! Sendfile: files leave without a copy, through an HTTP library that knows nothing of files.
//!
//! A body yields stand-ins: slices of memory that is never written, as long as the file's bytes that they stand for. The library
//! counts and orders them as it does any bytes. When it writes one to the connection, the connection recognises it by its address
//! and has the kernel send the file's bytes instead.
//!
//! Invariant: a stand-in is never read, so that its memory is never even allocated. This rests on the library, which hands on
//! the slices that it was given, as vectored writes are meant to; they are switched on where connections are served, and a test
//! compares the bytes that arrive.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::{AsFd as _, BorrowedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

/// The longest extent that one stand-in is for, in bytes: as much as a socket takes at once, and then some.
pub const EXTENT_BYTES_MAX: usize = 1024 * 1024;

/// Shorter parts are read: then their headers and they are one system call, and one packet.
const EXTENT_BYTES_MIN: u64 = 32 * 1024;

/// The memory that stand-ins are slices of.
static BLANK: [u8; EXTENT_BYTES_MAX] = [0; EXTENT_BYTES_MAX];

/// Queue of the parts of files that one connection sends, in the order in which its bodies yield them. Cheap to clone.
#[derive(Clone, Default)]
pub struct SendfileQueue(Arc<Mutex<VecDeque<Extent>>>);

/// A part of a file that is sent in place of a stand-in.
struct Extent {
    /// Bytes of it that are still to be sent.
    bytes: u64,
    send: SendExtent,
}

/// Sends at most so many of the next bytes to a socket; 0: the file has no more.
type SendExtent = Box<dyn FnMut(BorrowedFd<'_>, usize) -> io::Result<usize> + Send>;

impl SendfileQueue {
    /// Whether so many bytes are worth sending from their file.
    pub fn takes(&self, bytes: u64) -> bool {
        bytes >= EXTENT_BYTES_MIN
    }

    /// The frame that a body must yield for a part, at once and before any other.
    ///
    /// # Panics
    /// When they are more than [`EXTENT_BYTES_MAX`].
    pub fn stand_in(
        &self,
        bytes: u64,
        send: impl FnMut(BorrowedFd<'_>, usize) -> io::Result<usize> + Send + 'static,
    ) -> Bytes {
        let len = usize::try_from(bytes).unwrap_or(usize::MAX);
        let blank = BLANK.get(..len).expect("extents are cut to what a stand-in is for");
        if bytes > 0 {
            let send = Box::new(send);
            self.0.lock().push_back(Extent { bytes, send });
        }
        Bytes::from_static(blank)
    }
}

fn is_stand_in(slice: &[u8]) -> bool {
    BLANK.as_ptr_range().contains(&slice.as_ptr())
}

/// A connection that sends files for their stand-ins.
pub(super) struct SendfileStream {
    stream: TcpStream,
    sendfile: SendfileQueue,
}

impl SendfileStream {
    pub(super) fn new(stream: TcpStream, sendfile: SendfileQueue) -> Self {
        Self { stream, sendfile }
    }

    /// Sends at most `bytes_max` bytes of the extent whose turn it is.
    fn poll_send(&self, cx: &mut Context<'_>, bytes_max: usize) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let mut queue = self.sendfile.0.lock();
            let Some(extent) = queue.front_mut() else {
                return Poll::Ready(Err(io::Error::other(
                    "a stand-in was written for which there is no file",
                )));
            };
            let bytes_max = usize::try_from(extent.bytes).map_or(bytes_max, |bytes| bytes.min(bytes_max));
            let send = || (extent.send)(self.stream.as_fd(), bytes_max);
            match self.stream.try_io(Interest::WRITABLE, send) {
                // The file is shorter than its blob: the body ends short of its length, and the client knows.
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(sent) => {
                    extent.bytes = extent.bytes.saturating_sub(sent as u64);
                    if extent.bytes == 0 {
                        queue.pop_front();
                    }
                    return Poll::Ready(Ok(sent));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncRead for SendfileStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for SendfileStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if is_stand_in(bytes) {
            self.poll_send(cx, bytes.len())
        } else {
            Pin::new(&mut self.stream).poll_write(cx, bytes)
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut told = slices.iter().enumerate().filter(|(_, slice)| !slice.is_empty());
        match told.find(|(_, slice)| is_stand_in(slice)) {
            Some((0, slice)) => self.poll_send(cx, slice.len()),
            Some((index, slice)) if slices[..index].iter().all(|before| before.is_empty()) => {
                self.poll_send(cx, slice.len())
            }
            Some((index, _)) => Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..index]),
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
