//! A small HTTP/1.1 client that shows answers as they are, broken ones included.
//!
//! One request per connection. The tests ask it about bodies that are cut short, of a wrong length or of none, which a
//! polite client would hide.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::netns::Netns;

/// A request to be sent.
#[derive(Clone, Debug)]
pub struct Request {
    method: &'static str,
    address: SocketAddr,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    patience: Duration,
}

impl Request {
    /// `target` is path and query.
    pub fn new(method: &'static str, address: SocketAddr, target: &str) -> Self {
        let target = target.to_owned();
        Self {
            method,
            address,
            target,
            headers: Vec::new(),
            body: Vec::new(),
            patience: Duration::from_secs(30),
        }
    }

    pub fn get(address: SocketAddr, target: &str) -> Self {
        Self::new("GET", address, target)
    }

    pub fn head(address: SocketAddr, target: &str) -> Self {
        Self::new("HEAD", address, target)
    }

    pub fn method(&self) -> &str {
        self.method
    }

    pub fn target(&self) -> &str {
        &self.target
    }

    /// The same for something else.
    pub fn with_target(mut self, target: &str) -> Self {
        target.clone_into(&mut self.target);
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, bytes: &[u8]) -> Self {
        self.body = bytes.to_vec();
        self
    }

    /// How long to wait for a connection, and for each next byte.
    pub fn patience(mut self, limit: Duration) -> Self {
        self.patience = limit;
        self
    }

    /// Sends it from inside a namespace.
    ///
    /// # Errors
    /// When there is no answer; an answer of any status is a [`Response`].
    pub fn send_from(&self, netns: &Netns) -> io::Result<Response> {
        netns.enter(|| self.send())
    }

    /// Sends it from where the calling thread is.
    ///
    /// # Errors
    /// When there is no answer; an answer of any status is a [`Response`].
    pub fn send(&self) -> io::Result<Response> {
        Response::read(
            &mut BufReader::with_capacity(1 << 16, self.open()?),
            self.method == "HEAD",
        )
    }

    /// Sends it from inside a namespace, and hangs up after this many bytes of the answer's body, which are returned.
    ///
    /// # Errors
    /// When there are not as many.
    pub fn send_and_hang_up(&self, netns: &Netns, body_bytes: usize) -> io::Result<Vec<u8>> {
        netns.enter(|| {
            let mut reader = BufReader::new(self.open()?);
            read_head(&mut reader)?;
            let mut body = vec![0; body_bytes];
            reader.read_exact(&mut body)?;
            Ok(body)
        })
    }

    /// Sends it, over a connection of its own.
    fn open(&self) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.address, self.patience)?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.write_all(self.head_text().as_bytes())?;
        stream.write_all(&self.body)?;
        Ok(stream)
    }

    fn head_text(&self) -> String {
        let host = if self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            String::new()
        } else {
            format!("Host: {}\r\n", self.address)
        };
        let headers: String = self
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let (method, target, length) = (self.method, &self.target, self.body.len());
        format!("{method} {target} HTTP/1.1\r\n{host}{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n")
    }
}

/// An answer, as far as it came.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
    /// Whether the body ended where its framing says. Without framing it is complete where the connection ends.
    pub complete: bool,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn read(reader: &mut impl BufRead, head_only: bool) -> io::Result<Self> {
        let (status_line, headers) = read_head(reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("not a status line: {status_line}")))?;
        let mut body = Vec::new();
        let complete = if head_only || matches!(status, 204 | 304) {
            true
        } else if headers
            .get("transfer-encoding")
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
        {
            read_chunks(reader, &mut body)
        } else if let Some(length) = headers.get("content-length") {
            let length: u64 = length.parse().map_err(io::Error::other)?;
            // A reset in the middle is an incomplete body, just as an early end is.
            reader.take(length).read_to_end(&mut body).is_ok() && body.len() as u64 == length
        } else {
            reader.read_to_end(&mut body).is_ok()
        };
        Ok(Self {
            status,
            headers,
            body,
            complete,
        })
    }
}

/// Header fields in the order they came; names are found in any case.
#[derive(Clone, Debug, Default)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// All fields, names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The first field of that name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// Reads the first line and the header fields of a message; `None` when the connection ended before one began.
pub fn read_head(reader: &mut impl BufRead) -> io::Result<Option<(String, Headers)>> {
    let mut first_line = String::new();
    if reader.read_line(&mut first_line)? == 0 {
        return Ok(None);
    }
    let mut headers = Headers::default();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.0.push((name.to_owned(), value.trim().to_owned())),
            None => return Ok(Some((first_line.trim_end().to_owned(), headers))),
        }
    }
}

/// Decodes a chunked body; false when it is cut short.
fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> bool {
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() {
            return false;
        }
        let Ok(length) = u64::from_str_radix(line.trim_end(), 16) else {
            return false;
        };
        let before = body.len() as u64;
        let whole = reader.by_ref().take(length).read_to_end(body).is_ok() && body.len() as u64 - before == length;
        if !whole || reader.read_line(&mut line).is_err() {
            return false;
        }
        if length == 0 {
            return true;
        }
    }
}
