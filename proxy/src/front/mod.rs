//! The OCI pull front: what every client speaks to, at the mirror and at every peer alike.
//!
//! It parses, asks `Content` and answers; it decides nothing about where content comes from.

mod blob;
mod budget;
mod error;
mod host;
mod list;
mod logins;
mod manifest;
mod name;
mod passed_by;
mod path;
mod range;
mod response;
mod upstream_names;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Response, Uri, header, request::Parts},
};
pub use error::error_response;
pub(crate) use logins::Logins;
pub(crate) use passed_by::PassedBy;
#[cfg(any(test, fuzzing))]
pub(crate) use range::{RequestedRange, asked};
pub use upstream_names::UpstreamNames;

use piecemeal_http::{SendfileQueue, Slot};
use piecemeal_proto::NodeId;

use crate::{
    Content, Nodes, OpenBlob, Pulls, Suspicions,
    nodes::{self, RefuseClaimError},
    pulls::{PullKind, PullOutcome},
};
use blob::Delivery;
use budget::Budget;
use name::{Asked, Endpoint, Named, Target};
use piecemeal_store::Repository;
use piecemeal_upstream::{Caller, PullError, via};
use response::base;

/// `Docker-Distribution-API-Version`: by it old clients tell a registry from a captive portal.
const API_VERSION: (HeaderName, HeaderValue) = (
    HeaderName::from_static("docker-distribution-api-version"),
    HeaderValue::from_static("registry/2.0"),
);

/// The front's state.
pub(crate) struct Front {
    pub content: Content,
    pub names: UpstreamNames,
    /// Counts and tells what clients pull.
    pub pulls: Pulls,
    /// Records which client asks for a complete blob, and gets it.
    pub suspicions: Suspicions,
    pub admission: Admission,
    pub logins: Logins,
    pub passed_by: PassedBy,
}

/// Facts by which the front identifies its callers.
pub struct Admission {
    /// The site's nodes; `None` where there are none.
    pub nodes: Option<Arc<Nodes>>,
    /// The node that every client is on, where clients are all local.
    pub own: Option<NodeId>,
    /// This daemon: a request that has passed it already is a loop.
    pub id: NodeId,
}

/// The routes under `/v2/`, and the answer to every other path.
pub(crate) fn front_router(front: Arc<Front>) -> Router {
    // No route: the path is decoded before it is read, and what has no answer gets the error of a registry.
    Router::new().fallback(serve).with_state((front, Budget::default()))
}

async fn serve(State((front, budget)): State<(Arc<Front>, Budget)>, request: Request) -> Response<Body> {
    let (asked, _) = request.into_parts();
    let client = asked.extensions.get::<ConnectInfo<SocketAddr>>();
    let connection = Connection {
        sendfile: asked.extensions.get().cloned(),
        slot: asked.extensions.get().cloned(),
        client: client.map(|ConnectInfo(address)| address.ip()),
        budget,
    };
    let mut response = front.answer(&asked, connection).await;
    let (name, value) = API_VERSION;
    response.headers_mut().insert(name, value);
    response
}

/// The connection that a request came over.
struct Connection {
    sendfile: Option<SendfileQueue>,
    slot: Option<Slot>,
    client: Option<IpAddr>,
    budget: Budget,
}

impl Front {
    async fn answer(&self, asked: &Parts, connection: Connection) -> Response<Body> {
        let (method, uri, headers) = (&asked.method, &asked.uri, &asked.headers);
        let host = match host::host(asked) {
            Ok(host) => host,
            Err(response) => return *response,
        };
        if method != Method::GET && method != Method::HEAD {
            return error::unsupported(method);
        }
        let node = match self.admission.node(headers, method, uri) {
            Ok(node) => node,
            Err(refusal) => return nodes::respond(refusal),
        };
        let words = Asked {
            path: uri.path(),
            query: uri.query(),
            host,
            by_node: self.admission.nodes.is_some() && node.is_some(),
        };
        let target = match self.names.target(words) {
            Ok(target) => target,
            Err(response) => return *response,
        };
        let caller = match self.admission.caller(headers, node, connection.client) {
            Ok(caller) => caller,
            Err(error) => return error_response(&error, "UNSUPPORTED"),
        };
        // Where all clients are local, none has proven an identity.
        if let (Some(_), Some(node), Some(slot)) = (&self.admission.nodes, caller.node, &connection.slot) {
            slot.belongs_to(node);
        }
        let mut response = self.pull(&caller, asked, &target, connection).await;
        // Only a client that named the upstream by `ns` expects to hear that it was understood.
        if let Some(namespace) = target.namespace.and_then(|name| HeaderValue::from_str(&name).ok()) {
            response.headers_mut().insert("oci-namespace", namespace);
        }
        response
    }

    async fn pull(&self, caller: &Caller, asked: &Parts, target: &Target, connection: Connection) -> Response<Body> {
        let (head, content) = (asked.method == Method::HEAD, &self.content);
        match &target.endpoint {
            Endpoint::Ping(None) => pong(),
            Endpoint::Ping(Some(upstream)) => match content.source.ping(caller, upstream).await {
                Ok(()) => pong(),
                Err(error) => error_response(&error, "UNSUPPORTED"),
            },
            Endpoint::Manifest(at, reference) => {
                let ask = |caller| async move { content.manifests.manifest(&caller, at, reference).await };
                let found = self.with_right(caller, target.named, at, ask).await;
                self.pulls.manifest(connection.client, at, reference, &found);
                match found {
                    Ok(found) => manifest::respond(found, head),
                    Err(error) => error_response(&error, "MANIFEST_UNKNOWN"),
                }
            }
            Endpoint::List(at, query) => {
                let ask = |caller| async move { content.manifests.list(&caller, at, query).await };
                match self.with_right(caller, target.named, at, ask).await {
                    Ok(found) => {
                        self.pulls.count(PullKind::List, PullOutcome::Miss);
                        list::respond(found, query, at, &asked.uri, head)
                    }
                    Err(error) => {
                        self.pulls.count(PullKind::List, PullOutcome::of(&error));
                        error_response(&error, "NAME_UNKNOWN")
                    }
                }
            }
            Endpoint::Blob(at, digest) if head => {
                let ask = |caller| async move { content.stat(&caller, at, digest).await };
                match self.with_right(caller, target.named, at, ask).await {
                    Ok(blob_bytes) => blob::respond_head(digest, blob_bytes),
                    Err(error) => error_response(&error, "BLOB_UNKNOWN"),
                }
            }
            Endpoint::Blob(at, digest) => {
                let ask = |caller| async move { content.open(&caller, at, digest).await };
                match self.with_right(caller, target.named, at, ask).await {
                    Ok(open) => {
                        let local = matches!(open, OpenBlob::Complete(_));
                        let delivery = Delivery {
                            sendfile: connection.sendfile,
                            budget: connection.budget,
                            client: connection.client,
                            suspicions: self.suspicions.clone(),
                            pull: self.pulls.blob(connection.client, at, local),
                        };
                        blob::respond(open, digest, asked.headers.get(header::RANGE), delivery)
                    }
                    Err(error) => {
                        self.pulls.count(PullKind::Blob, PullOutcome::of(&error));
                        error_response(&error, "BLOB_UNKNOWN")
                    }
                }
            }
        }
    }

    /// Asks with the caller's right. The login of a client that names the registry by path is for this daemon's address, and goes to
    /// no registry that serves the repository without one.
    async fn with_right<T, F>(
        &self,
        caller: &Caller,
        named: Named,
        at: &Repository,
        ask: impl Fn(Caller) -> F,
    ) -> Result<T, PullError>
    where
        F: Future<Output = Result<T, PullError>>,
    {
        let by_path = named == Named::Path;
        let bare = if by_path {
            self.logins.withheld(caller, at, Instant::now())
        } else {
            None
        };
        let first = bare.as_ref().unwrap_or(caller);
        let mut found = ask(first.clone()).await;
        if by_path && first.credential.is_none() && matches!(found, Err(PullError::Denied { .. })) {
            self.logins.asked_for(at, Instant::now());
            if bare.is_some() {
                found = ask(caller.clone()).await;
            }
        }
        if let Err(error) = &found {
            self.passed_by.note(caller, named, at, error);
        }
        found
    }
}

/// The answer to a ping of what asks for no credential.
fn pong() -> Response<Body> {
    base()
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from("{}"))
        .expect("constant headers")
}

impl Admission {
    fn node(&self, headers: &HeaderMap, method: &Method, uri: &Uri) -> Result<Option<NodeId>, RefuseClaimError> {
        let Some(nodes) = &self.nodes else {
            return Ok(self.own);
        };
        let admitted = nodes.admit(headers, method, uri)?;
        Ok(admitted.map(|admitted| admitted.holder))
    }

    fn caller(&self, headers: &HeaderMap, node: Option<NodeId>, address: Option<IpAddr>) -> Result<Caller, PullError> {
        let caller = Caller::of_request(headers, node, address);
        let own = via(self.id);
        if caller
            .via
            .as_ref()
            .is_some_and(|path| path.split(", ").any(|host| host == own))
        {
            return Err(PullError::Loop(
                "this request has returned to the mirror that sent it: an upstream's URL leads to this mirror"
                    .to_owned(),
            ));
        }
        Ok(caller)
    }
}
