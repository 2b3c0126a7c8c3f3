//! The fill in force: its cut, its hashes, and how common each of its pieces is.
//!
//! Invariant: `scarce` holds exactly the pieces that no counted peer has or is being sent. A hash that is known is the authority's
//! (`stated`) or a peer's (the last of the piece's `claims`), never both. A claim by which a piece was leased is kept until it is
//! compared with what is proven, or the fill goes with all its pieces.

use std::collections::{BTreeMap, BTreeSet};

use piecemeal_proto::{FillId, NodeId, PieceHash, PieceMap, PieceSet};

use super::{MemberId, Time};

/// A hash for which there is only a peer's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) hash: PieceHash,
    pub(super) member: MemberId,
    pub(super) node: NodeId,
    pub(super) signed: bool,
    /// Pieces of other sources that did not have the hash.
    pub(super) doubts: u32,
    /// A piece was leased by it.
    pub(super) used: bool,
}

pub(super) struct Fill {
    pub(super) id: FillId,
    pub(super) map: PieceMap,
    /// A mirror has spoken of it: a peer's word cannot replace it.
    pub(super) from_mirror: bool,
    pub(super) proven: bool,
    /// The hashes of all pieces came in a list that the authority signed: nothing replaces them.
    pub(super) signed: bool,
    /// Pieces whose hash is known.
    pub(super) hashed: PieceSet,
    /// Pieces whose hash the authority stated: in a mirror's session, or in a signed list.
    stated: PieceSet,
    hashes: Vec<Option<PieceHash>>,
    /// By piece: peers' words, until proven bytes are there to compare; at most [`CLAIMS_MAX`] and one a node, the latest last.
    /// Also what is in force no more is compared then: others may hold a piece by it.
    claims: BTreeMap<u32, Vec<Claim>>,
    /// By piece: peers that hold it or are being sent it, without those that hold the whole blob.
    copies: Vec<u32>,
    /// By piece: when the first of its present copies set out.
    out_since: Vec<Time>,
    scarce: PieceSet,
    /// No scarce piece is in a bitmap word below this one.
    scarce_from: usize,
    /// How often `copies` was changed.
    #[cfg(test)]
    pub(super) counted: u64,
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
            copies: vec![0; count as usize],
            out_since: vec![Time::ZERO; count as usize],
            scarce: PieceSet::full(count),
            scarce_from: 0,
            #[cfg(test)]
            counted: 0,
        }
    }

    /// Whether any peer has a piece of it or is being sent one.
    pub(super) fn is_in_use(&self) -> bool {
        !self.scarce.is_full()
    }

    pub(super) fn is_scarce(&self, piece: u32) -> bool {
        self.scarce.contains(piece)
    }

    pub(super) fn scarce_word(&self, word: usize) -> u64 {
        self.scarce.words()[word]
    }

    /// The first bitmap word that may hold a scarce piece.
    pub(super) fn scarce_from(&self) -> usize {
        self.scarce_from
    }

    pub(super) fn copies(&self, piece: u32) -> u32 {
        self.copies[piece as usize]
    }

    pub(super) fn out_since(&self, piece: u32) -> Time {
        self.out_since[piece as usize]
    }

    /// One more peer has `piece` or is being sent it.
    pub(super) fn add_copy(&mut self, piece: u32, now: Time) {
        self.copies[piece as usize] += 1;
        #[cfg(test)]
        {
            self.counted += 1;
        }
        if self.scarce.remove(piece) {
            self.out_since[piece as usize] = now;
            while self.scarce.words().get(self.scarce_from) == Some(&0) {
                self.scarce_from += 1;
            }
        }
    }

    /// One peer fewer.
    pub(super) fn remove_copy(&mut self, piece: u32) {
        #[cfg(test)]
        {
            self.counted += 1;
        }
        let copies = &mut self.copies[piece as usize];
        *copies -= 1;
        if *copies == 0 {
            self.scarce.insert(piece);
            self.scarce_from = self.scarce_from.min(piece as usize / 64);
        }
    }

    /// The fill `id` in place of this one. What a signed list says of the blob's pieces stays true if the new one is cut alike, and
    /// what peers have claimed of them is still to be compared.
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

    /// Takes the authority's word; yields the claims that differ from it. `proven`: of bytes that the blob's own digest has shown to
    /// be right. Before that a mirror may find that its download was bad, and the claims are kept to be compared with the next.
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

    /// What the authority stated of this fill is proven; yields the claims that differ from it.
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

    /// Takes a peer's word for a piece of which no hash is known. Not that of a node whose other word was used already, nor one that
    /// would push out another's that was: each of these is still to be compared. Says whether the node contradicts itself.
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

    /// Pieces are leased by the hashes that are known now.
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

    /// No counted peer has any of `pieces` any more, or is being sent one.
    pub(super) fn remove_copies(&mut self, pieces: &PieceSet) {
        for piece in pieces.iter() {
            #[cfg(test)]
            {
                self.counted += 1;
            }
            self.copies[piece as usize] = 0;
            self.scarce.insert(piece);
            self.scarce_from = self.scarce_from.min(piece as usize / 64);
        }
    }

    fn set(&mut self, piece: u32, hash: PieceHash) {
        if self.hashes.is_empty() {
            self.hashes = vec![None; self.map.count() as usize];
        }
        self.hashes[piece as usize] = Some(hash);
        self.hashed.insert(piece);
    }

    /// Whose word is used for `piece`, where it is not the authority's.
    pub(super) fn claim_of(&mut self, piece: u32) -> Option<&mut Claim> {
        let is_used = self.is_claimed(piece);
        self.claims.get_mut(&piece).filter(|_| is_used)?.last_mut()
    }

    /// Uses no claim of these members any more.
    pub(super) fn retract_claims(&mut self, members: &BTreeSet<MemberId>) {
        for (&piece, claims) in &self.claims {
            let is_theirs = claims.last().is_some_and(|claim| members.contains(&claim.member));
            if is_theirs && !self.stated.contains(piece) && self.hashed.remove(piece) {
                self.hashes[piece as usize] = None;
            }
        }
    }

    /// Members whose word is used.
    pub(super) fn claimants(&self) -> BTreeSet<MemberId> {
        let used = self.claims.iter().filter(|(piece, _)| self.is_claimed(**piece));
        used.filter_map(|(_, claims)| Some(claims.last()?.member)).collect()
    }

    /// Whether a peer's word is all that is known of the piece's hash.
    fn is_claimed(&self, piece: u32) -> bool {
        self.hashed.contains(piece) && !self.stated.contains(piece)
    }

    pub(super) fn check(&self, copies: &[u32]) {
        assert_eq!(self.copies, copies, "copies are counted");
        for (piece, &count) in (0..).zip(copies) {
            assert_eq!(self.is_scarce(piece), count == 0);
            assert!(count > 0 || piece as usize / 64 >= self.scarce_from);
            assert_eq!(self.hash(piece).is_some(), self.hashed.contains(piece));
        }
    }
}

/// Peers whose word for one piece is still to be compared. Beyond it those go by which no piece was leased; without any, no other word
/// is taken.
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
