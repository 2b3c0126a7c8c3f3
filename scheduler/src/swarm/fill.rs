//! The fill in force: its cut, its hashes, and how common each of its pieces is.
//!
//! Invariant: `scarce` holds exactly the pieces that no counted peer has or is being sent. A hash that is known is the authority's
//! (`stated`) or a peer's (the last of the piece's `claims`), never both.

use std::collections::BTreeMap;

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
    /// By piece: peers' words that were used, until the authority speaks; at most [`CLAIMS_MAX`], the latest last. Also what is used
    /// no more is compared then: others may hold a piece by it.
    claims: BTreeMap<u32, Vec<Claim>>,
    /// By piece: peers that hold it or are being sent it, without those that hold the whole blob.
    copies: Vec<u32>,
    /// By piece: when the first of its present copies set out.
    out_since: Vec<Time>,
    scarce: PieceSet,
    /// No scarce piece is in a bitmap word below this one.
    scarce_from: usize,
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
        if self.scarce.remove(piece) {
            self.out_since[piece as usize] = now;
            while self.scarce.words().get(self.scarce_from) == Some(&0) {
                self.scarce_from += 1;
            }
        }
    }

    /// One peer fewer.
    pub(super) fn remove_copy(&mut self, piece: u32) {
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

    /// Takes the authority's word; yields the claims that it shows to be wrong.
    pub(super) fn state(&mut self, piece: u32, hash: PieceHash) -> Vec<Claim> {
        if piece >= self.map.count() || self.signed {
            return Vec::new();
        }
        self.set(piece, hash);
        self.stated.insert(piece);
        let mut claims = self.claims.remove(&piece).unwrap_or_default();
        claims.retain(|claim| claim.hash != hash);
        claims
    }

    /// Takes a peer's word for a piece of which no hash is known.
    pub(super) fn claim(&mut self, piece: u32, claim: Claim) {
        if piece < self.map.count() && !self.hashed.contains(piece) {
            self.set(piece, claim.hash);
            let claims = self.claims.entry(piece).or_default();
            claims.retain(|other| (other.member, other.hash) != (claim.member, claim.hash));
            claims.push(claim);
            claims.drain(..claims.len().saturating_sub(CLAIMS_MAX));
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
        let is_used = self.hashed.contains(piece) && !self.stated.contains(piece);
        self.claims.get_mut(&piece).filter(|_| is_used)?.last_mut()
    }

    /// Uses no claim of `member` any more.
    pub(super) fn set_claims_aside(&mut self, member: MemberId) {
        for (&piece, claims) in &self.claims {
            let is_theirs = claims.last().is_some_and(|claim| claim.member == member);
            if is_theirs && !self.stated.contains(piece) && self.hashed.remove(piece) {
                self.hashes[piece as usize] = None;
            }
        }
    }

    /// Members whose word is used.
    pub(super) fn claimants(&self) -> Vec<MemberId> {
        let used = self.claims.iter().filter(|(piece, _)| self.hashed.contains(**piece));
        let mut members: Vec<MemberId> = used.filter_map(|(_, claims)| Some(claims.last()?.member)).collect();
        members.sort_unstable();
        members.dedup();
        members
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

/// Peers whose word was used for one piece, one after the other, and is still to be compared.
const CLAIMS_MAX: usize = 4;

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
        }
    }

    #[test]
    fn a_peers_word_never_replaces_a_known_hash_and_the_authoritys_always_does() {
        let mut fill = Fill::new(FillId(1), PieceMap::new(300, 100).unwrap());
        fill.claim(0, claim(1));
        fill.claim(0, claim(2));
        assert_eq!(fill.hash(0), Some([1; 32]));
        assert_eq!(fill.stated_hash(0), None);
        assert_eq!(fill.state(0, [3; 32]), [claim(1)], "that was a lie");
        fill.claim(0, claim(4));
        assert_eq!((fill.stated_hash(0), fill.claim_of(0)), (Some([3; 32]), None));
        fill.claim(1, claim(5));
        assert_eq!(fill.state(1, [5; 32]), [], "and that was none");
        assert_eq!(fill.state(7, [5; 32]), []);
        fill.claim(2, claim(6));
        assert_eq!(fill.claimants(), [MemberId(7)]);
        fill.set_claims_aside(MemberId(7));
        assert_eq!((fill.hash(1), fill.hash(2)), (Some([5; 32]), None));
        assert_eq!(fill.claimants(), []);
        fill.claim(2, claim(8));
        assert_eq!(
            fill.state(2, [8; 32]),
            [claim(6)],
            "others may hold the piece by what is used no more"
        );
    }

    #[test]
    fn the_next_fill_of_the_same_cut_keeps_a_signed_list_and_compares_what_was_claimed() {
        let map = PieceMap::new(300, 100).unwrap();
        let mut fill = Fill::new(FillId(1), map);
        fill.claim(0, claim(1));
        fill.state(1, [2; 32]);
        let mut next = fill.succeed(FillId(2), map);
        assert_eq!(
            (next.hash(0), next.hash(1)),
            (None, None),
            "a mirror's word was for its own fill"
        );
        assert_eq!(next.state(0, [3; 32]), [claim(1)]);
        next.signed = true;
        let mut last = next.succeed(FillId(3), map);
        assert_eq!(last.state(0, [4; 32]), []);
        assert_eq!(last.hash(0), Some([3; 32]));
        let other = PieceMap::new(300, 99).unwrap();
        assert_eq!(last.succeed(FillId(4), other).hash(0), None);
    }
}
