//! Health check of a runtime's CRI: one call of `Version` over its socket.
//!
//! systemd counts containerd as started even when its CRI plugin has not loaded, so that only an answer proves that it has. The answer's
//! fields do not matter: request and response are empty messages, since protobuf passes over fields that it does not know.

use std::{error::Error, path::Path, time::Duration};

use tokio::{
    runtime::Builder,
    time::{Instant, sleep},
};
use tonic::{Code, Request, client::Grpc, codegen::http::uri::PathAndQuery, transport::Endpoint};
use tonic_prost::ProstCodec;

/// Waits until the CRI answers at this socket.
///
/// # Errors
/// Says what it answered last, if it does not within that time.
pub(crate) fn wait(socket: &Path, patience: Duration) -> Result<(), String> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot ask its CRI: {error}"))?;
    runtime.block_on(async {
        let end = Instant::now() + patience;
        loop {
            let Err(why) = ask(socket).await else { return Ok(()) };
            if Instant::now() >= end {
                return Err(format!("its CRI does not answer: {why}"));
            }
            sleep(INTERVAL).await;
        }
    })
}

async fn ask(socket: &Path) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(|error| cause(&error))?;
    let endpoint = endpoint.connect_timeout(CALL_TIMEOUT).timeout(CALL_TIMEOUT);
    let channel = endpoint.connect().await.map_err(|error| cause(&error))?;
    let mut client = Grpc::new(channel);
    let mut why = String::new();
    for version in VERSIONS {
        client.ready().await.map_err(|error| cause(&error))?;
        let path = PathAndQuery::from_static(version);
        let answer = client
            .unary(Request::new(()), path, ProstCodec::<(), ()>::default())
            .await;
        why = match answer {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::Unimplemented => "its CRI plugin has not loaded".to_owned(),
            Err(status) => cause(&status),
        };
    }
    Err(why)
}

/// The innermost cause, which names the socket's error. The outer ones say only that a transport failed.
fn cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// The call in today's API, and in that of containerd before 1.6.
const VERSIONS: [&str; 2] = [
    "/runtime.v1.RuntimeService/Version",
    "/runtime.v1alpha2.RuntimeService/Version",
];
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        future::{Ready, ready},
        task::{Context, Poll},
    };

    use tempfile::TempDir;
    use tokio::{net::UnixListener, runtime::Runtime};
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::{
        Response, Status,
        body::Body,
        codegen::{BoxFuture, Service, http},
        server::{Grpc, NamedService, UnaryService},
        service::Routes,
        transport::Server,
    };

    use super::*;

    /// A CRI plugin that has loaded.
    #[derive(Clone)]
    struct Cri;

    struct Version;

    impl NamedService for Cri {
        const NAME: &'static str = "runtime.v1.RuntimeService";
    }

    impl Service<http::Request<Body>> for Cri {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<Self::Response, Infallible>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            Box::pin(async { Ok(Grpc::new(ProstCodec::<(), ()>::default()).unary(Version, request).await) })
        }
    }

    impl UnaryService<()> for Version {
        type Response = ();
        type Future = Ready<Result<Response<()>, Status>>;

        fn call(&mut self, _: Request<()>) -> Self::Future {
            ready(Ok(Response::new(())))
        }
    }

    /// The result of the check of a socket at which `serve` listens.
    fn said<T: Future<Output = ()> + Send + 'static>(serve: impl FnOnce(UnixListener) -> T) -> Result<(), String> {
        let (dir, server) = (TempDir::new().unwrap(), Runtime::new().unwrap());
        let socket = dir.path().join("cri.sock");
        let listener = server.block_on(async { UnixListener::bind(&socket).unwrap() });
        server.spawn(serve(listener));
        wait(&socket, Duration::ZERO)
    }

    fn said_of(routes: Routes) -> Result<(), String> {
        said(|listener| async {
            let serving = Server::builder().add_routes(routes);
            serving
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        })
    }

    #[test]
    fn a_message_is_a_yes_and_an_end_without_one_is_a_no() {
        assert_eq!(said_of(Routes::new(Cri)), Ok(()));
        let no = said_of(Routes::default()).unwrap_err();
        assert!(no.contains("has not loaded"), "{no}");
        let broken = said(|listener| async move {
            while let Ok((stream, _)) = listener.accept().await {
                drop(stream);
            }
        });
        assert!(broken.is_err());
    }

    #[test]
    fn a_socket_without_a_listener_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = wait(&dir.path().join("none.sock"), Duration::ZERO).unwrap_err();
        assert!(error.contains("No such file"), "{error}");
    }
}
