//! Client of the Kubernetes API in raw JSON: an object that is read and written again keeps the fields that this version does
//! not know.

use std::time::Duration;

use http::{Method, Request, header};
use kube::{Client, Config, config::KubeConfigOptions};
use serde_json::{Value, json};
use tokio::time::timeout;

/// The name under which our fields are applied.
const FIELD_MANAGER: &str = "piecemeal-webhook";
/// How long one answer may take. The server's own limit is a minute.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// Objects of a list that come in one answer.
const PAGE: usize = 500;
/// The most pages of one list; a cluster with more has been asked too broadly.
const PAGES_MAX: usize = 1000;

/// A client of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster(Client);

/// Why the API has not done what was asked. No variant carries an object's content.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClusterError {
    /// Another client was first: the object exists already, or has changed since it was read.
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
        let config = Config::infer().await.map_err(|error| {
            ClusterError::Unreachable(format!("no cluster is configured here (set KUBECONFIG): {error}"))
        })?;
        let unusable = |error| ClusterError::Unreachable(format!("the configured cluster cannot be used: {error}"));
        Client::try_from(config).map(Self).map_err(unusable)
    }

    /// The cluster of a context of the kubeconfig.
    ///
    /// # Errors
    /// There is no such context, or it cannot be read.
    pub async fn connect_to(context: &str) -> Result<Self, ClusterError> {
        let options = KubeConfigOptions {
            context: Some(context.to_owned()),
            ..KubeConfigOptions::default()
        };
        let unusable = |error: &dyn std::fmt::Display| {
            ClusterError::Unreachable(format!("context {context} cannot be used: {error}"))
        };
        let config = Config::from_kubeconfig(&options)
            .await
            .map_err(|error| unusable(&error))?;
        Client::try_from(config).map(Self).map_err(|error| unusable(&error))
    }

    /// A cluster behind a client that was made elsewhere.
    pub fn new(client: Client) -> Self {
        Self(client)
    }

    /// The namespace that is meant when none is named.
    pub fn default_namespace(&self) -> &str {
        self.0.default_namespace()
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

    /// Like [`Cluster::get`], from the API server's cache, which may be a moment behind. An object that the cache does not have may
    /// be new, so that it is then read from etcd.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub(crate) async fn look(&self, path: &str) -> Result<Option<Value>, ClusterError> {
        match self.get(&format!("{path}?resourceVersion=0")).await? {
            Some(object) => Ok(Some(object)),
            None => self.get(path).await,
        }
    }

    /// Every object of the list at `path`; `query` selects, without `limit` and `continue`.
    ///
    /// # Errors
    /// [`ClusterError`]. A list that does not exist is empty.
    pub async fn list(&self, path: &str, query: &str) -> Result<Vec<Value>, ClusterError> {
        let mut all = Vec::new();
        self.each(path, query, |object| all.push(object)).await?;
        Ok(all)
    }

    /// Like [`Cluster::list`], one by one: of a whole cluster's pods there is never more than a page in memory.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn each(&self, path: &str, query: &str, each: impl FnMut(Value)) -> Result<(), ClusterError> {
        self.pages(path, query, "application/json", each).await
    }

    /// Like [`Cluster::each`], the objects' metadata alone.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn each_metadata(&self, path: &str, query: &str, each: impl FnMut(Value)) -> Result<(), ClusterError> {
        let accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        self.pages(path, query, accept, each).await
    }

    async fn pages(
        &self,
        path: &str,
        query: &str,
        accept: &str,
        mut each: impl FnMut(Value),
    ) -> Result<(), ClusterError> {
        let mut next = String::new();
        for _ in 0..PAGES_MAX {
            let page = format!("{path}?limit={PAGE}&continue={next}&{query}");
            let request = Request::get(page.trim_end_matches('&'))
                .header(header::ACCEPT, accept)
                .body(Vec::new());
            let Some(mut list) = self.send(request).await? else {
                return Ok(());
            };
            if let Some(Value::Array(items)) = list.get_mut("items").map(Value::take) {
                items.into_iter().for_each(&mut each);
            }
            match list["metadata"]["continue"].as_str() {
                Some(token) if !token.is_empty() => token.clone_into(&mut next),
                _ => return Ok(()),
            }
        }
        // Half a list would be taken for the whole.
        Err(ClusterError::Refused(format!(
            "{path} has more than {} objects",
            PAGES_MAX * PAGE
        )))
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
            Err(_) => Err(ClusterError::Unreachable(format!("{asked}: the answer is not JSON"))),
        }
    }
}

/// Whether `text` can be an object's name, so that it is safe in a path.
pub fn is_object_name(text: &str) -> bool {
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= 253
        && text
            .bytes()
            .all(|byte| is_alphanumeric(&byte) || byte == b'-' || byte == b'.')
        && text.as_bytes().first().is_some_and(is_alphanumeric)
        && text.as_bytes().last().is_some_and(is_alphanumeric)
}

/// The query of [`Cluster::list`] that selects objects with all of `labels`, each a name and its value.
pub fn with_labels(labels: &[(&str, &str)]) -> String {
    let escaped: Vec<String> = labels
        .iter()
        .map(|(name, value)| format!("{}%3D{value}", name.replace('/', "%2F")))
        .collect();
    format!("labelSelector={}", escaped.join("%2C"))
}

/// The path of a namespaced core object, or of the list when `name` is empty.
pub fn core_path(namespace: &str, kind: &str, name: &str) -> String {
    let path = format!("/api/v1/namespaces/{namespace}/{kind}");
    if name.is_empty() {
        path
    } else {
        format!("{path}/{name}")
    }
}
