//! How a node shows its mirror that it is one of the site's: two headers on each of its requests.

use std::sync::Arc;

use axum::http::{HeaderMap, Uri};
use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use piecemeal_proto::{NodeId, RoleKey};
use url::Url;

const NODE_HEADER: &str = "piecemeal-node";
const PROOF_HEADER: &str = "piecemeal-proof";

/// A node, able to prove it.
#[derive(Clone)]
pub struct NodeIdentity {
    node: NodeId,
    role: Arc<RoleKey>,
}

impl NodeIdentity {
    pub fn new(node: NodeId, role: RoleKey) -> Self {
        Self {
            node,
            role: Arc::new(role),
        }
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The headers of a request for `url`, good for no other.
    pub fn proof(&self, url: &Url) -> [(&'static str, String); 2] {
        let proof = self.role.prove(&claim(self.node, url.path(), url.query()));
        [
            (NODE_HEADER, self.node.to_string()),
            (PROOF_HEADER, BASE64.encode(proof)),
        ]
    }
}

/// The node that has proven to be one of those that hold `role`.
pub(crate) fn admitted(headers: &HeaderMap, uri: &Uri, role: &RoleKey) -> Option<NodeId> {
    let node: NodeId = headers.get(NODE_HEADER)?.to_str().ok()?.parse().ok()?;
    let proof = BASE64.decode(headers.get(PROOF_HEADER)?).ok()?;
    role.verify(&claim(node, uri.path(), uri.query()), &proof)
        .then_some(node)
}

fn claim(node: NodeId, path: &str, query: Option<&str>) -> Vec<u8> {
    format!("piecemeal node v1\0{node}\0{path}\0{}", query.unwrap_or_default()).into_bytes()
}

#[cfg(test)]
mod tests {
    use piecemeal_proto::AuthorityKey;

    use super::*;

    #[test]
    fn a_proof_is_good_for_one_request_of_one_node_of_the_site() {
        let role = |seed| AuthorityKey::from_seed([seed; 32]).join_key().peer_role();
        let identity = NodeIdentity::new(NodeId([1; 16]), role(1));
        let url = Url::parse("http://mirror:65011/v2/a/manifests/v1?ns=docker.io").unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in identity.proof(&url) {
            headers.insert(name, value.parse().unwrap());
        }

        let asked = |uri: &'static str, seed| admitted(&headers, &Uri::from_static(uri), &role(seed));
        assert_eq!(asked("/v2/a/manifests/v1?ns=docker.io", 1), Some(NodeId([1; 16])));
        assert_eq!(asked("/v2/a/manifests/v2?ns=docker.io", 1), None);
        assert_eq!(asked("/v2/a/manifests/v1?ns=ghcr.io", 1), None);
        assert_eq!(asked("/v2/a/manifests/v1?ns=docker.io", 2), None);
        assert_eq!(admitted(&HeaderMap::new(), &Uri::from_static("/v2/"), &role(1)), None);
    }
}
