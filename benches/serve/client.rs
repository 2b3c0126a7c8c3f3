//! A client that discards what it receives. All servers get the same one, so that only the servers differ.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use rustix::net::{RecvFlags, recv};

use crate::support::{MANIFEST, Netns};

/// The treatment of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposal {
    /// It is read into a buffer, as every client does.
    Read,
    /// The kernel drops it unread, so that the server's own limit shows.
    Drop,
}

/// A connection that is kept for one request after the other.
pub(crate) struct Connection {
    stream: TcpStream,
    host: SocketAddr,
    disposal: Disposal,
    buffer: Vec<u8>,
}

/// The times of one GET.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Got {
    /// From the request to the first byte of the body.
    pub(crate) first_byte: Duration,
    /// From the request to the last byte.
    pub(crate) whole: Duration,
}

impl Connection {
    /// Connects from inside a namespace.
    pub(crate) fn open(netns: &Netns, address: SocketAddr) -> Self {
        let stream = netns
            .enter(|| TcpStream::connect_timeout(&address, PATIENCE))
            .unwrap_or_else(|error| panic!("connecting to {address}: {error}"));
        stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_nodelay(true))
            .expect("setting up a connection");
        Self {
            stream,
            host: address,
            disposal: Disposal::Read,
            buffer: vec![0; BUFFER_BYTES],
        }
    }

    pub(crate) fn disposal(mut self, disposal: Disposal) -> Self {
        self.disposal = disposal;
        self
    }

    /// GETs it and throws the body away.
    ///
    /// # Panics
    /// When the answer is not a whole body with 200: there is nothing to measure then.
    pub(crate) fn get(&mut self, target: &str) -> Got {
        self.get_within(target)
            .unwrap_or_else(|error| panic!("GET {target} from {}: {error}", self.host))
    }

    fn get_within(&mut self, target: &str) -> std::io::Result<Got> {
        let started = Instant::now();
        self.stream.write_all(request(target, self.host).as_bytes())?;
        let head = read_head(&mut self.stream, &mut self.buffer)?;
        let mut left = head.body_bytes - head.body_read;
        let mut first_byte = started.elapsed();
        let mut is_first = head.body_read == 0;
        while left > 0 {
            let count = self.take(left)? as u64;
            if count == 0 {
                return Err(std::io::Error::other(format!("ended {left} bytes short")));
            }
            if std::mem::take(&mut is_first) {
                first_byte = started.elapsed();
            }
            left -= count;
        }
        Ok(Got {
            first_byte,
            whole: started.elapsed(),
        })
    }

    fn take(&mut self, left: u64) -> std::io::Result<usize> {
        let length = usize::try_from(left).map_or(BUFFER_BYTES, |left| left.min(BUFFER_BYTES));
        let buffer = &mut self.buffer[..length];
        match self.disposal {
            Disposal::Read => self.stream.read(buffer),
            Disposal::Drop => {
                let (_, dropped) = recv(&self.stream, buffer, RecvFlags::TRUNC)?;
                Ok(dropped)
            }
        }
    }
}

/// What the head of an answer says, and how much of the body came with it.
pub(crate) struct Head {
    pub(crate) body_bytes: u64,
    pub(crate) body_read: u64,
}

/// The text of a GET, such as a container runtime sends.
pub(crate) fn request(target: &str, host: SocketAddr) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nAccept: {MANIFEST}\r\n\r\n")
}

/// Reads the head of an answer into the buffer.
///
/// # Errors
/// The connection's, and any answer but 200 with a length.
pub(crate) fn read_head(stream: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<Head> {
    let mut filled = 0;
    let end = loop {
        match stream.read(&mut buffer[filled..])? {
            0 => return Err(std::io::Error::other("ended within the head, or the head is too long")),
            count => filled += count,
        }
        if let Some(end) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length = length.and_then(|length| length.trim().parse().ok());
    match length {
        Some(body_bytes) if head.starts_with("http/1.1 200") => Ok(Head {
            body_bytes,
            body_read: (filled - end) as u64,
        }),
        _ => Err(std::io::Error::other(format!("the answer is {head}"))),
    }
}

/// How long to wait for a connection, and for each next byte.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Fits in a core's own cache.
const BUFFER_BYTES: usize = 256 * 1024;
