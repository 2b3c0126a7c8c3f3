//! Authentication of a node to its mirror: a claim in a header of each request, signed with the node's own key.
//!
//! The claim is good for one request (method, path, query), at one site, at one time, once: it carries a time by the mirror's
//! clock, and a number that no other claim of the node has. The node's `join.key` proves besides that the site admits it. The
//! mirror states its time in every answer, so that a node whose clock is wrong signs once more and is right from then on.
//!
//! A mirror of the last release knows only the node's id and the proof of `join.key`. It states no time, by which it is known.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use axum::http::{HeaderMap, Method, StatusCode, Uri};
use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use piecemeal_proto::{AuthorityPublic, JoinKey, NodeId, NodeKey, NodePublic, RoleKey};
use piecemeal_swarm::AuthorityClock;
use url::Url;

/// `<public key> <unix seconds> <number> <proof> <signature>`.
const CLAIM_HEADER: &str = "piecemeal-claim";
/// Of the last release.
const NODE_HEADER: &str = "piecemeal-node";
const PROOF_HEADER: &str = "piecemeal-proof";
/// The mirror's clock, in seconds since 1970: in each of its answers.
pub const TIME_HEADER: &str = "piecemeal-time";
/// Of an answer: the claim was right, and the node must sign a new one.
pub const AGAIN_HEADER: &str = "piecemeal-sign-again";
/// Five fields of a claim, in base64.
const CLAIM_BYTES_MAX: usize = 512;

/// A node, able to prove it.
#[derive(Clone)]
pub struct NodeIdentity {
    key: Arc<NodeKey>,
    role: Arc<RoleKey>,
    site: AuthorityPublic,
    /// The mirror's clock, known once the mirror has answered.
    clock: AuthorityClock,
    numbers: Arc<Numbers>,
    /// Whether the last answer was one of a mirror of the last release.
    mirror_is_old: Arc<AtomicBool>,
}

/// Numbers that no other process of the node draws.
struct Numbers {
    process: u64,
    next: AtomicU64,
}

impl NodeIdentity {
    pub fn new(key: Arc<NodeKey>, join_key: &JoinKey) -> Self {
        Self {
            numbers: Arc::new(Numbers {
                // The standard library keys its hash tables from the operating system's randomness.
                process: RandomState::new().hash_one(key.id()),
                next: AtomicU64::new(0),
            }),
            key,
            role: Arc::new(join_key.peer_role()),
            site: join_key.authority(),
            clock: AuthorityClock::default(),
            mirror_is_old: Arc::default(),
        }
    }

    pub fn node(&self) -> NodeId {
        self.key.id()
    }

    /// The headers of one request, good for no other.
    pub fn headers(&self, method: &Method, url: &Url) -> Vec<(&'static str, String)> {
        let number = self.numbers.next.fetch_add(1, Ordering::Relaxed);
        let claim = Claim {
            public: self.key.public(),
            time: self.clock.now(),
            number: format!("{:016x}{number:x}", self.numbers.process),
        };
        let (path, query) = (url.path(), url.query());
        let text = claim.text(&self.site, method, path, query);
        let proof = BASE64.encode(self.role.prove(&text));
        let signature = BASE64.encode(self.key.sign(&text));
        let Claim { public, time, number } = claim;
        let public = BASE64.encode(public.as_bytes());
        let mut headers = vec![(CLAIM_HEADER, format!("{public} {time} {number} {proof} {signature}"))];
        if self.mirror_is_old.load(Ordering::Relaxed) {
            let node = self.node();
            let proof = self.role.prove(&unsigned_claim(node, path, query));
            headers.extend([(NODE_HEADER, node.to_string()), (PROOF_HEADER, BASE64.encode(proof))]);
        }
        headers
    }

    /// Learns from the mirror's answer; whether the request has to be sent once more, with new [`NodeIdentity::headers`].
    pub fn must_sign_again(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let time = headers
            .get(TIME_HEADER)
            .and_then(|time| time.to_str().ok()?.parse().ok());
        let Some(time) = time else {
            let was_old = self.mirror_is_old.swap(true, Ordering::Relaxed);
            // The mirror took this node for a client without rights: it may grant to a node what it has refused.
            let is_refusal = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&status);
            return is_refusal && !was_old;
        };
        self.clock.learn(time);
        self.mirror_is_old.store(false, Ordering::Relaxed);
        status == StatusCode::UNAUTHORIZED && headers.contains_key(AGAIN_HEADER)
    }

    /// The same node with another clock.
    pub fn with_clock(self, clock: AuthorityClock) -> Self {
        Self { clock, ..self }
    }
}

/// A node's claim: its public key, the time, and a number.
pub struct Claim {
    pub public: NodePublic,
    /// Seconds since 1970.
    pub time: u64,
    number: String,
}

/// A claim as it came, not believed yet.
pub struct Shown {
    pub claim: Claim,
    /// The bytes that proof and signature cover.
    pub text: Vec<u8>,
    pub proof: Vec<u8>,
    pub signature: Vec<u8>,
}

/// The identity that a request claims for its node.
pub enum Showing {
    Nothing,
    Claim(Shown),
    /// As a node of the last release: its id, what its proof is over, and the proof.
    Unsigned(NodeId, Vec<u8>, Vec<u8>),
}

impl Showing {
    /// A header that makes no sense shows nothing. One that has a claim is not looked at for anything else.
    pub fn of_request(headers: &HeaderMap, method: &Method, uri: &Uri, site: &AuthorityPublic) -> Self {
        let shown = if headers.contains_key(CLAIM_HEADER) {
            claim(headers, method, uri, site).map(Self::Claim)
        } else {
            unsigned(headers, uri)
        };
        shown.unwrap_or(Self::Nothing)
    }
}

fn claim(headers: &HeaderMap, method: &Method, uri: &Uri, site: &AuthorityPublic) -> Option<Shown> {
    let text = headers.get(CLAIM_HEADER)?.to_str().ok()?;
    if text.len() > CLAIM_BYTES_MAX {
        return None;
    }
    let fields: Vec<&str> = text.split(' ').collect();
    let [public, time, number, proof, signature] = fields[..] else {
        return None;
    };
    let claim = Claim {
        public: NodePublic::from_slice(&BASE64.decode(public).ok()?)?,
        time: time.parse().ok()?,
        number: number.to_owned(),
    };
    Some(Shown {
        text: claim.text(site, method, uri.path(), uri.query()),
        claim,
        proof: BASE64.decode(proof).ok()?,
        signature: BASE64.decode(signature).ok()?,
    })
}

fn unsigned(headers: &HeaderMap, uri: &Uri) -> Option<Showing> {
    let node: NodeId = headers.get(NODE_HEADER)?.to_str().ok()?.parse().ok()?;
    let proof = BASE64.decode(headers.get(PROOF_HEADER)?).ok()?;
    let text = unsigned_claim(node, uri.path(), uri.query());
    Some(Showing::Unsigned(node, text, proof))
}

impl Claim {
    fn text(&self, site: &AuthorityPublic, method: &Method, path: &str, query: Option<&str>) -> Vec<u8> {
        let Self { public, time, number } = self;
        let (site, public, query) = (
            BASE64.encode(site.as_bytes()),
            BASE64.encode(public.as_bytes()),
            query.unwrap_or_default(),
        );
        format!("piecemeal request v2\0{site}\0{public}\0{time}\0{number}\0{method}\0{path}\0{query}").into_bytes()
    }
}

fn unsigned_claim(node: NodeId, path: &str, query: Option<&str>) -> Vec<u8> {
    format!("piecemeal node v1\0{node}\0{path}\0{}", query.unwrap_or_default()).into_bytes()
}
