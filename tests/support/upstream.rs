//! A hostile registry: it tells the truth until told to misbehave, blob by blob.
//!
//! It remembers every request with its headers and counts the bytes of bodies that it sent. Manifests are content too: to
//! misbehave for one, name its digest.

use std::{
    collections::HashMap,
    fmt,
    io::{self, BufReader, Write},
    net::{Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    http::{Headers, read_head},
    image::{Blob, Image},
    netns::Netns,
    reply::{Behaviour, Reply},
};

/// A running hostile registry.
#[derive(Debug)]
pub struct FakeUpstream {
    address: SocketAddr,
    listener: TcpListener,
    shelf: Arc<Mutex<Shelf>>,
    accepting: Option<JoinHandle<()>>,
}

/// How a request is lost on a connection that was forgotten.
#[derive(Clone, Copy, Debug)]
pub enum Forgets {
    /// It is answered by a reset.
    Reset,
    /// It is answered by nothing.
    Silence,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub headers: Headers,
}

impl FakeUpstream {
    /// Serves an image at `address` inside a namespace.
    pub fn start(netns: &Netns, address: SocketAddrV4, image: &Image) -> Self {
        let listener = netns
            .enter(|| TcpListener::bind(address))
            .expect("listening as the fake upstream");
        Self::serve(listener, image)
    }

    /// Serves an image on a socket that listens already.
    pub fn serve(listener: TcpListener, image: &Image) -> Self {
        let address = listener.local_addr().expect("a listener has an address");
        let shelf = Arc::new(Mutex::new(Shelf::default()));
        let accepting = thread::spawn({
            let listener = listener.try_clone().expect("sharing the listener");
            let shelf = Arc::clone(&shelf);
            move || accept_all(&listener, &shelf)
        });
        let upstream = Self {
            address,
            listener,
            shelf,
            accepting: Some(accepting),
        };
        upstream.add_image(image);
        upstream
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves one more image, or a new one under the same tag.
    pub fn add_image(&self, image: &Image) {
        let mut shelf = lock(&self.shelf);
        for blob in image.blobs().chain(image.manifests()) {
            let content = Content {
                media_type: blob.media_type,
                bytes: Arc::new(blob.bytes.clone()),
            };
            shelf.contents.insert(blob.digest.clone(), content);
        }
        let tag = format!("/v2/{}/manifests/{}", image.repository(), image.tag());
        shelf.tags.insert(tag, image.digest().to_owned());
    }

    /// Serves one more blob, in every repository.
    pub fn add_blob(&self, blob: &Blob) {
        let content = Content {
            media_type: blob.media_type,
            bytes: Arc::new(blob.bytes.clone()),
        };
        lock(&self.shelf).contents.insert(blob.digest.clone(), content);
    }

    /// Answers everything this much later from now on.
    pub fn move_away(&self, latency: Duration) {
        lock(&self.shelf).latency = latency;
    }

    /// From now on forgets each connection after one request, as a NAT does an idle one: the next request on it is lost.
    pub fn forget_connections(&self, how: Forgets) {
        lock(&self.shelf).forgets = Some(how);
    }

    /// How to answer for this digest from now on.
    pub fn behave(&self, digest: &str, behaviour: Behaviour) {
        lock(&self.shelf).behaviours.insert(digest.to_owned(), behaviour);
    }

    /// From now on requires this bearer token of every request, and grants it to every request at `/token`, where `realm` should
    /// point unless the test is about one that points elsewhere.
    pub fn require_token(&self, token: &str, realm: &str) {
        lock(&self.shelf).guard = Some(Guard {
            token: token.to_owned(),
            realm: realm.to_owned(),
        });
    }

    /// From now on asks this first what to answer; `None` leaves the answer to the rest.
    pub fn rule(&self, rule: impl Fn(&RecordedRequest) -> Option<Reply> + Send + 'static) {
        lock(&self.shelf).rule = Some(Rule(Box::new(rule)));
    }

    /// GETs for this digest so far.
    pub fn requests(&self, digest: &str) -> usize {
        lock(&self.shelf).counts.get(digest).map_or(0, |count| count.requests)
    }

    /// Bytes of bodies written for this digest so far.
    pub fn body_bytes(&self, digest: &str) -> u64 {
        lock(&self.shelf).counts.get(digest).map_or(0, |count| count.body_bytes)
    }

    /// From now on no list of tags or referrers ends: each page is large, new and names a next one.
    pub fn list_without_end(&self) {
        lock(&self.shelf).endless = true;
    }

    /// As a proxy, or a server of many names: answers 403 for every host whose name contains this.
    pub fn refuse_hosts(&self, containing: &str) {
        lock(&self.shelf).refused_hosts = Some(containing.to_owned());
    }

    /// Every request in the order of arrival.
    pub fn recorded(&self) -> Vec<RecordedRequest> {
        lock(&self.shelf).recorded.clone()
    }
}

impl Drop for FakeUpstream {
    fn drop(&mut self) {
        // Wakes the accepting thread; connections end with their sockets.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for connection in lock(&self.shelf).connections.iter().filter_map(Weak::upgrade) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

#[derive(Debug, Default)]
struct Shelf {
    contents: HashMap<String, Content>,
    latency: Duration,
    /// By the path of the manifest.
    tags: HashMap<String, String>,
    behaviours: HashMap<String, Behaviour>,
    guard: Option<Guard>,
    rule: Option<Rule>,
    refused_hosts: Option<String>,
    forgets: Option<Forgets>,
    endless: bool,
    counts: HashMap<String, Count>,
    recorded: Vec<RecordedRequest>,
    /// To be shut down in the end, those that still are.
    connections: Vec<Weak<TcpStream>>,
}

type Ruling = dyn Fn(&RecordedRequest) -> Option<Reply> + Send;

struct Rule(Box<Ruling>);

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rule(..)")
    }
}

#[derive(Debug)]
struct Guard {
    token: String,
    realm: String,
}

impl Guard {
    /// What to say instead of the answer, if anything.
    fn stop(&self, path: &str, headers: &Headers) -> Option<Reply> {
        if path == "/token" {
            return Some(Reply::short(
                200,
                "application/json",
                &format!(r#"{{"token":"{}"}}"#, self.token),
            ));
        }
        if headers.get("authorization") == Some(&format!("Bearer {}", self.token)) {
            return None;
        }
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"not a token of this registry"}]}"#;
        let repository = path
            .trim_start_matches("/v2/")
            .rsplitn(3, '/')
            .nth(2)
            .unwrap_or_default();
        let challenge = format!(
            r#"Bearer realm="{}",service="fake",scope="repository:{repository}:pull""#,
            self.realm
        );
        Some(Reply::short(401, "application/json", body).header("WWW-Authenticate", challenge))
    }
}

#[derive(Clone, Debug)]
struct Content {
    media_type: &'static str,
    bytes: Arc<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Count {
    requests: usize,
    body_bytes: u64,
}

impl Shelf {
    /// Unsorted, whatever was asked for: so are some.
    fn list_tags(&self, repository: &str) -> Reply {
        let prefix = format!("{repository}/manifests/");
        let tags: Vec<&str> = self.tags.keys().filter_map(|path| path.strip_prefix(&prefix)).collect();
        let name = repository.trim_start_matches("/v2/");
        Reply::short(
            200,
            "application/json",
            &serde_json::json!({ "name": name, "tags": tags }).to_string(),
        )
    }

    /// Decides on the answer, and records the request.
    fn answer(&mut self, request: &RecordedRequest) -> (String, Reply) {
        self.recorded.push(request.clone());
        if let Some(told) = self.rule.as_ref().and_then(|rule| rule.0(request)) {
            return (String::new(), told);
        }
        // As a proxy it is sent whole URLs.
        let target = match request.target.split_once("://") {
            Some((_, rest)) => rest.find('/').map_or("/", |start| &rest[start..]),
            None => &request.target,
        };
        let path = target.split('?').next().unwrap_or_default();
        let is_get = request.method == "GET";
        if let Some(stopped) = self.guard.as_ref().and_then(|guard| guard.stop(path, &request.headers)) {
            return (String::new(), stopped);
        }
        let host = request.target.split('/').nth(2).unwrap_or_default();
        let is_url = request.target.contains("://");
        if is_url
            && self
                .refused_hosts
                .as_ref()
                .is_some_and(|refused| host.contains(refused))
        {
            return (String::new(), Reply::short(403, "application/xml", "<Error/>"));
        }
        if path == "/v2/" {
            return (String::new(), Reply::short(200, "application/json", "{}"));
        }
        if self.endless && (path.ends_with("/tags/list") || path.contains("/referrers/")) {
            return (String::new(), endless_page(path, self.recorded.len()));
        }
        if let Some(repository) = path.strip_suffix("/tags/list") {
            return (String::new(), self.list_tags(repository));
        }
        let digest = self
            .tags
            .get(path)
            .map_or_else(|| path.rsplit('/').next().unwrap_or_default(), String::as_str);
        let digest = digest.to_owned();
        let (Some(content), true) = (self.contents.get(&digest), is_get || request.method == "HEAD") else {
            let body = r#"{"errors":[{"code":"NAME_UNKNOWN","message":"unknown to the fake upstream"}]}"#;
            return (String::new(), Reply::short(404, "application/json", body));
        };
        if is_get {
            self.counts.entry(digest.clone()).or_default().requests += 1;
        }
        let truth = Reply::truth(
            &digest,
            content.media_type,
            &content.bytes,
            request.headers.get("range"),
        );
        // What lies behind a redirect is always true.
        let mut stored = Behaviour::Truth;
        let behaviour = if path.starts_with("/v2/") {
            self.behaviours.entry(digest.clone()).or_insert(Behaviour::Truth)
        } else {
            &mut stored
        };
        let reply = if is_get {
            behaviour.twist(truth)
        } else {
            behaviour.twist_head(truth)
        };
        (digest, reply)
    }
}

/// A MiB of tags, or of descriptors, that no page before had.
fn endless_page(path: &str, number: usize) -> Reply {
    let entries = 0..8 * 1024;
    let page = if path.ends_with("/tags/list") {
        let tags: Vec<_> = entries.map(|entry| format!("{number:08}-{entry:0119}")).collect();
        serde_json::json!({ "tags": tags })
    } else {
        let descriptor =
            serde_json::json!({ "mediaType": "a/b", "digest": "sha256:".to_owned() + &"0".repeat(64), "size": 1 });
        serde_json::json!({ "manifests": vec![descriptor; entries.len()] })
    };
    let next = format!("<{path}?page={number}>; rel=\"next\"");
    Reply::short(200, "application/json", &page.to_string()).header("Link", next)
}

fn accept_all(listener: &TcpListener, shelf: &Arc<Mutex<Shelf>>) {
    while let Ok((stream, _)) = listener.accept() {
        let (stream, shelf) = (Arc::new(stream), Arc::clone(shelf));
        lock(&shelf).connections.push(Arc::downgrade(&stream));
        // A client that goes away in the middle is an everyday event.
        thread::spawn(move || serve_connection(&stream, &shelf).unwrap_or_default());
    }
}

fn serve_connection(stream: &TcpStream, shelf: &Mutex<Shelf>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut answered = false;
    while let Some((request_line, headers)) = read_head(&mut reader)? {
        let forgets = lock(shelf).forgets.filter(|_| answered);
        match forgets {
            Some(Forgets::Reset) => {
                rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
                return Ok(());
            }
            // Until the client closes it.
            Some(Forgets::Silence) => while read_head(&mut reader)?.is_some() {},
            None => {}
        }
        if forgets.is_some() {
            return Ok(());
        }
        answered = true;
        let mut words = request_line.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let request = RecordedRequest {
            method,
            target,
            headers,
        };
        let (digest, reply) = lock(shelf).answer(&request);
        let far = lock(shelf).latency;
        thread::sleep(far);
        reply.wait();
        let mut writer = CountedWriter { stream, shelf, digest };
        writer.stream.write_all(reply.head().as_bytes())?;
        if request.method != "HEAD" {
            reply.write_body(&mut writer)?;
        }
        if reply.closes() {
            return stream.shutdown(Shutdown::Both);
        }
    }
    Ok(())
}

/// Counts what was handed to the socket while it is sent, so that a test can look during a stall.
struct CountedWriter<'a> {
    stream: &'a TcpStream,
    shelf: &'a Mutex<Shelf>,
    digest: String,
}

impl Write for CountedWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(bytes)?;
        if let Some(count) = lock(self.shelf).counts.get_mut(&self.digest) {
            count.body_bytes += written as u64;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A test that failed while it held the lock has said so already.
fn lock(shelf: &Mutex<Shelf>) -> MutexGuard<'_, Shelf> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}
