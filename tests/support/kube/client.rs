//! Client of the API server, in raw JSON: no field of an answer is lost to an older type.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use reqwest::{Certificate, Method, header};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::kinds::Kinds;

/// A client with a token. Where a namespace is asked for, kinds that know none ignore it, and `""` means all of them.
#[derive(Clone, Debug)]
pub struct KubeClient {
    http: reqwest::Client,
    url: String,
    token: String,
    kinds: Arc<Kinds>,
}

/// The API server's reason for a refusal.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub code: u16,
    /// One word, as `Forbidden` or `AlreadyExists`.
    pub reason: String,
    pub message: String,
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.code, self.reason, self.message)
    }
}

impl KubeClient {
    /// One that knows no kinds yet; see [`Self::discover`].
    pub(super) fn new(url: &str, ca_pem: &str, token: &str) -> Self {
        // Once for the process: later calls fail and change nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca = Certificate::from_pem(ca_pem.as_bytes()).expect("the CA's certificate");
        let http = reqwest::Client::builder()
            .tls_certs_only([ca])
            .no_proxy()
            .timeout(REQUEST_TIME_MAX)
            .build()
            .expect("building an HTTP client");
        Self {
            http,
            url: url.to_owned(),
            token: token.to_owned(),
            kinds: Arc::default(),
        }
    }

    /// The same client as another user.
    pub(super) fn with_token(&self, token: &str) -> Self {
        Self {
            token: token.to_owned(),
            ..self.clone()
        }
    }

    /// Asks the API server which kinds it has.
    pub(super) fn discover(&mut self) {
        let mut kinds = Kinds::default();
        for path in ["/api", "/apis"] {
            let discovered = self.send(Method::GET, path, (header::ACCEPT, DISCOVERY), None);
            kinds.add(&discovered.unwrap_or_else(|error| panic!("asking for {path}: {error}")));
        }
        self.kinds = Arc::new(kinds);
    }

    pub fn try_get(&self, kind: &str, namespace: &str, name: &str) -> Result<Value, ApiError> {
        self.request(Method::GET, &self.path(kind, namespace, name), None)
    }

    /// The object, or nothing when there is none.
    ///
    /// # Panics
    /// When it may not be read.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        match self.try_get(kind, namespace, name) {
            Ok(object) => Some(object),
            Err(error) if error.code == 404 => None,
            Err(error) => panic!("getting {kind} {namespace}/{name}: {error}"),
        }
    }

    pub fn try_list(&self, kind: &str, namespace: &str) -> Result<Vec<Value>, ApiError> {
        let mut list = self.request(Method::GET, &self.kinds.path(kind, namespace), None)?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            other => panic!("a list of {kind} without items: {other}"),
        }
    }

    /// # Panics
    /// When they may not be read.
    pub fn list(&self, kind: &str, namespace: &str) -> Vec<Value> {
        let listed = self.try_list(kind, namespace);
        listed.unwrap_or_else(|error| panic!("listing {kind} in {namespace:?}: {error}"))
    }

    /// Creates the object and returns it as it was stored.
    pub fn create(&self, object: &Value) -> Result<Value, ApiError> {
        self.request(Method::POST, &self.kinds.path_of(object), Some(object))
    }

    /// Everything that [`Self::create`] does, webhooks included, but for storing it.
    pub fn dry_run_create(&self, object: &Value) -> Result<Value, ApiError> {
        let path = format!("{}?dryRun=All", self.kinds.path_of(object));
        self.request(Method::POST, &path, Some(object))
    }

    /// Server-side apply with force: makes the object have these fields, even those that another manager owned.
    pub fn apply(&self, object: &Value) -> Result<Value, ApiError> {
        let name = object["metadata"]["name"].as_str().expect("an object's name");
        let path = format!("{}/{name}?fieldManager=tests&force=true", self.kinds.path_of(object));
        self.send(
            Method::PATCH,
            &path,
            content("application/apply-patch+yaml"),
            Some(object),
        )
    }

    /// Changes some fields; `null` removes one.
    pub fn patch(&self, kind: &str, namespace: &str, name: &str, change: &Value) -> Result<Value, ApiError> {
        let merge = content("application/merge-patch+json");
        self.send(Method::PATCH, &self.path(kind, namespace, name), merge, Some(change))
    }

    /// Deletes at once, without a period of grace.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<Value, ApiError> {
        let path = self.path(kind, namespace, name);
        let options = json!({ "gracePeriodSeconds": 0, "propagationPolicy": "Background" });
        self.request(Method::DELETE, &path, Some(&options))
    }

    /// Any other request, as for a subresource; `path` may have a query.
    pub fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ApiError> {
        self.send(method, path, content("application/json"), body)
    }

    fn path(&self, kind: &str, namespace: &str, name: &str) -> String {
        format!("{}/{name}", self.kinds.path(kind, namespace))
    }

    fn send(
        &self,
        method: Method,
        path: &str,
        (header, value): (header::HeaderName, &str),
        body: Option<&Value>,
    ) -> Result<Value, ApiError> {
        let request = self
            .http
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.token)
            .header(header, value)
            .body(body.map(Value::to_string).unwrap_or_default());
        let answered = runtime().block_on(async {
            let response = request.send().await?;
            Ok((response.status().as_u16(), response.bytes().await?))
        });
        let (code, bytes) = answered.map_err(ApiError::unanswered)?;
        // What is no object is said in plain text, as readiness is.
        let said = serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into());
        if code < 400 {
            Ok(said)
        } else {
            Err(ApiError::new(code, &said))
        }
    }
}

impl ApiError {
    fn new(code: u16, status: &Value) -> Self {
        let field = |name: &str| status[name].as_str().map(str::to_owned);
        Self {
            code,
            reason: field("reason").unwrap_or_default(),
            message: field("message").unwrap_or_else(|| status.to_string()),
        }
    }

    fn unanswered(error: reqwest::Error) -> Self {
        Self {
            code: 0,
            reason: "NoAnswer".to_owned(),
            message: format!("{error:?}"),
        }
    }
}

/// Asks until there is an answer.
///
/// # Panics
/// When there is none for half a minute.
pub fn wait_until<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    wait_within(WAIT_TIME_MAX, what, ask)
}

/// Asks until there is an answer.
///
/// # Panics
/// When there is none in time.
pub fn wait_within<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn content(kind: &str) -> (header::HeaderName, &str) {
    (header::CONTENT_TYPE, kind)
}

/// The runtime on which tests wait for asynchronous calls.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().expect("starting a runtime"))
}

/// All groups with their resources in one answer.
const DISCOVERY: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const REQUEST_TIME_MAX: Duration = Duration::from_secs(60);
const WAIT_TIME_MAX: Duration = Duration::from_secs(30);
