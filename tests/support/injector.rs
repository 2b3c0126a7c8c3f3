//! Another project's webhook, as a service mesh has one: it adds a container to every pod of a namespace.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};
use serde_json::{Value, json};

use super::{http::read_head, kube::KubeApi};

/// It answers until the test process ends.
#[derive(Debug)]
pub struct Injector;

impl Injector {
    /// Adds a container of `image`, named `injected`, to the pods of `namespace`, after the webhooks whose names come before `name`.
    pub fn start(api: &KubeApi, name: &str, namespace: &str, image: &str) -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("signing a certificate");
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("a certificate of this key");
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listening on loopback");
        let url = format!("https://{}/", listener.local_addr().expect("a listener's address"));
        let (config, image) = (Arc::new(config), image.to_owned());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, image) = (Arc::clone(&config), image.clone());
                // A connection that breaks off harms no test.
                thread::spawn(move || serve(stream, config, &image));
            }
        });
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": name},
            "webhooks": [{
                "name": "injector.tests.dev", "clientConfig": {"url": url, "caBundle": BASE64_STANDARD.encode(cert.pem())},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                "failurePolicy": "Fail", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            }],
        });
        api.client()
            .create(&configuration)
            .expect("the injector's registration");
        Self
    }
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, image: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut reader = BufReader::new(StreamOwned::new(connection, stream));
    while let Some(review) = read_review(&mut reader)? {
        let answer = answer(&review, image).to_string();
        let stream = reader.get_mut();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{answer}",
            answer.len()
        )?;
        stream.flush()?;
    }
    Ok(())
}

fn read_review(reader: &mut impl BufRead) -> io::Result<Option<Value>> {
    let Some((_, headers)) = read_head(reader)? else {
        return Ok(None);
    };
    let length = headers.get("content-length").and_then(|length| length.parse().ok());
    let mut body = vec![0; length.ok_or_else(|| io::Error::other("a body of no known length"))?];
    reader.read_exact(&mut body)?;
    Ok(Some(serde_json::from_slice(&body)?))
}

fn answer(review: &Value, image: &str) -> Value {
    let request = &review["request"];
    let containers = request["object"]["spec"]["containers"].as_array();
    let is_there = containers
        .into_iter()
        .flatten()
        .any(|container| container["name"] == "injected");
    let mut response = json!({"uid": request["uid"], "allowed": true});
    if !is_there {
        let container = json!({"name": "injected", "image": image});
        let patch = json!([{"op": "add", "path": "/spec/containers/-", "value": container}]);
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(BASE64_STANDARD.encode(patch.to_string()));
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}
