//! One client's connection: HTTP/1.1, kept alive, its bodies read as they come.

use std::{
    io::{self, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    ops::Range,
    time::Duration,
};

use crate::support::{Headers, read_head};

const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// A server that is silent for longer has stalled.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(30);
/// What is on its way to a slow reader is waiting at the daemon, and not in the kernel.
const SLOW_BUFFER_BYTES: usize = 64 * 1024;

pub(crate) struct Session {
    address: SocketAddr,
    slow: bool,
    stream: Option<BufReader<TcpStream>>,
}

/// Status and header fields; the body is still to be read.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
}

impl Answer {
    pub(crate) fn body_bytes(&self) -> Option<usize> {
        self.headers.get("content-length")?.parse().ok()
    }
}

impl Session {
    pub(crate) fn new(address: SocketAddr, slow: bool) -> Self {
        let stream = None;
        Self { address, slow, stream }
    }

    /// Sends a request and reads the answer's head.
    pub(crate) fn ask(&mut self, method: &str, target: &str, range: Option<Range<usize>>) -> io::Result<Answer> {
        let range = range.map_or_else(String::new, |range| {
            format!("Range: bytes={}-{}\r\n", range.start, range.end - 1)
        });
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: {}\r\n{ACCEPT}{range}\r\n",
            self.address
        );
        let kept = self.stream.is_some();
        match self.exchange(&request) {
            // The server may have closed it while it was idle.
            Err(error) if kept && !is_stall(&error) => {
                self.hang_up();
                self.exchange(&request)
            }
            answer => answer,
        }
    }

    /// The next bytes of the body.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.stream {
            Some(stream) => stream.read(buffer),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    pub(crate) fn hang_up(&mut self) {
        self.stream = None;
    }

    fn exchange(&mut self, request: &str) -> io::Result<Answer> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.connect()?,
        };
        stream.get_mut().write_all(request.as_bytes())?;
        let (status_line, headers) = read_head(&mut stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("not a status line: {status_line}")))?;
        self.stream = Some(stream);
        Ok(Answer { status, headers })
    }

    fn connect(&self) -> io::Result<BufReader<TcpStream>> {
        let stream = TcpStream::connect_timeout(&self.address, CONNECT_TIME_MAX)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        stream.set_nodelay(true)?;
        if self.slow {
            rustix::net::sockopt::set_socket_recv_buffer_size(&stream, SLOW_BUFFER_BYTES)?;
        }
        Ok(BufReader::new(stream))
    }
}

pub(crate) fn is_stall(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

const ACCEPT: &str =
    "Accept: application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, */*\r\n";
