//! A malicious member of the site: it holds `join.key` and a key of its own, and says anything with the product's own messages.

use std::{fs, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use piecemeal_proto::{JoinKey, NodeId, NodeKey};
use piecemeal_upstream::NodeIdentity;
use reqwest::{Method, Url};

use super::super::{http::Request, piecemeal::Keys};

/// A node that asks by hand.
pub struct RogueNode {
    join_key: JoinKey,
    identity: NodeIdentity,
}

impl RogueNode {
    /// With the site's `join.key` as it is now, and a key of `seed`.
    pub fn new(keys: &Keys, seed: u8) -> Self {
        Self::with_key(keys, NodeKey::from_seed([seed; 32]))
    }

    /// With the key of a daemon, whose cache folder that is: not a thief, but the node itself.
    pub fn of_daemon(keys: &Keys, cache_dir: &std::path::Path) -> Self {
        let text = fs::read_to_string(cache_dir.join("node.key")).expect("a node.key");
        Self::with_key(keys, text.parse().expect("a node's key"))
    }

    fn with_key(keys: &Keys, key: NodeKey) -> Self {
        let join_key = fs::read_to_string(keys.join()).expect("a join.key");
        let join_key: JoinKey = join_key.parse().expect("a join.key");
        Self {
            identity: NodeIdentity::new(Arc::new(key), &join_key),
            join_key,
        }
    }

    pub fn node(&self) -> NodeId {
        self.identity.node()
    }

    /// The request signed with its own key.
    pub fn signed(&self, request: Request) -> Request {
        let (method, url) = parts(&request);
        let headers = self.identity.headers(&method, &url);
        headers
            .into_iter()
            .fold(request, |request, (name, value)| request.header(name, &value))
    }

    /// The request as one of `node`, as a daemon of the last release shows itself.
    pub fn claimed(&self, request: Request, node: NodeId) -> Request {
        let (_, url) = parts(&request);
        let (path, query) = (url.path(), url.query().unwrap_or_default());
        let claim = format!("piecemeal node v1\0{node}\0{path}\0{query}");
        let proof = BASE64_STANDARD.encode(self.join_key.peer_role().prove(claim.as_bytes()));
        let request = request.header("piecemeal-node", &node.to_string());
        request.header("piecemeal-proof", &proof)
    }
}

fn parts(request: &Request) -> (Method, Url) {
    let method = request.method().parse().expect("a method");
    let url = format!("http://mirror{}", request.target()).parse().expect("a URL");
    (method, url)
}
