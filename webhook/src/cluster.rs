//! The Kubernetes API in raw JSON: what is read and written again keeps the fields that nobody here knows.

use std::time::Duration;

use http::{Method, Request, header};
use kube::Client;
use serde_json::{Value, json};
use tokio::time::timeout;

/// The name under which our fields are applied.
const FIELD_MANAGER: &str = "piecemeal-webhook";
/// How long one answer may take. The server's own limit is a minute.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// Objects of a list that come in one answer.
const PAGE: usize = 500;
/// The most objects of one list; a cluster with more of them has been asked too broadly.
const LIST_MAX: usize = 200_000;

/// A client of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster(Client);

/// Why the API has not done what was asked. No variant carries an object's content.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClusterError {
    /// Somebody else was first: the object exists already, or has changed since it was read.
    #[error("{0}")]
    Conflict(String),
    #[error("{0}; the service account lacks a right that the chart's RBAC gives")]
    Forbidden(String),
    #[error("{0}")]
    Refused(String),
    #[error("the Kubernetes API does not answer: {0}")]
    Unreachable(String),
}

impl Cluster {
    /// The cluster that this process runs in, or that `KUBECONFIG` or the usual file names.
    ///
    /// # Errors
    /// There is neither, or it cannot be read.
    pub async fn connect() -> Result<Self, ClusterError> {
        let client = Client::try_default().await.map_err(|error| {
            ClusterError::Unreachable(format!("no cluster is configured here (set KUBECONFIG): {error}"))
        })?;
        Ok(Self(client))
    }

    /// A cluster behind a client that was made elsewhere.
    pub fn new(client: Client) -> Self {
        Self(client)
    }

    pub(crate) fn client(&self) -> Client {
        self.0.clone()
    }

    /// The object at `path`; none when there is none.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn get(&self, path: &str) -> Result<Option<Value>, ClusterError> {
        self.ask(Method::GET, path, None, "").await
    }

    /// Every object of the list at `path`, page by page; `query` selects, without `limit` and `continue`.
    ///
    /// # Errors
    /// [`ClusterError`]. A list that does not exist is empty.
    pub async fn list(&self, path: &str, query: &str) -> Result<Vec<Value>, ClusterError> {
        self.pages(path, query, "application/json").await
    }

    /// Like [`Cluster::list`], the objects' metadata alone.
    pub(crate) async fn list_metadata(&self, path: &str) -> Result<Vec<Value>, ClusterError> {
        let accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        self.pages(path, "", accept).await
    }

    async fn pages(&self, path: &str, query: &str, accept: &str) -> Result<Vec<Value>, ClusterError> {
        let mut all = Vec::new();
        let mut next = String::new();
        loop {
            let page = format!("{path}?limit={PAGE}&continue={next}&{query}");
            let request = Request::get(page.trim_end_matches('&'))
                .header(header::ACCEPT, accept)
                .body(Vec::new());
            let Some(mut list) = self.send(request).await? else {
                return Ok(all);
            };
            if let Some(Value::Array(items)) = list.get_mut("items").map(Value::take) {
                all.extend(items);
            }
            match list["metadata"]["continue"].as_str() {
                Some(token) if !token.is_empty() && all.len() < LIST_MAX => token.clone_into(&mut next),
                _ => return Ok(all),
            }
        }
    }

    /// Creates `object` in the list at `path`. `is_dry_run`: the server checks and keeps nothing.
    ///
    /// # Errors
    /// [`ClusterError::Conflict`]: there is one of that name already.
    pub async fn create(&self, path: &str, object: &Value, is_dry_run: bool) -> Result<Value, ClusterError> {
        let dry_run = if is_dry_run { "&dryRun=All" } else { "" };
        let target = format!("{path}?fieldManager={FIELD_MANAGER}{dry_run}");
        let answer = self
            .ask(Method::POST, &target, Some(object), "application/json")
            .await?;
        // A namespace that has been deleted meanwhile: nothing was made.
        answer.ok_or_else(|| ClusterError::Refused(format!("{path} does not exist")))
    }

    /// Replaces the object at `path`; its `resourceVersion` is the one that it was read with.
    ///
    /// # Errors
    /// [`ClusterError::Conflict`]: it has changed since.
    pub(crate) async fn replace(&self, path: &str, object: &Value) -> Result<Value, ClusterError> {
        let path = format!("{path}?fieldManager={FIELD_MANAGER}");
        let answer = self.ask(Method::PUT, &path, Some(object), "application/json").await?;
        answer.ok_or_else(|| ClusterError::Conflict(format!("{path} is gone")))
    }

    /// Applies our fields of the object at `path`, and takes those that others hold. With a `resourceVersion` in it, only onto that
    /// version.
    ///
    /// # Errors
    /// [`ClusterError::Conflict`]: it is another version.
    pub(crate) async fn apply(&self, path: &str, object: &Value) -> Result<Value, ClusterError> {
        let path = format!("{path}?fieldManager={FIELD_MANAGER}&force=true");
        let answer = self
            .ask(Method::PATCH, &path, Some(object), "application/apply-patch+yaml")
            .await?;
        answer.ok_or_else(|| ClusterError::Refused(format!("{path} does not exist")))
    }

    /// Deletes the object at `path` if it is still `version` (`metadata.uid` and `resourceVersion`), or in whatever version. One
    /// that is gone is fine.
    ///
    /// # Errors
    /// [`ClusterError::Conflict`]: it has changed since.
    pub async fn delete(&self, path: &str, version: Option<&Value>) -> Result<(), ClusterError> {
        let options = version.map(|metadata| {
            let preconditions = json!({"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]});
            json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions})
        });
        self.ask(Method::DELETE, path, options.as_ref(), "application/json")
            .await
            .map(|_| ())
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        content_type: &str,
    ) -> Result<Option<Value>, ClusterError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, "application/json");
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        self.send(request.body(body)).await
    }

    /// None for 404.
    async fn send(&self, request: http::Result<Request<Vec<u8>>>) -> Result<Option<Value>, ClusterError> {
        let request = request.map_err(|error| ClusterError::Refused(error.to_string()))?;
        let asked = format!("{} {}", request.method(), request.uri().path());
        // As text, and read here: the client would log an answer that it cannot read, secret or not.
        let answer = timeout(ANSWER_TIME_MAX, self.0.request_text(request)).await;
        let text = match answer {
            Err(_) => {
                return Err(ClusterError::Unreachable(format!(
                    "{asked} takes more than {} s",
                    ANSWER_TIME_MAX.as_secs()
                )));
            }
            Ok(Ok(text)) => text,
            Ok(Err(kube::Error::Api(status))) => {
                let message = format!("{asked}: {}", status.message);
                return match status.code {
                    404 => Ok(None),
                    409 => Err(ClusterError::Conflict(message)),
                    403 => Err(ClusterError::Forbidden(message)),
                    429 | 500.. => Err(ClusterError::Unreachable(message)),
                    _ => Err(ClusterError::Refused(message)),
                };
            }
            Ok(Err(error)) => return Err(ClusterError::Unreachable(format!("{asked}: {error}"))),
        };
        match serde_json::from_str(&text) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(ClusterError::Unreachable(format!("{asked}: the answer is no JSON"))),
        }
    }
}

/// Whether `text` can be an object's name, so that it is safe in a path.
pub(crate) fn is_object_name(text: &str) -> bool {
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= 253
        && text
            .bytes()
            .all(|byte| is_alphanumeric(&byte) || byte == b'-' || byte == b'.')
        && text.as_bytes().first().is_some_and(is_alphanumeric)
        && text.as_bytes().last().is_some_and(is_alphanumeric)
}

/// The path of a namespaced core object, or of the list when `name` is empty.
pub(crate) fn core_path(namespace: &str, kind: &str, name: &str) -> String {
    let path = format!("/api/v1/namespaces/{namespace}/{kind}");
    if name.is_empty() {
        path
    } else {
        format!("{path}/{name}")
    }
}
