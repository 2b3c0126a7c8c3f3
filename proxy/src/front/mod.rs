//! The OCI pull front: what every client speaks to, at the mirror and at every peer alike.
//!
//! It parses, asks `Content` and answers; it decides nothing about where content comes from.

mod blob;
mod budget;
mod error;
mod list;
mod manifest;
mod multipart;
mod name;
mod range;
mod response;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{ConnectInfo, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Response, Uri, header},
    routing::any,
};
pub use error::error_response;
pub use name::UpstreamNames;
#[cfg(any(test, fuzzing))]
pub(crate) use range::{RequestedRange, asked};

use piecemeal_http::{SendfileQueue, Slot};
use piecemeal_proto::NodeId;

use crate::{
    Content, Nodes, OpenBlob, Pulls, Suspicions,
    nodes::{self, RefuseClaimError},
    pulls::{PullKind, PullOutcome},
};
use blob::Delivery;
use budget::Budget;
use name::{Endpoint, Target};
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

/// The routes under `/v2/`.
pub(crate) fn front_router(front: Arc<Front>) -> Router {
    Router::new()
        .route("/v2", any(serve))
        .route("/v2/", any(serve))
        .route("/v2/{*path}", any(serve))
        .with_state((front, Budget::default()))
}

async fn serve(
    State((front, budget)): State<(Arc<Front>, Budget)>,
    sendfile: Option<Extension<SendfileQueue>>,
    slot: Option<Extension<Slot>>,
    client: Option<Extension<ConnectInfo<SocketAddr>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    let connection = Connection {
        sendfile: sendfile.map(|Extension(sendfile)| sendfile),
        slot: slot.map(|Extension(slot)| slot),
        client: client.map(|Extension(ConnectInfo(address))| address.ip()),
        budget,
    };
    let mut response = front.answer(&method, &uri, &headers, connection).await;
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
    async fn answer(&self, method: &Method, uri: &Uri, headers: &HeaderMap, connection: Connection) -> Response<Body> {
        if method != Method::GET && method != Method::HEAD {
            return error::unsupported(method);
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let target = match self.names.target(uri.path(), uri.query(), host) {
            Ok(target) => target,
            Err(response) => return *response,
        };
        let node = match self.admission.node(headers, method, uri) {
            Ok(node) => node,
            Err(refusal) => return nodes::respond(refusal),
        };
        let caller = match self.admission.caller(headers, node, connection.client) {
            Ok(caller) => caller,
            Err(error) => return error_response(&error, "UNSUPPORTED"),
        };
        // Where all clients are local, none has proven an identity.
        if let (Some(_), Some(node), Some(slot)) = (&self.admission.nodes, caller.node, &connection.slot) {
            slot.belongs_to(node);
        }
        let namespace = target.namespace.clone();
        let mut response = self.pull(&caller, method, uri, headers, target, connection).await;
        // Only a client that named the upstream by `ns` expects to hear that it was understood.
        if let Some(namespace) = namespace.and_then(|name| HeaderValue::from_str(&name).ok()) {
            response.headers_mut().insert("oci-namespace", namespace);
        }
        response
    }

    async fn pull(
        &self,
        caller: &Caller,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        target: Target,
        connection: Connection,
    ) -> Response<Body> {
        let head = method == Method::HEAD;
        match target.endpoint {
            Endpoint::Ping => base()
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from("{}"))
                .expect("constant headers"),
            Endpoint::Manifest(at, reference) => {
                let found = self.content.manifests.manifest(caller, &at, &reference).await;
                self.pulls.manifest(connection.client, &at, &reference, &found);
                match found {
                    Ok(found) => manifest::respond(found, head),
                    Err(error) => error_response(&error, "MANIFEST_UNKNOWN"),
                }
            }
            Endpoint::List(at, query) => match self.content.manifests.list(caller, &at, &query).await {
                Ok(found) => {
                    self.pulls.count(PullKind::List, PullOutcome::Miss);
                    list::respond(found, &query, &at, uri, head)
                }
                Err(error) => {
                    self.pulls.count(PullKind::List, PullOutcome::of(&error));
                    error_response(&error, "NAME_UNKNOWN")
                }
            },
            Endpoint::Blob(at, digest) if head => match self.content.stat(caller, &at, &digest).await {
                Ok(blob_bytes) => blob::respond_head(&digest, blob_bytes),
                Err(error) => error_response(&error, "BLOB_UNKNOWN"),
            },
            Endpoint::Blob(at, digest) => match self.content.open(caller, &at, &digest).await {
                Ok(open) => {
                    let local = matches!(open, OpenBlob::Complete(_));
                    let delivery = Delivery {
                        sendfile: connection.sendfile,
                        budget: connection.budget,
                        client: connection.client,
                        suspicions: self.suspicions.clone(),
                        pull: self.pulls.blob(connection.client, &at, local),
                    };
                    blob::respond(open, &digest, headers.get(header::RANGE), delivery)
                }
                Err(error) => {
                    self.pulls.count(PullKind::Blob, PullOutcome::of(&error));
                    error_response(&error, "BLOB_UNKNOWN")
                }
            },
        }
    }
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
