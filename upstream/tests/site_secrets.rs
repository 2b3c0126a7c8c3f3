//! The site's own secrets in the forms that Docker's files and helpers have, at a registry on loopback and its token server.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    http::{Response, StatusCode, header},
};
use piecemeal_proto::{NodeId, Reference};
use piecemeal_store::Repository;
use piecemeal_upstream::{Caller, ClientConfig, CredentialSource, HttpProxy, PullError, UpstreamConfig, Upstreams};
use tempfile::TempDir;
use tokio::net::TcpListener;

const UPSTREAM: &str = "a.test";
const MANIFEST: &str = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;

/// Method and target of each request, its credential, and its body.
type Asked = Arc<Mutex<Vec<String>>>;

/// A registry that wants the token `good`, which its token server gives to the user `u` with the password `p` by GET, and for the
/// refresh token `REFRESH` by POST.
async fn registry() -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (asked, realm) = (Asked::default(), url.clone());
    let record = Arc::clone(&asked);
    let handler = move |request: Request| {
        let (record, realm) = (Arc::clone(&record), realm.clone());
        async move {
            let (parts, body) = request.into_parts();
            let form = String::from_utf8(to_bytes(body, 4096).await.unwrap().into()).unwrap();
            let shown = parts.headers.get(header::AUTHORIZATION);
            let shown = shown.map(|shown| shown.to_str().unwrap()).unwrap_or_default();
            let line = format!("{} {} {shown} {form}", parts.method, parts.uri);
            record.lock().unwrap().push(line);
            match parts.uri.path() {
                "/token" => {
                    let by_post = parts.method == "POST" && form.contains("refresh_token=REFRESH");
                    let by_get = parts.method == "GET" && shown == "Basic dTpw";
                    match by_post && form.contains("grant_type=refresh_token") || by_get {
                        true => told(StatusCode::OK).body(r#"{"access_token":"good"}"#.into()),
                        false => told(StatusCode::UNAUTHORIZED).body(Body::empty()),
                    }
                }
                _ if shown == "Bearer good" => told(StatusCode::OK)
                    .header(header::CONTENT_TYPE, "application/vnd.oci.image.manifest.v1+json")
                    .body(MANIFEST.into()),
                _ => {
                    let challenge = format!(
                        r#"Bearer realm="{realm}/token?account=a",service="reg",scope="repository:team/app:pull""#
                    );
                    told(StatusCode::UNAUTHORIZED)
                        .header(header::WWW_AUTHENTICATE, challenge)
                        .body(Body::empty())
                }
            }
            .unwrap()
        }
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handler)).await });
    (url, asked)
}

fn told(status: StatusCode) -> axum::http::response::Builder {
    Response::builder().status(status)
}

async fn pull(url: &str, source: CredentialSource) -> Result<(), PullError> {
    // Another test may have said so before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = UpstreamConfig {
        credentials: Some(source),
        serves_site: true,
        ..UpstreamConfig::new(UPSTREAM.to_owned(), vec![url.parse().unwrap()])
    };
    let client = ClientConfig {
        proxy: HttpProxy::None,
        allow_plain_credentials: true,
        ..ClientConfig::default()
    };
    let upstreams = Upstreams::new(&[config], &client, NodeId([1; 16])).unwrap();
    let at = Repository {
        upstream: UPSTREAM.to_owned(),
        name: "team/app".to_owned(),
    };
    let reference = Reference::Tag("v1".to_owned());
    let upstream = upstreams.get(UPSTREAM).unwrap();
    upstream.manifest(&Caller::default(), &at, &reference).await.map(drop)
}

fn written(dir: &TempDir, name: &str, text: &str) -> std::path::PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

fn helper(dir: &TempDir, user: &str, secret: &str) -> String {
    let answer = format!(r#"{{"ServerURL":"","Username":"{user}","Secret":"{secret}"}}"#);
    let script = format!("#!/bin/sh\ncat >/dev/null\necho '{answer}'\n");
    let path: &Path = &written(dir, "helper", &script);
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn secrets_are_taken_in_every_form_that_dockers_files_have() {
    let dir = tempfile::tempdir().unwrap();
    for auths in [
        r#"{"a.test":{"auth":"dTpw"}}"#,
        r#"{"https://a.test":{"auth":"dTpw"}}"#,
        r#"{"https://a.test/v2/":{"auth":"dTpw"}}"#,
        r#"{"a.test/team/app":{"auth":"dTpw"}}"#,
        r#"{"a.test":{"auth":"eDp5"},"a.test/team":{"auth":"dTpw"}}"#,
        r#"{"a.test":{"auth":"MDAwOg==","identitytoken":"REFRESH"}}"#,
        r#"{"a.test":{"registrytoken":"good"}}"#,
    ] {
        let (url, _) = registry().await;
        let path = written(&dir, "config.json", &format!(r#"{{"auths":{auths}}}"#));
        let pulled = pull(&url, CredentialSource::DockerConfig(path)).await;
        assert!(pulled.is_ok(), "{auths}: {pulled:?}");
    }
    for (user, secret) in [("u", "p"), ("<token>", "REFRESH")] {
        let (url, _) = registry().await;
        let pulled = pull(&url, CredentialSource::Helper(helper(&dir, user, secret))).await;
        assert!(pulled.is_ok(), "{user}: {pulled:?}");
    }
}

#[tokio::test]
async fn an_identity_token_goes_into_the_form_of_a_post_and_to_no_other_place() {
    let dir = tempfile::tempdir().unwrap();
    let (url, asked) = registry().await;
    pull(&url, CredentialSource::Helper(helper(&dir, "<token>", "REFRESH")))
        .await
        .unwrap();
    let asked = asked.lock().unwrap();
    let with_token: Vec<_> = asked.iter().filter(|line| line.contains("REFRESH")).collect();
    let form = "grant_type=refresh_token&client_id=piecemeal&refresh_token=REFRESH&service=reg&scope=repository%3Ateam%2Fapp%3Apull";
    assert_eq!(with_token, [&format!("POST /token?account=a  {form}")]);
}

#[tokio::test]
async fn a_secret_that_is_refused_ends_in_the_registrys_challenge() {
    let dir = tempfile::tempdir().unwrap();
    for auths in [
        r#"{"a.test":{"auth":"eDp5"}}"#,
        r#"{"a.test":{"identitytoken":"OLD"}}"#,
        r#"{"a.test":{"registrytoken":"OLD"}}"#,
    ] {
        let (url, _) = registry().await;
        let path = written(&dir, "config.json", &format!(r#"{{"auths":{auths}}}"#));
        match pull(&url, CredentialSource::DockerConfig(path)).await {
            Err(PullError::Denied {
                status: 401,
                challenges,
                ..
            }) if !challenges.is_empty() => {}
            other => panic!("{auths}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_repository_for_which_the_file_has_none_is_pulled_without_where_it_has_some_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let (url, asked) = registry().await;
    let path = written(&dir, "config.json", r#"{"auths":{"a.test/other":{"auth":"dTpw"}}}"#);
    let denied = pull(&url, CredentialSource::DockerConfig(path)).await.unwrap_err();
    assert!(matches!(denied, PullError::Denied { status: 401, .. }), "{denied}");
    assert!(!asked.lock().unwrap().iter().any(|line| line.contains("dTpw")));

    let path = written(&dir, "config.json", r#"{"auths":{"b.test":{"auth":"dTpw"}}}"#);
    let none = pull(&url, CredentialSource::DockerConfig(path)).await.unwrap_err();
    assert!(none.to_string().contains("has none for team/app"), "{none}");
}
