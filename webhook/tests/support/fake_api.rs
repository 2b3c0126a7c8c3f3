//! A Kubernetes API in memory: as much of it as the webhook asks for, and faults where one wants them.
//!
//! It serves a `kube::Client` within the process ([`FakeApi::router`]) or programs over plain HTTP ([`FakeApi::serve`]). Objects go by
//! their paths, so that no kind has to be known. Nothing is validated, defaulted or collected: for that there is a real API server.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
    serve::ListenerExt,
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime, sync::watch, time::sleep};

/// Clones are the same API.
#[derive(Clone, Debug)]
pub struct FakeApi(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Mutex<Store>,
    /// The newest version, for the watches.
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Store {
    objects: BTreeMap<Key, Value>,
    version: u64,
    /// What watches are told, from the first version on.
    changes: Vec<Change>,
    log: Vec<Asked>,
    faults: Vec<Order>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// The path of the list over all namespaces.
    list: String,
    namespace: String,
    name: String,
}

#[derive(Clone, Debug)]
struct Change {
    version: u64,
    key: Key,
    kind: &'static str,
    object: Value,
}

/// One request, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub method: Method,
    pub path: String,
    pub query: String,
    /// Whether it asks for the objects' metadata alone.
    pub metadata_only: bool,
    /// None while it has not been answered.
    pub status: Option<StatusCode>,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The request is refused, and nothing is done.
    Status(u16),
    /// There is never an answer.
    Hang,
    /// The answer comes late.
    Delay(Duration),
    /// The answer is a proxy's page, with status 200.
    Garbage,
    /// Another client deletes the object right after the answer.
    Vanish,
}

#[derive(Debug)]
struct Order {
    method: Method,
    path: String,
    fault: Fault,
    times: usize,
}

/// A server of its own; gone with all of its connections when this is dropped.
#[derive(Debug)]
pub struct Served {
    pub address: SocketAddr,
    runtime: Option<runtime::Runtime>,
}

impl FakeApi {
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            store: Mutex::default(),
            version: watch::Sender::new(0),
        }))
    }

    pub fn router(&self) -> Router {
        Router::new().fallback(answer).with_state(self.clone())
    }

    /// Serves it over HTTP on a thread of its own, which runs where its caller may run.
    pub fn serve(&self) -> Served {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("starting a runtime");
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listening on loopback");
        listener.set_nonblocking(true).expect("setting an option");
        let address = listener.local_addr().expect("a listener's address");
        let router = self.router();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("setting an option"));
            axum::serve(listener, router).await
        });
        Served {
            address,
            runtime: Some(runtime),
        }
    }

    /// Stores `object` among those of `list`, whatever was there. Returns it as it is stored.
    pub fn put(&self, list: &str, object: Value) -> Value {
        let name = object["metadata"]["name"].as_str().expect("an object has a name");
        let key = Target::parse(list).key(name);
        self.write(&mut self.store(), key, object)
    }

    /// The object at `path`.
    pub fn get(&self, path: &str) -> Option<Value> {
        let key = Target::parse(path).own_key();
        self.store().objects.get(&key).cloned()
    }

    pub fn delete(&self, path: &str) {
        self.remove(&mut self.store(), &Target::parse(path).own_key());
    }

    /// The objects of `list`, in the order of their names.
    pub fn list(&self, list: &str) -> Vec<Value> {
        let target = Target::parse(list);
        self.store().list(&target).map(|(_, object)| object.clone()).collect()
    }

    /// The next `times` requests by `method` whose path contains `path` meet `fault`. Of several orders the first counts.
    pub fn order(&self, method: Method, path: &str, fault: Fault, times: usize) {
        self.store().faults.push(Order {
            method,
            path: path.to_owned(),
            fault,
            times,
        });
    }

    /// From now on all is well.
    pub fn heal(&self) {
        self.store().faults.clear();
    }

    /// What was asked about paths that contain `path`, oldest first.
    pub fn asked(&self, path: &str) -> Vec<Asked> {
        let store = self.store();
        let asked = store.log.iter().filter(|asked| asked.path.contains(path));
        asked.cloned().collect()
    }

    /// What was asked in order to change something.
    pub fn writes(&self, path: &str) -> Vec<Asked> {
        let mut asked = self.asked(path);
        asked.retain(|asked| asked.method != Method::GET);
        asked
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.store.lock().expect("no holder of this lock panics")
    }

    fn write(&self, store: &mut Store, key: Key, mut object: Value) -> Value {
        let version = store.version + 1;
        let is_new = !store.objects.contains_key(&key);
        let uid = match store.objects.get(&key) {
            Some(before) => before["metadata"]["uid"].clone(),
            None => json!(format!("uid-{version}")),
        };
        object["metadata"]["uid"] = uid;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if !key.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(key.namespace);
        }
        store.objects.insert(key.clone(), object.clone());
        self.tell(store, key, if is_new { "ADDED" } else { "MODIFIED" }, &object);
        object
    }

    fn remove(&self, store: &mut Store, key: &Key) -> Option<Value> {
        let mut object = store.objects.remove(key)?;
        object["metadata"]["resourceVersion"] = json!((store.version + 1).to_string());
        self.tell(store, key.clone(), "DELETED", &object);
        Some(object)
    }

    fn tell(&self, store: &mut Store, key: Key, kind: &'static str, object: &Value) {
        store.version += 1;
        store.changes.push(Change {
            version: store.version,
            key,
            kind,
            object: metadata_of(object),
        });
        self.0.version.send_replace(store.version);
    }

    fn take_fault(&self, method: &Method, path: &str) -> Option<Fault> {
        let mut store = self.store();
        let order = store
            .faults
            .iter_mut()
            .find(|order| order.times > 0 && order.method == *method && path.contains(&order.path))?;
        order.times -= 1;
        Some(order.fault)
    }
}

impl Store {
    fn list<'a>(&'a self, target: &'a Target) -> impl Iterator<Item = (&'a Key, &'a Value)> {
        let from = target.key("");
        let all = self.objects.range(from..);
        all.take_while(|(key, _)| target.lists(key))
    }
}

async fn answer(State(api): State<FakeApi>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let (path, query) = (head.uri.path().to_owned(), head.uri.query().unwrap_or_default());
    let asked = Asked {
        method: head.method.clone(),
        path: path.clone(),
        query: query.to_owned(),
        metadata_only: asks_for_metadata(&head.headers),
        status: None,
    };
    let number = {
        let mut store = api.store();
        store.log.push(asked);
        store.log.len() - 1
    };
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let fault = api.take_fault(&head.method, &path);
    match fault {
        Some(Fault::Hang) => std::future::pending::<()>().await,
        Some(Fault::Delay(time)) => sleep(time).await,
        _ => {}
    }
    let target = Target::parse(&path);
    let response = match fault {
        Some(Fault::Status(code)) => refusal(code, "ordered by the test"),
        Some(Fault::Garbage) => "<html>Bad gateway".into_response(),
        _ => api.act(&head.method, &target, &Query::parse(query), &head.headers, &body),
    };
    if let Some(Fault::Vanish) = fault {
        api.remove(&mut api.store(), &target.own_key());
    }
    api.store().log[number].status = Some(response.status());
    response
}

impl FakeApi {
    fn act(&self, method: &Method, target: &Target, query: &Query, headers: &HeaderMap, body: &Bytes) -> Response {
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        let is_metadata = asks_for_metadata(headers);
        match (method.as_str(), &target.name) {
            ("GET", Some(_)) => match self.get_at(target) {
                Some(object) => found(StatusCode::OK, &object),
                None => refusal(404, "there is none"),
            },
            ("GET", None) if query.is("watch", "true") || query.is("watch", "1") => self.watch(target, query),
            ("GET", None) => self.page(target, query, is_metadata),
            ("POST", None) => self.create(target, query, sent),
            ("PUT", Some(_)) => self.replace(target, sent),
            ("PATCH", Some(_)) => self.apply(target, &sent),
            ("DELETE", Some(_)) => self.delete_if(target, &sent["preconditions"]),
            _ => refusal(405, "the fake API does not know this request"),
        }
    }

    fn get_at(&self, target: &Target) -> Option<Value> {
        self.store().objects.get(&target.own_key()).cloned()
    }

    fn page(&self, target: &Target, query: &Query, is_metadata: bool) -> Response {
        let store = self.store();
        let limit = query.number("limit").unwrap_or(usize::MAX);
        let skipped = query.number("continue").unwrap_or(0);
        let selector = query.get("labelSelector");
        let matching = store.list(target).map(|(_, object)| object);
        let matching = matching.filter(|object| is_selected(object, selector));
        let mut matching = matching.skip(skipped);
        let items: Vec<Value> = matching
            .by_ref()
            .take(limit)
            .map(|object| {
                if is_metadata {
                    metadata_of(object)
                } else {
                    object.clone()
                }
            })
            .collect();
        let mut metadata = json!({"resourceVersion": store.version.to_string()});
        if matching.next().is_some() {
            metadata["continue"] = json!((skipped + limit).to_string());
        }
        found(
            StatusCode::OK,
            &json!({"apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items}),
        )
    }

    /// Stays open. Tells metadata alone, since the webhook watches nothing else.
    fn watch(&self, target: &Target, query: &Query) -> Response {
        let seen = query.number("resourceVersion").unwrap_or(0) as u64;
        let state = (self.clone(), target.clone(), seen, self.0.version.subscribe());
        let lines = stream::unfold(state, |(api, target, seen, mut version)| async move {
            let newest = *version.wait_for(|version| *version > seen).await.ok()?;
            let lines: String = api
                .store()
                .changes
                .iter()
                .filter(|change| change.version > seen && change.version <= newest && target.lists(&change.key))
                .map(|change| format!("{}\n", json!({"type": change.kind, "object": change.object})))
                .collect();
            Some((Ok::<_, std::convert::Infallible>(lines), (api, target, newest, version)))
        });
        ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response()
    }

    fn create(&self, target: &Target, query: &Query, mut object: Value) -> Response {
        let mut store = self.store();
        if let Some(prefix) = object["metadata"]["generateName"].as_str() {
            object["metadata"]["name"] = json!(format!("{prefix}{}", store.version));
        }
        let key = target.key(object["metadata"]["name"].as_str().unwrap_or_default());
        if store.objects.contains_key(&key) {
            return refusal(409, "there is one of that name");
        }
        if query.is("dryRun", "All") {
            return found(StatusCode::CREATED, &object);
        }
        found(StatusCode::CREATED, &self.write(&mut store, key, object))
    }

    fn replace(&self, target: &Target, object: Value) -> Response {
        let mut store = self.store();
        let key = target.own_key();
        let Some(before) = store.objects.get(&key) else {
            return refusal(404, "there is none");
        };
        let version = &object["metadata"]["resourceVersion"];
        if !version.is_null() && *version != before["metadata"]["resourceVersion"] {
            return refusal(409, "it has changed");
        }
        found(StatusCode::OK, &self.write(&mut store, key, object))
    }

    fn apply(&self, target: &Target, fields: &Value) -> Response {
        let mut store = self.store();
        let key = target.own_key();
        let mut object = store.objects.get(&key).cloned().unwrap_or_else(|| json!({}));
        merge(&mut object, fields);
        found(StatusCode::OK, &self.write(&mut store, key, object))
    }

    fn delete_if(&self, target: &Target, preconditions: &Value) -> Response {
        let mut store = self.store();
        let key = target.own_key();
        let Some(object) = store.objects.get(&key) else {
            return refusal(404, "there is none");
        };
        let differs = |field: &str| {
            let wanted = &preconditions[field];
            !wanted.is_null() && *wanted != object["metadata"][field]
        };
        if differs("uid") || differs("resourceVersion") {
            return refusal(409, "it has changed");
        }
        let gone = self.remove(&mut store, &key);
        found(StatusCode::OK, &gone.unwrap_or_default())
    }
}

impl Served {
    /// A kubeconfig for it. JSON is YAML too.
    pub fn kubeconfig(&self) -> String {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "fake", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        });
        config.to_string()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a path names: an object, or a list of them.
#[derive(Clone, Debug)]
struct Target {
    list: String,
    namespace: String,
    name: Option<String>,
}

impl Target {
    fn parse(path: &str) -> Self {
        let mut parts = path.trim_matches('/').split('/');
        let roots = if path.starts_with("/apis/") { 3 } else { 2 };
        let root: Vec<&str> = parts.by_ref().take(roots).collect();
        let rest: Vec<&str> = parts.collect();
        let (namespace, kind, name) = match rest[..] {
            ["namespaces", namespace, kind] => (namespace, kind, None),
            ["namespaces", namespace, kind, name] => (namespace, kind, Some(name)),
            [kind] => ("", kind, None),
            [kind, name] => ("", kind, Some(name)),
            _ => ("", "", None),
        };
        Self {
            list: format!("/{}/{kind}", root.join("/")),
            namespace: namespace.to_owned(),
            name: name.map(str::to_owned),
        }
    }

    fn key(&self, name: &str) -> Key {
        Key {
            list: self.list.clone(),
            namespace: self.namespace.clone(),
            name: name.to_owned(),
        }
    }

    fn own_key(&self) -> Key {
        self.key(self.name.as_deref().unwrap_or_default())
    }

    fn lists(&self, key: &Key) -> bool {
        key.list == self.list && (self.namespace.is_empty() || key.namespace == self.namespace)
    }
}

struct Query(BTreeMap<String, String>);

impl Query {
    fn parse(text: &str) -> Self {
        let pairs = url::form_urlencoded::parse(text.as_bytes());
        Self(pairs.into_owned().collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn is(&self, name: &str, value: &str) -> bool {
        self.get(name) == Some(value)
    }

    fn number(&self, name: &str) -> Option<usize> {
        self.get(name)?.parse().ok()
    }
}

/// `selector`: labels and their values, separated by commas.
fn is_selected(object: &Value, selector: Option<&str>) -> bool {
    let mut wanted = selector
        .into_iter()
        .flat_map(|text| text.split(','))
        .filter_map(|pair| pair.split_once('='));
    wanted.all(|(label, value)| object["metadata"]["labels"][label] == value)
}

fn asks_for_metadata(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("PartialObjectMetadata"))
}

fn metadata_of(object: &Value) -> Value {
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"]})
}

/// Fields over fields, and of lists whose items have names, item over item.
fn merge(into: &mut Value, fields: &Value) {
    match (into, fields) {
        (Value::Object(into), Value::Object(fields)) => {
            for (name, value) in fields {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(items)) if items.iter().all(|item| item["name"].is_string()) => {
            for item in items {
                match into.iter_mut().find(|known| known["name"] == item["name"]) {
                    Some(known) => merge(known, item),
                    None => into.push(item.clone()),
                }
            }
        }
        (into, fields) => *into = fields.clone(),
    }
}

fn found(status: StatusCode, object: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], object.to_string()).into_response()
}

fn refusal(code: u16, message: &str) -> Response {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    let status = StatusCode::from_u16(code).expect("a status");
    let object = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code,
    });
    found(status, &object)
}
