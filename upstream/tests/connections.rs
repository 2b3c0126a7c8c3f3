//! Hosts on loopback that drop connections: what fails on a connection that had been idle is tried once on a new one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use piecemeal_proto::{AuthorityKey, NodeId, NodeKey, Reference};
use piecemeal_store::Repository;
use piecemeal_upstream::{
    Caller, ClientConfig, HttpProxy, NodeIdentity, PullError, Served, Upstream, UpstreamConfig, Upstreams, mirror_route,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

const UPSTREAM: &str = "a.test";
const MANIFEST: &str = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;
/// More than any exchange may take here, and less than its limit of ten seconds.
const SOON: Duration = Duration::from_secs(4);

/// What a host does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Deed {
    Answer,
    /// Ends the connection in order.
    Close,
    /// Ends it by a reset, as a NAT that has forgotten it.
    Reset,
    /// Says nothing, as behind a NAT that drops what it has forgotten.
    Silence,
    /// Ends the connection within the status line.
    HalfAStatusLine,
    /// Ends the connection within the body.
    HalfABody,
    /// Answers late.
    Slow(Duration),
}

/// Deeds for the first request of a connection and for the others.
#[derive(Clone, Copy, Debug)]
struct Manner {
    first: Deed,
    later: Deed,
}

const HONEST: Manner = Manner {
    first: Deed::Answer,
    later: Deed::Answer,
};

/// A host. Requests that no test makes, those of probes, are answered.
#[derive(Clone)]
struct Host {
    address: SocketAddr,
    /// Requests of the test.
    asked: Arc<AtomicUsize>,
}

impl Host {
    /// `answer`: the whole answer to the head of a request, without its length.
    async fn start(manner: Manner, answer: impl Fn(&str) -> String + Clone + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, manner, answer.clone(), Arc::clone(&counted)));
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn upstream(&self) -> Arc<Upstream> {
        install_provider();
        let url = format!("http://{}", self.address).parse().unwrap();
        let config = UpstreamConfig::new(UPSTREAM.to_owned(), vec![url]);
        let client = ClientConfig {
            proxy: HttpProxy::None,
            ..ClientConfig::default()
        };
        let upstreams = Upstreams::new(&[config], &client, NodeId([1; 16])).unwrap();
        upstreams.get(UPSTREAM).unwrap()
    }

    /// The same host as a node's mirror.
    fn mirror(&self) -> Arc<Upstream> {
        install_provider();
        let authority = AuthorityKey::from_seed([1; 32]);
        let identity = NodeIdentity::new(Arc::new(NodeKey::from_seed([2; 32])), &authority.join_key());
        let url = format!("http://{}", self.address).parse().unwrap();
        let route = mirror_route(authority.public());
        let names = [UPSTREAM.to_owned()].into_iter();
        let client = ClientConfig::default();
        let direct = Upstreams::new(&[], &client, NodeId([1; 16])).unwrap();
        let upstreams = Upstreams::behind_mirror(names, &url, &route, identity, &direct, &client);
        upstreams.get(UPSTREAM).unwrap()
    }
}

fn install_provider() {
    // Another test may have said so before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

async fn serve(
    stream: TcpStream,
    manner: Manner,
    answer: impl Fn(&str) -> String,
    asked: Arc<AtomicUsize>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut deed = manner.first;
    loop {
        let Some(head) = read_head(&mut stream).await? else {
            return Ok(());
        };
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let is_tests = path.contains("/app/") || path.contains("/token") || path.contains("/stored");
        // The daemon's own question is a HEAD.
        if is_tests && method == "GET" {
            asked.fetch_add(1, Ordering::Relaxed);
        }
        let said = answer(&head);
        let (told, body) = said.split_once("\r\n\r\n").unwrap();
        let told = format!("{told}\r\nContent-Length: {}\r\n\r\n", body.len());
        let body = if method == "HEAD" { "" } else { body };
        match deed {
            Deed::Answer => {}
            Deed::Slow(time) => tokio::time::sleep(time).await,
            Deed::Close => return Ok(()),
            Deed::Reset => return stream.get_ref().set_zero_linger(),
            Deed::Silence => std::future::pending().await,
            Deed::HalfAStatusLine => return stream.write_all(b"HTTP/1.1 20").await,
            Deed::HalfABody => {
                stream.write_all(told.as_bytes()).await?;
                return stream.write_all(&body.as_bytes()[..body.len() / 2]).await;
            }
        }
        stream.write_all(format!("{told}{body}").as_bytes()).await?;
        deed = manner.later;
    }
}

/// The head of the next request.
async fn read_head(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<String>> {
    let mut head = String::new();
    if stream.read_line(&mut head).await? == 0 {
        return Ok(None);
    }
    while stream.read_line(&mut head).await? > 2 {}
    Ok(Some(head))
}

fn manifest() -> String {
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    format!("HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\n\r\n{MANIFEST}")
}

fn at() -> Repository {
    Repository {
        upstream: UPSTREAM.to_owned(),
        name: "library/app".to_owned(),
    }
}

async fn pull(upstream: &Upstream) -> Result<(), PullError> {
    let reference = Reference::Tag("v1".to_owned());
    upstream.manifest(&Caller::default(), &at(), &reference).await.map(drop)
}

/// Pulls on a new connection, and then on one that has been idle.
async fn pull_twice(upstream: &Upstream, what: &str) {
    pull(upstream).await.unwrap();
    let begun = Instant::now();
    pull(upstream).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(begun.elapsed() < SOON, "{what} took {:?}", begun.elapsed());
}

/// How an idle connection ends.
const LOST: [Deed; 4] = [Deed::Close, Deed::Reset, Deed::Silence, Deed::HalfAStatusLine];

fn forgetful(later: Deed) -> Manner {
    Manner {
        first: Deed::Answer,
        later,
    }
}

#[tokio::test]
async fn a_request_that_an_idle_connection_loses_goes_out_on_a_new_one() {
    for lost in LOST {
        let registry = Host::start(forgetful(lost), |_| manifest()).await;
        pull_twice(&registry.upstream(), &format!("registry, {lost:?}")).await;
        assert_eq!(registry.asked(), 3, "once more, {lost:?}");

        let mirror = Host::start(forgetful(lost), |_| manifest()).await;
        pull_twice(&mirror.mirror(), &format!("mirror, {lost:?}")).await;
    }
}

#[tokio::test]
async fn so_does_one_to_a_token_server_and_to_a_redirects_target() {
    for lost in LOST {
        // A token of another scope than asked is not kept: each pull asks for one.
        let token = r#"{"token":"t"}"#;
        let tokens = Host::start(forgetful(lost), move |_| format!("HTTP/1.1 200 OK\r\n\r\n{token}")).await;
        let realm = tokens.address;
        let scope = "repository:other:pull";
        let refused = format!(
            "HTTP/1.1 401 X\r\nWWW-Authenticate: Bearer realm=\"http://{realm}/token\",scope=\"{scope}\"\r\n\r\n"
        );
        let registry = Host::start(HONEST, move |head| match head.contains("Bearer t") {
            true => manifest(),
            false => refused.clone(),
        })
        .await;
        pull_twice(&registry.upstream(), &format!("token server, {lost:?}")).await;
        assert!(tokens.asked() > 1, "each pull asks for one");

        let storage = Host::start(forgetful(lost), |_| manifest()).await;
        let stored = storage.address;
        let registry = Host::start(HONEST, move |head| match head.contains("/app/") {
            true => format!("HTTP/1.1 307 X\r\nLocation: http://{stored}/stored\r\n\r\n"),
            false => manifest(),
        })
        .await;
        pull_twice(&registry.upstream(), &format!("storage, {lost:?}")).await;
    }
}

#[tokio::test]
async fn so_does_a_downloads() {
    let blob = "b".repeat(1000);
    let digest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
    for lost in LOST {
        let body = blob.clone();
        let registry = Host::start(forgetful(lost), move |_| format!("HTTP/1.1 200 OK\r\n\r\n{body}")).await;
        let upstream = registry.upstream();
        for _ in 0..2 {
            let (caller, at) = (Caller::default(), at());
            let answer = upstream.blob(&caller, &at, &digest, 0, None, Served::NotYet).await;
            let body = match answer {
                Ok(answer) => answer.body.text().await.unwrap(),
                Err(error) => panic!("{lost:?}: {error}"),
            };
            assert_eq!(body, blob, "{lost:?}");
        }
    }
}

#[tokio::test]
async fn a_probe_takes_no_lost_connection_for_a_lost_host() {
    let registry = Host::start(forgetful(Deed::Silence), |_| manifest()).await;
    let upstream = registry.upstream();
    pull(&upstream).await.unwrap();
    assert!(!upstream.is_lost().await);
    assert!(!upstream.is_lost().await);
}

#[tokio::test]
async fn what_fails_on_a_new_connection_is_not_repeated() {
    for failing in [Deed::Close, Deed::Reset, Deed::HalfAStatusLine] {
        let manner = Manner {
            first: failing,
            later: failing,
        };
        let registry = Host::start(manner, |_| manifest()).await;
        pull(&registry.upstream()).await.unwrap_err();
        assert_eq!(registry.asked(), 1, "{failing:?}");
    }
    let slow = Deed::Slow(Duration::from_millis(1500));
    let manner = Manner {
        first: slow,
        later: slow,
    };
    let registry = Host::start(manner, |_| manifest()).await;
    pull(&registry.upstream()).await.unwrap();
    assert_eq!(registry.asked(), 1, "a slow answer on a new connection is waited for");
}

#[tokio::test]
async fn bytes_that_came_before_a_silence_do_not_make_it_a_busy_link() {
    let body = "b".repeat(1000);
    let registry = Host::start(forgetful(Deed::Silence), move |head| match head.contains("/blobs/") {
        true => format!("HTTP/1.1 200 OK\r\n\r\n{body}"),
        false => manifest(),
    })
    .await;
    let (upstream, digest) = (
        registry.upstream(),
        format!("sha256:{}", "ab".repeat(32)).parse().unwrap(),
    );
    let (caller, at) = (Caller::default(), at());
    let answer = upstream
        .blob(&caller, &at, &digest, 0, None, Served::NotYet)
        .await
        .unwrap();
    upstream
        .concurrency()
        .received(answer.body.bytes().await.unwrap().len());
    let begun = Instant::now();
    pull(&upstream).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_body_that_has_begun_is_not_asked_for_again() {
    let registry = Host::start(forgetful(Deed::HalfABody), |_| manifest()).await;
    let upstream = registry.upstream();
    pull(&upstream).await.unwrap();
    pull(&upstream).await.unwrap_err();
    assert_eq!(registry.asked(), 2);
}

#[tokio::test]
async fn a_late_answer_of_an_idle_connection_counts_when_no_new_one_comes_about() {
    let registry = Host::start(forgetful(Deed::Slow(Duration::from_millis(1500))), |_| manifest()).await;
    pull_twice(&registry.upstream(), "slow").await;
}
