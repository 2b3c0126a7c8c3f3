//! Admission of the site's nodes at the mirror: which node sends a request.
//!
//! Only the holder of a node's key is accepted as that node. A claim counts for two minutes around its time and once, so that
//! a request that was overheard wins nothing. A node of the last release shows only an id, which others can copy: its rights
//! are kept apart from those of signed nodes, and an id that has signed is not accepted unsigned.
//!
//! Both tables forget their oldest when they are full. An eavesdropper could repeat a claim that is forgotten within its two
//! minutes, and would get an answer that it has seen already; an unsigned id that is forgotten gets nothing that the signed one
//! has.

use std::collections::HashSet;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri},
};
use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use piecemeal_proto::{AuthorityKey, AuthorityPublic, NodeId, PeerRoles};
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use piecemeal_upstream::{AGAIN_HEADER, Showing, Shown};

/// The largest difference between a claim's time and the mirror's, in seconds.
const CLAIM_SECONDS_MAX: u64 = 120;
/// The claims of ten thousand nodes in a rollout: some 80 bytes each.
const CLAIMS_MAX: usize = 262_144;
/// Several times the nodes of the largest site.
const SIGNED_MAX: usize = 65_536;

/// The admitted nodes of this site.
pub struct Nodes {
    site: AuthorityPublic,
    settings: RwLock<Settings>,
    tables: Mutex<Tables>,
    /// Seconds since 1970.
    now: fn() -> u64,
}

struct Settings {
    roles: PeerRoles,
    revoked: HashSet<NodeId>,
}

struct Tables {
    /// The claims that were accepted, and when.
    claims: LruCache<ClaimId, u64>,
    /// The nodes that have signed.
    signed: LruCache<NodeId, ()>,
}

/// The beginning of a claim's SHA-256, without the signature: its node could sign the same claim again, differently.
type ClaimId = [u8; 16];

/// A node that the site admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmittedNode {
    /// The node that a grant is for.
    pub id: NodeId,
    /// The id under which rights are kept: of a node that has not signed, an id that no key has.
    pub holder: NodeId,
}

/// Why a request that shows a node is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefuseClaimError {
    /// The node signs again, by the time that the answer states.
    #[error(
        "the claim's time is more than {CLAIM_SECONDS_MAX} s away from this mirror's; sign again by the time stated here"
    )]
    Stale,
    /// The node signs again; an eavesdropper cannot.
    #[error("the claim was used before; sign again")]
    Repeated,
    #[error("this node is shut out (take it out of the mirror's --revoke to admit it again)")]
    Revoked,
}

impl Nodes {
    pub fn new(authority: &AuthorityKey, revoked: HashSet<NodeId>, now: fn() -> u64) -> Self {
        Self {
            site: authority.public(),
            settings: RwLock::new(Settings {
                roles: authority.peer_roles(),
                revoked,
            }),
            tables: Mutex::new(Tables {
                // Unbounded, and bounded where it grows: a table of this size would be allocated at once.
                claims: LruCache::unbounded(),
                signed: LruCache::unbounded(),
            }),
            now,
        }
    }

    /// Takes over the generations of `join.key` and the revoked nodes. Another site's key is ignored.
    pub fn apply(&self, authority: &AuthorityKey, revoked: HashSet<NodeId>) {
        let mut settings = self.settings.write();
        if settings.revoked != revoked {
            info!("{} nodes are shut out", revoked.len());
            settings.revoked = revoked;
        }
        if authority.public() != self.site {
            warn!("the authority.key is another site's now; it is not used until a restart");
            return;
        }
        let roles = authority.peer_roles();
        if settings.roles.generation() != roles.generation() {
            info!("generation {} of join.key admits peers now", roles.generation());
        }
        settings.roles = roles;
    }

    /// Whether the administrator has shut the node out.
    pub fn is_revoked(&self, node: &NodeId) -> bool {
        let settings = self.settings.read();
        settings.revoked.contains(node)
    }

    /// The node that sends a request; `None`: a client that is no node, or shows nothing that holds.
    ///
    /// # Errors
    /// [`RefuseClaimError`]: a claim that is there and does not hold.
    pub fn admit(
        &self,
        headers: &HeaderMap,
        method: &Method,
        uri: &Uri,
    ) -> Result<Option<AdmittedNode>, RefuseClaimError> {
        self.admit_at(headers, method, uri, (self.now)())
    }

    fn admit_at(
        &self,
        headers: &HeaderMap,
        method: &Method,
        uri: &Uri,
        now: u64,
    ) -> Result<Option<AdmittedNode>, RefuseClaimError> {
        match Showing::of_request(headers, method, uri, &self.site) {
            Showing::Nothing => Ok(None),
            Showing::Claim(shown) => self.admit_signed(&shown, now),
            Showing::Unsigned(node, text, proof) => {
                if !self.is_proven(&text, &proof, now) || self.has_signed(&node) {
                    return Ok(None);
                }
                self.require_not_revoked(&node)?;
                Ok(Some(AdmittedNode {
                    id: node,
                    holder: unsigned_holder(node),
                }))
            }
        }
    }

    fn admit_signed(&self, shown: &Shown, now: u64) -> Result<Option<AdmittedNode>, RefuseClaimError> {
        // The cheapest check first; only a holder of a join.key learns anything from the answer.
        if !self.is_proven(&shown.text, &shown.proof, now) {
            return Ok(None);
        }
        if now.abs_diff(shown.claim.time) > CLAIM_SECONDS_MAX {
            return Err(RefuseClaimError::Stale);
        }
        if !shown.claim.public.verify(&shown.text, &shown.signature) {
            return Ok(None);
        }
        let id = shown.claim.public.id();
        self.require_not_revoked(&id)?;
        self.note(id, claim_id(&shown.text), now)?;
        Ok(Some(AdmittedNode { id, holder: id }))
    }

    fn is_proven(&self, text: &[u8], proof: &[u8], now: u64) -> bool {
        let settings = self.settings.read();
        settings.roles.admits(text, proof, now).is_some()
    }

    fn require_not_revoked(&self, node: &NodeId) -> Result<(), RefuseClaimError> {
        if self.is_revoked(node) {
            return Err(RefuseClaimError::Revoked);
        }
        Ok(())
    }

    fn has_signed(&self, node: &NodeId) -> bool {
        let tables = self.tables.lock();
        tables.signed.contains(node)
    }

    /// Writes down that the node has signed, and this claim, which must be a new one.
    fn note(&self, node: NodeId, claim: ClaimId, now: u64) -> Result<(), RefuseClaimError> {
        let mut tables = self.tables.lock();
        let Tables { claims, signed } = &mut *tables;
        signed.put(node, ());
        if signed.len() > SIGNED_MAX {
            signed.pop_lru();
        }
        if claims.contains(&claim) {
            return Err(RefuseClaimError::Repeated);
        }
        // A claim from the future was accepted up to two minutes before its time.
        while let Some((_, accepted)) = claims.peek_lru()
            && (*accepted + 2 * CLAIM_SECONDS_MAX < now || claims.len() >= CLAIMS_MAX)
        {
            claims.pop_lru();
        }
        claims.put(claim, now);
        Ok(())
    }
}

/// The answer to a caller whose claim is refused.
pub fn respond(refusal: RefuseClaimError) -> Response<Body> {
    let status = match refusal {
        RefuseClaimError::Stale | RefuseClaimError::Repeated => StatusCode::UNAUTHORIZED,
        RefuseClaimError::Revoked => StatusCode::FORBIDDEN,
    };
    let mut response = Response::new(Body::from(format!("{refusal}\n")));
    *response.status_mut() = status;
    if status == StatusCode::UNAUTHORIZED {
        let again = HeaderValue::from_static("true");
        response.headers_mut().insert(AGAIN_HEADER, again);
    }
    response
}

fn claim_id(text: &[u8]) -> ClaimId {
    let hash: [u8; 32] = Sha256::digest(text).into();
    hash[..16].try_into().expect("half of 32 bytes")
}

/// No node's key has this id, so that nothing which a signed node earned is found under it.
fn unsigned_holder(node: NodeId) -> NodeId {
    NodeId(claim_id(&[b"piecemeal unsigned node\0", &node.0[..]].concat()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use piecemeal_proto::{JoinKey, NodeKey};
    use piecemeal_swarm::AuthorityClock;
    use url::Url;

    use super::*;
    use piecemeal_upstream::{NodeIdentity, TIME_HEADER};

    const NOW: u64 = 1_800_000_000;
    const PATH: &str = "/v2/a/manifests/v1?ns=docker.io";

    fn site() -> AuthorityKey {
        AuthorityKey::from_seed([1; 32])
    }

    fn nodes() -> Nodes {
        Nodes::new(&site(), HashSet::new(), || NOW)
    }

    /// A node whose clock says `clock`.
    fn identity(seed: u8, join_key: &JoinKey, clock: u64) -> NodeIdentity {
        let own = AuthorityClock::new();
        own.learn(clock);
        NodeIdentity::new(Arc::new(NodeKey::from_seed([seed; 32])), join_key).with_clock(own)
    }

    fn url(path: &str) -> Url {
        Url::parse("http://mirror:65011").unwrap().join(path).unwrap()
    }

    fn headers(identity: &NodeIdentity, method: &Method, path: &str) -> HeaderMap {
        let headers = identity.headers(method, &url(path));
        headers
            .into_iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<Vec<(axum::http::HeaderName, HeaderValue)>>()
            .into_iter()
            .collect()
    }

    /// The headers of a node of the last release, which an eavesdropper can replay.
    fn unsigned(identity: &NodeIdentity, path: &str) -> HeaderMap {
        // No time is stated: the mirror is of the last release.
        identity.must_sign_again(StatusCode::OK, &HeaderMap::new());
        let mut headers = headers(identity, &Method::GET, path);
        headers.remove("piecemeal-claim").unwrap();
        headers
    }

    fn asked(
        nodes: &Nodes,
        headers: &HeaderMap,
        method: &Method,
        path: &str,
        now: u64,
    ) -> Result<Option<NodeId>, RefuseClaimError> {
        let admitted = nodes.admit_at(headers, method, &path.parse().unwrap(), now)?;
        Ok(admitted.map(|admitted| {
            assert_eq!(admitted.id, admitted.holder);
            admitted.id
        }))
    }

    #[test]
    fn a_claim_is_good_for_one_request_of_one_node_of_the_site() {
        let own = identity(1, &site().join_key(), NOW);
        let shown = headers(&own, &Method::GET, PATH);
        let nodes = nodes();
        for (method, path) in [
            (Method::HEAD, PATH),
            (Method::GET, "/v2/a/manifests/v2?ns=docker.io"),
            (Method::GET, "/v2/a/manifests/v1?ns=ghcr.io"),
            (Method::GET, "/v2/a/manifests/v1"),
        ] {
            assert_eq!(asked(&nodes, &shown, &method, path, NOW), Ok(None), "{method} {path}");
        }
        let other_site = AuthorityKey::from_seed([2; 32]);
        let elsewhere = Nodes::new(&other_site, HashSet::new(), || NOW);
        assert_eq!(asked(&elsewhere, &shown, &Method::GET, PATH, NOW), Ok(None));
        assert_eq!(asked(&nodes, &HeaderMap::new(), &Method::GET, PATH, NOW), Ok(None));
        assert_eq!(asked(&nodes, &shown, &Method::GET, PATH, NOW), Ok(Some(own.node())));
    }

    #[test]
    fn a_holder_of_the_join_key_cannot_claim_to_be_another_node() {
        let (victim, thief) = (
            identity(1, &site().join_key(), NOW),
            identity(2, &site().join_key(), NOW),
        );
        let fields = |identity: &NodeIdentity| -> Vec<String> {
            let headers = headers(identity, &Method::GET, PATH);
            let claim = headers["piecemeal-claim"].to_str().unwrap();
            claim.split(' ').map(str::to_owned).collect()
        };
        let nodes = nodes();
        // Every mixture of the victim's claim with the thief's.
        for taken in 0_u8..32 {
            let (theirs, own) = (fields(&victim), fields(&thief));
            let mixed: Vec<String> = (0..5)
                .map(|field| {
                    if taken >> field & 1 == 1 {
                        theirs[field].clone()
                    } else {
                        own[field].clone()
                    }
                })
                .collect();
            let shown = HeaderMap::from_iter([("piecemeal-claim".parse().unwrap(), mixed.join(" ").parse().unwrap())]);
            let got = asked(&nodes, &shown, &Method::GET, PATH, NOW).unwrap();
            match taken {
                0 => assert_eq!(got, Some(thief.node())),
                // The whole of it: a request that was overheard on its way, and came first.
                31 => assert_eq!(got, Some(victim.node())),
                // The time alone, which is the same.
                2 => assert_eq!(got, Some(thief.node())),
                29 => assert_eq!(got, Some(victim.node())),
                _ => assert_eq!(got, None, "{taken:05b}"),
            }
        }
    }

    #[test]
    fn a_claim_counts_once_and_for_two_minutes() {
        let own = identity(1, &site().join_key(), NOW);
        let nodes = nodes();
        let shown = headers(&own, &Method::GET, PATH);
        let show = |now| asked(&nodes, &shown, &Method::GET, PATH, now);
        for away in [NOW - 121, NOW + 121, 0, u64::MAX] {
            assert_eq!(show(away), Err(RefuseClaimError::Stale));
        }
        assert_eq!(show(NOW + 119), Ok(Some(own.node())));
        for later in [NOW - 120, NOW, NOW + 120] {
            assert_eq!(show(later), Err(RefuseClaimError::Repeated));
        }
        assert_eq!(show(NOW + 1000), Err(RefuseClaimError::Stale));
        // Two requests that are alike are two claims.
        let again = headers(&own, &Method::GET, PATH);
        assert_eq!(asked(&nodes, &again, &Method::GET, PATH, NOW), Ok(Some(own.node())));
    }

    #[test]
    fn a_clock_of_1970_costs_one_round_trip_once() {
        let nodes = nodes();
        for clock in [0, NOW, NOW + 10_000_000] {
            let own = identity(1, &site().join_key(), clock);
            let mut round_trips = 0;
            for request in 0..5 {
                let path = format!("/v2/a/manifests/{request}");
                let admitted = loop {
                    round_trips += 1;
                    let shown = headers(&own, &Method::GET, &path);
                    let answer = asked(&nodes, &shown, &Method::GET, &path, NOW);
                    let mut response = match answer {
                        Ok(_) => Response::new(Body::empty()),
                        Err(refusal) => respond(refusal),
                    };
                    let time = TIME_HEADER.parse::<axum::http::HeaderName>().unwrap();
                    response.headers_mut().insert(time, NOW.into());
                    if !own.must_sign_again(response.status(), response.headers()) {
                        break answer;
                    }
                };
                assert_eq!(admitted, Ok(Some(own.node())));
            }
            assert_eq!(round_trips, if clock == NOW { 5 } else { 6 }, "{clock}");
        }
    }

    #[test]
    fn a_node_of_the_last_release_gets_what_it_earns_and_nothing_of_a_signed_one() {
        let nodes = nodes();
        let own = identity(1, &site().join_key(), NOW);
        let shown = unsigned(&own, PATH);
        let as_old = |shown: &HeaderMap, path: &str| {
            nodes
                .admit_at(shown, &Method::GET, &path.parse().unwrap(), NOW)
                .unwrap()
        };
        // The mirror has been restarted and has not heard the node yet: the thief is an unsigned node of his own.
        let admitted = as_old(&shown, PATH).unwrap();
        assert_eq!(admitted.id, own.node());
        assert_ne!(admitted.holder, own.node());
        assert_eq!(as_old(&shown, "/v2/a/manifests/v2"), None);
        // From the first signed request on the id is not taken unsigned.
        let signed = headers(&own, &Method::GET, PATH);
        assert_eq!(asked(&nodes, &signed, &Method::GET, PATH, NOW), Ok(Some(own.node())));
        assert_eq!(as_old(&shown, PATH), None);
        // A claim that does not hold is not made up for by an unsigned one beside it.
        let other = identity(2, &site().join_key(), NOW);
        let mut both = unsigned(&other, PATH);
        both.insert("piecemeal-claim", "nonsense".parse().unwrap());
        assert_eq!(as_old(&both, PATH), None);
    }

    #[test]
    fn a_mirror_of_the_last_release_is_shown_what_it_knows_once_it_has_refused() {
        let own = identity(1, &site().join_key(), NOW);
        assert!(!headers(&own, &Method::GET, PATH).contains_key("piecemeal-proof"));
        let nothing = HeaderMap::new();
        assert!(own.must_sign_again(StatusCode::UNAUTHORIZED, &nothing));
        let shown = headers(&own, &Method::GET, PATH);
        let claim = format!("piecemeal node v1\0{}\0/v2/a/manifests/v1\0ns=docker.io", own.node());
        let proof = base64::Engine::encode(
            &base64::prelude::BASE64_STANDARD,
            site().join_key().peer_role().prove(claim.as_bytes()),
        );
        assert_eq!(shown["piecemeal-node"], own.node().to_string());
        assert_eq!(shown["piecemeal-proof"], proof);
        assert!(!own.must_sign_again(StatusCode::UNAUTHORIZED, &nothing), "only once");
        // It is upgraded: it shows nothing any more that could be replayed.
        let stated = HeaderMap::from_iter([(TIME_HEADER.parse().unwrap(), NOW.into())]);
        assert!(!own.must_sign_again(StatusCode::OK, &stated));
        assert!(!headers(&own, &Method::GET, PATH).contains_key("piecemeal-proof"));
    }

    #[test]
    fn a_node_that_is_shut_out_hears_it_signed_or_not() {
        let nodes = nodes();
        let (own, old) = (
            identity(1, &site().join_key(), NOW),
            identity(2, &site().join_key(), NOW),
        );
        let ask = |shown: HeaderMap| asked_any(&nodes, &shown);
        assert!(ask(headers(&own, &Method::GET, PATH)).is_ok());
        nodes.apply(&site(), HashSet::from([own.node(), old.node()]));
        assert_eq!(ask(headers(&own, &Method::GET, PATH)), Err(RefuseClaimError::Revoked));
        assert_eq!(ask(unsigned(&old, PATH)), Err(RefuseClaimError::Revoked));
        assert_eq!(respond(RefuseClaimError::Revoked).status(), StatusCode::FORBIDDEN);
        nodes.apply(&site(), HashSet::new());
        assert!(ask(headers(&own, &Method::GET, PATH)).is_ok());
    }

    fn asked_any(nodes: &Nodes, shown: &HeaderMap) -> Result<Option<AdmittedNode>, RefuseClaimError> {
        nodes.admit_at(shown, &Method::GET, &PATH.parse().unwrap(), NOW)
    }

    #[test]
    fn a_join_key_that_was_rotated_away_admits_until_its_time_is_over() {
        let nodes = nodes();
        let old = identity(1, &site().join_key(), NOW);
        let rotated = site().rotate_join(NOW + 60).unwrap();
        let new = identity(2, &rotated.join_key(), NOW);
        let ask = |identity: &NodeIdentity, now| {
            asked(&nodes, &headers(identity, &Method::GET, PATH), &Method::GET, PATH, now)
        };
        assert_eq!(ask(&new, NOW), Ok(None));
        nodes.apply(&rotated, HashSet::new());
        assert_eq!(ask(&new, NOW), Ok(Some(new.node())));
        assert_eq!(ask(&old, NOW + 59), Ok(Some(old.node())));
        assert_eq!(ask(&old, NOW + 60), Ok(None));
        nodes.apply(&AuthorityKey::from_seed([2; 32]), HashSet::new());
        assert_eq!(
            ask(&new, NOW),
            Ok(Some(new.node())),
            "another site's key changes nothing"
        );
    }

    #[test]
    fn a_full_table_of_claims_forgets_its_oldest_and_an_old_one_is_let_go() {
        let nodes = nodes();
        let node = NodeId([1; 16]);
        let id = |number: usize| claim_id(&number.to_le_bytes());
        for number in 0..=CLAIMS_MAX {
            nodes.note(node, id(number), NOW).unwrap();
        }
        let len = || nodes.tables.lock().claims.len();
        assert_eq!(len(), CLAIMS_MAX);
        assert_eq!(nodes.note(node, id(1), NOW), Err(RefuseClaimError::Repeated));
        nodes.note(node, id(0), NOW + 2 * CLAIM_SECONDS_MAX + 1).unwrap();
        assert_eq!(len(), 1);
    }

    #[test]
    fn no_claim_makes_the_mirror_panic() {
        let nodes = nodes();
        for text in ["", " ", "a b c d e", "AA== 1 1 AA== AA==", &"x".repeat(2000), "\u{e9}"] {
            for name in ["piecemeal-claim", "piecemeal-node", "piecemeal-proof"] {
                let value = HeaderValue::from_bytes(text.as_bytes()).unwrap();
                let shown = HeaderMap::from_iter([(name.parse().unwrap(), value)]);
                assert_eq!(asked_any(&nodes, &shown), Ok(None), "{name} {text:?}");
            }
        }
    }
}
