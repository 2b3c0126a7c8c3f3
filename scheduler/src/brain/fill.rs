//! Fill: one download of a blob by a mirror, with its cut into pieces and their hashes.
//!
//! Invariant: a known hash is the authority's (`stated`) or a peer's (the last of the piece's `claims`), never both. A claim by
//! which a piece was leased is kept until it is compared with proven bytes, or the fill goes with all its pieces.

use std::collections::{BTreeMap, BTreeSet};

use piecemeal_proto::{FillId, NodeId, PieceHash, PieceMap, PieceSet};

use super::{MemberId, rarity::Rarity};

/// A piece hash for which there is only a peer's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) hash: PieceHash,
    pub(super) member: MemberId,
    pub(super) node: NodeId,
    pub(super) signed: bool,
    /// Pieces that came from other sources and did not have this hash.
    pub(super) doubts: u32,
    /// A piece was leased by this hash.
    pub(super) used: bool,
}

pub(super) struct Fill {
    pub(super) id: FillId,
    pub(super) map: PieceMap,
    /// A mirror has stated this fill: a peer's word cannot replace it.
    pub(super) from_mirror: bool,
    /// A mirror has proven the blob's own digest over this fill.
    pub(super) proven: bool,
    /// The authority signed a list of the hashes of all pieces: nothing replaces them.
    pub(super) signed: bool,
    /// Pieces whose hash is known.
    pub(super) hashed: PieceSet,
    /// Pieces whose hash the authority stated, in a mirror's session or in a signed list.
    stated: PieceSet,
    /// By piece; empty until a hash is known.
    hashes: Vec<Option<PieceHash>>,
    /// By piece: the claims of peers, at most [`CLAIMS_MAX`] and one a node, the latest last. They are kept until proven bytes
    /// are there to compare. A claim that is used no more is compared, too: other peers may hold a piece by it.
    claims: BTreeMap<u32, Vec<Claim>>,
    pub(super) rarity: Rarity,
}

impl Fill {
    pub(super) fn new(id: FillId, map: PieceMap) -> Self {
        let count = map.count();
        Self {
            id,
            map,
            from_mirror: false,
            proven: false,
            signed: false,
            hashed: PieceSet::new(count),
            stated: PieceSet::new(count),
            hashes: Vec::new(),
            claims: BTreeMap::new(),
            rarity: Rarity::new(count),
        }
    }

    /// The fill `id` in place of this one. If both are cut alike, the hashes of a signed list stay, and so do the claims of
    /// peers, which are still to be compared.
    pub(super) fn succeed(self, id: FillId, map: PieceMap) -> Self {
        let mut next = Self::new(id, map);
        if map == self.map {
            next.claims = self.claims;
            if self.signed {
                (next.signed, next.hashes) = (true, self.hashes);
                (next.hashed, next.stated) = (self.hashed, self.stated);
            }
        }
        next
    }

    pub(super) fn hash(&self, piece: u32) -> Option<PieceHash> {
        self.hashes.get(piece as usize).copied().flatten()
    }

    /// The hash that the authority stated.
    pub(super) fn stated_hash(&self, piece: u32) -> Option<PieceHash> {
        self.hash(piece).filter(|_| self.stated.contains(piece))
    }

    /// Takes a hash that the authority states; yields the claims that differ from it. `proven`: the blob's own digest has
    /// proven the bytes. Before that a mirror may find that its download was bad, and the claims are kept to be compared with
    /// the next download.
    pub(super) fn state(&mut self, piece: u32, hash: PieceHash, proven: bool) -> Vec<Claim> {
        let is_known = self.stated_hash(piece) == Some(hash);
        if piece >= self.map.count() || self.signed || (is_known && !proven) {
            return Vec::new();
        }
        self.set(piece, hash);
        self.stated.insert(piece);
        let claims = match proven {
            true => self.claims.remove(&piece),
            false => self.claims.get(&piece).cloned(),
        };
        let mut claims = claims.unwrap_or_default();
        claims.retain(|claim| claim.hash != hash);
        claims
    }

    /// The hashes that the authority stated of this fill are proven; yields the claims that differ from them.
    pub(super) fn prove(&mut self) -> Vec<(u32, Claim)> {
        self.proven = true;
        let mut wrong = Vec::new();
        let (stated, hashes) = (&self.stated, &self.hashes);
        self.claims.retain(|&piece, claims| {
            let differing = claims.iter().filter(|claim| hashes[piece as usize] != Some(claim.hash));
            if stated.contains(piece) {
                wrong.extend(differing.map(|claim| (piece, *claim)));
            }
            !stated.contains(piece)
        });
        wrong
    }

    /// Takes a peer's claim for a piece of which no hash is known; says whether the node contradicts itself. It takes no claim
    /// of a node whose other claim was used, and none that would push out a used claim: each of these is still to be compared.
    pub(super) fn claim(&mut self, piece: u32, mut claim: Claim) -> bool {
        if piece >= self.map.count() || self.hashed.contains(piece) {
            return false;
        }
        let claims = self.claims.entry(piece).or_default();
        if let Some(place) = claims
            .iter()
            .position(|other| (other.node, other.signed) == (claim.node, claim.signed))
        {
            if claims[place].used && claims[place].hash != claim.hash {
                return true;
            }
            claim.used |= claims.remove(place).used;
        }
        if claims.len() >= CLAIMS_MAX {
            let Some(place) = claims.iter().position(|other| !other.used) else {
                return false;
            };
            claims.remove(place);
        }
        claims.push(claim);
        self.set(piece, claim.hash);
        false
    }

    /// Marks the claims by which `pieces` are leased now.
    pub(super) fn note_use(&mut self, pieces: std::ops::Range<u32>) {
        let stated = &self.stated;
        for (_, claims) in self
            .claims
            .range_mut(pieces)
            .filter(|(piece, _)| !stated.contains(**piece))
        {
            claims.last_mut().expect("no entry is empty").used = true;
        }
    }

    fn set(&mut self, piece: u32, hash: PieceHash) {
        if self.hashes.is_empty() {
            self.hashes = vec![None; self.map.count() as usize];
        }
        self.hashes[piece as usize] = Some(hash);
        self.hashed.insert(piece);
    }

    /// The claim that is used for `piece`, where the authority has stated no hash.
    pub(super) fn claim_of(&mut self, piece: u32) -> Option<&mut Claim> {
        let is_used = self.is_claimed(piece);
        self.claims.get_mut(&piece).filter(|_| is_used)?.last_mut()
    }

    /// Stops to use the claims of these members.
    pub(super) fn retract_claims(&mut self, members: &BTreeSet<MemberId>) {
        for (&piece, claims) in &self.claims {
            let is_theirs = claims.last().is_some_and(|claim| members.contains(&claim.member));
            if is_theirs && !self.stated.contains(piece) && self.hashed.remove(piece) {
                self.hashes[piece as usize] = None;
            }
        }
    }

    /// The members whose claims are used.
    pub(super) fn claimants(&self) -> BTreeSet<MemberId> {
        let used = self.claims.iter().filter(|(piece, _)| self.is_claimed(**piece));
        used.filter_map(|(_, claims)| Some(claims.last()?.member)).collect()
    }

    /// Whether the piece's hash is known by a peer's claim alone.
    fn is_claimed(&self, piece: u32) -> bool {
        self.hashed.contains(piece) && !self.stated.contains(piece)
    }

    pub(super) fn check(&self, copies: &[u32]) {
        self.rarity.check(copies);
        for piece in 0..self.map.count() {
            assert_eq!(self.hash(piece).is_some(), self.hashed.contains(piece));
        }
    }
}

/// Claims of one piece that are kept. A further claim takes the place of one by which no piece was leased; without such a one
/// it is not taken.
const CLAIMS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(hash: u8) -> Claim {
        Claim {
            hash: [hash; 32],
            member: MemberId(7),
            node: NodeId([7; 16]),
            signed: true,
            doubts: 0,
            used: false,
        }
    }

    /// The claim of another node.
    fn of(node: u8, hash: u8) -> Claim {
        Claim {
            member: MemberId(u32::from(node)),
            node: NodeId([node; 16]),
            signed: true,
            ..claim(hash)
        }
    }

    #[test]
    fn a_claim_by_which_a_piece_was_leased_is_not_pushed_out_and_others_are() {
        let mut fill = Fill::new(FillId(1), PieceMap::new(300, 100).unwrap());
        let all = |nodes: std::ops::Range<u8>| nodes.map(|node| MemberId(u32::from(node))).collect();
        fill.claim(0, of(1, 1));
        fill.note_use(0..3);
        for node in 2..40 {
            fill.retract_claims(&all(1..40));
            fill.claim(0, of(node, node));
            assert_eq!(fill.hash(0), Some([node; 32]));
        }
        let nodes: Vec<u8> = fill.claims[&0].iter().map(|claim| claim.hash[0]).collect();
        assert_eq!((nodes.len(), nodes[0], nodes[7]), (CLAIMS_MAX, 1, 39));
        for node in 40..60 {
            fill.note_use(0..1);
            fill.retract_claims(&all(1..60));
            fill.claim(0, of(node, node));
        }
        assert_eq!(fill.hash(0), None, "no more is used than can be compared");
        assert_eq!(fill.state(0, [99; 32], true).len(), CLAIMS_MAX);
    }

    #[test]
    fn a_mirrors_word_is_compared_once_it_is_proven() {
        let map = PieceMap::new(300, 100).unwrap();
        let mut fill = Fill::new(FillId(1), map);
        fill.claim(0, claim(1));
        assert_eq!(fill.state(0, [2; 32], false), [claim(1)]);
        assert_eq!(fill.state(0, [2; 32], false), [], "that was said before");
        let mut next = fill.succeed(FillId(2), map);
        assert_eq!(next.state(0, [1; 32], false), [], "the first download was bad");
        assert_eq!(next.prove(), []);
        let mut lie = Fill::new(FillId(1), map);
        lie.claim(0, claim(1));
        lie.claim(1, claim(1));
        lie.state(0, [2; 32], false);
        assert_eq!(lie.prove(), [(0, claim(1))]);
        assert_eq!(lie.prove(), []);
        assert_eq!(lie.state(1, [3; 32], true), [claim(1)]);
    }

    #[test]
    fn a_peers_word_never_replaces_a_known_hash_and_the_authoritys_always_does() {
        let mut fill = Fill::new(FillId(1), PieceMap::new(300, 100).unwrap());
        fill.claim(0, claim(1));
        fill.claim(0, claim(2));
        assert_eq!(fill.hash(0), Some([1; 32]));
        assert_eq!(fill.stated_hash(0), None);
        assert_eq!(fill.state(0, [3; 32], true), [claim(1)], "that was a lie");
        fill.claim(0, claim(4));
        assert_eq!((fill.stated_hash(0), fill.claim_of(0)), (Some([3; 32]), None));
        fill.claim(1, claim(5));
        assert_eq!(fill.state(1, [5; 32], true), [], "and that was none");
        assert_eq!(fill.state(7, [5; 32], true), []);
        fill.claim(2, claim(6));
        assert_eq!(fill.claimants(), BTreeSet::from([MemberId(7)]));
        fill.note_use(0..3);
        fill.retract_claims(&BTreeSet::from([MemberId(7)]));
        assert_eq!((fill.hash(1), fill.hash(2)), (Some([5; 32]), None));
        assert_eq!(fill.claimants(), BTreeSet::new());
        assert!(fill.claim(2, claim(8)), "it said otherwise");
        fill.claim(2, of(8, 8));
        assert_eq!(
            fill.state(2, [8; 32], true),
            [Claim { used: true, ..claim(6) }],
            "others may hold the piece by what is used no more"
        );
    }

    #[test]
    fn the_next_fill_of_the_same_cut_keeps_a_signed_list_and_compares_what_was_claimed() {
        let map = PieceMap::new(300, 100).unwrap();
        let mut fill = Fill::new(FillId(1), map);
        fill.claim(0, claim(1));
        fill.state(1, [2; 32], true);
        let mut next = fill.succeed(FillId(2), map);
        assert_eq!(
            (next.hash(0), next.hash(1)),
            (None, None),
            "a mirror's word was for its own fill"
        );
        assert_eq!(next.state(0, [3; 32], true), [claim(1)]);
        next.signed = true;
        let mut last = next.succeed(FillId(3), map);
        assert_eq!(last.state(0, [4; 32], true), []);
        assert_eq!(last.hash(0), Some([3; 32]));
        let other = PieceMap::new(300, 99).unwrap();
        assert_eq!(last.succeed(FillId(4), other).hash(0), None);
    }
}
