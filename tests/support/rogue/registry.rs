//! A rogue registry: an upstream of the mirror that answers as no registry should. It harms by what a client of it asks for.

use std::{
    io::{self, BufReader, Write},
    net::{Shutdown, SocketAddrV4, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    super::{http::read_head, netns::Netns},
    rest,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryHarm {
    EndlessHead,
    SlowHead,
    EndlessManifest,
    EndlessBlob,
    DribblingBlob,
    /// It says that it has every blob that it is asked for, of the size that is asked about, and sends other bytes.
    ClaimsEverything,
    RedirectsInCircles,
    /// It sends the mirror to a metadata service, and to the site's own ports.
    RedirectsInside,
    Refuses,
    /// 429 with an hour's `Retry-After`.
    IsBusy,
    Resets,
    /// JSON so deep that a recursive reader runs out of stack.
    NestsDeeply,
}

impl RegistryHarm {
    pub const ALL: [Self; 12] = [
        Self::EndlessHead,
        Self::SlowHead,
        Self::EndlessManifest,
        Self::EndlessBlob,
        Self::DribblingBlob,
        Self::ClaimsEverything,
        Self::RedirectsInCircles,
        Self::RedirectsInside,
        Self::Refuses,
        Self::IsBusy,
        Self::Resets,
        Self::NestsDeeply,
    ];
}

/// A running rogue registry.
#[derive(Debug)]
pub struct RogueRegistry {
    listener: TcpListener,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    stopped: Arc<AtomicBool>,
    harm: Arc<Mutex<RegistryHarm>>,
    asked: Arc<AtomicUsize>,
}

impl RogueRegistry {
    /// `inside`: addresses that no registry may lead the mirror to.
    pub fn start(netns: &Netns, address: SocketAddrV4, inside: &'static [&'static str]) -> Self {
        let listener = netns
            .enter(|| TcpListener::bind(address))
            .expect("listening as the rogue registry");
        let registry = Self {
            listener: listener.try_clone().expect("sharing the listener"),
            connections: Arc::default(),
            stopped: Arc::default(),
            harm: Arc::new(Mutex::new(RegistryHarm::Refuses)),
            asked: Arc::default(),
        };
        let (connections, stopped) = (Arc::clone(&registry.connections), Arc::clone(&registry.stopped));
        let (harm, asked) = (Arc::clone(&registry.harm), Arc::clone(&registry.asked));
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (stopped, harm, asked) = (Arc::clone(&stopped), Arc::clone(&harm), Arc::clone(&asked));
                if let Ok(shared) = stream.try_clone() {
                    connections.lock().expect("no holder panics").push(shared);
                }
                // The mirror may hang up on such a registry.
                thread::spawn(move || answer_all(&stream, &harm, inside, &asked, &stopped).unwrap_or_default());
            }
        });
        registry
    }

    /// From now on.
    pub fn harms_by(&self, harm: RegistryHarm) {
        *self.harm.lock().expect("no holder panics") = harm;
    }

    /// Requests so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for RogueRegistry {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        for connection in self.connections.lock().expect("no holder panics").drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn answer_all(
    stream: &TcpStream,
    harm: &Mutex<RegistryHarm>,
    inside: &[&str],
    asked: &AtomicUsize,
    stopped: &AtomicBool,
) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some((request_line, _)) = read_head(&mut reader)? {
        let number = asked.fetch_add(1, Ordering::Relaxed);
        let mut words = request_line.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = target.split('?').next().unwrap_or_default();
        let harm = *harm.lock().expect("no holder panics");
        let answer = Answer {
            stream,
            stopped,
            head_only: method == "HEAD",
        };
        if path == "/v2/" && harm != RegistryHarm::Resets {
            answer.short(200, &[], "{}")?;
            continue;
        }
        answer.harm(harm, path, inside[number % inside.len()])?;
    }
    Ok(())
}

struct Answer<'a> {
    stream: &'a TcpStream,
    stopped: &'a AtomicBool,
    head_only: bool,
}

impl Answer<'_> {
    fn harm(&self, harm: RegistryHarm, path: &str, inside: &str) -> io::Result<()> {
        let is_blob = path.contains("/blobs/");
        match harm {
            RegistryHarm::EndlessHead => {
                self.write(b"HTTP/1.1 200 OK\r\n")?;
                self.pour(format!("X-A: {}\r\n", "b".repeat(8000)).as_bytes(), Duration::ZERO)
            }
            RegistryHarm::SlowHead => {
                self.write(b"HTTP/1.1 200 OK\r\n")?;
                self.pour(b"X-A: b\r\n", Duration::from_secs(1))
            }
            RegistryHarm::EndlessManifest if !is_blob => self.endless(MANIFEST),
            RegistryHarm::EndlessBlob if is_blob => self.endless("application/octet-stream"),
            RegistryHarm::DribblingBlob if is_blob => {
                self.write(&head(200, &[], Some(50_000_000)))?;
                self.pour(b"a", Duration::from_secs(2))
            }
            RegistryHarm::ClaimsEverything => {
                let digest = path.rsplit('/').next().unwrap_or_default();
                let headers = [("Docker-Content-Digest", digest), ("Content-Type", MANIFEST)];
                self.short(200, &headers, &"A".repeat(3_000_000))
            }
            RegistryHarm::RedirectsInCircles => self.short(307, &[("Location", path)], ""),
            RegistryHarm::RedirectsInside => self.short(307, &[("Location", inside)], ""),
            RegistryHarm::IsBusy => self.short(429, &[("Retry-After", "3600")], ""),
            RegistryHarm::Resets => self.stream.shutdown(Shutdown::Both),
            RegistryHarm::NestsDeeply => {
                let nested = format!("{}1{}", r#"{"a":"#.repeat(200_000), "}".repeat(200_000));
                self.short(200, &[("Content-Type", MANIFEST)], &nested)
            }
            _ => self.short(404, &[("Content-Type", "application/json")], r#"{"errors":[]}"#),
        }
    }

    fn endless(&self, media_type: &str) -> io::Result<()> {
        let headers = [("Content-Type", media_type), ("Transfer-Encoding", "chunked")];
        self.write(&head(200, &headers, None))?;
        let chunk = format!("4000\r\n{}\r\n", "a".repeat(0x4000));
        self.pour(chunk.as_bytes(), Duration::ZERO)
    }

    fn short(&self, status: u16, headers: &[(&str, &str)], body: &str) -> io::Result<()> {
        self.write(&head(status, headers, Some(body.len())))?;
        if self.head_only {
            return Ok(());
        }
        self.write(body.as_bytes())
    }

    /// Until the mirror hangs up, or a hundred megabytes.
    fn pour(&self, bytes: &[u8], pause: Duration) -> io::Result<()> {
        for _ in 0..100_000_000 / bytes.len().max(1000) {
            self.write(bytes)?;
            if !rest(self.stopped, pause) {
                break;
            }
        }
        self.stream.shutdown(Shutdown::Both)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut writer = self.stream;
        writer.write_all(bytes)
    }
}

fn head(status: u16, headers: &[(&str, &str)], length: Option<usize>) -> Vec<u8> {
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let length = length.map_or_else(String::new, |length| format!("Content-Length: {length}\r\n"));
    format!("HTTP/1.1 {status} Told\r\n{headers}{length}\r\n").into_bytes()
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
