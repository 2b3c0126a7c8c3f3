//! A registry on loopback that leads elsewhere: answers of its token server and of its redirects' targets concern those hosts alone.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Response, StatusCode, header},
};
use piecemeal_proto::{Digest, NodeId, Reference};
use piecemeal_store::Repository;
use piecemeal_upstream::{
    Caller, ClientConfig, Credential, CredentialSource, HttpProxy, PullError, Served, Upstream, UpstreamConfig,
    Upstreams,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const UPSTREAM: &str = "a.test";
const MANIFEST: &str = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;

/// The requests to a host: the path with its query, and the credential.
type Asked = Arc<Mutex<Vec<(String, Option<String>)>>>;

#[derive(Clone)]
struct FakeHost {
    address: SocketAddr,
    asked: Asked,
}

impl FakeHost {
    async fn start(answer: impl Fn(&str, Option<&str>) -> Response<Body> + Clone + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Asked::default();
        let record = Arc::clone(&asked);
        let handler = move |request: Request| {
            let path = request.uri().to_string();
            let shown = request.headers().get(header::AUTHORIZATION);
            let shown = shown.map(|shown| shown.to_str().unwrap().to_owned());
            // No host may compress what it is asked for.
            assert_eq!(request.headers()[header::ACCEPT_ENCODING], "identity", "{path}");
            let response = answer(&path, shown.as_deref());
            record.lock().unwrap().push((path, shown));
            async move { response }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handler)).await });
        Self { address, asked }
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    fn shown(&self) -> Vec<Option<String>> {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .map(|(_, shown)| shown.clone())
            .collect()
    }

    fn upstream(&self) -> Arc<Upstream> {
        self.upstream_with(|_| {})
    }

    /// The registry that is there, with the site's password when `change` gives one.
    fn upstream_with(&self, change: impl FnOnce(&mut UpstreamConfig)) -> Arc<Upstream> {
        // Another test may have said so before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = format!("http://{}", self.address).parse().unwrap();
        let mut config = UpstreamConfig::new(UPSTREAM.to_owned(), vec![url]);
        change(&mut config);
        let client = ClientConfig {
            proxy: HttpProxy::None,
            allow_plain_credentials: true,
            ..ClientConfig::default()
        };
        let upstreams = Upstreams::new(&[config], &client, NodeId([1; 16])).unwrap();
        upstreams.get(UPSTREAM).unwrap()
    }
}

fn told(status: StatusCode) -> axum::http::response::Builder {
    Response::builder().status(status)
}

fn manifest() -> Response<Body> {
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let response = told(StatusCode::OK).header(header::CONTENT_TYPE, media_type);
    response.body(MANIFEST.into()).unwrap()
}

fn busy() -> Response<Body> {
    let response = told(StatusCode::TOO_MANY_REQUESTS).header(header::RETRY_AFTER, "60");
    response.body(Body::empty()).unwrap()
}

fn challenge(realm: &FakeHost, scope: &str) -> Response<Body> {
    let challenge = format!(r#"Bearer realm="http://{}/token",scope="{scope}""#, realm.address);
    let response = told(StatusCode::UNAUTHORIZED).header(header::WWW_AUTHENTICATE, challenge);
    response.body(Body::empty()).unwrap()
}

fn lead(to: SocketAddr) -> Response<Body> {
    let response = told(StatusCode::TEMPORARY_REDIRECT).header(header::LOCATION, format!("http://{to}/stored"));
    response.body(Body::empty()).unwrap()
}

fn at(repository: &str) -> Repository {
    Repository {
        upstream: UPSTREAM.to_owned(),
        name: repository.to_owned(),
    }
}

/// The site's own password, at a registry that serves the site with it.
fn held(config: &mut UpstreamConfig, file: &Path) {
    fs::write(file, "user:secret").unwrap();
    config.credentials = Some(CredentialSource::File(file.to_owned()));
    config.serves_site = true;
}

async fn pull(upstream: &Upstream, repository: &str) -> Result<(), PullError> {
    let at = at(repository);
    let reference = Reference::Tag("v1".to_owned());
    upstream.manifest(&Caller::default(), &at, &reference).await.map(drop)
}

#[tokio::test]
async fn a_limit_of_a_redirects_target_counts_for_that_host_and_not_for_the_registry() {
    let storage = FakeHost::start(|_, _| busy()).await;
    let led = storage.address;
    let registry = FakeHost::start(move |path, _| match path.contains("/led/") {
        true => lead(led),
        false => manifest(),
    })
    .await;
    let upstream = registry.upstream();
    for _ in 0..3 {
        let limited = pull(&upstream, "library/led").await;
        assert!(matches!(limited, Err(PullError::TooManyRequests { .. })), "{limited:?}");
    }
    assert_eq!(storage.asked(), 1, "it has asked to be left alone");
    pull(&upstream, "library/app").await.unwrap();
}

#[tokio::test]
async fn a_limit_of_a_token_server_counts_for_that_host_and_not_for_the_registry() {
    let tokens = FakeHost::start(|_, _| busy()).await;
    let realm = tokens.clone();
    let registry = FakeHost::start(move |path, _| match path.contains("/guarded") {
        true => challenge(&realm, "repository:library/guarded:pull"),
        false => manifest(),
    })
    .await;
    let upstream = registry.upstream();
    for number in 0..3 {
        let limited = pull(&upstream, &format!("library/guarded{number}")).await;
        assert!(matches!(limited, Err(PullError::TooManyRequests { .. })), "{limited:?}");
    }
    assert_eq!(tokens.asked(), 1, "it has asked to be left alone");
    pull(&upstream, "library/app").await.unwrap();
}

#[tokio::test]
async fn a_host_that_a_registry_leads_to_and_that_is_gone_does_not_make_the_registry_lost() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let led = gone.local_addr().unwrap();
    drop(gone);
    let realm = FakeHost {
        address: led,
        asked: Asked::default(),
    };
    let registry = FakeHost::start(move |path, _| match () {
        () if path.contains("/led/") => lead(led),
        () if path.contains("/guarded/") => challenge(&realm, "repository:library/guarded:pull"),
        () => manifest(),
    })
    .await;
    let upstream = registry.upstream();
    for repository in ["library/led", "library/guarded"] {
        let unanswered = pull(&upstream, repository).await.unwrap_err();
        assert!(!unanswered.is_source_lost(), "{repository}: {unanswered}");
        assert!(unanswered.to_string().contains("127.0.0.1"), "{unanswered}");
    }
    pull(&upstream, "library/app").await.unwrap();
}

#[tokio::test]
async fn a_token_is_kept_for_the_repository_that_it_was_asked_for_and_for_no_other() {
    for (scope, is_kept) in [
        ("repository:library/app:pull", true),
        ("repository:library/app:pull,push", true),
        ("repository:library/other:pull", false),
        ("repository:library/app:push", false),
    ] {
        let answer = r#"{"token":"t","expires_in":3600}"#;
        let tokens = FakeHost::start(move |_, _| told(StatusCode::OK).body(answer.into()).unwrap()).await;
        let realm = tokens.clone();
        let registry = FakeHost::start(move |_, shown| match shown {
            Some(_) => manifest(),
            None => challenge(&realm, scope),
        })
        .await;
        let upstream = registry.upstream();
        for _ in 0..2 {
            pull(&upstream, "library/app").await.unwrap();
        }
        let token = || Some("Bearer t".to_owned());
        let expected = match is_kept {
            true => vec![None, token(), token()],
            false => vec![None, token(), None, token()],
        };
        assert_eq!(registry.shown(), expected, "{scope}");
        // Nor for the one that it was asked for by mistake.
        pull(&upstream, "library/other").await.unwrap();
        assert_eq!(registry.shown()[expected.len()], None, "{scope}");
    }
}

/// What a token server's answer means: the token, its own refusal, a limit, or nothing about the registry.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Meaning {
    Refusal,
    Limit,
    Unable,
    Nonsense,
}

#[tokio::test]
async fn only_a_4xx_of_a_token_server_is_a_refusal_and_nothing_else_takes_a_right() {
    let folder = tempfile::tempdir().unwrap();
    let mut cases = vec![(429, "", Meaning::Limit)];
    cases.extend([400, 401, 403, 404, 451].map(|status| (status, "", Meaning::Refusal)));
    cases.extend([302, 407, 408, 425, 500, 502, 503, 504, 521].map(|status| (status, "", Meaning::Unable)));
    let texts = [
        "",
        "<html>login</html>",
        "{}",
        "[]",
        r#"{"token":""}"#,
        r#"{"token":"a\nb"}"#,
    ];
    cases.extend(texts.map(|text| (200, text, Meaning::Nonsense)));
    for (status, text, meaning) in cases {
        for is_sites in [false, true] {
            let is_well = Arc::new(AtomicBool::new(true));
            let well = Arc::clone(&is_well);
            let tokens = FakeHost::start(move |_, _| match well.load(Ordering::Relaxed) {
                true => told(StatusCode::OK).body(r#"{"token":"t"}"#.into()).unwrap(),
                false => told(StatusCode::from_u16(status).unwrap()).body(text.into()).unwrap(),
            })
            .await;
            let (realm, well) = (tokens.clone(), Arc::clone(&is_well));
            let registry = FakeHost::start(move |_, shown| match shown {
                Some("Bearer t") if well.load(Ordering::Relaxed) => manifest(),
                _ => challenge(&realm, "repository:library/app:pull"),
            })
            .await;
            let upstream = registry.upstream_with(|config| {
                if is_sites {
                    held(config, &folder.path().join("password"));
                }
            });
            pull(&upstream, "library/app").await.unwrap();
            is_well.store(false, Ordering::Relaxed);
            let error = pull(&upstream, "library/app").await.unwrap_err();
            let when = format!("{status} {text:?}, the site's: {is_sites}: {error}");
            let found = match &error {
                PullError::Denied {
                    status: 401,
                    challenges,
                    ..
                } if challenges.len() == 1 => Meaning::Refusal,
                PullError::TooManyRequests { upstream, .. } if upstream.contains("token server") => Meaning::Limit,
                PullError::Unavailable(why) if why.contains("token server 127.0.0.1") => Meaning::Unable,
                PullError::BadGateway(why) if why.contains("token server 127.0.0.1") => Meaning::Nonsense,
                _ => panic!("{when}"),
            };
            assert_eq!(found, meaning, "{when}");
            let is_allowed = upstream.allows(&Caller::default(), &at("library/app"));
            assert_eq!(is_allowed, meaning != Meaning::Refusal, "{when}");
            let password = |shown: &Option<String>| shown.as_deref().is_some_and(|shown| shown.starts_with("Basic "));
            assert_eq!(tokens.shown().iter().all(password), is_sites, "{when}");
            assert!(!registry.shown().iter().any(password), "{when}");
        }
    }
}

/// What is wrong with a token server that accepts connections.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ill {
    Silent,
    HalfAnAnswer,
    Resets,
    /// About the repositories of one owner.
    SilentAboutStrangers,
}

/// A token server that falls ill and recovers.
#[derive(Clone)]
struct TokenHost {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    ill: Arc<Mutex<Option<Ill>>>,
}

impl TokenHost {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = Self {
            address: listener.local_addr().unwrap(),
            asked: Arc::default(),
            ill: Arc::default(),
        };
        let serving = host.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        host
    }

    async fn serve(self, mut stream: TcpStream) {
        let mut request = Vec::new();
        while stream.read_buf(&mut request).await.is_ok_and(|read| read > 0) {
            if !request.ends_with(b"\r\n\r\n") {
                continue;
            }
            let is_strangers = String::from_utf8_lossy(&request).contains("stranger");
            request.clear();
            self.asked.fetch_add(1, Ordering::Relaxed);
            let ill = *self.ill.lock().unwrap();
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{\"token\":\"t\"}";
            match ill {
                Some(Ill::SilentAboutStrangers) if is_strangers => std::future::pending().await,
                None | Some(Ill::SilentAboutStrangers) => stream.write_all(answer.as_bytes()).await.unwrap(),
                Some(Ill::Silent) => std::future::pending().await,
                Some(Ill::HalfAnAnswer) => {
                    stream.write_all(&answer.as_bytes()[..answer.len() - 5]).await.unwrap();
                    std::future::pending().await
                }
                Some(Ill::Resets) => return,
            }
        }
    }

    /// A registry that wants a token of it for each repository.
    async fn guarded(&self) -> FakeHost {
        let realm = FakeHost {
            address: self.address,
            asked: Asked::default(),
        };
        let answer = move |path: &str, shown: Option<&str>| match shown {
            Some("Bearer t") => manifest(),
            _ => {
                let name = path.trim_start_matches("/v2/").split("/manifests").next().unwrap();
                challenge(&realm, &format!("repository:{name}:pull"))
            }
        };
        FakeHost::start(answer).await
    }

    fn falls(&self, ill: Option<Ill>) {
        *self.ill.lock().unwrap() = ill;
    }
}

#[tokio::test]
async fn a_token_server_that_is_lost_costs_one_bounded_wait_and_is_asked_again_later() {
    let each = [Ill::Silent, Ill::HalfAnAnswer, Ill::Resets].map(token_server_falls);
    futures_util::future::join_all(each).await;
}

async fn token_server_falls(ill: Ill) {
    let tokens = TokenHost::start().await;
    let upstream = tokens.guarded().await.upstream();
    pull(&upstream, "library/app").await.unwrap();
    tokens.falls(Some(ill));
    let before = tokens.asked.load(Ordering::Relaxed);
    // Together, and one after the other.
    let together = ["a", "b", "c"].map(|name| pull_lost(&upstream, name));
    futures_util::future::join_all(together).await;
    let together = tokens.asked.load(Ordering::Relaxed) - before;
    for number in 0..20 {
        pull_lost(&upstream, &number.to_string()).await;
    }
    let asked = tokens.asked.load(Ordering::Relaxed) - before;
    if ill != Ill::Resets {
        assert!(
            together <= 6,
            "{ill:?}: three requests and one question, and what reuses one of two idle connections once more, not {together}"
        );
        assert!(asked <= together + 1, "{ill:?}: asked {asked} times");
    }
    assert!(upstream.allows(&Caller::default(), &at("library/app")));
    tokens.falls(None);
    let is_back = async {
        while pull(&upstream, "library/again").await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), is_back).await.unwrap();
}

/// Within the time that a client waits for its status line, and some for a machine that is slow.
async fn pull_lost(upstream: &Upstream, name: &str) {
    let pulled = tokio::time::timeout(Duration::from_secs(4), pull(upstream, &format!("lost/{name}"))).await;
    let error = pulled.expect("a status line in time").unwrap_err();
    let is_lost = matches!(&error, PullError::Unavailable(why) if why.contains("token server 127.0.0.1"));
    assert!(is_lost, "{error:?}");
}

#[tokio::test]
async fn what_a_token_server_is_silent_about_loses_nothing_else() {
    let tokens = TokenHost::start().await;
    let upstream = tokens.guarded().await.upstream();
    tokens.falls(Some(Ill::SilentAboutStrangers));
    let asking = Arc::clone(&upstream);
    let stranger = tokio::spawn(async move { pull(&asking, "stranger/app").await });
    // Longer than the silence of a token server that is lost would be waited for.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    pull(&upstream, "library/app").await.unwrap();
    pull(&upstream, "library/other").await.unwrap();
    stranger.abort();
}

#[tokio::test]
async fn a_token_server_whose_name_does_not_resolve_says_nothing_about_the_registry() {
    let registry = FakeHost::start(|_, _| {
        let challenge = r#"Bearer realm="http://tokens.invalid/token",service="x""#;
        let response = told(StatusCode::UNAUTHORIZED).header(header::WWW_AUTHENTICATE, challenge);
        response.body(Body::empty()).unwrap()
    })
    .await;
    let upstream = registry.upstream();
    let error = pull(&upstream, "library/app").await.unwrap_err();
    let is_named = matches!(&error, PullError::Unavailable(why) if why.contains("tokens.invalid"));
    assert!(is_named, "{error:?}");
}

const NEGOTIATE: &str = "Negotiate YII=";
const BASIC: &str = r#"Basic realm="a, b""#;

fn challenged(challenges: &[&str], is_list: bool) -> Response<Body> {
    let mut response = told(StatusCode::UNAUTHORIZED).body(Body::empty()).unwrap();
    let fields = match is_list {
        true => vec![challenges.join(", ")],
        false => challenges.iter().map(|&challenge| challenge.to_owned()).collect(),
    };
    for field in fields {
        response
            .headers_mut()
            .append(header::WWW_AUTHENTICATE, field.parse().unwrap());
    }
    response
}

/// Every order of some challenges, in fields of their own and in one.
fn orders(challenges: &[&str]) -> Vec<(Vec<String>, bool)> {
    let mut orders: Vec<Vec<String>> = vec![vec![]];
    for _ in challenges {
        let longer = orders.iter().flat_map(|order| {
            let rest = challenges.iter().filter(|one| !order.iter().any(|known| known == *one));
            rest.map(|one| [&order[..], &[(*one).to_owned()]].concat())
                .collect::<Vec<_>>()
        });
        orders = longer.collect();
    }
    let both = |order: Vec<String>| [(order.clone(), false), (order, true)];
    orders.into_iter().flat_map(both).collect()
}

#[tokio::test]
async fn a_challenge_is_answered_wherever_it_stands_bearer_before_basic() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = FakeHost::start(|_, _| told(StatusCode::OK).body(r#"{"token":"t"}"#.into()).unwrap()).await;
    let bearer = format!(
        r#"Bearer realm="http://{}/token",scope="repository:library/app:pull,push""#,
        tokens.address
    );
    for (all, expected) in [
        (vec![NEGOTIATE, BASIC, &bearer], "Bearer t"),
        (vec![NEGOTIATE, BASIC, "NTLM"], "Basic dXNlcjpzZWNyZXQ="),
    ] {
        for (order, is_list) in orders(&all) {
            let texts = order.clone();
            let registry = FakeHost::start(move |_, shown| match shown == Some(expected) {
                true => manifest(),
                false => challenged(&texts.iter().map(String::as_str).collect::<Vec<_>>(), is_list),
            })
            .await;
            let with_password = registry.upstream_with(|config| held(config, &folder.path().join("password")));
            let pulled = pull(&with_password, "library/app").await;
            assert!(pulled.is_ok(), "{order:?}, a list: {is_list}: {pulled:?}");
            match pull(&registry.upstream(), "library/app").await {
                Ok(()) => assert_eq!(expected, "Bearer t"),
                Err(PullError::Denied { challenges, .. }) => assert_eq!(challenges, order, "a list: {is_list}"),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[tokio::test]
async fn a_registry_that_is_redirected_to_is_asked_by_its_own_rule_without_a_credential() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = FakeHost::start(|path, _| {
        let token = match path.contains("repository%3Aorg%2Freal%3Apull") {
            true => r#"{"token":"real"}"#,
            false => r#"{"token":"other"}"#,
        };
        told(StatusCode::OK).body(token.into()).unwrap()
    })
    .await;
    for states_scope in [true, false] {
        let scope = if states_scope {
            r#",scope="repository:org/real:pull""#
        } else {
            ""
        };
        let bearer = format!(
            r#"Bearer realm="http://{}/token",service="real"{scope}"#,
            tokens.address
        );
        let real = FakeHost::start(move |_, shown| match shown {
            Some("Bearer real") => manifest(),
            _ => challenged(&[NEGOTIATE, BASIC, &bearer], states_scope),
        })
        .await;
        let led = real.address;
        let vanity = FakeHost::start(move |_, _| {
            let to = format!("http://{led}/v2/org/real/manifests/v1");
            let response = told(StatusCode::TEMPORARY_REDIRECT).header(header::LOCATION, to);
            response.body(Body::empty()).unwrap()
        })
        .await;
        let upstream = vanity.upstream_with(|config| held(config, &folder.path().join("password")));
        for _ in 0..2 {
            pull(&upstream, "team/app").await.unwrap();
        }
        let token = || Some("Bearer real".to_owned());
        assert_eq!(
            real.shown(),
            [None, token(), token()],
            "the token is kept: {states_scope}"
        );
        assert!(tokens.shown().iter().all(Option::is_none), "{:?}", tokens.shown());
        // Nor does a caller's own credential go there.
        let caller = Caller {
            credential: piecemeal_upstream::Credential::bearer("callers"),
            ..Caller::default()
        };
        let reference = Reference::Tag("v1".to_owned());
        upstream.manifest(&caller, &at("team/app"), &reference).await.unwrap();
        assert_eq!(real.shown().last().unwrap(), &token());
    }
}

#[tokio::test]
async fn a_body_that_is_encoded_although_none_was_asked_for_is_a_bad_answer_in_words() {
    for coding in ["gzip", "br", "identity, zstd"] {
        let registry = FakeHost::start(move |_, _| {
            let mut response = manifest();
            response
                .headers_mut()
                .insert(header::CONTENT_ENCODING, coding.parse().unwrap());
            response
        })
        .await;
        let upstream = registry.upstream();
        let manifest = pull(&upstream, "library/app").await.unwrap_err();
        let digest = Digest::of(b"x");
        let caller = Caller::default();
        let blob = upstream
            .blob(&caller, &at("library/app"), &digest, 0, None, Served::NotYet)
            .await;
        for error in [manifest, blob.err().unwrap()] {
            let is_said = matches!(&error, PullError::BadGateway(why) if why.contains(coding));
            assert!(is_said, "{coding}: {error:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_may_have_hundreds_of_header_fields_and_no_more() {
    for (fields, is_read) in [(120, true), (500, true), (600, false)] {
        let registry = FakeHost::start(move |_, _| {
            let mut response = manifest();
            for field in 0..fields {
                let name: header::HeaderName = format!("x-h{field}").parse().unwrap();
                response.headers_mut().insert(name, "v".parse().unwrap());
            }
            response
        })
        .await;
        let pulled = pull(&registry.upstream(), "library/app").await;
        assert_eq!(pulled.is_ok(), is_read, "{fields}: {pulled:?}");
    }
}

#[tokio::test]
async fn a_redirect_is_followed_to_the_byte_that_was_sent() {
    let storage = FakeHost::start(|_, _| manifest()).await;
    for (location, expected) in [
        (
            &b"/store/it's?a=%27b%27&c=+%2B|^&d=%2f"[..],
            "/store/it's?a=%27b%27&c=+%2B|^&d=%2f",
        ),
        (b"/store/x?n=\xfc", "/store/x?n=%FC"),
    ] {
        let led = storage.address;
        let registry = FakeHost::start(move |_, _| {
            let to = [format!("http://{led}").as_bytes(), location].concat();
            let to = header::HeaderValue::from_bytes(&to).unwrap();
            let response = told(StatusCode::TEMPORARY_REDIRECT).header(header::LOCATION, to);
            response.body(Body::empty()).unwrap()
        })
        .await;
        pull(&registry.upstream(), "library/app").await.unwrap();
        let asked = storage.asked.lock().unwrap();
        assert_eq!(asked.last().unwrap().0, expected);
    }
}

/// The challenge that a ping is answered with; `None`: it asks for nothing.
async fn ping(upstream: &Upstream, caller: &Caller) -> Option<String> {
    match upstream.ping(caller).await {
        Ok(()) => None,
        Err(PullError::Denied {
            status: 401,
            challenges,
            ..
        }) => Some(challenges.join(", ")),
        Err(other) => panic!("{other}"),
    }
}

fn login(user: &str, password: &str) -> Caller {
    Caller {
        credential: Some(Credential::basic(user, password)),
        ..Caller::default()
    }
}

fn refuse(challenge: &str) -> Response<Body> {
    let response = told(StatusCode::UNAUTHORIZED).header(header::WWW_AUTHENTICATE, challenge);
    response.body(Body::empty()).unwrap()
}

fn nothing() -> Response<Body> {
    told(StatusCode::OK).body("{}".into()).unwrap()
}

#[tokio::test]
async fn however_many_clients_ping_a_registry_is_asked_once_and_its_own_challenge_is_the_answer() {
    const BASIC: &str = r#"Basic realm="clients""#;
    let registry = FakeHost::start(|_, _| refuse(BASIC)).await;
    let upstream = registry.upstream();
    let pings = (0..20).map(|_| async { ping(&upstream, &Caller::default()).await });
    let answers = futures_util::future::join_all(pings).await;
    assert!(
        answers.iter().all(|answer| answer.as_deref() == Some(BASIC)),
        "{answers:?}"
    );
    assert_eq!(registry.asked(), 1);
    assert_eq!(registry.shown(), [None]);
}

#[tokio::test]
async fn a_ping_asks_for_nothing_where_the_registry_does_not_or_says_nothing_sensible() {
    type Answer = fn() -> Response<Body>;
    let answers: [Answer; 5] = [
        nothing,
        busy,
        || told(StatusCode::NOT_FOUND).body(Body::empty()).unwrap(),
        || told(StatusCode::BAD_GATEWAY).body(Body::empty()).unwrap(),
        || told(StatusCode::UNAUTHORIZED).body(Body::empty()).unwrap(),
    ];
    for answer in answers {
        let registry = FakeHost::start(move |_, _| answer()).await;
        let upstream = registry.upstream();
        for _ in 0..3 {
            assert_eq!(ping(&upstream, &Caller::default()).await, None);
        }
        assert_eq!(registry.asked(), 1, "an answer counts for all");
    }
    let gone = FakeHost {
        address: TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap(),
        asked: Asked::default(),
    };
    assert_eq!(ping(&gone.upstream(), &Caller::default()).await, None);
    assert_eq!(
        ping(&gone.upstream(), &login("bob", "secret")).await,
        None,
        "the pull itself will say it"
    );
}

#[tokio::test]
async fn a_registry_that_serves_callers_without_a_credential_costs_its_clients_no_token() {
    let tokens = FakeHost::start(|_, _| told(StatusCode::OK).body(r#"{"token":"t"}"#.into()).unwrap()).await;
    let realm = tokens.clone();
    let registry = FakeHost::start(move |path, shown| match shown {
        Some("Bearer t") if !path.contains("/private") => manifest(),
        _ => challenge(&realm, "repository:library/app:pull"),
    })
    .await;
    let upstream = registry.upstream();
    let pinged = async || ping(&upstream, &Caller::default()).await;
    assert_eq!(pinged().await, None, "its token server serves all");
    // So do many whose repositories are all private.
    pull(&upstream, "library/private").await.unwrap_err();
    assert!(pinged().await.is_some_and(|challenge| challenge.starts_with("Bearer ")));
    pull(&upstream, "library/app").await.unwrap();
    assert_eq!(pinged().await, None, "it has public images");
    pull(&upstream, "library/private2").await.unwrap_err();
    assert_eq!(pinged().await, None, "and no other caller's refusal makes them private");
}

#[tokio::test]
async fn a_challenge_of_a_token_server_that_grants_nothing_without_a_login_is_passed_on_by_the_rule_for_realms() {
    let tokens = FakeHost::start(|_, _| told(StatusCode::UNAUTHORIZED).body(Body::empty()).unwrap()).await;
    let realm = tokens.clone();
    let registry = FakeHost::start(move |_, _| challenge(&realm, "")).await;
    let challenged = ping(&registry.upstream(), &Caller::default()).await;
    assert!(challenged.is_some_and(|challenge| challenge.contains(&tokens.address.to_string())));
    // A token server elsewhere without TLS gets no client's password.
    let elsewhere = FakeHost::start(|_, _| refuse(r#"Bearer realm="http://169.254.169.254/token""#)).await;
    assert_eq!(ping(&elsewhere.upstream(), &Caller::default()).await, None);
}

#[tokio::test]
async fn a_login_is_right_by_the_registrys_own_word_which_is_asked_once_for_each() {
    let right = "Basic Ym9iOnNlY3JldA==";
    let registry = FakeHost::start(move |_, shown| match shown {
        Some(shown) if shown == right => nothing(),
        _ => refuse(r#"Basic realm="clients""#),
    })
    .await;
    let upstream = registry.upstream();
    for _ in 0..3 {
        assert_eq!(ping(&upstream, &login("bob", "secret")).await, None);
        assert!(ping(&upstream, &login("bob", "oops")).await.is_some());
    }
    assert_eq!(registry.asked(), 2);
}
