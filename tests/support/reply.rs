//! One answer of the hostile registry: the truth, and how it is twisted.

use std::{
    io::{self, Write},
    ops::Range,
    sync::Arc,
    thread,
    time::Duration,
};

/// How the hostile registry answers for one digest. Byte counts are of the answer's body, so a resumed download gets
/// further each time. HEADs are not counted in `times`.
#[derive(Clone, Debug, PartialEq)]
pub enum Behaviour {
    Truth,
    /// The whole body, ended by closing the connection.
    NoContentLength,
    /// The whole body under a length that is off by this much, then the connection is closed.
    WrongContentLength(i64),
    /// Closes the connection after `at` bytes, `times` times; the truth afterwards.
    ShortBody {
        at: u64,
        times: u32,
    },
    /// The login page of a hotel.
    Html200,
    /// Wrong bytes from this fraction of the blob on, for the first `times` answers that reach there.
    LieFrom {
        fraction: f64,
        times: u32,
    },
    /// A pause after `at` bytes.
    Stall {
        at: u64,
        seconds: u64,
    },
    /// A pause before the status line.
    Late {
        millis: u64,
    },
    /// The blob's beginning with 200, whatever range was asked for, and then a closed connection.
    AlwaysCut {
        at: u64,
    },
    /// This status with an OCI error body.
    Status(u16),
    /// 429 with this `Retry-After`.
    Busy {
        seconds: u64,
    },
    /// 200 with `Content-Length: 0`.
    Empty200,
    /// 307 to this URL.
    Redirect(String),
    /// The whole blob with 200, whatever range was asked for.
    IgnoreRange,
}

impl Behaviour {
    /// Answers a GET.
    pub fn twist(&mut self, mut truth: Reply) -> Reply {
        match self {
            Self::ShortBody { at, times } if *times > 0 && *at < truth.length() => {
                *times -= 1;
                truth.cut_at = Some(*at);
            }
            Self::LieFrom { fraction, times } if *times > 0 => {
                let lie_from = truth.offset_of(*fraction);
                if truth.range.end > lie_from {
                    *times -= 1;
                    truth.lie_from = Some(lie_from);
                }
            }
            Self::Stall { at, seconds } => truth.stall = Some((*at, Duration::from_secs(*seconds))),
            Self::AlwaysCut { at } => {
                truth = truth.ignoring_range();
                truth.cut_at = Some(*at);
            }
            _ => return self.twist_head(truth),
        }
        truth
    }

    /// Answers a HEAD, or a GET whose head alone is twisted.
    pub fn twist_head(&self, mut truth: Reply) -> Reply {
        match self {
            Self::Truth
            | Self::ShortBody { .. }
            | Self::LieFrom { .. }
            | Self::Stall { .. }
            | Self::AlwaysCut { .. } => truth,
            Self::Late { millis } => {
                truth.late = Duration::from_millis(*millis);
                truth
            }
            Self::NoContentLength => {
                truth.declared = None;
                truth
            }
            Self::WrongContentLength(delta) => {
                truth.declared = truth.length().checked_add_signed(*delta);
                truth
            }
            Self::Html200 => Reply::short(200, "text/html", "<html><body>Welcome! Please log in.</body></html>"),
            Self::Status(status) => Reply::short(
                *status,
                "application/json",
                r#"{"errors":[{"code":"UNKNOWN","message":"as told"}]}"#,
            ),
            Self::Busy { seconds } => {
                let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"as told"}]}"#;
                Reply::short(429, "application/json", body).header("Retry-After", seconds.to_string())
            }
            Self::Empty200 => Reply::short(200, "application/octet-stream", ""),
            Self::Redirect(url) => Reply::short(307, "text/plain", "").header("Location", url.clone()),
            Self::IgnoreRange => truth.ignoring_range(),
        }
    }
}

/// An answer to be written.
#[derive(Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    /// `None` sends no length and ends the body by closing.
    declared: Option<u64>,
    content: Arc<Vec<u8>>,
    range: Range<u64>,
    cut_at: Option<u64>,
    lie_from: Option<u64>,
    stall: Option<(u64, Duration)>,
    /// Before the status line.
    late: Duration,
}

impl Reply {
    /// What an honest registry says, to a `Range` header too.
    pub fn truth(digest: &str, media_type: &str, content: &Arc<Vec<u8>>, range: Option<&str>) -> Self {
        let size = content.len() as u64;
        let mut reply = Self::new(200, media_type, Arc::clone(content))
            .header("Docker-Content-Digest", digest.to_owned())
            .header("Accept-Ranges", "bytes".to_owned());
        match range.and_then(|header| parse_range(header, size)) {
            None => {}
            Some(range) if range.is_empty() => {
                reply = Self::short(416, "text/plain", "").header("Content-Range", format!("bytes */{size}"));
            }
            Some(range) => {
                reply = reply.header(
                    "Content-Range",
                    format!("bytes {}-{}/{size}", range.start, range.end - 1),
                );
                reply.status = 206;
                reply.declared = Some(range.end - range.start);
                reply.range = range;
            }
        }
        reply
    }

    pub fn short(status: u16, media_type: &str, body: &str) -> Self {
        Self::new(status, media_type, Arc::new(body.as_bytes().to_vec()))
    }

    fn new(status: u16, media_type: &str, content: Arc<Vec<u8>>) -> Self {
        let size = content.len() as u64;
        let headers = vec![("Content-Type", media_type.to_owned())];
        let (declared, range) = (Some(size), 0..size);
        Self {
            status,
            headers,
            declared,
            content,
            range,
            cut_at: None,
            lie_from: None,
            stall: None,
            late: Duration::ZERO,
        }
    }

    pub fn header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// As [`Behaviour::Late`].
    pub fn late(mut self, late: Duration) -> Self {
        self.late = late;
        self
    }

    /// Waits as long as the reply is to be late, on the thread of its own connection.
    pub fn wait(&self) {
        thread::sleep(self.late);
    }

    /// The status line and the header fields.
    pub fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} Told\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(length) = self.declared {
            head += &format!("Content-Length: {length}\r\n");
        }
        head + if self.closes() {
            "Connection: close\r\n\r\n"
        } else {
            "\r\n"
        }
    }

    /// Writes the body as far as it goes.
    pub fn write_body(&self, writer: &mut impl Write) -> io::Result<()> {
        let end = self
            .cut_at
            .map_or(self.range.end, |cut| self.range.end.min(self.range.start + cut));
        let Some((at, pause)) = self.stall else {
            return self.write_range(writer, self.range.start..end);
        };
        let middle = end.min(self.range.start + at);
        self.write_range(writer, self.range.start..middle)?;
        thread::sleep(pause);
        self.write_range(writer, middle..end)
    }

    /// Whether the connection cannot be used for another request.
    pub fn closes(&self) -> bool {
        self.cut_at.is_some() || self.declared != Some(self.length())
    }

    fn write_range(&self, writer: &mut impl Write, range: Range<u64>) -> io::Result<()> {
        let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).expect("content is in memory"));
        let lie_from = self
            .lie_from
            .map_or(end, |lie| usize::try_from(lie).expect("content is in memory"));
        let lie_from = lie_from.clamp(start, end);
        writer.write_all(&self.content[start..lie_from])?;
        let lie: Vec<u8> = self.content[lie_from..end].iter().map(|byte| !byte).collect();
        writer.write_all(&lie)
    }

    fn length(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// The blob's byte at this fraction of its size.
    fn offset_of(&self, fraction: f64) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a place in a test blob"
        )]
        let offset = (self.content.len() as f64 * fraction) as u64;
        offset
    }

    fn ignoring_range(mut self) -> Self {
        self.status = 200;
        self.headers.retain(|(name, _)| *name != "Content-Range");
        self.range = 0..self.content.len() as u64;
        self.declared = Some(self.length());
        self
    }
}

/// Resolves `bytes=a-b`, `bytes=a-` or `bytes=-n`; an empty range cannot be satisfied, and `None` is no range at all.
fn parse_range(header: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    if first.is_empty() {
        let suffix: u64 = last.parse().ok()?;
        return Some(size.saturating_sub(suffix)..size);
    }
    let first: u64 = first.parse().ok()?;
    let end = if last.is_empty() {
        size
    } else {
        size.min(last.parse::<u64>().ok()? + 1)
    };
    Some(first.min(end)..end)
}
