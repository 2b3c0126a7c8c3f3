//! A SOCKS proxy on loopback: it gets the names that clients ask for, and resolves them itself.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use piecemeal_proto::{NodeId, Reference};
use piecemeal_store::Repository;
use piecemeal_upstream::{Caller, ClientConfig, HttpProxy, PullError, UpstreamConfig, Upstreams};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const MANIFEST: &str = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;

/// A proxy that answers for every registry itself. Source: RFC 1928.
async fn socks(stream: &mut TcpStream, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).await?;
    let mut methods = vec![0; usize::from(greeting[1])];
    stream.read_exact(&mut methods).await?;
    stream.write_all(&[5, 0]).await?;
    let mut request = [0; 5];
    stream.read_exact(&mut request).await?;
    assert_eq!(request[..4], [5, 1, 0, 3], "a name is asked for");
    let mut target = vec![0; usize::from(request[4]) + 2];
    stream.read_exact(&mut target).await?;
    let name = String::from_utf8_lossy(&target[..target.len() - 2]).into_owned();
    asked.lock().unwrap().push(name);
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    let mut head = [0; 4096];
    assert!(stream.read(&mut head).await? > 0, "a request follows");
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let length = MANIFEST.len();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{MANIFEST}"
    );
    stream.write_all(answer.as_bytes()).await
}

async fn start() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let names = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let names = Arc::clone(&names);
            tokio::spawn(async move { socks(&mut stream, &names).await });
        }
    });
    (address, asked)
}

async fn pull(proxy: &str, host: &str) -> Result<(), PullError> {
    // Another test may have said so before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = UpstreamConfig::new("a.test".to_owned(), vec![format!("http://{host}").parse().unwrap()]);
    let client = ClientConfig {
        proxy: HttpProxy::Url {
            url: proxy.parse().unwrap(),
            no_proxy: "direct.invalid".to_owned(),
        },
        ..ClientConfig::default()
    };
    let upstreams = Upstreams::new(&[config], &client, NodeId([1; 16])).unwrap();
    let at = Repository {
        upstream: "a.test".to_owned(),
        name: "library/app".to_owned(),
    };
    let reference = Reference::Tag("v1".to_owned());
    let upstream = upstreams.get("a.test").unwrap();
    upstream.manifest(&Caller::default(), &at, &reference).await.map(drop)
}

#[tokio::test]
async fn a_socks_proxy_is_used_and_resolves_the_registrys_name_by_either_scheme() {
    for scheme in ["socks5", "socks5h"] {
        let (proxy, asked) = start().await;
        pull(&format!("{scheme}://{proxy}"), "registry.invalid").await.unwrap();
        assert_eq!(*asked.lock().unwrap(), ["registry.invalid"], "{scheme}");
        pull(&format!("{scheme}://{proxy}"), "direct.invalid")
            .await
            .unwrap_err();
        assert_eq!(
            asked.lock().unwrap().len(),
            1,
            "{scheme}: a host that is reached without"
        );
    }
}
