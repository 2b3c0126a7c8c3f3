//! A registry on loopback that leads elsewhere: answers of its token server and of its redirects' targets concern those hosts alone.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Response, StatusCode, header},
};
use piecemeal_proto::{NodeId, Reference};
use piecemeal_store::Repository;
use piecemeal_upstream::{Caller, ClientConfig, Credential, HttpProxy, PullError, Upstream, UpstreamConfig, Upstreams};
use tokio::net::TcpListener;

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
        // Another test may have said so before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = format!("http://{}", self.address).parse().unwrap();
        let config = UpstreamConfig::new(UPSTREAM.to_owned(), vec![url]);
        let client = ClientConfig {
            proxy: HttpProxy::None,
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

async fn pull(upstream: &Upstream, repository: &str) -> Result<(), PullError> {
    let at = Repository {
        upstream: UPSTREAM.to_owned(),
        name: repository.to_owned(),
    };
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

/// The challenge that a ping is answered with; `None`: it asks for nothing.
async fn ping(upstream: &Upstream, caller: &Caller) -> Option<String> {
    match upstream.ping(caller).await {
        Ok(()) => None,
        Err(PullError::Denied {
            status: 401, challenge, ..
        }) => Some(challenge.unwrap_or_default()),
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
