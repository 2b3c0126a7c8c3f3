//! A token server as registries have one, which grants each user only the repositories that are his.
//!
//! It refuses a scope that is another's, instead of granting less than was asked: some do. Source: distribution's token
//! authentication specification.

use std::{
    io::{self, BufReader, Write},
    net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD as BASE64, BASE64_URL_SAFE_NO_PAD as BASE64_URL},
};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::{Value, json};

use super::{http::read_head, netns::Netns, registry::basic};

pub const SERVICE: &str = "origin";
pub const ISSUER: &str = "tests";
const LIFE_SECONDS: u64 = 300;

/// A running token server.
#[derive(Debug)]
pub struct TokenServer {
    address: SocketAddr,
    /// How clients are told to reach it.
    host: String,
    listener: TcpListener,
    signer: Arc<Signer>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// `Authorization` and the repository that it is good for.
    rights: Vec<(String, String)>,
    /// `Authorization` and scope of each request, with whether it was granted.
    asked: Vec<(Option<String>, String, bool)>,
}

struct Signer {
    pem: String,
    der: Vec<u8>,
    key: EcdsaKeyPair,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

impl TokenServer {
    pub fn start(netns: &Netns, address: SocketAddrV4) -> Self {
        let listener = netns
            .enter(|| TcpListener::bind(address))
            .expect("listening as the token server");
        let server = Self {
            address: address.into(),
            host: address.ip().to_string(),
            listener,
            signer: Arc::new(Signer::new()),
            state: Arc::default(),
        };
        let (listener, signer, state) = (
            server.listener.try_clone().expect("sharing the listener"),
            Arc::clone(&server.signer),
            Arc::clone(&server.state),
        );
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (signer, state) = (Arc::clone(&signer), Arc::clone(&state));
                thread::spawn(move || answer(&stream, &signer, &state).unwrap_or_default());
            }
        });
        server
    }

    /// Lets a user pull from a repository.
    pub fn grant(&self, user: &str, password: &str, repository: &str) {
        let right = (basic(user, password), repository.to_owned());
        self.state.lock().expect("no holder panics").rights.push(right);
    }

    /// Takes back all that was granted.
    pub fn revoke_all(&self) {
        self.state.lock().expect("no holder panics").rights.clear();
    }

    /// Gives it a name: registries and their token servers are of one domain.
    pub fn named(mut self, host: &str) -> Self {
        self.host = host.to_owned();
        self
    }

    pub fn realm(&self) -> String {
        format!("http://{}:{}/token", self.host, self.address.port())
    }

    pub fn certificate_pem(&self) -> &str {
        &self.signer.pem
    }

    /// With which anything may be pushed.
    pub fn push_token(&self) -> String {
        let everything = ["library/app", "library/other", "library/public"];
        let access = everything.map(|name| json!({ "type": "repository", "name": name, "actions": ["pull", "push"] }));
        self.signer.token(&access.to_vec().into())
    }

    /// How many tokens were granted to requests with this `Authorization`; `None`: to anonymous ones.
    pub fn granted(&self, authorization: Option<&str>) -> usize {
        let state = self.state.lock().expect("no holder panics");
        let of = |(who, _, granted): &&(Option<String>, String, bool)| who.as_deref() == authorization && *granted;
        state.asked.iter().filter(of).count()
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

impl Signer {
    fn new() -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["tests".to_owned()]).expect("making a certificate");
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &signing_key.serialize_der(), &random);
        Self {
            pem: cert.pem(),
            der: cert.der().to_vec(),
            key: key.expect("the key that was just made"),
        }
    }

    fn token(&self, access: &Value) -> String {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_secs();
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [BASE64.encode(&self.der)] });
        let claims = json!({
            "iss": ISSUER, "sub": "someone", "aud": SERVICE, "jti": "1",
            "iat": now - 10, "nbf": now - 10, "exp": now + LIFE_SECONDS, "access": access,
        });
        let [header, claims] = [header, claims].map(|part| BASE64_URL.encode(part.to_string()));
        let signed = format!("{header}.{claims}");
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).expect("signing");
        format!("{signed}.{}", BASE64_URL.encode(signature))
    }
}

fn answer(stream: &TcpStream, signer: &Signer, state: &Mutex<State>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some((request_line, headers)) = read_head(&mut reader)? {
        let mut writer = stream;
        if request_line.starts_with("POST ") {
            // As registries without OAuth do; clients then ask by GET. The body is not read, so the connection ends.
            return writer.write_all(b"HTTP/1.1 405 Told\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        let target = request_line.split(' ').nth(1).unwrap_or_default();
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let scope = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("scope="))
            .unwrap_or_default()
            .replace("%3A", ":")
            .replace("%2F", "/");
        let authorization = headers.get("authorization").map(str::to_owned);
        let token = grant(&scope, authorization, signer, state);
        let (status, body) = match token {
            Some(token) => (200, json!({ "token": token, "expires_in": LIFE_SECONDS }).to_string()),
            None => (
                401,
                r#"{"errors":[{"code":"DENIED","message":"not yours"}]}"#.to_owned(),
            ),
        };
        let head = format!(
            "HTTP/1.1 {status} Told\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        writer.write_all(head.as_bytes())?;
        writer.write_all(body.as_bytes())?;
    }
    Ok(())
}

/// A token for the one repository of the scope, when it is the user's.
fn grant(scope: &str, authorization: Option<String>, signer: &Signer, state: &Mutex<State>) -> Option<String> {
    let mut state = state.lock().expect("no holder panics");
    let repository = scope
        .strip_prefix("repository:")
        .and_then(|rest| rest.strip_suffix(":pull"));
    let is_his = repository.is_some_and(|repository| {
        let right = |(who, what): &(String, String)| Some(who) == authorization.as_ref() && what == repository;
        repository == "library/public" || state.rights.iter().any(right)
    });
    state.asked.push((authorization, scope.to_owned(), is_his));
    let access = json!([{ "type": "repository", "name": repository?, "actions": ["pull"] }]);
    is_his.then(|| signer.token(&access))
}
